package storetest

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
)

// whole gives a key everything that is given when it is made.
func whole(k *auth.Key) {
	k.MaxRuns, k.MaxConcurrent, k.Imported = 500, 5, true
	k.AllowedIPs = []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("2001:db8::/32")}
	k.AllowedOrigins = []string{"https://app.example.com"}
	k.Metadata = map[string]string{"team": "billing <&>"}
	k.Refill, k.RefillAt = &core.Refill{Every: core.RefillMonthly, Amount: 500, Day: 31}, epoch.Add(time.Hour)
	k.RateLimits = []core.RateLimit{{Name: "burst", Limit: 10, Per: core.Duration(time.Second), Burst: 5}}
}

func exerciseKeyLimits(t *testing.T, open func(t *testing.T) *fixture) {
	t.Run("Q2 a rate admits its burst and then its rate", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		w, k := f.publish("greet", nil), f.createKey(func(k *auth.Key) {
			k.RateLimits = []core.RateLimit{{Name: "fast", Limit: 4, Per: core.Duration(time.Second)}, {Name: "slow", Limit: 6, Per: core.Duration(time.Minute)}}
		})
		for i := range 4 {
			got, _, err := f.admitAt(w, &k, epoch)
			f.must(err)
			wantEqual(t, "limits", got.Limits, []core.LimitState{
				{Name: "fast", Kind: core.LimitRate, Limit: 4, Per: time.Second, Remaining: int64(3 - i), Reset: time.Duration(i+1) * 250 * time.Millisecond},
				{Name: "slow", Kind: core.LimitRate, Limit: 6, Per: time.Minute, Remaining: int64(5 - i), Reset: time.Duration(i+1) * 10 * time.Second},
			})
		}
		_, _, err := f.admitAt(w, &k, epoch.Add(249*time.Millisecond))
		wantCode(t, err, core.CodeRateLimited)
		var e *core.Error
		if !errors.As(err, &e) || e.RetryAfter != time.Millisecond || len(e.Limits) != 2 || e.Limits[0].Remaining != 0 || e.KeyID != k.ID {
			t.Fatalf("%+v", e)
		}
		for range 2 { // the fast one has two again, the slow one two left
			_, _, err = f.admitAt(w, &k, epoch.Add(500*time.Millisecond))
			f.must(err)
		}
		_, _, err = f.admitAt(w, &k, epoch.Add(5*time.Second))
		wantCode(t, err, core.CodeRateLimited)
		_, _, err = f.admitAt(w, &k, epoch.Add(10*time.Second))
		f.must(err)
		wantUsed(t, f, k.ID, 7)
	})

	t.Run("Q2 runs that have their turn in another order are admitted", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		w, k := f.publish("greet", nil), f.createKey(func(k *auth.Key) {
			k.RateLimits = []core.RateLimit{{Name: "a", Limit: 7, Per: core.Duration(time.Hour)}}
		})
		for i := range 7 {
			_, _, err := f.admitAt(w, &k, epoch.Add(-time.Duration(i)*time.Second))
			f.must(err)
		}
		_, _, err := f.admitAt(w, &k, epoch.Add(-8*time.Second))
		wantCode(t, err, core.CodeRateLimited)
		// A clock that was set back is another matter.
		_, _, err = f.admitAt(w, &k, epoch.Add(-2*time.Hour))
		f.must(err)
	})

	t.Run("refused by one limit, a run costs nothing of the others", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		w, k := f.publish("greet", nil), f.createKey(func(k *auth.Key) {
			k.MaxRuns, k.RateLimits = 1, []core.RateLimit{{Name: "a", Limit: 2, Per: core.Duration(time.Hour)}}
		})
		_, _, err := f.admitAt(w, &k, epoch)
		f.must(err)
		for range 3 {
			_, _, err = f.admitAt(w, &k, epoch)
			wantCode(t, err, core.CodeQuotaExhausted)
		}
		got, err := f.Key(t.Context(), account, k.ID)
		f.must(err)
		if got.RateState["a"] != epoch.Add(30*time.Minute).UnixNano() {
			t.Errorf("state %v: refused runs took from the bucket", got.RateState)
		}
	})

	t.Run("a refusal tells all limits as they stand, since it takes nothing", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		hour := core.Duration(time.Hour)
		w, k := f.publish("greet", nil), f.createKey(func(k *auth.Key) {
			k.MaxRuns, k.MaxConcurrent = 3, 2
			k.RateLimits = []core.RateLimit{{Name: "a", Limit: 2, Per: core.Duration(time.Second)}, {Name: "b", Limit: 4, Per: hour}}
		})
		rate := func(a, b int64, untilA, untilB time.Duration) []core.LimitState {
			return []core.LimitState{
				{Name: "a", Kind: core.LimitRate, Limit: 2, Per: time.Second, Remaining: a, Reset: untilA},
				{Name: "b", Kind: core.LimitRate, Limit: 4, Per: time.Hour, Remaining: b, Reset: untilB},
			}
		}
		atOnce := core.LimitState{Name: "concurrency", Kind: core.LimitConcurrency, Limit: 2}
		quota := func(left int64) core.LimitState {
			return core.LimitState{Name: "quota", Kind: core.LimitQuota, Limit: 3, Remaining: left}
		}
		refused := func(at time.Duration, code core.Code, want ...core.LimitState) {
			t.Helper()
			_, _, err := f.admitAt(w, &k, epoch.Add(at))
			wantCode(t, err, code)
			var e *core.Error
			errors.As(err, &e)
			wantEqual(t, "limits", e.Limits, want)
		}
		var runs []core.Run
		for range 2 {
			_, run, err := f.admitAt(w, &k, epoch)
			f.must(err)
			runs = append(runs, run)
		}
		refused(0, core.CodeRateLimited, append(rate(0, 2, 500*time.Millisecond, 30*time.Minute), quota(1))...)
		refused(time.Second, core.CodeConcurrencyLimited, append(rate(2, 2, 0, 30*time.Minute-time.Second), atOnce, quota(1))...)
		end := finished(runs[0])
		f.must(f.FinishRun(t.Context(), &end))
		_, _, err := f.admitAt(w, &k, epoch.Add(time.Second))
		f.must(err)
		end = finished(runs[1])
		f.must(f.FinishRun(t.Context(), &end))
		atOnce.Remaining = 1
		refused(time.Minute, core.CodeQuotaExhausted, append(rate(2, 1, 0, 44*time.Minute), atOnce, quota(0))...)
	})

	t.Run("no more runs at once than the key says", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		w, k := f.publish("greet", nil), f.createKey(func(k *auth.Key) { k.MaxConcurrent = 3 })
		var mu sync.Mutex
		var runs []core.Run
		codes := map[core.Code]int{}
		atOnce(20, func(int) {
			_, run, err := f.admitAt(w, &k, epoch)
			mu.Lock()
			defer mu.Unlock()
			codes[core.CodeOf(err)]++
			if err == nil {
				runs = append(runs, run)
			}
		})
		if codes[""] != 3 || codes[core.CodeConcurrencyLimited] != 17 {
			t.Fatalf("%v", codes)
		}
		for i := range runs {
			end := finished(runs[i])
			f.must(f.FinishRun(t.Context(), &end))
			got, _, err := f.admitAt(w, &k, epoch)
			f.must(err)
			wantEqual(t, "limits", got.Limits, []core.LimitState{{Name: "concurrency", Kind: core.LimitConcurrency, Limit: 3}})
			_, _, err = f.admitAt(w, &k, epoch)
			wantCode(t, err, core.CodeConcurrencyLimited)
		}
		wantUsed(t, f, k.ID, 6)
	})

	t.Run("a quota is refilled when it is due, up to itself", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		refill := core.Refill{Every: core.RefillDaily, Amount: 2}
		w, k := f.publish("greet", nil), f.createKey(func(k *auth.Key) {
			k.MaxRuns, k.Refill, k.RefillAt, k.ExpiresAt = 3, &refill, refill.Next(epoch), time.Time{}
		})
		spend := func(at time.Time, want int) {
			t.Helper()
			for range want {
				_, _, err := f.admitAt(w, &k, at)
				f.must(err)
			}
			_, _, err := f.admitAt(w, &k, at)
			wantCode(t, err, core.CodeQuotaExhausted)
			var e *core.Error
			if errors.As(err, &e); e.RetryAfter != refill.Next(at).Sub(at) {
				t.Fatalf("retry after %s", e.RetryAfter)
			}
		}
		midnight := refill.Next(epoch)
		spend(epoch, 3)
		spend(midnight.Add(-time.Microsecond), 0)
		spend(midnight, 2)
		spend(midnight.Add(23*time.Hour), 0)
		spend(midnight.AddDate(0, 0, 30), 3)
		wantUsed(t, f, k.ID, 8)
	})

	t.Run("Q1 a quota with a refill is exact however many ask at once", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		refill := core.Refill{Every: core.RefillDaily, Amount: 10}
		w, k := f.publish("greet", nil), f.createKey(func(k *auth.Key) {
			k.MaxRuns, k.Refill, k.RefillAt, k.ExpiresAt = 10, &refill, refill.Next(epoch), time.Time{}
		})
		for day := range 3 {
			var mu sync.Mutex
			admitted := 0
			atOnce(40, func(int) {
				if _, _, err := f.admitAt(w, &k, epoch.AddDate(0, 0, day)); err == nil {
					mu.Lock()
					admitted++
					mu.Unlock()
				}
			})
			wantEqual(t, fmt.Sprintf("runs on day %d", day), admitted, 10)
		}
		wantUsed(t, f, k.ID, 30)
	})

	t.Run("a change of the key stops admissions that were judged before it", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		w, k := f.publish("greet", nil), f.createKey(nil)
		for _, alter := range []func(*auth.Key){
			func(k *auth.Key) { k.Scopes = []string{auth.ScopeRunsRead} },
			func(k *auth.Key) {
				k.RateLimits = []core.RateLimit{{Name: "a", Limit: 1, Per: core.Duration(time.Hour)}}
			},
			func(k *auth.Key) { k.RateLimits = nil },
		} {
			now, err := f.UpdateKey(t.Context(), account, k.ID, false, func(k *auth.Key) (*auth.KeySecret, time.Time, error) {
				alter(k)
				return nil, time.Time{}, nil
			}, f.event(core.ActionKeyUpdate, k.ID))
			f.must(err)
			got, _, err := f.admitAt(w, &k, epoch)
			f.must(err)
			wantEqual(t, "judged before", got, core.Admitted{KeyChanged: true})
			k = *now
			_, _, err = f.admitAt(w, now, epoch)
			f.must(err)
		}
		wantUsed(t, f, k.ID, 3)
	})

	t.Run("K3 a rotation adds a text and bounds the old ones", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		w, k := f.publish("greet", nil), f.createKey(func(k *auth.Key) { k.MaxRuns = 5 })
		first := k.PublicID
		rotate := func(id string, until time.Time) {
			t.Helper()
			secret := auth.KeySecret{PublicID: id, KeyID: k.ID, Hash: []byte{9}, Pepper: 4, Last4: id[8:], CreatedAt: epoch.Add(time.Duration(id[0]) * time.Second), CreatedBy: "uid:2"}
			now, err := f.UpdateKey(t.Context(), account, k.ID, false, func(*auth.Key) (*auth.KeySecret, time.Time, error) { return &secret, until, nil }, f.event(core.ActionKeyRotate, k.ID))
			f.must(err)
			k = *now
		}
		rotate("aaaaaaaaaaaa", epoch.Add(time.Hour))
		rotate("bbbbbbbbbbbb", epoch.Add(2*time.Hour))
		if k.PublicID != "bbbbbbbbbbbb" || k.Last4 != "bbbb" || k.Revision != 3 {
			t.Errorf("%+v", k)
		}
		for id, want := range map[string]time.Time{"bbbbbbbbbbbb": {}, "aaaaaaaaaaaa": epoch.Add(2 * time.Hour), first: epoch.Add(time.Hour)} {
			found, got := f.bySecret(id)
			if found.PublicID != id || found.KeyID != k.ID || found.Account != account || !found.ExpiresAt.Equal(want) {
				t.Errorf("%s: found %+v, want until %s", id, found, want)
			}
			wantEqual(t, id, *got, k) // the same whichever text proves it
		}
		secrets, err := f.KeySecrets(t.Context(), account, k.ID)
		f.must(err)
		if len(secrets) != 3 || secrets[0].PublicID != "bbbbbbbbbbbb" {
			t.Errorf("%+v", secrets)
		}
		f.admit(w, &k, nil)
		wantUsed(t, f, k.ID, 1)
		taken := f.createKey(nil)
		_, err = f.UpdateKey(t.Context(), account, k.ID, false, func(*auth.Key) (*auth.KeySecret, time.Time, error) {
			s := taken.Secret()
			return &s, epoch, nil
		}, f.event(core.ActionKeyRotate, k.ID))
		wantCode(t, err, core.CodeConflict)
	})

	t.Run("usage adds up and is bounded", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		k := f.createKey(nil)
		var counts []core.KeyUsage
		for i := range core.MaxUsageValues + 5 {
			counts = append(counts, core.KeyUsage{Account: account, KeyID: k.ID, Day: 20513, Kind: core.UsageSource, Value: fmt.Sprintf("10.0.0.%d", i), Count: 2, LastAt: epoch})
		}
		counts = append(counts, core.KeyUsage{Account: account, KeyID: "key_none", Day: 20513, Kind: core.UsageRuns, Count: 1, LastAt: epoch})
		f.must(f.RecordKeyUsage(t.Context(), counts, []core.SecretUse{{PublicID: k.PublicID, At: epoch, Source: "10.0.0.1", Agent: "curl/8"}, {PublicID: "none"}}))
		f.must(f.RecordKeyUsage(t.Context(), counts[:1], []core.SecretUse{{PublicID: k.PublicID, At: epoch.Add(-1), Source: "later"}}))
		got, err := f.KeyUsage(t.Context(), account, k.ID, 20513)
		f.must(err)
		by := map[string]int64{}
		for _, u := range got {
			by[u.Value] = u.Count
		}
		if len(by) != core.MaxUsageValues+1 || by[""] != 10 || by["10.0.0.0"] != 4 || by["10.0.0.1"] != 2 {
			t.Errorf("%v", by)
		}
		secrets, err := f.KeySecrets(t.Context(), account, k.ID)
		f.must(err)
		if s := secrets[0]; s.LastSource != "10.0.0.1" || s.LastAgent != "curl/8" || !s.LastUsedAt.Equal(epoch) {
			t.Errorf("%+v", s)
		}
		for name, rows := range map[string]func() ([]core.KeyUsage, error){
			"another account": func() ([]core.KeyUsage, error) { return f.KeyUsage(t.Context(), "acct_two", k.ID, 0) },
			"later":           func() ([]core.KeyUsage, error) { return f.KeyUsage(t.Context(), account, k.ID, 20514) },
		} {
			if got, err := rows(); err != nil || len(got) != 0 {
				t.Errorf("%s: %v %v", name, got, err)
			}
		}
		if secrets, err := f.KeySecrets(t.Context(), "acct_two", k.ID); err != nil || len(secrets) != 0 {
			t.Errorf("another account's secrets: %v %v", secrets, err)
		}
	})

	t.Run("origins", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		k := f.createKey(func(k *auth.Key) { k.AllowedOrigins = []string{"https://a.example", "https://b.example"} })
		known := func(origin string, at time.Time) bool {
			t.Helper()
			ok, err := f.OriginAllowed(t.Context(), origin, at)
			f.must(err)
			return ok
		}
		if !known("https://a.example", epoch) || known("https://c.example", epoch) || known("https://a.example", k.ExpiresAt) {
			t.Error("an origin is known while a key with it can be used")
		}
		_, err := f.UpdateKey(t.Context(), account, k.ID, false, func(k *auth.Key) (*auth.KeySecret, time.Time, error) {
			k.AllowedOrigins = []string{"https://b.example"}
			return nil, time.Time{}, nil
		}, f.event(core.ActionKeyUpdate, k.ID))
		f.must(err)
		if known("https://a.example", epoch) || !known("https://b.example", epoch) {
			t.Error("an origin that was taken away is known, or one that was left is not")
		}
		_, err = f.RevokeKey(t.Context(), account, k.ID, "", f.event(core.ActionKeyRevoke, k.ID))
		f.must(err)
		if known("https://b.example", epoch) {
			t.Error("the origin of a revoked key is known")
		}
	})

	t.Run("refusals are kept by account", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		f.must(f.PutRefusal(t.Context(), account, "req_1", epoch, `{"code":"x"}`))
		got, err := f.Refusal(t.Context(), account, "req_1")
		f.must(err)
		wantEqual(t, "refusal", got, `{"code":"x"}`)
		for _, other := range [][2]string{{"acct_two", "req_1"}, {account, "req_2"}} {
			_, err := f.Refusal(t.Context(), other[0], other[1])
			wantCode(t, err, core.CodeNotFound)
		}
	})
}
