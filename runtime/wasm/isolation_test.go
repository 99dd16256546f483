package wasm

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyfire/keyfire/core"
)

// thorough reports whether tests have the time for their full numbers: `make chaos` sets the variable, to 60 s unless told otherwise.
func thorough() bool {
	d, err := time.ParseDuration(os.Getenv("KEYFIRE_CHAOS"))
	return err == nil && d >= time.Minute
}

func load8(at int32) []byte { return concat(i32c(at), []byte{0x2d, 0, 0}) } // i32.load8_u

// on runs code if the input begins with c.
func on(c byte, code ...byte) []byte {
	return concat(load8(64), i32c(int32(c)), []byte{0x46, opIf, typeEmpty}, code, []byte{opEnd})
}

// prober is the body of a guest that looks before it writes, and then marks everything it can reach. Its input is at 64, its answer of 4 digits at
// 2100: how often its memory was used, how often a global was, whether anything is in its memory beyond 4 KiB, and how many pages it has. If the input
// begins with "t" it then traps, with "s" it spins, with "g" it grows and marks that, with "o" it grows until it may not and traps, with "r" it recurses
// until it is stopped. self is the index of a function () -> () that calls itself.
func prober(self byte) []byte {
	bump := func(at int32) []byte { return concat(i32c(at), load8(at), i32c(1), []byte{0x6a, 0x3a, 0, 0}) }
	const low, high = 4096, 65_536
	// Or of all words beyond 4 KiB, in local 1; local 2 is the place.
	scan := concat(i32c(low), []byte{opLocalSet, 2, opLoop, typeEmpty},
		[]byte{opLocalGet, 1, opLocalGet, 2, opI32Load, 2, 0, 0x72, opLocalSet, 1},
		[]byte{opLocalGet, 2}, i32c(4), []byte{0x6a, opLocalTee, 2}, i32c(high), []byte{0x49, opBrIf, 0, opEnd})
	digit := func(at int32, code ...byte) []byte {
		return concat(i32c(at), code, i32c('0'), []byte{0x6a, 0x3a, 0, 0})
	}
	return concat(
		bump(2000), []byte{opGlobalGet, 0}, i32c(1), []byte{0x6a, opGlobalSet, 0}, scan,
		digit(2100, load8(2000)...), digit(2101, opGlobalGet, 0), digit(2102, concat([]byte{opLocalGet, 1}, i32c(0), []byte{0x47})...), digit(2103, opMemorySize, 0),
		// Mark.
		i32c(low), i32c(0x5a), i32c(high-low), []byte{opPrefixFC, subMemoryFill, 0},
		on('t', opUnreachable),
		on('s', opLoop, typeEmpty, opBr, 0, opEnd),
		on('g', concat(i32c(5), []byte{opMemoryGrow, 0, 0x1a}, i32c(high), i32c(0x5a), i32c(5*high), []byte{opPrefixFC, subMemoryFill, 0})...),
		on('o', concat([]byte{opLoop, typeEmpty}, i32c(16), []byte{opMemoryGrow, 0}, i32c(-1), []byte{0x47, opBrIf, 0, opEnd, opUnreachable})...),
		on('r', opCall, self),
	)
}

// probeCommand, probeInput and probeReactor are the prober behind either door.
func probeCommand() []byte {
	i := byte(typeI32)
	four := []byte{0x60, 4, i, i, i, i, 1, i}
	start := concat(i32c(0), i32c(0), i32c(1), i32c(8), []byte{opCall, 0, 0x1a}, prober(3),
		i32c(2108), i32c(2100), []byte{0x36, 2, 0}, i32c(2112), i32c(4), []byte{0x36, 2, 0}, i32c(1), i32c(2108), i32c(1), i32c(2116), []byte{opCall, 1, 0x1a})
	return probe(vec([]byte{0x60, 0, 0}, four), [][2]string{{wasiModule, "fd_read"}, {wasiModule, "fd_write"}}, []byte{1, 1}, "_start", 0,
		// Locals 0 to 2, so that the body is the same as of a function with a parameter.
		fn([][]byte{{3, i}}, start...))
}

// probeInput is a command that reads and writes by the host functions of the ABI.
func probeInput() []byte {
	i := byte(typeI32)
	start := concat(i32c(0), i32c(64), i32c(1000), []byte{opCall, 0, 0x1a}, prober(3), i32c(2100), i32c(4), []byte{opCall, 1, 0x1a})
	return probe(vec([]byte{0x60, 0, 0}, []byte{0x60, 3, i, i, i, 1, i}, []byte{0x60, 2, i, i, 1, i}),
		[][2]string{{keyfireModule, "input_read"}, {keyfireModule, "output_write"}}, []byte{1, 2}, "_start", 0, fn([][]byte{{3, i}}, start...))
}

func probeReactor() []byte {
	i := byte(typeI32)
	run := concat(i32c(0), i32c(64), i32c(1000), []byte{opCall, 0, 0x1a}, prober(3), i32c(2100), i32c(4), []byte{opCall, 1, 0x1a}, i32c(0))
	return probe(vec([]byte{0x60, 0, 0}, []byte{0x60, 3, i, i, i, 1, i}, []byte{0x60, 2, i, i, 1, i}, []byte{0x60, 1, i, 1, i}),
		[][2]string{{keyfireModule, "input_read"}, {keyfireModule, "output_write"}}, []byte{1, 2}, "run", 3, fn([][]byte{{2, i}}, run...))
}

func probe(types []byte, imports [][2]string, importTypes []byte, entrance string, typ byte, body []byte) []byte {
	var decls [][]byte
	for i, d := range imports {
		decls = append(decls, concat(name(d[0]), name(d[1]), []byte{kindFunc, importTypes[i]}))
	}
	// Scatter list at 0: 1000 bytes at 64.
	data := concat([]byte{0}, i32c(0), []byte{opEnd}, sized([]byte{64, 0, 0, 0, 0xe8, 3, 0, 0}))
	return newModule().
		section(secType, types...).
		section(secImport, vec(decls...)...).
		section(secFunction, vec([]byte{typ}, []byte{0})...).
		section(secMemory, 1, 0, 1).
		section(secGlobal, vec(concat([]byte{typeI32, 1}, i32c(0), []byte{opEnd}))...).
		section(secExport, vec(concat(name(entrance), []byte{kindFunc, 2}))...).
		section(secCode, vec(body, fn(nil, opCall, 3))...).
		section(secData, vec(data)...).b
}

// TestIsolationProbes is promise S5 for instances that are used again: calls of two accounts in mixed order, that end well, trap, spin, run out of
// memory and out of stack, find the memory, its size and the globals as new, in each way of resetting.
func TestIsolationProbes(t *testing.T) {
	t.Parallel()
	calls := 120
	if thorough() {
		calls = 10_000
	}
	for _, mode := range resetModes {
		for _, isolation := range []Isolation{IsolationAccount, IsolationStrict} {
			if isolation == IsolationStrict && mode != ResetAuto {
				continue // nothing is reset
			}
			t.Run(fmt.Sprintf("reset %s, %s", mode, isolation), func(t *testing.T) {
				t.Parallel()
				b := setup(t, verified(t), func(c *Config) { c.Reset, c.Isolation = mode, isolation })
				modules := []string{b.publish(t, probeCommand()), b.publish(t, probeReactor()), b.publish(t, probeInput())}
				for _, d := range modules {
					b.warm(t, d, StartShared)
				}
				seed := rand.Uint64()
				t.Logf("seed %d", seed)
				var wg sync.WaitGroup
				for worker := range 2 {
					wg.Go(func() {
						r := rand.New(rand.NewPCG(seed, uint64(worker)))
						for i := range calls / 2 {
							if err := b.probe(t, modules[r.IntN(len(modules))], r); err != nil {
								t.Errorf("call %d of worker %d: %v", i, worker, err)
								return
							}
						}
					})
				}
				wg.Wait()
				waitFor(t, func() bool { return b.Stats().Verified == b.Stats().Resets })
				s := b.Stats()
				t.Logf("%+v", s)
				if s.Mismatches != 0 || isolation == IsolationAccount && s.Resets < uint64(calls/2) || isolation == IsolationStrict && s.Resets != 0 {
					t.Errorf("stats %+v", s)
				}
			})
		}
	}
}

// probe makes one call and checks that the guest saw nothing of any other.
func (b bundle) probe(t *testing.T, digest string, r *rand.Rand) error {
	call := Call{
		Account: []string{"acct_a", "acct_b"}[r.IntN(2)], Module: digest, Input: []byte("n"),
		Limits: core.Limits{Timeout: core.Duration(5 * time.Second), Memory: 4 << 20},
	}
	want := "1101"
	switch r.IntN(12) {
	case 0:
		call.Input, want = []byte("t"), "trap"
	case 1:
		call.Input, call.Limits.Timeout, want = []byte("s"), core.Duration(2*time.Millisecond), "timeout"
	case 2, 3:
		call.Input = []byte("g")
	case 4:
		call.Input, want = []byte("o"), "limit"
	case 5:
		call.Input, want = []byte("r"), "limit"
	}
	res, err := b.Invoke(t.Context(), call)
	got := string(res.Output)
	if err != nil {
		got, _, _ = strings.Cut(err.Error(), ":")
	}
	if got != want {
		return fmt.Errorf("input %q gave %q (%v), want %q", call.Input, got, err, want)
	}
	return nil
}

// TestIsolationTables: a module that writes to its tables is not used twice, so the next call finds them as they were.
func TestIsolationTables(t *testing.T) {
	t.Parallel()
	i := byte(typeI32)
	// Answers '1' if the entry is null, and fills it.
	run := concat(i32c(100), i32c(0), []byte{opTableGet, 0, opRefIsNull}, i32c('0'), []byte{0x6a, 0x3a, 0, 0},
		i32c(0), []byte{opRefFunc, 1, opTableSet, 0}, i32c(100), i32c(1), []byte{opCall, 0, 0x1a}, i32c(0))
	binary := newModule().
		section(secType, vec([]byte{0x60, 2, i, i, 1, i}, []byte{0x60, 1, i, 1, i})...).
		section(secImport, vec(concat(name(keyfireModule), name("output_write"), []byte{kindFunc, 0}))...).
		section(secFunction, 1, 1).
		section(secTable, 1, typeFuncref, 0, 1).
		section(secMemory, 1, 0, 1).
		section(secExport, vec(concat(name("run"), []byte{kindFunc, 1}))...).
		section(secElement, 1, 3, 0, 1, 1). // declares the function
		section(secCode, vec(fn(nil, run...))...).b
	b := setup(t, verified(t))
	d := b.publish(t, binary)
	b.warm(t, d, StartPlain)
	for range 5 {
		res, err := b.Invoke(t.Context(), Call{Module: d, Input: []byte("{}")})
		if err != nil || string(res.Output) != "1" {
			t.Fatalf("%s, %v", res.Output, err)
		}
	}
}

// forgetful is a resetter that leaves one byte.
type forgetful struct{ copier }

func (f forgetful) reset(memory []byte, img *image) {
	left := memory[2000]
	f.copier.reset(memory, img)
	memory[2000] = left
}

type forgetfulBacking struct{ backing }

func (forgetfulBacking) attach([]byte, *image) resetter { return forgetful{} }

// TestSnapshotMismatch: a reset that leaves a byte is found by the comparison; from then on the module's instances are reset by copying, nothing that was
// left before is used, and the operator is told once.
func TestSnapshotMismatch(t *testing.T) {
	t.Parallel()
	told := make(chan string, 10)
	b := setup(t, func(c *Config) { c.VerifyEvery, c.Mismatch = 4, func(module string) { told <- module } })
	other := b.publish(t, counting())
	d := b.publish(t, probeReactor())
	b.warm(t, d, StartShared)
	b.warm(t, other, StartShared)
	img := b.modules.entries[d].prog.imager.image
	img.backing = forgetfulBacking{img.backing}
	b.shelf.drop(func(s *shell) bool { return s.image == img })
	call := Call{Account: "acct_a", Module: d, Input: []byte("n")}
	found := false
	for range 10 {
		res, err := b.Invoke(t.Context(), call)
		if err != nil {
			t.Fatal(err)
		}
		found = found || img.copying.Load()
		if found && string(res.Output) != "1101" && b.Stats().Mismatches == 0 {
			t.Errorf("%s after it was found", res.Output)
		}
	}
	select {
	case module := <-told:
		if module != d {
			t.Errorf("told of %s", module)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("nobody was told")
	}
	for range 20 {
		if res, err := b.Invoke(t.Context(), call); err != nil || string(res.Output) != "1101" {
			t.Fatalf("%s, %v", res.Output, err)
		}
	}
	if s := b.Stats(); s.Mismatches != 1 || len(told) != 0 {
		t.Errorf("%+v, told %d more times", s, len(told))
	}
	if b.modules.entries[other].prog.imager.image.copying.Load() {
		t.Error("the other module's image was changed too")
	}
}
