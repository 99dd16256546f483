package cli

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/keyfire/keyfire/auth/jwtauth"
	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/admin"
	"github.com/keyfire/keyfire/core/internal/store"
)

// signingFile holds the keys that session tokens are signed with.
const signingFile = "session.json"

// signingDoc is that file.
type signingDoc struct {
	Keys []jwtauth.SigningKey `json:"keys"` // seeds in base64
}

// signingKeys reads the keys that session tokens are signed with, and makes one when there is no file; made says so. Losing it only logs everybody out, so a missing one is no
// reason to refuse to start.
func (d *dataDir) signingKeys() (keys []jwtauth.SigningKey, made bool, err error) {
	path := d.file(signingFile)
	raw, err := d.readSecret(signingFile)
	if errors.Is(err, fs.ErrNotExist) {
		key, kerr := jwtauth.NewSigningKey(rand.Reader, time.Now())
		if kerr != nil {
			return nil, false, kerr
		}
		keys = []jwtauth.SigningKey{key}
		return keys, true, d.saveSigningKeys(keys)
	}
	if err != nil {
		return nil, false, fmt.Errorf("keys of session tokens: %w", err)
	}
	var doc signingDoc
	// The decoder's own error could quote the file.
	if json.Unmarshal(raw, &doc) != nil || len(doc.Keys) == 0 {
		return nil, false, fmt.Errorf(`%s is damaged: want {"keys":[{"id":"...","seed":"<base64 of %d bytes>","created_at":"..."}]}; remove it for a new one, which logs everybody out`, path, jwtauth.SigningKeySize)
	}
	return doc.Keys, false, nil
}

// commonKeys is where servers on one database have the keys of session tokens in common, sealed as secrets are. Each keeps them in its file too.
type commonKeys struct {
	store *store.Store
	vault *admin.Vault
	event func(action, object string, at time.Time) core.AuditEvent
}

// sealedAs is the name that a key is sealed under, beside those of secrets, which have no slash and belong to an account.
func sealedAs(id string) string { return signingFile + "/" + id }

// Load implements jwtauth.SharedKeys.
func (c commonKeys) Load(ctx context.Context) ([]jwtauth.SigningKey, error) {
	all, err := c.store.SigningKeys(ctx)
	if err != nil {
		return nil, err
	}
	keys := make([]jwtauth.SigningKey, 0, len(all))
	for id, sealed := range all {
		text, err := c.vault.Open("", sealedAs(id), sealed)
		if err != nil {
			return nil, fmt.Errorf("key %s of session tokens in the database: %w", id, err)
		}
		var key jwtauth.SigningKey
		if err := json.Unmarshal([]byte(text), &key); err != nil {
			return nil, fmt.Errorf("key %s of session tokens in the database: %w", id, err)
		}
		keys = append(keys, key)
	}
	return keys, nil
}

// Store implements jwtauth.SharedKeys.
func (c commonKeys) Store(ctx context.Context, keys []jwtauth.SigningKey, remove []string) error {
	sealed := make(map[string][]byte, len(keys))
	for _, key := range keys {
		raw, err := json.Marshal(key)
		if err != nil {
			return err
		}
		sealed[key.ID] = c.vault.Seal("", sealedAs(key.ID), string(raw))
	}
	return c.store.PutSigningKeys(ctx, sealed, remove, c.event(core.ActionSessionShare, "server", time.Now().UTC()))
}

// saveSigningKeys replaces the file.
func (d *dataDir) saveSigningKeys(keys []jwtauth.SigningKey) error {
	raw, err := json.Marshal(signingDoc{keys})
	if err != nil {
		return err
	}
	return replaceFile(d.file(signingFile), 0o600, append(raw, '\n'))
}

// replaceFile writes a file, durably, in place of one that may be there: the old or the new one is there whole, whatever happens.
func replaceFile(path string, mode os.FileMode, raw []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".new-*") // with mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(raw)
	if err == nil {
		err = errors.Join(f.Chmod(mode), f.Sync())
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return syncDir(filepath.Dir(path))
}
