package queue

import (
	"context"
	"time"

	"github.com/keyfire/keyfire/core"
)

// Held returns how many runs that are due an InProcess queue has in its memory, dropped ones included.
func (q *InProcess) Held() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := q.ready.Len() + q.next.Len()
	for _, parked := range q.parked {
		n += parked.Len()
	}
	return n
}

// Scan looks for lines that are new, gone or were empty for as long as idle, as a server does from time to time.
func (q *JetStream) Scan(ctx context.Context, idle time.Duration) error { return q.scan(ctx, idle) }

// Lines returns how many lines a server takes part in.
func (q *JetStream) Lines() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.lines)
}

// Unread returns how many runs NATS is yet to give to somebody.
func (q *JetStream) Unread(ctx context.Context) (int, error) {
	unread := 0
	lines := q.stream.ListConsumers(ctx)
	for c := range lines.Info() {
		unread += int(c.NumPending)
	}
	return unread, lines.Err()
}

// LineOf returns the line of a job that is due.
func (q *JetStream) LineOf(job core.Job) string { return q.lineOf(&job) }
