package admin

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
)

// VaultKeySize is the length of a Vault's key in bytes.
const VaultKeySize = 32

// Vault seals the values of secrets before they are stored, and opens them for the runtime. Its key lies outside of the database, so that a copy of
// the database tells no secret, and its values are bound to their account and name, so that someone who can write to the database cannot
// pass one secret off as another. It is safe for concurrent use.
//
// A sealed value is a format byte, the first four bytes of the key's SHA-256, and AES-256-GCM's nonce, ciphertext and tag.
type Vault struct {
	aead        cipher.AEAD
	head        []byte // format and key id
	fingerprint []byte
}

// NewVault returns a Vault with a key of VaultKeySize random bytes.
func NewVault(key []byte) (*Vault, error) {
	if len(key) != VaultKeySize {
		return nil, fmt.Errorf("vault: the key has %d bytes, want %d", len(key), VaultKeySize)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("vault: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("vault: %w", err)
	}
	sum := sha256.Sum256(key)
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte("keyfire vault fingerprint"))
	return &Vault{aead: aead, head: append([]byte{1}, sum[:4]...), fingerprint: mac.Sum(nil)[:8]}, nil
}

// Fingerprint returns eight bytes that tell the key from others and nothing else of it.
func (v *Vault) Fingerprint() []byte { return bytes.Clone(v.fingerprint) }

func (v *Vault) bound(account, name string) []byte {
	return append(append(bytes.Clone(v.head), account...), "\x00"+name...)
}

// Seal returns the value in a form that only a Vault with the same key opens, for this account and name.
func (v *Vault) Seal(account, name, value string) []byte {
	return v.aead.Seal(bytes.Clone(v.head), nil, []byte(value), v.bound(account, name)) //nolint:gosec // this AEAD takes no nonce: it makes one at random
}

// errOtherKey says that the key file is not the one that a value was sealed with.
var errOtherKey = errors.New("it was sealed with another key: restore the key file from the same backup as the database, or set the secret again")

// Open returns the value that was sealed for this account and name.
func (v *Vault) Open(account, name string, sealed []byte) (string, error) {
	rest, ok := bytes.CutPrefix(sealed, v.head)
	if !ok {
		return "", errOtherKey
	}
	value, err := v.aead.Open(nil, nil, rest, v.bound(account, name))
	if err != nil {
		return "", errors.New("it was changed since it was sealed")
	}
	return string(value), nil
}

// Source returns what a runtime reads secrets with. Its function gives CodeNotFound for a secret that is not set.
func (v *Vault) Source(store interface {
	SealedSecret(ctx context.Context, account, name string) ([]byte, error)
},
) func(ctx context.Context, account, name string) (string, error) {
	return func(ctx context.Context, account, name string) (string, error) {
		sealed, err := store.SealedSecret(ctx, account, name)
		if err != nil {
			return "", err
		}
		value, err := v.Open(account, name, sealed)
		if err != nil {
			return "", fmt.Errorf("secret %s: %w", name, err)
		}
		return value, nil
	}
}
