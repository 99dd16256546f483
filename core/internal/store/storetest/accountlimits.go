package storetest

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
)

// own makes the account that the suite works in known to the store as one that a superuser has made.
func (f *fixture) own() {
	f.t.Helper()
	f.must(f.CreateAccount(f.t.Context(), core.Account{ID: account, Name: "own", CreatedAt: epoch, CreatedBy: "uid:1000"}, f.event(core.ActionAccountCreate, account)))
}

// limitAccount gives an account limits.
func (f *fixture) limitAccount(ref string, concurrent int64, limits ...core.RateLimit) core.Account {
	f.t.Helper()
	a, err := f.UpdateAccount(f.t.Context(), ref, func(a *core.Account) error {
		a.RateLimits, a.MaxConcurrent = limits, concurrent
		return nil
	}, f.event(core.ActionAccountUpdate, ref))
	f.must(err)
	return a
}

func exerciseAccountLimits(t *testing.T, open func(t *testing.T) *fixture) {
	hourly := func(n int64) core.RateLimit {
		return core.RateLimit{Name: "hourly", Limit: n, Per: core.Duration(time.Hour)}
	}
	t.Run("Q2 an account's rate holds for all keys together, and for whoever has none", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		f.own()
		f.limitAccount("own", 0, core.RateLimit{Name: "burst", Limit: 4, Per: core.Duration(time.Second)})
		w, plain := f.publish("greet", nil), f.createKey(nil)
		limited := f.createKey(func(k *auth.Key) { k.RateLimits = []core.RateLimit{hourly(2)} })
		left := func(n int) core.LimitState {
			return core.LimitState{Name: "account:burst", Kind: core.LimitRate, Limit: 4, Per: time.Second, Remaining: int64(3 - n), Reset: time.Duration(n+1) * 250 * time.Millisecond}
		}
		for i, k := range []*auth.Key{&plain, nil, &plain, &limited} {
			would, err := f.Limits(t.Context(), account, keyID(k), epoch)
			f.must(err)
			got, _, err := f.admitAt(w, k, epoch)
			f.must(err)
			want := []core.LimitState{left(i)}
			if k == &limited {
				want = []core.LimitState{{Name: "hourly", Kind: core.LimitRate, Limit: 2, Per: time.Hour, Remaining: 1, Reset: 30 * time.Minute}, left(i)}
			}
			wantEqual(t, "limits", got.Limits, want)
			wantEqual(t, "limits as they were foreseen", would, want)
		}
		for _, k := range []*auth.Key{&plain, nil, &limited} {
			_, _, err := f.admitAt(w, k, epoch.Add(249*time.Millisecond))
			wantCode(t, err, core.CodeRateLimited)
			var e *core.Error
			if !errors.As(err, &e) || e.RetryAfter != time.Millisecond || e.KeyID != keyID(k) || e.Limits[len(e.Limits)-1].Name != "account:burst" {
				t.Errorf("%+v", e)
			}
			_, err = f.Limits(t.Context(), account, keyID(k), epoch.Add(249*time.Millisecond))
			wantCode(t, err, core.CodeRateLimited)
		}
		wantUsed(t, f, plain.ID, 2)
		got, err := f.Key(t.Context(), account, limited.ID)
		f.must(err)
		if got.RunsUsed != 1 || got.RateState["hourly"] != epoch.Add(30*time.Minute).UnixNano() {
			t.Errorf("%d runs, state %v: what the account refused took from the key", got.RunsUsed, got.RateState)
		}
		// What the key refuses takes nothing from the account.
		_, _, err = f.admitAt(w, &limited, epoch.Add(time.Second))
		f.must(err)
		before, err := f.Account(t.Context(), "own")
		f.must(err)
		_, _, err = f.admitAt(w, &limited, epoch.Add(2*time.Second))
		wantCode(t, err, core.CodeRateLimited)
		after, err := f.Account(t.Context(), "own")
		f.must(err)
		wantEqual(t, "account", after, before)
	})

	t.Run("Q2 an account's rate is exact however many ask at once", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		f.own()
		f.limitAccount("own", 0, core.RateLimit{Name: "burst", Limit: 10, Per: core.Duration(time.Minute)})
		w := f.publish("greet", nil)
		keys := []auth.Key{f.createKey(nil), f.createKey(nil), f.createKey(nil)}
		for minute := range 2 {
			var mu sync.Mutex
			codes := map[core.Code]int{}
			atOnce(40, func(i int) {
				k := &keys[i%3]
				if i%4 == 3 {
					k = nil
				}
				_, _, err := f.admitAt(w, k, epoch.Add(time.Duration(minute)*time.Minute))
				mu.Lock()
				defer mu.Unlock()
				codes[core.CodeOf(err)]++
			})
			wantEqual(t, fmt.Sprintf("answers in minute %d", minute), codes, map[core.Code]int{"": 10, core.CodeRateLimited: 30})
		}
	})

	t.Run("no more runs under way than the account says", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		f.own()
		f.limitAccount("own", 2)
		w, k := f.publish("greet", nil), f.createKey(nil)
		got, one, err := f.admitAt(w, &k, epoch)
		f.must(err)
		wantEqual(t, "limits", got.Limits, []core.LimitState{{Name: "account:concurrency", Kind: core.LimitConcurrency, Limit: 2, Remaining: 1}})
		_, _, err = f.admitAt(w, nil, epoch)
		f.must(err)
		for _, key := range []*auth.Key{&k, nil} {
			_, _, err = f.admitAt(w, key, epoch)
			wantCode(t, err, core.CodeConcurrencyLimited)
		}
		end := finished(one)
		f.must(f.FinishRun(t.Context(), &end))
		_, _, err = f.admitAt(w, &k, epoch)
		f.must(err)
		_, _, err = f.admitAt(w, &k, epoch)
		wantCode(t, err, core.CodeConcurrencyLimited)
		f.limitAccount("own", 0)
		_, _, err = f.admitAt(w, &k, epoch)
		f.must(err)
	})

	t.Run("limits of an account are changed, kept and told", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		a := f.createAccount("acme")
		now := f.limitAccount("acme", 7, hourly(2), core.RateLimit{Name: "burst", Limit: 9, Per: core.Duration(time.Second), Burst: 3})
		want := a
		want.MaxConcurrent = 7
		want.RateLimits = []core.RateLimit{hourly(2), {Name: "burst", Limit: 9, Per: core.Duration(time.Second), Burst: 3}}
		wantEqual(t, "changed account", now, want)
		for _, ref := range []string{a.ID, "acme"} {
			got, err := f.Account(t.Context(), ref)
			f.must(err)
			wantEqual(t, "account", got, want)
		}
		_, err := f.UpdateAccount(t.Context(), "none", func(*core.Account) error { return nil }, f.event(core.ActionAccountUpdate, "none"))
		wantCode(t, err, core.CodeNotFound)
		_, err = f.UpdateAccount(t.Context(), "acme", func(*core.Account) error { return core.Errorf(core.CodeConflict, "no") }, f.event(core.ActionAccountUpdate, a.ID))
		wantCode(t, err, core.CodeConflict)
		wantAudit(t, f, core.ActionAccountCreate, core.ActionAccountUpdate)

		// The limits of one account are nothing to another one, and a limit that stays keeps its state.
		f.own()
		w := f.publish("greet", nil)
		f.limitAccount("own", 0, hourly(2))
		_, _, err = f.admitAt(w, nil, epoch)
		f.must(err)
		f.limitAccount("own", 5, hourly(2))
		_, _, err = f.admitAt(w, nil, epoch)
		f.must(err)
		_, _, err = f.admitAt(w, nil, epoch)
		wantCode(t, err, core.CodeRateLimited)
		f.limitAccount("own", 0, hourly(3)) // another limit, which starts full
		for range 3 {
			_, _, err = f.admitAt(w, nil, epoch)
			f.must(err)
		}
		_, _, err = f.admitAt(w, nil, epoch)
		wantCode(t, err, core.CodeRateLimited)
	})
}

// keyID returns the id of a key that may be nil.
func keyID(k *auth.Key) string {
	if k == nil {
		return ""
	}
	return k.ID
}
