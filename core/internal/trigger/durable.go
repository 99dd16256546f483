package trigger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
)

// A durable run is admitted with status queued, handed to the queue, and executed by whichever worker takes it (see worker.go). Nothing
// about it is kept in this process but its name: whoever waits for it or follows it reads the store, when a signal says that there is something new.

// pollEvery is how often whoever waits for a run looks by itself. Signals make it needless as long as none is lost.
const pollEvery = 2 * time.Second

// queued reports whether a run is durable: because the caller or the author asks for it, or for something that only a durable run can do.
func (p *Payload) queued(def *core.Definition) bool {
	return p.Durable || !p.RunAfter.IsZero() || p.CallbackURL != "" || def.Trigger.Mode == core.ModeAsync || def.Trigger.Concurrency != nil
}

// beginDurable admits a durable run and queues it.
func (s *Service) beginDurable(ctx context.Context, t *Ticket, p Payload, overrides json.RawMessage) (*Begun, error) {
	begun, err := s.enqueue(ctx, s.newRun(ctx, t, p, overrides), &t.pinned.def, p, nil)
	if err != nil {
		return nil, s.RefuseKnown(ctx, t.Principal, t.origin, err)
	}
	return begun, nil
}

// enqueue makes a new run durable, takes a place in the queue, admits the run and puts it there. tick is the scheduled time that the run is for, nil for none.
func (s *Service) enqueue(ctx context.Context, run *core.Run, def *core.Definition, p Payload, tick *core.Tick) (*Begun, error) {
	run.Durable, run.Status, run.Attempt = true, core.RunQueued, 0
	run.StartedAt, run.DeadlineAt, run.Timeout = time.Time{}, time.Time{}, def.Trigger.Timeout.Std()
	if p.RunAfter.After(run.CreatedAt) {
		run.Status, run.DueAt = core.RunScheduled, p.RunAfter.UTC().Truncate(time.Microsecond)
	}
	beside := core.Admission{Tick: tick}
	if c := def.Trigger.Concurrency; c != nil {
		run.Limit, beside.WhenFull = c.Limit, c.WhenFull
	}
	if err := s.hold(); err != nil {
		return nil, err
	}
	defer s.leave()
	place, err := s.Queue.Reserve(run.Job())
	if err != nil {
		return nil, err
	}
	admitted, err := s.admit(ctx, run, p, beside)
	if err != nil || admitted.RunID != run.ID {
		place.Release()
		if err != nil {
			return nil, err
		}
		return &Begun{RunID: admitted.RunID, Replayed: admitted.Replayed, Deduped: admitted.Deduped, Durable: true, service: s, account: run.Account, active: s.activeRun(run.Account, admitted.RunID)}, nil
	}
	if err := place.Put(context.WithoutCancel(ctx)); err != nil {
		// The run is accepted, so the caller is told that. Whoever looks for runs that are admitted and not queued finds it.
		s.notQueued(ctx, run, err)
	}
	s.replaced(run.Account, admitted.Cancelled)
	return &Begun{RunID: run.ID, Durable: true, Limits: admitted.Limits, service: s, account: run.Account, fresh: run}, nil
}

// notQueued tells of the first accepted run that was not queued and, while it goes on, every few seconds of how many there were: a queue that is away or full takes none of them.
func (s *Service) notQueued(ctx context.Context, run *core.Run, err error) {
	if n := s.unqueued.Happened(time.Now()); n > 0 {
		s.Logger.ErrorContext(ctx, "accepted runs were not queued; they are queued again soon", "runs", n, "run_id", run.ID, "error", err)
	}
}

// replaced tells those who execute or follow runs that were cancelled for another one.
func (s *Service) replaced(account string, runs []core.CancelledRun) {
	for _, c := range runs {
		s.tellCancelled(account, c.Run, c.Cancelled)
	}
}

func (s *Service) activeRun(account, id string) *activeRun {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.active[id]; a != nil && a.account == account {
		return a
	}
	return nil
}

// waitFor returns the run once it has ended, or as it is when ctx ends.
func (s *Service) waitFor(ctx context.Context, account, id string) (*core.Run, error) {
	changed, stop := s.Signals.Follow(account, id)
	defer stop()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		run, err := s.Store.Run(context.WithoutCancel(ctx), account, id)
		if err != nil || run.Status.Terminal() {
			return run, err
		}
		s.fillSteps(context.WithoutCancel(ctx), run)
		select {
		case <-changed:
		case <-tick.C:
		case <-ctx.Done():
			return run, nil
		case <-s.halt:
			return run, nil
		}
	}
}

// Recover queues every durable run that has not ended, as the only server of a store does when it starts. It returns how many there were. Call it
// before StartWorkers.
func (s *Service) Recover(ctx context.Context) (int, error) {
	const page = 1000
	var after core.Job
	for n := 0; ; {
		jobs, err := s.Store.OpenRuns(ctx, after, page)
		if err != nil {
			return n, fmt.Errorf("find unfinished runs: %w", err)
		}
		for _, job := range jobs {
			if err := s.Queue.Add(ctx, job); err != nil {
				return n, fmt.Errorf("queue unfinished run %s: %w", job.Run, err)
			}
			n++
		}
		if len(jobs) < page {
			return n, nil
		}
		after = jobs[page-1]
	}
}

// Cancel asks for a run to be stopped. Whoever started it may, and whoever may read it and run or change its workflow. It returns the run as it is then: cancelling, or cancelled when nobody
// was executing it; before is true when it had been cancelled before. CodeRunAlreadyFinished when it has ended in another way.
func (s *Service) Cancel(ctx context.Context, c Caller, id, reason string) (run *core.Run, before bool, err error) {
	run, err = s.runToActOn(ctx, c, id)
	if err != nil {
		return nil, false, err
	}
	if run.Status == core.RunCancelled {
		return run, true, nil
	}
	if run.Status.Terminal() {
		return nil, false, core.Errorf(core.CodeRunAlreadyFinished, "the run has ended already, as %s", run.Status)
	}
	out, err := s.Store.CancelRun(ctx, run.Account, id, reason, s.Now().UTC(), s.event(c, core.ActionRunCancel, id, reason))
	if err != nil {
		return nil, false, err
	}
	s.tellCancelled(run.Account, id, out)
	run, err = s.Run(ctx, c.Principal, id)
	return run, out.Before, err
}

// CancelKeyRuns cancels the runs that a key of the caller's account has started and that have not ended, and returns how many. Once the key may start no more, none is
// left when it returns. It needs the scope keys:write. When it fails in between, asking again goes on.
func (s *Service) CancelKeyRuns(ctx context.Context, c Caller, keyID, reason string) (int, error) {
	if !auth.Allows(c.Principal.Scopes, auth.ScopeKeysWrite) {
		return 0, core.Errorf(core.CodeInsufficientScope, "this credential lacks the scope %s", auth.ScopeKeysWrite)
	}
	return s.cancelRuns(ctx, c, c.Principal.Account, keyID, "", reason)
}

// CancelWorkflowRuns is CancelKeyRuns for the runs of a workflow, by its id. It needs the scope workflows:write.
func (s *Service) CancelWorkflowRuns(ctx context.Context, c Caller, workflowID, reason string) (int, error) {
	if !auth.Allows(c.Principal.Scopes, auth.ScopeWorkflowsWrite) {
		return 0, core.Errorf(core.CodeInsufficientScope, "this credential lacks the scope %s", auth.ScopeWorkflowsWrite)
	}
	return s.cancelRuns(ctx, c, c.Principal.Account, "", workflowID, reason)
}

// CancelAccountRuns is CancelKeyRuns for all runs of an account, by its id. It needs the scope accounts:write.
func (s *Service) CancelAccountRuns(ctx context.Context, c Caller, account, reason string) (int, error) {
	if !auth.Allows(c.Principal.Scopes, auth.ScopeAccountsWrite) {
		return 0, core.Errorf(core.CodeInsufficientScope, "this credential lacks the scope %s", auth.ScopeAccountsWrite)
	}
	return s.cancelRuns(ctx, c, account, "", "", reason)
}

func (s *Service) cancelRuns(ctx context.Context, c Caller, account, keyID, workflowID, reason string) (cancelled int, err error) {
	const batch = 100
	for {
		ids, err := s.Store.RunsUnderWay(ctx, account, keyID, workflowID, batch)
		if err != nil || len(ids) == 0 {
			return cancelled, err
		}
		for _, id := range ids {
			e := s.event(c, core.ActionRunCancel, id, reason)
			e.Account = account
			out, err := s.Store.CancelRun(ctx, account, id, reason, s.Now().UTC(), e)
			switch core.CodeOf(err) {
			case "":
				s.tellCancelled(account, id, out)
				cancelled++
			case core.CodeRunAlreadyFinished, core.CodeNotFound: // it was faster
			default:
				return cancelled, err
			}
		}
	}
}

// Caller is who asks for something to be done to a run.
type Caller struct {
	Principal auth.Principal
	Origin    core.Origin
}

func (s *Service) event(c Caller, action, object, reason string) core.AuditEvent {
	e := core.NewEvent(s.NewID(core.PrefixEvent), s.Now(), c.Origin, action, object)
	e.Reason = reason
	c.Principal.Sign(&e)
	return e
}

// tellCancelled passes on what a request to cancel a run did.
func (s *Service) tellCancelled(account, id string, c core.Cancelled) {
	if c.Job.Run != "" {
		s.Queue.Drop(c.Job)
		s.callbacks.kick()
	}
	if c.Status == core.RunCancelling {
		s.Signals.Cancel(account, id)
	}
	s.Signals.Changed(account, id)
}

// stopRun ends a run that executes here.
func (s *Service) stopRun(account, id string) {
	s.mu.Lock()
	var stop context.CancelCauseFunc
	if a := s.active[id]; a != nil && a.account == account {
		if stop = a.stop; stop == nil {
			a.cancelled = true // it is about to start
		}
	} else if w := s.working[workID{account, id}]; w != nil {
		stop = w
	}
	s.mu.Unlock()
	if stop != nil {
		stop(core.ErrRunCancelled)
	}
}

type workID struct{ account, run string }

var errLost = errors.New("another worker has the run")
