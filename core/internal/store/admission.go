package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/keyfire/keyfire/core"
)

const (
	// sqlCharge is the whole admission decision in one statement: it changes a row exactly when the key may start this run. A key with
	// limits beyond a number of runs, or of an account with limits, takes more than one statement; see chargeLimited.
	sqlCharge = `update keys set runs_used = runs_used + 1, last_used_at = case when last_used_at < $1 then $1 else last_used_at end
		where account = $2 and id = $3 and revoked_at = 0 and disabled_at = 0 and (expires_at = 0 or expires_at > $1)
		and (max_runs = 0 or runs_used < max_runs + credited) and not limited and (revision = $5 or $5 = 0)
		and exists (select 1 from workflows where account = $2 and id = $4 and enabled)
		and not exists (select 1 from accounts where id = $2 and (limited or disabled_at > 0 or deleted_at > 0))`
	// sqlChargeFirst is sqlCharge for a request that must be the first one with its Idempotency-Key.
	sqlChargeFirst = sqlCharge + ` and not exists (select 1 from idempotency where account = $2 and principal = $6 and workflow_id = $7 and key = $8 and expires_at > $1)`
	// sqlWorkflowOpen also says whether the account has limits, which saves most accounts a question of their own.
	sqlWorkflowOpen = `select enabled, exists (select 1 from accounts where id = $1 and limited) from workflows where account = $1 and id = $2 and deleted_at = 0`

	sqlIdempotency       = `select run_id, fingerprint from idempotency where account = $1 and principal = $2 and workflow_id = $3 and key = $4 and expires_at > $5`
	sqlIdempotencyInsert = `insert into idempotency (account, principal, workflow_id, key, fingerprint, run_id, expires_at)
		values ($1, $2, $3, $4, $5, $6, $7)
		on conflict (account, principal, workflow_id, key) do update set fingerprint = excluded.fingerprint, run_id = excluded.run_id, expires_at = excluded.expires_at`
	sqlIdempotencySweep = `delete from idempotency where (account, principal, workflow_id, key) in
		(select account, principal, workflow_id, key from idempotency where expires_at <= $1 order by expires_at limit $2)`
)

// Admit accepts a run, or says why not. In one transaction it looks for an earlier run of the same Idempotency-Key, charges the
// key, and writes the run and the audit event, so a key's counter is always the number of runs it started. The run's id holds a
// ULID made when the run was, give or take a minute; lists rely on that.
//
// Refusals: CodeAccountDisabled by the account's state, CodeKeyRevoked, CodeKeyDisabled and CodeKeyExpired by the key's state at Run.CreatedAt, CodeInvalidKey when the account has no such key,
// CodeNotFound and CodeWorkflowDisabled by the workflow's, CodeRateLimited, CodeConcurrencyLimited, CodeQuotaExhausted, and CodeIdempotencyKeyReused when the
// Idempotency-Key was used for another request. A replay is answered, and costs nothing, whatever the limits and the workflow's state are now, but not to a
// key that may not be used.
func (s *Store) Admit(ctx context.Context, a core.Admission) (core.Admitted, error) {
	if st := a.Run.Status; st != core.RunRunning && st != core.RunQueued && st != core.RunScheduled {
		return core.Admitted{}, fmt.Errorf("admit: a run starts as running, queued or scheduled, not as %q", st)
	}
	server := ""
	if a.Run.Status == core.RunRunning {
		server = s.cfg.Server
	}
	rows, err := newRunRows(&a.Run, server)
	if err != nil {
		return core.Admitted{}, fmt.Errorf("admit: %w", err)
	}
	var out core.Admitted
	first := quickCharge(&a)
	err = s.write(ctx, &change{name: "admit run", lane: intake, account: a.Run.Account, caller: a.Run.Trigger.Principal, size: rows.size, first: first}, func(t *tx) (err error) {
		out, err = admit(t, &a, rows, first)
		return err
	})
	if err != nil {
		return core.Admitted{}, err
	}
	return out, nil
}

// quickCharge returns the statement that alone decides about an admission, as nearly all are, or nil.
func quickCharge(a *core.Admission) *statement {
	if a.KeyID == "" || a.KeyLimited || exclusive(a) {
		return nil
	}
	s := &statement{query: sqlCharge, args: []any{micros(a.Run.CreatedAt), a.Run.Account, a.KeyID, a.Run.Workflow.ID, a.KeyRevision}}
	if id := a.Idempotency; id != nil {
		s.query, s.args = sqlChargeFirst, append(s.args, id.Principal, id.Workflow, id.Key)
		s.touches = strings.Join([]string{a.Run.Account, id.Principal, id.Workflow, id.Key}, " ")
	}
	return s
}

// admit checks everything that may refuse before it writes anything; the charge is the last check and the first write. quick is the admission's quickCharge.
func admit(t *tx, a *core.Admission, rows *runRows, quick *statement) (core.Admitted, error) {
	if quick != nil {
		charged, err := t.exec(quick.query, quick.args...)
		if err != nil {
			return core.Admitted{}, err
		}
		if charged > 0 {
			return admitCharged(t, a, rows, core.Admitted{})
		}
	}
	// Something stands against it, or there is more to look at. What that is, is found in the order in which a caller is told.
	run, at := &a.Run, micros(a.Run.CreatedAt)
	if err := t.accountOpen(run.Account); err != nil {
		return core.Admitted{}, err
	}
	if id := a.Idempotency; id != nil {
		var earlier, fingerprint string
		err := t.row(sqlIdempotency, run.Account, id.Principal, id.Workflow, id.Key, at).Scan(&earlier, &fingerprint)
		switch {
		case errors.Is(err, sql.ErrNoRows):
		case err != nil:
			return core.Admitted{}, err
		default:
			return replay(t, a, earlier, fingerprint)
		}
	}
	var out core.Admitted
	if exclusive(a) {
		// These depend on other runs of the workflow. They are looked at before anything is written, and dealt with after.
		if found, err := exclude(t, a, &out); found || err != nil {
			return out, err
		}
	}
	charge, err := charge(t, a)
	if err != nil || charge.KeyChanged {
		return charge, err
	}
	out.Limits = charge.Limits
	return admitCharged(t, a, rows, out)
}

// admitCharged writes a run that has been paid for. out is what is known of the answer.
func admitCharged(t *tx, a *core.Admission, rows *runRows, out core.Admitted) (core.Admitted, error) {
	run := &a.Run
	if err := rows.insert(t); err != nil {
		return core.Admitted{}, err
	}
	// A run that repeats another one begins with steps of that one.
	for i := range run.Steps {
		if run.Steps[i].Status == core.StepPending {
			continue
		}
		body, err := encodeStep(&run.Steps[i])
		if err != nil {
			return core.Admitted{}, err
		}
		if err := t.put(sqlStepPut, run.Account, run.ID, i, run.Steps[i].ID, body); err != nil {
			return core.Admitted{}, err
		}
	}
	if err := rememberRequest(t, a, run.ID); err != nil {
		return core.Admitted{}, err
	}
	out.RunID = run.ID
	if exclusive(a) {
		if err := settleExclusion(t, a, &out); err != nil {
			return core.Admitted{}, err
		}
	}
	for i := range a.Callbacks {
		if err := insertCallback(t, &a.Callbacks[i]); err != nil {
			return core.Admitted{}, err
		}
	}
	return out, t.audit(a.Audit)
}

// rememberRequest has the same request find run from now on, if it has an Idempotency-Key.
func rememberRequest(t *tx, a *core.Admission, run string) error {
	id := a.Idempotency
	if id == nil {
		return nil
	}
	return t.put(sqlIdempotencyInsert, a.Run.Account, id.Principal, id.Workflow, id.Key, id.Fingerprint, run, micros(id.ExpiresAt))
}

// replay answers a request whose Idempotency-Key has a run already.
func replay(t *tx, a *core.Admission, earlier, fingerprint string) (core.Admitted, error) {
	if a.KeyID != "" {
		if _, err := activeKey(t, a); err != nil {
			return core.Admitted{}, err
		}
	}
	if fingerprint != a.Idempotency.Fingerprint {
		return core.Admitted{}, core.Errorf(core.CodeIdempotencyKeyReused, "this Idempotency-Key was used for another request; use a new one for a new request")
	}
	return core.Admitted{RunID: earlier, Replayed: true}, nil
}

// Earlier returns the run that the same request, by its Idempotency-Key and fingerprint, has started or found before the time at, "" when there is none.
func (s *Store) Earlier(ctx context.Context, account string, id *core.Idempotency, at time.Time) (runID string, err error) {
	var fingerprint string
	err = s.row(ctx, sqlIdempotency, account, id.Principal, id.Workflow, id.Key, micros(at)).Scan(&runID, &fingerprint)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return "", nil
	case err != nil:
		return "", unavailable("read idempotency key", err)
	case fingerprint != id.Fingerprint:
		return "", nil
	}
	return runID, nil
}

// workflowOpen returns nil for a workflow that takes triggers, and whether its account has limits.
func workflowOpen(t *tx, run *core.Run) (limited bool, err error) {
	var enabled bool
	if err := t.row(sqlWorkflowOpen, run.Account, run.Workflow.ID).Scan(&enabled, &limited); err != nil {
		return false, notFound(err, "workflow")
	}
	if !enabled {
		return false, core.Errorf(core.CodeWorkflowDisabled, "this workflow does not accept triggers at the moment")
	}
	return limited, nil
}

// sweepBatch bounds one deletion of expired idempotency keys, and with it how long admissions wait for it.
const sweepBatch = 500

// wakeSweeper makes the sweeper begin a round at once, if there is a sweeper.
func (s *Store) wakeSweeper() {
	select {
	case s.awake <- struct{}{}:
	default:
	}
}

// sweep deletes expired idempotency keys, old sessions and what deleted accounts and workflows owned from time to time. Nothing depends on it but the size of the database: an
// expired key or session is never found, and whose account is deleted is refused.
func (s *Store) sweep(ctx context.Context) {
	tick := time.NewTicker(s.cfg.SweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-s.awake:
		}
		s.sweepOnce(ctx)
	}
}

func (s *Store) sweepOnce(ctx context.Context) {
	wrong := s.mayTellAge(ctx) != nil // which the log has already
	for _, job := range []struct {
		name  string
		byAge bool
		run   func(context.Context) error
	}{
		{"expired idempotency keys", true, s.sweepExpired},
		{"old usage of keys", true, s.sweepKeys},
		{"expired sessions", true, s.sweepSessions},
		{"objects of deleted accounts", false, s.purge},
		{"what is left of deleted workflows", true, s.sweepWorkflows},
	} {
		if job.byAge && wrong {
			continue
		}
		if err := job.run(ctx); err != nil && ctx.Err() == nil {
			s.cfg.Logger.Warn(job.name+" were not deleted; trying again later", slog.Any("error", err))
		}
	}
}

// sweepExpired deletes what has expired, batch by batch.
func (s *Store) sweepExpired(ctx context.Context) error {
	return s.deleteAll(ctx, "sweep idempotency keys", sqlIdempotencySweep, micros(s.cfg.Now()))
}
