package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/keyfire/keyfire/core"
)

// ExecuteDurable runs def, the pinned version of a durable run, from where run.Steps says it is, and tells journal how it goes. It returns
// when the run has ended or cannot go on now, and not before everything it started has ended:
//
//   - run.Status is terminal: as for Execute. The steps' ends since the last one that was committed are for the caller to commit, with the run.
//   - core.RunWaiting: nothing can be done before run.DueAt, when a node's next attempt is due.
//   - core.RunQueued: the journal is paused, or ctx ended because the server stops (core.ErrRunInterrupted). Another worker may go on.
//
// An error is the journal's. What this attempt did since the last committed step does not count then.
//
// A step is committed before anything that uses it starts, so what a node is given never changes from one attempt to the next. A node that
// may be attempted at most once is not started again when its begin was committed and its end was not: its step ends as unknown and the
// run fails. A node that waits to be retried occupies nothing.
func (e *Engine) ExecuteDurable(ctx context.Context, run *core.Run, def *core.Definition, journal core.Journal) error {
	return e.execute(ctx, run, def, journal)
}

var errRetrying = errors.New("the node waits for its next attempt")

// journalError tells a journal's failure from a node's.
type journalError struct{ err error }

func (e *journalError) Error() string { return "journal: " + e.err.Error() }
func (e *journalError) Unwrap() error { return e.err }

// unended reports whether there is something left to do for a step.
func unended(s core.StepStatus) bool {
	return s == core.StepPending || s == core.StepRunning || s == core.StepRetrying
}

// resume takes over the steps that were committed by earlier attempts of the run.
func (x *execution) resume(recorded []core.Step) {
	for _, step := range recorded {
		i := slices.IndexFunc(x.nodes, func(n planNode) bool { return n.ID == step.ID })
		if i < 0 || step.Status == core.StepPending {
			continue
		}
		x.of.Steps[i] = step
		for _, a := range step.Attempts {
			for n := range a.Log {
				x.logged.Add(logSize(&a.Log[n]))
			}
		}
		if step.Status == core.StepRunning {
			o := unknown(&x.of.Steps[i])
			x.of.Steps[i].FinishedAt = x.config.Now()
			x.observeStep(EventStepFinished, &x.of.Steps[i], 0)
			x.failure = o
		}
	}
	x.ready = slices.DeleteFunc(x.ready, func(i int) bool { return !unended(x.of.Steps[i].Status) })
	for i := range x.of.Steps {
		step := &x.of.Steps[i]
		if unended(step.Status) || step.Status == core.StepUnknown {
			continue
		}
		if step.Status == core.StepSucceeded {
			x.held.Add(int64(len(step.Output)))
			x.values[i] = x.value(step.Output)
		}
		x.release(i)
	}
	// A node that waits is ready when its time has come; until then it is among those that wait.
	x.ready = slices.DeleteFunc(x.ready, func(i int) bool {
		if x.of.Steps[i].Status == core.StepRetrying {
			x.waits = append(x.waits, i)
			return true
		}
		return false
	})
}

// unknown ends the step of a node that may be attempted at most once, and whose attempt was cut off.
func unknown(step *core.Step) outcome {
	const why = "the server stopped while the node was being attempted; what it did is not known, and it may be attempted at most once"
	step.Status = core.StepUnknown
	step.Error = &core.StepError{Message: why}
	return outcome{status: core.RunFailed, err: &core.RunError{
		Code: core.CodeRunFailed, Message: fmt.Sprintf("node %s: %s", step.ID, why), Step: step.ID,
	}}
}

// halted reports whether nothing more is to be started.
func (x *execution) halted() bool {
	return x.lost != nil || x.failure.err != nil || x.journal != nil && x.journal.Paused()
}

// due makes those ready whose wait is over.
func (x *execution) due() {
	if len(x.waits) == 0 {
		return
	}
	now := x.config.Now()
	x.waits = slices.DeleteFunc(x.waits, func(i int) bool {
		if x.of.Steps[i].RetryAt.After(now) {
			return false
		}
		at, _ := slices.BinarySearch(x.ready, i)
		x.ready = slices.Insert(x.ready, at, i)
		return true
	})
}

// await returns the next node that ends. It returns without one when the wait of another one is over first.
func (x *execution) await() (outcome, bool) {
	if len(x.waits) == 0 {
		return <-x.ended, true
	}
	timer := time.NewTimer(x.nextRetry().Sub(x.config.Now()))
	defer timer.Stop()
	select {
	case o := <-x.ended:
		return o, true
	case <-timer.C:
		return outcome{}, false
	}
}

func (x *execution) nextRetry() time.Time {
	next := x.of.Steps[x.waits[0]].RetryAt
	for _, i := range x.waits[1:] {
		if at := x.of.Steps[i].RetryAt; at.Before(next) {
			next = at
		}
	}
	return next
}

// suspend ends the execution of a run in which all that is left to do is to wait.
func (x *execution) suspend() {
	x.of.Status, x.of.DueAt = core.RunWaiting, x.nextRetry()
}

// commit has the journal record a step, unless the end of the run is about to say the same.
func (r *runner) commit(ctx context.Context, o *outcome) error {
	last := len(r.sinks) == 1 && r.sinks[0] == r.index && !r.node.AtMostOnce
	switch s := r.step.Status; {
	case o.err != nil, s == core.StepSkipped, s == core.StepCancelled, s == core.StepTimedOut, last && s == core.StepSucceeded:
		return nil
	}
	err := r.journal.Commit(context.WithoutCancel(ctx), r.index, r.step)
	if err == nil {
		for i := range r.step.Attempts {
			a := &r.step.Attempts[i]
			r.taped.Add(-int64(len(a.Recording)))
			a.Recording = nil // it is stored
		}
	}
	return err
}

// record tells the followers of the run about a step.
func (x *execution) record(t EventType, s *core.Step) {
	switch t {
	case EventStepStarted:
		x.journal.Record(core.RunEvent{Type: core.EventStepStarted, Time: s.StartedAt.UTC(), RunID: x.of.ID, Step: s.ID, Status: string(s.Status), Attempt: 1})
	case EventStepRetrying:
		failed := &s.Attempts[len(s.Attempts)-1]
		for _, e := range core.AttemptLog(x.of.ID, s.ID, failed) {
			x.journal.Record(e)
		}
		at := s.RetryAt.UTC()
		x.journal.Record(core.RunEvent{
			Type: core.EventStepRetrying, Time: x.config.Now().UTC(), RunID: x.of.ID, Step: s.ID, Status: string(s.Status), Attempt: failed.Number, Error: failed.Error, RetryAt: &at,
		})
	case EventStepFinished:
		for _, e := range core.StepEvents(x.of.ID, s) {
			if e.Time.IsZero() { // a step that never started has no times
				e.Time = x.config.Now().UTC()
			}
			x.journal.Record(e)
		}
	case EventRunStarted, EventRunFinished: // recorded by who has the run executed
	}
}
