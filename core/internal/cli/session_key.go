package cli

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/keyfire/keyfire/auth/jwtauth"
)

// signingFile holds the keys that session tokens are signed with.
const signingFile = "session.json"

// signingDoc is that file.
type signingDoc struct {
	Keys []jwtauth.SigningKey `json:"keys"` // seeds in base64
}

// signingKeys reads the keys that session tokens are signed with, and makes one when there is no file. Losing it only logs everybody out, so a missing one is no reason
// to refuse to start.
func (d *dataDir) signingKeys() ([]jwtauth.SigningKey, error) {
	path := d.file(signingFile)
	raw, err := d.readSecret(signingFile)
	if errors.Is(err, fs.ErrNotExist) {
		key, kerr := jwtauth.NewSigningKey(rand.Reader, time.Now())
		if kerr != nil {
			return nil, kerr
		}
		keys := []jwtauth.SigningKey{key}
		return keys, d.saveSigningKeys(keys)
	}
	if err != nil {
		return nil, fmt.Errorf("keys of session tokens: %w", err)
	}
	var doc signingDoc
	// The decoder's own error could quote the file.
	if json.Unmarshal(raw, &doc) != nil || len(doc.Keys) == 0 {
		return nil, fmt.Errorf(`%s is damaged: want {"keys":[{"id":"...","seed":"<base64 of %d bytes>","created_at":"..."}]}; remove it for a new one, which logs everybody out`, path, jwtauth.SigningKeySize)
	}
	return doc.Keys, nil
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
