package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
)

const keyColumns = `id, account, type, public_id, hash, pepper, last4, name, description, scopes, allow_query, max_runs, runs_used,
	created_at, created_by, expires_at, revoked_at, revoked_by, revoked_why, last_used_at`

const (
	sqlKeyInsert = `insert into keys (` + keyColumns + `)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20)`
	sqlKeyTaken      = `select count(*) from keys where id = $1 or public_id = $2`
	sqlKeyByPublicID = `select ` + keyColumns + ` from keys where public_id = $1`
	sqlKey           = `select ` + keyColumns + ` from keys where account = $1 and id = $2`
	sqlKeys          = `select ` + keyColumns + ` from keys`
	sqlKeyRevoke     = `update keys set revoked_at = $1, revoked_by = $2, revoked_why = $3 where account = $4 and id = $5 and revoked_at = 0`
	sqlKeyTouch      = `update keys set last_used_at = $1 where id = $2 and last_used_at < $1`
)

// CreateKey adds a key, which has used no run yet whatever k says. It is CodeConflict when a key with that id or public id exists.
func (s *Store) CreateKey(ctx context.Context, k auth.Key, ev core.AuditEvent) error {
	scopes, err := encode(k.Scopes)
	if err != nil {
		return fmt.Errorf("create key: %w", err)
	}
	return s.write(ctx, &change{name: "create key", lane: control}, func(t *tx) error {
		var taken int64
		if err := t.row(sqlKeyTaken, k.ID, k.PublicID).Scan(&taken); err != nil {
			return err
		}
		if taken > 0 {
			return core.Errorf(core.CodeConflict, "a key with this id exists already")
		}
		if err := t.put(sqlKeyInsert, k.ID, k.Account, string(k.Type), k.PublicID, k.Hash, k.Pepper, k.Last4, k.Name, k.Description,
			scopes, k.AllowQuery, k.MaxRuns, 0, micros(k.CreatedAt), k.CreatedBy, micros(k.ExpiresAt),
			micros(k.RevokedAt), k.RevokedBy, k.RevokedWhy, micros(k.LastUsedAt)); err != nil {
			return err
		}
		return t.audit(ev)
	})
}

// KeyByPublicID returns the key whose text has the given public id, CodeNotFound when there is none. It is the one look-up
// without an account: which account it is, is what the key says.
func (s *Store) KeyByPublicID(ctx context.Context, publicID string) (*auth.Key, error) {
	k, err := scanKey(s.row(ctx, sqlKeyByPublicID, publicID))
	return keyFound(k, err)
}

// Key returns a key of the account, CodeNotFound when there is none with that id.
func (s *Store) Key(ctx context.Context, account, id string) (*auth.Key, error) {
	k, err := scanKey(s.row(ctx, sqlKey, account, id))
	return keyFound(k, err)
}

func keyFound(k auth.Key, err error) (*auth.Key, error) {
	if err != nil {
		return nil, found(err, "key")
	}
	return &k, nil
}

// Keys returns a page of the account's keys, newest first.
func (s *Store) Keys(ctx context.Context, account string, p core.Page) (core.List[auth.Key], error) {
	return read(ctx, s, listing[auth.Key]{
		name: "keys", account: account,
		columns: sqlKeys, where: "account = $1", args: []any{account},
		key: "id", keyOf: func(k *auth.Key) string { return k.ID },
		scan: scanKey,
	}, p)
}

// RevokeKey revokes a key at ev.Time in the name of ev.Actor and returns it. From its return on, no admission with the key
// succeeds. A key that is revoked already is returned unchanged, and nothing is written. CodeNotFound when the account has no such key.
func (s *Store) RevokeKey(ctx context.Context, account, id, why string, ev core.AuditEvent) (*auth.Key, error) {
	var k auth.Key
	err := s.write(ctx, &change{name: "revoke key", lane: control, essential: true}, func(t *tx) (err error) {
		if k, err = scanKey(t.row(sqlKey, account, id)); err != nil {
			return notFound(err, "key")
		}
		if !k.RevokedAt.IsZero() {
			return nil
		}
		k.RevokedAt, k.RevokedBy, k.RevokedWhy = fromMicros(micros(ev.Time)), ev.Actor, why
		if err := t.put(sqlKeyRevoke, micros(ev.Time), ev.Actor, why, account, id); err != nil {
			return err
		}
		return t.audit(ev)
	})
	if err != nil {
		return nil, err
	}
	return &k, nil
}

// TouchKeys records when keys, by id, were last used. A time older than the recorded one changes nothing, and an id that does
// not exist is passed over. Admissions record the use of their key themselves.
func (s *Store) TouchKeys(ctx context.Context, used map[string]time.Time) error {
	if len(used) == 0 {
		return nil
	}
	return s.write(ctx, &change{name: "touch keys", lane: intake, size: int64(len(used)) * 64}, func(t *tx) error {
		for id, at := range used {
			if err := t.put(sqlKeyTouch, micros(at), id); err != nil {
				return err
			}
		}
		return nil
	})
}

func scanKey(row scanner) (auth.Key, error) {
	var (
		k                                   auth.Key
		scopes                              []byte
		created, expires, revoked, lastUsed int64
	)
	if err := row.Scan(&k.ID, &k.Account, &k.Type, &k.PublicID, &k.Hash, &k.Pepper, &k.Last4, &k.Name, &k.Description, &scopes, &k.AllowQuery,
		&k.MaxRuns, &k.RunsUsed, &created, &k.CreatedBy, &expires, &revoked, &k.RevokedBy, &k.RevokedWhy, &lastUsed); err != nil {
		return auth.Key{}, err
	}
	if err := json.Unmarshal(scopes, &k.Scopes); err != nil {
		return auth.Key{}, fmt.Errorf("scopes of key %s: %w", k.ID, err)
	}
	k.CreatedAt, k.ExpiresAt, k.RevokedAt, k.LastUsedAt = fromMicros(created), fromMicros(expires), fromMicros(revoked), fromMicros(lastUsed)
	return k, nil
}

// notFound makes the refusal of an operation on something that does not exist. Within a transaction other errors stay as they
// are: the writer classifies them.
func notFound(err error, what string) error {
	if errors.Is(err, sql.ErrNoRows) {
		return found(err, what)
	}
	return err
}
