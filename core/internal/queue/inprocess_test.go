package queue_test

import (
	"context"
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

// A run that is cancelled when its workflow has room for it leaves the room to the next one.
func TestInProcessDropsTheNextOfALimit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := queue.NewInProcess(queue.Config{})
		defer q.Close()
		limited := func(run string) core.Job { return core.Job{Account: "acct_1", Workflow: "wf_1", Run: run, Limit: 1} }
		other := core.Job{Account: "acct_1", Workflow: "wf_2", Run: "run_other"}
		for _, job := range []core.Job{limited("run_1"), limited("run_2"), limited("run_3"), other} {
			if err := q.Add(t.Context(), job); err != nil {
				t.Fatal(err)
			}
		}
		first, next := takeWithin(t, q), takeWithin(t, q)
		if first.Job().Run != "run_1" || next.Job().Run != "run_other" {
			t.Fatalf("got %s and %s", first.Job().Run, next.Job().Run)
		}
		first.Done()
		q.Drop(limited("run_2"))
		if last := takeWithin(t, q); last.Job().Run != "run_3" {
			t.Errorf("got %s", last.Job().Run)
		}
	})
}

// Runs that are cancelled while no worker comes to their turn do not pile up, and leave the others in their order.
func TestInProcessForgetsWhatWasDropped(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := queue.NewInProcess(queue.Config{})
		defer q.Close()
		job := func(i int) core.Job {
			return core.Job{Account: "acct_1", Workflow: fmt.Sprint("wf_", i%3), Lane: "key_1", Run: fmt.Sprint("run_", i), Limit: i % 2}
		}
		const runs, kept = 20_000, 2_000
		for i := range runs {
			if err := q.Add(t.Context(), job(i)); err != nil {
				t.Fatal(err)
			}
			if i%(runs/kept) != 0 {
				q.Drop(job(i))
			}
			if n := q.Held(); n > 2*(kept+1024) {
				t.Fatalf("%d are in memory after %d, of which %d wait", n, i+1, q.Depth())
			}
		}
		for i := 0; i < runs; i += runs / kept {
			d := takeWithin(t, q)
			if d.Job().Run != job(i).Run {
				t.Fatalf("got %s before %s", d.Job().Run, job(i).Run)
			}
			d.Done()
		}
	})
}

func takeWithin(t *testing.T, q queue.Queue) queue.Delivery {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	d, err := q.Take(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return d
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
