package trigger

import "time"

// flood tells a burst, which is worked off in a moment, from more than the server can do.
type flood struct {
	lasts bool // it is no burst

	crowded bool          // more wait than there is room for
	changed time.Time     // when that was looked at
	excess  time.Duration // how long it was crowded, less how long it was not, from 0 to patience
	pressed time.Time     // when it was crowded last
}

// Bounds of a flood.
const (
	// patience is how much longer there may be too little room than enough. Whoever sends a thousand requests at once gets a thousand answers.
	patience = 2 * time.Second
	// relief is how long there must be enough room for the flood to be over.
	relief = time.Second
	// timely is how old a request is at most that is let in while a flood lasts: so those that are let in are answered about as soon as at any other time.
	timely = 25 * time.Millisecond
	// refusalAfter is how old the others become before they are refused. Whoever is refused at once asks again at once, and a server that refuses all the time does nothing else.
	refusalAfter = time.Second
)

// look is told whether more wait than there is room for, whenever their number changes.
func (f *flood) look(now time.Time, crowded bool) {
	if since := now.Sub(f.changed); f.crowded {
		f.excess, f.pressed = min(f.excess+since, patience), now
	} else {
		f.excess = max(f.excess-since, 0)
	}
	f.crowded, f.changed = crowded, now
	switch {
	case f.excess == patience:
		f.lasts = true
	case now.Sub(f.pressed) >= relief:
		f.lasts = false
	}
}
