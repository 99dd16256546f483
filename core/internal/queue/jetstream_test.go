package queue_test

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/queue"
	"github.com/keyfire/keyfire/core/internal/queue/queuetest"
)

var queues atomic.Int64

// newName names a queue that no other test has.
func newName() string { return fmt.Sprint("test", queues.Add(1)) }

func openJetStream(t testing.TB, url, name string) *queue.JetStream {
	t.Helper()
	q, err := queue.NewJetStream(t.Context(), queue.JetStreamConfig{URL: url, Name: name, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := q.Shutdown(); err != nil {
			t.Error(err)
		}
	})
	return q
}

func TestJetStream(t *testing.T) {
	nats := queuetest.NewNats(t)
	t.Run("Queue", func(t *testing.T) {
		queuetest.Run(t, queuetest.Target{Approximate: true, Open: func(t *testing.T, _ int) queue.Queue {
			return openJetStream(t, nats.URL, newName())
		}})
	})
	t.Run("Signals", func(t *testing.T) {
		queuetest.RunSignals(t, func(t *testing.T) (here, there queue.Signals) {
			name := newName()
			return openJetStream(t, nats.URL, name), openJetStream(t, nats.URL, name)
		})
	})
	for name, test := range map[string]func(t *testing.T, url string){
		"WhatIsMissingIsKnown":                missing,
		"WhatSeveralMissIsQueuedOnce":         queuedOnce,
		"ALimitHoldsOverServers":              limitOverServers,
		"OneCallerLeavesRoom":                 leavesRoom,
		"ALimitIsThatOfTheNewestRun":          newestLimit,
		"ALimitThatNobodyNeedsLeavesNothing":  unneededLimit,
		"AMouseIsNotBehindAnElephant":         mouse,
		"AWorkerThatDiesLeavesItsRunToOthers": died,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, nats.URL)
		})
	}
}

// missing looks for runs that wait, that wait for a time, that a worker has, and that are nowhere.
func missing(t *testing.T, url string) {
	q := openJetStream(t, url, newName())
	job := func(run string) core.Job { return core.Job{Account: "acct_1", Run: run, Workflow: "wf_1"} }
	later := job("run_later")
	later.Due = time.Now().Add(time.Hour)
	for _, j := range []core.Job{job("run_worked"), job("run_waits"), later} {
		if err := q.Add(t.Context(), j); err != nil {
			t.Fatal(err)
		}
	}
	d, err := q.Take(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"run_lost", "run_lost run_worked"} {
		got, err := q.Missing(t.Context(), []core.Job{job("run_waits"), job("run_lost"), later, job("run_worked")})
		if err != nil {
			t.Fatal(err)
		}
		var runs []string
		for _, j := range got {
			runs = append(runs, j.Run)
		}
		if strings.Join(runs, " ") != want {
			t.Errorf("missing are %q, want %s", runs, want)
		}
		d.Done()
	}
}

// queuedOnce has two servers add a run that a third is about to queue, as they do when it is slow, or their clocks differ: it is delivered once. What was delivered and
// done can be queued again.
func queuedOnce(t *testing.T, url string) {
	name := newName()
	servers := []*queue.JetStream{openJetStream(t, url, name), openJetStream(t, url, name), openJetStream(t, url, name)}
	job := core.Job{Account: "acct_1", Run: "run_1", Workflow: "wf_1"}
	for range 3 {
		var adding sync.WaitGroup
		place, err := servers[0].Reserve(job)
		if err != nil {
			t.Fatal(err)
		}
		for _, put := range []func() error{
			func() error { return place.Put(t.Context()) },
			func() error { return servers[1].Add(t.Context(), job) },
			func() error { return servers[2].Add(t.Context(), job) },
		} {
			adding.Go(func() {
				if err := put(); err != nil {
					t.Error(err)
				}
			})
		}
		adding.Wait()
		patience, gone := context.WithTimeout(t.Context(), 10*time.Second)
		first, err := servers[1].Take(patience)
		gone()
		if err != nil {
			t.Fatal(err)
		}
		for i, q := range servers {
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			if d, err := q.Take(ctx); err == nil {
				t.Errorf("server %d is given %s too", i, d.Job().Run)
				d.Done()
			}
			cancel()
		}
		first.Done()
	}
}

// leavesRoom floods a queue with the runs of one caller, which must leave half of it to the others, and with what waits for a time, which must leave some to what does not.
func leavesRoom(t *testing.T, url string) {
	q, err := queue.NewJetStream(t.Context(), queue.JetStreamConfig{URL: url, Name: newName(), Max: 100, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = q.Shutdown() })
	n := 0
	flood := func(job core.Job) (taken int) {
		for ; taken < 200; taken++ {
			n++
			job.Run = fmt.Sprint("run_", n)
			p, err := q.Reserve(job)
			if err != nil {
				if core.CodeOf(err) != core.CodeOverloaded {
					t.Fatal(err)
				}
				break
			}
			if err := p.Put(t.Context()); err != nil {
				t.Fatal(err)
			}
			q.Depth() // counts what waits, as is done every second
		}
		return taken
	}
	elephant := core.Job{Account: "acct_1", Workflow: "wf_1", Lane: "elephant"}
	mouse := elephant
	for i := 0; q.LineOf(mouse) == q.LineOf(elephant); i++ {
		mouse.Lane = fmt.Sprint("mouse", i)
	}
	if got := flood(elephant); got != 50 {
		t.Errorf("one caller was given %d places of 100, want half of them", got)
	}
	if got := flood(mouse); got != 25 {
		t.Errorf("the next one was given %d places of 50, want half of them", got)
	}
	later := elephant
	later.Due = time.Now().Add(time.Hour)
	if got := flood(later); got < 11 || got > 13 {
		t.Errorf("what waits for a time was given %d places of 25, want half of them", got)
	}
	if got := flood(elephant); got != 0 {
		t.Errorf("the first one was given %d more", got)
	}
}

// limitOverServers has three servers work on one workflow with a limit.
func limitOverServers(t *testing.T, url string) {
	name := newName()
	const most, runs = 4, 60
	var now, peak, done atomic.Int64
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	for s := range 3 {
		q := openJetStream(t, url, name)
		for range 5 {
			wg.Go(func() {
				for {
					d, err := q.Take(ctx)
					if err != nil {
						return
					}
					n := now.Add(1)
					for p := peak.Load(); n > p && !peak.CompareAndSwap(p, n); p = peak.Load() {
					}
					time.Sleep(2 * time.Millisecond)
					now.Add(-1)
					d.Done()
					if done.Add(1) == runs {
						cancel()
					}
				}
			})
		}
		for i := range runs / 3 {
			if err := q.Add(t.Context(), core.Job{Account: "acct_1", Run: fmt.Sprintf("run_%d_%d", s, i), Workflow: "wf_1", Lane: fmt.Sprint(i), Limit: most}); err != nil {
				t.Fatal(err)
			}
		}
	}
	wg.Wait()
	if done.Load() != runs || peak.Load() > most {
		t.Errorf("%d of %d runs were executed, up to %d at once; the limit is %d", done.Load(), runs, peak.Load(), most)
	}
}

// newestLimit has a limit raised by way of one server and lowered again by way of another, which had seen it before.
func newestLimit(t *testing.T, url string) {
	name := newName()
	a, b := openJetStream(t, url, name), openJetStream(t, url, name)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	stream := streamOf(ctx, t, url, name)
	runs := 0
	add := func(q *queue.JetStream, limit int) {
		t.Helper()
		runs++
		if err := q.Add(ctx, core.Job{Account: "acct_1", Run: fmt.Sprint("run_", runs), Workflow: "wf_1", Limit: limit}); err != nil {
			t.Fatal(err)
		}
	}
	add(a, 2)
	add(b, 5)
	if got := limitOf(ctx, t, stream); got != 5 {
		t.Fatalf("the limit is %d after it was raised to 5", got)
	}
	for add(a, 2); limitOf(ctx, t, stream) != 2; add(a, 2) { // until it has heard of the other server's change
		time.Sleep(10 * time.Millisecond)
	}
}

// unneededLimit removes the line of a workflow on all servers, and has a run put there by one that does not know yet.
func unneededLimit(t *testing.T, url string) {
	name := newName()
	a, b := openJetStream(t, url, name), openJetStream(t, url, name)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	stream := streamOf(ctx, t, url, name)
	plain := a.Lines()
	job := func(run string) core.Job {
		return core.Job{Account: "acct_1", Run: run, Workflow: "wf_1", Limit: 2}
	}
	add := func(q *queue.JetStream, run string) {
		t.Helper()
		if err := q.Add(ctx, job(run)); err != nil {
			t.Fatal(err)
		}
	}
	take := func(q *queue.JetStream, run string) {
		t.Helper()
		d, err := q.Take(ctx)
		if err != nil {
			t.Fatalf("%s was not delivered: %v", run, err)
		}
		if d.Job().Run != run {
			t.Fatalf("%s was delivered, not %s", d.Job().Run, run)
		}
		d.Done()
	}
	scan := func(q *queue.JetStream, idle time.Duration) {
		t.Helper()
		if err := q.Scan(ctx, idle); err != nil {
			t.Fatal(err)
		}
	}
	add(a, "run_1")
	scan(b, 0)
	take(b, "run_1") // not removed while something waited there
	scan(a, time.Hour)
	if got := limitOf(ctx, t, stream); got != 2 {
		t.Fatalf("the line went with its last run; its limit is %d", got)
	}
	scan(a, 0)
	add(b, "run_2") // b may not have heard
	scan(b, time.Hour)
	if _, err := b.Missing(ctx, []core.Job{job("run_2")}); err != nil {
		t.Fatal(err)
	}
	take(b, "run_2")
	scan(b, 0)
	scan(a, time.Hour)
	if got := limitOf(ctx, t, stream); got != 0 || a.Lines() != plain || b.Lines() != plain {
		t.Errorf("NATS has a line with limit %d; the servers take part in %d and %d lines, want %d", got, a.Lines(), b.Lines(), plain)
	}
}

// streamOf returns a queue's stream as somebody sees it who comes to NATS by hand.
func streamOf(ctx context.Context, t *testing.T, url, name string) jetstream.Stream {
	t.Helper()
	conn, err := nats.Connect(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.Stream(ctx, "KEYFIRE_"+name)
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

// limitOf returns the limit of the one workflow in a queue that has one, as NATS applies it.
func limitOf(ctx context.Context, t *testing.T, stream jetstream.Stream) int {
	t.Helper()
	limit := 0
	consumers := stream.ListConsumers(ctx)
	for c := range consumers.Info() {
		if strings.HasPrefix(c.Name, "limit") {
			limit = c.Config.MaxAckPending
		}
	}
	if consumers.Err() != nil {
		t.Fatal(consumers.Err())
	}
	return limit
}

// mouse queues a few runs behind very many of another caller.
func mouse(t *testing.T, url string) {
	q := openJetStream(t, url, newName())
	const elephants = 2000
	for i := range elephants {
		if err := q.Add(t.Context(), core.Job{Account: "acct_1", Run: fmt.Sprint("run_e", i), Workflow: "wf_1", Lane: "elephant"}); err != nil {
			t.Fatal(err)
		}
	}
	if err := q.Add(t.Context(), core.Job{Account: "acct_1", Run: "run_m", Workflow: "wf_1", Lane: "mouse"}); err != nil {
		t.Fatal(err)
	}
	for n := 0; ; n++ {
		d, err := q.Take(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		d.Done()
		if d.Job().Run == "run_m" {
			if n > elephants/10 {
				t.Errorf("the mouse waited for %d runs of the elephant's %d", n, elephants)
			}
			return
		}
	}
}

// died has a server go away with a run in its hands, without a word.
func died(t *testing.T, url string) {
	name := newName()
	first, second := openJetStream(t, url, name), openJetStream(t, url, name)
	if err := first.Add(t.Context(), core.Job{Account: "acct_1", Run: "run_1", Workflow: "wf_1"}); err != nil {
		t.Fatal(err)
	}
	d, err := first.Take(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Shutdown(); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	again, err := second.Take(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if again.Job().Run != d.Job().Run {
		t.Errorf("got %s", again.Job().Run)
	}
	again.Done()
	t.Logf("delivered again after %v", time.Since(begun))
}

// TestJetStreamRestart kills NATS and starts it again while runs wait and are executed. None is lost, and workers whose run may be with
// another one by then are told.
func TestJetStreamRestart(t *testing.T) {
	t.Parallel()
	nats := queuetest.NewNats(t)
	q := openJetStream(t, nats.URL, newName())
	const runs = 300
	for i := range runs {
		if err := q.Add(t.Context(), core.Job{Account: "acct_1", Run: fmt.Sprint("run_", i), Workflow: "wf_1", Lane: fmt.Sprint(i % 10)}); err != nil {
			t.Fatal(err)
		}
	}
	seen := map[string]int{}
	held, err := q.Take(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	for killed := false; len(seen) < runs; {
		d, err := q.Take(ctx)
		if err != nil {
			t.Fatalf("%d of %d runs were delivered: %v", len(seen), runs, err)
		}
		if d.Done(); d.Job().Run == "run_x" {
			continue // the error said that it may not have been queued
		}
		seen[d.Job().Run]++
		if len(seen) == runs/3 && !killed {
			killed = true
			nats.Kill()
			select {
			case <-held.Lost():
			case <-ctx.Done():
				t.Fatal("a worker was not told that NATS has not heard of it for long")
			}
			// Whoever is told that a run is accepted does not wait for a NATS that is away.
			if place, err := q.Reserve(core.Job{Account: "acct_1", Run: "run_x", Workflow: "wf_1"}); err != nil {
				t.Error(err)
			} else if begun := time.Now(); place.Put(ctx) == nil || time.Since(begun) > 3*time.Second {
				t.Errorf("a run was put into no queue, or that took %v to find out", time.Since(begun))
			}
			if err := q.Add(ctx, core.Job{Account: "acct_1", Run: "run_x", Workflow: "wf_1"}); err == nil {
				t.Error("a run was queued without a queue")
			}
			if err := nats.Start(); err != nil {
				t.Fatal(err)
			}
			held.Done() // too late: it is delivered again
		}
	}
	if seen[held.Job().Run] == 0 {
		t.Error("the run that was held while NATS died was not delivered again")
	}
}

// L1: a NATS that was replaced by an empty one is filled again: what was queued is missing, can be added, and what is put from then on is delivered, also where
// a workflow has a limit.
func TestJetStreamLosesEverythingL1(t *testing.T) {
	t.Parallel()
	nats := queuetest.NewNats(t)
	name := newName()
	q, other := openJetStream(t, nats.URL, name), openJetStream(t, nats.URL, name)
	jobs := []core.Job{
		{Account: "acct_1", Run: "run_plain", Workflow: "wf_1"},
		{Account: "acct_1", Run: "run_limited", Workflow: "wf_2", Limit: 2},
	}
	for _, job := range jobs {
		if err := q.Add(t.Context(), job); err != nil {
			t.Fatal(err)
		}
	}
	nats.Kill()
	if err := nats.Forget(); err != nil {
		t.Fatal(err)
	}
	if err := nats.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	var missing []core.Job
	for len(missing) < len(jobs) { // as the server asks until it is answered
		var err error
		if missing, err = q.Missing(ctx, jobs); err != nil && ctx.Err() != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	for _, job := range missing {
		for q.Add(ctx, job) != nil && ctx.Err() == nil {
			time.Sleep(20 * time.Millisecond)
		}
	}
	later := core.Job{Account: "acct_1", Run: "run_later", Workflow: "wf_2", Limit: 2, Due: time.Now().Add(100 * time.Millisecond)}
	if err := q.Add(ctx, later); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for len(seen) < 3 {
		d, err := other.Take(ctx)
		if err != nil {
			t.Fatalf("of the three runs only %v were delivered: %v", seen, err)
		}
		seen[d.Job().Run] = true
		d.Done()
	}
}

// D2: lines that somebody removed by hand are made anew. Their runs are still in the stream, so that they are not missing, and nobody would be given them.
func TestJetStreamLinesRemovedD2(t *testing.T) {
	t.Parallel()
	server := queuetest.NewNats(t)
	name := newName()
	q := openJetStream(t, server.URL, name)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	stream := streamOf(ctx, t, server.URL, name)
	consumers := stream.ConsumerNames(ctx)
	for line := range consumers.Name() {
		if err := stream.DeleteConsumer(ctx, line); err != nil {
			t.Fatal(err)
		}
	}
	if err := consumers.Err(); err != nil {
		t.Fatal(err)
	}
	jobs := []core.Job{
		{Account: "acct_1", Run: "run_now", Workflow: "wf_1"},
		{Account: "acct_1", Run: "run_later", Workflow: "wf_1", Due: time.Now().Add(100 * time.Millisecond)},
	}
	for _, job := range jobs {
		if err := q.Add(ctx, job); err != nil {
			t.Fatal(err)
		}
	}
	if missing, err := q.Missing(ctx, jobs); err != nil || len(missing) != 0 {
		t.Fatalf("missing are %v, %v; they are in the stream", missing, err)
	}
	for range jobs { // the queue looks by itself every ten seconds
		d, err := q.Take(ctx)
		if err != nil {
			t.Fatalf("a run in a line that was removed is not delivered: %v", err)
		}
		d.Done()
	}
}

// O1: a NATS that hangs, so that it is dialled again and again and never answers, keeps no caller waiting.
func TestJetStreamHangsO1(t *testing.T) {
	t.Parallel()
	nats := queuetest.NewNats(t)
	q := openJetStream(t, nats.URL, newName())
	if err := nats.Freeze(); err != nil {
		t.Fatal(err)
	}
	defer nats.Thaw()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	ready := func(want bool) {
		for (q.Ready() == nil) != want {
			if ctx.Err() != nil {
				t.Fatalf("ready is not %v", want)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	ready(false)
	// While it dials, one time of natsCall after the other; each step of a caller would wait for the end of one.
	for n := range 10 {
		begun := time.Now()
		job := core.Job{Account: "acct_1", Run: fmt.Sprint("run_", n), Workflow: "wf_1"}
		place, err := q.Reserve(job)
		if err != nil {
			t.Fatal(err)
		}
		if place.Put(ctx) == nil {
			t.Error("a run was put into a queue that hangs")
		}
		changed, stop := q.Follow(job.Account, job.Run)
		q.Changed(job.Account, job.Run)
		<-changed
		q.Cancel(job.Account, job.Run)
		q.Depth()
		stop()
		if took := time.Since(begun); took > 2*time.Second {
			t.Errorf("caller %d was kept waiting for %v", n, took)
		}
		time.Sleep(100 * time.Millisecond)
	}
	if err := nats.Thaw(); err != nil {
		t.Fatal(err)
	}
	ready(true)
}

// O1: the bound stays where it is, however often places were given back after the queue was counted.
func TestJetStreamBoundHoldsO1(t *testing.T) {
	t.Parallel()
	nats := queuetest.NewNats(t)
	const most = 5
	q, err := queue.NewJetStream(t.Context(), queue.JetStreamConfig{URL: nats.URL, Name: newName(), Max: most})
	if err != nil {
		t.Fatal(err)
	}
	defer q.Shutdown()
	job := core.Job{Account: "acct_1", Run: "run_1", Workflow: "wf_1"}
	for range 20 {
		place, err := q.Reserve(job)
		if err != nil {
			t.Fatal(err)
		}
		q.Depth() // counts
		place.Release()
	}
	for n := range most + 1 {
		if _, err := q.Reserve(job); (err == nil) != (n < most) {
			t.Fatalf("place %d of %d: %v", n+1, most, err)
		}
	}
}

func TestJetStreamRefuses(t *testing.T) {
	t.Parallel()
	_, err := queue.NewJetStream(t.Context(), queue.JetStreamConfig{URL: "nats://keyfire:hidden@127.0.0.1:1", Name: "x"})
	if err == nil {
		t.Fatal("no error without a server")
	}
	t.Log(err)
}
