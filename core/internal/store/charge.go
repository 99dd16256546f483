package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
)

const (
	sqlChargeLimited = `update keys set runs_used = runs_used + 1, credited = $1, refill_at = $2, rate_state = $3,
		last_used_at = case when last_used_at < $4 then $4 else last_used_at end where account = $5 and id = $6`
	sqlChargeAccount = `update accounts set rate_state = $1 where id = $2`

	// A run that is not there any more does not run.
	sqlRunningInsert = `insert into key_running (key_id, run_id) values ($1, $2)`
	sqlRunningDelete = `delete from key_running where key_id = $1 and run_id = $2`
	sqlRunning       = `select n.run_id, coalesce(r.finished_at, 1) from key_running n left join runs r on r.account = $1 and r.id = n.run_id where n.key_id = $2`

	// sqlAccountRunning counts no further than the limit asks. Its states are those of a run that has not ended.
	sqlAccountRunning = `select count(*) from (select 1 from runs where status <> 'succeeded' and account = $1
		and status in ('scheduled', 'queued', 'running', 'waiting', 'cancelling') limit $2) as open`
)

// charge takes a run from the key, if one asks for it, and from the account, or says why not. Admitted.KeyChanged and a refusal both mean that nothing was
// written.
func charge(t *tx, a *core.Admission) (core.Admitted, error) {
	run := &a.Run
	var key *auth.Key
	if a.KeyID != "" {
		// A charge that depends on other runs of the workflow was not tried yet.
		if !a.KeyLimited && exclusive(a) {
			charged, err := t.exec(sqlCharge, micros(run.CreatedAt), run.Account, a.KeyID, run.Workflow.ID, a.KeyRevision)
			if err != nil || charged > 0 {
				return core.Admitted{}, err
			}
		}
		// One of the statement's conditions does not hold, or there are more limits than it looks at. The reasons are found in the order in which a
		// caller is told.
		k, err := activeKey(t, a)
		if err != nil {
			return core.Admitted{}, err
		}
		if a.KeyRevision != 0 && k.Revision != a.KeyRevision {
			return core.Admitted{KeyChanged: true}, nil
		}
		key = &k
	}
	limited, err := workflowOpen(t, run)
	if err != nil {
		return core.Admitted{}, err
	}
	var account *core.Account
	if limited {
		acc, err := scanAccount(t.row(sqlAccountState, run.Account))
		if err != nil {
			return core.Admitted{}, err
		}
		account = &acc
	}
	return chargeLimited(t, a, key, account)
}

// chargeLimited applies every limit of a key and of an account, either of which may be nil. All are looked at before anything is written.
func chargeLimited(t *tx, a *core.Admission, key *auth.Key, account *core.Account) (core.Admitted, error) {
	var running atOnce
	var ended []string
	if key != nil && key.MaxConcurrent > 0 {
		rows, err := t.query(sqlRunning, a.Run.Account, a.KeyID)
		if err != nil {
			return core.Admitted{}, err
		}
		if running.key, ended, err = runningRuns(rows); err != nil {
			return core.Admitted{}, err
		}
	}
	if account != nil && account.MaxConcurrent > 0 {
		if err := t.row(sqlAccountRunning, account.ID, account.MaxConcurrent).Scan(&running.account); err != nil {
			return core.Admitted{}, err
		}
	}
	now, err := t.db.now(fromMicros(micros(a.Run.CreatedAt)))
	if err != nil {
		return core.Admitted{}, err
	}
	j, err := judge(key, account, running, now)
	if err != nil {
		return core.Admitted{}, err
	}
	if key != nil {
		if account == nil && !key.Limited() {
			return core.Admitted{}, fmt.Errorf("key %s was not charged, and no reason can be found", key.ID)
		}
		if err := writeCharge(t, a, key, j, ended); err != nil {
			return core.Admitted{}, err
		}
	}
	if account != nil && len(account.RateLimits) > 0 {
		text, err := encode(j.account)
		if err != nil {
			return core.Admitted{}, err
		}
		if err := t.put(sqlChargeAccount, text, account.ID); err != nil {
			return core.Admitted{}, err
		}
	}
	return core.Admitted{Limits: j.limits}, nil
}

// atOnce is how many runs have not ended.
type atOnce struct{ key, account int64 }

// judgement is what a run would leave of the limits.
type judgement struct {
	limits       []core.LimitState
	key, account map[string]int64 // states of the rate limits
	quota        core.Quota
}

// judge takes a run from the limits of a key and of an account, either of which may be nil: the rates of both, then how many runs at once, then how many the
// key may start in all. The error is the refusal of the first kind that has none left, with the limits as they stand, since it takes nothing.
func judge(key *auth.Key, account *core.Account, at atOnce, now time.Time) (j judgement, err error) {
	var wait time.Duration
	var limiting string
	take := func(limits []core.RateLimit, states map[string]int64, prefix, whose string) map[string]int64 {
		left := make(map[string]int64, len(limits))
		for _, limit := range limits {
			after, at, ok := limit.Take(states[limit.Name], now)
			at.Name = prefix + at.Name
			left[limit.Name] = after
			j.limits = append(j.limits, at)
			if !ok && at.Reset > wait {
				wait, limiting = at.Reset, fmt.Sprintf("this %s's rate limit %q is used up for now", whose, limit.Name)
			}
		}
		return left
	}
	count := func(most, running int64, prefix, whose string) error {
		if most == 0 {
			return nil
		}
		j.limits = append(j.limits, core.LimitState{Name: prefix + "concurrency", Kind: core.LimitConcurrency, Limit: most, Remaining: max(most-running-1, 0)})
		if running < most {
			return nil
		}
		return refuseLimit(core.Errorf(core.CodeConcurrencyLimited, "as many runs of this %s as may execute at once do so: %d", whose, running), key, standing(key, account, &at, now), time.Second)
	}
	if key != nil {
		j.key = take(key.RateLimits, key.RateState, "", "key")
	}
	if account != nil {
		j.account = take(account.RateLimits, account.RateState, core.AccountLimit, "account")
	}
	if limiting != "" {
		return j, refuseLimit(core.Errorf(core.CodeRateLimited, "%s", limiting), key, standing(key, account, nil, now), wait)
	}
	if key != nil {
		err = count(key.MaxConcurrent, at.key, "", "key")
	}
	if err == nil && account != nil {
		err = count(account.MaxConcurrent, at.account, core.AccountLimit, "account")
	}
	if err != nil || key == nil {
		return j, err
	}
	j.quota = key.Quota().At(now)
	if j.quota.Max == 0 {
		return j, nil
	}
	left := quotaState(j.quota, now)
	if left.Remaining > 0 {
		left.Remaining--
		j.limits = append(j.limits, left)
		return j, nil
	}
	e := core.Errorf(core.CodeQuotaExhausted, "this key has used up its runs: %d of %d", j.quota.Max, j.quota.Max)
	if j.quota.Refill != nil {
		e.Message += "; there are more from " + j.quota.RefillAt.Format(time.RFC3339)
	}
	return j, refuseLimit(e, key, standing(key, account, &at, now), left.Reset)
}

// standing is where a run that is refused leaves the limits: as they are. Without running, runs at once are left out: a refusal by a rate is repeated
// for as long as it holds, while runs end.
func standing(key *auth.Key, account *core.Account, running *atOnce, now time.Time) (limits []core.LimitState) {
	add := func(rates []core.RateLimit, states map[string]int64, prefix string) {
		for _, l := range rates {
			s := l.State(states[l.Name], now)
			s.Name = prefix + s.Name
			limits = append(limits, s)
		}
	}
	count := func(most, running int64, prefix string) {
		if most > 0 {
			limits = append(limits, core.LimitState{Name: prefix + "concurrency", Kind: core.LimitConcurrency, Limit: most, Remaining: max(most-running, 0)})
		}
	}
	if key != nil {
		add(key.RateLimits, key.RateState, "")
	}
	if account != nil {
		add(account.RateLimits, account.RateState, core.AccountLimit)
	}
	if running != nil && key != nil {
		count(key.MaxConcurrent, running.key, "")
	}
	if running != nil && account != nil {
		count(account.MaxConcurrent, running.account, core.AccountLimit)
	}
	if key != nil {
		if q := key.Quota().At(now); q.Max > 0 {
			limits = append(limits, quotaState(q, now))
		}
	}
	return limits
}

func quotaState(q core.Quota, now time.Time) core.LimitState {
	s := core.LimitState{Name: "quota", Kind: core.LimitQuota, Limit: q.Max, Remaining: q.Left()}
	if q.Refill != nil {
		s.Reset = q.RefillAt.Sub(now)
	}
	return s
}

// Limits returns where an account and, unless its id is "", one of its keys would stand after a run at the time at, or the refusal that the run would meet, as
// an admission would. Nothing is taken. CodeNotFound when the account has no such key.
func (s *Store) Limits(ctx context.Context, account, id string, at time.Time) ([]core.LimitState, error) {
	var key *auth.Key
	var running atOnce
	if id != "" {
		var err error
		if key, err = s.Key(ctx, account, id); err != nil {
			return nil, err
		}
		if key.MaxConcurrent > 0 {
			rows, err := s.bulk.QueryContext(s.listing(ctx), sqlRunning, account, id) //nolint:rowserrcheck // runningRuns does
			if err != nil {
				return nil, unavailable("count running runs", err)
			}
			if running.key, _, err = runningRuns(rows); err != nil {
				return nil, unavailable("count running runs", err)
			}
		}
	}
	var limited *core.Account
	switch acc, err := scanAccount(s.row(ctx, sqlAccountState, account)); {
	case errors.Is(err, sql.ErrNoRows): // only a configuration knows it
	case err != nil:
		return nil, unavailable("read account", err)
	case acc.Limited():
		limited = &acc
		if acc.MaxConcurrent > 0 {
			if err := s.row(ctx, sqlAccountRunning, account, acc.MaxConcurrent).Scan(&running.account); err != nil {
				return nil, unavailable("count running runs", err)
			}
		}
	}
	if s.cfg.Shared && s.cfg.URL != "" {
		var us int64
		if err := s.row(ctx, sqlPGClock).Scan(&us); err != nil {
			return nil, unavailable("read the clock", err)
		}
		at = fromMicros(us)
	}
	j, err := judge(key, limited, running, at)
	return j.limits, err
}

func writeCharge(t *tx, a *core.Admission, key *auth.Key, j judgement, ended []string) error {
	text := ""
	if len(j.key) > 0 {
		var err error
		if text, err = encode(j.key); err != nil {
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
	return t.put(sqlRunningInsert, key.ID, a.Run.ID)
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
	if key != nil {
		e.KeyID = key.ID
	}
	e.Limits, e.RetryAfter = limits, after
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
