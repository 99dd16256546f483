package trigger

import (
	"context"
	"sync"

	"github.com/keyfire/keyfire/core"
)

// slots bounds the runs that execute at once. Those that wait take turns by account and caller, so whoever has sent a thousand makes nobody else wait for
// all of them.
type slots struct {
	mu      sync.Mutex
	free    int
	waiting core.Turns[*slotWait]
}

type slotWait struct {
	given chan struct{} // closed when the slot is theirs
	gone  bool
}

// acquire waits for a slot, with the place at hand for others meanwhile. It returns false when ctx ends first.
func (s *slots) acquire(ctx context.Context, account, caller string, place *Place) bool {
	s.mu.Lock()
	if s.free > 0 {
		s.free--
		s.mu.Unlock()
		return true
	}
	w := &slotWait{given: make(chan struct{})}
	s.waiting.Push(account, caller, w)
	s.mu.Unlock()
	place.Wait(1)
	defer place.Wait(-1)
	select {
	case <-w.given:
		return true
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-w.given:
		s.pass()
	default:
		w.gone = true // it is passed over when its turn comes
	}
	return false
}

// seize takes a slot whether or not there is one.
func (s *slots) seize() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free--
}

// release gives a slot back.
func (s *slots) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pass()
}

// pass gives a slot to the next one that still waits.
func (s *slots) pass() {
	if s.free < 0 { // more are taken than there are
		s.free++
		return
	}
	for {
		w, ok := s.waiting.Pop()
		if !ok {
			s.free++
			return
		}
		if !w.gone {
			close(w.given)
			return
		}
	}
}
