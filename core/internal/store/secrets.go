package store

import (
	"context"
	"database/sql"
	"errors"

	"github.com/keyfire/keyfire/core"
)

const (
	sqlSecretPut = `insert into secrets (account, name, sealed, created_at, updated_at, updated_by) values ($1, $2, $3, $4, $4, $5)
		on conflict (account, name) do update set sealed = excluded.sealed, updated_at = excluded.updated_at, updated_by = excluded.updated_by`
	sqlSecret       = `select name, created_at, updated_at, updated_by from secrets where account = $1 and name = $2`
	sqlSecrets      = `select name, created_at, updated_at, updated_by from secrets where account = $1 order by name`
	sqlSecretCount  = `select count(*) from secrets where account = $1`
	sqlSecretsAll   = `select count(*) from secrets`
	sqlSecretSealed = `select sealed from secrets where account = $1 and name = $2`
	sqlSecretDelete = `delete from secrets where account = $1 and name = $2`
)

// PutSecret sets a secret to a sealed value, at ev.Time in the name of ev.Actor, and reports whether it is new. CodeQuotaExhausted when
// the account has core.MaxSecrets already.
func (s *Store) PutSecret(ctx context.Context, account, name string, sealed []byte, ev core.AuditEvent) (secret core.Secret, created bool, err error) {
	err = s.write(ctx, &change{name: "put secret", lane: control, size: int64(len(sealed))}, func(t *tx) error {
		created = false
		switch _, err := scanSecret(account, t.row(sqlSecret, account, name)); {
		case errors.Is(err, sql.ErrNoRows):
			var n int64
			if err := t.row(sqlSecretCount, account).Scan(&n); err != nil {
				return err
			}
			if n >= core.MaxSecrets {
				return core.Errorf(core.CodeQuotaExhausted, "the account has %d secrets, which is as many as it may have", n)
			}
			created = true
		case err != nil:
			return err
		}
		if err := t.put(sqlSecretPut, account, name, sealed, micros(ev.Time), ev.Actor); err != nil {
			return err
		}
		var err error
		if secret, err = scanSecret(account, t.row(sqlSecret, account, name)); err != nil {
			return err
		}
		return t.audit(ev)
	})
	if err != nil {
		return core.Secret{}, false, err
	}
	return secret, created, nil
}

// DeleteSecret removes a secret. CodeNotFound when the account has none of that name.
func (s *Store) DeleteSecret(ctx context.Context, account, name string, ev core.AuditEvent) error {
	return s.write(ctx, &change{name: "delete secret", lane: control, essential: true}, func(t *tx) error {
		if _, err := scanSecret(account, t.row(sqlSecret, account, name)); err != nil {
			return notFound(err, "secret")
		}
		if err := t.put(sqlSecretDelete, account, name); err != nil {
			return err
		}
		return t.audit(ev)
	})
}

// Secrets returns all secrets of an account, without their values, by name. There are at most core.MaxSecrets.
func (s *Store) Secrets(ctx context.Context, account string) ([]core.Secret, error) {
	return all(ctx, s, "list secrets", func(row scanner) (core.Secret, error) { return scanSecret(account, row) }, sqlSecrets, account)
}

// CountSecrets returns how many secrets all accounts have together.
func (s *Store) CountSecrets(ctx context.Context) (int, error) {
	var n int64
	err := s.row(ctx, sqlSecretsAll).Scan(&n)
	return int(n), unavailable("count secrets", err)
}

// SealedSecret returns the sealed value of a secret. CodeNotFound when the account has none of that name.
func (s *Store) SealedSecret(ctx context.Context, account, name string) (sealed []byte, err error) {
	return sealed, found(s.row(ctx, sqlSecretSealed, account, name).Scan(&sealed), "secret")
}

func scanSecret(account string, row scanner) (core.Secret, error) {
	secret := core.Secret{Account: account}
	var created, updated int64
	if err := row.Scan(&secret.Name, &created, &updated, &secret.UpdatedBy); err != nil {
		return core.Secret{}, err
	}
	secret.CreatedAt, secret.UpdatedAt = fromMicros(created), fromMicros(updated)
	return secret, nil
}
