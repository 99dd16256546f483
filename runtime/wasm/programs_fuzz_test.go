package wasm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
)

// laboratory runs made programs in three ways: as they are, by the engine alone; rewritten, in an instance of their own; and rewritten and frozen, in a
// shell that is reset after each use. What can be seen of them must be the same.
type laboratory struct {
	plain wazero.Runtime
	r     *Runtime
	at    time.Time
	seen  map[string]int // what became of programs, so that a test can say that it tested something
}

func newLaboratory(tb testing.TB) *laboratory {
	tb.Helper()
	ctx := context.Background()
	l := &laboratory{at: time.Unix(1_700_000_000, 0), seen: make(map[string]int)}
	l.plain = wazero.NewRuntimeWithConfig(ctx, engineConfig().WithMemoryLimitPages(madePages))
	if err := instantiateHost(ctx, l.plain); err != nil {
		tb.Fatal(err)
	}
	var err error
	l.r, err = New(ctx, Config{
		CacheDir: filepath.Join(tb.TempDir(), "cache"), MemoryLimit: madePages * pageSize, Logger: slog.New(failHandler{slog.DiscardHandler, tb}),
		Load: func(context.Context, string, string) ([]byte, error) { return nil, errors.New("nothing is published") },
	})
	if err != nil {
		tb.Fatal(err)
	}
	// Without a cache, for which each program would be two files.
	if err := l.r.wazero.Close(ctx); err != nil {
		tb.Fatal(err)
	}
	l.r.wazero = wazero.NewRuntimeWithConfig(ctx, engineConfig())
	if err := instantiateHost(ctx, l.r.wazero); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := errors.Join(l.plain.Close(ctx), l.r.Close(ctx)); err != nil {
			tb.Error(err)
		}
	})
	return l
}

// seenAtEnd is what can be seen of a program that has ended.
type seenAtEnd struct {
	end     string
	output  string
	log     string
	memory  []byte
	globals []uint64
}

func (s seenAtEnd) differs(o seenAtEnd) string {
	switch {
	case s.end != o.end:
		return fmt.Sprintf("it ends with %q, not %q", o.end, s.end)
	case s.output != o.output:
		return fmt.Sprintf("it writes %q, not %q", o.output, s.output)
	case s.log != o.log:
		return fmt.Sprintf("it logs %q, not %q", o.log, s.log)
	case len(s.memory) != len(o.memory):
		return fmt.Sprintf("its memory has %d bytes, not %d", len(o.memory), len(s.memory))
	case !slices.Equal(s.globals, o.globals):
		return fmt.Sprintf("its globals are %x, not %x", o.globals, s.globals)
	}
	if bytes.Equal(s.memory, o.memory) {
		return ""
	}
	i := 0
	for s.memory[i] == o.memory[i] {
		i++
	}
	return fmt.Sprintf("its memory has %#x at %#x, not %#x", o.memory[i], i, s.memory[i])
}

func (l *laboratory) guest(input []byte, d Door) guest {
	now := func() time.Time { return l.at }
	return guest{
		Context: context.Background(), now: now, random: rand.NewChaCha8([32]byte{1}), stdin: input, output: MaxOutput, log: logBuffer{now: now},
		start: l.at, limit: time.Now().Add(time.Hour), deep: maxStack, door: d, hostState: l.r.powerless(&Call{Input: input}),
	}
}

// endOfRun says how a program ended: by itself, by a trap or by the host.
func endOfRun(g *guest, err error) string {
	switch {
	case g.stop != nil:
		return "stopped: " + firstLine(g.stop.Error())
	case g.exited:
		return fmt.Sprintf("exit %d", int32(g.code))
	case err == nil:
		return "done"
	}
	_, trap, found := strings.Cut(err.Error(), "wasm error: ")
	if !found {
		return "error: " + err.Error()
	}
	return "trap: " + firstLine(trap)
}

// look is what can be seen of g's program, whose instance is mod.
func (l *laboratory) look(m *maker, g *guest, mod api.Module, memory []byte, err error) seenAtEnd {
	s := seenAtEnd{end: endOfRun(g, err), output: string(g.stdout), memory: memory}
	g.log.flush(levelInfo)
	for _, line := range g.log.lines {
		s.log += line.Message + "\n"
	}
	for i, global := range m.globals {
		if slices.Contains(numbers, global.typ) {
			s.globals = append(s.globals, mod.ExportedGlobal(fmt.Sprint("g", i)).Get())
		}
	}
	return s
}

// reference runs a program as it is. It reports false if there can be no instance of it.
func (l *laboratory) reference(m *maker, compiled wazero.CompiledModule, input []byte) (seenAtEnd, bool) {
	g := l.guest(input, m.door)
	g.memory = &linearMemory{}
	mod, err := l.plain.InstantiateModule(&g, compiled, wazero.NewModuleConfig().WithName("").WithStartFunctions())
	if err != nil {
		if g.exited || strings.Contains(err.Error(), "start function") {
			return seenAtEnd{end: endOfRun(&g, err), output: string(g.stdout)}, true
		}
		return seenAtEnd{}, false
	}
	defer mod.Close(context.Background())
	err = enter(&g, mod, hooks{})
	memory, _ := mod.Memory().Read(0, mod.Memory().Size())
	return l.look(m, &g, mod, memory, err), true // on the Go heap: it stays
}

// fresh runs a rewritten program in an instance of its own, as start does. It tells what is not as wanted, and the fuel it took.
func (l *laboratory) fresh(m *maker, p *program, input []byte, want seenAtEnd) (differs string, fuel int64, ok bool) {
	g := l.guest(input, m.door)
	memory := max(l.r.shellLimit(p), pageSize)
	mem, err := l.r.config.without.newLinearMemory(memory)
	if err != nil {
		panic(err)
	}
	g.memory = mem
	in, err := l.r.instantiate(&g, p, false)
	if err != nil {
		return "", 0, false
	}
	defer in.close()
	if p.hasStart {
		if _, err := in.mod.ExportedFunction(addedStart).Call(&g); err != nil {
			return want.differs(seenAtEnd{end: endOfRun(&g, err), output: string(g.stdout)}), g.fuelUsed(), true
		}
	}
	err = enter(&g, in.mod, p.hooks)
	return want.differs(l.look(m, &g, in.mod, g.memory.buf[:g.memory.size], err)), g.fuelUsed(), true
}

// use runs a program once in a shell, with so much fuel to begin with, and so much stack, if they are not negative.
func (l *laboratory) use(m *maker, p *program, s *shell, setup guest, fuel, depth int64) (seenAtEnd, int64, error) {
	var err error
	switch {
	case fuel < 0 && depth < 0:
		err = s.serve(&setup, max(l.r.shellLimit(p), pageSize))
	default:
		if err := s.prepare(&setup, max(l.r.shellLimit(p), pageSize)); err != nil {
			return seenAtEnd{}, 0, err
		}
		if fuel >= 0 {
			s.g.fuel = fuel
			s.g.inst.fuel.Set(uint64(fuel))
		}
		if depth >= 0 {
			s.g.inst.depth.Set(uint64(depth))
		}
		s.dirty = true
		if m.door != DoorCommand {
			err = s.call()
		} else if _, parked := s.step(); !parked {
			s.dead, err = true, s.startErr
		}
	}
	g := s.g
	size := int64(uint32(g.inst.pages.Get())) * pageSize
	if size != g.memory.size || !allZero(g.memory.buf[size:g.memory.high]) {
		return seenAtEnd{}, 0, fmt.Errorf("it has %d bytes of memory and can reach %d", size, g.memory.size)
	}
	lent := int64(0) // of the depth
	if depth >= 0 {
		lent = s.depth - depth
	}
	if g.stop == nil && err == nil && m.door != DoorCommand && int64(int32(g.inst.depth.Get())) != g.stack-lent {
		return seenAtEnd{}, 0, fmt.Errorf("it leaves the depth at %d of %d", g.inst.depth.Get(), g.stack-lent)
	}
	if g.stack > s.depth {
		l.seen["deeper"]++
	}
	return l.look(m, g, g.inst.mod, g.memory.buf[:size], err), g.fuelUsed(), nil
}

// madeModes are the ways in which shells are made and reset.
var madeModes = []struct {
	mode    ResetMode
	without experiments
}{{ResetAuto, experiments{}}, {ResetScan, experiments{}}, {ResetCopy, experiments{}}, {ResetDiscard, experiments{}}, {ResetPagemap, experiments{}}, {ResetAuto, experiments{memory: true}}}

// try makes a program of bytes and runs it in all ways. The error says what differed.
func (l *laboratory) try(b []byte) (binary []byte, err error) {
	ctx := context.Background()
	m := makeProgram(b)
	binary = m.binary()
	way := madeModes[m.n(len(madeModes))]
	l.r.config.Reset, l.r.config.without = way.mode, way.without
	inputs := [][]byte{nil, []byte("{}"), []byte("abcdefghijklmnopqrstuvwxyz")}
	for range m.n(8) {
		inputs[2] = append(inputs[2], byte(m.n(256)))
	}

	original, err := l.plain.CompileModule(ctx, binary)
	if err != nil {
		return binary, fmt.Errorf("the program is not valid: %w", err)
	}
	defer original.Close(ctx)
	want := make([]seenAtEnd, len(inputs))
	can := true
	for i, input := range inputs {
		if want[i], can = l.reference(m, original, input); !can {
			break
		}
	}
	info, parsed, err := examine(binary)
	if err != nil {
		return binary, fmt.Errorf("refused: %w", err)
	}
	rw, err := rewrite(parsed)
	if err != nil {
		if !can {
			l.seen["no instance"]++
			return binary, nil
		}
		return binary, fmt.Errorf("rewrite: %w", err)
	}
	compiled, err := l.r.wazero.CompileModule(ctx, rw.binary)
	if err != nil {
		return binary, fmt.Errorf("the rewritten program is not valid: %w", err)
	}
	defer compiled.Close(ctx)
	p := &program{rewritten: rw, compiled: compiled, info: info}
	fuel := make([]int64, len(inputs))
	for i, input := range inputs {
		d, used, ok := l.fresh(m, p, input, want[i])
		if ok != can {
			return binary, fmt.Errorf("there can be an instance: %t, rewritten: %t", can, ok)
		}
		if !ok {
			l.seen["no instance"]++
			return binary, nil
		}
		if d != "" {
			return binary, fmt.Errorf("rewritten, input %d: %s", i, d)
		}
		fuel[i] = used
	}
	l.seen[strings.TrimRight(firstLine(want[0].end), "-0123456789")]++
	return binary, l.tryShells(m, p, inputs, want, fuel)
}

func (l *laboratory) tryShells(m *maker, p *program, inputs [][]byte, want []seenAtEnd, fuel []int64) error {
	img, err := l.r.newImage(p)
	var plain errNotPoolable
	if errors.As(err, &plain) {
		l.seen["plain: "+plain.why]++
		return nil
	}
	if err != nil {
		return fmt.Errorf("image: %w", err)
	}
	defer img.release()
	l.seen["start "+string(img.start)]++
	if img.start != StartShared {
		return nil
	}
	var s *shell
	defer func() {
		if s != nil {
			s.close()
		}
	}()
	// next makes the shell as new, or makes a new one.
	next := func() error {
		if s != nil {
			if s.dirty && s.reset() {
				if !s.equal() {
					return errors.New("a reset leaves a difference")
				}
				l.seen["resets"]++
				return nil
			}
			s.close()
			s = nil
		}
		img.retain()
		if s, err = l.r.newShell(p, img); err != nil {
			img.release()
			return fmt.Errorf("shell: %w", err)
		}
		return nil
	}
	startUp := int64(-1)
	for _, i := range []int{2, 0, 1, 2, 1} {
		if err := next(); err != nil {
			return fmt.Errorf("before input %d: %w", i, err)
		}
		got, used, err := l.use(m, p, s, l.guest(inputs[i], m.door), -1, -1)
		if err != nil {
			return fmt.Errorf("in a shell, input %d: %w", i, err)
		}
		if d := want[i].differs(got); d != "" {
			return fmt.Errorf("in a shell, input %d: %s", i, d)
		}
		if startUp >= 0 && fuel[i]-used != startUp {
			return fmt.Errorf("in a shell, input %d takes %d of fuel; in an instance of its own %d more, where it is %d for another input", i, used, fuel[i]-used, startUp)
		}
		startUp = fuel[i] - used
	}
	return l.tryLimits(m, p, &s, next, inputs[2], want[2], fuel[2]-startUp)
}

// tryLimits runs a program with little fuel and with little stack: it must come to the same end, or to none. whole is the fuel it takes.
func (l *laboratory) tryLimits(m *maker, p *program, s **shell, next func() error, input []byte, want seenAtEnd, whole int64) error {
	few := []int64{0, 1, whole - 1, whole, whole + 1}
	for range 6 {
		few = append(few, int64(m.n(1<<16))*whole>>16)
	}
	if whole <= 40 {
		few = few[:0]
		for n := range whole + 2 {
			few = append(few, n)
		}
	}
	for _, n := range few {
		if n < 0 {
			continue
		}
		// With more to be had, nothing changes.
		if err := next(); err != nil {
			return fmt.Errorf("before fuel %d: %w", n, err)
		}
		got, used, err := l.use(m, p, *s, l.guest(input, m.door), n, -1)
		if err != nil {
			return err
		}
		if d := want.differs(got); d != "" || used != whole {
			return fmt.Errorf("filled up after %d of %d of fuel, it takes %d: %s", n, whole, used, d)
		}
		if m.clocks || m.memMin >= bulkPiece/pageSize {
			continue // what looks at the deadline by itself, too
		}
		if err := next(); err != nil {
			return fmt.Errorf("before fuel %d: %w", n, err)
		}
		setup := l.guest(input, m.door)
		setup.limit, setup.work = time.Now().Add(-time.Second), math.MinInt32 // the host's work does not count
		got, _, err = l.use(m, p, *s, setup, n, -1)
		if err != nil {
			return err
		}
		if n < whole {
			if got.end != "stopped: "+errTimeout.Error() {
				return fmt.Errorf("with %d of %d of fuel it ends with %q", n, whole, got.end)
			}
		} else if d := want.differs(got); d != "" {
			return fmt.Errorf("with %d of %d of fuel: %s", n, whole, d)
		}
	}
	for _, stack := range []int64{0, 1_000, int64(m.n(1 << 16))} {
		if err := next(); err != nil {
			return fmt.Errorf("before stack %d: %w", stack, err)
		}
		setup := l.guest(input, m.door)
		setup.deep = (*s).depth
		got, _, err := l.use(m, p, *s, setup, -1, stack)
		if err != nil {
			return err
		}
		if d := want.differs(got); d != "" && !strings.Contains(got.end, "nest too deeply") {
			return fmt.Errorf("with %d bytes of stack: %s", stack, d)
		}
		// With more to be had, nothing changes.
		if err := next(); err != nil {
			return fmt.Errorf("before stack %d: %w", stack, err)
		}
		got, used, err := l.use(m, p, *s, l.guest(input, m.door), -1, stack)
		if err != nil {
			return err
		}
		if d := want.differs(got); d != "" || used != whole {
			return fmt.Errorf("with %d bytes of stack, and more, it takes %d of fuel instead of %d: %s", stack, used, whole, d)
		}
	}
	return next()
}

// FuzzPrograms: whatever a valid program does, it does the same when it is rewritten, and when it begins from an image in a shell that others used
// before; its fuel is the same every time, and with less of it the program does not end.
func FuzzPrograms(f *testing.F) {
	for seed := range uint64(64) {
		f.Add(madeFrom(seed))
	}
	f.Add([]byte(nil))
	l := newLaboratory(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<13 {
			return
		}
		if binary, err := l.try(b); err != nil {
			t.Errorf("%v\nmodule %x", err, binary)
		}
	})
}

// madeFrom are bytes that a program of some size is made from.
func madeFrom(seed uint64) []byte {
	r := rand.NewPCG(seed, 0)
	b := make([]byte, 200+r.Uint64()%3000)
	for i := range b {
		b[i] = byte(r.Uint64())
	}
	return b
}

// TestPrograms makes programs at random: some hundreds, or as many as there is time for.
func TestPrograms(t *testing.T) {
	t.Parallel()
	end := time.Now().Add(time.Second)
	if d, err := time.ParseDuration(os.Getenv("KEYFIRE_CHAOS")); err == nil {
		end = time.Now().Add(d)
	}
	base := rand.Uint64() >> 24 << 8
	t.Logf("seed %d", base)
	var mu sync.Mutex
	seen := make(map[string]int)
	var wg sync.WaitGroup
	for worker := range uint64(2) {
		wg.Go(func() {
			l := newLaboratory(t)
			for seed := base + worker<<40; time.Now().Before(end) && !t.Failed(); seed++ {
				l.seen["programs"]++
				if binary, err := l.try(madeFrom(seed)); err != nil {
					t.Errorf("seed %d: %v\nmodule %x", seed, err, binary)
				}
			}
			mu.Lock()
			defer mu.Unlock()
			for what, n := range l.seen {
				seen[what] += n
			}
		})
	}
	wg.Wait()
	var all []string
	for what, n := range seen {
		all = append(all, fmt.Sprintf("%7d %s", n, what))
	}
	slices.Sort(all)
	t.Log("\n" + strings.Join(all, "\n"))
}
