package storetest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/keyfire/keyfire/core"
)

func exerciseRuns(t *testing.T, open func(t *testing.T) *fixture) {
	t.Run("a finished run is read back whole", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		k := f.createKey(nil)
		run := finished(f.admit(f.publish("greet", nil), &k, func(a *core.Admission) {
			r := &a.Run
			r.Durable, r.DueAt, r.Timeout, r.Limit, r.ReplayOf = true, epoch.Add(time.Hour), 30*time.Second, 7, "run_earlier"
			r.Span = "00f067aa0ba902b7-01"
			r.Variables = map[string]string{"TOKEN": "never stored"}
		}))
		run.Steps[0].RetryAt = epoch.Add(time.Minute)
		run.Error = runError() // no run has both, but nothing here depends on that
		f.must(f.FinishRun(t.Context(), &run))
		run.Variables = nil
		wantRun(t, f, run)
		wantTape(t, f, run.ID, "greet", 2, "\x00\xfftape of greet")
		for _, none := range []struct {
			account, run, step string
			attempt            int
		}{{"acct_other", run.ID, "greet", 2}, {account, "run_other", "greet", 2}, {account, run.ID, "other", 2}, {account, run.ID, "greet", 1}} {
			_, err := f.Tape(t.Context(), none.account, none.run, none.step, none.attempt)
			wantCode(t, err, core.CodeNotFound)
		}
		wantFilled(t, run, "Variables")
		wantFilled(t, *run.Error)
		wantFilled(t, run.Steps[0])
		wantFilled(t, *run.Steps[0].Error)
		wantFilled(t, run.Steps[0].Attempts[1])
	})

	t.Run("large documents and many steps", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		large := json.RawMessage(`"` + string(bytes.Repeat([]byte("0123456789abcdef"), 64<<10)) + `"`)
		run := f.admit(f.publish("greet", nil), nil, func(a *core.Admission) { a.Run.Input, a.Run.Overrides = large, large })
		wantRun(t, f, run)
		run = finished(run)
		run.Output = large
		run.Steps = nil
		for i := range core.MaxNodes {
			run.Steps = append(run.Steps, step(fmt.Sprintf("n%d", i)))
		}
		run.Steps[7].Output = large
		f.must(f.FinishRun(t.Context(), &run))
		wantRun(t, f, run)
	})

	t.Run("ends other than success", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		w := f.publish("greet", nil)
		for _, status := range []core.RunStatus{core.RunFailed, core.RunTimedOut, core.RunCancelled, core.RunInterrupted} {
			run := finished(f.admit(w, nil, nil))
			run.Status, run.Output = status, nil
			run.Error = runError()
			run.Steps = nil
			f.must(f.FinishRun(t.Context(), &run))
			wantRun(t, f, run)
		}
	})

	t.Run("text that not every database keeps", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		ad := f.admission(f.publish("greet", nil), nil)
		ctx, wrong := t.Context(), []string{"x\x00y", "x\xffy", "x\xed\xa0\x80y"}
		for _, text := range wrong {
			ad.Run.Metadata = map[string]string{"a": text}
			_, err := f.Admit(ctx, ad)
			wantCode(t, err, core.CodeInvalidRequest)
		}
		_, err := f.Run(ctx, account, ad.Run.ID)
		wantCode(t, err, core.CodeNotFound)
		for _, id := range wrong {
			// Callers write ids into paths, where they can write anything. What is kept has none of these.
			ev := f.event(core.ActionKeyRevoke, "none")
			outcomes := map[string]error{
				"DeleteAccount": f.DeleteAccount(ctx, id, ev),
				"DeleteSecret":  f.DeleteSecret(ctx, account, id, ev),
				"DeleteUser":    f.DeleteUser(ctx, account, id, nil, ev),
			}
			_, outcomes["Run"] = f.Run(ctx, account, id)
			_, outcomes["Key"] = f.Key(ctx, account, id)
			_, outcomes["DeleteWorkflow"] = f.DeleteWorkflow(ctx, account, id, ev)
			_, outcomes["RevokeKey"] = f.RevokeKey(ctx, account, id, "", ev)
			_, outcomes["UpdateKey"] = f.UpdateKey(ctx, account, id, true, nil, ev)
			_, outcomes["UpdateAccount"] = f.UpdateAccount(ctx, id, nil, ev)
			for name, err := range outcomes {
				if core.CodeOf(err) != core.CodeNotFound {
					t.Errorf("%s of %q: %v, want not_found", name, id, err)
				}
			}
			if known, err := f.OriginAllowed(ctx, id, epoch); known || err != nil {
				t.Errorf("origin %q: %v %v", id, known, err)
			}
			left, err := f.RunsUnderWay(ctx, account, id, "", 1)
			f.must(err)
			listed, err := f.Runs(ctx, account, core.RunFilter{KeyID: id}, core.Page{})
			f.must(err)
			if len(left)+len(listed.Items) > 0 {
				t.Errorf("runs of key %q: %v %v", id, left, listed.Items)
			}
		}
	})

	t.Run("what does not exist", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		run := finished(f.admission(f.publish("greet", nil), nil).Run)
		_, err := f.Run(t.Context(), account, run.ID)
		wantCode(t, err, core.CodeNotFound)
		wantCode(t, f.FinishRun(t.Context(), &run), core.CodeNotFound)
	})

	t.Run("D2: a run ends once, by its own attempt", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		run := finished(f.admit(f.publish("greet", nil), nil, func(a *core.Admission) { a.Run.Attempt = 2 }))
		for _, attempt := range []int{1, 3} {
			stale := run
			stale.Attempt = attempt
			wantCode(t, f.FinishRun(t.Context(), &stale), core.CodeConflict)
		}
		f.must(f.FinishRun(t.Context(), &run))
		other := run
		other.Status, other.Output = core.RunFailed, nil
		wantCode(t, f.FinishRun(t.Context(), &other), core.CodeRunAlreadyFinished)
		wantRun(t, f, run)
	})

	t.Run("only an end finishes a run", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		run := f.admit(f.publish("greet", nil), nil, nil)
		if err := f.FinishRun(t.Context(), &run); err == nil {
			t.Error("a running run was accepted as the end of a run")
		}
		end := finished(run)
		end.FinishedAt = time.Time{}
		if err := f.FinishRun(t.Context(), &end); err == nil {
			t.Error("an end without a time was accepted")
		}
	})

	t.Run("runs that a dead server left are interrupted", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		w := f.publish("greet", nil)
		var left []string
		for range 450 { // more than one batch
			left = append(left, f.admit(w, nil, nil).ID)
		}
		done := finished(f.admit(w, nil, nil))
		f.must(f.FinishRun(t.Context(), &done))
		queued := f.admit(w, nil, func(a *core.Admission) { a.Run.Status = core.RunQueued })
		at := epoch.Add(time.Hour)
		interrupt := func() int {
			n, err := f.InterruptRuns(t.Context(), at, func(id, acct string) core.AuditEvent {
				ev := f.event(core.ActionRunInterrupt, id)
				ev.Account = acct
				return ev
			})
			f.must(err)
			return n
		}
		wantEqual(t, "interrupted", interrupt(), 450)
		wantEqual(t, "interrupted the second time", interrupt(), 0)
		wantRun(t, f, done)
		wantRun(t, f, queued)
		for _, id := range []string{left[0], left[449]} {
			run, err := f.Run(t.Context(), account, id)
			f.must(err)
			if run.Status != core.RunInterrupted || !run.FinishedAt.Equal(at) || run.Error == nil || run.Error.Code != core.CodeRunInterrupted {
				t.Errorf("run %s is %+v, want interrupted", id, run)
			}
			end := finished(*run)
			wantCode(t, f.FinishRun(t.Context(), &end), core.CodeRunAlreadyFinished)
		}
		events, err := f.AuditEvents(t.Context(), account, core.AuditFilter{Action: core.ActionRunInterrupt, Object: left[17]}, core.Page{})
		f.must(err)
		wantEqual(t, "audit events of one interrupted run", len(events.Items), 1)
	})

	t.Run("filters", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		a, b, k := f.publish("a", nil), f.publish("b", nil), f.createKey(nil)
		set := func(i int) func(*core.Admission) {
			return func(ad *core.Admission) {
				// Closer to each other than ids have to be to the times of their runs.
				ad.Run.CreatedAt = epoch.Add(time.Duration(i) * time.Second)
				ad.Run.ID = f.newIDAt(core.PrefixRun, ad.Run.CreatedAt.Add(-55*time.Second))
				ad.Run.TraceID = fmt.Sprintf("trace%d", i%2)
				ad.Run.Metadata = map[string]string{"n": strconv.Itoa(i % 3), "all": "yes"}
			}
		}
		var ids []string
		for i := range 6 {
			w, key := a, &k
			if i >= 4 {
				w, key = b, nil
			}
			run := f.admit(w, key, set(i))
			ids = append(ids, run.ID)
			if i == 1 || i == 2 {
				run = finished(run)
				if i == 2 {
					run.Status = core.RunFailed
				}
				f.must(f.FinishRun(t.Context(), &run))
			}
		}
		for name, c := range map[string]struct {
			filter core.RunFilter
			want   []int
		}{
			"nothing":        {core.RunFilter{}, []int{5, 4, 3, 2, 1, 0}},
			"workflow":       {core.RunFilter{Workflow: b.ID}, []int{5, 4}},
			"key":            {core.RunFilter{KeyID: k.ID}, []int{3, 2, 1, 0}},
			"running":        {core.RunFilter{Status: core.RunRunning}, []int{5, 4, 3, 0}},
			"succeeded":      {core.RunFilter{Status: core.RunSucceeded}, []int{1}},
			"failed":         {core.RunFilter{Status: core.RunFailed}, []int{2}},
			"trace":          {core.RunFilter{TraceID: "trace1"}, []int{5, 3, 1}},
			"metadata":       {core.RunFilter{Metadata: map[string]string{"n": "1"}}, []int{4, 1}},
			"two metadata":   {core.RunFilter{Metadata: map[string]string{"n": "1", "all": "yes"}}, []int{4, 1}},
			"other metadata": {core.RunFilter{Metadata: map[string]string{"n": "1", "all": "no"}}, nil},
			"created after":  {core.RunFilter{CreatedAfter: epoch.Add(3 * time.Second)}, []int{5, 4}},
			"all": {core.RunFilter{
				Workflow: a.ID, KeyID: k.ID, Status: core.RunRunning, TraceID: "trace1", Metadata: map[string]string{"n": "0"}, CreatedAfter: epoch,
			}, []int{3}},
		} {
			var want []string
			for _, i := range c.want {
				want = append(want, ids[i])
			}
			for _, limit := range []int{1, 200} {
				var got []string
				for _, r := range pages(t, limit, func(ctx context.Context, p core.Page) (core.List[core.Run], error) {
					return f.Runs(ctx, account, c.filter, p)
				}) {
					got = append(got, r.ID)
				}
				wantEqual(t, "runs filtered by "+name, got, want)
			}
		}
	})

	t.Run("list", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		w := f.publish("greet", nil)
		var want []string
		var last core.Run
		for range 7 {
			last = finished(f.admit(w, nil, nil))
			f.must(f.FinishRun(t.Context(), &last))
			want = append(want, last.ID)
		}
		slices.Reverse(want)
		list := func(ctx context.Context, p core.Page) (core.List[core.Run], error) {
			return f.Runs(ctx, account, core.RunFilter{}, p)
		}
		exerciseList(t, list, func(r core.Run) string { return r.ID }, want)
		first, err := list(t.Context(), core.Page{Limit: 1})
		f.must(err)
		last.Input, last.Overrides, last.Output, last.Steps = nil, nil, nil, nil
		wantEqual(t, "run in a list", first.Items[0], last)
	})
}

func runError() *core.RunError {
	return &core.RunError{
		Code: core.CodeRunFailed, Class: core.ClassTrap, Message: "unreachable <&>", Step: "greet", Retryable: true, Status: 409, UserCode: "duplicate_invoice",
	}
}

// wantTape checks that a tape is read back as want.
func wantTape(t *testing.T, f *fixture, run, step string, attempt int, want string) {
	t.Helper()
	got, err := f.Tape(t.Context(), account, run, step, attempt)
	f.must(err)
	if string(got) != want {
		t.Errorf("the tape of attempt %d of %s is %q, want %q", attempt, step, got, want)
	}
}

// wantRun checks that a run is read back as want.
func wantRun(t *testing.T, f *fixture, want core.Run) {
	t.Helper()
	got, err := f.Run(t.Context(), want.Account, want.ID)
	f.must(err)
	wantEqual(t, "run", *got, want)
}
