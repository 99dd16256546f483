package store

import (
	"context"
	"strings"

	"github.com/keyfire/keyfire/core"
)

// signingPrefix precedes the ids of signing keys among the settings.
const signingPrefix = "signing:"

const (
	sqlSigning  = `select name, value from settings where name like 'signing:%' order by name`
	sqlSigningW = `insert into settings (name, value) values ($1, $2) on conflict (name) do nothing`
	sqlSigningD = `delete from settings where name = $1`
)

// SigningKeys returns what PutSigningKeys has stored, by id.
func (s *Store) SigningKeys(ctx context.Context) (map[string][]byte, error) {
	keys := make(map[string][]byte)
	_, err := all(ctx, s, "read signing keys", func(row scanner) (struct{}, error) {
		var id string
		var sealed []byte
		err := row.Scan(&id, &sealed)
		keys[strings.TrimPrefix(id, signingPrefix)] = sealed
		return struct{}{}, err
	}, sqlSigning)
	return keys, err
}

// PutSigningKeys stores the keys that the servers on this database sign session tokens with, sealed, by id, and removes others. One that is there stays as it is. The event is
// committed with the change, if there is one.
func (s *Store) PutSigningKeys(ctx context.Context, keys map[string][]byte, remove []string, ev core.AuditEvent) error {
	return s.write(ctx, &change{name: "store signing keys", lane: control}, func(t *tx) error {
		var changed int64
		for id, sealed := range keys {
			n, err := t.exec(sqlSigningW, signingPrefix+id, sealed)
			if err != nil {
				return err
			}
			changed += n
		}
		for _, id := range remove {
			n, err := t.exec(sqlSigningD, signingPrefix+id)
			if err != nil {
				return err
			}
			changed += n
		}
		if changed == 0 {
			return nil
		}
		return t.audit(ev)
	})
}
