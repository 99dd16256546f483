// Package queue hands runs that were admitted to the workers that execute them, in turns that are fair to accounts and their callers.
//
// The store is the truth about runs: a queue holds names only, and whoever takes one claims the run in the store, where a stale claim
// is refused. A queue may therefore deliver a run twice, and may forget everything when its process dies, as long as what is unfinished is
// added again by whoever knows the store. There is one implementation for one server, [InProcess], and one on NATS JetStream for
// several; package queuetest holds what both must do.
package queue

import (
	"context"
	"errors"
	"time"

	"github.com/keyfire/keyfire/core"
)

// ErrClosed is what Take returns when the queue was closed.
var ErrClosed = errors.New("queue: closed")

// Queue distributes runs. Implementations are safe for concurrent use.
type Queue interface {
	// Reserve takes a place for a run that is about to be admitted, so that a full queue is known before anything is written. The error
	// is a *core.Error: CodeOverloaded with a time to retry after when there is no place for this caller, CodeDraining when the queue is
	// closed.
	Reserve(job core.Job) (Place, error)

	// Add queues a run that is admitted already, such as one that a server that died has left behind. It is never refused for lack of
	// room. An error means that the run may not have been queued.
	Add(ctx context.Context, job core.Job) error

	// Take waits for the next run that is due and whose workflow is within its limit. It returns ErrClosed after Close, and the cause of
	// ctx when that ends first.
	Take(ctx context.Context) (Delivery, error)

	// Drop takes a run that is waiting out of the queue, because it has ended without being executed. It is an optimisation: a run that
	// is delivered nevertheless is found to have ended when it is claimed.
	Drop(job core.Job)

	// Depth is how many runs wait, those for a later time included. Several servers may each know it with a delay.
	Depth() int

	// Close makes Take return, and refuses what is reserved from now on. Deliveries under way may still be settled. It may be called more
	// than once.
	Close()
}

// Place is room in a queue for one run. Exactly one of its methods is called, once.
type Place interface {
	// Put queues the run, which the caller has admitted. An error means that it may not have been queued; it is then up to whoever looks for
	// runs that are admitted and not queued.
	Put(ctx context.Context) error
	// Release gives the place back, because the run was not admitted.
	Release()
}

// Delivery is a run that one worker holds. Exactly one of Done, Again and Broken is called, once.
type Delivery interface {
	// Job returns what was queued.
	Job() core.Job
	// Done says that the run has ended, or is not to be executed.
	Done()
	// Again gives the run back, to be delivered at the given time; zero is at once.
	Again(at time.Time)
	// Broken is Again when it is not known how far the run came, or what was left of its time: it is delivered as one that was recovered.
	Broken(at time.Time)
	// Lost is closed when the queue can no longer keep the run from being delivered to another worker. Nil when that cannot happen.
	Lost() <-chan struct{}
}
