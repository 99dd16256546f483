package wasm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/tetratelabs/wazero/api"
)

// Start is how invocations of a module begin.
type Start string

// The ways to begin. Which one a module gets follows from what its start-up does; it never changes what the module computes.
const (
	// StartShared: from one frozen image of the started module. Start-up neither read a clock nor asked for random bytes, or nothing
	// of that is left in its memory.
	StartShared Start = "shared"
	// StartReseeded: the same, and the Go runtime's random generators get a new state for each invocation.
	StartReseeded Start = "reseeded"
	// StartPlain: each invocation starts the module anew.
	StartPlain Start = "plain"
)

// image is the frozen state of a started module: what every use of its shells begins from.
type image struct {
	start   Start
	memory  []byte // of pages pages
	pages   uint32
	globals []uint64
	reseed  []uint32 // where the Go runtime's generators are
	backing backing
	refs    atomic.Int64 // one of the program's, one for each shell
	retired atomic.Bool

	// What booting it was given. A shell that boots with the same is equal, byte for byte.
	seed [32]byte
	at   time.Time
	born time.Time
}

// imageLife is how long an image is used that holds values derived from its seed, such as the seeds of maps made during start-up.
const imageLife = 10 * time.Minute

// Bounds of a start-up that is frozen. Fuel is what counts; the time is for a machine that is very busy.
const (
	bootFuel = 400_000_000 // a Go program takes about 3,000,000
	bootTime = 5 * time.Second
)

// errNotPoolable says that a module must start plain; its text says why.
type errNotPoolable struct{ why string }

func (e errNotPoolable) Error() string { return e.why }

func notPoolable(format string, args ...any) error {
	return errNotPoolable{fmt.Sprintf(format, args...)}
}

// ambient is what a guest asked for during start-up.
type ambient struct {
	random int // calls for random bytes
	clock  int
}

// boot starts a module up to where its input comes in, with a clock that stands still and random bytes that follow from seed.
func (r *Runtime) boot(p *program, seed [32]byte, at time.Time) (booted *shell, err error) {
	limit := r.config.MemoryLimit
	if p.info.MaxMemory > 0 {
		limit = max(min(limit, p.info.MaxMemory), pageSize)
	}
	mem, err := newLinearMemory(limit)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(r.life, bootTime, errTimeout)
	defer cancel()
	g := &guest{
		Context: ctx, now: func() time.Time { return at }, random: rand.NewChaCha8(seed), start: at, limit: time.Now().Add(bootTime), output: MaxOutput,
		memory: mem, door: p.info.Door, log: logBuffer{now: func() time.Time { return at }}, asked: &ambient{},
	}
	if _, err := r.instantiate(g, p); err != nil {
		return nil, err
	}
	s := &shell{g: g, globals: make([]api.MutableGlobal, 0, len(p.globals)+2)}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	for _, i := range p.globals {
		s.globals = append(s.globals, g.inst.mod.ExportedGlobal(addedGlobal+strconv.Itoa(i)).(api.MutableGlobal))
	}
	s.globals = append(s.globals, g.inst.depth, g.inst.pages)
	if err := s.bootTo(p); err != nil {
		return nil, err
	}
	if len(g.stdout) > 0 || len(g.log.lines)+len(g.log.partial) > 0 {
		return nil, notPoolable("it writes before it reads its input")
	}
	s.asked = *g.asked
	g.forget()
	return s, nil
}

// bootTo runs the start-up code.
func (s *shell) bootTo(p *program) error {
	g := s.g
	outcome := func(err error) error {
		switch {
		case errors.As(g.stop, new(errNotPoolable)):
			return g.stop
		case g.stop != nil:
			return notPoolable("its start-up cannot be frozen: %v", g.stop)
		case g.exited:
			return notPoolable("it exits before it reads its input")
		}
		return notPoolable("its start-up fails: %s", firstLine(err.Error()))
	}
	if p.hasStart {
		if _, err := g.inst.mod.ExportedFunction(addedStart).Call(g); err != nil {
			return outcome(err)
		}
	}
	if g.door == DoorJavaScript {
		err := startScript(g, p.script)
		if err == nil {
			return nil
		}
		if g.stop == nil && asScript(err) {
			return errors.Join(notPoolable("it fails"), err)
		}
		return outcome(err)
	}
	if g.door == DoorReactor {
		if f := g.inst.mod.ExportedFunction(exportInitialize); f != nil {
			if _, err := f.Call(g); err != nil {
				return outcome(err)
			}
		}
		s.run = g.inst.mod.ExportedFunction(exportRun)
		return nil
	}
	if g.door == DoorExtism {
		if err := startExtism(g, g.inst.mod); err != nil {
			return outcome(err)
		}
		s.calls = make(map[string]api.Function)
		return nil
	}
	g.shell = s
	if !s.launch() {
		if s.startErr == nil {
			return notPoolable("it ends without reading its input")
		}
		return outcome(s.startErr)
	}
	return nil
}

// freeze makes the image of a booted shell.
func (s *shell) freeze(seed [32]byte, at time.Time) (*image, error) {
	pages := uint32(s.g.inst.pages.Get())
	img := &image{pages: pages, seed: seed, at: at, born: time.Now()}
	img.retain()
	for _, g := range s.globals {
		img.globals = append(img.globals, g.Get())
	}
	var err error
	img.memory, img.backing, err = newBacking(s.g.memory.buf[:int(pages)*pageSize])
	return img, err
}

// newImage boots a module and decides how its shells are to be used. The error is an errNotPoolable when they cannot be.
func (r *Runtime) newImage(p *program) (*image, error) {
	if p.unpoolable != "" {
		return nil, errNotPoolable{p.unpoolable}
	}
	// One instance at a time, apart from those of calls.
	charge := r.config.MemoryLimit + stackAllowance
	if err := r.memory.acquire(r.life, charge); err != nil {
		return nil, err
	}
	defer r.memory.release(charge)
	if !resumable && p.info.Door == DoorCommand {
		return nil, notPoolable("this platform cannot resume a command")
	}
	var seed [32]byte
	if _, err := r.config.Random.Read(seed[:]); err != nil {
		return nil, fmt.Errorf("random source: %w", err)
	}
	at := r.config.Now()
	first, err := r.boot(p, seed, at)
	if err != nil {
		return nil, err
	}
	asked := first.asked
	img, err := first.freeze(seed, at)
	first.close()
	if err != nil {
		return nil, err
	}
	img.start = StartShared
	if asked == (ambient{}) {
		return img, nil
	}
	if img.start, img.reseed, err = r.taint(p, asked, img); err != nil {
		img.release()
		return nil, err
	}
	return img, nil
}

func (img *image) retain() { img.refs.Add(1) }

// release gives up a reference; the last one frees the image.
func (img *image) release() {
	if img.refs.Add(-1) == 0 {
		img.backing.close()
	}
}

// taint boots a second time, with another seed and another time, and looks at what differs.
func (r *Runtime) taint(p *program, asked ambient, img *image) (Start, []uint32, error) {
	seed := img.seed
	for i := range seed {
		seed[i] ^= 0x5a
	}
	second, err := r.boot(p, seed, img.at.Add(-12345*time.Second-678*time.Millisecond))
	if err != nil {
		return "", nil, err
	}
	defer second.close()
	if pages := uint32(second.g.inst.pages.Get()); pages != img.pages {
		return "", nil, notPoolable("how much memory it starts with depends on time or random bytes")
	}
	for i, g := range second.globals {
		if g.Get() != img.globals[i] {
			return "", nil, notPoolable("its globals depend on time or random bytes read during start-up")
		}
	}
	other := second.g.memory.buf[:len(img.memory)]
	if p.isGo {
		// What a Go program computes on its stack lies in linear memory, so comparing memory misses nothing. The runtime asks for random bytes once;
		// whatever asks for more is the program's own, and may be meant to differ.
		if asked.random > 1 {
			return "", nil, notPoolable("it uses random bytes before it reads its input")
		}
		if states := generators(img.memory, other); len(states) > 0 {
			return StartReseeded, states, nil
		}
		return "", nil, notPoolable("the Go runtime's random generators were not found")
	}
	// A command is frozen with values on its machine stack, where nothing can be compared.
	if p.info.Door != DoorCommand && bytes.Equal(img.memory, other) {
		return StartShared, nil, nil
	}
	return "", nil, notPoolable("it reads a clock or random bytes during start-up")
}

// newShell makes a new shell of an image, of which it takes over the caller's reference.
func (r *Runtime) newShell(p *program, img *image) (*shell, error) {
	s, err := r.boot(p, img.seed, img.at)
	if err != nil {
		return nil, err
	}
	for i, v := range img.globals {
		if s.globals[i].Get() != v {
			err = errUnlike
		}
	}
	if err != nil || !img.equal(s.g.memory.buf[:s.g.memory.size]) {
		s.close()
		return nil, errUnlike
	}
	s.image = img
	s.memory = img.backing.attach(s.g.memory.buf)
	return s, nil
}

var errUnlike = notPoolable("its start-up gives another result each time")

// equal compares a memory with the image. What lies beyond the image must be zero.
func (img *image) equal(memory []byte) bool {
	return len(memory) >= len(img.memory) && bytes.Equal(memory[:len(img.memory)], img.memory) && allZero(memory[len(img.memory):])
}

func allZero(b []byte) bool {
	var zero [4096]byte
	for chunk := range slices.Chunk(b, len(zero)) {
		if !bytes.Equal(chunk, zero[:len(chunk)]) {
			return false
		}
	}
	return true
}

// resetter puts a shell's memory back to its image.
type resetter interface {
	// reset restores a memory.
	reset(memory []byte, img *image)
	// held returns about how many bytes an idle memory of the given size occupies.
	held(size int64) int64
}

// copier is the resetter that is correct everywhere: it copies the whole image.
type copier struct{}

func (copier) reset(memory []byte, img *image) {
	n := copy(memory, img.memory)
	clear(memory[n:])
}

func (copier) held(size int64) int64 { return size }

// backing is where an image's bytes are.
type backing interface {
	// attach returns a resetter for memory, whose beginning equals the image. It may replace that by pages it shares with the image.
	attach(memory []byte) resetter
	close()
}

// heap is the backing that is there everywhere.
type heap struct{}

func (heap) attach([]byte) resetter { return copier{} }
func (heap) close()                 {}
