package store

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/keyfire/keyfire/core"
)

const (
	sqlUsageKnown = `select 1 from key_usage where key_id = $1 and day = $2 and kind = $3 and value = $4`
	sqlUsageCount = `select count(*) from key_usage where key_id = $1 and day = $2 and kind = $3`
	sqlUsageAdd   = `insert into key_usage (account, key_id, day, kind, value, count, last_at) values ($1, $2, $3, $4, $5, $6, $7)
		on conflict (key_id, day, kind, value) do update set count = key_usage.count + excluded.count,
		last_at = case when key_usage.last_at < excluded.last_at then excluded.last_at else key_usage.last_at end`
	sqlUsage      = `select day, kind, value, count, last_at from key_usage where account = $1 and key_id = $2 and day >= $3 order by day desc, kind, count desc, value`
	sqlUsageSweep = `delete from key_usage where (key_id, day, kind, value) in
		(select key_id, day, kind, value from key_usage where day < $1 order by day limit $2)`
	sqlKeyKnown    = `select count(*) from keys where account = $1 and id = $2`
	sqlSecretTouch = `update key_secrets set last_used_at = $1, last_source = $2, last_agent = $3 where public_id = $4 and last_used_at <= $1`

	sqlVerdictInsert = `insert into refusals (request_id, account, time, chain) values ($1, $2, $3, $4)
		on conflict (request_id) do update set chain = excluded.chain`
	sqlVerdict      = `select chain from refusals where account = $1 and request_id = $2`
	sqlVerdictSweep = `delete from refusals where request_id in (select request_id from refusals where time < $1 order by time limit $2)`
)

// How long what is only of passing interest is kept.
const (
	usageKept   = 400 // days
	refusalKept = 7 * 24 * time.Hour
)

// RecordKeyUsage adds to the counts of keys, and records when secrets were last used. What belongs to a key that does not exist is passed over.
func (s *Store) RecordKeyUsage(ctx context.Context, counts []core.KeyUsage, secrets []core.SecretUse) error {
	if len(counts)+len(secrets) == 0 {
		return nil
	}
	return s.write(ctx, &change{name: "record key usage", lane: intake, size: int64(len(counts)+len(secrets)) * 256}, func(t *tx) error {
		for i := range counts {
			if err := addUsage(t, counts[i]); err != nil {
				return err
			}
		}
		for _, u := range secrets {
			if err := t.put(sqlSecretTouch, micros(u.At), u.Source, u.Agent, u.PublicID); err != nil {
				return err
			}
		}
		return nil
	})
}

func addUsage(t *tx, u core.KeyUsage) error {
	var n int64
	if err := t.row(sqlKeyKnown, u.Account, u.KeyID).Scan(&n); err != nil || n == 0 {
		return err
	}
	err := t.row(sqlUsageKnown, u.KeyID, u.Day, string(u.Kind), u.Value).Scan(&n)
	if errors.Is(err, sql.ErrNoRows) {
		if err = t.row(sqlUsageCount, u.KeyID, u.Day, string(u.Kind)).Scan(&n); err == nil && n >= core.MaxUsageValues {
			u.Value = ""
		}
	}
	if err != nil {
		return err
	}
	return t.put(sqlUsageAdd, u.Account, u.KeyID, u.Day, string(u.Kind), u.Value, u.Count, micros(u.LastAt))
}

// KeyUsage returns the counts of a key from a day on, the newest day first. A key that the account does not have has none.
func (s *Store) KeyUsage(ctx context.Context, account, keyID string, from int64) ([]core.KeyUsage, error) {
	return all(ctx, s, "read key usage", func(row scanner) (core.KeyUsage, error) {
		u := core.KeyUsage{Account: account, KeyID: keyID}
		var last int64
		err := row.Scan(&u.Day, &u.Kind, &u.Value, &u.Count, &last)
		u.LastAt = fromMicros(last)
		return u, err
	}, sqlUsage, account, keyID, from)
}

// PutRefusal keeps why a request was refused, for a week. chain is JSON.
func (s *Store) PutRefusal(ctx context.Context, account, requestID string, at time.Time, chain string) error {
	return s.write(ctx, &change{name: "keep a refusal", lane: intake, size: int64(len(chain))}, func(t *tx) error {
		return t.put(sqlVerdictInsert, requestID, account, micros(at), chain)
	})
}

// Refusal returns what PutRefusal kept, CodeNotFound when the account has no such request.
func (s *Store) Refusal(ctx context.Context, account, requestID string) (string, error) {
	var chain string
	err := s.row(ctx, sqlVerdict, account, requestID).Scan(&chain)
	return chain, found(err, "refused request")
}

// sweepKeys deletes old usage and old refusals, batch by batch.
func (s *Store) sweepKeys(ctx context.Context) error {
	now := s.cfg.Now()
	if err := s.deleteAll(ctx, "sweep key usage", sqlUsageSweep, now.Unix()/86400-usageKept); err != nil {
		return err
	}
	return s.deleteAll(ctx, "sweep refusals", sqlVerdictSweep, micros(now.Add(-refusalKept)))
}
