package wasm

import (
	"runtime"
	"sync/atomic"
	"time"

	"github.com/keyfire/keyfire/core"
)

// crowd are the invocations that are under way. The scheduler of Go cannot interrupt compiled guests, and has whoever becomes ready wait for all who are. So guests that compute let others go
// first of their own accord, and those that compute for long take turns: there are never more of them at it than processors.
type crowd struct {
	count atomic.Int32 // of them
	turns *core.Slots
	bells chan *doorbell // one for each turn; none where there are none
}

const (
	// yieldEvery is how long a guest computes before it lets others go first. A slice may be over sooner, and giving up the processor costs more than the
	// rest of a check.
	yieldEvery = 200 * time.Microsecond
	// freely is how long a guest computes before it needs a turn.
	freely = time.Millisecond
	// turnTime is how long a guest that computes keeps its turn while others wait for one.
	turnTime = 10 * time.Millisecond
)

func newCrowd() *crowd {
	n := runtime.GOMAXPROCS(0)
	c := &crowd{turns: core.NewSlots(n), bells: make(chan *doorbell, n)}
	for range n {
		if b := newDoorbell(); b != nil {
			c.bells <- b
		}
	}
	return c
}

// waits says whether somebody may be waiting for a processor. While there are fewer guests than processors, one is left for whoever becomes ready, and to give up
// another would only wake a thread that finds nothing to do, for 15 µs of its time.
func (c *crowd) waits() bool { return c == nil || int(c.count.Load()) >= runtime.GOMAXPROCS(0) }

// yield lets everybody go first who is ready to run. What has a turn may have had a processor for long, so it also looks for who becomes ready by what the network has brought: requests.
func (c *crowd) yield(turn bool) {
	if turn {
		select {
		case b := <-c.bells:
			b.ring()
			c.bells <- b
			return
		default:
		}
	}
	runtime.Gosched()
}

// close frees what the crowd has. No guest of it is under way any more.
func (c *crowd) close() {
	for range cap(c.bells) {
		select {
		case b := <-c.bells:
			b.close()
		default:
		}
	}
}

// pace is how a guest shares the processors with others.
type pace struct {
	crowd    *crowd        // nil for a guest that nobody counts
	last     time.Duration // before the deadline, when the guest last let others go first; 0 if it did not since it was outside
	computed time.Duration // in all
	turn     bool          // it has one of crowd.turns
	began    time.Duration // computed, when it got that
}

// giveWay lets others go first if it is time for that. It returns how much time is left then.
func (g *guest) giveWay(left time.Duration) time.Duration {
	p := &g.pace
	if p.last == 0 {
		p.last = left
	}
	took := p.last - left
	if took < yieldEvery {
		return left
	}
	p.computed += took
	if p.crowd != nil && p.computed >= freely {
		g.takeTurn()
	}
	if p.crowd.waits() {
		p.crowd.yield(p.turn)
	}
	p.last = time.Until(g.limit)
	return p.last
}

// takeTurn waits for a turn if the guest has none, or has had it for long enough. It gets none if its time is up before.
func (g *guest) takeTurn() {
	p := &g.pace
	turns := p.crowd.turns
	switch {
	case !p.turn:
		p.turn = turns.Acquire(g.Done(), g.call.Account, g.call.Caller)
	case p.computed-p.began >= turnTime:
		p.turn = turns.PassOn(g.Done(), g.call.Account, g.call.Caller)
	default:
		return
	}
	p.began = p.computed
}

// pause gives back the turn of a guest that does not compute.
func (p *pace) pause() {
	if p.turn {
		p.turn = false
		p.crowd.turns.Release()
	}
	p.last = 0
}
