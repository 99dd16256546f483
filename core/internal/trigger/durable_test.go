package trigger

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/queue"
)

const soon = 20 * time.Second

// durable starts a durable run and returns its id.
func (b *bundle) durable(c auth.Credential, ref string, p Payload) string {
	b.t.Helper()
	ticket, err := b.Open(context.Background(), Attempt{Credential: c, Origin: b.origin, Workflow: ref})
	b.must(err)
	p.Durable = true
	begun, err := b.Begin(context.Background(), ticket, p)
	b.must(err)
	return begun.RunID
}

// ended waits for the end of a run.
func (b *bundle) ended(id string) *core.Run {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	defer cancel()
	run, err := b.waitFor(ctx, core.DefaultAccount, id)
	b.must(err)
	if !run.Status.Terminal() {
		b.t.Fatalf("%s is still %s", id, run.Status)
	}
	return run
}

// D2: when a worker is thought dead and is not, what it still has to say is refused, and the run has one end.
func TestStaleWorkerIsRefusedD2(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.publish("w", nil)
	_, c := b.key(0, auth.ScopeRunAll)
	proceed, began := make(chan struct{}), make(chan int, 2)
	b.engine.durable = func(ctx context.Context, run *core.Run, j core.Journal) error {
		attempt := run.Attempt
		began <- attempt
		if attempt == 1 {
			<-proceed
		}
		if err := j.Commit(ctx, 0, core.Step{ID: "a", Status: core.StepSucceeded, Output: json.RawMessage(fmt.Sprint(attempt))}); err != nil {
			return err
		}
		run.Status, run.FinishedAt, run.Output = core.RunSucceeded, time.Now().UTC(), json.RawMessage(fmt.Sprint(attempt))
		return nil
	}
	b.StartWorkers()
	id := b.durable(c, "w", Payload{})
	<-began
	// Another server takes the run over: the first one looked dead.
	claim, err := b.store.ClaimRun(context.Background(), core.DefaultAccount, id, time.Now(), true)
	b.must(err)
	_, err = b.store.CommitSteps(context.Background(), core.DefaultAccount, id, claim.Run.Attempt, []int{0}, []core.Step{{ID: "a", Status: core.StepSucceeded, Output: json.RawMessage("2")}}, nil)
	b.must(err)
	close(proceed)
	run := claim.Run
	run.Status, run.FinishedAt, run.Output = core.RunSucceeded, time.Now().UTC(), json.RawMessage("2")
	run.Steps = []core.Step{{ID: "a", Status: core.StepSucceeded, Output: json.RawMessage("2")}}
	b.must(b.store.FinishRun(context.Background(), &run))
	if got := b.ended(id); string(got.Output) != "2" || got.Attempt != 2 {
		t.Errorf("the run gave %s in attempt %d", got.Output, got.Attempt)
	}
}

// A run whose store was away has its whole time in the next attempt: it ended as timed out when its result could not be committed for longer than that.
func TestTimeWithoutStoreIsNotTheRuns(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.publish("w", nil)
	_, c := b.key(0, auth.ScopeRunAll)
	var deadlines []time.Time
	b.engine.durable = func(_ context.Context, run *core.Run, _ core.Journal) error {
		deadlines = append(deadlines, run.DeadlineAt)
		if run.Attempt == 1 {
			return core.Errorf(core.CodeStoreUnavailable, "the store is away")
		}
		run.Status, run.FinishedAt = core.RunSucceeded, time.Now().UTC()
		return nil
	}
	b.StartWorkers()
	if run := b.ended(b.durable(c, "w", Payload{})); run.Status != core.RunSucceeded || run.Attempt != 2 {
		t.Fatalf("the run ended %s in attempt %d", run.Status, run.Attempt)
	}
	if passed := deadlines[1].Sub(deadlines[0]); passed < putOff {
		t.Errorf("the second attempt's deadline is %s after the first's, want %s at least", passed, putOff)
	}
}

// L1: a server that stops hands its runs back, and the next one ends them.
func TestDrainHandsBackL1(t *testing.T) {
	t.Parallel()
	b := setup(t, func(c *Config) { c.MaxWorkers = 4 })
	b.publish("w", nil)
	_, c := b.key(0, auth.ScopeRunAll)
	began := make(chan struct{}, 16)
	b.engine.durable = func(ctx context.Context, run *core.Run, j core.Journal) error {
		began <- struct{}{}
		for !j.Paused() {
			select {
			case <-ctx.Done():
				t.Error("a run was stopped within the grace")
			case <-time.After(time.Millisecond):
			}
		}
		run.Status = core.RunQueued
		return nil
	}
	b.StartWorkers()
	var ids []string
	for range 10 {
		ids = append(ids, b.durable(c, "w", Payload{}))
	}
	for range 4 {
		<-began
	}
	b.Drain(context.Background())
	for _, id := range ids {
		if run, err := b.store.Run(context.Background(), core.DefaultAccount, id); err != nil || run.Status != core.RunQueued {
			t.Errorf("%s: %+v, %v", id, run, err)
		}
	}

	next, err := New(Config{Store: b.store, Chain: b.Chain, Executor: &engine{}, Tracer: b.Tracer, Logger: b.Logger, NewID: b.ids})
	b.must(err)
	defer next.Close()
	n, err := next.Recover(context.Background())
	b.must(err)
	if n != len(ids) {
		t.Errorf("%d runs were recovered, want %d", n, len(ids))
	}
	next.StartWorkers()
	for _, id := range ids {
		ctx, cancel := context.WithTimeout(context.Background(), soon)
		run, err := next.waitFor(ctx, core.DefaultAccount, id)
		cancel()
		if err != nil || run.Status != core.RunSucceeded {
			t.Errorf("%s: %+v, %v", id, run, err)
		}
	}
}

// O1: a full queue refuses before anything is written, and a caller that floods it leaves room for another.
func TestFullQueueRefusesO1(t *testing.T) {
	t.Parallel()
	b := setup(t, func(c *Config) { c.Queue = queue.NewInProcess(queue.Config{Max: 100}) })
	b.publish("w", nil)
	k, flood := b.key(0, auth.ScopeRunAll)
	_, other := b.key(0, auth.ScopeRunAll)
	accepted := 0
	for range 200 {
		ticket, err := b.Open(context.Background(), Attempt{Credential: flood, Origin: b.origin, Workflow: "w"})
		b.must(err)
		if _, err = b.Begin(context.Background(), ticket, Payload{Durable: true}); err != nil {
			wantCode(t, err, core.CodeOverloaded)
			break
		}
		accepted++
	}
	got, err := b.store.Key(context.Background(), core.DefaultAccount, k.ID)
	b.must(err)
	if accepted != 50 || got.RunsUsed != int64(accepted) {
		t.Errorf("%d runs were accepted and %d charged, of 100 places", accepted, got.RunsUsed)
	}
	for range 10 {
		b.durable(other, "w", Payload{})
	}
}

// O2: a caller with few runs does not wait for those of one with many.
func TestFairTurnsO2(t *testing.T) {
	t.Parallel()
	b := setup(t, func(c *Config) { c.MaxWorkers = 1 })
	b.publish("w", nil)
	_, elephant := b.key(0, auth.ScopeRunAll)
	m, mouse := b.key(0, auth.ScopeRunAll)
	var mu sync.Mutex
	var order []string
	b.engine.run = func(_ context.Context, run *core.Run) {
		mu.Lock()
		defer mu.Unlock()
		order = append(order, run.Trigger.Principal)
	}
	for range 200 {
		b.durable(elephant, "w", Payload{})
	}
	last := ""
	for range 10 {
		last = b.durable(mouse, "w", Payload{})
	}
	b.StartWorkers()
	b.ended(last)
	mu.Lock()
	defer mu.Unlock()
	mice, turns := 0, 0 // until its last one, after which the worker goes on
	for i, p := range order {
		if p == "key:"+m.ID {
			mice++
			turns = i + 1
		}
	}
	if turns > 22 || mice != 10 {
		t.Errorf("%d of the mouse's 10 runs took %d turns", mice, turns)
	}
}

// A workflow at its limit queues, and never executes more at once.
func TestConcurrencyLimitQueues(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.publish("w", func(d *core.Definition) {
		d.Trigger.Concurrency = &core.Concurrency{Limit: 3, WhenFull: core.WhenFullQueue}
	})
	_, c := b.key(0, auth.ScopeRunAll)
	var now, most atomic.Int64
	b.engine.run = func(context.Context, *core.Run) {
		n := now.Add(1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		time.Sleep(2 * time.Millisecond) // long enough for a fourth one to be seen
		now.Add(-1)
	}
	b.StartWorkers()
	var ids []string
	for range 30 {
		ids = append(ids, b.durable(c, "w", Payload{}))
	}
	for _, id := range ids {
		if run := b.ended(id); run.Status != core.RunSucceeded {
			t.Errorf("%s: %s", id, run.Status)
		}
	}
	if got := most.Load(); got > 3 {
		t.Errorf("%d runs executed at once", got)
	}
}

// A scheduled time has one run, whoever looks how often, and of those missed the latest is made up for.
func TestSchedule(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	now := time.Date(2030, 1, 1, 0, 0, 30, 0, time.UTC)
	clock := func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	b := setup(t, func(c *Config) { c.Now = clock })
	w := b.publish("w", func(d *core.Definition) {
		d.Trigger.Schedule = []core.Schedule{{Cron: "* * * * *", Input: json.RawMessage(`{"a":1}`)}, {Cron: "*/2 * * * *", Missed: core.MissedSkip}}
	})
	runs := func() []core.Run {
		l, err := b.store.Runs(context.Background(), core.DefaultAccount, core.RunFilter{}, core.Page{Limit: 200})
		b.must(err)
		return l.Items
	}
	at := func(d time.Duration) {
		mu.Lock()
		now = now.Add(d)
		mu.Unlock()
		var wg sync.WaitGroup
		for range 3 { // as three servers do
			wg.Go(func() { b.tick(context.Background()) })
		}
		wg.Wait()
	}
	at(0)
	// Publishing stamps with the real clock, which is years before this one. The latest times of both are 30 s ago, which is not missed yet.
	if n := len(runs()); n != 2 {
		t.Fatalf("%d runs at the start", n)
	}
	before := len(runs())
	at(time.Minute)
	if n := len(runs()) - before; n != 1 { // 00:01 is no time of the second schedule
		t.Errorf("%d runs after a minute, want 1", n)
	}
	before = len(runs())
	at(time.Minute)
	if n := len(runs()) - before; n != 2 {
		t.Errorf("%d runs after another minute, want one of each schedule", n)
	}
	before = len(runs())
	at(time.Hour + 10*time.Second)
	if n := len(runs()) - before; n != 2 {
		t.Errorf("%d runs after an hour without a server, want the latest of each: that of the second was due 10 s ago", n)
	}
	before = len(runs())
	at(time.Hour + 70*time.Second)
	if n := len(runs()) - before; n != 1 {
		t.Errorf("%d runs after another hour, want the latest of the first: that of the second was missed", n)
	}
	// Once the clock is set right after it was a year ahead, nothing waits for that year to pass, and no time has a second run.
	at(366*24*time.Hour - now.Sub(now.Truncate(time.Hour)))
	before = len(runs())
	at(-366*24*time.Hour + 90*time.Minute)
	if n := len(runs()) - before; n != 2 {
		t.Errorf("%d runs after the clock was set back, want those that are due now", n)
	}
	before = len(runs())
	at(time.Second)
	if n := len(runs()) - before; n != 0 {
		t.Errorf("%d runs a second later, want none", n)
	}
	at(time.Minute)
	if n := len(runs()) - before; n != 1 {
		t.Errorf("%d runs a minute later, want one of the first schedule", n)
	}
	run := runs()[len(runs())-1]
	if run.Trigger.Type != "schedule" || run.Trigger.Principal != SchedulePrincipal(w.ID) || !run.Durable || run.Metadata["scheduled_at"] == "" {
		t.Errorf("%+v", run)
	}
}

// A run is cancelled wherever it is, and its follower hears of it.
func TestCancelWhileExecuting(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.publish("w", nil)
	k, c := b.key(0, auth.ScopeRunAll)
	began := make(chan struct{}, 1)
	b.engine.durable = func(ctx context.Context, run *core.Run, _ core.Journal) error {
		began <- struct{}{}
		<-ctx.Done()
		run.Status, run.FinishedAt = core.RunCancelled, time.Now().UTC()
		return nil
	}
	b.StartWorkers()
	id := b.durable(c, "w", Payload{})
	<-began
	p := auth.Principal{Account: core.DefaultAccount, Subject: "key:" + k.ID, Backend: "apikey", Scopes: k.Scopes, Key: &k}
	events := make(chan core.RunEvent, 10)
	followed := make(chan error, 1)
	go func() {
		followed <- b.Follow(context.Background(), p, id, 0, time.Second, func(e core.RunEvent) error { events <- e; return nil }, func() error { return nil })
	}()
	run, before, err := b.Cancel(context.Background(), Caller{Principal: p, Origin: b.origin}, id, "enough")
	if err != nil || before || run.Status != core.RunCancelling && run.Status != core.RunCancelled {
		t.Fatalf("%+v, %t, %v", run, before, err)
	}
	if got := b.ended(id); got.Status != core.RunCancelled || got.Error == nil || got.Error.Message != "the run was cancelled: enough" {
		t.Errorf("%s %+v", got.Status, got.Error)
	}
	b.must(<-followed)
	if first, last := <-events, <-events; first.Type != core.EventRunStarted || last.Type != core.EventRunFinished || last.Status != string(core.RunCancelled) {
		t.Errorf("%+v, %+v", first, last)
	}
	if audit := b.audit(core.ActionRunCancel); len(audit) != 1 || audit[0].Object != id || audit[0].Actor != p.Subject {
		t.Errorf("%+v", audit)
	}
}

// A step that is begun again because its server died is told apart from the first time by the attempt of the run.
func TestEventsTellAttemptsApart(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.publish("w", nil)
	_, c := b.key(0, auth.ScopeRunAll)
	b.engine.durable = func(_ context.Context, run *core.Run, j core.Journal) error {
		j.Record(core.RunEvent{Type: core.EventStepStarted, Step: "a", Attempt: 1})
		if run.Attempt == 1 {
			run.Status = core.RunQueued
			return nil
		}
		run.Status, run.FinishedAt = core.RunSucceeded, time.Now().UTC()
		return nil
	}
	b.StartWorkers()
	id := b.durable(c, "w", Payload{})
	b.ended(id)
	p, err := b.Chain.Authenticate(t.Context(), c)
	b.must(err)
	var got []string
	b.must(b.Follow(t.Context(), p, id, 0, time.Minute, func(e core.RunEvent) error {
		got = append(got, fmt.Sprintf("%s %d", e.Type, e.RunAttempt))
		return nil
	}, nil))
	if want := []string{"run.started 1", "step.started 1", "step.started 2", "run.finished 2"}; !slices.Equal(got, want) {
		t.Errorf("told %q, want %q", got, want)
	}
}

// eager is a queue whose deliveries, given back, are with another worker before the one that had them has heard so.
type eager struct {
	queue.Queue

	taken <-chan struct{}
}

type eagerDelivery struct {
	queue.Delivery

	taken <-chan struct{}
}

func (q eager) Take(ctx context.Context) (queue.Delivery, error) {
	d, err := q.Queue.Take(ctx)
	if err != nil {
		return nil, err
	}
	return eagerDelivery{d, q.taken}, nil
}

func (d eagerDelivery) Again(at time.Time) {
	d.Delivery.Again(at)
	select {
	case <-d.taken:
	case <-time.After(10 * time.Second): // the run is in nobody's hands
	}
}

// D2: a run that is given back is executed by whoever takes it then, however fast that is.
func TestRunGivenBackIsNotLostD2(t *testing.T) {
	t.Parallel()
	taken := make(chan struct{})
	b := setup(t, func(c *Config) { c.Queue = eager{queue.NewInProcess(queue.Config{}), taken} })
	b.publish("w", nil)
	_, c := b.key(0, auth.ScopeRunAll)
	b.engine.durable = func(_ context.Context, run *core.Run, _ core.Journal) error {
		if run.Attempt == 1 {
			run.Status = core.RunQueued
			return nil
		}
		close(taken)
		run.Status, run.FinishedAt = core.RunSucceeded, time.Now().UTC()
		return nil
	}
	b.StartWorkers()
	if run := b.ended(b.durable(c, "w", Payload{})); run.Status != core.RunSucceeded || run.Attempt != 2 {
		t.Errorf("%s after %d attempts", run.Status, run.Attempt)
	}
}
