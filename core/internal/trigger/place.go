package trigger

import (
	"container/list"
	"time"
)

// Place is a request's place in the line. A nil Place is none. It is safe for concurrent use.
type Place struct {
	line   *line
	caller string
	since  time.Time // it waits, or is inside

	// Guarded by line.mu.
	inside    *list.Element // in line.inside, nil when it is not there
	guest     bool          // it is one of line.guests
	kept      bool          // it is one of line.kept
	computing int           // nodes that are executed for it
	away      int           // of them, those that wait for something that is no processor
	waiting   int           // what else is done for it and waits for that
	counted   int           // how many of line.computing are its
	outside   bool          // it is one of line.outside
	executes  bool          // a run does, which gives it back
	over      bool          // it is not coming back

	waits   *list.Element // in its crowd, nil when it is not there
	order   *list.Element // in line.order
	refused bool
	decided chan struct{} // closed when it does not wait any more
}

// locked does something with the place, and nothing if there is none.
func (p *Place) locked(do func()) {
	if p == nil {
		return
	}
	p.line.mu.Lock()
	defer p.line.mu.Unlock()
	do()
}

// Leave gives the place back, if it is still held, until Return.
func (p *Place) Leave() { p.locked(p.leave) }

func (p *Place) leave() {
	if p.inside == nil {
		return
	}
	l := p.line
	l.inside.Remove(p.inside)
	p.inside = nil
	if p.guest {
		p.guest = false
		l.guests--
	}
	if p.kept {
		p.kept = false
		l.kept--
	}
	less(l.held, p.caller)
	l.fill()
}

// less counts one less of a caller's.
func less(counts map[string]int, caller string) {
	if counts[caller]--; counts[caller] == 0 {
		delete(counts, caller)
	}
}

// Return takes the place again after Leave, whether or not there is one: what was let in is not refused later.
func (p *Place) Return() { p.locked(p.back) }

func (p *Place) back() {
	if p.inside == nil && !p.over {
		p.line.letIn(p)
	}
}

// belong says who has the place, once that is proved: it counts among theirs from now on, and no more among those of everybody who comes from the same address.
func (p *Place) belong(caller string) {
	p.locked(func() {
		l := p.line
		if p.inside != nil {
			less(l.held, p.caller)
			l.held[caller]++
		}
		if p.outside {
			less(l.away, p.caller)
			l.away[caller]++
		}
		p.caller = caller
		l.fill()
	})
}

// End gives the place back for good, unless a run began for the request: that has it as long as it executes, whoever waits for it.
func (p *Place) End() {
	p.locked(func() {
		if !p.executes {
			p.end()
		}
	})
}

// execute has a run keep the place until executed.
func (p *Place) execute() { p.locked(func() { p.executes = true }) }

func (p *Place) executed() { p.locked(p.end) }

func (p *Place) end() {
	l := p.line
	if p.over {
		return
	}
	p.over, p.computing, p.away, p.waiting = true, 0, 0, 0
	p.count()
	// One more may be tried, as long as nodes do not wait for processors.
	if l.places < l.most && l.computing < l.least {
		l.places++
	}
	p.leave()
	l.fill()
}

// Compute implements core.Load.
func (p *Place) Compute(change int) {
	p.locked(func() {
		if !p.over {
			p.computing += change
			p.count()
		}
	})
}

// Outside implements core.Load: who only waits has no place meanwhile.
func (p *Place) Outside(change int) {
	p.locked(func() {
		if !p.over {
			p.away += change
			p.count()
		}
	})
}

// Wait implements core.Load.
func (p *Place) Wait(change int) {
	p.locked(func() {
		if !p.over {
			p.waiting += change
			p.count()
		}
	})
}

// count is called when what is done for p has changed.
func (p *Place) count() {
	l := p.line
	computing := max(0, p.computing-p.away)
	l.computing += computing - p.counted
	p.counted = computing
	if l.computing > l.least {
		// More nodes than that make each other slower, and nothing faster.
		l.places = max(l.least, min(l.places, l.inside.Len()-l.computing+l.least))
	}
	switch outside := p.away+p.waiting > 0 && computing == 0 && !p.over; {
	case outside && !p.outside:
		p.outside = true
		l.outside++
		l.away[p.caller]++
		p.leave()
	case !outside && p.outside:
		p.outside = false
		l.outside--
		less(l.away, p.caller)
		p.back()
	}
}
