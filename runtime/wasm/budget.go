package wasm

import (
	"context"
	"sync"
)

// budget is a weighted semaphore over bytes. Waiters are served strictly in order, so that a large one is not starved by small ones.
type budget struct {
	size    int64
	mu      sync.Mutex
	free    int64
	waiting []*waiter
}

type waiter struct {
	bytes int64
	ready chan struct{} // closed, under budget.mu, when the bytes are the waiter's
}

func newBudget(size int64) *budget { return &budget{size: size, free: size} }

// acquire takes n bytes, waiting until they are free or ctx is done. It must not be asked for more than the whole budget.
func (b *budget) acquire(ctx context.Context, n int64) error {
	b.mu.Lock()
	if len(b.waiting) == 0 && b.free >= n {
		b.free -= n
		b.mu.Unlock()
		return nil
	}
	w := &waiter{n, make(chan struct{})}
	b.waiting = append(b.waiting, w)
	b.mu.Unlock()

	select {
	case <-w.ready:
		return nil
	case <-ctx.Done():
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case <-w.ready: // granted in the same moment: give it on
		b.free += n
	default:
		for i := range b.waiting {
			if b.waiting[i] == w {
				b.waiting = append(b.waiting[:i], b.waiting[i+1:]...)
				break
			}
		}
	}
	b.serve()
	return context.Cause(ctx)
}

// usage returns the bytes that are taken, and how many wait for some.
func (b *budget) usage() (taken int64, waiting int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.size - b.free, len(b.waiting)
}

func (b *budget) release(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.free += n
	b.serve()
}

// serve wakes as many waiters, from the front, as fit. It is called with mu held.
func (b *budget) serve() {
	n := 0
	for n < len(b.waiting) && b.waiting[n].bytes <= b.free {
		b.free -= b.waiting[n].bytes
		close(b.waiting[n].ready)
		n++
	}
	b.waiting = append(b.waiting[:0], b.waiting[n:]...)
}
