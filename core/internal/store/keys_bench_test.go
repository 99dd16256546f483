//go:build unix

package store_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/store"
)

// BenchmarkKeys shows that the number of keys costs nothing: verifying one, listing, paging and revoking, with a thousand and with many more
// (KEYFIRE_BENCH_KEYS, such as 1000000; 20000 by default, and 2000 with -short). Verifying takes microseconds, which a machine's load easily doubles for a
// while, so both stores are asked in turns, and the ratio of the medians is what counts.
func BenchmarkKeys(b *testing.B) {
	many := 20_000
	if testing.Short() {
		many = 2_000
	}
	if text := os.Getenv("KEYFIRE_BENCH_KEYS"); text != "" {
		var err error
		if many, err = strconv.Atoi(text); err != nil {
			b.Fatal(err)
		}
	}
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

func benchKeyID(i int64) string { return fmt.Sprintf("key_%026d", i) }

func fillKeys(b *testing.B, pepper *auth.Pepper, n int) *keyStore {
	b.Helper()
	ctx := context.Background()
	s := open(b, store.Config{})
	var mu sync.Mutex
	sample := make([]auth.Secret, 0, 2000)
	var next atomic.Int64
	var wg sync.WaitGroup
	for range 1024 { // as many as share a sync
		wg.Go(func() {
			for {
				i := next.Add(1)
				if i > int64(n) {
					return
				}
				text, err := auth.GenerateKey(auth.TriggerKey, rand.Reader)
				if err != nil {
					b.Error(err)
					return
				}
				hash, _ := pepper.Hash(1, text.Secret())
				k := auth.Key{
					ID: benchKeyID(i), Account: core.DefaultAccount, Type: auth.TriggerKey, PublicID: text.ID, Hash: hash[:], Pepper: 1, Last4: text.Last4, Name: "CI",
					Scopes: []string{auth.ScopeRunAll}, CreatedAt: time.Unix(1, 0), CreatedBy: "uid:0",
				}
				if err := s.CreateKey(ctx, k, accepted(k.ID)); err != nil {
					b.Error(err)
					return
				}
				if i%max(int64(n)/2000, 1) == 0 && i%int64(n/100) != 1 { // measure revokes these
					mu.Lock()
					sample = append(sample, text.Secret())
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	return &keyStore{Store: s, n: n, ring: auth.NewKeyring(s, pepper, time.Now), sample: sample}
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
		key := benchKeyID(int64(i*(k.n/100) + 1))
		_, err := k.RevokeKey(ctx, core.DefaultAccount, key, "", accepted(key))
		return err
	})
}
