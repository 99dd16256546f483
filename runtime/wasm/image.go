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

// image is the frozen state of a started module: what every use of its shells begins from. The image of a module whose instances are
// started one by one (StartAhead) is empty: it only has the demand for them.
type image struct {
	start   Start
	module  string // digest
	memory  []byte // of pages pages
	pages   uint32
	globals []uint64
	stack   int64    // depth that a use may reach at its beginning
	reseed  []uint32 // where the Go runtime's generators are
	backing backing
	refs    atomic.Int64 // one of the program's, one for each shell
	retired atomic.Bool
	beside  int64       // bytes that an idle shell holds beside its memory, about
	copying atomic.Bool // every reset copies the whole image: a faster one has left a difference
	demand  demand
	script  *scriptGuest // of a script: where in the memory the prelude is

	// What booting it was given. A shell that boots with the same is equal, byte for byte.
	seed [32]byte
	at   time.Time
	born time.Time
}

// imageLife is how long an image is used that holds values derived from its seed, such as the seeds of maps made during start-up.
const imageLife = 10 * time.Minute

// rotates reports whether two invocations that begin from the image have something random in common.
func (img *image) rotates() bool { return img.start == StartReseeded || img.start == StartHooked }

// Bounds of a start-up that is frozen. Fuel is what counts; the time is for a machine that is very busy.
const (
	bootFuel = 400_000_000 // a Go program takes about 3,000,000
	bootTime = 5 * time.Second
	testTime = 250 * time.Millisecond // of the one use that tests an image
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

// shellLimit is how much memory a shell of a program can come to have.
func (r *Runtime) shellLimit(p *program) int64 {
	if p.info.MaxMemory > 0 {
		return max(min(r.config.MemoryLimit, p.info.MaxMemory), pageSize)
	}
	return r.config.MemoryLimit
}

// blankShell makes an instance that has not begun to start, under the rules for a start-up.
func (r *Runtime) blankShell(ctx context.Context, p *program, seed [32]byte, at time.Time, blank bool) (*shell, error) {
	mem, err := r.config.without.newLinearMemory(r.shellLimit(p))
	if err != nil {
		return nil, err
	}
	g := &guest{
		deep:    bootStack,
		Context: ctx, now: func() time.Time { return at }, random: rand.NewChaCha8(seed), start: at, limit: time.Now().Add(r.bootTime), output: MaxOutput,
		memory: mem, door: p.info.Door, log: logBuffer{now: func() time.Time { return at }}, asked: &ambient{},
	}
	if _, err := r.instantiate(g, p, blank); err != nil {
		return nil, err
	}
	s := &shell{g: g, without: r.config.without, globals: make([]api.MutableGlobal, 0, len(p.globals)+2)}
	for _, i := range p.globals {
		s.globals = append(s.globals, g.inst.mod.ExportedGlobal(addedGlobal+strconv.Itoa(i)).(api.MutableGlobal))
	}
	s.globals = append(s.globals, g.inst.depth, g.inst.pages)
	return s, nil
}

// boot starts a module up to where its input comes in, with a clock that stands still and random bytes that follow from seed.
func (r *Runtime) boot(p *program, seed [32]byte, at time.Time) (booted *shell, err error) {
	ctx, cancel := context.WithTimeoutCause(r.life, r.bootTime, errTimeout)
	defer cancel()
	s, err := r.blankShell(ctx, p, seed, at, false)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if err := s.bootTo(p); err != nil {
		return nil, err
	}
	g := s.g
	s.depth = g.stack
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
	call := func(name string) error {
		f := g.inst.mod.ExportedFunction(name)
		if f == nil {
			return nil
		}
		if _, err := f.Call(g); err != nil {
			return outcome(err)
		}
		return nil
	}
	if p.hasStart {
		if err := call(addedStart); err != nil {
			return err
		}
	}
	switch g.door {
	case DoorReactor:
		if err := call(exportInitialize); err != nil {
			return err
		}
		if p.hooks.Warm {
			if err := call(exportWarm); err != nil {
				return err
			}
		}
		s.find(p)
		return nil
	case DoorExtism:
		if err := startExtism(g, g.inst.mod); err != nil {
			return outcome(err)
		}
		s.find(p)
		return nil
	case DoorJavaScript:
		err := startScript(g, p.script)
		if err == nil {
			return nil
		}
		if g.stop == nil && asScript(err) {
			return errors.Join(notPoolable("it fails"), err)
		}
		return outcome(err)
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

// find looks up what calls enter a shell by, once: a look-up costs more than a short call.
func (s *shell) find(p *program) {
	switch s.g.door {
	case DoorExtism:
		s.calls = make(map[string]api.Function)
		return
	case DoorJavaScript:
		return // the image has it
	}
	s.run = s.g.inst.mod.ExportedFunction(exportRun)
	if p.hooks.Resume {
		s.again = s.g.inst.mod.ExportedFunction(exportResume)
	}
}

// freeze makes the image of a booted shell.
func (s *shell) freeze(seed [32]byte, at time.Time, mode ResetMode) (*image, error) {
	pages := uint32(s.g.inst.pages.Get())
	img := &image{pages: pages, stack: s.depth, seed: seed, at: at, born: time.Now(), script: s.g.inst.script}
	img.retain()
	for _, g := range s.globals {
		img.globals = append(img.globals, g.Get())
	}
	var err error
	if s.without.memory {
		mode = ResetCopy // pages of the Go heap are nobody's to map
	}
	img.memory, img.backing, err = newBacking(s.g.memory.buf[:int(pages)*pageSize], mode)
	return img, err
}

// newImage boots a module and decides how its shells are to be used. The error is an errNotPoolable when they cannot be.
func (r *Runtime) newImage(p *program) (_ *image, err error) {
	defer r.contain(p.info.Digest, &err)
	if p.unpoolable != "" {
		return nil, errNotPoolable{p.unpoolable}
	}
	// One instance at a time, apart from those of calls.
	share, err := r.reserve(r.life, r.bootCost(p))
	if err != nil {
		return nil, err
	}
	defer r.memory.end(share)
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
	img, err := first.freeze(seed, at, r.config.Reset)
	first.close()
	if err != nil {
		return nil, err
	}
	img.module, img.start, img.beside = p.info.Digest, StartShared, besides(p.info.Size)
	if asked != (ambient{}) {
		img.start, img.reseed, err = r.taint(p, asked, img)
	}
	if err == nil && p.info.Door == DoorCommand && !r.config.without.resumable() {
		img.start = StartAhead
	}
	if err == nil && img.start != StartAhead {
		err = r.selfTest(p, img)
	}
	if err != nil {
		img.release()
		return nil, err
	}
	if img.start == StartAhead {
		img.backing.close()
		img.memory, img.backing, img.pages = nil, heap{}, 0
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
	same := uint32(second.g.inst.pages.Get()) == img.pages
	for i, g := range second.globals {
		same = same && g.Get() == img.globals[i]
	}
	if p.hooks.Resume && p.info.Door == DoorReactor {
		// Its author says that the hook makes invocations differ.
		return StartHooked, nil, nil
	}
	if !same {
		return StartAhead, nil, nil
	}
	other := second.g.memory.buf[:len(img.memory)]
	// What a Go program computes on its stack lies in linear memory, so comparing memory misses nothing. The runtime asks for random bytes once;
	// whatever asks for more is the program's own, and may be meant to differ.
	if p.isGo && asked.random == 1 {
		if states := generators(img.memory, other); len(states) > 0 {
			return StartReseeded, states, nil
		}
	}
	// A command is frozen with values on its machine stack, where nothing can be compared.
	if p.info.Door != DoorCommand && !p.isGo && bytes.Equal(img.memory, other) {
		return StartShared, nil, nil
	}
	return StartAhead, nil, nil
}

// selfTest uses a shell once and looks whether it is as new afterwards. Beside what the guest writes, every page is.
func (r *Runtime) selfTest(p *program, img *image) error {
	img.retain()
	s, err := r.newShell(p, img)
	if err != nil {
		img.release()
		return err
	}
	defer s.close()
	ctx, cancel := context.WithTimeoutCause(r.life, testTime, errTimeout)
	defer cancel()
	setup := guest{
		Context: ctx, now: r.config.Now, random: r.config.Random, start: r.config.Now(), limit: time.Now().Add(testTime), output: MaxOutput,
		log: logBuffer{now: r.config.Now}, stdin: []byte("{}"), deep: bootStack, door: p.info.Door, hostState: r.powerless(&Call{Input: []byte("{}")}),
	}
	if p.info.Door == DoorExtism {
		// Its functions are the workflow's to name, so only the hand of the host is tried.
		_ = s.prepare(&setup, r.shellLimit(p))
	} else {
		_ = s.serve(&setup, r.shellLimit(p)) // however it ends: what matters is what it leaves
	}
	if s.dead {
		return nil // never reset, in production as here
	}
	for at := 0; at < len(img.memory); at += 4096 {
		s.g.memory.buf[at+at/4096%4096] ^= 0xa5
	}
	if !s.reset() {
		return nil
	}
	if !s.equal() {
		return notPoolable("a reset of its memory did not restore it")
	}
	return nil
}

// powerless is the host's side of a call that is granted nothing, and has no secrets and values to find.
func (r *Runtime) powerless(c *Call) hostState {
	s := r.hostState(c)
	s.vault, s.kv = noSecrets, noKV{}
	return s
}

// newShell makes a new shell of an image, of which it takes over the caller's reference if it succeeds.
func (r *Runtime) newShell(p *program, img *image) (_ *shell, err error) {
	defer r.contain(p.info.Digest, &err)
	switch {
	case img.start == StartAhead:
		return r.aheadShell(p, img)
	case p.info.Door == DoorCommand:
		return r.commandShell(p, img)
	}
	s, err := r.blankShell(r.life, p, img.seed, img.at, true)
	if err != nil {
		return nil, err
	}
	if have := s.g.memory.size / pageSize; int64(img.pages) > have {
		if _, ok := s.g.inst.mod.Memory().Grow(uint32(int64(img.pages) - have)); !ok {
			s.close()
			return nil, fmt.Errorf("the memory of an image of %d pages could not be made", img.pages)
		}
		s.g.memory.follow(s.g.inst.mod.Memory())
	}
	if img.script != nil {
		if s.g.inst.script, err = img.script.rebind(s.g); err != nil {
			s.close()
			return nil, err
		}
	}
	s.memory = img.backing.attach(s.g.memory.buf, img)
	for i, v := range img.globals {
		s.globals[i].Set(v)
	}
	s.find(p)
	s.g.forget()
	s.image, s.pages, s.depth = img, img.pages, img.stack
	return s, nil
}

// commandShell makes a shell of a command, which must get to its read of standard input by itself: its machine stack is its own.
func (r *Runtime) commandShell(p *program, img *image) (*shell, error) {
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
	s.image, s.pages = img, img.pages
	s.memory = img.backing.attach(s.g.memory.buf, img)
	return s, nil
}

// aheadShell makes an instance that is used once. Its clock stands at the moment of its start, and goes on from there when it is used.
func (r *Runtime) aheadShell(p *program, img *image) (*shell, error) {
	var seed [32]byte
	if _, err := r.config.Random.Read(seed[:]); err != nil {
		return nil, fmt.Errorf("random source: %w", err)
	}
	s, err := r.boot(p, seed, r.config.Now())
	if err != nil {
		return nil, err
	}
	s.image, s.memory = img, copier{}
	s.pages = uint32(s.g.inst.pages.Get())
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
