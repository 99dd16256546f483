package plugins

import (
	"sync"
	"time"
)

// A breaker opens after this many calls in a row that brought no verdict. It then lets one call through after breakerMin, and after twice
// the wait each time that one fails, up to breakerMax: a backend that is well again is found out within that time.
const (
	breakerFailures = 5
	breakerMin      = time.Second
	breakerMax      = 5 * time.Second
)

// breaker keeps requests from queueing up behind a plugin that does not decide.
type breaker struct {
	now func() time.Time

	mu       sync.Mutex
	failures int           // in a row
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
	b.failures, b.wait, b.probing = 0, 0, false
}

// failure records a call that was not decided.
func (b *breaker) failure() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.failures++
	switch {
	case b.probing:
		b.probing = false
		b.wait = min(2*b.wait, breakerMax)
	case b.wait == 0 && b.failures >= breakerFailures:
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

// open reports whether calls are being refused.
func (b *breaker) open() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.wait != 0
}
