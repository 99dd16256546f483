package queue

import "sync"

// Signals tells whoever follows a run that there is something new about it, and whoever executes it that it is to stop. A signal carries
// nothing but the run's name: what is new is in the store. It may be lost, so a follower also looks by itself from time to time, and a
// cancelled run is also found out when its next step is committed. Implementations are safe for concurrent use and never block.
type Signals interface {
	// Changed tells the followers of a run, on every server, that something about it was committed.
	Changed(account, run string)
	// Follow returns a channel that receives after Changed; several signals may become one. stop ends it.
	Follow(account, run string) (changed <-chan struct{}, stop func())
	// Cancel asks whichever server executes the run to stop it.
	Cancel(account, run string)
	// OnCancel has fn called, from any goroutine, for every Cancel on any server, this one included. fn must not block. stop ends it.
	OnCancel(fn func(account, run string)) (stop func())
}

// LocalSignals is the Signals of one server. The zero value is ready to use.
type LocalSignals struct {
	mu        sync.Mutex
	followers map[jobID]map[chan struct{}]struct{}
	cancels   map[*func(account, run string)]struct{}
}

var _ Signals = (*LocalSignals)(nil)

// Changed implements Signals.
func (s *LocalSignals) Changed(account, run string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.followers[jobID{account, run}] {
		select {
		case c <- struct{}{}:
		default: // it has not looked since the last one
		}
	}
}

// Follow implements Signals.
func (s *LocalSignals) Follow(account, run string) (<-chan struct{}, func()) {
	c := make(chan struct{}, 1)
	id := jobID{account, run}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.followers == nil {
		s.followers = map[jobID]map[chan struct{}]struct{}{}
	}
	if s.followers[id] == nil {
		s.followers[id] = map[chan struct{}]struct{}{}
	}
	s.followers[id][c] = struct{}{}
	return c, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if delete(s.followers[id], c); len(s.followers[id]) == 0 {
			delete(s.followers, id)
		}
	}
}

// Cancel implements Signals.
func (s *LocalSignals) Cancel(account, run string) {
	s.mu.Lock()
	listening := make([]*func(account, run string), 0, len(s.cancels))
	for fn := range s.cancels {
		listening = append(listening, fn)
	}
	s.mu.Unlock()
	for _, fn := range listening {
		(*fn)(account, run)
	}
}

// OnCancel implements Signals.
func (s *LocalSignals) OnCancel(fn func(account, run string)) (stop func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cancels == nil {
		s.cancels = map[*func(account, run string)]struct{}{}
	}
	s.cancels[&fn] = struct{}{}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.cancels, &fn)
	}
}
