package wasm

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
)

// meteredRun instantiates a module, calls a function of it with so much fuel to begin with, and returns the result and what it took.
func meteredRun(t *testing.T, binary []byte, name string, begin int64, args ...uint64) (result uint64, fuel int64) {
	t.Helper()
	ctx := t.Context()
	m, err := parse(binary)
	if err != nil {
		t.Fatal(err)
	}
	rw, err := rewrite(m)
	if err != nil {
		t.Fatal(err)
	}
	rt := wazero.NewRuntimeWithConfig(ctx, engineConfig())
	defer rt.Close(ctx)
	if err := instantiateHost(ctx, rt); err != nil {
		t.Fatal(err)
	}
	mod, err := rt.InstantiateWithConfig(ctx, rw.binary, wazero.NewModuleConfig().WithName(""))
	if err != nil {
		t.Fatal(err)
	}
	g := &guest{Context: ctx, memory: &linearMemory{}, limit: time.Now().Add(time.Hour), fuel: begin}
	g.inst = &instance{mod: mod, fuel: mod.ExportedGlobal(addedFuel).(api.MutableGlobal), depth: mod.ExportedGlobal(addedDepth).(api.MutableGlobal)}
	g.inst.fuel.Set(uint64(begin))
	g.inst.depth.Set(maxStack)
	got, err := mod.ExportedFunction(name).Call(g, args...)
	if err != nil {
		t.Fatal(err)
	}
	if d := g.inst.depth.Get(); d != maxStack {
		t.Errorf("it leaves the depth at %d", d)
	}
	return got[0], g.fuelUsed()
}

// TestDispatch makes loops as Go's compiler does, of blocks of all lengths that jump to each other at random, and follows them by hand: what they take is no less than the
// instructions that are executed, whenever the fuel runs out, and a jump back does not pay for all of the loop.
func TestDispatch(t *testing.T) {
	t.Parallel()
	var took, whole int64
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 1))
		n := 1 + r.IntN(6)
		lengths, jumps := make([]int, n), make([]int, n)
		code := concat([]byte{opLoop, typeEmpty}, bytes.Repeat([]byte{opBlock, typeEmpty}, n), []byte{opLocalGet, 0, opBrTable}, appendU32(nil, uint32(n-1)))
		for i := range n {
			code = append(code, byte(i)) // block i ends as the i-th
		}
		size := int64(0)
		for i := range n {
			lengths[i], jumps[i] = r.IntN(200), r.IntN(n+1)-1 // -1 for none
			code = concat(code, []byte{opEnd}, bytes.Repeat([]byte{0x01}, lengths[i]),
				[]byte{opLocalGet, 1}, i32c(1), []byte{opSub, opLocalTee, 1, 0x45, opIf, typeEmpty, opLocalGet, 2, opReturn, opEnd},
				[]byte{opLocalGet, 2}, i32c(int32(i+1)), []byte{opAdd, opLocalSet, 2})
			if jumps[i] >= 0 {
				code = concat(code, i32c(int32(jumps[i])), []byte{opLocalSet, 0, opBr}, appendU32(nil, uint32(n-1-i)))
			}
			size += int64(lengths[i]) + 15
		}
		code = concat(code, []byte{opEnd, opLocalGet, 2})
		module := newModule().section(secType, vec([]byte{0x60, 2, typeI32, typeI32, 1, typeI32})...).section(secFunction, 1, 0).
			section(secExport, vec(concat(name("f"), []byte{kindFunc, 0}))...).section(secCode, vec(fn([][]byte{{1, typeI32}}, code...))...).b

		const turns = 500
		first := r.IntN(n)
		var sum, executed, jumped int64
		for at, left := first, turns; at < n; {
			executed += int64(lengths[at]) + 5
			if left--; left == 0 {
				break
			}
			sum += int64(at + 1)
			executed += 4
			if jumps[at] < 0 {
				at++
				continue
			}
			executed += 3
			at, jumped = jumps[at], jumped+1
		}
		var want int64
		for i, begin := range []int64{slice, 0, 1, r.Int64N(500), r.Int64N(5_000), r.Int64N(50_000)} {
			got, fuel := meteredRun(t, module, "f", begin, uint64(first), turns)
			if i == 0 {
				want = fuel
			}
			if int64(got) != sum || fuel != want || fuel < executed {
				t.Errorf("seed %d, from %d of fuel: sum %d, want %d; took %d, at first %d, for %d instructions", seed, begin, got, sum, fuel, want, executed)
			}
		}
		took += want
		whole += size * (1 + jumped)
	}
	if took > whole*2/3 {
		t.Errorf("they took %d, and %d if each jump paid for all", took, whole)
	}
}

// TestEntry: a function gets its parameters whole, gives its results, and takes the same fuel, wherever that runs out, with few parameters and with more than are passed on.
func TestEntry(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 2, maxPassed, maxPassed + 1, 40} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			// f(n, a, b, ...) = n == 0 ? 0 : n + a + b + ... + f(n-1, a, b, ...)
			code := []byte{opLocalGet, 0, 0x45, opIf, typeEmpty}
			code = concat(code, i32c(0), []byte{opReturn, opEnd})
			for i := range n {
				code = append(code, opLocalGet, byte(i))
			}
			code = concat(code, bytes.Repeat([]byte{opAdd}, n-1), []byte{opLocalGet, 0}, i32c(1), []byte{opSub})
			for i := 1; i < n; i++ {
				code = append(code, opLocalGet, byte(i))
			}
			code = append(code, opCall, 0, opAdd)
			module := newModule().section(secType, vec(concat([]byte{0x60}, sized(bytes.Repeat([]byte{typeI32}, n)), []byte{1, typeI32}))...).section(secFunction, 1, 0).
				section(secExport, vec(concat(name("f"), []byte{kindFunc, 0}))...).section(secCode, vec(fn(nil, code...))...).b
			args, want := []uint64{20}, uint64(210)
			for i := 1; i < n; i++ {
				args = append(args, uint64(i))
				want += uint64(20 * i)
			}
			_, whole := meteredRun(t, module, "f", slice, args...)
			for begin := int64(0); begin < whole; begin += max(1, whole/50) {
				if got, fuel := meteredRun(t, module, "f", begin, args...); got != want || fuel != whole {
					t.Errorf("from %d of fuel: %d, want %d; it took %d, not %d", begin, got, want, fuel, whole)
				}
			}
		})
	}
}
