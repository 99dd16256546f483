package queue

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyfire/keyfire/core"
)

// This file is about the lines of workflows with a limit. One is made for the first run that waits in it, and removed when nothing went through it for a
// while, on all servers: a workflow may be deleted, or run once a month. A run that another server put into a line just before that stays in the stream, and
// keepLine makes the line again.

// limit sees to it that a workflow's line exists, on every server, with the limit of its newest run, whichever server that was accepted on.
func (q *JetStream) limit(ctx context.Context, name string, most int) error {
	q.mu.Lock()
	known, heard := q.limits[name], q.heard
	q.mu.Unlock()
	if known == most {
		return nil
	}
	c, err := q.stream.Consumer(ctx, name)
	same := err == nil && c.CachedInfo().Config.MaxAckPending == most
	if same {
		q.takePart(name, c)
	} else if err := q.open(ctx, name, most); err != nil {
		return err
	}
	q.mu.Lock()
	if q.heard == heard {
		q.limits[name] = most
	}
	q.mu.Unlock()
	if same {
		return nil
	}
	return q.announce(name)
}

// doubtLimits has the limit of a line looked up again, because another server may have changed it; of all lines for "".
func (q *JetStream) doubtLimits(name string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.heard++
	if name == "" {
		clear(q.limits)
	}
	delete(q.limits, name)
}

// scan takes part in lines that are new, and no longer in workflows' lines that are gone, and removes those through which nothing went for as long as idle. Other lines that
// are gone it makes anew.
func (q *JetStream) scan(ctx context.Context, idle time.Duration) error {
	q.mu.Lock()
	gone := maps.Clone(q.lines)
	q.mu.Unlock()
	var unused []string
	var known []*jetstream.ConsumerInfo
	consumers := q.stream.ListConsumers(ctx)
	for c := range consumers.Info() {
		known = append(known, c)
		delete(gone, c.Name)
		if strings.HasPrefix(c.Name, limitLine) && emptyFor(c) > idle {
			unused = append(unused, c.Name)
		} else if err := q.join(ctx, c.Name); err != nil {
			return err
		}
	}
	if err := consumers.Err(); err != nil {
		return err
	}
	for name := range gone {
		if strings.HasPrefix(name, limitLine) {
			q.forget(name)
			continue
		}
		// Somebody removed it, or NATS lost it. What waits in it is still in the stream, so nobody would miss it, or deliver it.
		if err := q.open(ctx, name, -1); err != nil {
			return err
		}
		q.cfg.Logger.Warn("a line of the queue was missing in NATS, and is made anew", slog.String("line", name))
	}
	for _, name := range unused {
		if err := q.stream.DeleteConsumer(ctx, name); err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
			return fmt.Errorf("remove line %s: %w", name, err)
		}
		q.forget(name)
		if err := q.announce(name); err != nil {
			return err
		}
	}
	return q.removeSettled(ctx, known)
}

// emptyFor returns for how long nothing has been in a line. The clocks of the servers and of NATS may differ by less than matters.
func emptyFor(c *jetstream.ConsumerInfo) time.Duration {
	if c.NumPending > 0 || c.NumAckPending > 0 {
		return 0
	}
	since := c.Created
	if last := c.Delivered.Last; last != nil && last.After(since) {
		since = *last
	}
	return time.Since(since)
}

// forget ends this server's part in a workflow's line. What was given from it is settled as it would have been.
func (q *JetStream) forget(name string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	l := q.lines[name]
	if l == nil {
		return
	}
	l.gone = true
	delete(q.lines, name)
	delete(q.limits, name)
	q.turns = slices.DeleteFunc(slices.Clone(q.turns), func(other *line) bool { return other == l })
	q.changed.Broadcast()
}

// keepLine makes the line of a run that waits, if it has one of its own that is gone.
func (q *JetStream) keepLine(ctx context.Context, job *core.Job) error {
	if job.Limit == 0 || job.Due.After(time.Now()) {
		return nil
	}
	name := q.lineOf(job)
	q.mu.Lock()
	known := q.lines[name] != nil
	q.mu.Unlock()
	if known {
		return nil
	}
	return q.limit(ctx, name, job.Limit)
}
