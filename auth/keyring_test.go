package auth

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	mathrand "math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/keyfire/keyfire/auth/authtest"
	"github.com/keyfire/keyfire/core"
)

// keys is a KeyReader over a map.
type keys struct {
	byPublicID map[string]stored
	other      *stored // what is found where there is nothing
	err        error
}

type stored struct {
	FoundSecret
	key *Key
}

func (k *keys) KeyBySecret(_ context.Context, id string, proved func(*FoundSecret) bool) (*Key, error) {
	if k.err != nil {
		return nil, k.err
	}
	found, ok := k.byPublicID[id]
	if !ok {
		if k.other == nil {
			return nil, errNoKey
		}
		found = *k.other
	}
	if !proved(&found.FoundSecret) {
		return nil, nil
	}
	return found.key, nil
}

var errNoKey = core.Errorf(core.CodeNotFound, "there is no such key")

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

type ring struct {
	*Keyring
	store  *keys
	pepper *Pepper
	t      testing.TB
}

func newRing(t testing.TB) *ring {
	t.Helper()
	pepper, err := NewPepper(map[int][]byte{1: bytes.Repeat([]byte{1}, PepperSize), 2: bytes.Repeat([]byte{2}, PepperSize)})
	if err != nil {
		t.Fatal(err)
	}
	store := &keys{byPublicID: map[string]stored{}}
	return &ring{NewKeyring(store, pepper, func() time.Time { return noon }), store, pepper, t}
}

// add makes a key, stored as change leaves it, and returns its text.
func (r *ring) add(typ KeyType, change func(*Key, *FoundSecret)) Secret {
	r.t.Helper()
	text, err := GenerateKey(typ, rand.Reader)
	if err != nil {
		r.t.Fatal(err)
	}
	k := &Key{ID: "key_" + text.ID, Account: "acct_default", Type: typ, PublicID: text.ID, Last4: text.Last4, Scopes: []string{ScopeRunAll}}
	s := FoundSecret{PublicID: text.ID, KeyID: k.ID, Account: k.Account, Pepper: r.pepper.Newest()}
	if change != nil {
		change(k, &s)
	}
	if s.Hash == nil {
		sum, ok := r.pepper.Hash(s.Pepper, text.Secret())
		if ok {
			s.Hash = sum[:]
		}
	}
	kept := stored{s, k}
	r.store.byPublicID[s.PublicID] = kept
	if r.store.other == nil {
		r.store.other = &kept
	}
	return text.Secret()
}

// imports makes a key that is proved by text of any shape.
func (r *ring) imports(text string, version int, change func(*Key)) Secret {
	digest := sha256.Sum256([]byte(text))
	id, _ := r.pepper.ImportID(version, digest)
	sum, _ := r.pepper.ImportHash(version, digest)
	r.add(TriggerKey, func(k *Key, s *FoundSecret) {
		s.PublicID, s.Hash, s.Pepper = id, sum[:], version
		k.PublicID, k.Imported = id, true
		if change != nil {
			change(k)
		}
	})
	return NewSecret(text)
}

// forge replaces the part of a key's text that starts at from and completes the check.
func forge(s Secret, from int, with string) Secret {
	text := s.Reveal()
	return NewSecret(string(appendCheck([]byte(text[:from] + with + text[from+len(with):48]))))
}

func other(c byte) string {
	if c == 'A' {
		return "B"
	}
	return "A"
}

func from(network string) func(*Key, *FoundSecret) {
	return func(k *Key, _ *FoundSecret) { k.AllowedIPs = []netip.Prefix{netip.MustParsePrefix(network)} }
}

func TestKeyring(t *testing.T) {
	t.Parallel()
	r := newRing(t)
	good := r.add(TriggerKey, nil)
	for _, c := range []struct {
		name  string
		text  Secret
		place Place
		code  core.Code
		known bool // the error names the key, for the audit log
	}{
		{name: "good", text: good, place: PlaceBearer},
		{name: "admin", text: r.add(AdminKey, nil), place: PlaceAPIKey},
		{name: "old pepper", text: r.add(TriggerKey, func(_ *Key, s *FoundSecret) { s.Pepper = 1 }), place: PlaceBearer},
		{name: "lost pepper", text: r.add(TriggerKey, func(_ *Key, s *FoundSecret) { s.Pepper = 9 }), place: PlaceBearer, code: core.CodeInvalidKey, known: true},
		{name: "until later", text: r.add(TriggerKey, func(k *Key, _ *FoundSecret) { k.ExpiresAt = noon.Add(time.Nanosecond) }), place: PlaceBearer},
		{name: "until now", text: r.add(TriggerKey, func(k *Key, _ *FoundSecret) { k.ExpiresAt = noon }), place: PlaceBearer, code: core.CodeKeyExpired, known: true},
		{name: "revoked", text: r.add(TriggerKey, func(k *Key, _ *FoundSecret) { k.RevokedAt = noon.Add(time.Hour) }), place: PlaceBearer, code: core.CodeKeyRevoked, known: true},
		{name: "revoked and expired", text: r.add(TriggerKey, func(k *Key, _ *FoundSecret) { k.RevokedAt, k.ExpiresAt = noon, noon }), place: PlaceBearer, code: core.CodeKeyRevoked, known: true},
		{name: "in the query, allowed", text: r.add(TriggerKey, func(k *Key, _ *FoundSecret) { k.AllowQuery = true }), place: PlaceQuery},
		{name: "in the query", text: good, place: PlaceQuery, code: core.CodeInvalidKey, known: true},
		{name: "in the query and revoked", text: r.add(TriggerKey, func(k *Key, _ *FoundSecret) { k.RevokedAt = noon }), place: PlaceQuery, code: core.CodeInvalidKey, known: true},
		{name: "unknown", text: forge(good, 4, other(good.Reveal()[4])), place: PlaceBearer, code: core.CodeInvalidKey},
		{name: "wrong secret", text: forge(good, 16, other(good.Reveal()[16])), place: PlaceBearer, code: core.CodeInvalidKey, known: true},
		{name: "wrong end", text: forge(good, 47, other(good.Reveal()[47])), place: PlaceBearer, code: core.CodeInvalidKey, known: true},
		{name: "trigger key as admin key", text: forge(good, 2, "a"), place: PlaceBearer, code: core.CodeInvalidKey, known: true},
		{name: "stored as another type", text: r.add(TriggerKey, func(k *Key, _ *FoundSecret) { k.Type = AdminKey }), place: PlaceBearer, code: core.CodeInvalidKey, known: true},
		{name: "no hash", text: r.add(TriggerKey, func(_ *Key, s *FoundSecret) { s.Hash = []byte{} }), place: PlaceBearer, code: core.CodeInvalidKey, known: true},
		{name: "malformed", text: NewSecret("kft_short"), place: PlaceBearer, code: core.CodeInvalidKey},
		{name: "disabled", text: r.add(TriggerKey, func(k *Key, _ *FoundSecret) { k.DisabledAt, k.ExpiresAt = noon, noon }), place: PlaceBearer, code: core.CodeKeyDisabled, known: true},
		{name: "replaced, within the overlap", text: r.add(TriggerKey, func(_ *Key, s *FoundSecret) { s.ExpiresAt = noon.Add(1) }), place: PlaceBearer},
		{name: "replaced", text: r.add(TriggerKey, func(_ *Key, s *FoundSecret) { s.ExpiresAt = noon }), place: PlaceBearer, code: core.CodeKeyExpired, known: true},
		{name: "from its network", text: r.add(TriggerKey, from("203.0.113.0/24")), place: PlaceBearer},
		{name: "from another network", text: r.add(TriggerKey, from("198.51.100.0/24")), place: PlaceBearer, code: core.CodeSourceNotAllowed, known: true},
		{name: "imported", text: r.imports("bk_live_4eC39HqLyjWDarjtT1zdp7dc", 2, nil), place: PlaceBifrost},
		{name: "imported under the older pepper", text: r.imports("sk-old", 1, nil), place: PlaceAPIKey},
		{name: "imported from a server of this kind", text: r.imports(forge(good, 16, "imported").Reveal(), 2, nil), place: PlaceBearer},
		{name: "imported, in the query", text: r.imports("in a url", 2, nil), place: PlaceQuery, code: core.CodeInvalidKey, known: true},
		{name: "imported and revoked", text: r.imports("gone", 2, func(k *Key) { k.RevokedAt = noon }), place: PlaceBearer, code: core.CodeKeyRevoked, known: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p, err := r.Authenticate(t.Context(), Credential{Place: c.place, Secret: c.text, Source: netip.MustParseAddr("203.0.113.7")})
			if core.CodeOf(err) != c.code {
				t.Fatalf("%v", err)
			}
			if err == nil {
				if p.Subject != "key:"+p.Key.ID || p.Backend != "apikey" || p.Account != "acct_default" || !slices.Equal(p.Scopes, p.Key.Scopes) {
					t.Errorf("%+v", p)
				}
				return
			}
			var e *core.Error
			if !errors.As(err, &e) || (e.KeyID != "") != c.known || p.Subject != "" {
				t.Errorf("%+v %+v", p, err)
			}
			if c.code == core.CodeInvalidKey && e.Message != errInvalidKey().Message {
				t.Errorf("another text than for every invalid key: %q", e.Message)
			}
		})
	}
	for _, foreign := range []string{"", "kf", "bk_live_x", "eyJhbGciOi.x.y", "KFT_" + good.Reveal()[4:]} {
		if _, err := r.Authenticate(t.Context(), Credential{Place: PlaceBearer, Secret: NewSecret(foreign)}); !errors.Is(err, ErrNotApplicable) {
			t.Errorf("%q: %v", foreign, err)
		}
	}
	broken := newRing(t)
	good = broken.add(TriggerKey, nil)
	broken.store.err = errors.New("disk on fire")
	if _, err := broken.Authenticate(t.Context(), Credential{Place: PlaceBearer, Secret: good}); core.CodeOf(err) != core.CodeAuthUnavailable {
		t.Errorf("a store that is down must refuse: %v", err)
	}
}

func TestPepper(t *testing.T) {
	t.Parallel()
	for _, versions := range []map[int][]byte{nil, {}, {1: nil}, {1: make([]byte, 31)}, {1: make([]byte, 32), 2: make([]byte, 33)}} {
		if _, err := NewPepper(versions); err == nil {
			t.Errorf("%v is accepted", versions)
		}
	}
	given := bytes.Repeat([]byte{1}, PepperSize)
	p, err := NewPepper(map[int][]byte{1: given, 7: bytes.Repeat([]byte{7}, PepperSize)})
	if err != nil || p.Newest() != 7 {
		t.Fatalf("%v %v", p, err)
	}
	before, _ := p.Hash(1, NewSecret("x"))
	given[0] = 9 // what was given may be wiped
	after, ok := p.Hash(1, NewSecret("x"))
	newest, _ := p.Hash(7, NewSecret("x"))
	if !ok || before != after || after == newest {
		t.Error("a hash depends on its version and on nothing else")
	}
	if _, ok := p.Hash(2, NewSecret("x")); ok {
		t.Error("an unknown version has a hash")
	}
}

// K4: how long a refusal takes says nothing about how wrong the key is. Classes are measured in turn, so that whatever else the machine does hits
// them alike; a leak shows every time, an accident does not, hence three attempts.
func TestTimingK4(t *testing.T) {
	if testing.Short() || raceEnabled {
		t.Skip("measures time")
	}
	r := newRing(t)
	good := r.add(TriggerKey, nil)
	text := good.Reveal()
	classes := []Secret{forge(good, 4, other(text[4])), forge(good, 16, other(text[16])), forge(good, 47, other(text[47]))}
	ctx := context.Background()
	worst := 0.0
	for range 3 {
		const rounds = 20_000
		times := make([][]float64, len(classes))
		for range rounds {
			for _, c := range mathrand.Perm(len(classes)) {
				start := time.Now()
				_, err := r.Authenticate(ctx, Credential{Place: PlaceBearer, Secret: classes[c]})
				times[c] = append(times[c], float64(time.Since(start)))
				if core.CodeOf(err) != core.CodeInvalidKey {
					t.Fatal(err)
				}
			}
		}
		worst = 0
		for a := range classes {
			for b := range a {
				worst = max(worst, authtest.WelchT(times[a], times[b]))
			}
		}
		if worst < authtest.MaxT {
			return
		}
	}
	t.Errorf("|t| = %.1f, want less than 4.5: the time of a refusal tells what is wrong", worst)
}
