package trigger

import (
	"context"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/queue"
	"github.com/keyfire/keyfire/core/internal/queue/queuetest"
	"github.com/keyfire/keyfire/core/internal/store"
	"github.com/keyfire/keyfire/core/internal/store/storetest"
)

// BenchmarkDurable measures durable runs on real databases and queues with a graph that does nothing: how many are accepted in a second by 64 callers, which
// BenchmarkAccept of package cli puts beside a bare insert; how fast the accepted ones are executed, each with its claim and its end committed; and how long it
// is from the call to the start of the execution on an idle server.
func BenchmarkDurable(b *testing.B) {
	for _, where := range []struct {
		name   string
		shared bool
	}{{"sqlite", false}, {"postgres+nats", true}} {
		b.Run(where.name, func(b *testing.B) { benchmarkDurable(b, where.shared) })
	}
}

func benchmarkDurable(b *testing.B, shared bool) {
	open := func(b *testing.B, workers int) (*bundle, auth.Credential) {
		b.Helper()
		database := store.Config{Path: filepath.Join(b.TempDir(), "k.db"), Shared: shared}
		if shared {
			database.URL = storetest.Postgres(b)
		}
		s := setupOn(b, database, func(c *Config) {
			c.MaxWorkers = workers
			if !shared {
				c.Queue = queue.NewInProcess(queue.Config{Max: 100_000_000})
				return
			}
			q, err := queue.NewJetStream(b.Context(), queue.JetStreamConfig{URL: queuetest.NewNats(b).URL, Name: "bench", Max: 10_000_000, Logger: c.Logger})
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() {
				if err := q.Shutdown(); err != nil {
					b.Error(err)
				}
			})
			c.Queue, c.Signals = q, q
		})
		s.publish("w", nil)
		_, c := s.key(0, auth.ScopeRunAll)
		return s, c
	}
	accept := func(b *testing.B, s *bundle, c auth.Credential) {
		b.Helper()
		var left atomic.Int64
		left.Store(int64(b.N))
		var wg sync.WaitGroup
		for range 64 {
			wg.Go(func() {
				for left.Add(-1) >= 0 {
					ticket, err := s.Open(context.Background(), Attempt{Credential: c, Origin: s.origin, Workflow: "w"})
					if err == nil {
						_, err = s.Begin(context.Background(), ticket, Payload{Durable: true})
					}
					if err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
	}
	b.Run("accept", func(b *testing.B) {
		s, c := open(b, 1)
		b.ReportAllocs()
		b.ResetTimer()
		accept(b, s, c)
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "runs/s")
	})
	b.Run("drain", func(b *testing.B) {
		s, c := open(b, 50)
		accept(b, s, c)
		var done sync.WaitGroup
		done.Add(b.N)
		s.engine.run = func(context.Context, *core.Run) { done.Done() }
		b.ResetTimer()
		s.StartWorkers()
		done.Wait()
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "runs/s")
	})
	b.Run("pickup", func(b *testing.B) {
		s, c := open(b, 4)
		began := make(chan time.Time, 1)
		s.engine.run = func(context.Context, *core.Run) { began <- time.Now() }
		s.StartWorkers()
		var took []time.Duration
		for b.Loop() {
			start := time.Now()
			s.durable(c, "w", Payload{})
			took = append(took, (<-began).Sub(start))
		}
		slices.Sort(took)
		b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
		b.ReportMetric(float64(took[len(took)*95/100].Microseconds()), "p95-µs")
	})
}
