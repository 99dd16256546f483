package auth

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"net/netip"
	"time"

	"github.com/keyfire/keyfire/core"
)

// KeyReader finds keys by their secrets.
type KeyReader interface {
	// KeyBySecret asks proved about the secret with the given public id, and returns its key if the answer is yes, nil otherwise. When there is none with that id it
	// asks about some other secret, found in the same way, so that the answer takes the same time; proved compares the ids. The key is read only once it was
	// proved, so that what a key has says nothing to whoever cannot prove it. CodeNotFound means that there are no secrets at all.
	KeyBySecret(ctx context.Context, publicID string, proved func(*FoundSecret) bool) (*Key, error)
}

// FoundSecret is a secret as it is looked up.
type FoundSecret struct {
	PublicID  string
	KeyID     string
	Account   string // of the key
	Hash      []byte
	Pepper    int
	ExpiresAt time.Time // zero: with the key
}

// Keyring is the authenticator for built-in API keys, and for the keys of other products that were imported.
type Keyring struct {
	keys   KeyReader
	pepper *Pepper
	now    func() time.Time
	decoy  FoundSecret // stands in where there is nothing; matches nothing
}

var _ Authenticator = (*Keyring)(nil)

// NewKeyring returns a Keyring over the keys of store.
func NewKeyring(store KeyReader, pepper *Pepper, now func() time.Time) *Keyring {
	return &Keyring{keys: store, pepper: pepper, now: now, decoy: FoundSecret{Pepper: pepper.Newest(), Hash: make([]byte, sha256.Size)}}
}

// Name returns "apikey".
func (k *Keyring) Name() string { return "apikey" }

// Authenticate verifies a key's text against its stored hash. Text that neither starts like a key nor was imported is not applicable. Malformed, unknown and
// wrong keys get one answer after the same work; that a key is expired, disabled or revoked, or may not be used from here, is told only to whoever holds
// the whole secret. The state is checked once more by the transaction that admits a run.
func (k *Keyring) Authenticate(ctx context.Context, c Credential) (Principal, error) {
	switch c.Place {
	case PlaceAuthorization, PlaceHeader:
		return Principal{}, ErrNotApplicable
	}
	text := c.Secret.Reveal()
	if text == "" {
		return Principal{}, ErrNotApplicable
	}
	ours := likeOurKey(text)
	var known FoundSecret // the one whose id is in the text, for the audit log
	if ours {
		found, key, err := k.own(ctx, c.Secret)
		if err != nil {
			return Principal{}, err
		}
		if key != nil {
			return k.accept(c, &found, key)
		}
		known = found
	}
	found, key, err := k.imported(ctx, c.Secret)
	switch {
	case err != nil:
		return Principal{}, err
	case key != nil:
		return k.accept(c, &found, key)
	case !ours:
		return Principal{}, ErrNotApplicable
	}
	return Principal{}, refused(errInvalidKey(), known.KeyID, known.Account)
}

// own looks for a built-in key. The secret that is returned without a key names the one of the public id, if there is one.
func (k *Keyring) own(ctx context.Context, secret Secret) (found FoundSecret, _ *Key, _ error) {
	text, ok := ParseKey(secret)
	if !ok {
		return FoundSecret{}, nil, nil
	}
	key, err := k.find(ctx, text.ID, func(f *FoundSecret) bool {
		sum, ok := k.pepper.Hash(f.Pepper, secret)
		if !ok {
			sum, _ = k.pepper.Hash(k.pepper.Newest(), secret) // of a pepper that is lost; the work is done all the same
		}
		there := subtle.ConstantTimeCompare([]byte(f.PublicID), []byte(text.ID))
		found = [2]FoundSecret{{}, *f}[there]
		return ok && there&subtle.ConstantTimeCompare(sum[:], f.Hash) == 1
	})
	if err != nil {
		return FoundSecret{}, nil, err
	}
	if key != nil && key.Type != text.Type {
		key = nil
	}
	return found, key, nil
}

// imported looks for a secret that another product made. It is found by what the pepper makes of its digest, so its text may have any shape.
func (k *Keyring) imported(ctx context.Context, secret Secret) (found FoundSecret, key *Key, err error) {
	digest := sha256.Sum256([]byte(secret.Reveal()))
	for _, version := range k.pepper.Versions() {
		id, _ := k.pepper.ImportID(version, digest)
		key, err = k.find(ctx, id, func(f *FoundSecret) bool {
			sum, _ := k.pepper.ImportHash(version, digest)
			found = *f
			return subtle.ConstantTimeCompare(sum[:], f.Hash)&subtle.ConstantTimeCompare([]byte(f.PublicID), []byte(id)) == 1
		})
		if key != nil || err != nil {
			return found, key, err
		}
	}
	return FoundSecret{}, nil, nil
}

func (k *Keyring) find(ctx context.Context, publicID string, proved func(*FoundSecret) bool) (*Key, error) {
	key, err := k.keys.KeyBySecret(ctx, publicID, proved)
	switch core.CodeOf(err) {
	case "":
		return key, nil
	case core.CodeNotFound:
		decoy := k.decoy
		proved(&decoy)
		return nil, nil
	}
	return nil, core.Wrap(core.CodeAuthUnavailable, err, "keys cannot be checked right now")
}

// accept decides about a secret that was proved.
func (k *Keyring) accept(c Credential, found *FoundSecret, key *Key) (Principal, error) {
	if c.Place == PlaceQuery && !key.AllowQuery {
		return Principal{}, refused(errInvalidKey(), key.ID, key.Account)
	}
	now := k.now()
	if err := CheckState(key, now); err != nil {
		return Principal{}, err
	}
	if !found.ExpiresAt.IsZero() && !now.Before(found.ExpiresAt) {
		return Principal{}, refused(core.Errorf(core.CodeKeyExpired, "this key was replaced and stopped working on %s; use the new one",
			found.ExpiresAt.UTC().Format(time.RFC3339)), key.ID, key.Account)
	}
	if err := CheckSource(key, c.Source); err != nil {
		return Principal{}, err
	}
	return Principal{
		Account:  key.Account,
		Subject:  "key:" + key.ID,
		Backend:  k.Name(),
		Scopes:   key.Scopes,
		Key:      key,
		SecretID: found.PublicID,
	}, nil
}

// CheckState returns nil for an active key and otherwise the error its holder is told. The admission transaction uses it too.
func CheckState(key *Key, now time.Time) error {
	switch key.State(now) {
	case KeyRevoked:
		return refused(core.Errorf(core.CodeKeyRevoked, "this key was revoked; ask whoever issued it for a new one"), key.ID, key.Account)
	case KeyDisabled:
		return refused(core.Errorf(core.CodeKeyDisabled, "this key is switched off; ask whoever issued it"), key.ID, key.Account)
	case KeyExpired:
		return refused(core.Errorf(core.CodeKeyExpired, "this key expired on %s; ask whoever issued it for a new one", key.ExpiresAt.UTC().Format(time.RFC3339)), key.ID, key.Account)
	}
	return nil
}

// CheckSource returns nil for an address that the key may be used from, and otherwise the error its holder is told.
func CheckSource(key *Key, from netip.Addr) error {
	if key.AllowsSource(from) {
		return nil
	}
	return refused(core.Errorf(core.CodeSourceNotAllowed, "this key may not be used from this address"), key.ID, key.Account)
}

// refused names the key in an error, for the audit log of its account.
func refused(e *core.Error, keyID, account string) *core.Error {
	e.KeyID, e.Account = keyID, account
	return e
}
