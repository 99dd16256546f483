package wasm

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
)

// program is a module that is loaded and ready to make instances of.
type program struct {
	*rewritten
	compiled wazero.CompiledModule
	info     Info
	size     int64 // bytes it holds, about
	imager   imager
	expects  expectation

	// Of a script, which shares everything else with the engine of scripts.
	script        []byte
	releaseEngine func()
}

// load is what moduleCache calls for a digest that is not in memory. A module that was loaded before, by this server or one before it, is not
// asked of Config.Load again: what was kept of it has its digest and is authenticated.
func (r *Runtime) load(ctx context.Context, account, want string) (_ *program, err error) {
	defer r.contain(want, &err)
	if want == ScriptEngineDigest {
		// What is kept of it is not to outlive its being installed.
		if _, err := r.scriptEngine(); err != nil {
			return nil, fmt.Errorf("load module %s: %w", want, err)
		}
	}
	for try := 0; ; try++ {
		p, err := r.loadOnce(ctx, account, want)
		if !errors.Is(err, errReplaced) || try == 2 {
			return p, err
		}
	}
}

// loadOnce is load, but for an errReplaced.
func (r *Runtime) loadOnce(ctx context.Context, account, want string) (*program, error) {
	var verifying sync.WaitGroup
	var code held
	var unverified error
	verifying.Go(func() { code, unverified = r.artifacts.verify(want) }) // some 15 MB are hashed
	info, rw, err := r.artifacts.kept(want)
	verifying.Wait()
	if err = cmp.Or(err, unverified); err != nil && unverified == nil {
		err = errors.Join(err, code.Close())
	}
	if err != nil {
		if !errors.Is(err, errNoArtifact) {
			r.config.Logger.WarnContext(ctx, "reading a module anew", "module", want, "error", err)
		}
		binary, err := r.bytesOf(ctx, account, want)
		if err != nil {
			return nil, fmt.Errorf("load module %s: %w", want, err)
		}
		if isScript(binary) {
			return r.loadScript(ctx, binary)
		}
		if info, rw, code, err = r.read(ctx, want, binary); err != nil {
			return nil, err
		}
	}
	defer code.Close()
	// The engine finds the module in the cache, so this reads but does not compile.
	compiled, err := r.wazero.CompileModule(ctx, rw.binary)
	if err != nil {
		return nil, fmt.Errorf("load module %s: %w", want, err)
	}
	if !code.there() {
		return nil, fmt.Errorf("load module %s: %w", want, errors.Join(errReplaced, compiled.Close(ctx)))
	}
	rw.binary = nil // the engine has what it needs
	return &program{rewritten: rw, compiled: compiled, info: info, size: residentSize(info.Size)}, nil
}

// contain makes a panic over a module an error. Modules are loaded, frozen and made instances of in goroutines of their own, where a panic would end the
// server, and end it again as soon as that module is called for.
func (r *Runtime) contain(module string, err *error) {
	if v := recover(); v != nil {
		r.config.Logger.Error("panic over a module", "module", module, "panic", v, "stack", string(debug.Stack()))
		*err = notPoolable("the server failed over it: %v", v)
	}
}

// bytesOf returns what has a digest.
func (r *Runtime) bytesOf(ctx context.Context, account, want string) (binary []byte, err error) {
	if want == ScriptEngineDigest {
		return r.scriptEngine()
	}
	if binary, err = r.config.Load(ctx, account, want); err != nil {
		return nil, err
	}
	if got := digest(binary); got != want {
		return nil, fmt.Errorf("the bytes have digest %s", got)
	}
	return binary, nil
}

// read checks, rewrites and compiles a module, and keeps the result for the next time. The file that it returns must be closed.
func (r *Runtime) read(ctx context.Context, want string, binary []byte) (Info, *rewritten, held, error) {
	info, m, err := examine(binary)
	if err != nil {
		return Info{}, nil, held{}, err
	}
	rw, err := rewrite(m)
	if err != nil {
		return Info{}, nil, held{}, fmt.Errorf("load module %s: %w", want, err)
	}
	if rw.binary, err = outline(rw.binary); err != nil {
		return Info{}, nil, held{}, fmt.Errorf("load module %s: %w", want, err)
	}
	code, err := r.prepare(ctx, want, binary)
	if err != nil {
		return Info{}, nil, held{}, err
	}
	if err := r.artifacts.keep(info, rw, code); err != nil {
		// The module runs without; only the next load is slower.
		r.config.Logger.WarnContext(ctx, "the prepared form of a module could not be kept", "module", want, "error", err)
	}
	return info, rw, code, nil
}

// residentSize estimates what a loaded module holds: native code, and the decoded module with its data segments. A Go module of
// 3.25 MB was measured at 14.5 to 18 MB, small modules of other languages at less.
func residentSize(binary int64) int64 { return 64<<10 + 6*binary }

// Weight estimates what a module will hold in memory when it is loaded, in bytes, without loading it. It reports false for a module that would have to
// be compiled first, and for a script.
func (r *Runtime) Weight(module string) (int64, bool) {
	size, ok := r.artifacts.weigh(module)
	return residentSize(size), ok
}

// Prepare makes sure that the compiled form of a stored module is in the cache, so that it takes its first call some tens of milliseconds to load it. It loads
// nothing itself. For a script, what is compiled is the engine that all scripts share.
func (r *Runtime) Prepare(ctx context.Context, account, module string) (err error) {
	end, err := r.begin()
	if err != nil {
		return err
	}
	defer end()
	defer r.contain(module, &err)
	if _, ok := r.artifacts.weigh(module); ok {
		return nil
	}
	binary, err := r.bytesOf(ctx, account, module)
	if err == nil && isScript(binary) {
		if _, ok := r.artifacts.weigh(ScriptEngineDigest); ok {
			return nil
		}
		module = ScriptEngineDigest
		binary, err = r.scriptEngine()
	}
	if err != nil {
		return fmt.Errorf("wasm: prepare module %s: %w", module, err)
	}
	_, _, code, err := r.read(ctx, module, binary)
	if err != nil {
		return fmt.Errorf("wasm: prepare module %s: %w", module, err)
	}
	return code.Close()
}

// free closes a program that no call uses, and its shells.
func (r *Runtime) free(p *program) {
	if img := p.imager.image; img != nil {
		r.retire(img)
	}
	if p.releaseEngine != nil {
		p.releaseEngine()
		return
	}
	// Closing a compiled module only gives up the engine's reference to its code and cannot fail.
	_ = p.compiled.Close(context.Background())
}

// instance is a program in memory, with a handle on all of its state that the host sets.
type instance struct {
	mod                api.Module
	fuel, depth, pages api.MutableGlobal
	maxPages           uint32       // by the module's own declaration
	script             *scriptGuest // of the JavaScript door, once it is started
}

// instantiate makes an instance for g, with the module's initial data unless blank is set. Nothing of the guest's has run when it returns.
// A module that starts with more memory than g may have gives an errNotPoolable.
func (r *Runtime) instantiate(g *guest, p *program, blank bool) (*instance, error) {
	if least := int64(p.minPages) * pageSize; least > g.memory.limit {
		g.memory.Free()
		return nil, notPoolable("it starts with %s of memory, and may have %s", byteSize(least), byteSize(g.memory.limit))
	}
	mod, err := r.engineInstance(g, p)
	if err != nil {
		g.memory.Free()
		return nil, err
	}
	g.memory.follow(mod.Memory())
	in := &instance{mod: mod, maxPages: p.maxPages}
	for name, to := range map[string]*api.MutableGlobal{addedFuel: &in.fuel, addedDepth: &in.depth, addedPages: &in.pages} {
		*to = mod.ExportedGlobal(name).(api.MutableGlobal)
	}
	data := p.data
	if blank {
		data = nil
	}
	for _, s := range data {
		if !mod.Memory().Write(s.offset, s.bytes) {
			in.close()
			return nil, fmt.Errorf("initial data does not fit the memory") // the rewriter has compared them
		}
	}
	in.depth.Set(stackStart)
	g.inst, g.pages, g.stack = in, p.minPages, stackStart
	g.refill()
	return in, nil
}

// engineInstance has the engine make an instance. Images and spare instances are made in goroutines of their own, where a panic of the engine over a
// module would end the server, and end it again when it starts with that module: it becomes an error of the module.
func (r *Runtime) engineInstance(g *guest, p *program) (mod api.Module, err error) {
	defer func() {
		if v := recover(); v != nil {
			mod, err = nil, fmt.Errorf("the engine cannot make an instance: %v", v)
		}
	}()
	return r.wazero.InstantiateModule(g.memory.allocating(g), p.compiled, wazero.NewModuleConfig().WithName("").WithStartFunctions())
}

// close frees the instance and its memory. The engine's error could only be one of open files, and there are none.
func (in *instance) close() { _ = in.mod.Close(context.Background()) }

// start makes an instance for g, with at most so many bytes of memory, and runs it to its end. The error is the engine's, if the guest did
// not simply return; g has no memory if there never was a guest.
func (r *Runtime) start(g *guest, p *program, memory int64) error {
	mem, err := r.config.without.newLinearMemory(max(memory, pageSize))
	if err != nil {
		return err
	}
	g.memory = mem
	in, err := r.instantiate(g, p, false)
	if err != nil {
		return err
	}
	defer in.close()
	if p.hasStart {
		if _, err := in.mod.ExportedFunction(addedStart).Call(g); err != nil {
			return err
		}
	}
	return enter(g, in.mod, p.hooks)
}

// systemRandom is crypto/rand as an io.Reader that is a type of its own, so that the zero Config needs no variable.
type systemRandom struct{}

func (systemRandom) Read(p []byte) (int, error) { return rand.Read(p) }
