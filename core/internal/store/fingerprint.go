package store

import (
	"context"
	"database/sql"
	"errors"
	"strings"

	"github.com/keyfire/keyfire/core"
)

// fingerprintPrefix precedes the names of fingerprints among the settings.
const fingerprintPrefix = "fingerprint:"

const (
	sqlFingerprint  = `select value from settings where name = $1`
	sqlFingerprintW = `insert into settings (name, value) values ($1, $2) on conflict (name) do nothing`
)

// Agree records the fingerprints of what the servers on this database must have in common and the database does not hold, such as the key
// that secrets are sealed with, by name. What is recorded already must be the same: otherwise it returns CodeConflict with the names that
// differ in Fields, and records nothing. A fingerprint tells nothing of what it is of.
func (s *Store) Agree(ctx context.Context, fingerprints map[string][]byte) error {
	return s.write(ctx, &change{name: "compare fingerprints", lane: control}, func(t *tx) error {
		var differ []core.Field
		var missing []string
		for name, want := range fingerprints {
			var have []byte
			err := t.row(sqlFingerprint, fingerprintPrefix+name).Scan(&have)
			switch {
			case errors.Is(err, sql.ErrNoRows):
				missing = append(missing, name)
			case err != nil:
				return err
			case string(have) != string(want):
				differ = append(differ, core.Field{Pointer: name, Detail: "is another one than the database was used with"})
			}
		}
		if len(differ) > 0 {
			e := core.Errorf(core.CodeConflict, "the server's keys are not those that the database was used with")
			e.Fields = differ
			return e
		}
		for _, name := range missing {
			if err := t.put(sqlFingerprintW, fingerprintPrefix+name, fingerprints[name]); err != nil {
				return err
			}
		}
		return nil
	})
}

const sqlFingerprints = `select name from settings where name like 'fingerprint:%' order by name`

// Agreed returns the names of the fingerprints that are recorded.
func (s *Store) Agreed(ctx context.Context) ([]string, error) {
	return all(ctx, s, "read fingerprints", func(row scanner) (string, error) {
		name, err := scanText(row)
		return strings.TrimPrefix(name, fingerprintPrefix), err
	}, sqlFingerprints)
}
