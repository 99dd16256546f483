package queue_test

import (
	"fmt"
	"testing"

	"go.uber.org/goleak"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/queue"
	"github.com/keyfire/keyfire/core/internal/queue/queuetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestInProcess(t *testing.T) {
	t.Parallel()
	queuetest.Run(t, queuetest.Target{Open: func(t *testing.T, most int) queue.Queue {
		q := queue.NewInProcess(queue.Config{Max: most})
		t.Cleanup(q.Close)
		return q
	}})
}

// What one run costs the queue, with a hundred callers and fifty thousand runs waiting.
func BenchmarkInProcess(b *testing.B) {
	q := queue.NewInProcess(queue.Config{})
	defer q.Close()
	put := func(i int) {
		j := core.Job{Account: "acct_1", Run: fmt.Sprint("run_", i), Workflow: "wf_1", Lane: fmt.Sprint("key_", i%100)}
		p, err := q.Reserve(j)
		if err != nil {
			b.Fatal(err)
		}
		if err := p.Put(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	for i := range 50_000 {
		put(-i - 1)
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		put(i)
		i++
		d, err := q.Take(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		d.Done()
	}
}

func TestLocalSignals(t *testing.T) {
	t.Parallel()
	queuetest.RunSignals(t, func(*testing.T) (here, there queue.Signals) {
		s := &queue.LocalSignals{}
		return s, s
	})
}
