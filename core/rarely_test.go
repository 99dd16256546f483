package core_test

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyfire/keyfire/core"
)

// TestRarely checks that the first of many is told at once, the others together every ten seconds, and those of an earlier time with none.
func TestRarely(t *testing.T) {
	t.Parallel()
	var r core.Rarely
	begun := time.Unix(1_800_000_000, 0)
	for i, step := range []struct {
		at   time.Duration
		want int64
	}{
		{0, 1},
		{0, 0},
		{time.Second, 0},
		{10 * time.Second, 3},
		{11 * time.Second, 0},
		{20*time.Second - 1, 0},
		{20 * time.Second, 3},
		{21 * time.Second, 0},
		{time.Hour, 1},
		{time.Hour + time.Second, 0},
		{time.Hour + 10*time.Second, 2},
		{0, 1}, // the clock was set back
	} {
		if n := r.Happened(begun.Add(step.at)); n != step.want {
			t.Errorf("step %d, after %v: %d, want %d", i, step.at, n, step.want)
		}
	}

	var many core.Rarely
	var told atomic.Int64
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 1000 {
				told.Add(many.Happened(begun))
			}
		})
	}
	all.Wait()
	if n := many.Happened(begun.Add(10 * time.Second)); told.Load()+n != 8001 {
		t.Errorf("%d and then %d were told of, of 8001", told.Load(), n)
	}
}
