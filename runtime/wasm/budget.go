package wasm

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"
)

// budget is what all guests together may hold, in bytes. A guest says at its start how much it may come to need, its claim, and takes what it needs as it goes. What it asks for, to
// start or to grow, it gets if all can still end afterwards whatever they ask for (safe): each in some order with what is free and what those before it have given back. So guests never
// wait for each other in a ring, and whoever waits gets what it asked for once others end.
//
// Of those that wait, the one goes next whose account holds least, and within an account whose caller does: whoever has filled the budget makes everybody else wait for one of its
// guests to end, and not for all that it has sent. Who is to grow goes before those that are to start, since others may wait for what it holds.
type budget struct {
	size    int64
	mu      sync.Mutex
	free    int64
	held    map[holder]int64 // bytes; of an account under its name alone
	shares  []*share         // of those under way
	largest int64            // no less than what any of them may still ask for

	starting []*share  // those that wait to start, the oldest in front; no more than runs are let in, by as many nodes as each executes at once
	growing  []*share  // those under way that wait to grow
	passed   time.Time // when those that are to grow began to be overtaken
	again    *time.Timer

	spare []*share // to be used again
	rest  []*share // of safe
}

// holder is who holds bytes. The zero value is the server itself.
type holder struct{ account, caller string }

// share is what one guest has of the budget.
type share struct {
	who   holder
	claim int64 // the most it will hold
	held  int64
	at    int // in budget.shares

	wants int64         // while it waits
	ready chan struct{} // closed, under budget.mu, when it has that
}

// passing is for how long those that are to grow are overtaken at first by those that are to start and whose account or caller holds less. Then they are not for twice as long, then are
// for three times as long, and so on, until one of them gets what it asks for. Without the first, an account would keep others out for as long as all that it has started grows;
// without the second, small guests of one could keep large ones of another from ever getting on.
const passing = 100 * time.Millisecond

// Who holds more than a quarter starts nothing that may grow in the last part, of 32, beside what others may still ask for: somebody else who asks for as little as most do need
// not wait for one of those guests to end.
const (
	muchPart = 4
	lastPart = 32
)

func newBudget(size int64) *budget {
	return &budget{size: size, free: size, held: make(map[holder]int64)}
}

// try begins a share with n bytes, or returns nil if that has to wait.
func (b *budget) try(who holder, claim, n int64) *share {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.starting) > 0 || len(b.growing) > 0 {
		return nil
	}
	s := b.share(who, claim)
	if !b.begin(s, n) {
		b.spare = append(b.spare, s)
		return nil
	}
	return s
}

// start begins a share with n bytes, waiting until it can have them or ctx is done. The claim must not be more than the whole budget.
func (b *budget) start(ctx context.Context, who holder, claim, n int64) (*share, error) {
	b.mu.Lock()
	s := b.share(who, claim)
	ready := s.wait(n)
	b.starting = append(b.starting, s)
	b.serve()
	b.mu.Unlock()
	if err := b.await(ctx, s, ready, &b.starting); err != nil {
		return nil, err
	}
	return s, nil
}

// tryGrow adds n bytes to a share, or reports false if that has to wait. A share never holds more than its claim.
func (b *budget) tryGrow(s *share, n int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.growing) == 0 && b.give(s, n)
}

// grow adds n bytes to a share, waiting until it can have them or ctx is done.
func (b *budget) grow(ctx context.Context, s *share, n int64) error {
	b.mu.Lock()
	ready := s.wait(n)
	if len(b.growing) == 0 {
		b.passed = time.Now()
	}
	b.growing = append(b.growing, s)
	b.serve()
	b.mu.Unlock()
	return b.await(ctx, s, ready, &b.growing)
}

// end gives back what a share holds. It must not be used any more.
func (b *budget) end(s *share) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.drop(s)
	b.serve()
}

// usage returns the bytes that are taken, and how many wait for some.
func (b *budget) usage() (taken int64, waiting int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.size - b.free, len(b.starting) + len(b.growing)
}

func (s *share) wait(n int64) chan struct{} {
	s.wants, s.ready = n, make(chan struct{})
	return s.ready
}

// await waits for what a share wants. When ctx is done before that, the share leaves those that wait, and one that was to start, the budget.
func (b *budget) await(ctx context.Context, s *share, ready chan struct{}, waiting *[]*share) error {
	select {
	case <-ready:
		return nil
	case <-ctx.Done():
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	i := slices.Index(*waiting, s)
	if i >= 0 {
		*waiting = slices.Delete(*waiting, i, i+1)
	}
	if waiting == &b.starting {
		if i >= 0 {
			b.spare = append(b.spare, s)
		} else { // it was to start in the same moment
			b.drop(s)
		}
	}
	b.serve()
	return context.Cause(ctx)
}

// Everything below is called with mu held.

// share returns a new share, which holds nothing.
func (b *budget) share(who holder, claim int64) *share {
	var s *share
	if last := len(b.spare) - 1; last >= 0 {
		s, b.spare = b.spare[last], b.spare[:last]
	} else {
		s = new(share)
	}
	*s = share{who: who, claim: claim}
	return s
}

// begin adds a share to those under way, with n bytes, if that is safe.
func (b *budget) begin(s *share, n int64) bool {
	left := int64(0)
	if b.held[s.who] > b.size/muchPart {
		left = min(b.size/lastPart, s.claim-n)
	}
	s.at = len(b.shares)
	b.shares = append(b.shares, s)
	b.free -= left
	safe := b.give(s, n)
	b.free += left
	if !safe {
		b.shares = b.shares[:s.at]
	}
	return safe
}

// drop takes a share from those under way.
func (b *budget) drop(s *share) {
	b.take(s, -s.held)
	last := len(b.shares) - 1
	moved := b.shares[last]
	b.shares[s.at], moved.at = moved, s.at
	b.shares[last], b.shares = nil, b.shares[:last]
	if last == 0 {
		b.largest = 0
	}
	b.spare = append(b.spare, s)
}

// give adds n bytes to a share if that is safe.
func (b *budget) give(s *share, n int64) bool {
	n = min(n, s.claim-s.held)
	if n > b.free {
		return false
	}
	b.free -= n
	s.held += n
	safe := b.free >= max(b.largest, s.needs())
	if safe {
		b.largest = max(b.largest, s.needs())
	} else {
		safe = b.safe()
	}
	b.free += n
	s.held -= n
	if safe {
		b.take(s, n)
	} else {
		b.largest = max(b.largest, s.needs())
	}
	return safe
}

// needs returns how much a share may still ask for.
func (s *share) needs() int64 { return s.claim - s.held }

// safe reports whether all that are under way can end, whatever they still ask for: those that need least first.
func (b *budget) safe() bool {
	can := b.free
	rest := b.rest[:0]
	b.largest = 0
	var most int64 // that one of the rest needs
	for _, s := range b.shares {
		need := s.needs()
		b.largest = max(b.largest, need)
		if need <= can {
			can += s.held
		} else {
			rest = append(rest, s)
			most = max(most, need)
		}
	}
	b.rest = rest
	switch {
	case most <= can:
		return true
	case len(rest) == len(b.shares):
		return false
	}
	slices.SortFunc(rest, func(s, t *share) int { return cmp.Compare(s.needs(), t.needs()) })
	for _, s := range rest {
		if s.needs() > can {
			return false
		}
		can += s.held
	}
	return true
}

// take gives bytes to a share, or back.
func (b *budget) take(s *share, n int64) {
	b.free -= n
	s.held += n
	b.count(holder{account: s.who.account}, n)
	if s.who.caller != "" {
		b.count(s.who, n)
	}
}

func (b *budget) count(who holder, n int64) {
	if left := b.held[who] + n; left != 0 {
		b.held[who] = left
	} else {
		delete(b.held, who)
	}
}

// serve wakes as many of those that wait, in their order, as can have what they want. Nobody overtakes the one that starts next, so that a large one is not starved by small ones.
func (b *budget) serve() {
	for len(b.starting)+len(b.growing) > 0 {
		if len(b.starting) > 0 {
			i := b.next(b.starting)
			if s := b.starting[i]; b.passes(s) && b.begin(s, s.wants) {
				close(s.ready)
				b.starting = slices.Delete(b.starting, i, i+1)
				continue
			}
		}
		i := b.grower()
		if i < 0 {
			return
		}
		close(b.growing[i].ready)
		b.growing = slices.Delete(b.growing, i, i+1)
		b.passed = time.Now()
	}
}

// passes reports whether a share may start now, as far as those are concerned that wait to grow. If it may later, it is looked at again then.
func (b *budget) passes(s *share) bool {
	if len(b.growing) == 0 {
		return true
	}
	if !b.before(s.who, b.growing[b.next(b.growing)].who) {
		return false
	}
	since := time.Since(b.passed)
	turn, end := 1, passing
	for ; end <= since; end += time.Duration(turn) * passing {
		turn++
	}
	if turn%2 == 1 {
		return true
	}
	wait := end - since
	if b.again == nil {
		b.again = time.AfterFunc(wait, func() {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.serve()
		})
	} else {
		b.again.Reset(wait)
	}
	return false
}

// grower gives one of those that wait to grow what it wants, and returns which, or -1. Where all wait, as any state that is safe has a share that could get all it may still
// ask for, that one can be given what it asks for now, so one of them always goes on.
func (b *budget) grower() int {
	if len(b.growing) == 0 {
		return -1
	}
	first := b.next(b.growing)
	if s := b.growing[first]; b.give(s, s.wants) {
		return first
	}
	found := -1
	for i, s := range b.growing {
		if s.needs() <= b.free && (found < 0 || b.goes(s, b.growing[found])) {
			found = i
		}
	}
	if found >= 0 && !b.give(b.growing[found], b.growing[found].wants) {
		return -1 // which cannot be: it could end next, as before
	}
	return found
}

// next returns which of those that wait goes next. There is one.
func (b *budget) next(waiting []*share) int {
	least := 0
	for i, s := range waiting {
		if b.goes(s, waiting[least]) {
			least = i
		}
	}
	return least
}

// goes reports whether a share goes before another that has waited for longer. Of one holder's that are to grow, the one does that may end with the least: many that hold a part of what
// they need would keep each other waiting.
func (b *budget) goes(s, other *share) bool {
	if s.who == other.who {
		return s.held > 0 && s.needs() < other.needs()
	}
	return b.before(s.who, other.who)
}

func (b *budget) before(who, other holder) bool {
	if by := cmp.Compare(b.held[holder{account: who.account}], b.held[holder{account: other.account}]); by != 0 {
		return by < 0
	}
	return b.held[who] < b.held[other]
}
