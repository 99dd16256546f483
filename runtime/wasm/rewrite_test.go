package wasm

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"

	"github.com/keyfire/keyfire/core"
)

// specHost makes an engine with what specification tests import.
func specHost(t *testing.T, ctx context.Context) wazero.Runtime {
	t.Helper()
	rt := wazero.NewRuntimeWithConfig(ctx, engineConfig())
	b := rt.NewHostModuleBuilder("spectest")
	nothing := api.GoModuleFunc(func(context.Context, api.Module, []uint64) {})
	for name, params := range map[string][]api.ValueType{
		"print": nil, "print_i32": {typeI32}, "print_i64": {typeI64}, "print_f32": {typeF32}, "print_f64": {typeF64},
		"print_i32_f32": {typeI32, typeF32}, "print_f64_f64": {typeF64, typeF64},
	} {
		b.NewFunctionBuilder().WithGoModuleFunction(nothing, params, nil).Export(name)
	}
	if _, err := b.Instantiate(ctx); err != nil {
		t.Fatal(err)
	}
	if err := instantiateHost(ctx, rt); err != nil {
		t.Fatal(err)
	}
	return rt
}

// specPair is one module, plain and rewritten.
type specPair struct {
	plain, rewritten api.Module
	guest            *guest
}

// outcome describes what a call gave, for comparison.
func outcome(results []uint64, err error, types []api.ValueType) string {
	if err != nil {
		return "error: " + firstLine(err.Error())
	}
	for i, t := range types {
		if t == api.ValueTypeI32 || t == api.ValueTypeF32 {
			results[i] = uint64(uint32(results[i]))
		}
	}
	return fmt.Sprint(results)
}

// TestRewriteSpec runs the specification's tests on plain and on rewritten modules: both must give the same results and the same traps.
func TestRewriteSpec(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	modules, calls := 0, 0
	specTests(t, func(t *testing.T, dir string, commands []specCommand) {
		plain, ours := specHost(t, ctx), specHost(t, ctx)
		defer plain.Close(ctx)
		defer ours.Close(ctx)
		var pair *specPair
		for _, c := range commands {
			switch c.Type {
			case "module":
				pair = nil
				b, err := os.ReadFile(filepath.Join(dir, c.Filename))
				if err != nil {
					t.Fatal(err)
				}
				if pair = instantiateSpec(t, ctx, plain, ours, b, c); pair != nil {
					modules++
				}
			case "assert_return", "assert_trap", "assert_exhaustion", "action":
				if pair == nil || c.Action.Type != "invoke" || c.Action.Module != "" || c.Type == "assert_exhaustion" {
					continue
				}
				f := pair.plain.ExportedFunction(c.Action.Field)
				args, ok := specArgs(c.Action)
				if f == nil || !ok || slices.Contains(f.Definition().ResultTypes(), typeV128) {
					continue
				}
				calls++
				types := f.Definition().ResultTypes()
				want, wantErr := f.Call(ctx, args...)
				pair.guest.inst.depth.Set(maxStack)
				pair.guest.inst.fuel.Set(0) // the first function asks for more
				got, gotErr := pair.rewritten.ExportedFunction(c.Action.Field).Call(pair.guest, args...)
				refs := slices.Contains(types, typeFuncref) || slices.Contains(types, typeExternref)
				if w, g := outcome(want, wantErr, types), outcome(got, gotErr, types); w != g && !refs {
					t.Errorf("line %d: %s%v gives %s, rewritten %s", c.Line, c.Action.Field, args, w, g)
				}
				if gotErr == nil && pair.guest.inst.depth.Get() != maxStack {
					t.Errorf("line %d: %s leaves the depth at %d", c.Line, c.Action.Field, pair.guest.inst.depth.Get())
				}
			}
		}
	})
	t.Logf("%d modules, %d calls", modules, calls)
	if modules < 200 || calls < 5_000 {
		t.Error("too little was compared")
	}
}

func instantiateSpec(t *testing.T, ctx context.Context, plain, ours wazero.Runtime, b []byte, c specCommand) *specPair {
	t.Helper()
	m, err := parse(b)
	if err != nil {
		return nil // TestParseSpec knows
	}
	for _, d := range m.imports {
		if d.module != "spectest" || d.kind != kindFunc {
			return nil
		}
	}
	rw, err := rewrite(m)
	if err != nil {
		t.Errorf("line %d: %v", c.Line, err)
		return nil
	}
	config := wazero.NewModuleConfig().WithName("")
	p, err := plain.InstantiateWithConfig(ctx, b, config)
	if err != nil {
		return nil
	}
	mod, err := ours.InstantiateWithConfig(ctx, rw.binary, config)
	if err != nil {
		t.Errorf("line %d: the rewritten module is refused: %v", c.Line, err)
		return nil
	}
	g := &guest{Context: ctx, memory: &linearMemory{limit: int64(rw.maxPages) * pageSize}, limit: time.Now().Add(time.Hour)}
	g.inst = &instance{
		mod: mod, fuel: mod.ExportedGlobal(addedFuel).(api.MutableGlobal), depth: mod.ExportedGlobal(addedDepth).(api.MutableGlobal),
		pages: mod.ExportedGlobal(addedPages).(api.MutableGlobal), maxPages: rw.maxPages,
	}
	g.inst.depth.Set(maxStack)
	for _, s := range rw.data {
		if !mod.Memory().Write(s.offset, s.bytes) {
			t.Errorf("line %d: data does not fit", c.Line)
		}
	}
	if rw.hasStart {
		if _, err := mod.ExportedFunction(addedStart).Call(g); err != nil {
			t.Errorf("line %d: start: %v", c.Line, err)
		}
	}
	return &specPair{plain: p, rewritten: mod, guest: g}
}

func specArgs(a specAction) (args []uint64, ok bool) {
	for _, arg := range a.Args {
		var s string
		if json.Unmarshal(arg.Value, &s) != nil || s == "null" {
			return nil, false
		}
		v, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			return nil, false
		}
		args = append(args, v)
	}
	return args, true
}

// TestRewriteRefuses covers indices that are invalid in the original and would be valid, and dangerous, in what is made of it.
func TestRewriteRefuses(t *testing.T) {
	t.Parallel()
	tests := map[string][]byte{
		"the global of fuel":         concat(i32c(math.MaxInt32), []byte{opGlobalSet, 1}),
		"the global of depth":        {opGlobalGet, 2, 0x1a},
		"an added import":            {opCall, 1},
		"an added function":          {opCall, 3},
		"a reference to it":          {opRefFunc, 3, 0x1a},
		"an added local":             {opLocalGet, 0, 0x1a},
		"past the block around":      {opBr, 1},
		"past it by a condition":     concat(i32c(1), []byte{opBrIf, 1}),
		"past it by a table":         concat(i32c(1), []byte{opBrTable, 1, 0, 1}),
		"an added type":              {opBlock, 3, opEnd},
		"an indirect call of a type": concat(i32c(1), []byte{opCallIndirect, 3, 0}),
	}
	for name, code := range tests {
		t.Run(name, func(t *testing.T) {
			m, err := parse(command(nil, 0, code...))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := rewrite(m); err == nil {
				t.Error("accepted")
			}
		})
	}
	m, err := parse(newModule().section(secMemory, 1, 0, 1).section(secGlobal, vec(concat([]byte{typeI32, 1}, i32c(0), []byte{opEnd}))...).
		section(secExport, vec(concat(name(addedFuel), []byte{kindGlobal, 0}))...).b)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := rewrite(m); err == nil || !strings.Contains(err.Error(), "reserved") {
		t.Errorf("a reserved name: %v", err)
	}
}

// TestRewriteData: what the host writes in place of the module's data segments is what the segments are, in whatever order they come and however
// they overlap: the later one counts.
func TestRewriteData(t *testing.T) {
	t.Parallel()
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 0))
		want := make([]byte, pageSize)
		var segments [][]byte
		for i := range 1 + r.IntN(8) {
			at, text := r.IntN(600), bytes.Repeat([]byte{byte('a' + i)}, r.IntN(40))
			copy(want[at:], text)
			segments = append(segments, concat([]byte{0}, i32c(int32(at)), []byte{opEnd}, sized(text)))
		}
		m, err := parse(newModule().section(secMemory, 1, 0, 1).section(secData, vec(segments...)...).b)
		if err != nil {
			t.Fatal(err)
		}
		rw, err := rewrite(m)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, pageSize)
		for _, s := range rw.data {
			copy(got[s.offset:], s.bytes)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("seed %d: %d segments give another memory", seed, len(segments))
		}
	}
}

// TestJoined: segments as Go's linker makes them, one for each stretch without eight zeros and not in the order of their places, become a few spans of the same memory.
func TestJoined(t *testing.T) {
	t.Parallel()
	want := make([]byte, 3*pageSize)
	spans := []span{{2 * pageSize, []byte("what is written to")}}
	for at := uint32(100); at < pageSize; at += 24 {
		spans = append(spans, span{at, []byte("read-only data.")})
	}
	spans = append(spans, span{pageSize + 1000, []byte("far from both")})
	for _, s := range spans {
		copy(want[s.offset:], s.bytes)
	}
	out := joined(spans)
	got := make([]byte, len(want))
	for _, s := range out {
		copy(got[s.offset:], s.bytes)
	}
	if len(out) != 3 || !bytes.Equal(got, want) {
		t.Errorf("%d segments became %d spans, equal %t", len(spans), len(out), bytes.Equal(got, want))
	}
	if joined(nil) != nil {
		t.Error("spans of nothing")
	}
}

// hostile are guests that never end by themselves, or try to take more than they may.
func hostile() map[string][]byte {
	forever := func(code ...byte) []byte { return concat([]byte{opLoop, typeEmpty}, code, []byte{opBr, 0, opEnd}) }
	memory := func(min, max uint32, code ...byte) []byte {
		return newModule().section(secType, vec([]byte{0x60, 0, 0})...).section(secFunction, 1, 0).
			section(secMemory, concat([]byte{1, 1}, appendU32(nil, min), appendU32(nil, max))...).
			section(secExport, vec(concat(name("_start"), []byte{kindFunc, 0}))...).
			section(secCode, vec(fn(nil, code...))...).b
	}
	locals := func(code []byte) []byte { // 0 and 1
		return newModule().section(secType, vec([]byte{0x60, 0, 0})...).section(secFunction, 1, 0).section(secMemory, 1, 0, 1).
			section(secExport, vec(concat(name("_start"), []byte{kindFunc, 0}))...).
			section(secCode, vec(fn([][]byte{{2, typeI32}}, code...))...).b
	}
	table := func(code ...byte) []byte {
		return newModule().section(secType, vec([]byte{0x60, 0, 0})...).section(secFunction, 1, 0).
			section(secTable, 1, typeFuncref, 0, 1).section(secMemory, 1, 0, 1).
			section(secExport, vec(concat(name("_start"), []byte{kindFunc, 0}))...).
			section(secCode, vec(fn(nil, code...))...).b
	}
	// 34 functions, each calling the next one twice: 2^34 calls without a loop.
	var types, bodies [][]byte
	for i := range byte(34) {
		types = append(types, []byte{0})
		body := []byte{opCall, i + 1, opCall, i + 1}
		if i == 33 {
			body = nil
		}
		bodies = append(bodies, fn(nil, body...))
	}
	doubling := newModule().section(secType, vec([]byte{0x60, 0, 0})...).section(secFunction, vec(types...)...).
		section(secMemory, 1, 0, 1).section(secExport, vec(concat(name("_start"), []byte{kindFunc, 0}))...).
		section(secCode, vec(bodies...)...).b
	start := newModule().section(secType, vec([]byte{0x60, 0, 0})...).section(secFunction, 2, 0, 0).
		section(secMemory, 1, 0, 1).section(secExport, vec(concat(name("_start"), []byte{kindFunc, 0}))...).
		section(secStart, 1).section(secCode, vec(fn(nil), fn(nil, forever()...))...).b
	return map[string][]byte{
		"loop":           command(nil, 0, forever()...),
		"loop, br_if":    command(nil, 0, concat([]byte{opLoop, typeEmpty}, i32c(1), []byte{opBrIf, 0, opEnd})...),
		"loop, br_table": command(nil, 0, concat([]byte{opLoop, typeEmpty}, i32c(7), []byte{opBrTable, 0, 0, opEnd})...),
		"start section":  start,
		"doubling calls": doubling,
		"memory.fill":    memory(1024, 1024, forever(concat(i32c(0), i32c(1), i32c(64<<20), []byte{opPrefixFC, subMemoryFill, 0})...)...),
		"memory.copy":    memory(1024, 1024, forever(concat(i32c(0), i32c(1<<20), i32c(32<<20), []byte{opPrefixFC, subMemoryCopy, 0, 0})...)...),
		"memory.grow":    memory(1, 65536, forever(concat(i32c(1), []byte{opMemoryGrow, 0, 0x1a})...)...),
		"table.grow":     table(forever(concat([]byte{opRefNull, typeFuncref}, i32c(1<<10), []byte{opPrefixFC, subTableGrow, 0, 0x1a})...)...),
		"table.fill": table(concat([]byte{opRefNull, typeFuncref}, i32c(65_000), []byte{opPrefixFC, subTableGrow, 0, 0x1a},
			forever(concat(i32c(0), []byte{opRefNull, typeFuncref}, i32c(65_000), []byte{opPrefixFC, subTableFill, 0})...))...),
		"host calls": hostCalls(),

		// Loops that dispatch, or seem to (meter_dispatch.go).
		"dispatching":             locals(dispatches(1, 0, concat(i32c(0), []byte{opLocalSet, 0, opBr, 0})...)),
		"dispatching, both ways":  locals(bothWays()),
		"dispatching to itself":   locals(concat(i32c(1), []byte{opLocalSet, 0}, dispatches(1, 1))),
		"dispatching by br_if":    locals(dispatches(1, 0, concat(i32c(1), []byte{opBrIf, 0})...)),
		"dispatching by br_table": locals(dispatches(1, 0, concat(i32c(1), []byte{opBrTable, 0, 0})...)),
		"dispatching by another":  locals(dispatches(2, 0, concat(i32c(1), []byte{opLocalSet, 1, opBr, 0})...)),
	}
}

// dispatches is a loop of so many blocks that begins by leaving the inner one, or by a local, of 1, for a label. Code follows the blocks.
func dispatches(blocks int, label byte, code ...byte) []byte {
	return concat([]byte{opLoop, typeEmpty}, bytes.Repeat([]byte{opBlock, typeEmpty}, blocks), []byte{opLocalGet, 0, opBrTable, 1, 0, label},
		bytes.Repeat([]byte{opEnd}, blocks), code, []byte{opEnd})
}

// bothWays is a loop that jumps forward, and from there back to its first block.
func bothWays() []byte {
	return concat([]byte{opLoop, typeEmpty, opBlock, typeEmpty, opBlock, typeEmpty, opLocalGet, 0, opBrTable, 1, 0, 1, opEnd},
		i32c(1), []byte{opLocalSet, 0, opBr, 1, opEnd}, i32c(0), []byte{opLocalSet, 0, opBr, 0, opEnd})
}

// TestHostile is promise S2: every kind of guest that does not end is ended at its deadline, and the others are none the worse.
func TestHostile(t *testing.T) {
	t.Parallel()
	b := setup(t)
	d := b.publish(t, writer(`"fine"`, 1))
	for name, binary := range hostile() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			res, err := b.call(t, b.publish(t, binary), "", core.Limits{Timeout: core.Duration(50 * time.Millisecond)})
			wantError(t, err, core.ClassTimeout)
			if res.Fuel <= 0 || res.PeakMemory > DefaultMemoryLimit {
				t.Errorf("fuel %d, peak memory %d", res.Fuel, res.PeakMemory)
			}
			t.Logf("stopped %s after its deadline, fuel %d", res.Wall-50*time.Millisecond, res.Fuel)
			if res, err := b.call(t, d, "", core.Limits{}); err != nil || string(res.Output) != `"fine"` {
				t.Errorf("another guest: %s, %v", res.Output, err)
			}
		})
	}
}

// hostCalls is a guest that does nothing but call the host.
func hostCalls() []byte {
	return newModule().section(secType, vec([]byte{0x60, 0, 0}, []byte{0x60, 0, 1, typeI32})...).
		section(secImport, vec(concat(name(wasiModule), name("sched_yield"), []byte{kindFunc, 1}))...).
		section(secFunction, 1, 0).section(secMemory, 1, 0, 1).
		section(secExport, vec(concat(name("_start"), []byte{kindFunc, 1}))...).
		section(secCode, vec(fn(nil, opLoop, typeEmpty, opCall, 0, 0x1a, opBr, 0, opEnd))...).b
}

// TestRecursion checks that calls that nest without end are an error of the node, and that ordinary depth is not.
func TestRecursion(t *testing.T) {
	t.Parallel()
	b := setup(t)
	_, err := b.call(t, b.publish(t, command(nil, 0, opCall, 0)), "", core.Limits{})
	if e := wantError(t, err, core.ClassLimit); !strings.Contains(e.Message, "nest") {
		t.Errorf("message %q", e.Message)
	}
	res, err := b.call(t, b.publish(t, guestModule(t)), `{"op":"recurse","size":5000}`, core.Limits{})
	if err != nil || strings.TrimSpace(string(res.Output)) != "5000" {
		t.Errorf("%s, %v", res.Output, err)
	}
}

// TestFuelDeterministic checks that the same call costs the same.
func TestFuelDeterministic(t *testing.T) {
	t.Parallel()
	b := setup(t)
	d := b.publish(t, command(nil, 0, concat([]byte{opLoop, typeEmpty, opGlobalGet, 0}, i32c(1), []byte{0x6a, opGlobalSet, 0, opGlobalGet, 0},
		i32c(1000), []byte{0x48, opBrIf, 0, opEnd})...))
	var first int64
	for i := range 3 {
		res, _ := b.call(t, d, "", core.Limits{})
		if i == 0 {
			first = res.Fuel
		}
		if res.Fuel != first || first < 9_000 || first > 12_000 {
			t.Errorf("fuel %d, first %d", res.Fuel, first)
		}
	}
}

// TestLoopsWithinLoops: deeper than any program nests loops, more of them than get blocks of their own, with branches out of the innermost to each level
// and a value on the way.
func TestLoopsWithinLoops(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, deep := range []int{1, maxLoops - 1, maxLoops, maxLoops + 1, 3 * maxLoops} {
		// Local 0 counts the turns. The innermost loop leaves for the next one outside while there is one, each of which goes on once:
		// level n is entered once and turned once more from within.
		var body []byte
		for range deep {
			body = append(body, opLoop, typeI32)
		}
		body = concat(body, []byte{opLocalGet, 0}, i32c(1), []byte{opAdd, opLocalTee, 0})
		for level := range deep {
			// If this level has not yet been turned from here, do.
			body = concat(body, []byte{opLocalGet, 0}, i32c(int32(level+1)), []byte{0x46, opBrIf}, appendU32(nil, uint32(level)))
		}
		for range deep {
			body = append(body, opEnd)
		}
		// It writes nothing, so the turns must be told by its exit code.
		body = concat(body, []byte{opCall, 0})
		module := newModule().section(secType, vec([]byte{0x60, 0, 0}, []byte{0x60, 1, typeI32, 0})...).
			section(secImport, vec(concat(name(wasiModule), name("proc_exit"), []byte{kindFunc, 1}))...).
			section(secFunction, 1, 0).section(secMemory, 1, 0, 1).
			section(secExport, vec(concat(name("_start"), []byte{kindFunc, 1}))...).
			section(secCode, vec(fn([][]byte{{1, typeI32}}, body...))...).b
		_, err := b.call(t, b.publish(t, module), "", core.Limits{})
		if e := wantError(t, err, core.ClassExit); !strings.Contains(e.Message, fmt.Sprint(deep+1)) {
			t.Errorf("%d loops: %q, want exit code %d", deep, e.Message, deep+1)
		}
	}
}

// FuzzRewrite checks that rewriting neither makes a valid module invalid, nor an invalid one valid.
func FuzzRewrite(f *testing.F) {
	for _, b := range hostile() {
		f.Add(b)
	}
	f.Add(counting())
	f.Add(writer("1", 1))
	// What measures a memory or fills it is replaced, so the engine would not miss the memory.
	f.Add(concat(header, []byte{
		secType, 5, 1, 0x60, 0, 1, typeI32, secFunction, 2, 1, 0,
		secCode, 8, 1, 6, 0, opI32Const, 0, opMemoryGrow, 0, opEnd,
	}))
	f.Add(concat(header, []byte{secData, 6, 1, 0, opI32Const, 0, opEnd, 0}))
	if source, err := engineSource(); err == nil {
		files, err := filepath.Glob(filepath.Join(source, "internal", "integration_test", "spectest", "v2", "testdata", "*.0.wasm"))
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range files {
			if b, err := os.ReadFile(file); err == nil && len(b) < 4<<10 {
				f.Add(b)
			}
		}
	}
	ctx := context.Background()
	rt := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigInterpreter()) // it validates alike, and compiles faster
	f.Cleanup(func() { _ = rt.Close(ctx) })
	valid := func(b []byte) error {
		c, err := rt.CompileModule(ctx, b)
		if err != nil {
			return err
		}
		return c.Close(ctx)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<14 {
			return
		}
		m, err := parse(b)
		if err != nil {
			return
		}
		for _, d := range m.imports {
			if d.kind != kindFunc {
				return
			}
		}
		plain := valid(withoutCustoms(b))
		rw, err := rewrite(m)
		if err != nil {
			return // refusing more than the engine does is no danger
		}
		if got := valid(rw.binary); (got == nil) != (plain == nil) {
			t.Errorf("the original is %v, the rewritten module %v", plain, got)
		}
	})
}

// withoutCustoms takes the custom sections out of a module that parse accepted. They cannot make a module invalid (WebAssembly Core 2.0,
// section 5.5.3), and the rewriter leaves out those it cannot read, but the engine refuses a module for them.
func withoutCustoms(b []byte) []byte {
	out := append([]byte(nil), b[:len(header)]...)
	r := &reader{b: b, off: len(header)}
	for r.left() > 0 {
		start := r.off
		id := r.byte()
		end := int(r.u32())
		end += r.off
		if id != secCustom {
			out = append(out, b[start:end]...)
		}
		r.off = end
	}
	return out
}

func BenchmarkRewrite(b *testing.B) {
	binary := guestModule(b)
	b.SetBytes(int64(len(binary)))
	for b.Loop() {
		m, err := parse(binary)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := rewrite(m); err != nil {
			b.Fatal(err)
		}
	}
}
