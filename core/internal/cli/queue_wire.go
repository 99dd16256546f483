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
	q, err := queue.NewJetStream(ctx, queue.JetStreamConfig{URL: cfg.Queue, Name: s.store.ID(), Max: cfg.MaxQueued, Logger: s.log})
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
			if idAge(job.Run) > settled {
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

// idAge returns how long ago an id was made. One without a time is old.
func idAge(id string) time.Duration {
	_, text, _ := strings.Cut(id, "_")
	u, err := ulid.Parse(strings.ToUpper(text))
	if err != nil {
		return time.Hour
	}
	return time.Since(ulid.Time(u.Time()))
}
