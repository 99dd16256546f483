package wasm

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/tetratelabs/wazero/api"
)

// Exports by which a reactor takes part in being frozen. Both are optional, and part of sdk/node/ABI.md.
const (
	exportWarm   = "warm"   // () -> (): before the state is frozen
	exportResume = "resume" // (i64, i64, i64, i64) -> (): before each run, with 32 random bytes
)

// hooks are those that a module has.
type hooks struct{ Warm, Resume bool }

// hooks finds a module's hooks. An export of such a name with another signature is the module's own affair.
func (m *module) hooks() hooks {
	has := func(name string, want funcType) bool {
		f, ok := m.export(name)
		if !ok {
			return false
		}
		t, ok := m.typeOf(f)
		return ok && t.equal(want)
	}
	return hooks{
		Warm:   has(exportWarm, funcType{}),
		Resume: has(exportResume, funcType{params: []byte{typeI64, typeI64, typeI64, typeI64}}),
	}
}

// resume calls a guest's resume hook with random bytes of its own.
func resume(g *guest, f api.Function) error {
	var seed [32]byte
	if _, err := io.ReadFull(g.random, seed[:]); err != nil {
		return fmt.Errorf("random source: %w", err)
	}
	for i := range g.args {
		g.args[i] = binary.LittleEndian.Uint64(seed[8*i:])
	}
	return f.CallWithStack(g, g.args[:])
}

// callRun calls a reactor's run.
func callRun(g *guest, f api.Function) error {
	g.args[0] = uint64(len(g.call.Input))
	if err := f.CallWithStack(g, g.args[:1]); err != nil {
		return err
	}
	g.exited, g.code = true, uint32(g.args[0])
	return nil
}
