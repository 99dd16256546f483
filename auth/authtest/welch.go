// Package authtest holds what the tests of refusals share, in package auth and where a whole server refuses. Nothing but tests imports it.
package authtest

import (
	"math"
	"slices"
)

// MaxT is the |t| from which on the times of two kinds of refusal tell them apart (promise K4).
const MaxT = 4.5

// WelchT returns Welch's |t| of two samples without their slowest hundredth, which is the machine's. Each must have at least three values that are
// not all equal. It changes neither sample.
func WelchT(a, b []float64) float64 {
	ma, va, na := moments(a)
	mb, vb, nb := moments(b)
	return math.Abs(ma-mb) / math.Sqrt(va/na+vb/nb)
}

func moments(sample []float64) (mean, variance, n float64) {
	s := slices.Sorted(slices.Values(sample))
	s = s[:len(s)*99/100]
	n = float64(len(s))
	for _, x := range s {
		mean += x
	}
	mean /= n
	for _, x := range s {
		variance += (x - mean) * (x - mean)
	}
	return mean, variance / (n - 1), n
}
