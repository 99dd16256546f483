package trigger

import (
	"context"
	"encoding/json"
	"testing"
	"time"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
)

// caller is who holds a credential.
func (b *bundle) caller(c auth.Credential) Caller {
	b.t.Helper()
	p, err := b.Authenticate(context.Background(), c, b.origin)
	b.must(err)
	return Caller{Principal: p, Origin: b.origin}
}

// D3: an Idempotency-Key is for one request. To repeat another run, or from another step, is another request, and so is to start one.
func TestIdempotencyOfReplaysD3(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.StartWorkers()
	b.publish("w", nil)
	k, c := b.key(0, auth.ScopeRunAll)
	who := b.caller(c)
	first, second := b.durable(c, "w", Payload{}), b.durable(c, "w", Payload{IdempotencyKey: "plain"})
	b.ended(first)
	b.ended(second)
	replay := func(id string, r Replay) (*Begun, error) { return b.ReplayRun(context.Background(), who, id, r) }

	begun, err := replay(first, Replay{IdempotencyKey: "once"})
	b.must(err)
	again, err := replay(first, Replay{IdempotencyKey: "once", From: ReplayStart})
	b.must(err)
	if again.RunID != begun.RunID || !again.Replayed {
		t.Errorf("the same request made %s, and then %s", begun.RunID, again.RunID)
	}
	for name, f := range map[string]func() (*Begun, error){
		"of another run":     func() (*Begun, error) { return replay(second, Replay{IdempotencyKey: "once"}) },
		"with a trigger's":   func() (*Begun, error) { return replay(first, Replay{IdempotencyKey: "plain"}) },
		"of another version": func() (*Begun, error) { return replay(first, Replay{IdempotencyKey: "once", Version: "latest"}) },
	} {
		if begun, err := f(); core.CodeOf(err) != core.CodeIdempotencyKeyReused {
			t.Errorf("a replay %s: %+v, %v", name, begun, err)
		}
	}
	b.ended(begun.RunID)
	b.must(b.FlushUsage(context.Background()))
	usage, err := b.store.KeyUsage(context.Background(), core.DefaultAccount, k.ID, 0)
	b.must(err)
	var n int64
	for _, u := range usage {
		if u.Kind == core.UsageRuns {
			n += u.Count
		}
	}
	if n != 3 {
		t.Errorf("the usage of the key is %d runs, and it started 3", n)
	}
}

// A replay of the newest version is a run of it: callers may override what its author lists, and no more.
func TestReplayKeepsToOverrides(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.StartWorkers()
	open := func(d *core.Definition) { d.Trigger.Overrides = []string{"charge.currency"} }
	b.publish("w", open)
	_, c := b.key(0, auth.ScopeRunAll)
	who := b.caller(c)
	id := b.durable(c, "w", Payload{Overrides: map[string]map[string]json.RawMessage{"charge": {"currency": json.RawMessage(`"EUR"`)}}})
	b.ended(id)
	b.publish("w", func(d *core.Definition) { d.Title = "closed" })
	if _, err := b.ReplayRun(context.Background(), who, id, Replay{Version: "latest"}); core.CodeOf(err) != core.CodeOverrideNotAllowed {
		t.Errorf("the newest version: %v", err)
	}
	begun, err := b.ReplayRun(context.Background(), who, id, Replay{})
	b.must(err)
	if run := b.ended(begun.RunID); string(run.Overrides) != `{"charge":{"currency":"EUR"}}` {
		t.Errorf("the same version: %s", run.Overrides)
	}
}

// The windmill#10635 lesson: dedupe is no way around "a key reads and cancels the runs that it started".
func TestDedupeShowsNoRunOfOthers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.publish("w", func(d *core.Definition) { d.Trigger.Public = true })
	_, mine := b.key(0, auth.ScopeRunAll)
	_, other := b.key(0, auth.ScopeRunAll)
	_, reader := b.key(0, auth.ScopeRunAll, auth.ScopeRunsRead)
	begin := func(c auth.Credential, policy string) (*Begun, error) {
		ticket, err := b.Open(context.Background(), Attempt{Credential: c, Origin: b.origin, Workflow: "w"})
		b.must(err)
		return b.Begin(context.Background(), ticket, Payload{Durable: true, Dedupe: &core.Dedupe{Key: "invoice-981", Policy: policy}})
	}
	first, err := begin(mine, core.DedupeReject) // there are no workers, so it stays queued
	b.must(err)
	for name, c := range map[string]auth.Credential{"another key": other, "nobody": {}} {
		for _, policy := range []string{core.DedupeReject, core.DedupeUseExisting, core.DedupeTerminateExisting} {
			if begun, err := begin(c, policy); core.CodeOf(err) != core.CodeConflict {
				t.Errorf("%s by %s: %+v, %v", policy, name, begun, err)
			}
		}
	}
	for name, c := range map[string]auth.Credential{"the same key": mine, "a key that reads runs": reader} {
		if begun, err := begin(c, core.DedupeUseExisting); err != nil || begun.RunID != first.RunID {
			t.Errorf("use_existing by %s: %+v, %v", name, begun, err)
		}
	}
	if begun, err := begin(reader, core.DedupeTerminateExisting); err != nil || begun.RunID == first.RunID {
		t.Errorf("terminate_existing by a key that reads runs: %+v, %v", begun, err)
	}
}

// A key that is changed between the look at it and the admission of a replay is judged as it is then.
func TestReplayIsJudgedAgainWhenItsKeyChanges(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := b.publish("w", nil)
	k, c := b.key(0, auth.ScopeRunAll)
	r, err := b.start(c, "w", Payload{})
	b.must(err)
	who := b.caller(c)
	// The principal is of before the change, as it is for a request that is under way.
	_, err = b.store.UpdateKey(t.Context(), k.Account, k.ID, false, func(k *auth.Key) (*auth.KeySecret, time.Time, error) {
		k.Scopes = []string{auth.ScopeRunWorkflow + "wf_other"}
		return nil, time.Time{}, nil
	}, b.event(core.ActionKeyUpdate, k.ID))
	b.must(err)
	_, err = b.ReplayRun(t.Context(), who, r.Run.ID, Replay{})
	wantCode(t, err, core.CodeInsufficientScope)
	if l, err := b.store.Runs(t.Context(), k.Account, core.RunFilter{Workflow: w.ID}, core.Page{}); err != nil || len(l.Items) != 1 {
		t.Errorf("%d runs, %v; want the first one only", len(l.Items), err)
	}
}

// TestReplayLeavesTapes: a result that is kept came from the old run, and so its tape is there and not in the new one.
func TestReplayLeavesTapes(t *testing.T) {
	t.Parallel()
	old := &core.Run{Steps: []core.Step{
		{ID: "a", Status: core.StepSucceeded, Attempts: []core.Attempt{{Number: 1, Tape: core.TapeKept}}},
		{ID: "b", Status: core.StepFailed},
	}}
	steps, err := keptSteps(old, &core.Definition{Nodes: []core.Node{{ID: "a"}, {ID: "b", Needs: []string{"a"}}}}, ReplayFailed)
	if err != nil || len(steps[0].Attempts) != 1 || steps[0].Attempts[0].Tape != "" || old.Steps[0].Attempts[0].Tape != core.TapeKept {
		t.Errorf("kept %+v of %+v, %v", steps, old.Steps, err)
	}
}
