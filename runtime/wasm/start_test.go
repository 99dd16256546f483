package wasm

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyfire/keyfire/core"
)

// hooked is a reactor with warm and resume: warm counts at 100, resume puts its first value at 200, and run answers with the count and the value in
// two letters. start is code of _initialize; its imports are output_write (0) and random_get (1).
func hooked(start []byte) []byte {
	i, l := byte(typeI32), byte(typeI64)
	letter := func(to, from int32, bits int32) []byte {
		return concat(i32c(to), i32c(from), []byte{opI32Load, 0, 0}, i32c(bits), []byte{0x76}, i32c(15), []byte{0x71}, i32c('a'), []byte{0x6a, 0x3a, 0, 0})
	}
	run := concat(i32c(300), i32c('"'), []byte{0x3a, 0, 0}, letter(301, 100, 0), i32c(306), i32c('"'), []byte{0x3a, 0, 0})
	for n := range int32(4) {
		run = append(run, letter(302+n, 200, 4*n)...)
	}
	run = concat(run, i32c(300), i32c(7), []byte{opCall, 0, 0x1a}, i32c(0))
	warm := concat(i32c(100), i32c(100), []byte{opI32Load, 0, 0}, i32c(1), []byte{0x6a, 0x36, 0, 0})
	resume := concat(i32c(200), []byte{opLocalGet, 0, 0xa7, 0x36, 0, 0}) // i32.wrap_i64
	return newModule().
		section(secType, vec([]byte{0x60, 0, 0}, []byte{0x60, 2, i, i, 1, i}, []byte{0x60, 1, i, 1, i}, []byte{0x60, 4, l, l, l, l, 0})...).
		section(secImport, vec(concat(name(keyfireModule), name("output_write"), []byte{kindFunc, 1}), concat(name(wasiModule), name("random_get"), []byte{kindFunc, 1}))...).
		section(secFunction, vec([]byte{2}, []byte{0}, []byte{0}, []byte{3})...).
		section(secMemory, 1, 0, 1).
		section(secExport, vec(concat(name("run"), []byte{kindFunc, 2}), concat(name("warm"), []byte{kindFunc, 3}),
			concat(name("_initialize"), []byte{kindFunc, 4}), concat(name("resume"), []byte{kindFunc, 5}))...).
		section(secCode, vec(fn(nil, run...), fn(nil, warm...), fn(nil, start...), fn(nil, resume...))...).b
}

// TestHooks: warm is called once, before the state is frozen; resume before every run, with other random bytes each time, also where an
// instance is started for each call.
func TestHooks(t *testing.T) {
	t.Parallel()
	random := concat(i32c(400), i32c(8), []byte{opCall, 1, 0x1a})
	for _, tt := range []struct {
		name  string
		start []byte
		want  Start
	}{{"clean", nil, StartShared}, {"with random bytes from its start", random, StartHooked}} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, verified(t))
			d := b.publish(t, hooked(tt.start))
			b.warm(t, d, tt.want)
			seen := make(map[string]bool)
			for n := range 20 {
				call := Call{Account: core.DefaultAccount, Module: d, Input: []byte("{}")}
				warmed := byte('b')
				if n%2 == 1 {
					call.Engine, warmed = EnginePlain, 'a'
				}
				res, err := b.Invoke(t.Context(), call)
				if err != nil || res.Output[1] != warmed {
					t.Fatalf("call %d: %s, %v", n, res.Output, err)
				}
				seen[string(res.Output[2:6])] = true
			}
			if len(seen) < 18 { // of 65,536 values
				t.Errorf("only %d of 20 random values differ: %v", len(seen), seen)
			}
		})
	}
}

// randomFirst is a command that asks for 8 random bytes, reads, and answers with two of the bytes as 4 letters.
func randomFirst() []byte {
	letter := func(to, from, bits int32) []byte {
		return concat(i32c(to), load8(from), i32c(bits), []byte{0x76}, i32c(15), []byte{0x71}, i32c('a'), []byte{0x6a, 0x3a, 0, 0})
	}
	write := concat(i32c(3100), i32c('"'), []byte{0x3a, 0, 0}, letter(3101, 3000, 0), letter(3102, 3000, 4), letter(3103, 3001, 0), letter(3104, 3001, 4),
		i32c(3105), i32c('"'), []byte{0x3a, 0, 0}, i32c(3108), i32c(3100), []byte{0x36, 2, 0}, i32c(3112), i32c(6), []byte{0x36, 2, 0},
		i32c(1), i32c(3108), i32c(1), i32c(3116), []byte{opCall, 1, 0x1a})
	return reader4(concat(i32c(3000), i32c(8), []byte{opCall, 2, 0x1a}), write)
}

// TestAhead: a module whose start-up draws random bytes has an instance for each call, started before the call came.
func TestAhead(t *testing.T) {
	t.Parallel()
	b := setup(t, verified(t))
	d := b.publish(t, randomFirst())
	b.warm(t, d, StartAhead)
	img := b.modules.entries[d].prog.imager.image
	seen := make(map[string]bool)
	const calls = 30
	for range calls {
		waitFor(t, func() bool { return b.shelf.count(shelfKey{image: img}) > 0 })
		res, err := b.call(t, d, "{}", core.Limits{})
		if err != nil || res.Start != StartAhead {
			t.Fatalf("%s by %s, %v", res.Output, res.Start, err)
		}
		seen[string(res.Output)] = true
	}
	if len(seen) < calls-1 {
		t.Errorf("%d of %d values differ", len(seen), calls)
	}
	if s := b.Stats(); s.Resets != 0 {
		t.Errorf("instances were used again: %+v", s)
	}
}

// TestStrict: nothing is used twice, and calls still start from the image.
func TestStrict(t *testing.T) {
	t.Parallel()
	b := setup(t, verified(t), func(c *Config) { c.Isolation = IsolationStrict })
	d := b.publish(t, probeReactor())
	b.warm(t, d, StartShared)
	for range 10 {
		res, err := b.Invoke(t.Context(), Call{Account: "acct_a", Module: d, Input: []byte("n")})
		if err != nil || string(res.Output) != "1101" || res.Start != StartShared {
			t.Fatalf("%s by %s, %v", res.Output, res.Start, err)
		}
	}
	if s := b.Stats(); s.Resets != 0 {
		t.Errorf("instances were used again: %+v", s)
	}
}

// TestEngineOfCall: one call may ask for a plain start.
func TestEngineOfCall(t *testing.T) {
	t.Parallel()
	b := setup(t, verified(t))
	d := b.publish(t, counting())
	b.warm(t, d, StartShared)
	for engine, want := range map[Engine]Start{"": StartShared, EngineSnapshot: StartShared, EnginePlain: StartPlain} {
		res, err := b.Invoke(t.Context(), Call{Account: core.DefaultAccount, Module: d, Input: []byte("n"), Engine: engine})
		if err != nil || res.Start != want {
			t.Errorf("engine %q: by %s, %v; want %s", engine, res.Start, err, want)
		}
	}
}

// TestIdle: instances that nobody needed are closed, and the next call makes one.
func TestIdle(t *testing.T) {
	t.Parallel()
	b := setup(t, verified(t))
	d := b.publish(t, counting())
	b.warm(t, d, StartShared)
	if s := b.Stats(); s.IdleShells != 1 {
		t.Fatalf("%+v", s)
	}
	b.release(time.Now().Add(-time.Hour))
	if s := b.Stats(); s.IdleShells != 1 {
		t.Errorf("one in use lately was closed: %+v", s)
	}
	b.release(time.Now())
	if s := b.Stats(); s.IdleShells != 0 || s.IdleBytes != 0 {
		t.Errorf("%+v", s)
	}
	if res, err := b.call(t, d, "n", core.Limits{}); err != nil || res.Start != StartShared {
		t.Errorf("by %s, %v", res.Start, err)
	}
}

// TestKept: a module that was loaded before is loaded again without its bytes, by another runtime too; a form of it that was changed is
// not used.
func TestKept(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "cache")
	own := func(c *Config) { c.CacheDir = dir }
	first := setup(t, own)
	d := first.publish(t, counting())
	call := func(b bundle) {
		t.Helper()
		if res, err := b.call(t, d, "n", core.Limits{}); err != nil || string(res.Output) != "110" {
			t.Fatalf("%s, %v", res.Output, err)
		}
	}
	call(first)
	if first.library.loads != 1 {
		t.Fatalf("loaded %d times", first.library.loads)
	}
	second := setup(t, own)
	second.library.modules = first.library.modules
	call(second)
	if n := second.library.loads; n != 0 {
		t.Errorf("the bytes were loaded %d times", n)
	}
	path := second.artifacts.preparedPath(d)
	flip(t, path)
	third := setup(t, own)
	third.library.modules = first.library.modules
	call(third)
	if n := third.library.loads; n != 1 {
		t.Errorf("with a damaged file, the bytes were loaded %d times", n)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("it was not kept again: %v", err)
	}
}

// TestMeasure: an author can see how a module starts and what it costs.
func TestMeasure(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, tt := range []struct {
		binary []byte
		start  Start
		reused bool
		dirty  int
	}{
		{hooked(nil), StartShared, true, 1},
		{counting(), StartShared, false, 16},
		{probeReactor(), StartShared, false, 16},
		{probeInput(), StartShared, false, 16},
		{randomFirst(), StartAhead, false, 0},
		{writer("1", 1), StartPlain, false, 0},
	} {
		d := b.publish(t, tt.binary)
		m, err := b.Measure(t.Context(), Call{Account: core.DefaultAccount, Module: d, Input: []byte("n")}, 30*time.Millisecond)
		if err != nil || m.Start != tt.start || m.Plain.Median == 0 || m.Fresh.Median == 0 || (m.Reused.Calls > 0) != tt.reused {
			t.Errorf("%s: %+v, %v", tt.start, m, err)
		}
		if tt.start == StartShared && (m.Reset.Calls == 0 || m.DirtyPages != tt.dirty || m.ImageBytes != pageSize || m.IdleBytes < 20<<10 || m.IdleBytes > 100<<10) {
			t.Errorf("%s: %+v", tt.start, m)
		}
	}
}

// TestWarmGo: the Go SDK's reactors export warm, which leaves less to do for each call.
func TestWarmGo(t *testing.T) {
	t.Parallel()
	binary := sdkGuest(t, "./conformance/typed", true)
	_, m, err := examine(binary)
	if err != nil {
		t.Fatal(err)
	}
	if h := m.hooks(); !h.Warm {
		t.Errorf("%+v", h)
	}
}

// TestFirstCallAfterRestart: what the first call of a Go module waits for in a new process.
func TestFirstCallAfterRestart(t *testing.T) {
	t.Parallel()
	before := setup(t)
	d := before.publish(t, guestModule(t))
	if _, err := before.call(t, d, `{"op":"echo","text":"x"}`, core.Limits{}); err != nil {
		t.Fatal(err)
	}
	r, err := New(t.Context(), Config{CacheDir: before.config.CacheDir, Load: func(context.Context, string, string) ([]byte, error) {
		return nil, core.Errorf(core.CodeNotFound, "it should not be needed")
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close(context.Background())
	res, err := r.Invoke(t.Context(), Call{Account: core.DefaultAccount, Module: d, Input: []byte(`{"op":"echo","text":"x"}`)})
	if err != nil || !strings.Contains(string(res.Output), `x`) || !json.Valid(res.Output) {
		t.Fatalf("%s, %v", res.Output, err)
	}
	t.Logf("loaded in %v, ran for %v", res.Load, res.Wall)
}

// TestLikeModules: modules that differ only in what the rewriter leaves out are loaded side by side, in the moment another one is.
func TestLikeModules(t *testing.T) {
	t.Parallel()
	b := setup(t, func(c *Config) { c.ModuleBudget, c.Engine = 1, EnginePlain })
	var digests []string
	for i := range byte(8) {
		digests = append(digests, b.publish(t, append(probeReactor(), sectionOf(secCustom, concat(name("like"), []byte{i}))...)))
	}
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for n := range 10 {
				res, err := b.Invoke(t.Context(), Call{Module: digests[(i+n)%len(digests)], Input: []byte("n")})
				if err != nil || string(res.Output) != "1101" {
					t.Errorf("%s, %v", res.Output, err)
				}
			}
		})
	}
	wg.Wait()
}

// TestPlainStarts is class E: what cannot be put back is not used twice, its author is told why, and every call finds it as new.
func TestPlainStarts(t *testing.T) {
	t.Parallel()
	i := byte(typeI32)
	// Answers with the byte at 200 plus one, which it leaves there.
	answer := concat(i32c(200), load8(200), i32c(1), []byte{0x6a, 0x3a, 0, 0}, i32c(100), load8(200), i32c('0'), []byte{0x6a, 0x3a, 0, 0},
		i32c(100), i32c(1), []byte{opCall, 0, 0x1a}, i32c(0))
	reactor := func(globals []byte, code []byte, passive bool) []byte {
		m := newModule().
			section(secType, vec([]byte{0x60, 2, i, i, 1, i}, []byte{0x60, 1, i, 1, i})...).
			section(secImport, vec(concat(name(keyfireModule), name("output_write"), []byte{kindFunc, 0}))...).
			section(secFunction, 1, 1).
			section(secTable, 1, typeFuncref, 0, 2).
			section(secMemory, 1, 0, 1)
		if globals != nil {
			m.section(secGlobal, vec(globals)...)
		}
		m.section(secExport, vec(concat(name("run"), []byte{kindFunc, 1}))...).
			section(secElement, 1, 3, 0, 1, 1)
		if passive {
			m.section(secDataCount, 1)
		}
		m.section(secCode, vec(fn(nil, concat(code, answer)...))...)
		if passive {
			m.section(secData, vec(concat([]byte{1}, sized([]byte{0})))...)
		}
		return m.b
	}
	for _, tt := range []struct {
		name   string
		binary []byte
		why    string
	}{
		{"table.set", reactor(nil, concat(i32c(0), []byte{opRefFunc, 1, opTableSet, 0}), false), "tables"},
		{"table.fill", reactor(nil, concat(i32c(0), []byte{opRefFunc, 1}, i32c(1), []byte{opPrefixFC, 17, 0}), false), "tables"},
		{"table.copy", reactor(nil, concat(i32c(0), i32c(1), i32c(1), []byte{opPrefixFC, 14, 0, 0}), false), "tables"},
		{"elem.drop", reactor(nil, []byte{opPrefixFC, 13, 0}, false), "tables"},
		{"memory.init", reactor(nil, concat(i32c(200), i32c(0), i32c(1), []byte{opPrefixFC, 8, 0, 0}), true), "memory by its own instructions"},
		{"a vector global", reactor(concat([]byte{typeV128, 1, 0xfd, 12}, make([]byte, 16), []byte{opEnd}), nil, false), "vector or reference"},
		{"a reference global", reactor([]byte{typeFuncref, 1, 0xd0, typeFuncref, opEnd}, nil, false), "vector or reference"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, verified(t))
			d := b.publish(t, tt.binary)
			if got, err := b.Warm(t.Context(), core.DefaultAccount, d); err != nil || got.Start != StartPlain || !strings.Contains(got.Why, tt.why) {
				t.Errorf("%+v, %v", got, err)
			}
			for range 5 {
				res, err := b.Invoke(t.Context(), Call{Account: core.DefaultAccount, Module: d, Input: []byte("{}")})
				if err != nil || string(res.Output) != "1" || res.Start != StartPlain || res.Start.Class() != "E" {
					t.Fatalf("%s by %s, %v", res.Output, res.Start, err)
				}
			}
			if s := b.Stats(); s.Resets != 0 || s.Made != 0 || s.Starts[StartPlain] != 5 {
				t.Errorf("%+v", s)
			}
		})
	}
}

// TestAheadConcurrent is class D under load: no instance is used twice, whoever asks, whether one was ready or not; and what waits is no more than was
// in use at once.
func TestAheadConcurrent(t *testing.T) {
	t.Parallel()
	b := setup(t, verified(t))
	d := b.publish(t, randomFirst())
	b.warm(t, d, StartAhead)
	img := b.modules.entries[d].prog.imager.image
	const workers, calls = 8, 40
	var wg sync.WaitGroup
	for worker := range workers {
		wg.Go(func() {
			for range calls {
				res, err := b.Invoke(t.Context(), Call{Account: fmt.Sprint("acct_", worker%2), Module: d, Input: []byte("{}")})
				if err != nil || len(res.Output) != 6 {
					t.Errorf("%s by %s, %v", res.Output, res.Start, err)
					return
				}
			}
		})
	}
	wg.Wait()
	waitFor(t, func() bool {
		img.demand.mu.Lock()
		defer img.demand.mu.Unlock()
		return img.demand.making == 0 && img.demand.used == 0
	})
	s := b.Stats()
	if s.Resets != 0 || s.IdleShells > workers+1 || s.Starts[StartAhead]+s.Starts[StartPlain] != workers*calls || s.Starts[StartAhead] == 0 {
		t.Errorf("%+v", s)
	}
	// Each was made for one call, or waits.
	if s.Made != s.Starts[StartAhead]+uint64(s.IdleShells) {
		t.Errorf("%d made, %d used, %d wait", s.Made, s.Starts[StartAhead], s.IdleShells)
	}
}
