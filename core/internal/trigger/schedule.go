package trigger

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/workflow"
)

const (
	// scheduleEvery is how often schedules are read again, so that one that was published is noticed.
	scheduleEvery = 5 * time.Second
	// missedAfter is from when on a scheduled time counts as missed. Until then it is only late.
	missedAfter = time.Minute
)

// StartSchedules has the runs of schedules started. Several servers of one store may all do so: a scheduled time has one run, whichever of
// them is first. Close ends it.
func (s *Service) StartSchedules() {
	s.loop.Go(func() {
		for {
			next := s.tick(s.taking)
			timer := time.NewTimer(min(max(next.Sub(s.Now()), 10*time.Millisecond), scheduleEvery))
			select {
			case <-timer.C:
			case <-s.taking.Done():
				timer.Stop()
				return
			}
		}
	})
}

// tick starts what is due and returns when the next run is, as far as is known.
func (s *Service) tick(ctx context.Context) time.Time {
	now := s.Now()
	next := now.Add(scheduleEvery)
	states, err := s.Store.Schedules(ctx)
	if err != nil {
		if ctx.Err() == nil {
			s.Logger.Error("schedules not read; trying again", "error", err)
		}
		return next
	}
	for i := range states {
		st := &states[i]
		table, err := workflow.ParseSchedule(&st.Schedule)
		if err != nil {
			s.Logger.Error("schedule cannot be read; publish its workflow again", "workflow_id", st.Workflow, "schedule", st.Name, "error", err)
			continue
		}
		since := st.Since
		if st.Last.After(since) {
			since = st.Last
		}
		if since.After(now.Add(missedAfter)) {
			// The clock was ahead for a while. What is due now is not to wait until then; a time that has had its run has no other.
			since = now.Add(-missedAfter)
		}
		if due, ok := table.Latest(since, now); ok {
			s.startTick(ctx, st, table, due, now)
		}
		if at := table.Next(now); !at.IsZero() && at.Before(next) {
			next = at
		}
	}
	return next
}

// startTick starts the run of a scheduled time, or passes it over.
func (s *Service) startTick(ctx context.Context, st *core.ScheduleState, table *workflow.Timetable, due, now time.Time) {
	tick := &core.Tick{Workflow: st.Workflow, Schedule: st.Name, Key: table.Key(due), At: due}
	var err error
	if st.Schedule.Missed == core.MissedSkip && now.Sub(due) > missedAfter {
		err = s.Store.PassTick(ctx, st.Account, tick)
	} else {
		err = s.scheduled(ctx, st, tick)
	}
	var refusal *core.Error
	if errors.As(err, &refusal) && len(refusal.Limits) > 0 {
		// The account has used up one of its limits. The run starts when there is room again, or the next one does in its place.
		s.Logger.Warn("scheduled run waits for a limit of its account", "workflow_id", st.Workflow, "time", due, "error", err)
		return
	}
	switch code := core.CodeOf(err); code {
	case "", core.CodeWorkflowDisabled:
	case core.CodeConflict, core.CodeInvalidInput, core.CodeNotFound, core.CodeConcurrencyLimited:
		if code != core.CodeConflict { // else it has its run: another server was faster, or the clocks went back
			s.Logger.Error("scheduled run not started", "workflow_id", st.Workflow, "time", due, "error", err)
		}
		if err := s.Store.PassTick(ctx, st.Account, tick); err != nil {
			s.Logger.Warn("scheduled time not passed over", "workflow_id", st.Workflow, "error", err)
		}
	default:
		s.Logger.Error("scheduled run not started; trying again", "workflow_id", st.Workflow, "time", due, "error", err)
	}
}

// SchedulePrincipal is the subject of the runs of a workflow's schedules.
func SchedulePrincipal(workflowID string) string { return "schedule:" + workflowID }

// scheduled admits the run of a scheduled time.
func (s *Service) scheduled(ctx context.Context, st *core.ScheduleState, tick *core.Tick) error {
	ctx, span := s.Tracer.Start(ctx, "schedule")
	defer span.End()
	w, err := s.Store.Workflow(ctx, st.Account, st.Workflow)
	if err != nil {
		return err
	}
	v, err := s.version(ctx, st.Account, w.ID, w.Version)
	if err != nil {
		return err
	}
	t := &Ticket{Workflow: w, Version: w.Version, pinned: v, origin: core.Origin{Route: "native", RequestID: s.NewID(core.PrefixRequest)}}
	t.Principal.Account, t.Principal.Subject, t.Principal.Backend = st.Account, SchedulePrincipal(w.ID), "schedule"
	if id := span.SpanContext(); id.HasTraceID() {
		t.origin.TraceID = id.TraceID().String()
	}
	p := Payload{Input: st.Schedule.Input, Durable: true, Metadata: map[string]string{"scheduled_at": tick.At.UTC().Format(time.RFC3339)}}
	if len(p.Input) == 0 {
		p.Input = json.RawMessage("{}")
	}
	if v.schema != nil {
		if fields := v.schema.Validate(p.Input); len(fields) > 0 {
			// For the log, where the fields are not shown.
			return core.Errorf(core.CodeInvalidInput, "the schedule's input does not fit the workflow's schema: %s", fields[0].Detail)
		}
	}
	run := s.newRun(ctx, t, p, nil)
	run.Trigger.Type = "schedule"
	_, err = s.enqueue(ctx, run, &v.def, p, tick)
	return err
}
