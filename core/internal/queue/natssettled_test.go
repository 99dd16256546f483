package queue_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/queue"
	"github.com/keyfire/keyfire/core/internal/queue/queuetest"
)

// TestJetStreamSettledComesBackD2 checks that runs which have left the queue do not fill it when NATS finds their messages again: they are not executed once more, do not count as runs that
// wait, and one that is to be queued is missing. Runs that wait are left alone, and are delivered once.
func TestJetStreamSettledComesBackD2(t *testing.T) {
	t.Parallel()
	for range 5 {
		if settledComesBack(t) {
			return
		}
	}
	t.Error("NATS has forgotten what it knew of its consumers each time that it was stopped")
}

// settledComesBack is whether it could be tested: a NATS that is stopped while it writes what a consumer has acknowledged knows nothing of it afterwards, and rightly gives those runs again.
func settledComesBack(t *testing.T) bool {
	nats := queuetest.NewNats(t)
	q := openJetStream(t, nats.URL, newName())
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	add := func(job core.Job) {
		t.Helper()
		for q.Add(ctx, job) != nil { // NATS is not back yet
			if ctx.Err() != nil {
				t.Fatal(ctx.Err())
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	var jobs []core.Job
	for n := range 20 {
		jobs = append(jobs, core.Job{Account: "acct_1", Run: fmt.Sprint("run_", n), Workflow: "wf_1", Lane: fmt.Sprint(n % 5)})
		add(jobs[n])
	}
	nats.Stop()
	back, err := nats.Keep()
	if err != nil {
		t.Fatal(err)
	}
	if err := nats.Start(); err != nil {
		t.Fatal(err)
	}
	settle(ctx, t, q, len(jobs))
	nats.Stop()
	if err := back(); err != nil {
		t.Fatal(err)
	}
	if err := nats.Start(); err != nil {
		t.Fatal(err)
	}

	waiting := core.Job{Account: "acct_1", Run: "run_later", Workflow: "wf_1", Due: time.Now().Add(time.Hour)}
	add(waiting)
	var gone []core.Job
	for len(gone) < len(jobs) {
		if err := q.Scan(ctx, time.Hour); err != nil {
			t.Fatal(err)
		}
		if gone, err = q.Missing(ctx, append(jobs, waiting)); err != nil {
			t.Fatalf("%d of %d runs are missing: %v", len(gone), len(jobs), err)
		}
		// Nobody takes runs here, and the one that waits for a time is unread for a moment.
		if unread, err := q.Unread(ctx); err != nil {
			t.Fatal(err)
		} else if unread > 1 {
			return false
		}
	}
	if n := q.Depth(); n != 1 || len(gone) != len(jobs) {
		t.Errorf("%d runs count as waiting, want the one that does; %d are missing, want %d", n, len(gone), len(jobs))
	}
	add(jobs[0])
	d, err := q.Take(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if d.Job().Run != jobs[0].Run || d.Job().Recovered {
		t.Errorf("what is delivered is %+v", d.Job())
	}
	d.Done()
	return true
}

// settle takes that many runs out of the queue, none of which anybody was given before. There is a worker for each, as one that nobody wants for a moment is given back, and comes again.
func settle(ctx context.Context, t *testing.T, q *queue.JetStream, runs int) {
	t.Helper()
	var (
		work sync.WaitGroup
		mu   sync.Mutex
		done = map[string]bool{}
	)
	for range runs {
		work.Go(func() {
			d, err := q.Take(ctx)
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			if d.Job().Recovered || done[d.Job().Run] {
				t.Errorf("%s was given to nobody before, and is delivered again", d.Job().Run)
			}
			done[d.Job().Run] = true
			mu.Unlock()
			d.Done()
		})
	}
	if work.Wait(); len(done) != runs {
		t.Fatalf("%d runs were delivered, want %d", len(done), runs)
	}
}
