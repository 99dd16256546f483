package storetest

import (
	"bytes"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/keyfire/keyfire/core"
)

func exerciseSecrets(t *testing.T, open func(t *testing.T) *fixture) {
	t.Run("set, set again, list, delete", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		ctx := t.Context()
		put := func(name string, sealed []byte, at time.Time) (core.Secret, bool) {
			t.Helper()
			ev := f.event(core.ActionSecretSet, name)
			ev.Time = at
			s, created, err := f.PutSecret(ctx, account, name, sealed, ev)
			f.must(err)
			return s, created
		}
		later := epoch.Add(time.Hour)
		first, created := put("B_TOKEN", []byte{0, 1, 0xff}, epoch)
		want := core.Secret{Account: account, Name: "B_TOKEN", CreatedAt: epoch, UpdatedAt: epoch, UpdatedBy: "uid:1000"}
		wantEqual(t, "secret", first, want)
		if !created {
			t.Error("a new secret is not created")
		}
		second, created := put("B_TOKEN", []byte("again"), later)
		want.UpdatedAt = later
		wantEqual(t, "secret set again", second, want)
		if created {
			t.Error("a secret that was there is created")
		}
		if n, err := f.CountSecrets(ctx); err != nil || n != 1 {
			t.Errorf("%d secrets are counted, %v", n, err)
		}
		put("A_TOKEN", []byte("x"), epoch)
		list, err := f.Secrets(ctx, account)
		f.must(err)
		if len(list) != 2 || list[0].Name != "A_TOKEN" || list[1] != want {
			t.Errorf("list %+v", list)
		}
		sealed, err := f.SealedSecret(ctx, account, "B_TOKEN")
		f.must(err)
		if string(sealed) != "again" {
			t.Errorf("sealed %q", sealed)
		}
		f.must(f.DeleteSecret(ctx, account, "B_TOKEN", f.event(core.ActionSecretDelete, "B_TOKEN")))
		_, err = f.SealedSecret(ctx, account, "B_TOKEN")
		wantCode(t, err, core.CodeNotFound)
		wantCode(t, f.DeleteSecret(ctx, account, "B_TOKEN", f.event(core.ActionSecretDelete, "B_TOKEN")), core.CodeNotFound)
		wantAudit(t, f, core.ActionSecretSet, core.ActionSecretSet, core.ActionSecretSet, core.ActionSecretDelete)
	})

	t.Run("another account has its own", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		_, _, err := f.PutSecret(t.Context(), account, "TOKEN", []byte("x"), f.event(core.ActionSecretSet, "TOKEN"))
		f.must(err)
		_, err = f.SealedSecret(t.Context(), "acct_two", "TOKEN")
		wantCode(t, err, core.CodeNotFound)
		list, err := f.Secrets(t.Context(), "acct_two")
		f.must(err)
		if len(list) > 0 {
			t.Errorf("list of another account: %+v", list)
		}
		wantCode(t, f.DeleteSecret(t.Context(), "acct_two", "TOKEN", f.event(core.ActionSecretDelete, "TOKEN")), core.CodeNotFound)
	})
}

func exerciseKV(t *testing.T, open func(t *testing.T) *fixture) {
	t.Run("compare and swap", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		ctx := t.Context()
		_, err := f.Get(ctx, account, "wf_a", "k")
		wantCode(t, err, core.CodeNotFound)
		for i, step := range []struct {
			value, old []byte
			check      bool
			swapped    bool
			after      []byte
		}{
			{[]byte("1"), []byte{}, true, false, nil}, // an empty value is not no value
			{[]byte("1"), nil, true, true, []byte("1")},
			{[]byte("2"), nil, true, false, []byte("1")},
			{[]byte("2"), []byte("0"), true, false, []byte("1")},
			{[]byte("2"), []byte("1"), true, true, []byte("2")},
			{[]byte{0, 0xff}, nil, false, true, []byte{0, 0xff}},
			{[]byte{}, nil, false, true, []byte{}},
			{nil, []byte{}, true, true, nil},
			{nil, nil, false, true, nil},
		} {
			swapped, err := f.Swap(ctx, account, "wf_a", "k", step.value, step.check, step.old)
			f.must(err)
			if swapped != step.swapped {
				t.Errorf("step %d: swapped = %v", i, swapped)
			}
			got, err := f.Get(ctx, account, "wf_a", "k")
			if step.after == nil {
				wantCode(t, err, core.CodeNotFound)
				continue
			}
			f.must(err)
			if !bytes.Equal(got, step.after) {
				t.Errorf("step %d: value %q, want %q", i, got, step.after)
			}
		}
	})

	t.Run("other workflows and accounts", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		_, err := f.Swap(t.Context(), account, "wf_a", "k", []byte("1"), false, nil)
		f.must(err)
		_, err = f.Get(t.Context(), account, "wf_b", "k")
		wantCode(t, err, core.CodeNotFound)
		_, err = f.Get(t.Context(), "acct_two", "wf_a", "k")
		wantCode(t, err, core.CodeNotFound)
	})

	t.Run("counting from many at once", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		ctx := t.Context()
		const clients, each = 8, 10
		var wg sync.WaitGroup
		for range clients {
			wg.Go(func() {
				for done := 0; done < each; {
					old, err := f.Get(ctx, account, "wf_a", "n")
					if err != nil && core.CodeOf(err) != core.CodeNotFound {
						t.Error(err)
						return
					}
					n, _ := strconv.Atoi(string(old))
					swapped, err := f.Swap(ctx, account, "wf_a", "n", []byte(strconv.Itoa(n+1)), true, old)
					if err != nil {
						t.Error(err)
						return
					}
					if swapped {
						done++
					}
				}
			})
		}
		wg.Wait()
		got, err := f.Get(ctx, account, "wf_a", "n")
		f.must(err)
		if string(got) != strconv.Itoa(clients*each) {
			t.Errorf("counted to %s, want %d", got, clients*each)
		}
	})

	t.Run("a workflow keeps no more than it may", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		ctx := t.Context()
		value := make([]byte, 64<<10)
		full := 0
		for ; full < 300; full++ {
			_, err := f.Swap(ctx, account, "wf_a", fmt.Sprintf("k%03d", full), value, false, nil)
			if core.CodeOf(err) == core.CodeQuotaExhausted {
				break
			}
			f.must(err)
		}
		if want := 16 << 20 / (len(value) + 4); full != want {
			t.Errorf("%d values are kept, want %d", full, want)
		}
		_, err := f.Swap(ctx, account, "wf_b", "k", value, false, nil)
		f.must(err)
		_, err = f.Swap(ctx, account, "wf_a", "k000", nil, false, nil)
		f.must(err)
		_, err = f.Swap(ctx, account, "wf_a", "again", value[:len(value)-2], false, nil)
		f.must(err)
	})
}
