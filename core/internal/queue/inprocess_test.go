package queue_test

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

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

// Of the names that many runs have in common, the queue keeps one text.
func TestInProcessKeepsNamesOnce(t *testing.T) {
	t.Parallel()
	q := queue.NewInProcess(queue.Config{})
	t.Cleanup(q.Close)
	var jobs []core.Job
	for i := range 2 {
		if err := q.Add(t.Context(), core.Job{
			Account: strings.Clone("acct_1"), Run: fmt.Sprint("run_", i), Workflow: strings.Clone("wf_1"), Lane: strings.Clone("key:key_1"),
		}); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		d, err := q.Take(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		jobs = append(jobs, d.Job())
		d.Done()
	}
	for _, name := range []func(core.Job) string{
		func(j core.Job) string { return j.Account }, func(j core.Job) string { return j.Workflow }, func(j core.Job) string { return j.Lane },
	} {
		if a, b := name(jobs[0]), name(jobs[1]); a != b || unsafe.StringData(a) != unsafe.StringData(b) {
			t.Errorf("%q and %q are kept as two texts", a, b)
		}
	}
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

// A run that waits for a time is delivered soon after it, also when the clock jumps there: by being set, or because the machine slept.
func TestInProcessAfterAClockJump(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var jumped atomic.Int64
		q := queue.NewInProcess(queue.Config{Now: func() time.Time { return time.Now().Add(time.Duration(jumped.Load())) }})
		defer q.Close()
		if err := q.Add(t.Context(), core.Job{Account: "acct_1", Run: "run_1", Workflow: "wf_1", Due: time.Now().Add(8 * time.Hour)}); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		time.AfterFunc(time.Second, func() { jumped.Store(int64(9 * time.Hour)) })
		d, err := q.Take(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		d.Done()
		if took := time.Since(began); took < time.Second || took > 10*time.Second {
			t.Errorf("it was delivered %s after the clock jumped", took-time.Second)
		}
	})
}
