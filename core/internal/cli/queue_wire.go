package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/queue"
)

// distribute makes the queue that hands durable runs to workers, and the signals about them: in memory for a server that is alone, in NATS for
// several.
func (s *system) distribute(ctx context.Context, cfg *Config) (queue.Queue, queue.Signals, error) {
	if cfg.Queue == "" {
		return queue.NewInProcess(queue.Config{Max: cfg.MaxQueued}), &queue.LocalSignals{}, nil
	}
	q, err := queue.NewJetStream(ctx, queue.JetStreamConfig{URL: cfg.Queue, Credentials: cfg.QueueProof, Name: s.store.ID(), Max: cfg.MaxQueued, Logger: s.log})
	if err != nil {
		return nil, nil, err
	}
	s.closers = append(s.closers, q.Shutdown)
	s.shared = q
	return q, q, nil
}

const (
	// settled is how old a run is when it must have reached the queue, if it ever will.
	settled = 5 * time.Second
	// sweepPage and sweepMost bound what one look takes from the database at a time, and in all.
	sweepPage = 1000
	sweepMost = 100_000
)

// requeue looks for runs that are accepted and nowhere in the shared queue, and queues them: a server may die, or NATS be away, between the
// commit of a run and its way into the queue, and NATS may lose what it has.
func (s *system) requeue(ctx context.Context) error {
	if s.shared == nil {
		return nil
	}
	var open []core.Job
	var after core.Job
	for len(open) < sweepMost {
		page, err := s.store.OpenRuns(ctx, after, sweepPage)
		if err != nil {
			return fmt.Errorf("find open runs: %w", err)
		}
		for _, job := range page {
			if isSettled(job.Run, time.Now()) {
				open = append(open, job)
			}
		}
		if len(page) < sweepPage {
			break
		}
		after = page[len(page)-1]
	}
	missing, err := s.shared.Missing(ctx, open)
	if err != nil {
		return err
	}
	for _, job := range missing {
		if err := s.shared.Add(ctx, job); err != nil {
			return err
		}
	}
	if len(missing) > 0 {
		s.log.Warn("accepted runs were not in the queue, and are now", "runs", len(missing))
	}
	return nil
}

// isSettled reports whether a run must have reached the queue by now. Its id has its time by the clock of the server that accepted it, which may be ahead: one from the future is looked
// for too, or nobody would look for it until then. To find it missing too early does no harm: whoever comes second with a run does not queue it again.
func isSettled(run string, now time.Time) bool {
	_, text, _ := strings.Cut(run, "_")
	u, err := ulid.Parse(strings.ToUpper(text))
	if err != nil {
		return true // without a time it is old
	}
	age := now.Sub(ulid.Time(u.Time()))
	return age > settled || age < -settled
}
