package store

import (
	"testing"
	"time"
)

// What the database took to answer is not taken for a difference of the clocks.
func TestAheadOf(t *testing.T) {
	t.Parallel()
	at := time.Date(2027, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, c := range []struct{ before, after, want time.Duration }{
		{0, 0, 0},
		{-time.Second, 9 * time.Second, 0},
		{time.Minute, time.Minute + time.Second, time.Minute},
		{-time.Minute - time.Second, -time.Minute, -time.Minute},
	} {
		if got := aheadOf(at.Add(c.before), at.Add(c.after), at); got != c.want {
			t.Errorf("from %v to %v: %v, want %v", c.before, c.after, got, c.want)
		}
	}
}
