//go:build unix

package store_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/store"
	"github.com/keyfire/keyfire/core/internal/store/storetest"
)

// BenchmarkKeys shows that the number of keys costs nothing: verifying one, listing, paging and revoking, with a thousand and with many more
// (KEYFIRE_BENCH_KEYS, such as 1000000; 20000 by default, and 2000 with -short). Verifying takes microseconds, which a machine's load easily doubles for a
// while, so both stores are asked in turns, and the ratio of the medians is what counts.
func BenchmarkKeys(b *testing.B) {
	many := storetest.ManyKeys(b)
	pepper, err := auth.NewPepper(map[int][]byte{1: make([]byte, auth.PepperSize)})
	if err != nil {
		b.Fatal(err)
	}
	few, lots := fillKeys(b, pepper, 1000), fillKeys(b, pepper, many)
	for b.Loop() {
		var took [2][]time.Duration
		for round := range 2 { // the first warms what a running server has warm
			took = [2][]time.Duration{}
			for i := range 20_000 {
				for which, k := range [2]*keyStore{few, lots} {
					// Read just now, as what is in a request.
					text := auth.NewSecret(strings.Clone(k.sample[(i+round)%len(k.sample)].Reveal()))
					start := time.Now()
					if _, err := k.ring.Authenticate(b.Context(), auth.Credential{Place: auth.PlaceBearer, Secret: text}); err != nil {
						b.Fatal(err)
					}
					took[which] = append(took[which], time.Since(start))
				}
			}
		}
		b.ReportMetric(float64(median(took[1]))/float64(median(took[0])), "verify-p50-ratio")
		b.ReportMetric(float64(median(took[0]).Nanoseconds())/1000, "verify-1000-p50-µs")
		b.ReportMetric(float64(median(took[1]).Nanoseconds())/1000, "verify-many-p50-µs")
		few.measure(b, "1000")
		lots.measure(b, "many")
	}
}

func median(took []time.Duration) time.Duration {
	slices.Sort(took)
	return took[len(took)/2]
}

// keyStore is a store with n keys, and the texts of some of them.
type keyStore struct {
	*store.Store
	n      int
	ring   *auth.Keyring
	sample []auth.Secret
}

func fillKeys(b *testing.B, pepper *auth.Pepper, n int) *keyStore {
	b.Helper()
	s := open(b, store.Config{})
	return &keyStore{Store: s, n: n, ring: auth.NewKeyring(s, pepper, time.Now), sample: storetest.FillKeys(b, s, pepper, n)}
}

// measure reports how long lists and revocations take.
func (k *keyStore) measure(b *testing.B, name string) {
	ctx := context.Background()
	timed := func(what string, do func(i int) error) {
		took := make([]time.Duration, 0, 100)
		for i := range 100 {
			start := time.Now()
			if err := do(i); err != nil {
				b.Fatal(what, err)
			}
			took = append(took, time.Since(start))
		}
		b.ReportMetric(float64(median(took).Nanoseconds())/1000, what+"-"+name+"-p50-µs")
		b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds())/1000, what+"-"+name+"-p99-µs")
	}
	cursor := ""
	timed("list", func(int) error {
		l, err := k.Keys(ctx, core.DefaultAccount, core.Page{Limit: core.MaxPage})
		cursor = l.Next
		return err
	})
	timed("page", func(int) error {
		l, err := k.Keys(ctx, core.DefaultAccount, core.Page{Limit: core.MaxPage, Cursor: cursor})
		if l.Next != "" {
			cursor = l.Next
		}
		return err
	})
	timed("revoke", func(i int) error {
		key := storetest.KeyID(int64(i*(k.n/100) + 1))
		_, err := k.RevokeKey(ctx, core.DefaultAccount, key, "", accepted(key))
		return err
	})
}
