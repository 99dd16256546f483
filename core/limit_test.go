package core

import (
	"testing"
	"time"
)

// Q2: a clock that was set back by much does not close a bucket until it is where it was, and gives away one run. By little, it gives away nothing: that is what
// runs look like which are judged in another order than they came.
func TestRateLimitWithClockSetBackQ2(t *testing.T) {
	t.Parallel()
	limit := RateLimit{Name: "r", Limit: 3, Per: Duration(time.Minute)}
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	var full int64
	take := func() bool {
		after, _, ok := limit.Take(full, now)
		full = after
		return ok
	}
	for take() {
	}
	now = now.Add(-30 * time.Second)
	if take() {
		t.Error("a run that came before others is let through for that")
	}
	now = now.Add(-24 * time.Hour)
	if !take() || take() {
		t.Error("a clock that is set back does not let through exactly one run")
	}
	now = now.Add(20 * time.Second)
	if !take() || take() {
		t.Error("after a third of the period there is not exactly one run, as the limit says")
	}
	now = now.Add(time.Hour)
	n := 0
	for take() {
		n++
	}
	if n != 3 {
		t.Errorf("a full bucket holds %d runs, want 3", n)
	}
}

// What a bucket is said to hold is what it then gives, whether it is asked for that or it follows from what was said a while before.
func TestRateLimitState(t *testing.T) {
	t.Parallel()
	limit := RateLimit{Name: "r", Limit: 6, Per: Duration(time.Minute), Burst: 4}
	start := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for taken := range 5 {
		var full int64
		for range taken {
			full, _, _ = limit.Take(full, start)
		}
		said := limit.State(full, start)
		for _, after := range []time.Duration{0, time.Second, 9 * time.Second, 10 * time.Second, 25 * time.Second, time.Hour} {
			now := start.Add(after)
			s := limit.State(full, now)
			if later := limit.Later(said, after); later != s {
				t.Errorf("%d taken, %s later: %+v, which was foreseen as %+v", taken, after, s, later)
			}
			n, at := int64(0), full
			for {
				next, _, ok := limit.Take(at, now)
				if !ok {
					break
				}
				n, at = n+1, next
			}
			if s.Remaining != n {
				t.Errorf("%d taken, %s later: said to hold %d, holds %d", taken, after, s.Remaining, n)
			}
			if _, _, ok := limit.Take(full, now.Add(s.Reset)); !ok {
				t.Errorf("%d taken, %s later: nothing there after the %s that were said", taken, after, s.Reset)
			}
		}
	}
}
