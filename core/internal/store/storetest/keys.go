package storetest

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
)

func exerciseKeys(t *testing.T, open func(t *testing.T) *fixture) {
	t.Run("what is created is read back whole", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		k := f.createKey(whole)
		for name, read := range map[string]func() (*auth.Key, error){
			"Key": func() (*auth.Key, error) { return f.Key(t.Context(), account, k.ID) },
			"KeyBySecret": func() (*auth.Key, error) {
				found, key := f.bySecret(k.PublicID)
				wantEqual(t, "secret", found, auth.FoundSecret{PublicID: k.PublicID, KeyID: k.ID, Account: account, Hash: k.Hash, Pepper: 3})
				return key, nil
			},
		} {
			got, err := read()
			f.must(err)
			wantEqual(t, name, *got, k)
		}
		k.RunsUsed, k.Credited, k.RateState, k.LastUsedAt = 1, 1, map[string]int64{"burst": 1}, epoch       // stored by admissions
		wantFilled(t, k, "DisabledAt", "DisabledBy", "DisabledWhy", "RevokedAt", "RevokedBy", "RevokedWhy") // stored by the subtests below
		secrets, err := f.KeySecrets(t.Context(), account, k.ID)
		f.must(err)
		wantEqual(t, "secrets", secrets, []auth.KeySecret{k.Secret()})
	})

	t.Run("a key without expiry and scopes", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		k := f.createKey(func(k *auth.Key) { k.ExpiresAt, k.Scopes, k.Type = time.Time{}, nil, auth.AdminKey })
		got, err := f.Key(t.Context(), account, k.ID)
		f.must(err)
		wantEqual(t, "key", *got, k)
	})

	t.Run("unknown keys", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		_, err := f.Key(t.Context(), account, "key_none")
		wantCode(t, err, core.CodeNotFound)
		// There is always something to find, or finding nothing would be quicker.
		for _, id := range []string{"000000000000", "i-00", "zzzzzzzzzzzz", ""} {
			found, key := f.bySecret(id)
			if len(found.Hash) != 32 || found.KeyID != "" || key != nil {
				t.Errorf("%q: found %+v, %+v", id, found, key)
			}
		}
		_, err = f.RevokeKey(t.Context(), account, "key_none", "", f.event(core.ActionKeyRevoke, "key_none"))
		wantCode(t, err, core.CodeNotFound)
		wantAudit(t, f)
	})

	t.Run("an id or public id that is taken is a conflict and writes nothing", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		k := f.createKey(nil)
		for name, alter := range map[string]func(*auth.Key){
			"id":        func(other *auth.Key) { other.ID = k.ID },
			"public id": func(other *auth.Key) { other.PublicID = k.PublicID },
			"public id in another account": func(other *auth.Key) {
				other.PublicID, other.Account = k.PublicID, "acct_two"
			},
		} {
			other := f.key()
			alter(&other)
			err := f.CreateKey(t.Context(), other, f.event(core.ActionKeyCreate, other.ID))
			if core.CodeOf(err) != core.CodeConflict {
				t.Errorf("%s taken: error = %v, want conflict", name, err)
			}
		}
		wantAudit(t, f, core.ActionKeyCreate)
	})

	t.Run("revocation is recorded once", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		k := f.createKey(nil)
		ev := f.event(core.ActionKeyRevoke, k.ID)
		ev.Time = epoch.Add(time.Hour)
		got, err := f.RevokeKey(t.Context(), account, k.ID, "leaked in a log", ev)
		f.must(err)
		want := k
		want.RevokedAt, want.RevokedBy, want.RevokedWhy, want.UpdatedAt, want.Revision = ev.Time, ev.Actor, "leaked in a log", ev.Time, 2
		wantEqual(t, "revoked key", *got, want)

		again := f.event(core.ActionKeyRevoke, k.ID)
		again.Time, again.Actor = epoch.Add(2*time.Hour), "uid:0"
		got, err = f.RevokeKey(t.Context(), account, k.ID, "once more", again)
		f.must(err)
		wantEqual(t, "key revoked twice", *got, want)
		got, err = f.Key(t.Context(), account, k.ID)
		f.must(err)
		wantEqual(t, "key read back", *got, want)
		wantAudit(t, f, core.ActionKeyCreate, core.ActionKeyRevoke)
	})

	t.Run("last use only moves forward", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		a, b := f.createKey(nil), f.createKey(nil)
		f.must(f.TouchKeys(t.Context(), map[string]time.Time{a.ID: epoch.Add(time.Minute), b.ID: epoch, "key_none": epoch}))
		f.must(f.TouchKeys(t.Context(), map[string]time.Time{a.ID: epoch, b.ID: epoch.Add(time.Hour)}))
		f.must(f.TouchKeys(t.Context(), nil))
		for id, want := range map[string]time.Time{a.ID: epoch.Add(time.Minute), b.ID: epoch.Add(time.Hour)} {
			got, err := f.Key(t.Context(), account, id)
			f.must(err)
			wantEqual(t, "last use", got.LastUsedAt, want)
		}
	})

	t.Run("list", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		var want []string
		for range 7 {
			want = append(want, f.createKey(nil).ID)
		}
		slices.Reverse(want)
		list := func(ctx context.Context, p core.Page) (core.List[auth.Key], error) { return f.Keys(ctx, account, p) }
		exerciseList(t, list, func(k auth.Key) string { return k.ID }, want)
	})
}

// exerciseList checks what holds for every list, given one with at least three items.
func exerciseList[T any](t *testing.T, list func(context.Context, core.Page) (core.List[T], error), id func(T) string, want []string) {
	t.Helper()
	for _, limit := range []int{1, 2, len(want) - 1, len(want), len(want) + 1, core.MaxPage} {
		var got []string
		for _, item := range pages(t, limit, list) {
			got = append(got, id(item))
		}
		wantEqual(t, "list", got, want)
	}
	first, err := list(t.Context(), core.Page{Limit: 1})
	if err != nil {
		t.Fatal(err)
	}
	for name, p := range badPages(first.Next) {
		if _, err := list(t.Context(), p); core.CodeOf(err) != core.CodeInvalidRequest {
			t.Errorf("%s: error = %v, want invalid_request", name, err)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := list(ended, core.Page{}); err == nil {
		t.Error("list with a context that has ended: no error")
	}
}
