package trigger

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
)

// RunAfterWait is Run once the run has ended, or when ctx ends.
func (s *Service) RunAfterWait(ctx context.Context, p auth.Principal, id string) (*core.Run, error) {
	run, err := s.Run(ctx, p, id)
	if err != nil || run.Status.Terminal() {
		return run, err
	}
	if _, err := s.waitFor(ctx, run.Account, id); err != nil {
		return nil, err
	}
	return s.Run(context.WithoutCancel(ctx), p, id)
}

// Follow calls emit for every event of a run after the given number, in order, as they are committed, and returns nil after the last one, which is
// run.finished. In between it calls beat, at least as often as every given duration, so that a listener who went away is noticed. It returns
// their errors, the cause of ctx when that ends, and CodeDraining when the server stops. Whoever may read the run may follow it, also
// after its end.
//
// The events of a durable run are those that were committed with it. An inline run keeps none: while it executes there is its start, and once it has
// ended all of them, as the run itself tells them.
func (s *Service) Follow(ctx context.Context, p auth.Principal, id string, after int64, every time.Duration, emit func(core.RunEvent) error, beat func() error) error {
	run, err := s.Run(ctx, p, id)
	if err != nil {
		return err
	}
	changed, stop := s.Signals.Follow(run.Account, id)
	defer stop()
	poll, pulse := time.NewTicker(pollEvery), time.NewTicker(every)
	defer poll.Stop()
	defer pulse.Stop()
	for {
		events, err := s.eventsAfter(ctx, run, after)
		if err != nil {
			return err
		}
		for _, e := range events {
			if err := emit(e); err != nil {
				return err
			}
			after = e.Seq
			if e.Type == core.EventRunFinished {
				return nil
			}
		}
		if len(events) > 0 {
			continue // there may be more
		}
		if run.Status.Terminal() {
			return nil // it has been told to its end before
		}
		select {
		case <-changed:
		case <-poll.C:
		case <-pulse.C:
			if err := beat(); err != nil {
				return err
			}
			continue
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-s.halt:
			return errDraining()
		}
		if run, err = s.Store.Run(ctx, run.Account, id); err != nil {
			return err
		}
	}
}

// EventsLeft reports whether Follow would tell anything of a run after the given number, now or later.
func (s *Service) EventsLeft(ctx context.Context, run *core.Run, after int64) (bool, error) {
	if after == 0 || !run.Status.Terminal() {
		return true, nil
	}
	events, err := s.eventsAfter(ctx, run, after)
	return len(events) > 0, err
}

// eventsAfter returns the next events of a run.
func (s *Service) eventsAfter(ctx context.Context, run *core.Run, after int64) ([]core.RunEvent, error) {
	var events []core.RunEvent
	if run.Durable {
		return s.Store.RunEvents(ctx, run.Account, run.ID, after)
	}
	for _, e := range inlineEvents(run) {
		if e.Seq > after {
			events = append(events, e)
		}
	}
	return events, nil
}

// inlineEvents tells an inline run as events. They are the same every time, so their numbers are too.
func inlineEvents(run *core.Run) []core.RunEvent {
	started := core.RunEvent{Seq: 1, Type: core.EventRunStarted, Time: run.StartedAt.UTC(), RunID: run.ID, Status: string(core.RunRunning), Attempt: run.Attempt}
	started.RunAttempt = run.Attempt
	events := []core.RunEvent{started}
	if !run.Status.Terminal() {
		return events
	}
	for i := range run.Steps {
		step := &run.Steps[i]
		if len(step.Attempts) > 0 {
			events = append(events, core.RunEvent{
				Type: core.EventStepStarted, Time: step.StartedAt.UTC(), RunID: run.ID, Step: step.ID, Status: string(core.StepRunning), Attempt: 1,
			})
			for j := range step.Attempts[:len(step.Attempts)-1] {
				failed := &step.Attempts[j]
				events = append(events, core.AttemptLog(run.ID, step.ID, failed)...)
				events = append(events, core.RunEvent{
					Type: core.EventStepRetrying, Time: failed.StartedAt.Add(time.Duration(failed.DurationUS) * time.Microsecond).UTC(), RunID: run.ID,
					Step: step.ID, Status: string(core.StepRetrying), Attempt: failed.Number, Error: failed.Error,
				})
			}
		}
		events = append(events, core.StepEvents(run.ID, step)...)
	}
	slices.SortStableFunc(events[1:], func(a, b core.RunEvent) int { return a.Time.Compare(b.Time) })
	events = append(events, core.RunFinished(run))
	for i := range events {
		events[i].Seq, events[i].RunAttempt = int64(i+1), run.Attempt
		events[i].Time = cmp.Or(events[i].Time, run.FinishedAt.UTC())
	}
	return events
}
