package storetest

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/store"
)

// durable makes an admission one of a durable run.
func durable(a *core.Admission) {
	r := &a.Run
	r.Durable, r.Status, r.Attempt = true, core.RunQueued, 0
	r.StartedAt, r.DeadlineAt, r.Timeout = time.Time{}, time.Time{}, 30*time.Second
}

func (f *fixture) claim(run *core.Run, at time.Time) *core.Claim {
	f.t.Helper()
	c, err := f.ClaimRun(f.t.Context(), run.Account, run.ID, at, false)
	f.must(err)
	return c
}

func told(seq int64, kind string) core.RunEvent {
	return core.RunEvent{Seq: seq, Type: kind, Time: epoch, RunID: "run_1", Step: "greet", Message: "<&>"}
}

func exerciseDurable(t *testing.T, open func(t *testing.T) *fixture) {
	t.Run("a claim starts the clock once", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		run := f.admit(f.publish("w", nil), nil, durable)
		first := f.claim(&run, epoch.Add(time.Minute))
		if r := first.Run; r.Status != core.RunRunning || r.Attempt != 1 || !r.StartedAt.Equal(epoch.Add(time.Minute)) || !r.DeadlineAt.Equal(epoch.Add(time.Minute+30*time.Second)) {
			t.Errorf("claimed as %+v", r)
		}
		second := f.claim(&run, epoch.Add(2*time.Minute))
		if r := second.Run; r.Attempt != 2 || !r.StartedAt.Equal(epoch.Add(time.Minute)) || !r.DeadlineAt.Equal(first.Run.DeadlineAt) {
			t.Errorf("claimed again as %+v", r)
		}
		fresh, err := f.ClaimRun(t.Context(), account, run.ID, epoch.Add(3*time.Minute), true)
		f.must(err)
		if r := fresh.Run; r.Attempt != 3 || !r.DeadlineAt.Equal(epoch.Add(3*time.Minute+30*time.Second)) {
			t.Errorf("claimed from a dead worker as %+v", r)
		}
	})
	t.Run("D2: what a stale worker writes is refused", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		run := f.admit(f.publish("w", nil), nil, durable)
		stale := f.claim(&run, epoch).Run
		now := f.claim(&run, epoch).Run
		steps, at := []core.Step{step("greet")}, []int{0}
		_, err := f.CommitSteps(t.Context(), account, run.ID, stale.Attempt, at, steps, nil)
		wantCode(t, err, core.CodeConflict)
		stale.Status = core.RunWaiting
		wantCode(t, f.SuspendRun(t.Context(), &stale, nil), core.CodeConflict)
		end := finished(stale)
		wantCode(t, f.FinishRun(t.Context(), &end), core.CodeConflict)
		if _, err := f.CommitSteps(t.Context(), account, run.ID, now.Attempt, at, steps, nil); err != nil {
			t.Error(err)
		}
		end = finished(now)
		f.must(f.FinishRun(t.Context(), &end, told(1, core.EventRunFinished)))
		end.Status, end.Output = core.RunFailed, nil
		wantCode(t, f.FinishRun(t.Context(), &end), core.CodeRunAlreadyFinished)
		_, err = f.CommitSteps(t.Context(), account, run.ID, now.Attempt, at, steps, nil)
		wantCode(t, err, core.CodeRunAlreadyFinished)
		_, err = f.ClaimRun(t.Context(), account, run.ID, epoch, true)
		wantCode(t, err, core.CodeRunAlreadyFinished)
		got, err := f.Run(t.Context(), account, run.ID)
		f.must(err)
		if got.Status != core.RunSucceeded || len(got.Steps) != 1 {
			t.Errorf("the run is %+v", got)
		}
	})
	t.Run("steps are there for the next attempt", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		run := f.admit(f.publish("w", nil), nil, durable)
		c := f.claim(&run, epoch)
		waiting := step("second")
		waiting.Status, waiting.RetryAt = core.StepRetrying, epoch.Add(time.Minute)
		for _, s := range []struct {
			at   int
			step core.Step
		}{{1, waiting}, {0, step("first")}, {1, waiting}} {
			cancel, err := f.CommitSteps(t.Context(), account, run.ID, c.Run.Attempt, []int{s.at}, []core.Step{s.step}, nil)
			f.must(err)
			if cancel {
				t.Error("a run that nobody cancelled is to be cancelled")
			}
		}
		c.Run.Status, c.Run.DueAt = core.RunWaiting, epoch.Add(time.Minute)
		f.must(f.SuspendRun(t.Context(), &c.Run, nil))
		jobs, err := f.OpenRuns(t.Context(), core.Job{}, 10)
		f.must(err)
		if want := []core.Job{{Account: account, Run: run.ID, Workflow: run.Workflow.ID, Lane: run.Trigger.Principal, Due: c.Run.DueAt, Recovered: true}}; !cmp.Equal(jobs, want) {
			t.Errorf("open are %+v, want %+v", jobs, want)
		}
		if more, err := f.OpenRuns(t.Context(), jobs[0], 10); err != nil || len(more) > 0 {
			t.Errorf("after the last one come %+v, %v", more, err)
		}
		again := f.claim(&run, epoch.Add(time.Minute))
		wantEqual(t, "the steps", again.Run.Steps, []core.Step{step("first"), waiting})
		wantTape(t, f, run.ID, "second", 2, "\x00\xfftape of second")
		// What was committed is not sent again; an attempt that is made again has its new tape.
		second := step("second")
		second.Attempts[1].Recording = []byte("another tape")
		_, err = f.CommitSteps(t.Context(), account, run.ID, again.Run.Attempt, []int{1}, []core.Step{second}, nil)
		f.must(err)
		wantTape(t, f, run.ID, "second", 2, "another tape")
		end := finished(again.Run)
		end.Steps = []core.Step{step("first"), second}
		end.Steps[0].Attempts[1].Recording, end.Steps[1].Attempts[1].Recording = nil, nil
		f.must(f.FinishRun(t.Context(), &end))
		wantTape(t, f, run.ID, "first", 2, "\x00\xfftape of first")
		wantTape(t, f, run.ID, "second", 2, "another tape")
	})
	t.Run("events are read from anywhere", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		run := f.admit(f.publish("w", nil), nil, durable)
		c := f.claim(&run, epoch)
		_, err := f.CommitSteps(t.Context(), account, run.ID, 1, nil, nil, []core.RunEvent{told(1, core.EventRunStarted), told(2, core.EventStepStarted)})
		f.must(err)
		end := finished(c.Run)
		f.must(f.FinishRun(t.Context(), &end, told(3, core.EventStepFinished), told(4, core.EventRunFinished)))
		all := []core.RunEvent{told(1, core.EventRunStarted), told(2, core.EventStepStarted), told(3, core.EventStepFinished), told(4, core.EventRunFinished)}
		for after := range len(all) + 1 {
			got, err := f.RunEvents(t.Context(), account, run.ID, int64(after))
			f.must(err)
			if len(got) != len(all)-after {
				t.Errorf("after %d come %d events", after, len(got))
			}
			for i := range got {
				wantEqual(t, "an event", got[i], all[after+i])
			}
		}
		other, err := f.RunEvents(t.Context(), "acct_two", run.ID, 0)
		f.must(err)
		if len(other) > 0 {
			t.Error("another account reads the events")
		}
	})
	t.Run("cancel", func(t *testing.T) { t.Parallel(); exerciseCancel(t, open(t)) })
	t.Run("dedupe", func(t *testing.T) { t.Parallel(); exerciseDedupe(t, open(t)) })
	t.Run("concurrency", func(t *testing.T) { t.Parallel(); exerciseConcurrency(t, open(t)) })
	t.Run("callbacks", func(t *testing.T) { t.Parallel(); exerciseCallbacks(t, open(t)) })
	t.Run("schedules", func(t *testing.T) { t.Parallel(); exerciseSchedules(t, open(t)) })
	t.Run("inline runs alone are interrupted", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		w := f.publish("w", nil)
		run, inline := f.admit(w, nil, durable), f.admit(w, nil, nil)
		f.claim(&run, epoch)
		n, err := f.InterruptRuns(t.Context(), epoch, func(id, _ string) core.AuditEvent { return f.event(core.ActionRunInterrupt, id) })
		f.must(err)
		got, err := f.Run(t.Context(), account, inline.ID)
		f.must(err)
		if n != 1 || got.Status != core.RunInterrupted {
			t.Errorf("%d runs were interrupted; the inline one is %s", n, got.Status)
		}
	})
}

func (f *fixture) cancel(id string) (core.Cancelled, error) {
	return f.CancelRun(f.t.Context(), account, id, "enough", epoch, f.event(core.ActionRunCancel, id))
}

func exerciseCancel(t *testing.T, f *fixture) {
	w := f.publish("w", nil)
	queued, running, inline := f.admit(w, nil, durable), f.admit(w, nil, durable), f.admit(w, nil, nil)
	c := f.claim(&running, epoch)

	got, err := f.cancel(queued.ID)
	f.must(err)
	if got.Status != core.RunCancelled || got.Job.Run != queued.ID {
		t.Errorf("a queued run: %+v", got)
	}
	if again, err := f.cancel(queued.ID); err != nil || got.Before || !again.Before || again.Status != core.RunCancelled {
		t.Errorf("a queued run: %+v, and once more: %+v, %v", got, again, err)
	}
	if l, err := f.AuditEvents(t.Context(), account, core.AuditFilter{Action: core.ActionRunCancel}, core.Page{}); err != nil || len(l.Items) != 1 {
		t.Errorf("a run that was cancelled twice has the events %+v, %v", l.Items, err)
	}
	run, err := f.Run(t.Context(), account, queued.ID)
	f.must(err)
	if run.Status != core.RunCancelled || run.FinishedAt.IsZero() || run.Error == nil || run.Error.Code != core.CodeRunCancelled {
		t.Errorf("a queued run is now %+v", run)
	}
	events, err := f.RunEvents(t.Context(), account, queued.ID, 0)
	f.must(err)
	if len(events) != 1 || events[0].Type != core.EventRunFinished {
		t.Errorf("its events are %+v", events)
	}
	if got, err = f.cancel(queued.ID); err != nil || got.Status != core.RunCancelled {
		t.Errorf("once more: %+v, %v", got, err)
	}

	for range 2 {
		got, err = f.cancel(running.ID)
		f.must(err)
		if got.Status != core.RunCancelling || got.Job.Run != "" {
			t.Errorf("a running run: %+v", got)
		}
	}
	_, err = f.CancelRun(t.Context(), account, running.ID, "", epoch, f.event(core.ActionRunCancel, running.ID))
	f.must(err)
	if run, err = f.Run(t.Context(), account, running.ID); err != nil || run.Error == nil || !strings.HasSuffix(run.Error.Message, ": enough") {
		t.Errorf("whoever asked first does not give the reason: %+v, %v", run.Error, err)
	}
	cancel, err := f.CommitSteps(t.Context(), account, running.ID, c.Run.Attempt, nil, nil, nil)
	f.must(err)
	if !cancel {
		t.Error("its worker does not hear of it")
	}
	c.Run.Status = core.RunWaiting
	wantCode(t, f.SuspendRun(t.Context(), &c.Run, nil), core.CodeConflict)
	if again := f.claim(&running, epoch); again.Run.Status != core.RunCancelling {
		t.Errorf("the next worker finds it %s", again.Run.Status)
	} else {
		end := finished(again.Run)
		f.must(f.FinishRun(t.Context(), &end)) // it was faster
	}
	_, err = f.cancel(running.ID)
	wantCode(t, err, core.CodeRunAlreadyFinished)

	if got, err = f.cancel(inline.ID); err != nil || got.Status != core.RunCancelling {
		t.Errorf("an inline run: %+v, %v", got, err)
	}
	_, err = f.cancel("run_none")
	wantCode(t, err, core.CodeNotFound)
	_, err = f.CancelRun(t.Context(), "acct_two", inline.ID, "", epoch, f.event(core.ActionRunCancel, inline.ID))
	wantCode(t, err, core.CodeNotFound)
}

func exerciseDedupe(t *testing.T, f *fixture) {
	w := f.publish("w", nil)
	k := f.createKey(nil)
	var repeatable *core.Idempotency
	admit := func(policy string) (core.Admitted, string, error) {
		a := f.admission(w, &k)
		durable(&a)
		a.Dedupe, a.Idempotency = &core.Dedupe{Key: "invoice-981", Policy: policy}, repeatable
		a.Cancel = func(id string) core.AuditEvent { return f.event(core.ActionRunCancel, id) }
		got, err := f.Admit(t.Context(), a)
		return got, a.Run.ID, err
	}
	_, first, err := admit(core.DedupeReject)
	f.must(err)
	_, _, err = admit(core.DedupeReject)
	wantCode(t, err, core.CodeConflict)
	if got, _, err := admit(core.DedupeUseExisting); err != nil || got.RunID != first || !got.Deduped {
		t.Errorf("use_existing: %+v, %v", got, err)
	}
	request := core.Idempotency{Principal: "key:" + k.ID, Workflow: w.ID, Key: "order-7", Fingerprint: "sha256:7", ExpiresAt: epoch.Add(time.Hour)}
	repeatable = &request
	if got, _, err := admit(core.DedupeUseExisting); err != nil || got.RunID != first || !got.Deduped {
		t.Errorf("use_existing with an Idempotency-Key: %+v, %v", got, err)
	}
	if got, _, err := admit(core.DedupeUseExisting); err != nil || got.RunID != first || !got.Replayed {
		t.Errorf("the same request again: %+v, %v", got, err)
	}
	repeatable = nil
	got, second, err := admit(core.DedupeTerminateExisting)
	f.must(err)
	if got.RunID != second || len(got.Cancelled) != 1 || got.Cancelled[0].Run != first || got.Cancelled[0].Status != core.RunCancelled {
		t.Errorf("terminate_existing: %+v", got)
	}
	run := f.claim(&core.Run{Account: account, ID: second}, epoch).Run
	end := finished(run)
	f.must(f.FinishRun(t.Context(), &end))
	if _, _, err := admit(core.DedupeReject); err != nil {
		t.Errorf("after the end: %v", err)
	}
	repeatable = &request
	if got, _, err := admit(core.DedupeUseExisting); err != nil || got.RunID != first || !got.Replayed {
		t.Errorf("the same request after that run has ended, and another one has its dedupe key: %+v, %v", got, err)
	}
	repeatable = nil
	// What the caller may not read is neither shown nor cancelled, whatever the policy.
	for _, policy := range []string{core.DedupeReject, core.DedupeUseExisting, core.DedupeTerminateExisting} {
		a := f.admission(w, nil)
		durable(&a)
		a.Dedupe = &core.Dedupe{Key: "invoice-981", Policy: policy}
		a.Run.Trigger.Principal = "key:other"
		a.Visible = func(principal string) bool { return principal == "key:other" }
		if got, err := f.Admit(t.Context(), a); core.CodeOf(err) != core.CodeConflict || strings.Contains(err.Error(), core.PrefixRun) {
			t.Errorf("%s by another credential: %+v, %v", policy, got, err)
		}
	}
	key, err := f.Key(t.Context(), account, k.ID)
	f.must(err)
	if key.RunsUsed != 3 {
		t.Errorf("the key was charged for %d runs, want 3", key.RunsUsed)
	}
}

func exerciseConcurrency(t *testing.T, f *fixture) {
	w := f.publish("w", nil)
	admit := func(whenFull string) (core.Admitted, string, error) {
		a := f.admission(w, nil)
		durable(&a)
		a.Run.Limit, a.WhenFull = 2, whenFull
		a.Cancel = func(id string) core.AuditEvent { return f.event(core.ActionRunCancel, id) }
		got, err := f.Admit(t.Context(), a)
		return got, a.Run.ID, err
	}
	_, first, err := admit(core.WhenFullReject)
	f.must(err)
	_, second, err := admit(core.WhenFullReject)
	f.must(err)
	_, _, err = admit(core.WhenFullReject)
	wantCode(t, err, core.CodeConcurrencyLimited)
	f.claim(&core.Run{Account: account, ID: first}, epoch)
	got, third, err := admit(core.WhenFullReplace)
	f.must(err)
	if len(got.Cancelled) != 1 || got.Cancelled[0].Run != first || got.Cancelled[0].Status != core.RunCancelling {
		t.Errorf("replace cancelled %+v", got.Cancelled)
	}
	_, fourth, err := admit(core.WhenFullQueue)
	f.must(err)
	for _, id := range []string{second, third} {
		if run, err := f.Run(t.Context(), account, id); err != nil || run.Status != core.RunQueued {
			t.Errorf("%s: %+v, %v", id, run, err)
		}
	}
	// The first one is still on its way out, and takes nobody with it: of the three after it, two go for a new one, and then one for each.
	got, fifth, err := admit(core.WhenFullReplace)
	f.must(err)
	if len(got.Cancelled) != 2 || got.Cancelled[0].Run != second || got.Cancelled[1].Run != third {
		t.Errorf("with one over the limit, replace cancelled %+v", got.Cancelled)
	}
	got, _, err = admit(core.WhenFullReplace)
	f.must(err)
	if len(got.Cancelled) != 1 || got.Cancelled[0].Run != fourth {
		t.Errorf("replace cancelled %+v, want %s alone", got.Cancelled, fourth)
	}
	if run, err := f.Run(t.Context(), account, fifth); err != nil || run.Status != core.RunQueued {
		t.Errorf("%+v, %v", run, err)
	}
}

func exerciseCallbacks(t *testing.T, f *fixture) {
	w := f.publish("w", nil)
	const url = "https://example.com/hook"
	each := func(due []core.Callback) []core.Callback { return due }
	admit := func() (core.Run, string) {
		id := f.newID(core.PrefixCallback)
		run := f.admit(w, nil, func(a *core.Admission) {
			durable(a)
			a.Callbacks = []core.Callback{{ID: id, Account: account, Run: a.Run.ID, URL: url, CreatedAt: epoch}}
		})
		return run, id
	}
	run, id := admit()
	due, next, err := f.TakeCallbacks(t.Context(), epoch.Add(time.Hour), epoch.Add(2*time.Hour), 10, nil, each)
	f.must(err)
	if len(due) > 0 || !next.IsZero() {
		t.Errorf("due before the end of the run: %+v, %s", due, next)
	}
	_, err = f.Redeliver(t.Context(), account, run.ID, id, epoch, f.event(core.ActionRedeliver, id))
	wantCode(t, err, core.CodeConflict)
	end := finished(f.claim(&run, epoch).Run)
	f.must(f.FinishRun(t.Context(), &end))
	// What is not chosen is not taken.
	due, next, err = f.TakeCallbacks(t.Context(), epoch.Add(time.Hour), epoch.Add(2*time.Hour), 10, nil, func(shown []core.Callback) []core.Callback {
		if len(shown) != 1 || shown[0].ID != id {
			t.Errorf("shown %+v", shown)
		}
		return nil
	})
	if err != nil || len(due) > 0 || !next.Equal(epoch.Add(time.Hour)) {
		t.Errorf("taken without being chosen: %+v, %s, %v", due, next, err)
	}
	due, _, err = f.TakeCallbacks(t.Context(), epoch.Add(time.Hour), epoch.Add(2*time.Hour), 10, nil, each)
	f.must(err)
	if len(due) != 1 || due[0].ID != id || due[0].State != core.CallbackPending {
		t.Fatalf("due after the end of the run: %+v", due)
	}
	// One whose destination has its share is passed over, and not what begins alike.
	for busy, want := range map[string]int{"https://example.com/": 0, "https://example.co/": 1} {
		got, next, err := f.TakeCallbacks(t.Context(), epoch.Add(3*time.Hour), epoch.Add(2*time.Hour), 10, []string{"none://", busy}, each)
		if err != nil || len(got) != want || want == 0 && !next.IsZero() {
			t.Errorf("with %s busy: %+v, %s, %v", busy, got, next, err)
		}
	}
	if again, next, err := f.TakeCallbacks(t.Context(), epoch.Add(time.Hour), epoch.Add(2*time.Hour), 10, nil, each); err != nil || len(again) > 0 || !next.Equal(epoch.Add(2*time.Hour)) {
		t.Errorf("taken twice: %+v, %s, %v", again, next, err)
	}
	other, _ := admit()
	c := due[0]
	c.State, c.Attempts, c.NextAt, c.UpdatedAt = core.CallbackDisabled, 1, time.Time{}, epoch
	c.Log = []core.CallbackAttempt{{Number: 1, At: epoch, DurationMS: 7, Status: 410}}
	f.must(f.RecordCallback(t.Context(), &c, epoch.Add(2*time.Hour)))
	list, err := f.Callbacks(t.Context(), account, run.ID)
	f.must(err)
	wantEqual(t, "the callbacks", list, []core.Callback{c})
	later, _ := admit()
	for _, r := range []core.Run{other, later} { // 410 is for the destination, not for one callback
		cs, err := f.Callbacks(t.Context(), account, r.ID)
		f.must(err)
		if len(cs) != 1 || cs[0].State != core.CallbackDisabled {
			t.Errorf("%s: %+v", r.ID, cs)
		}
	}
	c, err = f.Redeliver(t.Context(), account, run.ID, id, epoch, f.event(core.ActionRedeliver, id))
	f.must(err)
	if c.State != core.CallbackPending {
		t.Errorf("redelivered: %+v", c)
	}
	// Another delivery that is asked for while one is under way is made, and both are in the log, in whatever order they end.
	take := func(at time.Time) (core.Callback, time.Time) {
		t.Helper()
		due, _, err := f.TakeCallbacks(t.Context(), at, at.Add(time.Minute), 10, nil, each)
		f.must(err)
		if len(due) != 1 || due[0].ID != id {
			t.Fatalf("due at %s: %+v", at, due)
		}
		return due[0], at.Add(time.Minute)
	}
	record := func(c core.Callback, until time.Time, status int, s core.CallbackState, next time.Time) {
		t.Helper()
		c.State, c.Attempts, c.NextAt, c.Log = s, c.Attempts+1, next, append(c.Log, core.CallbackAttempt{Number: c.Attempts + 1, At: epoch, Status: status})
		f.must(f.RecordCallback(t.Context(), &c, until))
	}
	first, untilFirst := take(epoch)
	_, err = f.Redeliver(t.Context(), account, run.ID, id, epoch.Add(time.Second), f.event(core.ActionRedeliver, id))
	f.must(err)
	record(first, untilFirst, 200, core.CallbackDelivered, time.Time{})
	second, untilSecond := take(epoch.Add(time.Second))
	_, err = f.Redeliver(t.Context(), account, run.ID, id, epoch.Add(2*time.Second), f.event(core.ActionRedeliver, id))
	f.must(err)
	third, untilThird := take(epoch.Add(2 * time.Second))
	record(third, untilThird, 201, core.CallbackDelivered, time.Time{})
	record(second, untilSecond, 410, core.CallbackDisabled, time.Time{})
	list, err = f.Callbacks(t.Context(), account, run.ID)
	f.must(err)
	var attempts []string
	for _, a := range list[0].Log {
		attempts = append(attempts, fmt.Sprintf("%d: %d", a.Number, a.Status))
	}
	if got := strings.Join(attempts, ", "); got != "1: 410, 2: 200, 3: 201, 4: 410" || list[0].State != core.CallbackDelivered || !list[0].NextAt.IsZero() || list[0].Attempts != 4 {
		t.Errorf("attempts side by side are %s, and the callback is %+v", got, list[0])
	}
	_, err = f.Redeliver(t.Context(), "acct_two", run.ID, id, epoch, f.event(core.ActionRedeliver, id))
	wantCode(t, err, core.CodeNotFound)
}

func exerciseSchedules(t *testing.T, f *fixture) {
	daily, hourly := core.Schedule{Cron: "@daily"}, core.Schedule{Cron: "@hourly", Timezone: "Europe/Paris", Input: []byte(`{"a":1}`)}
	publish := func(at time.Time, list ...core.Schedule) core.Workflow {
		return f.publish("w", func(p *core.Publication) {
			p.Version.Definition.Trigger.Schedule = list
			p.Version.CreatedAt = at
			p.Version.Digest = digest([]byte(at.String()))
		})
	}
	states := func() map[string]core.ScheduleState {
		all, err := f.Schedules(t.Context())
		f.must(err)
		by := map[string]core.ScheduleState{}
		for _, s := range all {
			by[s.Schedule.Cron] = s
		}
		return by
	}
	w := publish(epoch, daily)
	first := states()
	if s := first["@daily"]; len(first) != 1 || s.Workflow != w.ID || !s.Since.Equal(epoch) || !s.Last.IsZero() {
		t.Fatalf("schedules are %+v", first)
	}
	tick := core.Tick{Workflow: w.ID, Schedule: first["@daily"].Name, Key: "2026-03-02T00:00", At: epoch.Add(time.Hour)}
	admit := func() error {
		a := f.admission(w, nil)
		durable(&a)
		a.Tick = &tick
		_, err := f.Admit(t.Context(), a)
		return err
	}
	f.must(admit())
	wantCode(t, admit(), core.CodeConflict)
	w = publish(epoch.Add(time.Minute), daily, hourly)
	now := states()
	if s := now["@daily"]; len(now) != 2 || !s.Since.Equal(epoch) || !s.Last.Equal(tick.At) {
		t.Errorf("after another version: %+v", now)
	}
	wantEqual(t, "the schedule", now["@hourly"].Schedule, hourly)
	_, err := f.SetWorkflowEnabled(t.Context(), account, w.ID, false, f.event(core.ActionWorkflowDisable, w.ID))
	f.must(err)
	if n := len(states()); n != 0 {
		t.Errorf("a closed workflow has %d schedules", n)
	}
	publish(epoch.Add(2*time.Minute), hourly)
	if now := states(); len(now) != 1 || now["@hourly"].Name == "" {
		t.Errorf("after a schedule was taken out: %+v", now)
	}
	// Those of an account that is switched off rest.
	acme := f.createAccount("acme")
	f.publish("theirs", func(p *core.Publication) {
		p.Account, p.Workflow.Account = acme.ID, acme.ID
		p.Version.Definition.Trigger.Schedule = []core.Schedule{{Cron: "@weekly"}}
	})
	for _, on := range []bool{true, false, true} {
		_, err := f.SetAccountEnabled(t.Context(), acme.ID, on, "", f.event(core.ActionAccountDisable, acme.ID))
		f.must(err)
		if _, found := states()["@weekly"]; found != on {
			t.Errorf("with an account that is on %t, its schedule is found: %t", on, found)
		}
	}
}

func exercisePrune(t *testing.T, open func(t *testing.T) *fixture) {
	f := open(t)
	w := f.publish("w", nil)
	var runs []core.Run
	add := func(alter func(*core.Admission)) {
		run := f.admit(w, nil, alter)
		runs = append(runs, run)
	}
	for range 5 {
		add(durable)
	}
	add(func(a *core.Admission) {
		durable(a)
		a.Idempotency = &core.Idempotency{Principal: "p", Workflow: w.ID, Key: "k", Fingerprint: "f", ExpiresAt: epoch.Add(24 * time.Hour)}
	})
	add(durable) // never ends
	for range 250 {
		add(durable)
	}
	for i := range runs {
		if i == 6 {
			continue
		}
		end := finished(f.claim(&runs[i], epoch).Run)
		f.must(f.FinishRun(t.Context(), &end, told(1, core.EventRunFinished)))
	}
	count := func() int {
		return len(pages(t, 200, func(ctx context.Context, p core.Page) (core.List[core.Run], error) {
			return f.Runs(ctx, account, core.RunFilter{}, p)
		}))
	}
	wantTape(t, f, runs[0].ID, "greet", 2, "\x00\xfftape of greet")
	n, err := f.Prune(t.Context(), store.Retention{MaxRuns: 300})
	f.must(err)
	if n != 0 || count() != len(runs) {
		t.Errorf("%d of %d runs were pruned where 300 are kept", n, len(runs))
	}
	n, err = f.Prune(t.Context(), store.Retention{MaxRuns: 10})
	f.must(err)
	if want := len(runs) - 10 - 2; n != want || count() != 12 {
		t.Errorf("%d runs were pruned and %d are left, want %d and 12", n, count(), want)
	}
	_, err = f.Run(t.Context(), account, runs[0].ID)
	wantCode(t, err, core.CodeNotFound)
	events, err := f.RunEvents(t.Context(), account, runs[0].ID, 0)
	f.must(err)
	if len(events) > 0 {
		t.Error("the events of a pruned run are left")
	}
	_, err = f.Tape(t.Context(), account, runs[0].ID, "greet", 2)
	wantCode(t, err, core.CodeNotFound)
	if _, err := f.Run(t.Context(), account, runs[5].ID); err != nil {
		t.Errorf("the run that an Idempotency-Key finds: %v", err)
	}
	n, err = f.Prune(t.Context(), store.Retention{MaxAge: time.Hour})
	f.must(err)
	if n != 10 || count() != 2 {
		t.Errorf("%d old runs were pruned, %d are left; want 10 and 2", n, count())
	}
}
