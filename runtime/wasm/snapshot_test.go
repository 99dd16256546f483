package wasm

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keyfire/keyfire/core"
)

// failing is a logger that fails the test on an error, such as a reset that left a difference.
func failing(t testing.TB) *slog.Logger { return slog.New(failHandler{slog.DiscardHandler, t}) }

type failHandler struct {
	slog.Handler
	t testing.TB
}

func (failHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelError }

func (h failHandler) Handle(_ context.Context, r slog.Record) error {
	h.t.Errorf("logged: %s", r.Message)
	return nil
}

// verified compares every byte after every reset.
func verified(t testing.TB) func(*Config) {
	return func(c *Config) { c.VerifyEvery, c.Logger = 1, failing(t) }
}

func (b bundle) warm(t testing.TB, digest string, want Start) {
	t.Helper()
	got, err := b.Warm(t.Context(), core.DefaultAccount, digest)
	if err != nil || got.Start != want {
		t.Fatalf("Warm: %+v, %v; want %q", got, err, want)
	}
}

// reader4 is a command that reads standard input into memory at 64, with code before and after. Its imports are fd_read (0), fd_write (1),
// random_get (2) and clock_time_get (3); it has a mutable global 0.
func reader4(before, after []byte) []byte {
	i, l := byte(typeI32), byte(typeI64)
	imports := [][]byte{}
	for _, d := range []struct {
		name string
		typ  byte
	}{{"fd_read", 1}, {"fd_write", 1}, {"random_get", 2}, {"clock_time_get", 3}} {
		imports = append(imports, concat(name(wasiModule), name(d.name), []byte{kindFunc, d.typ}))
	}
	// Scatter list at 0: 1000 bytes at 64. Count at 8.
	read := concat(i32c(0), i32c(0), i32c(1), i32c(8), []byte{opCall, 0, 0x1a})
	data := concat([]byte{0}, i32c(0), []byte{opEnd}, sized([]byte{64, 0, 0, 0, 0xe8, 3, 0, 0}))
	return newModule().
		section(secType, vec([]byte{0x60, 0, 0}, []byte{0x60, 4, i, i, i, i, 1, i}, []byte{0x60, 2, i, i, 1, i}, []byte{0x60, 3, i, l, i, 1, i})...).
		section(secImport, vec(imports...)...).
		section(secFunction, 1, 0).
		section(secMemory, 1, 0, 1).
		section(secGlobal, vec(concat([]byte{typeI32, 1}, i32c(0), []byte{opEnd}))...).
		section(secExport, vec(concat(name("_start"), []byte{kindFunc, 4}))...).
		section(secCode, vec(fn(nil, concat(before, read, after)...))...).
		section(secData, vec(data)...).b
}

// counting is a command that answers with how often its instance was used, by a byte of memory and by a global, and marks all of its memory
// beyond the first 4 KiB. If the input begins with "t" it traps, with "s" it spins, with "g" it grows its memory and marks that.
func counting() []byte {
	load := func(at int32) []byte { return concat(i32c(at), []byte{0x2d, 0, 0}) } // i32.load8_u
	bump := func(at int32) []byte { return concat(i32c(at), load(at), i32c(1), []byte{0x6a, 0x3a, 0, 0}) }
	on := func(c byte, code []byte) []byte {
		return concat(load(64), i32c(int32(c)), []byte{0x46, opIf, typeEmpty}, code, []byte{opEnd})
	}
	after := concat(
		bump(2000), // memory
		[]byte{opGlobalGet, 0}, i32c(1), []byte{0x6a, opGlobalSet, 0},
		// An answer of two digits at 2100: '1'..., from memory and from the global, and a third: is the memory beyond as new?
		i32c(2100), load(2000), i32c('0'), []byte{0x6a, 0x3a, 0, 0},
		i32c(2101), []byte{opGlobalGet, 0}, i32c('0'), []byte{0x6a, 0x3a, 0, 0},
		i32c(2102), load(5000), load(60_000), []byte{0x72}, i32c('0'), []byte{0x6a, 0x3a, 0, 0},
		i32c(4096), i32c(7), i32c(61_440), []byte{opPrefixFC, subMemoryFill, 0},
		on('t', []byte{opUnreachable}),
		on('s', []byte{opLoop, typeEmpty, opBr, 0, opEnd}),
		on('g', concat(
			i32c(2103), i32c(5), []byte{opMemoryGrow, 0}, i32c('0'), []byte{0x6a, 0x3a, 0, 0},
			i32c(2104), load(65_536), load(6*65_536-1), []byte{0x72}, i32c('0'), []byte{0x6a, 0x3a, 0, 0},
			i32c(65_536), i32c(9), i32c(5*65_536), []byte{opPrefixFC, subMemoryFill, 0},
		)),
		// Write the five bytes; those not set are zero, so make them spaces.
		i32c(2100+8), i32c(2100), []byte{0x36, 2, 0}, i32c(2100+12), i32c(3), []byte{0x36, 2, 0},
		on('g', concat(i32c(2100+12), i32c(5), []byte{0x36, 2, 0})),
		i32c(1), i32c(2108), i32c(1), i32c(2116), []byte{opCall, 1, 0x1a},
	)
	return reader4(nil, after)
}

// TestStarts shows how each kind of module starts, which nobody has to say.
func TestStarts(t *testing.T) {
	t.Parallel()
	random := concat(i32c(3000), i32c(8), []byte{opCall, 2, 0x1a})
	clock := concat(i32c(0), []byte{opI64Const, 1}, i32c(3000), []byte{opCall, 3, 0x1a})
	write := concat(i32c(1), i32c(0), i32c(0), i32c(8), []byte{opCall, 1, 0x1a})
	tests := []struct {
		name   string
		binary []byte
		want   Start
		why    string
	}{
		{"reads at once", reader4(nil, nil), StartShared, ""},
		{"computes first", reader4(concat(i32c(1), []byte{0x1a}), nil), StartShared, ""},
		{"Go", guestModule(t), StartReseeded, ""},
		{"a Go reactor", sdkGuest(t, "./conformance", true), StartReseeded, ""},
		{"a Go command with the SDK", sdkGuest(t, "./conformance/typed", false), StartReseeded, ""},
		{"reads by the ABI", probeInput(), StartShared, ""},
		{"random bytes first", reader4(random, nil), StartAhead, ""},
		{"a clock first", reader4(clock, nil), StartAhead, ""},
		{"an empty write first", reader4(write, nil), StartShared, ""},
		{"log first", reader4(concat(i32c(2), i32c(0), i32c(1), i32c(8), []byte{opCall, 1, 0x1a}), nil), StartPlain, "writes"},
		{"never reads", writer("1", 1), StartPlain, "without reading"},
		{"traps", command(nil, 0, opUnreachable), StartPlain, "unreachable"},
		{"spins", command(nil, 0, opLoop, typeEmpty, opBr, 0, opEnd), StartPlain, "too long"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, verified(t))
			d := b.publish(t, tt.binary)
			b.warm(t, d, tt.want)
			if got, _ := b.Warm(t.Context(), core.DefaultAccount, d); !strings.Contains(got.Why, tt.why) || (got.Why == "") != (tt.why == "") {
				t.Errorf("because %q, want %q", got.Why, tt.why)
			}
		})
	}
}

// TestSnapshotIsolation is promise S5 for instances that are used again: whatever one use did and however it ended, the next one finds
// memory, its size and globals as new, in each way of resetting.
func TestSnapshotIsolation(t *testing.T) {
	t.Parallel()
	b := setup(t, verified(t))
	d := b.publish(t, counting())
	b.warm(t, d, StartShared)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 600 {
		account := []string{"acct_a", "acct_b"}[r.IntN(2)]
		call := Call{Account: account, Module: d, Input: []byte("n"), Limits: core.Limits{Timeout: core.Duration(5 * time.Second)}}
		want := "110"
		switch r.IntN(10) {
		case 0:
			call.Input, want = []byte("t"), "trap"
		case 1:
			call.Input, call.Limits.Timeout, want = []byte("s"), core.Duration(time.Millisecond), "timeout"
		case 2, 3:
			call.Input, want = []byte("g"), "11010"
		}
		res, err := b.Invoke(t.Context(), call)
		got := string(res.Output)
		if err != nil {
			got, _, _ = strings.Cut(err.Error(), ":")
		}
		if got != want || res.Start != StartShared {
			t.Fatalf("call %d, %q: %q by %s, want %q", i, call.Input, got, res.Start, want)
		}
	}
	// Each account has its own, and so has the one that was warmed.
	if n := len(b.shelf.by); n != 3 {
		t.Errorf("shells of %d accounts on the shelf, want 3", n)
	}
	if s := b.Stats(); s.Modules != 1 || s.IdleShells != 3 || s.Resets < 400 || s.Mismatches != 0 || s.IdleBytes == 0 {
		t.Errorf("stats %+v", s)
	}
}

// TestSnapshotBounds: the end of a guest's memory is where its module says, however large the guest before it had made it: reading beyond traps, in a
// reactor and in a command, and the host does not read there either. A module that may not grow has no room for it.
func TestSnapshotBounds(t *testing.T) {
	t.Parallel()
	i := byte(typeI32)
	// Grows by 2 pages if the input begins with "g", reads the second page if it begins with "r", writes its text to the output from there if it begins
	// with "w"; and writes the digit 1.
	body := func(end ...byte) []byte {
		return concat(i32c(0), i32c(64), i32c(100), []byte{opCall, 0, 0x1a},
			on('g', concat(i32c(2), []byte{opMemoryGrow, 0, 0x1a})...),
			on('r', concat(i32c(70_000), []byte{0x2d, 0, 0, 0x1a})...),
			on('w', concat(i32c(65_530), i32c(12), []byte{opCall, 1}, i32c(-2), []byte{0x47, opIf, typeEmpty, opUnreachable, opEnd})...),
			i32c(100), i32c('1'), []byte{0x3a, 0, 0}, i32c(100), i32c(1), []byte{opCall, 1, 0x1a}, end)
	}
	types := vec([]byte{0x60, 0, 0}, []byte{0x60, 3, i, i, i, 1, i}, []byte{0x60, 2, i, i, 1, i}, []byte{0x60, 1, i, 1, i})
	imports := [][2]string{{keyfireModule, "input_read"}, {keyfireModule, "output_write"}}
	modules := map[string][]byte{
		"reactor": probe(types, imports, []byte{1, 2}, "run", 3, fn(nil, body(i32c(0)...)...)),
		"command": probe(types, imports, []byte{1, 2}, "_start", 0, fn(nil, body()...)),
	}
	for name, binary := range modules {
		for _, without := range []experiments{{}, {memory: true}} {
			t.Run(fmt.Sprintf("%s, without %+v", name, without), func(t *testing.T) {
				t.Parallel()
				b := setup(t, verified(t), func(c *Config) { c.without = without })
				d := b.publish(t, binary)
				b.warm(t, d, StartShared)
				for range 3 {
					for _, input := range []string{"g", "r", "g", "w", "n"} {
						res, err := b.call(t, d, input, core.Limits{})
						if input == "r" {
							if e := wantError(t, err, core.ClassTrap); !strings.Contains(e.Message, "out of bounds") {
								t.Errorf("it traps with %q", e.Message)
							}
						} else if err != nil || string(res.Output) != "1" || res.Start != StartShared {
							t.Fatalf("%q: %s by %s, %v", input, res.Output, res.Start, err)
						}
					}
				}
			})
		}
	}
}

// TestResetters runs every way of resetting over random writes.
func TestResetters(t *testing.T) {
	t.Parallel()
	const pages = 12
	content := make([]byte, 8*pageSize)
	r := rand.New(rand.NewPCG(3, 4))
	for i := range content {
		content[i] = byte(r.Uint32())
	}
	clear(content[3*pageSize : 4*pageSize])
	for _, mode := range resetModes {
		t.Run("mode "+string(mode), func(t *testing.T) {
			mapped, back, err := newBacking(content, mode)
			if err != nil {
				t.Fatal(err)
			}
			defer back.close()
			img := &image{memory: mapped}
			memory, err := reserve(pages * pageSize)
			if err != nil {
				t.Fatal(err)
			}
			defer unreserve(memory)
			memory = extend(memory, pages*pageSize)
			m := back.attach(memory, img)
			t.Logf("%T", m)
			if want := map[ResetMode]string{ResetCopy: "wasm.copier", ResetPagemap: "*wasm.pageResetter", ResetDiscard: "*wasm.discarder"}[mode]; want != "" && fmt.Sprintf("%T", m) != want {
				t.Errorf("reset by %T, want %s", m, want)
			}
			if !img.equal(memory) {
				t.Fatal("attached, the memory is not the image's")
			}
			for round := range 100 {
				for range r.IntN(40) {
					at := r.IntN(len(memory))
					switch n := min(r.IntN(20_000), len(memory)-at); r.IntN(4) {
					case 0:
						memory[at] ^= 0xff
					case 1:
						clear(memory[at : at+n])
					case 2:
						allZero(memory[at : at+n]) // read
					default:
						for i := range n {
							memory[at+i] = byte(i)
						}
					}
				}
				if round%50 == 0 {
					for i := range memory {
						memory[i] = 0xee
					}
				}
				m.reset(memory, img)
				if !img.equal(memory) {
					t.Fatalf("round %d: a difference is left", round)
				}
			}
		})
	}
}

// TestSnapshotRandom: two invocations of a Go module share neither random values nor the order of maps, though they start from one image.
func TestSnapshotRandom(t *testing.T) {
	t.Parallel()
	b := setup(t, verified(t))
	d := b.publish(t, guestModule(t))
	b.warm(t, d, StartReseeded)
	rands, orders := map[string]bool{}, map[string]bool{}
	const calls = 40
	for range calls {
		res, err := b.call(t, d, `{"op":"random"}`, core.Limits{})
		if err != nil || res.Start != StartReseeded {
			t.Fatalf("%s, %v", res.Start, err)
		}
		var a struct {
			Rand, Order string
			Counter     int
		}
		if err := json.Unmarshal(res.Output, &a); err != nil {
			t.Fatal(err)
		}
		if a.Counter != 1 {
			t.Errorf("counter is %d", a.Counter)
		}
		rands[a.Rand], orders[a.Order] = true, true
	}
	// A map of 8 has 8 orders.
	if len(rands) != calls || len(orders) < 5 {
		t.Errorf("%d of %d random values differ; %d map orders", len(rands), calls, len(orders))
	}
}

// TestSnapshotDifferential gives the same inputs to both engines, mixed with calls that end badly: all that can be seen must be equal.
func TestSnapshotDifferential(t *testing.T) {
	t.Parallel()
	fast := setup(t, verified(t))
	plain := setup(t, func(c *Config) { c.Engine = EnginePlain })
	d := fast.publish(t, guestModule(t))
	plain.publish(t, guestModule(t))
	fast.warm(t, d, StartReseeded)
	r := rand.New(rand.NewPCG(5, 6))
	inputs := []string{
		`{"op":"exit","size":3,"text":"x"}`, `{"op":"exit","text":"7"}`, `{"op":"panic","text":"no"}`, `{"op":"log","size":3,"text":"line"}`,
		`{"op":"recurse","size":300}`, `{"op":"probe"}`, `{"op":"unknown"}`, ``, `nonsense`,
		`{"op":"hog"}`, `{"op":"allocate","size":9000000}`, `{"op":"flood"}`,
	}
	calls := 80
	if raceEnabled {
		calls = 15 // what the detector looks for is in the other tests; a plain start takes it a second
	}
	for i := range calls {
		in := fmt.Sprintf(`{"op":"echo","text":%q}`, strings.Repeat("abc", r.IntN(5_000)))
		switch r.IntN(4) {
		case 0:
			in = inputs[r.IntN(len(inputs))]
		case 1:
			in = fmt.Sprintf(`{"op":"work","size":%d}`, 1000+r.IntN(5_000))
		}
		limits := core.Limits{Memory: 24 << 20}
		got, gotErr := fast.call(t, d, in, limits)
		want, wantErr := plain.call(t, d, in, limits)
		describe := func(res Result, err error) string {
			s := fmt.Sprintf("%s, %v, dropped %d", res.Output, err, res.LogDropped)
			for _, l := range res.Log {
				if strings.HasPrefix(l.Message, "goroutine ") || strings.Contains(l.Message, "0x") {
					break // a stack trace has addresses
				}
				s += "\n" + l.Level + ": " + l.Message
			}
			return s
		}
		if diff := cmp.Diff(describe(want, wantErr), describe(got, gotErr)); diff != "" {
			t.Fatalf("call %d, %.60s (-plain +snapshot):\n%s", i, in, diff)
		}
		if got.Start != StartReseeded || want.Start != StartPlain {
			t.Fatalf("call %d started %s and %s", i, got.Start, want.Start)
		}
	}
}

// TestSnapshotExtism: plugins that were not written for it begin from images, too, and keep nothing from call to call.
func TestSnapshotExtism(t *testing.T) {
	t.Parallel()
	b := setup(t, verified(t))
	for _, tt := range []struct{ plugin, call, input, config, want string }{
		{"count_vowels", "count_vowels", `"hello world"`, ``, `{"count":3,"total":3,"vowels":"aeiouAEIOU"}`},
		{"var", "run_test", `""`, ``, `"a: 0"`},
		{"hello_haskell", "testing", `"x"`, `{"greeting":"Howdy"}`, `"Howdy, x"`},
		{"config", "run_test", `""`, `{"thing":"hello"}`, `{"config": "hello"}`},
		{"alloc", "run_test", `""`, ``, `""`},
	} {
		t.Run(tt.plugin, func(t *testing.T) {
			t.Parallel()
			d := b.publish(t, extismPlugin(t, tt.plugin))
			ready, err := b.Warm(t.Context(), core.DefaultAccount, d)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%+v", ready)
			for range 5 {
				res, err := b.Invoke(t.Context(), Call{
					Account: core.DefaultAccount, Module: d, Export: tt.call, Input: []byte(tt.input), Config: json.RawMessage(tt.config),
				})
				if err != nil || string(res.Output) != tt.want || res.Start != ready.Start {
					t.Fatalf("%s by %s, %v; want %s by %s", res.Output, res.Start, err, tt.want, ready.Start)
				}
			}
		})
	}
}

// TestSnapshotReactor: a Go reactor begins every call from its image.
func TestSnapshotReactor(t *testing.T) {
	t.Parallel()
	b, d := setupABI(t, verified(t))
	b.warm(t, d, StartReseeded)
	for range 10 {
		answers, res, err := b.abi(t, Call{Module: d}, abiCall{Fn: "random", Args: []any{room(16)}}, abiCall{Fn: "input_read", Args: []any{0, room(2)}})
		if err != nil || res.Start != StartReseeded || answers[0].Result != 0 || answers[1].Rooms[0] != "[{" {
			t.Fatalf("%v by %s, %v", answers, res.Start, err)
		}
	}
	waitFor(t, func() bool { return b.Stats().Resets >= 10 })
	if s := b.Stats(); s.Mismatches != 0 || s.IdleShells != 1 {
		t.Errorf("stats %+v", s)
	}
}

// TestSnapshotConcurrent uses more shells at once than there are processors, of two accounts, and renews the image meanwhile.
func TestSnapshotConcurrent(t *testing.T) {
	t.Parallel()
	b := setup(t, verified(t))
	d := b.publish(t, counting())
	b.warm(t, d, StartShared)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 50 {
				res, err := b.Invoke(t.Context(), Call{Account: fmt.Sprint("acct_", i%2), Module: d, Input: []byte("n")})
				if err != nil || string(res.Output) != "110" {
					t.Errorf("%s, %v", res.Output, err)
					return
				}
			}
		})
	}
	p := b.modules.entries[d].prog
	for range 5 {
		release := b.modules.retain(d)
		p.imager.mu.Lock()
		making := p.imager.making == nil
		if making {
			p.imager.making = make(chan struct{})
		}
		p.imager.mu.Unlock()
		if making {
			b.makeImage(p)
		}
		release()
	}
	wg.Wait()
}

// TestSeedGenerator: what the host writes is what the runtime's generator would hold.
func TestSeedGenerator(t *testing.T) {
	t.Parallel()
	b := make([]byte, stateSize+8)
	if seedGenerator(b, [32]byte{1, 2, 3}); !isGenerator(b) {
		t.Error("a seeded generator is not recognised")
	}
	b[7]++
	if isGenerator(b) {
		t.Error("a damaged one is")
	}
}

// processorTime is what this process has used of the processors.
func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Skip(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkSnapshot compares the engines.
func BenchmarkSnapshot(b *testing.B) {
	input := []byte(`{"op":"echo","text":"` + strings.Repeat("a", 700) + `"}`)
	for _, bb := range []struct {
		name   string
		binary []byte
		input  []byte
		start  Start
	}{{"tiny", counting(), []byte("n"), StartShared}, {"go", guestModule(b), input, StartReseeded}} {
		for _, engine := range []Engine{EnginePlain, EngineSnapshot} {
			b.Run(bb.name+"/"+string(engine), func(b *testing.B) {
				r := setup(b, func(c *Config) { c.Engine, c.VerifyEvery = engine, -1 })
				d := r.publish(b, bb.binary)
				if engine == EngineSnapshot {
					r.warm(b, d, bb.start)
				}
				b.ReportAllocs()
				before := processorTime(b)
				for b.Loop() {
					if _, err := r.Invoke(b.Context(), Call{Module: d, Input: bb.input}); err != nil {
						b.Fatal(err)
					}
				}
				// What a busy machine cannot change much.
				b.ReportMetric(float64((processorTime(b)-before).Microseconds())/float64(b.N), "cpu-µs/op")
			})
		}
	}
}
