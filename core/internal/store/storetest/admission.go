package storetest

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
)

func exerciseAdmission(t *testing.T, open func(t *testing.T) *fixture) {
	t.Run("an admitted run is charged, recorded and audited", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		w, k := f.publish("greet", nil), f.createKey(func(k *auth.Key) { k.MaxRuns = 2 })
		run := f.admit(w, &k, nil)
		got, err := f.Run(t.Context(), account, run.ID)
		f.must(err)
		wantEqual(t, "run", *got, run)
		wantUsed(t, f, k.ID, 1)
		used, err := f.Key(t.Context(), account, k.ID)
		f.must(err)
		wantEqual(t, "last use", used.LastUsedAt, run.CreatedAt)
		wantAudit(t, f, core.ActionWorkflowPublish, core.ActionKeyCreate, core.ActionRunAccept)
	})

	t.Run("a principal without a key is not charged", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		w := f.publish("greet", nil)
		run := f.admit(w, nil, func(a *core.Admission) {
			a.Run.Status, a.Run.Metadata, a.Run.Overrides, a.Run.StartedAt = core.RunQueued, nil, nil, time.Time{}
		})
		got, err := f.Run(t.Context(), account, run.ID)
		f.must(err)
		wantEqual(t, "run", *got, run)
	})

	t.Run("refusals write nothing", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		w, closed := f.publish("greet", nil), f.publish("closed", func(p *core.Publication) { p.Workflow.Enabled = false })
		good := f.createKey(nil)
		expired := f.createKey(func(k *auth.Key) { k.ExpiresAt = epoch })
		expiring := f.createKey(func(k *auth.Key) { k.ExpiresAt = epoch.Add(time.Microsecond) })
		revoked := f.createKey(nil)
		_, err := f.RevokeKey(t.Context(), account, revoked.ID, "", f.event(core.ActionKeyRevoke, revoked.ID))
		f.must(err)
		spent := f.createKey(func(k *auth.Key) { k.MaxRuns = 1 })
		f.admit(w, &spent, nil)
		f.admit(w, &expiring, nil)
		foreign := f.key()
		foreign.Account = "acct_two"
		f.must(f.CreateKey(t.Context(), foreign, f.event(core.ActionKeyCreate, foreign.ID)))
		nothing := w
		nothing.ID = "wf_none"
		before := len(auditLog(t, f))

		for name, c := range map[string]struct {
			w    core.Workflow
			k    *auth.Key
			want core.Code
		}{
			"expired key":                  {w, &expired, core.CodeKeyExpired},
			"revoked key":                  {w, &revoked, core.CodeKeyRevoked},
			"quota used up":                {w, &spent, core.CodeQuotaExhausted},
			"key of another account":       {w, &foreign, core.CodeInvalidKey},
			"workflow disabled":            {closed, &good, core.CodeWorkflowDisabled},
			"workflow disabled, no key":    {closed, nil, core.CodeWorkflowDisabled},
			"no such workflow":             {nothing, &good, core.CodeNotFound},
			"no such workflow, no key":     {nothing, nil, core.CodeNotFound},
			"revoked, workflow disabled":   {closed, &revoked, core.CodeKeyRevoked},
			"quota used, workflow closed":  {closed, &spent, core.CodeWorkflowDisabled},
			"unknown key, unknown to us":   {w, &auth.Key{ID: "key_none"}, core.CodeInvalidKey},
			"expired key, workflow closed": {closed, &expired, core.CodeKeyExpired},
		} {
			a := f.admission(c.w, c.k)
			_, err := f.Admit(t.Context(), a)
			if core.CodeOf(err) != c.want {
				t.Errorf("%s: error = %v, want %s", name, err, c.want)
			}
			if _, err := f.Run(t.Context(), account, a.Run.ID); core.CodeOf(err) != core.CodeNotFound {
				t.Errorf("%s: the refused run exists: %v", name, err)
			}
		}
		for id, want := range map[string]int64{good.ID: 0, expired.ID: 0, revoked.ID: 0, spent.ID: 1} {
			wantUsed(t, f, id, want)
		}
		if after := len(auditLog(t, f)); after != before {
			t.Errorf("refusals left %d audit events", after-before)
		}
	})

	t.Run("a refusal names the key for the audit log", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		w, k := f.publish("greet", nil), f.createKey(func(k *auth.Key) { k.ExpiresAt = epoch })
		_, err := f.Admit(t.Context(), f.admission(w, &k))
		var e *core.Error
		if !errors.As(err, &e) || e.KeyID != k.ID {
			t.Errorf("error = %#v, want a *core.Error with key %s", err, k.ID)
		}
	})

	t.Run("a run starts as running or queued", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		w := f.publish("greet", nil)
		a := f.admission(w, nil)
		a.Run.Status = core.RunSucceeded
		if _, err := f.Admit(t.Context(), a); err == nil {
			t.Error("a run was admitted as succeeded")
		}
	})

	t.Run("Q1: 1000 at once on a key with 100 runs", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		w, k := f.publish("greet", nil), f.createKey(func(k *auth.Key) { k.MaxRuns = 100 })
		var admitted, refused atomic.Int64
		atOnce(1000, func(int) {
			switch _, err := f.Admit(t.Context(), f.admission(w, &k)); core.CodeOf(err) {
			case "":
				admitted.Add(1)
			case core.CodeQuotaExhausted:
				refused.Add(1)
			default:
				t.Error(err)
			}
		})
		wantEqual(t, "admitted", admitted.Load(), 100)
		wantEqual(t, "refused", refused.Load(), 900)
		wantUsed(t, f, k.ID, 100)
	})

	t.Run("K2: nothing is admitted after a revocation has answered", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		w, k := f.publish("greet", nil), f.createKey(nil)
		var revoked atomic.Bool
		var late atomic.Int64
		started := make(chan struct{}, 64)
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				for {
					after := revoked.Load()
					_, err := f.Admit(t.Context(), f.admission(w, &k))
					if err == nil && after {
						late.Add(1)
					}
					select {
					case started <- struct{}{}:
					default:
					}
					if after || err != nil {
						return
					}
				}
			})
		}
		for range 32 {
			<-started
		}
		_, err := f.RevokeKey(t.Context(), account, k.ID, "", f.event(core.ActionKeyRevoke, k.ID))
		revoked.Store(true)
		wg.Wait()
		f.must(err)
		wantEqual(t, "admitted after the revocation", late.Load(), 0)
		wantUsed(t, f, k.ID, -1)
	})
}

func exerciseIdempotency(t *testing.T, open func(t *testing.T) *fixture) {
	with := func(a core.Admission, key, fingerprint string) core.Admission {
		a.Idempotency = &core.Idempotency{
			Principal: a.Run.Trigger.Principal, Workflow: a.Run.Workflow.ID, Key: key, Fingerprint: fingerprint, ExpiresAt: a.Run.CreatedAt.Add(24 * time.Hour),
		}
		return a
	}

	t.Run("the same request finds the run of the first", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		w, k := f.publish("greet", nil), f.createKey(func(k *auth.Key) { k.MaxRuns = 1 })
		first, err := f.Admit(t.Context(), with(f.admission(w, &k), "invoice-981", "sha256:a"))
		f.must(err)
		events := len(auditLog(t, f))
		_, err = f.SetWorkflowEnabled(t.Context(), account, w.ID, false, f.event(core.ActionWorkflowDisable, w.ID))
		f.must(err)
		// Neither the used up quota nor the disabled workflow matters to what was accepted before.
		again, err := f.Admit(t.Context(), with(f.admission(w, &k), "invoice-981", "sha256:a"))
		f.must(err)
		wantEqual(t, "second answer", again, core.Admitted{RunID: first.RunID, Replayed: true})
		wantUsed(t, f, k.ID, 1)
		wantEqual(t, "audit events of the replay", len(auditLog(t, f))-events-1, 0)
	})

	t.Run("an earlier request is found without asking for a run", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		w, k := f.publish("greet", nil), f.createKey(nil)
		first := with(f.admission(w, &k), "invoice-981", "sha256:a")
		got, err := f.Admit(t.Context(), first)
		f.must(err)
		other := with(f.admission(w, &k), "invoice-981", "sha256:b")
		unused := with(f.admission(w, &k), "invoice-982", "sha256:a")
		elsewhere := with(f.admission(f.publish("other", nil), &k), "invoice-981", "sha256:a")
		at := first.Run.CreatedAt
		for _, c := range []struct {
			name, account string
			id            *core.Idempotency
			at            time.Time
			want          string
		}{
			{"the same", account, first.Idempotency, at.Add(24*time.Hour - time.Microsecond), got.RunID},
			{"too late", account, first.Idempotency, at.Add(24 * time.Hour), ""},
			{"another request", account, other.Idempotency, at, ""},
			{"another key", account, unused.Idempotency, at, ""},
			{"another workflow", account, elsewhere.Idempotency, at, ""},
			{"another account", "acct_other", first.Idempotency, at, ""},
		} {
			run, err := f.Earlier(t.Context(), c.account, c.id, c.at)
			f.must(err)
			wantEqual(t, c.name, run, c.want)
		}
	})

	t.Run("another request under the same key is refused", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		w, k := f.publish("greet", nil), f.createKey(nil)
		_, err := f.Admit(t.Context(), with(f.admission(w, &k), "invoice-981", "sha256:a"))
		f.must(err)
		_, err = f.Admit(t.Context(), with(f.admission(w, &k), "invoice-981", "sha256:b"))
		wantCode(t, err, core.CodeIdempotencyKeyReused)
		wantUsed(t, f, k.ID, 1)
	})

	t.Run("a revoked key gets no replay", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		w, k := f.publish("greet", nil), f.createKey(nil)
		_, err := f.Admit(t.Context(), with(f.admission(w, &k), "invoice-981", "sha256:a"))
		f.must(err)
		_, err = f.RevokeKey(t.Context(), account, k.ID, "", f.event(core.ActionKeyRevoke, k.ID))
		f.must(err)
		_, err = f.Admit(t.Context(), with(f.admission(w, &k), "invoice-981", "sha256:a"))
		wantCode(t, err, core.CodeKeyRevoked)
	})

	t.Run("a refused request does not use the key up", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		w, k := f.publish("greet", func(p *core.Publication) { p.Workflow.Enabled = false }), f.createKey(nil)
		_, err := f.Admit(t.Context(), with(f.admission(w, &k), "invoice-981", "sha256:a"))
		wantCode(t, err, core.CodeWorkflowDisabled)
		_, err = f.SetWorkflowEnabled(t.Context(), account, w.ID, true, f.event(core.ActionWorkflowEnable, w.ID))
		f.must(err)
		got, err := f.Admit(t.Context(), with(f.admission(w, &k), "invoice-981", "sha256:b"))
		f.must(err)
		wantEqual(t, "replayed", got.Replayed, false)
	})

	t.Run("scope is account, principal and workflow", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		w, other, k := f.publish("greet", nil), f.publish("other", nil), f.createKey(nil)
		k2 := f.createKey(nil)
		for name, a := range map[string]core.Admission{
			"first":             f.admission(w, &k),
			"another workflow":  f.admission(other, &k),
			"another principal": f.admission(w, &k2),
		} {
			got, err := f.Admit(t.Context(), with(a, "invoice-981", "sha256:"+name))
			f.must(err)
			if got.Replayed {
				t.Errorf("%s: replayed", name)
			}
		}
	})

	t.Run("an expired key starts a new run", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		w, k := f.publish("greet", nil), f.createKey(nil)
		_, err := f.Admit(t.Context(), with(f.admission(w, &k), "invoice-981", "sha256:a"))
		f.must(err)
		later := f.admission(w, &k)
		later.Run.CreatedAt = epoch.Add(24 * time.Hour)
		second, err := f.Admit(t.Context(), with(later, "invoice-981", "sha256:b"))
		f.must(err)
		wantEqual(t, "second answer", second, core.Admitted{RunID: later.Run.ID})
		third := f.admission(w, &k)
		third.Run.CreatedAt = epoch.Add(25 * time.Hour)
		got, err := f.Admit(t.Context(), with(third, "invoice-981", "sha256:b"))
		f.must(err)
		wantEqual(t, "third answer", got, core.Admitted{RunID: later.Run.ID, Replayed: true})
	})

	t.Run("D3: 50 at once are one run", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		w, k := f.publish("greet", nil), f.createKey(nil)
		var mu sync.Mutex
		ids, replayed := map[string]bool{}, 0
		atOnce(50, func(int) {
			got, err := f.Admit(t.Context(), with(f.admission(w, &k), "invoice-981", "sha256:a"))
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			ids[got.RunID] = true
			if got.Replayed {
				replayed++
			}
		})
		wantEqual(t, "runs", len(ids), 1)
		wantEqual(t, "replays", replayed, 49)
		wantUsed(t, f, k.ID, 1)
	})
}

// wantUsed checks promise Q1 for a key: its counter is want and, whatever that is, the number of its runs. A want of -1 checks only the
// latter.
func wantUsed(t *testing.T, f *fixture, key string, want int64) {
	t.Helper()
	k, err := f.Key(t.Context(), account, key)
	f.must(err)
	if want >= 0 && k.RunsUsed != want {
		t.Fatalf("key %s: counter = %d, want %d", key, k.RunsUsed, want)
	}
	runs := pages(t, core.MaxPage, func(ctx context.Context, p core.Page) (core.List[core.Run], error) {
		return f.Runs(ctx, account, core.RunFilter{KeyID: key}, p)
	})
	if int64(len(runs)) != k.RunsUsed {
		t.Fatalf("key %s: counter = %d, but it has %d runs", key, k.RunsUsed, len(runs))
	}
}

// atOnce runs do n times, all at the same time, and waits for them.
func atOnce(n int, do func(i int)) {
	var wg sync.WaitGroup
	gate := make(chan struct{})
	for i := range n {
		wg.Go(func() {
			<-gate
			do(i)
		})
	}
	close(gate)
	wg.Wait()
}
