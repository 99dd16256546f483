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
