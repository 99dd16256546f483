package core

import "sync"

// Slots bounds what is done at once. Those that wait take turns by account and caller, so whoever has sent a thousand makes nobody else wait for all of them. It is
// safe for concurrent use.
type Slots struct {
	mu      sync.Mutex
	free    int // below 0 if more are taken than there are
	waiting Turns[*slotWait]
	wait    int // how many of waiting are not gone
}

type slotWait struct {
	given chan struct{} // closed when the slot is theirs
	gone  bool
}

// NewSlots returns n slots.
func NewSlots(n int) *Slots { return &Slots{free: n} }

// Try takes a slot if one is free.
func (s *Slots) Try() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.try()
}

func (s *Slots) try() bool {
	if s.free <= 0 {
		return false
	}
	s.free--
	return true
}

// Acquire waits for a slot. It returns false when done is closed first.
func (s *Slots) Acquire(done <-chan struct{}, account, caller string) bool {
	s.mu.Lock()
	if s.try() {
		s.mu.Unlock()
		return true
	}
	w := s.push(account, caller)
	s.mu.Unlock()
	return s.await(done, w)
}

// PassOn gives a slot back and waits for another one, which comes after those of everybody who waited already. If nobody does, it keeps the slot. It returns false when done is closed
// first.
func (s *Slots) PassOn(done <-chan struct{}, account, caller string) bool {
	s.mu.Lock()
	if s.wait == 0 && s.free >= 0 {
		s.mu.Unlock()
		return true
	}
	w := s.push(account, caller)
	s.pass()
	s.mu.Unlock()
	return s.await(done, w)
}

func (s *Slots) push(account, caller string) *slotWait {
	w := &slotWait{given: make(chan struct{})}
	s.waiting.Push(account, caller, w)
	s.wait++
	return w
}

func (s *Slots) await(done <-chan struct{}, w *slotWait) bool {
	select {
	case <-w.given:
		return true
	case <-done:
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-w.given:
		s.pass()
	default:
		w.gone = true // it is passed over when its turn comes
		s.wait--
	}
	return false
}

// Seize takes a slot whether or not there is one.
func (s *Slots) Seize() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free--
}

// Release gives a slot back.
func (s *Slots) Release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pass()
}

// State returns how many slots are free, below 0 if more are taken than there are, and how many wait for one.
func (s *Slots) State() (free, waiting int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.free, s.wait
}

// pass gives a slot to the next one that still waits.
func (s *Slots) pass() {
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
			s.wait--
			close(w.given)
			return
		}
	}
}
