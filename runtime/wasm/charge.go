package wasm

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/keyfire/keyfire/core"
)

// What a guest is charged against the memory budget, in bytes.
const (
	// hostAllowance is for what the host keeps for any call: its own bookkeeping, log and small texts, a connection with TLS.
	hostAllowance = 192 << 10
	// hostMost is what the host may come to keep beside that: large outputs and responses, and the buffers they grow in.
	hostMost = 8 << 20
	// stackCost is what a byte of depth costs. The engine takes from a sixth to two thirds of it, but a stack that grows becomes twice as large, and there is the old one too, and
	// those before it until they are collected: measured were up to 2.1 bytes in all.
	stackCost = 4
	// stackStart is the depth that each guest may reach without asking, and bootStack that of a start-up that is frozen.
	stackStart = 64 << 10
	bootStack  = 1 << 20
	// stackLeast is the depth that each guest can reach, however small the budget.
	stackLeast = 1 << 20
	// smallText is how large a text may be that the allowance is for.
	smallText   = 32 << 10
	inputCopies = 3
	// chargeStep is the least that is asked for at once.
	chargeStep = 64 << 10
)

// use is something that a guest takes memory for. What was taken for one is not given back before the guest's end.
type use int

const (
	useMemory use = iota // linear memory
	useStack             // of the engine
	useOutput
	useBody // of a response
	useHost // buffers of the host's side that belong to one door
	uses
)

// charge is what a guest is charged, and the room that is left in its share.
type charge struct {
	budget *budget
	share  *share // nil if somebody else is charged
	room   int64
	used   [uses]int64
	waited time.Duration
}

// note counts what is used for something, if it is more than before.
func (c *charge) note(what use, bytes int64) {
	if n := bytes - c.used[what]; n > 0 {
		c.used[what] = bytes
		c.room -= n
	}
}

// ask takes what is missing. If that has to wait, it returns how much it is.
func (c *charge) ask() (n int64) {
	if c.room >= 0 || c.share == nil {
		return 0
	}
	if n = (-c.room + chargeStep - 1) / chargeStep * chargeStep; !c.budget.tryGrow(c.share, n) {
		return n
	}
	c.room += n
	return 0
}

// wait waits for what ask could not take. The error is the cause of ctx.
func (c *charge) wait(ctx context.Context, n int64) error {
	began := time.Now()
	err := c.budget.grow(ctx, c.share, n)
	c.waited += time.Since(began)
	if err == nil {
		c.room += n
	}
	return err
}

// waitOutside is wait for who computes otherwise.
func (c *charge) waitOutside(ctx context.Context, n int64) error {
	load := core.LoadOf(ctx)
	load.Outside(1)
	defer load.Outside(-1)
	return c.wait(ctx, n)
}

// begin takes what a guest begins with that has so much linear memory, and may nest its calls so deep.
func (c *charge) begin(ctx context.Context, pages uint32, depth int64) error {
	c.note(useMemory, int64(pages)*pageSize)
	c.note(useStack, depth*stackCost)
	if n := c.ask(); n > 0 {
		return c.waitOutside(ctx, n)
	}
	return nil
}

// reach takes what is missing until the guest uses so much for something. Its time stands still while it waits. The error is the cause of its caller's context.
func (g *guest) reach(what use, bytes int64) error {
	g.charge.note(what, bytes)
	n := g.charge.ask()
	if n == 0 {
		return nil
	}
	g.pace.pause()
	waited := g.charge.waited
	err := g.charge.waitOutside(g.caller(), n)
	g.extend(g.charge.waited - waited)
	return err
}

// tryTake is reach for a guest that runs, which is over after an error. How often a guest takes something follows from what it executes, so a replay of one that was ended while it
// waited ends there.
func (g *guest) tryTake(what use, bytes int64) error {
	g.takes++
	err := g.play.stopsTaking(g.takes)
	if err == nil {
		err = g.reach(what, bytes)
	}
	if err != nil {
		g.cutTaking, g.stop = true, err
	}
	return err
}

// take is tryTake where an error unwinds the guest.
func (g *guest) take(what use, bytes int64) {
	if err := g.tryTake(what, bytes); err != nil {
		g.abort(err)
	}
}

// took returns how much was used beside what is fixed.
func (c *charge) took() (n int64) {
	for _, used := range c.used {
		n += used
	}
	return n
}

// charge takes what a call starts with, and returns how deep its calls may nest, too. Whoever gets it ends its share.
func (r *Runtime) charge(ctx context.Context, load core.Load, p *program, door Door, call *Call, memory int64, input int) (c charge, deep int64, err error) {
	first, claim, deep := r.claims(p, door, call, memory, input)
	who := holder{call.Account, call.Caller}
	c = charge{budget: r.memory, share: r.memory.try(who, claim, first)}
	if c.share == nil {
		load.Wait(1)
		c.share, err = r.memory.start(ctx, who, claim, first)
		load.Wait(-1)
		if err != nil {
			return c, 0, err
		}
	}
	c.used[useStack], c.used[useMemory] = stackStart*stackCost, p.info.MinMemory
	c.room = c.share.held - fixed(p, call, input) - c.used[useStack] - c.used[useMemory]
	return c, deep, nil
}

// fixed is what a call is charged whatever it does. Its input is handed on by copying.
func fixed(p *program, call *Call, input int) int64 {
	n := hostAllowance + besides(p.info.Size) + inputCopies*int64(input)
	if call.Record {
		n += MaxTape
	}
	return n
}

// claims returns what a call of a program is charged at first, what at most, and how deep its calls may nest.
func (r *Runtime) claims(p *program, door Door, call *Call, memory int64, input int) (first, claim, stack int64) {
	fixed := fixed(p, call, input)
	most := fixed + memory + hostMost
	switch door {
	case DoorExtism:
		most += 2 * extismMemory
	case DoorJavaScript:
		most += 3 * scriptText
	}
	size := r.memory.size
	stack = min(maxStack, max((size-most)/stackCost, stackLeast))
	claim = min(most+stack*stackCost, size)
	first = fixed + max(stackStart*stackCost+p.info.MinMemory, p.expects.get())
	return min(first, claim), claim, stack
}

// reserve takes memory for work that is nobody's call, all that it may need at once. The share must be ended.
func (r *Runtime) reserve(ctx context.Context, bytes int64) (*share, error) {
	return r.memory.start(ctx, holder{}, bytes, bytes)
}

// callCost is the most that a call may claim that has so much linear memory.
func callCost(memory int64) int64 {
	return memory + hostAllowance + besides(core.MaxModule) + inputCopies*MaxInput + MaxTape + hostMost + max(2*extismMemory, 3*scriptText) + stackLeast*stackCost
}

// bootCost is what the start-up of a program may take that is to be frozen.
func (r *Runtime) bootCost(p *program) int64 {
	return r.shellLimit(p) + bootStack*stackCost + hostAllowance + besides(p.info.Size)
}

// shellCost is what making a shell may take: all of a start-up, if it is not one that is known to end as its image.
func (r *Runtime) shellCost(p *program, img *image) int64 {
	if img.start == StartAhead {
		return r.bootCost(p)
	}
	return int64(img.pages)*pageSize + img.stack*stackCost + img.beside
}

// charge takes what a use of the image's shells begins with, or its start-up takes.
func (img *image) charge(ctx context.Context, c *charge) error {
	return c.begin(ctx, img.pages, img.stack)
}

// charge takes what a use of the shell begins with.
func (s *shell) charge(ctx context.Context, c *charge) error { return c.begin(ctx, s.pages, s.depth) }

// expectation is about how much memory the calls of a program take beside what is fixed: what four of five take no more than.
type expectation struct{ bytes atomic.Int64 }

// get returns what the next call is likely to take at most, 0 if nothing is known.
func (e *expectation) get() int64 {
	if b := e.bytes.Load(); b > 0 {
		return b + chargeStep
	}
	return 0
}

// learn hears what a call took. One that is large makes only a part of the difference, since those that come may be small again.
func (e *expectation) learn(took int64) {
	switch was := e.bytes.Load(); {
	case was == 0:
		e.bytes.Store(took)
	case took > was:
		e.bytes.Store(was + (took-was+3)/4)
	default:
		e.bytes.Store(was - (was-took)/16)
	}
}
