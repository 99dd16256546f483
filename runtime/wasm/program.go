package wasm

import (
	"context"
	"crypto/rand"
	"fmt"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/experimental"
)

// program is a module that is loaded and ready to make instances of.
type program struct {
	compiled wazero.CompiledModule
	info     Info
	size     int64 // bytes it holds, about
}

// load is what moduleCache calls for a digest that is not in memory.
func (r *Runtime) load(ctx context.Context, account, want string) (*program, error) {
	binary, err := r.config.Load(ctx, account, want)
	if err != nil {
		return nil, fmt.Errorf("load module %s: %w", want, err)
	}
	if got := digest(binary); got != want {
		return nil, fmt.Errorf("load module %s: the bytes have digest %s", want, got)
	}
	info, _, err := inspect(binary)
	if err != nil {
		return nil, err
	}
	if err := r.prepare(ctx, want, binary); err != nil {
		return nil, err
	}
	// The engine finds the module in the cache, so this reads and validates but does not compile.
	compiled, err := r.wazero.CompileModule(ctx, binary)
	if err != nil {
		return nil, fmt.Errorf("load module %s: %w", want, err)
	}
	return &program{compiled: compiled, info: info, size: residentSize(info.Size)}, nil
}

// residentSize estimates what a loaded module holds: native code, and the decoded module with its data segments. A Go module of
// 3.25 MB was measured at 14.5 to 18 MB, small modules of other languages at less.
func residentSize(binary int64) int64 { return 64<<10 + 6*binary }

// close frees a program that no call uses.
func (p *program) close() {
	// Closing a compiled module only gives up the engine's reference to its code and cannot fail.
	_ = p.compiled.Close(context.Background())
}

// start makes an instance for g and runs it to its end. The error is the engine's, if the guest did not simply return.
func (r *Runtime) start(g *guest, p *program) error {
	ctx := experimental.WithMemoryAllocator(g, g.memory)
	mod, err := r.wazero.InstantiateModule(ctx, p.compiled, wazero.NewModuleConfig().WithName("").WithStartFunctions())
	if err != nil {
		g.memory.Free()
		return err
	}
	defer func() {
		// The instance is used up. Closing it frees its memory; the error could only be one of open files, and there are none.
		_ = mod.Close(context.Background())
	}()
	return enter(g, mod)
}

// systemRandom is crypto/rand as an io.Reader that is a type of its own, so that the zero Config needs no variable.
type systemRandom struct{}

func (systemRandom) Read(p []byte) (int, error) { return rand.Read(p) }
