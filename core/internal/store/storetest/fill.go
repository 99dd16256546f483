package storetest

import (
	"crypto/rand"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/store"
)

// Fill puts something of everything into an empty store.
func Fill(t *testing.T, s *store.Store) {
	t.Helper()
	f := &fixture{Store: s, t: t}
	ctx := t.Context()
	w := f.publish("greet", nil)
	k := f.createKey(func(k *auth.Key) { k.MaxRuns = 3 })
	f.admit(w, &k, func(a *core.Admission) {
		a.Idempotency = &core.Idempotency{Principal: "key:" + k.ID, Workflow: w.ID, Key: "once", Fingerprint: "sha256:1", ExpiresAt: epoch.Add(1e15)}
	})
	run := f.admit(w, &k, func(a *core.Admission) {
		a.Run.Input = []byte(`{"large":"` + strings.Repeat("é", 8<<10) + `"}`)
	})
	end := finished(run)
	for len(end.Steps) < 40 {
		end.Steps = append(end.Steps, step("step_"+strings.Repeat("x", len(end.Steps))))
	}
	f.must(f.FinishRun(ctx, &end))
	_, err := f.RevokeKey(ctx, account, f.createKey(nil).ID, "left the company", f.event(core.ActionKeyRevoke, k.ID))
	f.must(err)
	_, _, err = f.PutSecret(ctx, account, "token", []byte{0, 0xff, 1}, f.event(core.ActionKeyCreate, "token"))
	f.must(err)
	_, err = f.Swap(ctx, account, w.ID, "cursor", []byte("\x00\xff"), false, nil)
	f.must(err)
}

// Filled checks that what Fill did is there and that the store goes on from it.
func Filled(t *testing.T, s *store.Store) {
	t.Helper()
	f := &fixture{Store: s, t: t}
	f.id.Store(1_000_000)
	ctx := t.Context()
	w, err := f.Workflow(ctx, account, "greet")
	f.must(err)
	keys, err := f.Keys(ctx, account, core.Page{})
	f.must(err)
	var k auth.Key
	for _, key := range keys.Items {
		if key.RunsUsed == 2 {
			k = key
		}
	}
	again := f.admission(w, &k)
	again.Idempotency = &core.Idempotency{Principal: "key:" + k.ID, Workflow: w.ID, Key: "once", Fingerprint: "sha256:1", ExpiresAt: epoch}
	got, err := f.Admit(ctx, again)
	f.must(err)
	if !got.Replayed {
		t.Error("an Idempotency-Key was forgotten")
	}
	before := len(auditLog(t, f))
	f.admit(w, &k, nil)
	if _, err := f.Admit(ctx, f.admission(w, &k)); core.CodeOf(err) != core.CodeQuotaExhausted {
		t.Errorf("a fourth run of three: error = %v, want quota_exhausted", err)
	}
	if after := len(auditLog(t, f)); after != before+1 {
		t.Errorf("%d audit events after %d and one admission", after, before)
	}
	value, err := f.Get(ctx, account, w.ID, "cursor")
	f.must(err)
	wantEqual(t, "kept value", string(value), "\x00\xff")
	sealed, err := f.SealedSecret(ctx, account, "token")
	f.must(err)
	wantEqual(t, "secret", string(sealed), "\x00\xff\x01")
	for digest := range f.publication("greet").Modules {
		_, err := f.ModuleBytes(ctx, account, digest)
		f.must(err)
	}
}

// KeyID is the id of the i-th key that FillKeys makes, from 1.
func KeyID(i int64) string { return fmt.Sprintf("key_%026d", i) }

// ManyKeys returns how many keys a benchmark compares with a thousand: KEYFIRE_BENCH_KEYS, or else 20,000, and 2,000 with -short.
func ManyKeys(b *testing.B) int {
	b.Helper()
	if text := os.Getenv("KEYFIRE_BENCH_KEYS"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			b.Fatal(err)
		}
		return n
	}
	if testing.Short() {
		return 2_000
	}
	return 20_000
}

// FillKeys makes n keys for a benchmark, at least 100, and returns the texts of up to 2,000 of them. The first of each hundredth of them is not among these, so that it can be revoked.
func FillKeys(b *testing.B, s *store.Store, pepper *auth.Pepper, n int) []auth.Secret {
	b.Helper()
	var mu sync.Mutex
	sample := make([]auth.Secret, 0, 2000)
	var next atomic.Int64
	var wg sync.WaitGroup
	for range 1024 { // as many as share a sync
		wg.Go(func() {
			for i := next.Add(1); i <= int64(n); i = next.Add(1) {
				text, err := auth.GenerateKey(auth.TriggerKey, rand.Reader)
				if err != nil {
					b.Error(err)
					return
				}
				hash, _ := pepper.Hash(pepper.Newest(), text.Secret())
				k := auth.Key{
					ID: KeyID(i), Account: core.DefaultAccount, Type: auth.TriggerKey, PublicID: text.ID, Hash: hash[:], Pepper: pepper.Newest(), Last4: text.Last4, Name: "CI",
					Scopes: []string{auth.ScopeRunAll}, CreatedAt: epoch, CreatedBy: "uid:0",
				}
				if err := s.CreateKey(b.Context(), k, core.NewEvent("evt_"+k.ID, epoch, core.Origin{}, core.ActionKeyCreate, k.ID)); err != nil {
					b.Error(err)
					return
				}
				if i%max(int64(n)/2000, 1) == 0 && i%int64(n/100) != 1 {
					mu.Lock()
					sample = append(sample, text.Secret())
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	return sample
}
