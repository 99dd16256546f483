package trigger

import (
	"context"
	"testing"
	"time"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
)

// O1: a run that waits for a place to execute ends at its own deadline, and when it is cancelled, however long those before it take.
func TestWaitingRunEndsInTimeO1(t *testing.T) {
	t.Parallel()
	b := setup(t, func(c *Config) { c.MaxRunning = 1 })
	b.publish("long", nil)
	b.publish("short", func(d *core.Definition) { d.Trigger.Timeout = core.Duration(50 * time.Millisecond) })
	_, c := b.key(0, auth.ScopeRunAll)
	executing, release := make(chan struct{}), make(chan struct{})
	b.engine.run = func(ctx context.Context, run *core.Run) {
		switch {
		case ctx.Err() != nil:
			run.Status, run.Output = core.RunTimedOut, nil
			if core.CodeOf(context.Cause(ctx)) == core.CodeRunCancelled {
				run.Status = core.RunCancelled
			}
			run.Error = &core.RunError{Code: core.CodeOf(context.Cause(ctx)), Message: "stopped"}
		case run.Workflow.Slug == "long":
			close(executing)
			<-release
		}
	}
	defer close(release)
	begin := func(ref string) *Begun {
		ticket, err := b.Open(t.Context(), Attempt{Credential: c, Origin: b.origin, Workflow: ref})
		b.must(err)
		begun, err := b.Begin(t.Context(), ticket, Payload{})
		b.must(err)
		return begun
	}
	begin("long")
	<-executing
	waiting := begin("short")
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	r, err := waiting.Wait(ctx)
	b.must(err)
	if r.Run.Status != core.RunTimedOut {
		t.Errorf("the run ended %s", r.Run.Status)
	}
	next := begin("long")
	b.stopRun(core.DefaultAccount, next.RunID)
	r, err = next.Wait(ctx)
	b.must(err)
	if r.Run.Status != core.RunCancelled {
		t.Errorf("the run ended %s", r.Run.Status)
	}
}

// D2: a server that was stopped for so long that others took it for dead tells its callers what is recorded of their runs, at once, and rewrites nothing.
func TestZombieTellsWhatIsRecordedD2(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.publish("open", nil)
	_, c := b.key(0, auth.ScopeRunAll)
	b.engine.run = func(context.Context, *core.Run) {
		// What another server does about the runs of one that does not move any more.
		n, err := b.store.InterruptRuns(context.Background(), time.Now(), func(run, _ string) core.AuditEvent { return b.event(core.ActionRunInterrupt, run) })
		if n != 1 || err != nil {
			t.Errorf("%d runs interrupted, %v", n, err)
		}
	}
	began := time.Now()
	r, err := b.start(c, "open", Payload{})
	b.must(err)
	if r.Run.Status != core.RunInterrupted || r.Run.Error == nil || r.Run.Output != nil {
		t.Errorf("the caller was told %s: %+v", r.Run.Status, r.Run)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("after %s", took)
	}
}
