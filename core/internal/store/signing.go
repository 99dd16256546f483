package store

import (
	"context"
	"strings"
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

// PutSigningKeys stores the keys that the servers on this database sign session tokens with, sealed, by id, and removes others. One that is there stays as it is.
func (s *Store) PutSigningKeys(ctx context.Context, keys map[string][]byte, remove []string) error {
	return s.write(ctx, &change{name: "store signing keys", lane: control}, func(t *tx) error {
		for id, sealed := range keys {
			if err := t.put(sqlSigningW, signingPrefix+id, sealed); err != nil {
				return err
			}
		}
		for _, id := range remove {
			if err := t.put(sqlSigningD, signingPrefix+id); err != nil {
				return err
			}
		}
		return nil
	})
}
