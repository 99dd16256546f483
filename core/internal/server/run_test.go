package server

import (
	"testing"
	"time"

	"github.com/keyfire/keyfire/core"
)

// A run that a server accepts whose clock is ahead begins, by the clock of the one that executes it, before it was accepted. Nobody has to expect a negative time for that.
func TestNoTimeIsNegative(t *testing.T) {
	t.Parallel()
	at := time.Date(2027, 1, 2, 3, 4, 5, 0, time.UTC)
	b := runBody(&core.Run{CreatedAt: at.Add(2 * time.Minute), StartedAt: at.Add(time.Minute), FinishedAt: at, Status: core.RunSucceeded})
	if b.QueueMS == nil || *b.QueueMS != 0 || b.DurationMS == nil || *b.DurationMS != 0 {
		t.Errorf("it waited for %v ms and took %v", b.QueueMS, b.DurationMS)
	}
}
