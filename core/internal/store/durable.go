package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/keyfire/keyfire/core"
)

// This file is what the store does for durable runs. Every write of a worker is fenced by the number of its attempt: whoever has claimed
// the run since has raised it, and what the one before has still to say is refused.

const (
	// sqlRunClaim starts the clock of a run when it is first claimed, and anew when the worker before died with it.
	sqlRunClaim = `update runs set status = case when status = 'cancelling' then status else 'running' end, attempt = attempt + 1, due_at = 0,
		started_at = case when started_at = 0 then $1 else started_at end,
		deadline_at = case when deadline_at = 0 or $2 then $1 + timeout else deadline_at end
		where account = $3 and id = $4 and durable and finished_at = 0
		returning attempt, (select coalesce(max(last), 0) from run_events where account = $3 and run_id = $4)`
	sqlRunSuspend = `update runs set status = $1, due_at = $2 where account = $3 and id = $4 and attempt = $5 and finished_at = 0 and status = 'running'`
	sqlRunCancel  = `update runs set status = 'cancelling', error = $1 where account = $2 and id = $3 and finished_at = 0 and status <> 'cancelling'`
	sqlRunEnd     = `update runs set status = 'cancelled', finished_at = $1, error = $2, due_at = 0 where account = $3 and id = $4 and finished_at = 0`
	sqlRunFull    = `select status, attempt, finished_at, durable, workflow_id, principal, due_at, run_limit, steps from runs where account = $1 and id = $2`

	// The conditions are those of the index runs_open.
	sqlRunsOpen = `select account, id, workflow_id, principal, due_at, run_limit, status from runs
		where durable and finished_at = 0 and (account, workflow_id, id) > ($1, $2, $3) order by account, workflow_id, id limit $4`
	sqlRunsOpenCount = `select count(*) from runs where durable and finished_at = 0 and account = $1 and workflow_id = $2`
	// A run that is on its way out, or that this one replaces anyway, is not replaced again.
	sqlRunsReplaceable = ` from runs where durable and finished_at = 0 and account = $1 and workflow_id = $2 and status <> 'cancelling' and id <> $3`
	sqlRunsOpenLeft    = `select count(*)` + sqlRunsReplaceable
	sqlRunsOpenOldest  = `select id` + sqlRunsReplaceable + ` order by id limit $4`

	sqlStepPut     = sqlStepInsert + ` on conflict (account, run_id, position) do update set body = excluded.body`
	sqlStepsPlaced = `select position, body from run_steps where account = $1 and run_id = $2 order by position`
	sqlStepsUp     = `delete from run_steps where account = $1 and run_id = $2`

	sqlEventsInsert = `insert into run_events (account, run_id, seq, last, body) values ($1, $2, $3, $4, $5)`
	sqlEventsLast   = `select coalesce(max(last), 0) from run_events where account = $1 and run_id = $2`
	sqlEvents       = `select body from run_events where account = $1 and run_id = $2 and last > $3 order by seq limit $4`

	sqlDedupe    = `select d.run_id, r.principal from run_dedupe d join runs r on r.account = d.account and r.id = d.run_id where d.account = $1 and d.workflow_id = $2 and d.key = $3 and r.finished_at = 0`
	sqlDedupePut = `insert into run_dedupe (account, workflow_id, key, run_id) values ($1, $2, $3, $4)
		on conflict (account, workflow_id, key) do update set run_id = excluded.run_id`
)

// ClaimRun takes over a durable run that has not ended, as its next attempt: writes of the attempt before are refused from then on. fresh
// starts the run's time anew. A run that is to be cancelled is claimed as such. CodeConflict when yet another attempt was begun in the same moment,
// CodeRunAlreadyFinished when the run has ended,
// CodeNotFound when the account has no such durable run.
func (s *Store) ClaimRun(ctx context.Context, account, id string, at time.Time, fresh bool) (*core.Claim, error) {
	claim := &core.Claim{}
	var attempt int
	first := &statement{query: sqlRunClaim, args: []any{micros(at), fresh, account, id}, rows: true, touches: id}
	err := s.write(ctx, &change{name: "claim run", lane: results, account: account, first: first}, func(t *tx) error {
		err := t.row(first.query, first.args...).Scan(&attempt, &claim.LastSeq)
		if errors.Is(err, sql.ErrNoRows) {
			return whyNotFinished(t, &core.Run{Account: account, ID: id})
		}
		t.writes++
		return err
	})
	if err != nil {
		return nil, err
	}
	run, err := s.Run(ctx, account, id)
	if err != nil {
		return nil, err
	}
	if run.Attempt != attempt {
		// Another worker was faster than this look at the run, and would share its attempt with us.
		return nil, core.Errorf(core.CodeConflict, "attempt %d of the run was taken over by attempt %d", attempt, run.Attempt)
	}
	claim.Run = *run
	return claim, nil
}

// fence refuses the write of an attempt that is not the run's last one, or whose run has ended. It reports whether the run is to be
// cancelled.
func fence(t *tx, account, id string, attempt int) (cancel bool, err error) {
	var (
		status   core.RunStatus
		now      int
		finished int64
	)
	if err := t.row(sqlRunState, account, id).Scan(&status, &now, &finished); err != nil {
		return false, notFound(err, "run")
	}
	if finished != 0 || now != attempt {
		return false, whyNotFinished(t, &core.Run{Account: account, ID: id, Attempt: attempt})
	}
	return status == core.RunCancelling, nil
}

// fencing is the statement that fence begins with.
func fencing(account, id string) *statement {
	return &statement{query: sqlRunState, args: []any{account, id}, rows: true, touches: id}
}

// CommitSteps records steps of a durable run that is being executed, and events. It reports whether the run is to be cancelled. CodeConflict
// when another attempt has taken the run over, CodeRunAlreadyFinished when it has ended.
func (s *Store) CommitSteps(ctx context.Context, account, id string, attempt int, positions []int, steps []core.Step, events []core.RunEvent) (cancel bool, err error) {
	if len(positions) != len(steps) {
		return false, fmt.Errorf("commit steps: %d positions for %d steps", len(positions), len(steps))
	}
	var size int64
	bodies := make([]string, len(steps))
	for i := range steps {
		if bodies[i], err = encodeStep(&steps[i]); err != nil {
			return false, fmt.Errorf("commit steps: %w", err)
		}
		size += int64(len(bodies[i]))
	}
	told, err := encodeEvents(events)
	if err != nil {
		return false, fmt.Errorf("commit steps: %w", err)
	}
	c := &change{name: "commit step", lane: results, account: account, size: size + told.size() + tapesSize(steps), first: fencing(account, id)}
	err = s.write(ctx, c, func(t *tx) error {
		if cancel, err = fence(t, account, id, attempt); err != nil {
			return err
		}
		for i, body := range bodies {
			if err := t.put(sqlStepPut, account, id, positions[i], steps[i].ID, body); err != nil {
				return err
			}
		}
		if err := putTapes(t, account, id, steps); err != nil {
			return err
		}
		return told.insert(t, account, id)
	})
	return cancel, err
}

// SuspendRun records that a run is not being executed for now: as RunWaiting until run.DueAt, or as RunQueued. CodeConflict when another attempt
// has taken the run over or when it is to be cancelled, CodeRunAlreadyFinished when it has ended.
func (s *Store) SuspendRun(ctx context.Context, run *core.Run, events []core.RunEvent) error {
	if run.Status != core.RunWaiting && run.Status != core.RunQueued {
		return fmt.Errorf("suspend run: not as %q", run.Status)
	}
	told, err := encodeEvents(events)
	if err != nil {
		return fmt.Errorf("suspend run: %w", err)
	}
	due := run.DueAt
	if run.Status == core.RunQueued {
		due = time.Time{}
	}
	first := &statement{query: sqlRunSuspend, args: []any{string(run.Status), micros(due), run.Account, run.ID, run.Attempt}, touches: run.ID}
	return s.write(ctx, &change{name: "suspend run", lane: results, account: run.Account, caller: run.Trigger.Principal, size: told.size(), first: first}, func(t *tx) error {
		n, err := t.exec(first.query, first.args...)
		if err != nil {
			return err
		}
		if n == 0 {
			return whyNotFinished(t, run)
		}
		return told.insert(t, run.Account, run.ID)
	})
}

// OpenRuns returns jobs of durable runs that have not ended, by account, workflow and id, after the given one; the zero Job is before all.
func (s *Store) OpenRuns(ctx context.Context, after core.Job, limit int) ([]core.Job, error) {
	return all(ctx, s, "list open runs", func(row scanner) (core.Job, error) {
		var (
			j      core.Job
			due    int64
			status core.RunStatus
		)
		err := row.Scan(&j.Account, &j.Run, &j.Workflow, &j.Lane, &due, &j.Limit, &status)
		j.Due = fromMicros(due)
		j.Recovered = status != core.RunQueued && status != core.RunScheduled
		return j, err
	}, sqlRunsOpen, after.Account, after.Workflow, after.Run, limit)
}

// CancelRun asks for a run to be stopped, with the audit event of that. A durable run that nobody executes ends at once. The answer says
// RunCancelled for a run that is cancelled already. CodeRunAlreadyFinished when the run has ended in another way, CodeNotFound when
// the account has no such run.
func (s *Store) CancelRun(ctx context.Context, account, id, reason string, at time.Time, ev core.AuditEvent) (core.Cancelled, error) {
	var out core.Cancelled
	err := s.write(ctx, &change{name: "cancel run", lane: control}, func(t *tx) (err error) {
		if out, err = cancelRun(t, account, id, reason, at); err != nil || out.Before {
			return err
		}
		return t.audit(ev)
	})
	return out, err
}

func cancelRun(t *tx, account, id, reason string, at time.Time) (core.Cancelled, error) {
	var (
		out           core.Cancelled
		attempt       int
		finished, due int64
		durable       bool
		steps         []byte
	)
	job := core.Job{Account: account, Run: id}
	if err := t.row(sqlRunFull, account, id).Scan(&out.Status, &attempt, &finished, &durable, &job.Workflow, &job.Lane, &due, &job.Limit, &steps); err != nil {
		return core.Cancelled{}, notFound(err, "run")
	}
	switch {
	case out.Status == core.RunCancelled:
		out.Before = true
		return out, nil
	case out.Status == core.RunCancelling:
		return out, nil // for the reason that was given first
	case finished != 0:
		return core.Cancelled{}, core.Errorf(core.CodeRunAlreadyFinished, "the run has ended already, as %s", out.Status)
	}
	why, err := encodeRunError(CancelledError(reason))
	if err != nil {
		return core.Cancelled{}, err
	}
	if out.Status == core.RunRunning {
		// Whoever executes the run finds there why it is to end, and writes it again with the end.
		out.Status = core.RunCancelling
		_, err := t.exec(sqlRunCancel, why, account, id)
		return out, err
	}
	out.Status = core.RunCancelled
	job.Due = fromMicros(due)
	out.Job = job
	run := core.Run{Account: account, ID: id, Status: core.RunCancelled, FinishedAt: at.UTC(), Attempt: attempt, Error: CancelledError(reason)}
	if _, err := t.exec(sqlRunEnd, micros(at), why, account, id); err != nil {
		return core.Cancelled{}, err
	}
	var last int64
	if err := t.row(sqlEventsLast, account, id).Scan(&last); err != nil {
		return core.Cancelled{}, err
	}
	end := core.RunFinished(&run)
	end.Seq = last + 1
	told, err := encodeEvents([]core.RunEvent{end})
	if err != nil {
		return core.Cancelled{}, err
	}
	if err := told.insert(t, account, id); err != nil {
		return core.Cancelled{}, err
	}
	if err := cancelSteps(t, account, id, at); err != nil {
		return core.Cancelled{}, err
	}
	return out, dueCallbacks(t, account, id, at)
}

// cancelSteps ends the steps of a run that is cancelled while it waits.
func cancelSteps(t *tx, account, id string, at time.Time) error {
	type placed struct {
		position int
		core.Step
	}
	steps, err := rowsOf(t, func(row scanner) (p placed, err error) {
		var body []byte
		if err = row.Scan(&p.position, &body); err == nil {
			p.Step, err = decodeStep(body)
		}
		return p, err
	}, sqlStepsPlaced, account, id)
	if err != nil {
		return err
	}
	for _, step := range steps {
		if step.Status != core.StepRetrying && step.Status != core.StepRunning {
			continue
		}
		step.Status, step.RetryAt, step.FinishedAt = core.StepCancelled, time.Time{}, at
		body, err := encodeStep(&step.Step)
		if err != nil {
			return err
		}
		if _, err := t.exec(sqlStepPut, account, id, step.position, step.ID, body); err != nil {
			return err
		}
	}
	return nil
}

// CancelledError is why a cancelled run did not succeed.
func CancelledError(reason string) *core.RunError {
	e := &core.RunError{Code: core.CodeRunCancelled, Message: core.ErrRunCancelled.Message}
	if reason != "" {
		e.Message += ": " + reason
	}
	return e
}

// finishDurable is what the end of a durable run writes beside its row. Its steps are written with it, so those committed before go.
func finishDurable(t *tx, account, id string, at time.Time, told *eventRows) error {
	if err := t.put(sqlStepsUp, account, id); err != nil {
		return err
	}
	if err := told.insert(t, account, id); err != nil {
		return err
	}
	return dueCallbacks(t, account, id, at)
}

// exclusive reports whether an admission depends on other runs of the workflow, or on a tick.
func exclusive(a *core.Admission) bool {
	return a.Dedupe != nil || a.Tick != nil || a.Run.Limit > 0 && (a.WhenFull == core.WhenFullReject || a.WhenFull == core.WhenFullReplace)
}

// exclude finds what an admission excludes, and what excludes it, and writes nothing about runs. It reports whether an earlier run is the answer.
func exclude(t *tx, a *core.Admission, out *core.Admitted) (found bool, err error) {
	run := &a.Run
	if tick := a.Tick; tick != nil {
		var earlier string
		switch err := t.row(sqlTick, run.Account, tick.Workflow, tick.Schedule, tick.Key).Scan(&earlier); {
		case err == nil:
			return false, core.Errorf(core.CodeConflict, "this scheduled time has its run: %s", earlier)
		case !errors.Is(err, sql.ErrNoRows):
			return false, err
		}
	}
	replaced := ""
	if d := a.Dedupe; d != nil {
		var earlier, starter string
		err := t.row(sqlDedupe, run.Account, run.Workflow.ID, d.Key).Scan(&earlier, &starter)
		switch {
		case errors.Is(err, sql.ErrNoRows):
		case err != nil:
			return false, err
		case a.Visible != nil && !a.Visible(starter):
			return false, core.Errorf(core.CodeConflict, "a run with this dedupe key has not ended; another credential started it, so this one may neither see nor cancel it")
		case d.Policy == core.DedupeReject:
			return false, core.Wrap(core.CodeConflict, &core.ExistingRun{ID: earlier}, "a run with this dedupe key has not ended: "+earlier)
		case d.Policy == core.DedupeUseExisting:
			if a.KeyID != "" {
				if _, err := activeKey(t, a); err != nil {
					return false, err
				}
			}
			*out = core.Admitted{RunID: earlier, Deduped: true}
			// Whoever repeats the request because the answer was lost means this run, also when it has ended meanwhile.
			return true, rememberRequest(t, a, earlier)
		default:
			replaced = earlier
			out.Cancelled = append(out.Cancelled, core.CancelledRun{Run: earlier})
		}
	}
	var open int
	switch {
	case run.Limit == 0:
		return false, nil
	case a.WhenFull == core.WhenFullReject:
		if err := t.row(sqlRunsOpenCount, run.Account, run.Workflow.ID).Scan(&open); err != nil {
			return false, err
		}
		if open-len(out.Cancelled) < run.Limit {
			return false, nil
		}
		return false, &core.Error{
			Code: core.CodeConcurrencyLimited, Message: fmt.Sprintf("as many runs of this workflow as may be under way have not ended: %d", open), RetryAfter: time.Second,
		}
	case a.WhenFull != core.WhenFullReplace:
		return false, nil
	}
	if err := t.row(sqlRunsOpenLeft, run.Account, run.Workflow.ID, replaced).Scan(&open); err != nil || open < run.Limit {
		return false, err
	}
	oldest, err := rowsOf(t, scanText, sqlRunsOpenOldest, run.Account, run.Workflow.ID, replaced, open-run.Limit+1)
	for _, id := range oldest {
		out.Cancelled = append(out.Cancelled, core.CancelledRun{Run: id})
	}
	return false, err
}

// settleExclusion writes what exclude found, after the run is written.
func settleExclusion(t *tx, a *core.Admission, out *core.Admitted) error {
	run := &a.Run
	for i := range out.Cancelled {
		c := &out.Cancelled[i]
		var err error
		if c.Cancelled, err = cancelRun(t, run.Account, c.Run, "replaced by "+run.ID, run.CreatedAt); err != nil {
			return err
		}
		if err := t.audit(a.Cancel(c.Run)); err != nil {
			return err
		}
	}
	if a.Dedupe != nil {
		if _, err := t.exec(sqlDedupePut, run.Account, run.Workflow.ID, a.Dedupe.Key, run.ID); err != nil {
			return err
		}
	}
	if tick := a.Tick; tick != nil {
		if _, err := t.exec(sqlTickInsert, run.Account, tick.Workflow, tick.Schedule, tick.Key, micros(tick.At), run.ID); err != nil {
			return err
		}
		if _, err := t.exec(sqlScheduleLast, micros(tick.At), run.Account, tick.Workflow, tick.Schedule); err != nil {
			return err
		}
	}
	return nil
}

// eventRows are events as they are written.
type eventRows struct {
	first, last int64
	body        string
}

func encodeEvents(events []core.RunEvent) (*eventRows, error) {
	if len(events) == 0 {
		return &eventRows{}, nil
	}
	body, err := encode(events)
	if err != nil {
		return nil, fmt.Errorf("events: %w", err)
	}
	return &eventRows{events[0].Seq, events[len(events)-1].Seq, body}, nil
}

func (r *eventRows) size() int64 { return int64(len(r.body)) }

func (r *eventRows) insert(t *tx, account, run string) error {
	if r.body == "" {
		return nil
	}
	return t.put(sqlEventsInsert, account, run, r.first, r.last, r.body)
}

// eventChunks is how many rows of events are read at once.
const eventChunks = 100

// RunEvents returns events of a durable run that come after the given number, in order. There may be more than it returns; none are returned
// when there are none yet.
func (s *Store) RunEvents(ctx context.Context, account, run string, after int64) ([]core.RunEvent, error) {
	chunks, err := all(ctx, s, "read events", func(row scanner) (chunk []core.RunEvent, err error) {
		var body []byte
		if err := row.Scan(&body); err != nil {
			return nil, err
		}
		if err := json.Unmarshal(body, &chunk); err != nil {
			return nil, errors.Join(errDamaged, fmt.Errorf("events: %w", err))
		}
		return slices.DeleteFunc(chunk, func(e core.RunEvent) bool { return e.Seq <= after }), nil
	}, sqlEvents, account, run, after, eventChunks)
	return slices.Concat(chunks...), err
}

// cap returns run with the inputs and outputs of its steps cut down to what is kept of them.
func (c *Config) cap(run *core.Run) *core.Run {
	if c.MaxPayload <= 0 {
		return run
	}
	large := func(body json.RawMessage) bool { return int64(len(body)) > c.MaxPayload }
	cut := *run
	cut.Steps = append([]core.Step(nil), run.Steps...)
	for i := range cut.Steps {
		for _, body := range []*json.RawMessage{&cut.Steps[i].Input, &cut.Steps[i].Output} {
			if large(*body) {
				sum := sha256.Sum256(*body)
				*body = json.RawMessage(fmt.Sprintf(`{"keyfire_omitted":{"bytes":%d,"sha256":"%s"}}`, len(*body), hex.EncodeToString(sum[:])))
			}
		}
	}
	return &cut
}
