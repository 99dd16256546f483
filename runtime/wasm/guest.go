package wasm

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/sys"

	"github.com/keyfire/keyfire/core"
)

// guest is the host's side of one instance: everything its imports can reach, and everything they leave behind. The engine carries it to
// host functions as the context of the call, so it is a context.Context; its deadline is the invocation's.
//
// It is used by one goroutine at a time.
type guest struct {
	context.Context                 //nolint:containedctx // see above; the caller's, and once timed was called one that ends with the deadline
	untimed         context.Context //nolint:containedctx // the caller's then
	endTimed        context.CancelFunc

	now    func() time.Time
	random io.Reader

	stdin  []byte // not read yet
	stdout []byte
	output int64 // most bytes of stdout
	log    logBuffer
	memory *linearMemory
	inst   *instance // nil while it is being made

	charge charge
	takes  int64 // times it took memory: a place in its execution, as looks is
	stack  int64 // depth it may reach so far
	deep   int64 // depth it may come to reach

	fuel  int64     // granted so far
	pages uint32    // of memory, at the most so far
	limit time.Time // the deadline
	work  int       // of the host's, since it last looked at the clock

	start time.Time     // of the invocation; the guest's monotonic clock counts from here
	host  time.Duration // spent waiting in host calls

	pace pace

	door Door
	hostState

	script []byte // of the JavaScript door
	still  bool   // the clock stands still and random bytes are zero, because the engine of scripts starts

	args  [4]uint64 // of the call that enters it, and what that returned
	shell *shell    // of a command that is used again; nil if the instance is used once
	asked *ambient  // while the module is booted to be frozen

	rec   *recorder // nil unless a tape is made
	play  *player   // nil unless the invocation is a repetition of one on a tape
	looks int64     // at the deadline. What a guest does decides how many there are, so their number is a place in its execution
	cut   bool      // the last one ended it

	cutTaking bool // waiting for memory ended it, the last time it took some

	// How the host ended the guest: at most one of these.
	exited bool // by proc_exit, with code
	code   uint32
	stop   error
}

type guestKey struct{}

// Value implements context.Context.
func (g *guest) Value(key any) any {
	if key == (guestKey{}) {
		return g
	}
	return g.Context.Value(key)
}

// timed returns a context that ends with the invocation's deadline, or with its caller's context. Most invocations never need one: a timer and its
// context are made when something has to wait. What may outlive the invocation gets this context and not the guest, which is used again.
func (g *guest) timed() context.Context {
	if g.endTimed == nil {
		g.untimed = g.Context
		g.Context, g.endTimed = context.WithDeadlineCause(g.untimed, g.limit, errTimeout)
	}
	return g.Context
}

// caller returns the context of who waits for the guest.
func (g *guest) caller() context.Context {
	if g.endTimed != nil {
		return g.untimed
	}
	return g.Context
}

// extend gives the guest more time, for what was not its own to spend. Nothing may be under way that was given its context.
func (g *guest) extend(d time.Duration) {
	g.limit = g.limit.Add(d)
	if g.endTimed != nil {
		g.endTimed()
		g.Context, g.endTimed = g.untimed, nil
	}
}

// endTime frees what timed made.
func (g *guest) endTime() {
	if g.endTimed != nil {
		g.endTimed()
	}
}

// Deadline implements context.Context.
func (g *guest) Deadline() (time.Time, bool) { return g.timed().Deadline() }

// Done implements context.Context.
func (g *guest) Done() <-chan struct{} { return g.timed().Done() }

// Err implements context.Context. When it returns an error, context.Cause(g.Context) is why.
func (g *guest) Err() error { return g.errWith(time.Until(g.limit)) }

// errWith is Err for whoever knows how much time is left.
func (g *guest) errWith(left time.Duration) error {
	if left <= 0 && g.endTimed == nil {
		g.timed()
	}
	return g.Context.Err()
}

// guestOf returns the guest a host function was called by. The engine may have wrapped the context.
func guestOf(ctx context.Context) *guest {
	if g, ok := ctx.(*guest); ok {
		return g
	}
	return ctx.Value(guestKey{}).(*guest)
}

// exit ends the guest as it asked to. It does not return: the panic unwinds the guest's stack, and the engine hands it to the caller as an
// error. An ExitError is the one value it passes on without building a stack trace.
func (g *guest) exit(code uint32) {
	g.exited, g.code = true, code
	g.leave(code)
}

// leave unwinds the guest, which may come to life again if it is a shell's. It does not return.
func (g *guest) leave(code uint32) {
	if g.shell != nil && g.asked == nil {
		g.shell.end()
	}
	panic(sys.NewExitError(code))
}

// forget drops everything of the call that has ended.
func (g *guest) forget() {
	g.endTime()
	*g = guest{Context: context.Background(), memory: g.memory, inst: g.inst, door: g.door, shell: g.shell}
}

// notWhileBooting refuses what a module may do only in a call.
func (g *guest) notWhileBooting(what string) {
	if g.asked != nil {
		g.abort(notPoolable("it %s before it reads its input", what))
	}
}

// abort ends the guest for a reason of the host's. It does not return.
func (g *guest) abort(reason error) {
	g.stop = reason
	g.leave(1)
}

// slice is how much fuel a guest gets at a time. Between two checks it runs without a look at the clock, and while it does, the garbage
// collector cannot stop it: a slice is 0.1 to 1 ms of ordinary code, and some tens of milliseconds of the slowest.
const slice = 2_000_000

// check is what a guest calls when its fuel or its depth is below zero.
func (g *guest) check() {
	if depth := int32(g.inst.depth.Get()); depth < 0 {
		g.deepen(int64(depth))
		return // if it has no fuel either, it will say so
	}
	if g.asked != nil && g.fuel > bootFuel {
		g.abort(notPoolable("its start-up computes too long"))
	}
	g.expire()
	g.refill()
}

// deepen lets the guest's calls nest deeper, twice as deep as before or as deep as they are to be.
func (g *guest) deepen(depth int64) {
	more := min(max(g.stack, -depth), g.deep-g.stack)
	if more < -depth {
		g.abort(errorf(core.ClassLimit, "the node's calls nest too deeply"))
	}
	g.take(useStack, (g.stack+more)*stackCost)
	g.stack += more
	g.inst.depth.Set(uint64(depth + more))
}

// expire is checkDeadline by the clock, which may be ahead of the timer. It also lets others go first.
func (g *guest) expire() {
	left := g.giveWay(time.Until(g.limit))
	if g.endTimed != nil && left <= 0 && g.Context.Err() == nil {
		<-g.Done() // at any moment: the timer is due
	}
	g.checkTime(left)
}

// What the host does for a guest is not paid in fuel, so it is bounded in its own way: after so many bytes handled, or calls served, which count as
// callWork bytes each, the host looks at the clock. At the slowest that is a few milliseconds of work.
const (
	workSlice = 1 << 20
	callWork  = 1 << 10
)

// parseWork is how many bytes of work it is to decode a byte of JSON, or to compare or escape a text, beside copying one.
const parseWork = 16

// spend counts bytes that the host handles for the guest. It does not return when the guest's time is up.
func (g *guest) spend(bytes int) {
	if g.work += bytes; g.work >= workSlice {
		g.rest()
	}
}

// rest looks at the clock for what was counted. It is a function of its own so that the compiler makes counting part of every caller.
func (g *guest) rest() {
	g.work = 0
	g.expire()
}

// refill fills the guest's fuel up to a slice.
func (g *guest) refill() {
	g.fuel += slice - int64(int32(g.inst.fuel.Get()))
	g.inst.fuel.Set(slice)
}

// fuelUsed returns how much of the granted fuel is gone.
func (g *guest) fuelUsed() int64 { return g.fuel - int64(int32(g.inst.fuel.Get())) }

// grow is the guest's memory.grow: it returns the size before, in pages, or -1. The module's own maximum is looked at here, because the engine is told of none
// (linearMemory.shrink needs room).
func (g *guest) grow(m api.Memory, delta uint32) int32 {
	was := uint32(g.inst.pages.Get())
	size := uint64(was) + uint64(delta)
	if size*pageSize > uint64(g.memory.limit) {
		g.memory.refused = true
		return -1
	}
	if size > uint64(g.inst.maxPages) {
		return -1
	}
	g.take(useMemory, int64(size)*pageSize)
	if _, ok := m.Grow(delta); !ok {
		return -1
	}
	g.memory.follow(m)
	g.inst.pages.Set(size)
	g.pages = max(g.pages, uint32(size))
	return int32(was)
}

// checkDeadline ends the guest when its time is up. Host functions that wait, or that a guest may call in a loop, call it.
func (g *guest) checkDeadline() { g.checkTime(time.Until(g.limit)) }

// checkTime is checkDeadline for whoever knows how much time is left.
func (g *guest) checkTime(left time.Duration) {
	g.looks++
	if why := g.play.stops(g.looks); why != nil {
		g.cut = true
		g.abort(why)
	}
	if g.errWith(left) != nil {
		g.cut = true
		g.abort(context.Cause(g.Context))
	}
}

// sleep waits for d or until the guest's time is up, which ends it.
func (g *guest) sleep(d time.Duration) {
	g.notWhileBooting("waits")
	if g.play != nil {
		g.play.sleep(d)
		g.checkDeadline()
		return
	}
	g.outside(func() {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
		case <-g.Done():
		}
	})
}

// writeStdout takes what the guest writes to standard output: its output if it is a command, otherwise lines of its log.
func (g *guest) writeStdout(p []byte) {
	if g.door != DoorCommand {
		g.log.Write(p)
		return
	}
	g.write(p)
}

// write adds to the guest's output.
func (g *guest) write(p []byte) {
	if int64(len(g.stdout)+len(p)) > g.output {
		g.abort(errorf(core.ClassLimit, "the node wrote more than %s of output", byteSize(g.output)))
	}
	if n := len(g.stdout) + len(p); n > cap(g.stdout) && n > smallText {
		// What it had before is garbage then, which is there for a while.
		n = max(n, 2*cap(g.stdout))
		g.take(useOutput, 2*int64(n))
		g.stdout = slices.Grow(g.stdout, n-len(g.stdout))
	}
	g.stdout = append(g.stdout, p...)
}

// byteSize writes a number of bytes as people do.
func byteSize(n int64) string {
	switch {
	case n >= 1<<20 && n%(1<<20) == 0:
		return fmt.Sprintf("%d MiB", n>>20)
	case n >= 1<<10 && n%(1<<10) == 0:
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%d bytes", n)
}
