package core

import (
	"slices"
	"strings"
)

// Nearest returns the one of names that name is most likely a misspelling of, or "" when none is near: at most a third of its bytes differ, but
// one always may, and the case of ASCII letters does not count. Of several that are as near, it is the first in alphabetical order. A name of more
// than 64 bytes is near to none, so that the work is bounded by the number of names.
func Nearest(name string, names []string) string {
	if len(name) > 64 {
		return ""
	}
	name = strings.ToLower(name)
	best, least := "", max(1, len(name)/3)+1
	for _, n := range slices.Sorted(slices.Values(names)) {
		if len(n) > len(name)+least {
			continue
		}
		if d := distance(name, strings.ToLower(n)); d < least && d < len(n) {
			best, least = n, d
		}
	}
	return best
}

// Clip shortens a name that a caller made up to at most 64 bytes and "...", for use in an answer.
func Clip(name string) string {
	const longest = 64
	if len(name) > longest {
		return strings.ToValidUTF8(name[:longest], "") + "..."
	}
	return name
}

// distance counts the single bytes to insert, delete or replace, and the pairs of neighbours to swap, to turn a into b.
func distance(a, b string) int {
	before, row, next := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		next[0] = i + 1
		for j := range len(b) {
			cost := row[j]
			if a[i] != b[j] {
				cost++
			}
			next[j+1] = min(cost, row[j+1]+1, next[j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				next[j+1] = min(next[j+1], before[j-1]+1)
			}
		}
		before, row, next = row, next, before
	}
	return row[len(b)]
}
