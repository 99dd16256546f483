package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
)

const (
	sqlChargeLimited = `update keys set runs_used = runs_used + 1, credited = $1, refill_at = $2, rate_state = $3,
		last_used_at = case when last_used_at < $4 then $4 else last_used_at end where account = $5 and id = $6`

	// A run that is not there any more does not run.
	sqlRunningInsert = `insert into key_running (key_id, run_id) values ($1, $2)`
	sqlRunningDelete = `delete from key_running where key_id = $1 and run_id = $2`
	sqlRunning       = `select n.run_id, coalesce(r.finished_at, 1) from key_running n left join runs r on r.account = $1 and r.id = n.run_id where n.key_id = $2`
)

// chargeKey takes a run from the key, or says why not. Admitted.KeyChanged and a refusal both mean that nothing was written.
func chargeKey(t *tx, a *core.Admission) (core.Admitted, error) {
	run := &a.Run
	if !a.KeyLimited {
		charged, err := t.exec(sqlCharge, micros(run.CreatedAt), run.Account, a.KeyID, run.Workflow.ID, a.KeyRevision)
		if err != nil || charged > 0 {
			return core.Admitted{}, err
		}
	}
	// One of the statement's conditions does not hold, or the key has more limits than it looks at. The reasons are found in the order in which a
	// caller is told.
	key, err := activeKey(t, a)
	if err != nil {
		return core.Admitted{}, err
	}
	if a.KeyRevision != 0 && key.Revision != a.KeyRevision {
		return core.Admitted{KeyChanged: true}, nil
	}
	if err := workflowOpen(t, run); err != nil {
		return core.Admitted{}, err
	}
	return chargeLimited(t, a, &key)
}

// chargeLimited applies every limit of a key. All are looked at before anything is written.
func chargeLimited(t *tx, a *core.Admission, key *auth.Key) (core.Admitted, error) {
	var running int64
	var ended []string
	if key.MaxConcurrent > 0 {
		rows, err := t.query(sqlRunning, a.Run.Account, a.KeyID)
		if err != nil {
			return core.Admitted{}, err
		}
		if running, ended, err = runningRuns(rows); err != nil {
			return core.Admitted{}, err
		}
	}
	now, err := t.db.now(fromMicros(micros(a.Run.CreatedAt)))
	if err != nil {
		return core.Admitted{}, err
	}
	j, err := judge(key, running, now)
	if err != nil {
		return core.Admitted{}, err
	}
	if !key.Limited() {
		return core.Admitted{}, fmt.Errorf("key %s was not charged, and no reason can be found", key.ID)
	}
	return core.Admitted{Limits: j.limits}, writeCharge(t, a, key, j, ended)
}

// judgement is what a run would leave of a key's limits.
type judgement struct {
	limits []core.LimitState
	state  map[string]int64 // of the rate limits
	quota  core.Quota
}

// judge takes a run from the limits of a key: the rates, then how many runs at once, then how many in all. The error is the refusal of the first that has none
// left; those after it are not looked at.
func judge(key *auth.Key, running int64, now time.Time) (j judgement, err error) {
	var wait time.Duration
	var limiting string
	j.state = make(map[string]int64, len(key.RateLimits))
	for _, limit := range key.RateLimits {
		after, at, ok := limit.Take(key.RateState[limit.Name], now)
		j.state[limit.Name] = after
		j.limits = append(j.limits, at)
		if !ok && at.Reset > wait {
			wait, limiting = at.Reset, limit.Name
		}
	}
	if limiting != "" {
		return j, refuseLimit(core.Errorf(core.CodeRateLimited, "this key's rate limit %q is used up for now", limiting), key, j.limits, wait)
	}
	if key.MaxConcurrent > 0 {
		j.limits = append(j.limits, core.LimitState{Name: "concurrency", Kind: core.LimitConcurrency, Limit: key.MaxConcurrent, Remaining: max(key.MaxConcurrent-running-1, 0)})
		if running >= key.MaxConcurrent {
			return j, refuseLimit(core.Errorf(core.CodeConcurrencyLimited, "%d runs of this key are executing, which is its limit", running), key, j.limits, time.Second)
		}
	}
	j.quota = key.Quota().At(now)
	if j.quota.Max == 0 {
		return j, nil
	}
	at := core.LimitState{Name: "quota", Kind: core.LimitQuota, Limit: j.quota.Max, Remaining: max(j.quota.Left()-1, 0)}
	if j.quota.Refill != nil {
		at.Reset = j.quota.RefillAt.Sub(now)
	}
	j.limits = append(j.limits, at)
	if j.quota.Left() > 0 {
		return j, nil
	}
	e := core.Errorf(core.CodeQuotaExhausted, "this key has used all of its %d runs", j.quota.Max)
	if j.quota.Refill != nil {
		e.Message += "; there are more from " + j.quota.RefillAt.Format(time.RFC3339)
	}
	return j, refuseLimit(e, key, j.limits, at.Reset)
}

// KeyLimits returns where a key would stand after a run at the time at, or the refusal that the run would meet, as an admission would. Nothing is taken.
// CodeNotFound when the account has no such key.
func (s *Store) KeyLimits(ctx context.Context, account, id string, at time.Time) ([]core.LimitState, error) {
	key, err := s.Key(ctx, account, id)
	if err != nil {
		return nil, err
	}
	var running int64
	if key.MaxConcurrent > 0 {
		rows, err := s.bulk.QueryContext(ctx, sqlRunning, account, id) //nolint:rowserrcheck // runningRuns does
		if err != nil {
			return nil, unavailable("count running runs", err)
		}
		if running, _, err = runningRuns(rows); err != nil {
			return nil, unavailable("count running runs", err)
		}
	}
	if s.cfg.Shared && s.cfg.URL != "" {
		var us int64
		if err := s.row(ctx, sqlPGClock).Scan(&us); err != nil {
			return nil, unavailable("read the clock", err)
		}
		at = fromMicros(us)
	}
	j, err := judge(key, running, at)
	return j.limits, err
}

func writeCharge(t *tx, a *core.Admission, key *auth.Key, j judgement, ended []string) error {
	text := ""
	if len(j.state) > 0 {
		var err error
		if text, err = encode(j.state); err != nil {
			return err
		}
	}
	if err := t.put(sqlChargeLimited, j.quota.Credited, micros(j.quota.RefillAt), text, micros(a.Run.CreatedAt), a.Run.Account, key.ID); err != nil {
		return err
	}
	if key.MaxConcurrent == 0 {
		return nil
	}
	for _, run := range ended {
		if err := t.put(sqlRunningDelete, key.ID, run); err != nil {
			return err
		}
	}
	err := t.put(sqlRunningInsert, key.ID, a.Run.ID)
	return err
}

// runningRuns counts the runs of a key that have not ended, and lists those that count no more. It closes the rows.
func runningRuns(rows rows) (running int64, ended []string, err error) {
	defer rows.Close() //nolint:errcheck // only read
	for rows.Next() {
		var id string
		var finished int64
		if err := rows.Scan(&id, &finished); err != nil {
			return 0, nil, err
		}
		if finished == 0 {
			running++
		} else {
			ended = append(ended, id)
		}
	}
	return running, ended, rows.Err()
}

func refuseLimit(e *core.Error, key *auth.Key, limits []core.LimitState, after time.Duration) *core.Error {
	e.KeyID, e.Limits, e.RetryAfter = key.ID, slices.Clone(limits), after
	return e
}

// activeKey returns the key of an admission if it is active when the run is made.
func activeKey(t *tx, a *core.Admission) (auth.Key, error) {
	key, err := scanKey(t.row(sqlKey, a.Run.Account, a.KeyID))
	if errors.Is(err, sql.ErrNoRows) {
		e := core.Errorf(core.CodeInvalidKey, "the API key is not valid")
		e.KeyID = a.KeyID
		return auth.Key{}, e
	}
	if err != nil {
		return auth.Key{}, err
	}
	return key, auth.CheckState(&key, fromMicros(micros(a.Run.CreatedAt)))
}
