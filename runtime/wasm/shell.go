package wasm

import (
	"context"
	"fmt"
	"io"
	"iter"
	"strings"
	"sync"
	"time"

	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/sys"
)

// shell is an instance that is used again and again, each time from the frozen state of its image: a reactor before its run, a
// command inside its first read of standard input. It belongs to one image for life.
//
// A command's _start runs in a coroutine. When the guest reads standard input, the host takes a snapshot of the machine's stack; when the
// guest ends, the coroutine parks inside the host function that ended it, the host resets the guest's memory and globals, and the next
// use restores the stack. The guest is then back at its read, and is told to try again.
type shell struct {
	image *image
	g     *guest
	pages uint32                  // of memory, when a use begins
	depth int64                   // that it may reach then
	run   api.Function            // a reactor's run
	again api.Function            // a reactor's resume, if it has one
	calls map[string]api.Function // a plugin's functions, once they were called: looking one up costs more than a short call
	asked ambient                 // by its start-up
	uses  int
	dead  bool // must not be used again

	globals []api.MutableGlobal // as in image.globals
	memory  resetter

	// On the shelf, under shelf.mu.
	key        shelfKey
	shelved    bool
	prev, next *shell // used more recently, and less
	held       int64
	since      time.Time

	mu     sync.Mutex // of what follows, and held while the shell is reset or closed
	taken  bool       // by a call
	dirty  bool       // it was used and not reset since
	copied bool       // the last reset copied the whole image
	closed bool

	// Of a command.
	booting  bool
	armed    bool // stack is of this use
	closing  bool
	stack    machineStack
	read     api.GoModuleFunc // by which it reads, when the stack was copied
	args     [4]uint64
	yield    func(struct{}) bool
	step     func() (struct{}, bool)
	stop     func()
	startErr error // how _start ended, once the coroutine is over
	without  experiments
}

// How often a shell is used at most. The engine's copy of a command's stack grows by 16 bytes each time, and some instructions leave
// small allocations with the instance.
const (
	maxCommandUses = 256
	maxReactorUses = 10_000
)

// launch begins a command's _start in a coroutine and returns when it reads standard input for the first time, or ends.
func (s *shell) launch() (parked bool) {
	run := s.g.inst.mod.ExportedFunction(addedRun)
	s.booting = true
	s.g.Context = s.without.stackable(s.g.Context) // below the guest, which every host function looks for
	s.step, s.stop = iter.Pull(func(yield func(struct{}) bool) {
		s.yield = yield
		_, s.startErr = run.Call(s.g)
	})
	_, parked = s.step()
	s.booting = false
	return parked
}

// beforeRead is called when a command reads standard input, by what reads it, with its arguments. It reports whether the guest is to be told to try again.
func (s *shell) beforeRead(ctx context.Context, read api.GoModuleFunc, args []uint64) (again bool) {
	if s.booting || !s.armed {
		s.read = read
		copy(s.args[:], args)
	}
	if s.booting {
		s.park()
		return true
	}
	if !s.armed && s.image.start != StartAhead {
		s.stack = copyStack(ctx)
		s.armed = true
	}
	return false
}

// reread is what the guest is told to try: what read standard input, with the arguments that it got, which the guest need not keep for that.
func (s *shell) reread(ctx context.Context, mod api.Module) uint64 {
	args := s.args
	s.read(ctx, mod, args[:])
	return args[0]
}

// park gives control back to serve, or to launch, and returns when the shell is used again.
func (s *shell) park() {
	if !s.yield(struct{}{}) || s.closing {
		panic(sys.NewExitError(0))
	}
}

// end is called by whatever host function ends a command. It does not return if the shell is used again, and then the next use begins at
// the guest's read.
func (s *shell) end() {
	if !s.armed {
		return // it is used once
	}
	s.park()
	s.armed = false
	s.stack.restore(retry)
}

// prepare sets up the host's side for a call, as setup describes it, and gives the Go runtime in the guest random generators of its own.
func (s *shell) prepare(setup *guest, memory int64) error {
	g := s.g
	setup.memory, setup.inst, setup.shell = g.memory, g.inst, g.shell
	*g = *setup
	g.memory.limit, g.memory.refused = memory, false
	g.pages, g.stack = s.pages, s.depth
	g.inst.fuel.Set(0)
	g.refill()
	for _, at := range s.image.reseed {
		var seed [32]byte
		if _, err := io.ReadFull(g.random, seed[:]); err != nil {
			return fmt.Errorf("random source: %w", err)
		}
		seedGenerator(g.memory.buf[at:], seed)
	}
	return nil
}

// serve runs a call. The error is the engine's, or that of preparing, if the guest was not ended by the host.
func (s *shell) serve(setup *guest, memory int64) error {
	if err := s.prepare(setup, memory); err != nil {
		s.g.stop = err
		return err
	}
	s.uses++
	s.dirty = true
	if s.g.door != DoorCommand {
		err := s.call()
		// A trap leaves nothing behind in the engine, except that one of its own stack's end leaves that stack as large as it grew.
		s.dead = s.uses >= maxReactorUses || s.g.inst.mod.IsClosed() || s.outgrown() || err != nil && strings.Contains(err.Error(), "stack overflow")
		return err
	}
	if _, parked := s.step(); !parked {
		s.dead = true
		return s.startErr
	}
	s.dead = s.uses >= maxCommandUses || s.outgrown()
	return nil
}

// spare is how many pages a use may have grown the memory by, for the shell to be used again.
const spare = 256

// outgrown reports whether the last use left the shell with so much more than it began with that it is not to be kept: the engine's stack never becomes smaller.
func (s *shell) outgrown() bool {
	return s.g.stack > s.depth || s.g.memory.high > int64(s.pages+spare)*pageSize
}

// call enters a reactor or a plugin.
func (s *shell) call() error {
	g := s.g
	if g.door == DoorExtism {
		f := s.calls[g.call.Export]
		if f == nil {
			f = g.inst.mod.ExportedFunction(g.call.Export)
			s.calls[g.call.Export] = f
		}
		return callExtism(g, f)
	}
	if g.door == DoorJavaScript {
		return g.scriptFailure(runScript(g))
	}
	if s.again != nil {
		if err := resume(g, s.again); err != nil {
			return err
		}
	}
	return callRun(g, s.run)
}

// reset puts back every byte and global that the last use may have changed. It reports false when the shell must not be used again.
func (s *shell) reset() bool {
	if s.dead || s.image.start == StartAhead {
		return false
	}
	memory := s.g.memory.buf[:s.g.memory.high]
	s.copied = s.image.copying.Load()
	if s.copied {
		copier{}.reset(memory, s.image)
	} else {
		s.memory.reset(memory, s.image)
	}
	if !s.g.memory.shrink(s.g.inst.mod.Memory(), int64(s.image.pages)*pageSize) {
		return false
	}
	for i, v := range s.image.globals {
		s.globals[i].Set(v)
	}
	s.g.forget()
	s.dirty = false
	return true
}

// weight is about how many bytes the shell holds while it is idle.
func (s *shell) weight() int64 { return s.memory.held(s.g.memory.high) + s.image.beside }

// equal compares every byte and global with the image, and the size of the memory.
func (s *shell) equal() bool {
	for i, v := range s.image.globals {
		if s.globals[i].Get() != v {
			return false
		}
	}
	return s.g.memory.size == int64(s.image.pages)*pageSize && s.image.equal(s.g.memory.buf[:s.g.memory.high])
}

// close ends the coroutine and frees the instance. Closing twice is closing once.
func (s *shell) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.closed = true
	if s.stop != nil {
		s.closing = true
		s.stop()
	}
	s.g.inst.close()
	if s.image != nil {
		s.image.release()
	}
}
