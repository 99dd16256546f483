package cli

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"

	"github.com/keyfire/keyfire/core/internal/admin"
)

// vaultDoc is the file of the key that secrets are sealed with.
type vaultDoc struct {
	Key []byte `json:"key"` // base64 in the file
}

// vault reads the key that secrets are sealed with, and makes one when there is none; made says so. Without the key that they were sealed with, the secrets
// in a database cannot be read, and say so when a node asks for one.
func (d *dataDir) vault() (_ *admin.Vault, made bool, err error) {
	path := d.file(vaultFile)
	raw, err := d.readSecret(vaultFile)
	if errors.Is(err, fs.ErrNotExist) {
		key := make([]byte, admin.VaultKeySize)
		rand.Read(key) // never fails, by its contract
		made = true
		if raw, err = json.Marshal(vaultDoc{key}); err == nil {
			err = d.makeFile(vaultFile, append(raw, '\n'))
		}
		if err != nil {
			return nil, false, fmt.Errorf("make %s: %w", path, err)
		}
	}
	if err != nil {
		return nil, false, fmt.Errorf("key of the secrets: %w", err)
	}
	var doc vaultDoc
	// The decoder's own error could quote the file.
	if json.Unmarshal(raw, &doc) != nil || len(doc.Key) != admin.VaultKeySize {
		return nil, false, fmt.Errorf(`%s is damaged: want {"key":"<base64 of %d bytes>"}; put back your copy of it`, path, admin.VaultKeySize)
	}
	v, err := admin.NewVault(doc.Key)
	return v, made, err
}
