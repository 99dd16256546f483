package trigger

import (
	"context"
	"sync"

	"github.com/keyfire/keyfire/core"
)

// crewPerProcessor is how many durable runs compute at once for each processor. Fewer would leave a slow disk too few steps that share a commit.
const crewPerProcessor = 4

// crew is the core.Load of a durable run: its nodes take turns with those of other durable runs, so that no more are computed at once than keep the processors busy. Sixty-four
// that compute for 2 s each would all take a minute, and time out. Who waits for memory, for another service or for a time needs no turn.
type crew struct {
	ctx             context.Context //nolint:containedctx // of the run: whoever waits for a turn when it ends goes on, and ends
	turns           *core.Slots
	account, caller string

	mu        sync.Mutex
	computing int // nodes that are executed
	away      int // of them, those that wait for something that is no processor
	held      int // turns
	over      bool
}

// Compute implements core.Load. It waits for a turn, which is no part of the node's time.
func (c *crew) Compute(change int) {
	taken := change > 0 && c.turns.Acquire(c.ctx.Done(), c.account, c.caller)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.computing += change
	if taken {
		c.held++
	}
	c.giveBack()
}

// Outside implements core.Load. Who comes back does not wait: the node's time passes.
func (c *crew) Outside(change int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.away += change
	if change < 0 && !c.over && c.held < c.computing-c.away {
		c.turns.Seize()
		c.held++
	}
	c.giveBack()
}

// Wait implements core.Load: what waits and is not executed has no turn.
func (c *crew) Wait(int) {}

// end gives all turns back. What ends late needs none.
func (c *crew) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
	c.giveBack()
}

// giveBack gives the turns back that are not needed.
func (c *crew) giveBack() {
	for c.held > 0 && (c.over || c.held > c.computing-c.away) {
		c.held--
		c.turns.Release()
	}
}
