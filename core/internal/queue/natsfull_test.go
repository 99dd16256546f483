package queue_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/queue/queuetest"
)

// TestFullOfRunsForLater checks that a NATS without any room but for what it has does not keep runs for ever that were to wait for a time: each is to be moved when it is due.
func TestFullOfRunsForLater(t *testing.T) {
	t.Parallel()
	q := openJetStream(t, queuetest.NewNats(t, "jetstream { max_file_store: 40KB }").URL, newName())
	due := time.Now().Add(2 * time.Second)
	waiting := map[string]bool{}
	for n := 0; ; n++ {
		job := core.Job{Account: "acct_1", Run: fmt.Sprintf("run_%d", n), Workflow: "wf_1", Lane: "lane", Due: due}
		if err := q.Add(t.Context(), job); err != nil {
			t.Logf("%d runs have room: %v", n, err)
			break
		}
		waiting[job.Run] = true
	}
	if len(waiting) < 10 || time.Now().After(due) {
		t.Fatalf("%d runs wait for %s", len(waiting), time.Until(due))
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for len(waiting) > 0 {
		d, err := q.Take(ctx)
		if err != nil {
			t.Fatalf("%v, and %d runs wait still", err, len(waiting))
		}
		if time.Now().Before(due) {
			t.Error("a run came before its time")
		}
		delete(waiting, d.Job().Run)
		d.Done()
	}
}
