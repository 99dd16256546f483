package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/keyfire/keyfire/core"
)

const callbackColumns = `account, id, run_id, url, state, attempts, next_at, created_at, updated_at, log`

const (
	sqlCallbackInsert = `insert into callbacks (` + callbackColumns + `) values ($1, $2, $3, $4, $5, 0, 0, $6, $6, '[]')`
	sqlRefusals       = `select count(*) from callback_refusals where account = $1 and url = $2`
	sqlCallbacksReady = `update callbacks set state = 'pending', next_at = $1, updated_at = $1 where account = $2 and run_id = $3 and state = 'waiting'`
	sqlCallbacks      = `select ` + callbackColumns + ` from callbacks where next_at > 0`
	sqlCallbacksDue   = ` and next_at <= $%d order by next_at limit $%d`
	sqlCallbackLease  = `update callbacks set next_at = $1 where account = $2 and id = $3 and next_at > 0`
	sqlCallbackRecord = `update callbacks set state = $1, attempts = $2, next_at = $3, updated_at = $4, log = $5 where account = $6 and id = $7`
	sqlCallback       = `select ` + callbackColumns + ` from callbacks where account = $1 and id = $2`
	sqlCallbacksOfRun = `select ` + callbackColumns + ` from callbacks where account = $1 and run_id = $2 order by id`
	sqlCallbackNext   = `select coalesce(min(next_at), 0) from callbacks where next_at > 0`
	sqlNotBegin       = ` and substr(lower(url), 1, length($%[1]d)) <> $%[1]d`

	sqlRefusalInsert = `insert into callback_refusals (account, url, at) values ($1, $2, $3) on conflict (account, url) do nothing`
	sqlRefusalDelete = `delete from callback_refusals where account = $1 and url = $2`
	sqlRefusalApply  = `update callbacks set state = 'disabled', next_at = 0, updated_at = $1 where account = $2 and url = $3 and state in ('waiting', 'pending')`
)

// callbackLog is how many attempts of a callback are kept.
const callbackLog = 20

func insertCallback(t *tx, c *core.Callback) error {
	var refused int
	if err := t.row(sqlRefusals, c.Account, c.URL).Scan(&refused); err != nil {
		return err
	}
	state := core.CallbackWaiting
	if refused > 0 {
		state = core.CallbackDisabled
	}
	_, err := t.exec(sqlCallbackInsert, c.Account, c.ID, c.Run, c.URL, string(state), micros(c.CreatedAt))
	return err
}

// dueCallbacks makes the callbacks of a run that has ended due.
func dueCallbacks(t *tx, account, run string, at time.Time) error {
	return t.put(sqlCallbacksReady, micros(at), account, run)
}

// TakeCallbacks returns those that pick chooses of the callbacks that are due, of which it is shown the first ones up to the limit, and puts them off until the given time, so that no
// other sender takes them meanwhile. Those whose URL, in lower case, begins with one of busy are passed over. It also returns when the next one is due; zero when there is none.
// pick may be called more than once, and the last choice counts.
func (s *Store) TakeCallbacks(ctx context.Context, now, until time.Time, limit int, busy []string, pick func([]core.Callback) []core.Callback) (due []core.Callback, next time.Time, err error) {
	var first int64
	var others string
	args := make([]any, 0, len(busy)+2)
	for _, b := range busy {
		args = append(args, b)
		others += fmt.Sprintf(sqlNotBegin, len(args))
	}
	if err := s.row(ctx, sqlCallbackNext+others, args...).Scan(&first); err != nil {
		return nil, time.Time{}, unavailable("list callbacks", err)
	}
	if first == 0 || fromMicros(first).After(now) {
		return nil, fromMicros(first), nil
	}
	args = append(args, micros(now), limit)
	query := sqlCallbacks + others + fmt.Sprintf(sqlCallbacksDue, len(args)-1, len(args))
	err = s.write(ctx, &change{name: "take callbacks", lane: results}, func(t *tx) error {
		ready, err := rowsOf(t, scanCallback, query, args...)
		if err != nil {
			return err
		}
		due = pick(ready)
		for i := range due {
			if _, err := t.exec(sqlCallbackLease, micros(until), due[i].Account, due[i].ID); err != nil {
				return err
			}
		}
		return nil
	})
	return due, now, err
}

// RecordCallback records an attempt to deliver a callback that was taken until the given time: the attempt, which is the last one of its log, its state, and when it is sent next. When somebody
// has asked for another delivery since, or has taken it over, that stands, and only the attempt is added. When the receiver wants no more, its other callbacks are disabled with it.
func (s *Store) RecordCallback(ctx context.Context, c *core.Callback, until time.Time) error {
	attempt := c.Log[len(c.Log)-1]
	return s.write(ctx, &change{name: "record callback", lane: results, size: 1024}, func(t *tx) error {
		is, err := scanCallback(t.row(sqlCallback, c.Account, c.ID))
		if errors.Is(err, sql.ErrNoRows) {
			return nil // the run may be gone, and its account with it, while the callback is sent
		}
		if err != nil {
			return err
		}
		mine := is.NextAt.Equal(until)
		if mine {
			is.State, is.NextAt, is.UpdatedAt = c.State, c.NextAt, c.UpdatedAt
		}
		is.Attempts++
		attempt.Number = is.Attempts
		is.Log = append(is.Log, attempt)
		log, err := encode(is.Log[max(0, len(is.Log)-callbackLog):])
		if err != nil {
			return err
		}
		_, err = t.exec(sqlCallbackRecord, string(is.State), is.Attempts, micros(is.NextAt), micros(is.UpdatedAt), log, c.Account, c.ID)
		if err != nil || !mine || c.State != core.CallbackDisabled {
			return err
		}
		if _, err := t.exec(sqlRefusalInsert, c.Account, c.URL, micros(c.UpdatedAt)); err != nil {
			return err
		}
		_, err = t.exec(sqlRefusalApply, micros(c.UpdatedAt), c.Account, c.URL)
		return err
	})
}

// Callbacks returns the callbacks of a run with their logs, oldest first.
func (s *Store) Callbacks(ctx context.Context, account, run string) ([]core.Callback, error) {
	return all(ctx, s, "list callbacks", scanCallback, sqlCallbacksOfRun, account, run)
}

// Redeliver has a callback sent once more, even one that was delivered, or whose receiver wanted no more. CodeNotFound when the run has no
// such callback, CodeConflict while its run has not ended.
func (s *Store) Redeliver(ctx context.Context, account, run, id string, at time.Time, ev core.AuditEvent) (core.Callback, error) {
	var c core.Callback
	err := s.write(ctx, &change{name: "redeliver callback", lane: control}, func(t *tx) (err error) {
		c, err = scanCallback(t.row(sqlCallback, account, id))
		switch {
		case err != nil:
			return notFound(err, "callback")
		case c.Run != run:
			return core.Errorf(core.CodeNotFound, "there is no such callback")
		case c.State == core.CallbackWaiting:
			return core.Errorf(core.CodeConflict, "the run has not ended, so there is nothing to deliver yet")
		}
		log, err := encode(c.Log)
		if err != nil {
			return err
		}
		c.State, c.NextAt, c.UpdatedAt = core.CallbackPending, at, at
		if _, err := t.exec(sqlCallbackRecord, string(c.State), c.Attempts, micros(at), micros(at), log, account, id); err != nil {
			return err
		}
		if _, err := t.exec(sqlRefusalDelete, account, c.URL); err != nil {
			return err
		}
		return t.audit(ev)
	})
	return c, err
}

func scanCallback(row scanner) (core.Callback, error) {
	var (
		c                      core.Callback
		next, created, updated int64
		log                    []byte
	)
	if err := row.Scan(&c.Account, &c.ID, &c.Run, &c.URL, &c.State, &c.Attempts, &next, &created, &updated, &log); err != nil {
		return core.Callback{}, err
	}
	c.NextAt, c.CreatedAt, c.UpdatedAt = fromMicros(next), fromMicros(created), fromMicros(updated)
	return c, json.Unmarshal(log, &c.Log)
}
