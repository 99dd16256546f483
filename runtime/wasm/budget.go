package wasm

import (
	"cmp"
	"context"
	"slices"
	"sync"
)

// budget is a weighted semaphore over bytes. Of those that wait, the one goes next whose account holds least, and within an account whose caller does: whoever has filled
// the budget with nodes that wait for a service makes everybody else wait for one of them to end, and not for all that it has sent. Nobody overtakes who goes next, so
// that a large one is not starved by small ones.
type budget struct {
	size    int64
	mu      sync.Mutex
	free    int64
	held    map[holder]int64 // bytes; of an account under its name alone
	waiting []*waiter        // the oldest in front; no more than runs are let in, by as many nodes as each executes at once
}

// holder is who holds bytes. The zero value is the server itself.
type holder struct{ account, caller string }

type waiter struct {
	who   holder
	bytes int64
	ready chan struct{} // closed, under budget.mu, when the bytes are the waiter's
}

func newBudget(size int64) *budget {
	return &budget{size: size, free: size, held: make(map[holder]int64)}
}

// try takes n bytes if nobody has to wait for that.
func (b *budget) try(who holder, n int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.waiting) > 0 || b.free < n {
		return false
	}
	b.take(who, n)
	return true
}

// acquire takes n bytes, waiting until they are free or ctx is done. It must not be asked for more than the whole budget.
func (b *budget) acquire(ctx context.Context, who holder, n int64) error {
	if b.try(who, n) {
		return nil
	}
	b.mu.Lock()
	w := &waiter{who, n, make(chan struct{})}
	b.waiting = append(b.waiting, w)
	b.serve() // whoever holds little may go before those that wait
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
		b.take(who, -n)
	default:
		i := slices.Index(b.waiting, w)
		b.waiting = slices.Delete(b.waiting, i, i+1)
	}
	b.serve()
	return context.Cause(ctx)
}

// take gives bytes to a holder, or back.
func (b *budget) take(who holder, n int64) {
	b.free -= n
	b.count(holder{account: who.account}, n)
	if who.caller != "" {
		b.count(who, n)
	}
}

func (b *budget) count(who holder, n int64) {
	if left := b.held[who] + n; left != 0 {
		b.held[who] = left
	} else {
		delete(b.held, who)
	}
}

// usage returns the bytes that are taken, and how many wait for some.
func (b *budget) usage() (taken int64, waiting int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.size - b.free, len(b.waiting)
}

func (b *budget) release(who holder, n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.take(who, -n)
	b.serve()
}

// serve wakes as many waiters, in their order, as fit. It is called with mu held.
func (b *budget) serve() {
	for len(b.waiting) > 0 {
		i := b.next()
		w := b.waiting[i]
		if w.bytes > b.free {
			return
		}
		b.take(w.who, w.bytes)
		close(w.ready)
		b.waiting = slices.Delete(b.waiting, i, i+1)
	}
}

// next returns which waiter goes next. There is one.
func (b *budget) next() int {
	least := 0
	for i, w := range b.waiting {
		if first := b.waiting[least].who; w.who != first && b.before(w.who, first) {
			least = i
		}
	}
	return least
}

func (b *budget) before(who, other holder) bool {
	if by := cmp.Compare(b.held[holder{account: who.account}], b.held[holder{account: other.account}]); by != 0 {
		return by < 0
	}
	return b.held[who] < b.held[other]
}
