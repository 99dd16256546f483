package authtest

import (
	"math"
	"testing"
)

// The expected value is computed by hand: means 3 and 6, variances 2.5 and 2.5, five values each, so 3 / sqrt(0.5 + 0.5).
func TestWelchT(t *testing.T) {
	t.Parallel()
	a, b := []float64{5, 1, 2, 3, 4, 1e9}, []float64{4, 5, 6, 7, 8, 1e12} // the slowest of six is within the slowest hundredth, rounded up
	if got := WelchT(a, b); math.Abs(got-3) > 1e-9 {
		t.Errorf("got %v, want 3", got)
	}
	if got := WelchT(b, a); math.Abs(got-3) > 1e-9 {
		t.Errorf("the other way round: got %v, want 3", got)
	}
	if a[0] != 5 || a[5] != 1e9 {
		t.Errorf("the sample was changed: %v", a)
	}
	if got := WelchT(a, a); got != 0 {
		t.Errorf("of one sample: %v", got)
	}
}
