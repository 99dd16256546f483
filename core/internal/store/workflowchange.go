package store

import (
	"context"

	"github.com/keyfire/keyfire/core"
)

const (
	sqlWorkflowRename = `update workflows set slug = $1, updated_at = $2 where account = $3 and id = $4`
	sqlNameDelete     = `delete from workflow_names where account = $1 and name = $2 and workflow_id = $3`
	sqlNamePut        = sqlNameInsert + ` on conflict (account, name) do nothing`
	sqlWorkflowDelete = `update workflows set deleted_at = $1, updated_at = $1, enabled = false where account = $2 and id = $3`
	sqlSchedulesDrop  = `delete from schedules where account = $1 and workflow_id = $2`

	// sqlRunsUnderWay finds runs that nobody has asked to cancel yet, in the index of those that have not succeeded.
	sqlRunsUnderWay = `select id from runs where status <> 'succeeded' and account = $1 and status in ('scheduled', 'queued', 'running', 'waiting')
		and (key_id = $2 or $2 = '') and (workflow_id = $3 or $3 = '') limit $4`

	sqlWorkflowsGone = `select account, id from workflows where deleted_at > 0 and deleted_at < $1 and (account, id) > ($2, $3) order by account, id limit $4`
	sqlWorkflowRuns  = `select exists (select 1 from runs where durable and finished_at = 0 and account = $1 and workflow_id = $2),
		exists (select 1 from runs where account = $1 and workflow_id = $2)`
)

// RenameWorkflow gives a workflow another slug and returns it. Its id stays, and with it its versions, its runs and the keys that are made for it; the old slug is free
// at once, unless it is one of the workflow's aliases too. When the workflow has that slug already, nothing is written. CodeConflict when the slug is a name of
// another workflow, CodeNotFound when the account has no workflow of that id, slug or alias.
func (s *Store) RenameWorkflow(ctx context.Context, account, ref, slug string, ev core.AuditEvent) (core.Workflow, error) {
	var w core.Workflow
	err := s.write(ctx, &change{name: "rename workflow", lane: control}, func(t *tx) (err error) {
		if w, err = scanWorkflow(t.row(sqlWorkflowByName, account, ref)); err != nil {
			return notFound(err, "workflow")
		}
		if w.Slug == slug {
			return nil
		}
		if err := namesFree(t, &w, []string{slug}); err != nil {
			return err
		}
		old := w.Slug
		w.Slug, w.UpdatedAt = slug, fromMicros(micros(ev.Time))
		if err := t.put(sqlWorkflowRename, slug, micros(ev.Time), account, w.ID); err != nil {
			return err
		}
		if err := t.put(sqlNameDelete, account, old, w.ID); err != nil {
			return err
		}
		for _, name := range workflowNames(&w) {
			if err := t.put(sqlNamePut, account, name, w.ID); err != nil {
				return err
			}
		}
		ev.Object = w.ID
		return t.audit(ev)
	})
	if err != nil {
		return core.Workflow{}, err
	}
	return w, nil
}

// DeleteWorkflow deletes a workflow and returns it as it was. From its return on the account has no workflow of that id, slug or aliases: no run of it is admitted, its
// schedules are gone, and its names are free, for another workflow with another id. Runs that were admitted before finish, and the history stays. What its nodes
// kept, and in the end its versions, are removed in the background, by [Store.sweepWorkflows]. CodeNotFound when the account has no workflow of that id, slug
// or alias.
func (s *Store) DeleteWorkflow(ctx context.Context, account, ref string, ev core.AuditEvent) (core.Workflow, error) {
	var w core.Workflow
	err := s.write(ctx, &change{name: "delete workflow", lane: control, essential: true}, func(t *tx) (err error) {
		if w, err = scanWorkflow(t.row(sqlWorkflowByName, account, ref)); err != nil {
			return notFound(err, "workflow")
		}
		if err := t.put(sqlWorkflowDelete, micros(ev.Time), account, w.ID); err != nil {
			return err
		}
		if err := t.put(sqlNamesDelete, account, w.ID); err != nil {
			return err
		}
		if err := t.put(sqlSchedulesDrop, account, w.ID); err != nil {
			return err
		}
		ev.Object = w.ID
		return t.audit(ev)
	})
	if err != nil {
		return core.Workflow{}, err
	}
	return w, nil
}

// RunsUnderWay returns the ids of up to limit runs of the account that have not ended and that nobody has asked to cancel, in no order: those that a key has
// started, those of a workflow, by its id, or with both "" all.
func (s *Store) RunsUnderWay(ctx context.Context, account, keyID, workflowID string, limit int) ([]string, error) {
	return all(ctx, s, "list runs under way", scanText, sqlRunsUnderWay, account, keyID, workflowID, limit)
}

// remains lists what is left of a deleted workflow: of what nodes kept, once its last run has ended; and of the rest, once no run of it is in the history.
var remains = []struct{ table, key, of string }{
	{"kv", "account, workflow_id, name", "workflow_id"},
	{"kv_usage", "account, workflow_id", "workflow_id"},
	{"schedule_ticks", "account, workflow_id, name, tick", "workflow_id"},
	{"versions", "account, workflow_id, version", "workflow_id"},
	{"workflows", "account, id", "id"},
}

// workflowKey names a workflow on the whole server.
type workflowKey struct{ account, id string }

func scanWorkflowKey(row scanner) (w workflowKey, err error) {
	err = row.Scan(&w.account, &w.id)
	return w, err
}

// keptWithRuns is where in remains begins what runs in the history need.
const keptWithRuns = 2

// sweepWorkflows removes what deleted workflows leave. One that was deleted a moment ago may have runs that execute, so it is left alone for as long as a run can take
// that does not survive its server.
func (s *Store) sweepWorkflows(ctx context.Context) error {
	before := micros(s.cfg.Now().Add(-2 * core.MaxRunTimeout))
	for last := (workflowKey{}); ; {
		gone, err := all(ctx, s, "list deleted workflows", scanWorkflowKey, sqlWorkflowsGone, before, last.account, last.id, sweepBatch)
		if err != nil {
			return err
		}
		for _, w := range gone {
			var open, left bool
			if err := s.bulk.QueryRowContext(s.listing(ctx), sqlWorkflowRuns, w.account, w.id).Scan(&open, &left); err != nil {
				return unavailable("look for runs of a deleted workflow", err)
			}
			for i, r := range remains {
				if open || left && i >= keptWithRuns {
					break
				}
				query := `delete from ` + r.table + ` where (` + r.key + `) in (select ` + r.key + ` from ` + r.table + ` where account = $1 and ` + r.of + ` = $2 limit $3)`
				if err := s.deleteAll(ctx, "remove "+r.table+" of a deleted workflow", query, w.account, w.id); err != nil {
					return err
				}
			}
			last = w
		}
		if len(gone) < sweepBatch {
			return nil
		}
	}
}
