//go:build unix

package store_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/store"
)

// BenchmarkKeys shows that the number of keys costs nothing: verifying one, listing, paging and revoking, with a thousand and with many more
// (KEYFIRE_BENCH_KEYS, such as 1000000; 20000 by default).
func BenchmarkKeys(b *testing.B) {
	many := 20_000
	if text := os.Getenv("KEYFIRE_BENCH_KEYS"); text != "" {
		var err error
		if many, err = strconv.Atoi(text); err != nil {
			b.Fatal(err)
		}
	}
	for _, n := range []int{1000, many} {
		b.Run(fmt.Sprintf("keys=%d", n), func(b *testing.B) { benchKeys(b, n) })
	}
}

func benchKeys(b *testing.B, n int) {
	ctx := context.Background()
	s := open(b, store.Config{})
	pepper, err := auth.NewPepper(map[int][]byte{1: make([]byte, auth.PepperSize)})
	if err != nil {
		b.Fatal(err)
	}
	var mu sync.Mutex
	sample := make([]auth.Secret, 0, 2000)
	var next atomic.Int64
	var wg sync.WaitGroup
	id := func(i int64) string { return fmt.Sprintf("key_%026d", i) }
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
					ID: id(i), Account: core.DefaultAccount, Type: auth.TriggerKey, PublicID: text.ID, Hash: hash[:], Pepper: 1, Last4: text.Last4, Name: "CI",
					Scopes: []string{auth.ScopeRunAll}, CreatedAt: time.Unix(1, 0), CreatedBy: "uid:0",
				}
				if err := s.CreateKey(ctx, k, accepted(k.ID)); err != nil {
					b.Error(err)
					return
				}
				if i%max(int64(n)/2000, 1) == 0 {
					mu.Lock()
					sample = append(sample, text.Secret())
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	ring := auth.NewKeyring(s, pepper, time.Now)
	measure := func(name string, times int, do func(i int) error) {
		took := make([]time.Duration, 0, times)
		for i := range times {
			start := time.Now()
			if err := do(i); err != nil {
				b.Fatal(name, err)
			}
			took = append(took, time.Since(start))
		}
		slices.Sort(took)
		b.ReportMetric(float64(took[len(took)/2].Nanoseconds())/1000, name+"-p50-µs")
		b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds())/1000, name+"-p99-µs")
	}
	for b.Loop() {
		for range 2 { // the first round warms what a running server has warm
			measure("verify", 10*len(sample), func(i int) error {
				_, err := ring.Authenticate(ctx, auth.Credential{Place: auth.PlaceBearer, Secret: sample[i%len(sample)]})
				return err
			})
		}
		cursor := ""
		measure("list", 100, func(int) error {
			l, err := s.Keys(ctx, core.DefaultAccount, core.Page{Limit: core.MaxPage})
			cursor = l.Next
			return err
		})
		measure("page", 100, func(int) error {
			l, err := s.Keys(ctx, core.DefaultAccount, core.Page{Limit: core.MaxPage, Cursor: cursor})
			if l.Next != "" {
				cursor = l.Next
			}
			return err
		})
		measure("revoke", 100, func(i int) error {
			key := id(int64(i*(n/100) + 1))
			_, err := s.RevokeKey(ctx, core.DefaultAccount, key, "", accepted(key))
			return err
		})
	}
}
