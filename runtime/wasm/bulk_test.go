package wasm

import (
	"bytes"
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
)

// TestBulkInPieces compares bulk operations of every length, done in pieces, with the engine's own: the same bytes, and the same traps before any is written.
func TestBulkInPieces(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	const pages = 96 // 6 MiB
	binary := newModule().section(secType, vec([]byte{0x60, 3, typeI32, typeI32, typeI32, 0})...).section(secFunction, 2, 0, 0).
		section(secMemory, concat([]byte{1, 0}, appendU32(nil, pages))...).
		section(secExport, vec(concat(name("fill"), []byte{kindFunc, 0}), concat(name("copy"), []byte{kindFunc, 1}), concat(name("memory"), []byte{kindMemory, 0}))...).
		section(secCode, vec(
			fn(nil, opLocalGet, 0, opLocalGet, 1, opLocalGet, 2, opPrefixFC, subMemoryFill, 0),
			fn(nil, opLocalGet, 0, opLocalGet, 1, opLocalGet, 2, opPrefixFC, subMemoryCopy, 0, 0),
		)...).b
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
	compiled, err := rt.CompileModule(ctx, rw.binary)
	if err != nil {
		t.Fatal(err)
	}
	mem, err := experiments{}.newLinearMemory(pages * pageSize)
	if err != nil {
		t.Fatal(err)
	}
	g := &guest{Context: ctx, now: time.Now, random: systemRandom{}, memory: mem, log: logBuffer{now: time.Now}, limit: time.Now().Add(time.Hour)}
	in, err := (&Runtime{wazero: rt}).instantiate(g, &program{rewritten: rw, compiled: compiled}, false)
	if err != nil {
		t.Fatal(err)
	}
	defer in.close()
	plain, err := rt.InstantiateWithConfig(ctx, binary, wazero.NewModuleConfig().WithName(""))
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close(ctx)

	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	want, _ := plain.Memory().Read(0, pages*pageSize)
	got, _ := in.mod.Memory().Read(0, pages*pageSize)
	for i := 0; i < len(want); i += 8 {
		v := random.Uint64()
		for j := range 8 {
			want[i+j] = byte(v >> (8 * j))
		}
	}
	copy(got, want)
	call := func(mod api.Module, with context.Context, f string, args [3]uint32) string {
		_, err := mod.ExportedFunction(f).Call(with, uint64(args[0]), uint64(args[1]), uint64(args[2]))
		if err != nil {
			return firstLine(err.Error())
		}
		return "done"
	}
	const size, piece = pages * pageSize, bulkPiece
	edges := []uint32{0, 1, piece - 1, piece, piece + 1, 2*piece - 1, 2 * piece, 2*piece + 1, 3*piece + 7, size - 1, size, size + 1, 1 << 31, 1<<32 - 1, 1<<32 - piece}
	pick := func() uint32 {
		if random.IntN(2) == 0 {
			return edges[random.IntN(len(edges))]
		}
		return random.Uint32N(size)
	}
	traps, done := 0, 0
	for i := range 1_000 {
		f := "fill"
		args := [3]uint32{pick(), random.Uint32(), pick()}
		if i%2 == 0 {
			f = "copy"
			args[1] = pick()
			if random.IntN(3) == 0 { // overlapping, closely
				args[1] = args[0] + random.Uint32N(64) - 32
			}
		}
		a, b := call(plain, ctx, f, args), call(in.mod, g, f, args)
		if a != b {
			t.Fatalf("%s%v: %s, in pieces %s", f, args, a, b)
		}
		if a == "done" {
			done++
		} else {
			traps++
		}
		if !bytes.Equal(want, got) {
			t.Fatalf("%s%v: %s, and the memories differ", f, args, a)
		}
	}
	t.Logf("%d done, %d trapped", done, traps)
	if done < 100 || traps < 100 {
		t.Error("too little was compared")
	}
}
