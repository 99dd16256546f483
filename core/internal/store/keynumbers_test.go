package store

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
)

// storeOfKeys returns a store with one connection for look-ups, and with a key for each public id.
func storeOfKeys(t *testing.T, ids ...string) *Store {
	t.Helper()
	s, err := Open(t.Context(), Config{Path: filepath.Join(t.TempDir(), "keyfire.db"), Reserve: -1, Readers: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, id := range ids {
		if err := s.CreateKey(t.Context(), keyOf(id), event("key.create")); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func keyOf(id string) auth.Key {
	return auth.Key{ID: "key_" + id, Account: core.DefaultAccount, Type: auth.TriggerKey, PublicID: id, Hash: []byte(id), CreatedAt: time.Unix(1, 0)}
}

// rotated gives a key another secret.
func rotated(t *testing.T, s *Store, key, id string) error {
	t.Helper()
	_, err := s.UpdateKey(t.Context(), core.DefaultAccount, key, false, func(*auth.Key) (*auth.KeySecret, time.Time, error) {
		return &auth.KeySecret{PublicID: id, KeyID: key, Hash: []byte(id), CreatedAt: time.Unix(2, 0)}, time.Unix(3, 0), nil
	}, event("key.rotate"))
	return err
}

// Of two secrets with one number the second is refused, whatever has become of the first, and looking for it finds the first, whose id says that it is not it.
func TestSecretsOfOneNumber(t *testing.T) {
	t.Parallel()
	s := storeOfKeys(t, "aaaaaaaaaaaa", "cccccccccccc")
	const twin = "bbbbbbbbbbbb"
	found := func() (got string) {
		t.Helper()
		key, err := s.KeyBySecret(t.Context(), twin, func(f *auth.FoundSecret) bool {
			got = f.PublicID
			return got == twin
		})
		if err != nil || key != nil {
			t.Errorf("found %+v, %v", key, err)
		}
		return got
	}
	refused := func(when string) {
		t.Helper()
		create, rotate := s.CreateKey(t.Context(), keyOf(twin), event("key.create")), rotated(t, s, "key_cccccccccccc", twin)
		imported := keyOf(twin)
		imported.Imported = true
		if imports := s.CreateKey(t.Context(), imported, event("key.create")); core.CodeOf(create) != core.CodeConflict || core.CodeOf(rotate) != core.CodeConflict ||
			core.CodeOf(imports) != core.CodeConflict || imports.Error() == create.Error() {
			t.Errorf("%s: %v, %v, %v", when, create, rotate, imports)
		}
	}
	move := func(query string) {
		t.Helper()
		if err := s.write(t.Context(), &change{name: "move", lane: control}, func(t *tx) error { return t.put(query, keyNumber(twin), "aaaaaaaaaaaa") }); err != nil {
			t.Fatal(err)
		}
	}
	move(`update keys set lookup = $1 where public_id = $2`)
	if got := found(); got != "aaaaaaaaaaaa" {
		t.Errorf("found %q in its place", got)
	}
	refused("while the first is present")
	if err := rotated(t, s, "key_aaaaaaaaaaaa", "dddddddddddd"); err != nil {
		t.Fatal(err)
	}
	move(`update key_secrets set lookup = $1 where public_id = $2`)
	found()
	refused("when the first was replaced")
}

// Whatever is found out about a secret, the connection is free afterwards, and sees what was written since.
func TestProofLeavesNothingOpen(t *testing.T) {
	t.Parallel()
	s := storeOfKeys(t, "aaaaaaaaaaaa", "bbbbbbbbbbbb")
	if err := rotated(t, s, "key_aaaaaaaaaaaa", "cccccccccccc"); err != nil {
		t.Fatal(err)
	}
	look := func(id string, proved bool) (*auth.Key, error) {
		return s.KeyBySecret(t.Context(), id, func(*auth.FoundSecret) bool { return proved })
	}
	for round := range 3 {
		for _, id := range []string{"aaaaaaaaaaaa", "bbbbbbbbbbbb", "cccccccccccc", "dddddddddddd"} {
			if k, err := look(id, false); k != nil || err != nil {
				t.Fatalf("%s is not proved: %+v, %v", id, k, err)
			}
		}
		// Nobody proves what is not there; but if, there is no key.
		if k, err := look("dddddddddddd", true); k != nil || core.CodeOf(err) != core.CodeNotFound {
			t.Errorf("%+v, %v", k, err)
		}
		func() {
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			_, _ = s.KeyBySecret(t.Context(), "bbbbbbbbbbbb", func(*auth.FoundSecret) bool { panic("while it is proved") })
		}()
		if err := s.TouchKeys(t.Context(), map[string]time.Time{"key_bbbbbbbbbbbb": time.Unix(int64(10+round), 0)}); err != nil {
			t.Fatal(err)
		}
		for id, want := range map[string]string{"aaaaaaaaaaaa": "key_aaaaaaaaaaaa", "bbbbbbbbbbbb": "key_bbbbbbbbbbbb", "cccccccccccc": "key_aaaaaaaaaaaa"} {
			k, err := look(id, true)
			if err != nil || k == nil || k.ID != want {
				t.Fatalf("%s is proved: %+v, %v", id, k, err)
			}
			if want == "key_bbbbbbbbbbbb" && k.LastUsedAt.Unix() != int64(10+round) {
				t.Errorf("used at %v in round %d", k.LastUsedAt, round)
			}
		}
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.KeyBySecret(gone, "bbbbbbbbbbbb", func(*auth.FoundSecret) bool { return true }); !errors.Is(err, context.Canceled) {
		t.Errorf("for nobody: %v", err)
	}
}
