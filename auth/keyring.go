package auth

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"time"

	"github.com/keyfire/keyfire/core"
)

// KeyReader finds keys by the public id in their text. It answers CodeNotFound for an unknown one.
type KeyReader interface {
	KeyByPublicID(ctx context.Context, publicID string) (*Key, error)
}

// Keyring is the authenticator for built-in API keys.
type Keyring struct {
	keys   KeyReader
	pepper *Pepper
	now    func() time.Time
	decoy  *Key // stands in for a key that does not exist; matches nothing
}

var _ Authenticator = (*Keyring)(nil)

// NewKeyring returns a Keyring over the keys of store.
func NewKeyring(store KeyReader, pepper *Pepper, now func() time.Time) *Keyring {
	return &Keyring{keys: store, pepper: pepper, now: now, decoy: &Key{Pepper: pepper.Newest(), Hash: make([]byte, sha256.Size), Type: TriggerKey}}
}

// Name returns "apikey".
func (k *Keyring) Name() string { return "apikey" }

// Authenticate verifies a key's text against its stored hash. Text that does not start like a key is not applicable. Malformed, unknown and
// wrong keys get one answer after the same work; that a key is expired or revoked is told only to whoever holds the whole
// secret. The state is checked once more by the transaction that admits a run.
func (k *Keyring) Authenticate(ctx context.Context, c Credential) (Principal, error) {
	if s := c.Secret.Reveal(); len(s) < prefixLen || (s[:prefixLen] != "kft_" && s[:prefixLen] != "kfa_") {
		return Principal{}, ErrNotApplicable
	}
	text, ok := ParseKey(c.Secret)
	if !ok {
		return Principal{}, errInvalidKey()
	}
	key, err := k.keys.KeyByPublicID(ctx, text.ID)
	switch core.CodeOf(err) {
	case "":
	case core.CodeNotFound:
		key = k.decoy // so that an unknown id is refused by the same steps, and in the same time, as a wrong secret
	default:
		return Principal{}, core.Wrap(core.CodeAuthUnavailable, err, "keys cannot be checked right now")
	}
	sum, ok := k.pepper.Hash(key.Pepper, c.Secret)
	if same := subtle.ConstantTimeCompare(sum[:], key.Hash) == 1; !ok || !same || key.Type != text.Type || key == k.decoy {
		e := errInvalidKey()
		e.KeyID, e.Account = key.ID, key.Account
		return Principal{}, e
	}
	if c.Place == PlaceQuery && !key.AllowQuery {
		e := errInvalidKey()
		e.KeyID, e.Account = key.ID, key.Account
		return Principal{}, e
	}
	if err := CheckState(key, k.now()); err != nil {
		return Principal{}, err
	}
	return Principal{
		Account: key.Account,
		Subject: "key:" + key.ID,
		Backend: k.Name(),
		Scopes:  key.Scopes,
		Key:     key,
	}, nil
}

// CheckState returns nil for an active key and otherwise the error its holder is told. The admission transaction uses it too.
func CheckState(key *Key, now time.Time) error {
	var e *core.Error
	switch key.State(now) {
	case KeyActive:
		return nil
	case KeyRevoked:
		e = core.Errorf(core.CodeKeyRevoked, "this key was revoked; ask whoever issued it for a new one")
	case KeyExpired:
		e = core.Errorf(core.CodeKeyExpired, "this key expired on %s; ask whoever issued it for a new one", key.ExpiresAt.UTC().Format(time.RFC3339))
	}
	e.KeyID, e.Account = key.ID, key.Account
	return e
}
