package queue

import (
	"maps"
	"slices"
	"sync"
)

// Signals tells whoever follows a run that there is something new about it, whoever executes it that it is to stop, and every server that a module is
// about to be called. A signal carries nothing but a name: what is new is in the store. It may be lost, so a follower also looks by itself from time to time, a
// cancelled run is also found out when its next step is committed, and a module that is not ready is made ready by its first call. Implementations are safe
// for concurrent use and never block.
type Signals interface {
	// Changed tells the followers of a run, on every server, that something about it was committed.
	Changed(account, run string)
	// Follow returns a channel that receives after Changed; several signals may become one. stop ends it.
	Follow(account, run string) (changed <-chan struct{}, stop func())
	// Cancel asks whichever server executes the run to stop it.
	Cancel(account, run string)
	// OnCancel has fn called, from any goroutine, for every Cancel on any server, this one included. fn must not block. stop ends it.
	OnCancel(fn func(account, run string)) (stop func())
	// Published tells every server that a workflow with the module was published.
	Published(account, module string)
	// OnPublished is to Published what OnCancel is to Cancel.
	OnPublished(fn func(account, module string)) (stop func())
}

// LocalSignals is the Signals of one server. The zero value is ready to use.
type LocalSignals struct {
	mu        sync.Mutex
	followers map[jobID]map[chan struct{}]struct{}
	cancels   listeners
	published listeners
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
func (s *LocalSignals) Cancel(account, run string) { s.cancels.tell(account, run) }

// OnCancel implements Signals.
func (s *LocalSignals) OnCancel(fn func(account, run string)) (stop func()) { return s.cancels.add(fn) }

// Published implements Signals.
func (s *LocalSignals) Published(account, module string) { s.published.tell(account, module) }

// OnPublished implements Signals.
func (s *LocalSignals) OnPublished(fn func(account, module string)) (stop func()) {
	return s.published.add(fn)
}

// listeners are the functions that hear of one kind of signal.
type listeners struct {
	mu  sync.Mutex
	fns map[*func(account, name string)]struct{}
}

func (l *listeners) tell(account, name string) {
	l.mu.Lock()
	listening := slices.Collect(maps.Keys(l.fns))
	l.mu.Unlock()
	for _, fn := range listening {
		(*fn)(account, name)
	}
}

func (l *listeners) add(fn func(account, name string)) (stop func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fns == nil {
		l.fns = map[*func(account, name string)]struct{}{}
	}
	l.fns[&fn] = struct{}{}
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.fns, &fn)
	}
}
