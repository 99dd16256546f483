//go:build unix

package store_test

import (
	"encoding/json"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/store"
	"github.com/keyfire/keyfire/core/internal/store/storetest"
)

// BenchmarkWrites compares what a trigger costs the store with the least that durable group commit costs with this driver:
// bare-insert is one insert of 512 bytes, bare-accept the same after an update of a counter. All figures of one run are
// comparable, those of different runs are not.
func BenchmarkWrites(b *testing.B) {
	for _, callers := range []int{1, 64} {
		for _, bare := range []struct {
			name   string
			charge bool
		}{{"bare-insert", false}, {"bare-accept", true}} {
			b.Run(fmt.Sprintf("op=%s/callers=%d", bare.name, callers), func(b *testing.B) {
				insert, body := storetest.BareGroupCommit(b, bare.charge), string(make([]byte, 512))
				concurrently(b, callers, func(i int64) error { return insert(fmt.Sprintf("run_%026d", i), body) })
			})
		}
		b.Run(fmt.Sprintf("op=admit/callers=%d", callers), func(b *testing.B) {
			s, a := benchStore(b)
			concurrently(b, callers, func(i int64) error {
				_, err := s.Admit(b.Context(), a(i))
				return err
			})
		})
		b.Run(fmt.Sprintf("op=admit+finish/callers=%d", callers), func(b *testing.B) {
			s, a := benchStore(b)
			concurrently(b, callers, func(i int64) error {
				ad := a(i)
				if _, err := s.Admit(b.Context(), ad); err != nil {
					return err
				}
				run := finishedRun(ad.Run)
				return s.FinishRun(b.Context(), &run)
			})
		})
	}
}

// BenchmarkTrigger is everything an inline trigger asks of the store.
func BenchmarkTrigger(b *testing.B) {
	for _, callers := range []int{1, 64} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			s, a := benchStore(b)
			concurrently(b, callers, func(i int64) error {
				_, err := s.KeyBySecret(b.Context(), benchKey.PublicID, func(*auth.FoundSecret) bool { return true })
				if err != nil {
					return err
				}
				w, err := s.Workflow(b.Context(), core.DefaultAccount, "greet")
				if err != nil {
					return err
				}
				if _, err := s.Version(b.Context(), core.DefaultAccount, w.ID, w.Version); err != nil {
					return err
				}
				ad := a(i)
				if _, err := s.Admit(b.Context(), ad); err != nil {
					return err
				}
				run := finishedRun(ad.Run)
				return s.FinishRun(b.Context(), &run)
			})
		})
	}
}

func BenchmarkReads(b *testing.B) {
	s, a := benchStore(b)
	ad := a(1)
	if _, err := s.Admit(b.Context(), ad); err != nil {
		b.Fatal(err)
	}
	run := finishedRun(ad.Run)
	if err := s.FinishRun(b.Context(), &run); err != nil {
		b.Fatal(err)
	}
	for name, read := range map[string]func() error{
		"key": func() error {
			_, err := s.KeyBySecret(b.Context(), benchKey.PublicID, func(*auth.FoundSecret) bool { return true })
			return err
		},
		"workflow": func() error { _, err := s.Workflow(b.Context(), core.DefaultAccount, "greet"); return err },
		"version":  func() error { _, err := s.Version(b.Context(), core.DefaultAccount, "wf_1", 1); return err },
		"run":      func() error { _, err := s.Run(b.Context(), core.DefaultAccount, run.ID); return err },
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if err := read(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// concurrently does b.N operations from a number of goroutines.
func concurrently(b *testing.B, callers int, do func(i int64) error) {
	b.Helper()
	var next atomic.Int64
	var wg sync.WaitGroup
	b.ReportAllocs()
	b.ResetTimer()
	before := cpuTime(b)
	for range callers {
		wg.Go(func() {
			for {
				i := next.Add(1)
				if i > int64(b.N) {
					return
				}
				if err := do(i); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "op/s")
	// On a machine that does other things too, this is the figure to compare.
	b.ReportMetric(float64((cpuTime(b)-before).Microseconds())/float64(b.N), "cpu-µs/op")
}

// cpuTime returns what the process has used, in user and system mode.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

var benchKey = auth.Key{
	ID: "key_1", Account: core.DefaultAccount, Type: auth.TriggerKey, PublicID: "000000000001", Hash: make([]byte, 32), Pepper: 1, Last4: "9f3a",
	Name: "CI", Scopes: []string{auth.ScopeRunAll}, MaxRuns: 1 << 40, CreatedAt: time.Unix(1, 0),
}

// benchStore returns a store with a workflow and a key, and a maker of distinct admissions of the size that the greet example has.
func benchStore(b *testing.B) (*store.Store, func(i int64) core.Admission) {
	b.Helper()
	s := open(b, store.Config{})
	return s, fillBench(b, s)
}

// fillBench makes what the admissions that it returns need.
func fillBench(b *testing.B, s *store.Store) func(i int64) core.Admission {
	b.Helper()
	if err := s.CreateKey(b.Context(), benchKey, core.AuditEvent{}); err != nil {
		b.Fatal(err)
	}
	if _, _, err := s.PublishWorkflow(b.Context(), core.Publication{
		Account:  core.DefaultAccount,
		Workflow: core.Workflow{ID: "wf_1", Slug: "greet", Enabled: true},
		Version:  core.Version{Digest: "sha256:1", CreatedAt: time.Unix(1, 0)},
	}, core.AuditEvent{}); err != nil {
		b.Fatal(err)
	}
	return func(i int64) core.Admission {
		now := time.Now()
		id := fmt.Sprintf("run_%026d", i)
		trace := fmt.Sprintf("%016x%016x", uint64(i)*0x9e3779b97f4a7c15, i)
		return core.Admission{
			Run: core.Run{
				ID: id, Account: core.DefaultAccount, Status: core.RunRunning,
				Workflow: core.WorkflowRef{ID: "wf_1", Slug: "greet", Version: 1, Digest: "sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"},
				Trigger: core.TriggerInfo{
					Type: "api", Route: "native", Principal: "key:key_1", KeyID: "key_1", KeyName: "CI", KeyHint: "kft_000000000001...9f3a", Backend: "apikey", SourceIP: "127.0.0.1",
				},
				Input: json.RawMessage(`{"name":"Ada"}`), CreatedAt: now, StartedAt: now, DeadlineAt: now.Add(30 * time.Second), Attempt: 1,
				TraceID: trace, RequestID: "req_01jd3v6q8k2m4n5p7r9s1t3v5w",
			},
			KeyID: "key_1", KeyRevision: 1,
			Audit: core.AuditEvent{
				ID: "evt_01jd3v6q8k2m4n5p7r9s1t3v5w", Account: core.DefaultAccount, Time: now, Actor: "key:key_1", KeyID: "key_1", SourceIP: "127.0.0.1",
				Action: core.ActionRunAccept, Object: id, Outcome: core.OutcomeOK, RequestID: "req_01jd3v6q8k2m4n5p7r9s1t3v5w", TraceID: trace, Count: 1,
			},
		}
	}
}

// finishedRun returns run as the greet example leaves it.
func finishedRun(run core.Run) core.Run {
	run.Status, run.FinishedAt = core.RunSucceeded, time.Now()
	run.Output = json.RawMessage(`{"greeting":"Hello, Ada!"}`)
	run.Steps = []core.Step{{
		ID: "greet", Status: core.StepSucceeded, Module: "sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae",
		Attempts:  []core.Attempt{{Number: 1, StartedAt: run.StartedAt, DurationUS: 1234, PeakMemory: 1966080}},
		Input:     json.RawMessage(`{"name":"Ada"}`),
		Output:    run.Output,
		StartedAt: run.StartedAt, FinishedAt: run.FinishedAt,
	}}
	return run
}
