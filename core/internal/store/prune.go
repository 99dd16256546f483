package store

import (
	"context"
	"time"

	"github.com/keyfire/keyfire/core"
)

const (
	// A run is pruned when it has ended, no Idempotency-Key finds it and no callback of it is under way.
	prunable = ` and finished_at > 0
		and not exists (select 1 from idempotency i where i.account = runs.account and i.run_id = runs.id)
		and not exists (select 1 from callbacks c where c.account = runs.account and c.run_id = runs.id and c.next_at > 0)`
	sqlPruneOld      = `select id from runs where account = $1 and workflow_id = $2 and id < $3` + prunable + ` order by id limit $4`
	sqlPruneBound    = `select id from runs where account = $1 and workflow_id = $2 order by id desc limit 1 offset $3`
	sqlRunDelete     = `delete from runs where account = $1 and id = $2 and finished_at > 0`
	sqlPruneTicks    = `delete from schedule_ticks where at < $1`
	sqlPruneRefusals = `delete from callback_refusals where (account, url) in (select account, url from callback_refusals where at < $1 limit $2)`
	sqlWorkflowsW    = `select account, id from workflows order by account, id`
)

// pruneBatch bounds one deletion, and with it how long triggers wait for it.
const pruneBatch = 100

// callbackRefusalKept is for how long nothing is sent to a destination that wanted no more. Then it is asked once more, if there is anything to send: callers may give
// every run a URL of its own, so refusals cannot be kept for ever.
const callbackRefusalKept = 90 * 24 * time.Hour

// Retention says how much history is kept. Zero fields keep everything.
type Retention struct {
	MaxAge  time.Duration // runs accepted longer ago are deleted
	MaxRuns int           // of each workflow, the newest ones that are kept
}

// Prune deletes runs that are older or more than is kept, with all that belongs to them, and returns how many. It works in small batches
// and rests between them, so that triggers hardly notice; it ends early, with the number so far, when ctx does. Runs that have not ended, that
// an Idempotency-Key still finds or that have a callback under way are kept. The audit log is not touched.
func (s *Store) Prune(ctx context.Context, keep Retention) (int, error) {
	if err := s.mayTellAge(ctx); err != nil {
		return 0, err
	}
	workflows, err := all(ctx, s, "prune", scanWorkflowKey, sqlWorkflowsW)
	if err != nil {
		return 0, err
	}
	now, deleted := s.cfg.Now(), 0
	for _, w := range workflows {
		bound := ""
		if keep.MaxAge > 0 {
			bound = oldestRunID(now.Add(-keep.MaxAge))
		}
		if keep.MaxRuns > 0 {
			var oldest string // the oldest one that is kept
			err := s.bulk.QueryRowContext(s.listing(ctx), sqlPruneBound, w.account, w.id, keep.MaxRuns-1).Scan(&oldest)
			if err == nil {
				bound = max(bound, oldest)
			} else if core.CodeOf(found(err, "run")) != core.CodeNotFound {
				return deleted, unavailable("prune", err)
			}
		}
		if bound == "" {
			continue
		}
		n, err := s.pruneBefore(ctx, w.account, w.id, bound)
		if deleted += n; err != nil {
			return deleted, err
		}
	}
	// Also where history is kept: a time this long ago is not looked for again.
	err = s.write(ctx, &change{name: "prune ticks", lane: intake}, func(t *tx) error {
		_, err := t.exec(sqlPruneTicks, micros(now.Add(-max(keep.MaxAge, 7*24*time.Hour))))
		return err
	})
	if err != nil {
		return deleted, err
	}
	return deleted, s.deleteAll(ctx, "prune refused destinations", sqlPruneRefusals, micros(now.Add(-callbackRefusalKept)))
}

// pruneBefore deletes what may be deleted of the runs of a workflow before an id.
func (s *Store) pruneBefore(ctx context.Context, account, workflow, bound string) (int, error) {
	total := 0
	for {
		ids, err := all(ctx, s, "prune", scanText, sqlPruneOld, account, workflow, bound, pruneBatch)
		if err != nil || len(ids) == 0 {
			return total, err
		}
		began := time.Now()
		err = s.write(ctx, &change{name: "prune runs", lane: intake}, func(t *tx) error {
			for _, id := range ids {
				if _, err := t.exec(sqlRunDelete, account, id); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return total, err
		}
		total += len(ids)
		if len(ids) < pruneBatch {
			return total, nil
		}
		select { // leave most of the writer's time to others
		case <-time.After(4 * time.Since(began)):
		case <-ctx.Done():
			return total, ended(ctx)
		}
	}
}
