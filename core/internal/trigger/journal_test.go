package trigger

import (
	"testing"
	"time"

	"github.com/keyfire/keyfire/core"
)

// An executor that panics leaves its nodes behind. What they commit then counts for nothing, and they must hear that instead of waiting for ever.
func TestCommitAfterTheEndIsRefused(t *testing.T) {
	t.Parallel()
	b := setup(t)
	j := newJournal(b.Service, &core.Run{Account: core.DefaultAccount, ID: "run_1", Attempt: 1}, 0, func(error) {})
	j.Record(core.RunEvent{Type: core.EventRunStarted})
	j.close() // as often as the end of the run is tried to be written
	if left := j.close(); len(left) != 1 {
		t.Errorf("%d events are left, want the one that was not committed", len(left))
	}
	ended := make(chan error, 1)
	go func() { ended <- j.Commit(t.Context(), 0, core.Step{ID: "late"}) }()
	select {
	case err := <-ended:
		if err == nil {
			t.Error("a step was committed after the end")
		}
	case <-time.After(10 * time.Second):
		t.Fatal("a commit after the end waits for ever")
	}
}
