// Package queuetest is what every queue must do, as tests. A queue's own tests call [Run] with a way to open one.
package queuetest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/queue"
)

// Target is how the suite gets its queues.
type Target struct {
	// Open returns an empty queue that holds at most max waiting runs, 0 being its default. It is closed when t ends.
	Open func(t *testing.T, max int) queue.Queue
	// Approximate says that the queue bounds and orders what waits with a delay, as one that several servers share does. Turns between
	// lanes and the exact bound are not tested then.
	Approximate bool
}

// patience is how long the suite waits for what must happen.
const patience = 20 * time.Second

// Run runs the suite.
func Run(t *testing.T, target Target) {
	for name, test := range map[string]func(*testing.T, Target){
		"EveryRunIsDeliveredOnce":       everyRunOnce,
		"OneLaneIsFirstInFirstOut":      oneLane,
		"LanesTakeTurns":                lanesTakeTurns,
		"NothingBeforeItIsDue":          notBeforeDue,
		"AgainBringsARunBack":           again,
		"AgainAtALaterTime":             againLater,
		"RecoveredIsSaidOnce":           recovered,
		"ALimitHolds":                   limit,
		"ALimitDoesNotBlockOthers":      limitOthers,
		"FullRefusesBeforeAnything":     full,
		"OneCallerCannotFillTheQueue":   flood,
		"AddIsNeverRefused":             add,
		"ReleaseGivesThePlaceBack":      release,
		"ACancelledTakeLosesNothing":    cancelledTake,
		"DropTakesAWaitingRunOut":       drop,
		"CloseEndsTakesAndReservations": closing,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, target)
		})
	}
}

func job(lane string, n int) core.Job {
	return core.Job{Account: "acct_1", Run: fmt.Sprintf("run_%s_%d", lane, n), Workflow: "wf_1", Lane: lane}
}

func put(t *testing.T, q queue.Queue, j core.Job) {
	t.Helper()
	p, err := q.Reserve(j)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Put(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func take(t *testing.T, q queue.Queue) queue.Delivery {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	d, err := q.Take(ctx)
	if err != nil {
		t.Fatalf("nothing was delivered: %v", err)
	}
	return d
}

// nothing checks that no run is delivered for a moment.
func nothing(t *testing.T, q queue.Queue) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if d, err := q.Take(ctx); err == nil {
		t.Fatalf("%s was delivered", d.Job().Run)
	}
}

func everyRunOnce(t *testing.T, target Target) {
	q := target.Open(t, 0)
	const writers, each, workers = 8, 100, 8
	seen := make(chan string, writers*each)
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	for range workers {
		wg.Go(func() {
			for {
				d, err := q.Take(ctx)
				if err != nil {
					return
				}
				seen <- d.Job().Run
				d.Done()
			}
		})
	}
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				j := job(fmt.Sprint("lane", w), i)
				p, err := q.Reserve(j)
				if err != nil {
					t.Error(err)
					return
				}
				if err := p.Put(ctx); err != nil {
					t.Error(err)
				}
			}
		})
	}
	times := map[string]int{}
	timeout := time.After(patience)
	for n := range writers * each {
		select {
		case run := <-seen:
			times[run]++
		case <-timeout:
			t.Fatalf("%d of %d were delivered", n, writers*each)
		}
	}
	cancel()
	wg.Wait()
	for run, n := range times {
		if n != 1 {
			t.Errorf("%s was delivered %d times", run, n)
		}
	}
	if n := q.Depth(); n != 0 {
		t.Errorf("%d wait in an empty queue", n)
	}
}

func oneLane(t *testing.T, target Target) {
	q := target.Open(t, 0)
	for i := range 20 {
		put(t, q, job("a", i))
	}
	for i := range 20 {
		d := take(t, q)
		if want := job("a", i).Run; d.Job().Run != want {
			t.Fatalf("got %s, want %s", d.Job().Run, want)
		}
		d.Done()
	}
}

func lanesTakeTurns(t *testing.T, target Target) {
	if target.Approximate {
		t.Skip("the queue orders approximately")
	}
	q := target.Open(t, 0)
	for i := range 100 {
		put(t, q, job("elephant", i))
	}
	for i := range 3 {
		put(t, q, job("mouse", i))
	}
	other := job("mouse", 9)
	other.Account = "acct_2"
	put(t, q, other)
	// The other account has every second turn, the mouse every second one of what is left.
	mice := 0
	for range 10 {
		d := take(t, q)
		if d.Job().Lane == "mouse" {
			mice++
		}
		d.Done()
	}
	if mice != 4 {
		t.Errorf("%d of the small callers' 4 runs were among the first 10 of 104", mice)
	}
}

func notBeforeDue(t *testing.T, target Target) {
	q := target.Open(t, 0)
	later, soon := job("a", 1), job("a", 2)
	due := time.Now().Add(300 * time.Millisecond)
	later.Due, soon.Due = due, due.Add(-200*time.Millisecond)
	put(t, q, later)
	put(t, q, soon)
	put(t, q, job("a", 3))
	for _, want := range []struct {
		run string
		due time.Time
	}{{job("a", 3).Run, time.Time{}}, {soon.Run, soon.Due}, {later.Run, later.Due}} {
		d := take(t, q)
		if d.Job().Run != want.run {
			t.Errorf("got %s, want %s", d.Job().Run, want.run)
		}
		if early := time.Until(want.due); early > time.Millisecond {
			t.Errorf("%s was delivered %s early", want.run, early)
		}
		d.Done()
	}
}

func again(t *testing.T, target Target) {
	q := target.Open(t, 0)
	put(t, q, job("a", 1))
	take(t, q).Again(time.Time{})
	d := take(t, q)
	if d.Job().Run != job("a", 1).Run {
		t.Errorf("got %s", d.Job().Run)
	}
	d.Done()
	nothing(t, q)
}

func againLater(t *testing.T, target Target) {
	q := target.Open(t, 0)
	put(t, q, job("a", 1))
	at := time.Now().Add(200 * time.Millisecond)
	take(t, q).Again(at)
	d := take(t, q)
	if early := time.Until(at); early > time.Millisecond {
		t.Errorf("delivered %s early", early)
	}
	d.Done()
}

// recovered: that a worker died with a run is of no account any more once another one has given it back. Otherwise the time of a run would begin anew with each of its
// retries.
func recovered(t *testing.T, target Target) {
	q := target.Open(t, 0)
	j := job("a", 1)
	j.Recovered = true
	if err := q.Add(t.Context(), j); err != nil {
		t.Fatal(err)
	}
	d := take(t, q)
	if !d.Job().Recovered {
		t.Error("it is not said that the run was recovered")
	}
	d.Again(time.Now().Add(100 * time.Millisecond))
	d = take(t, q)
	if d.Job().Recovered {
		t.Error("it is said again after the run was given back")
	}
	d.Broken(time.Now().Add(100 * time.Millisecond))
	d = take(t, q)
	if !d.Job().Recovered {
		t.Error("it is not said of a run that was given back because its worker could not go on")
	}
	d.Done()
}

func limit(t *testing.T, target Target) {
	q := target.Open(t, 0)
	const most, runs = 3, 10
	for i := range runs {
		j := job(fmt.Sprint("lane", i%4), i)
		j.Limit = most
		put(t, q, j)
	}
	var held []queue.Delivery
	for range most {
		held = append(held, take(t, q))
	}
	nothing(t, q)
	for delivered := most; delivered < runs; delivered++ {
		held[0].Done()
		held = append(held[1:], take(t, q))
		nothing(t, q)
	}
	// One that comes back takes its place like any other.
	held[0].Again(time.Time{})
	held = append(held[1:], take(t, q))
	for _, d := range held {
		d.Done()
	}
	nothing(t, q)
}

func limitOthers(t *testing.T, target Target) {
	q := target.Open(t, 0)
	for i := range 5 {
		j := job("a", i)
		j.Limit = 1
		put(t, q, j)
	}
	free := job("a", 99)
	free.Workflow = "wf_2"
	put(t, q, free)
	first := take(t, q)
	second := take(t, q)
	if first.Job().Workflow == second.Job().Workflow {
		t.Errorf("%s was delivered beside %s", second.Job().Run, first.Job().Run)
	}
	first.Done()
	second.Done()
}

func full(t *testing.T, target Target) {
	if target.Approximate {
		t.Skip("the queue is bounded approximately")
	}
	q := target.Open(t, 10)
	n := 0
	for ; n < 100; n++ {
		p, err := q.Reserve(job(fmt.Sprint("lane", n), n))
		if err != nil {
			wantCode(t, err, core.CodeOverloaded)
			break
		}
		if n%2 == 0 { // a place counts from when it is reserved
			if err := p.Put(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n < 8 || n > 10 {
		t.Errorf("%d callers found a place among 10", n)
	}
}

func flood(t *testing.T, target Target) {
	if target.Approximate {
		t.Skip("the queue is bounded approximately")
	}
	q := target.Open(t, 100)
	for i := range 200 {
		if p, err := q.Reserve(job("elephant", i)); err == nil {
			if err := p.Put(t.Context()); err != nil {
				t.Fatal(err)
			}
		} else {
			wantCode(t, err, core.CodeOverloaded)
			if i != 50 {
				t.Fatalf("one caller was given %d places of 100, want half of them", i)
			}
			break
		}
	}
	for i := range 10 {
		put(t, q, job("mouse", i))
	}
}

func add(t *testing.T, target Target) {
	q := target.Open(t, 3)
	const runs = 20
	for i := range runs {
		if err := q.Add(t.Context(), job("a", i)); err != nil {
			t.Fatal(err)
		}
	}
	for range runs {
		take(t, q).Done()
	}
	nothing(t, q)
}

func release(t *testing.T, target Target) {
	q := target.Open(t, 2)
	for i := range 100 {
		p, err := q.Reserve(job("a", i))
		if err != nil {
			t.Fatalf("after %d: %v", i, err)
		}
		p.Release()
	}
	nothing(t, q)
}

func cancelledTake(t *testing.T, target Target) {
	q := target.Open(t, 0)
	const rounds = 50
	for i := range rounds {
		ctx, cancel := context.WithCancel(t.Context())
		result := make(chan queue.Delivery, 1)
		go func() {
			d, err := q.Take(ctx)
			if err != nil && !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
			result <- d
		}()
		go cancel()
		put(t, q, job("a", i))
		d := <-result
		if d == nil {
			d = take(t, q)
		}
		if d.Job().Run != job("a", i).Run {
			t.Fatalf("got %s in round %d", d.Job().Run, i)
		}
		d.Done()
		cancel()
	}
	nothing(t, q)
}

func drop(t *testing.T, target Target) {
	if target.Approximate {
		t.Skip("the queue may deliver what was dropped")
	}
	q := target.Open(t, 0)
	later := job("a", 2)
	later.Due = time.Now().Add(time.Hour)
	put(t, q, job("a", 1))
	put(t, q, later)
	q.Drop(job("a", 1))
	q.Drop(later)
	q.Drop(job("a", 3)) // one that is not there
	if n := q.Depth(); n != 0 {
		t.Errorf("%d wait", n)
	}
	nothing(t, q)
}

func closing(t *testing.T, target Target) {
	q := target.Open(t, 0)
	put(t, q, job("a", 1))
	held := take(t, q)
	ended := make(chan error, 1)
	go func() {
		_, err := q.Take(context.Background())
		ended <- err
	}()
	q.Close()
	q.Close()
	select {
	case err := <-ended:
		if !errors.Is(err, queue.ErrClosed) {
			t.Errorf("Take returned %v", err)
		}
	case <-time.After(patience):
		t.Fatal("Take goes on after Close")
	}
	held.Done()
	if _, err := q.Take(t.Context()); !errors.Is(err, queue.ErrClosed) {
		t.Errorf("Take after Close: %v", err)
	}
	_, err := q.Reserve(job("a", 2))
	wantCode(t, err, core.CodeDraining)
}

func wantCode(t *testing.T, err error, code core.Code) {
	t.Helper()
	if core.CodeOf(err) != code {
		t.Errorf("got %v, want %s", err, code)
	}
}
