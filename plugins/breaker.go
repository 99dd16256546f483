package plugins

import (
	"sync"
	"time"
)

// A breaker opens after this many calls without a verdict that took their time, and no verdict in between. It then lets one call through after breakerMin, and after twice
// the wait each time that one fails, up to breakerMax: a backend that is well again is found out within that time.
const (
	breakerFailures = 5
	breakerMin      = time.Second
	breakerMax      = 5 * time.Second
)

// breaker keeps requests from queueing up behind a plugin that does not decide. Behind one that fails at once nothing queues up, and what it fails on may be the
// credential: five bad ones must not shut out the good ones. So such failures are counted and hold nobody off.
type breaker struct {
	now func() time.Time

	mu       sync.Mutex
	failures int           // in a row
	late     int           // those of them that took their time
	wait     time.Duration // 0 while closed
	openTill time.Time
	probing  bool
}

// allow reports whether a call may be made. While open, one caller at a time is let through to try.
func (b *breaker) allow() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.wait == 0 {
		return true
	}
	if b.probing || b.now().Before(b.openTill) {
		return false
	}
	b.probing = true
	return true
}

// verdict records a call that was decided, whichever way.
func (b *breaker) verdict() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.failures, b.late, b.wait, b.probing = 0, 0, 0, false
}

// failure records a call that was not decided. late says that its caller waited for that.
func (b *breaker) failure(late bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.failures++
	if late {
		b.late++
	}
	switch {
	case b.probing && !late:
		b.late, b.wait, b.probing = 0, 0, false
		return
	case b.probing:
		b.probing = false
		b.wait = min(2*b.wait, breakerMax)
	case b.wait == 0 && b.late >= breakerFailures:
		b.wait = breakerMin
	default:
		return
	}
	b.openTill = b.now().Add(b.wait)
}

// neither records a call whose caller went away before it was decided.
func (b *breaker) neither() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.probing = false
}

// undecided reports whether the last calls brought no verdict, or calls are being held off.
func (b *breaker) undecided() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.wait != 0 || b.failures >= breakerFailures
}
