package wasm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tetratelabs/wazero"

	"github.com/keyfire/keyfire/core"
)

// Config is what New needs.
type Config struct {
	// CacheDir holds compiled modules. It is created with mode 0700, and beside it, as CacheDir with ".key" appended, the key that
	// authenticates them. Deleting either is always safe and costs compiling again.
	CacheDir string
	// CacheSize is about how many bytes CacheDir may hold; what was not used for longest is removed for what is new. It should hold several
	// modules. 0 is any number.
	CacheSize int64
	// CompileCommand is the program, by absolute path, and the arguments that run CompileChild in a process of its own. Empty compiles in
	// this process, where a module made to be expensive can exhaust it: only programs that trust their modules may leave it empty.
	CompileCommand []string
	// Load returns the bytes of a module that was published. It is called when a module is invoked that is not in memory. The runtime never
	// checks whose module a digest names; Load does, and so does whoever made the Call.
	Load func(ctx context.Context, account, digest string) ([]byte, error)
	// MemoryLimit is the most linear memory of one invocation, in bytes; 0 is DefaultMemoryLimit. It is rounded up to whole pages of 64 KiB.
	MemoryLimit int64
	// MemoryBudget is what all guests together may hold, in bytes, at least MemoryLimit; 0 is 1 GiB. A call that does not fit waits.
	MemoryBudget int64
	// ModuleBudget is about how many bytes of compiled modules stay loaded; 0 is 256 MiB. Modules in use do not count against it.
	ModuleBudget int64
	// Engine is how invocations start: EngineSnapshot, which is also the zero value, or EnginePlain.
	Engine Engine
	// Isolation is who may use an instance again: IsolationAccount, which is also the zero value, or IsolationStrict.
	Isolation Isolation
	// Reset is how the memory of an instance is put back; the zero value, ResetAuto, measures.
	Reset ResetMode
	// Mismatch hears, once for each image, that a reset of the module was found to have left a difference; nil is nobody.
	Mismatch func(module string)
	// VerifyEvery makes one of so many resets of the snapshot engine compare every byte; 0 is 1,000, a negative number none.
	VerifyEvery int
	// Egress says how HTTP requests of guests leave the server.
	Egress EgressConfig
	// Secret gives the secrets that nodes were granted; nil has none.
	Secret SecretSource
	// KV keeps values for nodes; nil keeps none, and fails a node that asks.
	KV KV
	// ScriptEngine is the file of the engine that JavaScript nodes run on, with digest ScriptEngineDigest. It is read when a script is
	// published or run and none was before, so it may appear while the runtime runs. Empty, or a file that is not there, refuses scripts.
	ScriptEngine string
	// Now is the time guests and log lines see; nil is time.Now. Differences of its values measure time, so they should carry a monotonic
	// reading.
	Now func() time.Time
	// Random is where guests' random bytes come from; nil is the system's CSPRNG. It must be safe for concurrent use.
	Random io.Reader
	// Logger hears of what the runtime repaired by itself; nil discards it.
	Logger *slog.Logger

	without experiments // of the engine; tests switch them off
}

// Engine is a way to give every invocation a fresh sandbox.
type Engine string

// The engines. They differ in speed only.
const (
	// EngineSnapshot starts a module once, freezes it, and begins every invocation from there, in instances that are reset after each
	// use. Modules whose start-up cannot be frozen start plain; Result.Start tells.
	EngineSnapshot Engine = "snapshot"
	// EnginePlain makes and starts an instance for every invocation.
	EnginePlain Engine = "plain"
)

// Isolation says who may use an instance that was used and reset.
type Isolation string

// The isolations. Under either, every invocation finds the state that its module's author defined.
const (
	// IsolationAccount: only calls of the same account.
	IsolationAccount Isolation = "account"
	// IsolationStrict: nobody. Every instance is used once, and closed. Instances that take long to start are started before they are needed.
	IsolationStrict Isolation = "strict"
)

// Runtime runs modules. Its methods are safe for concurrent use.
type Runtime struct {
	config    Config
	wazero    wazero.Runtime
	cache     wazero.CompilationCache
	artifacts *artifacts
	building  chan struct{} // holds one element while a module is compiled
	childCPU  int           // seconds
	childWall time.Duration
	bootTime  time.Duration
	modules   *moduleCache
	memory    *budget
	egress    *egress
	shelf     *shelf
	crowd     *crowd

	made, resets, verified, mismatches atomic.Uint64
	starts                             [len(starts)]atomic.Uint64 // of invocations

	booting sync.Mutex      // held while an image is made
	life    context.Context //nolint:containedctx // of work in the background, until Close
	endLife context.CancelFunc

	mu     sync.Mutex
	closed bool
	calls  sync.WaitGroup
	ended  func() // calls.Done
	tidier sync.WaitGroup
}

// ErrClosed is returned by the methods of a closed Runtime.
var ErrClosed = errors.New("wasm: the runtime is closed")

// New returns a Runtime. Close must be called to free it.
func New(ctx context.Context, c Config) (*Runtime, error) {
	if c.CacheDir == "" {
		return nil, errors.New("wasm: Config.CacheDir is empty")
	}
	if c.Load == nil {
		return nil, errors.New("wasm: Config.Load is nil")
	}
	if c.MemoryLimit == 0 {
		c.MemoryLimit = DefaultMemoryLimit
	}
	if c.MemoryBudget == 0 {
		c.MemoryBudget = max(1<<30, callCost(c.MemoryLimit))
	}
	if c.ModuleBudget == 0 {
		c.ModuleBudget = 256 << 20
	}
	if c.Secret == nil {
		c.Secret = noSecrets
	}
	if c.KV == nil {
		c.KV = noKV{}
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Random == nil {
		c.Random = systemRandom{}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.VerifyEvery == 0 {
		c.VerifyEvery = 1_000
	}
	switch c.Engine {
	case "":
		c.Engine = EngineSnapshot
	case EngineSnapshot, EnginePlain:
	default:
		return nil, fmt.Errorf("wasm: Config.Engine is %q; it must be %q or %q", c.Engine, EngineSnapshot, EnginePlain)
	}
	switch c.Isolation {
	case "":
		c.Isolation = IsolationAccount
	case IsolationAccount, IsolationStrict:
	default:
		return nil, fmt.Errorf("wasm: Config.Isolation is %q; it must be %q or %q", c.Isolation, IsolationAccount, IsolationStrict)
	}
	if !slices.Contains(resetModes, c.Reset) {
		return nil, fmt.Errorf("wasm: Config.Reset is %q; it must be one of %q", c.Reset, resetModes)
	}
	c.MemoryLimit = wholePages(c.MemoryLimit)
	if c.MemoryLimit < 0 || c.MemoryLimit > maxPages*pageSize {
		return nil, fmt.Errorf("wasm: Config.MemoryLimit is %d; it must be between 0 and 4 GiB", c.MemoryLimit)
	}
	least := callCost(c.MemoryLimit)
	if c.MemoryBudget < least {
		return nil, fmt.Errorf("wasm: Config.MemoryBudget is %d; one call needs up to %d", c.MemoryBudget, least)
	}
	// Instances that wait to be used again have a share of the memory, as far as it does not take a call's.
	idle := min(c.MemoryBudget/8, c.MemoryBudget-least)
	store, err := openArtifacts(ctx, c.CacheDir, c.CacheSize)
	if err != nil {
		return nil, fmt.Errorf("wasm: compile cache: %w", err)
	}
	cache, err := wazero.NewCompilationCacheWithDir(store.engine())
	if err != nil {
		return nil, fmt.Errorf("wasm: compile cache: %w", err)
	}
	r := &Runtime{config: c, cache: cache, artifacts: store, building: make(chan struct{}, 1), childCPU: childCPU, childWall: childWall, bootTime: bootTime, memory: newBudget(c.MemoryBudget - idle), shelf: newShelf(idle), egress: newEgress(c.Egress), crowd: newCrowd()}
	r.ended = r.calls.Done
	r.life, r.endLife = context.WithCancel(context.WithoutCancel(ctx))
	r.modules = newModuleCache(c.ModuleBudget, r.load, r.free)
	r.wazero = wazero.NewRuntimeWithConfig(ctx, engineConfig().WithCompilationCache(cache))
	if err := instantiateHost(ctx, r.wazero); err != nil {
		return nil, errors.Join(err, r.wazero.Close(ctx), cache.Close(ctx))
	}
	r.tidier.Go(r.tidy)
	return r, nil
}

// engineConfig is how every module is compiled. A difference between two processes would only cost cache misses.
func engineConfig() wazero.RuntimeConfig {
	return wazero.NewRuntimeConfig().
		// Metering stops guests, in all code and at a fraction of the cost (rewrite.go).
		WithCloseOnContextDone(false).
		// Reading debug information would run one more parser on foreign bytes, for the sake of line numbers in traces.
		WithDebugInfoEnabled(false)
}

func wholePages(n int64) int64 { return (n + pageSize - 1) / pageSize * pageSize }

// Close waits for the invocations under way, which end at their own deadlines, and frees everything. Later calls of any method
// return ErrClosed; a second Close does nothing.
func (r *Runtime) Close(ctx context.Context) error {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return nil
	}
	r.closed = true
	r.mu.Unlock()
	r.endLife()
	r.tidier.Wait()
	r.calls.Wait()
	r.crowd.close()
	r.modules.close()
	return errors.Join(r.wazero.Close(ctx), r.cache.Close(ctx))
}

// begin counts a call of a method that Close must wait for. The caller must call the function it gets.
func (r *Runtime) begin() (end func(), err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, ErrClosed
	}
	r.calls.Add(1)
	return r.ended, nil
}

// Compile checks a module's bytes and compiles them into the cache. It is called when a module is published; bytes that did not pass it must
// not be stored. A module that is refused gives a *core.Error of CodeInvalidModule that says what is wrong with it. Whatever the
// bytes are, an answer comes within about 25 s of their turn; modules are compiled one at a time.
func (r *Runtime) Compile(ctx context.Context, binary []byte) (Info, error) {
	end, err := r.begin()
	if err != nil {
		return Info{}, err
	}
	defer end()
	info, err := inspect(binary)
	if err != nil {
		return Info{}, err
	}
	if info.Door == DoorJavaScript {
		if err := r.checkScript(ctx, binary); err != nil {
			return Info{}, err
		}
		return info, nil
	}
	if info.MinMemory > r.config.MemoryLimit {
		return Info{}, core.Errorf(core.CodeInvalidModule, "the module starts with %s of memory; a node has at most %s", byteSize(info.MinMemory), byteSize(r.config.MemoryLimit))
	}
	code, err := r.prepare(ctx, info.Digest, binary)
	if err != nil {
		return Info{}, err
	}
	return info, code.Close()
}

// inspect parses a module and checks what this package demands of one. Its errors are for the author of the module.
func inspect(binary []byte) (Info, error) {
	if isScript(binary) {
		return inspectScript(binary)
	}
	if isScriptEngine(binary) {
		return Info{}, core.Errorf(core.CodeInvalidModule, "this is the engine of JavaScript nodes, not a node; a workflow names a script, as ./node.js, and the operator installs the engine with keyfire engine install")
	}
	info, _, err := examine(binary)
	return info, err
}

// examine is inspect for modules, the engine of scripts included.
func examine(binary []byte) (Info, *module, error) {
	if len(binary) > core.MaxModule {
		return Info{}, nil, core.Errorf(core.CodeInvalidModule, "the module has %d bytes; at most %s are allowed", len(binary), byteSize(core.MaxModule))
	}
	m, err := parse(binary)
	if err != nil {
		return Info{}, nil, core.Errorf(core.CodeInvalidModule, "the module is not valid WebAssembly: %s", printable(cut(err.Error())))
	}
	entrance := DoorJavaScript
	if !isScriptEngine(binary) {
		if err := checkImports(m); err != nil {
			return Info{}, nil, err
		}
		if entrance, err = doorOf(m); err != nil {
			return Info{}, nil, err
		}
	}
	info := Info{Door: entrance, Digest: digest(binary), Size: int64(len(binary)), MinMemory: int64(m.memories[0].min) * pageSize}
	if m.memories[0].hasMax {
		info.MaxMemory = int64(m.memories[0].max) * pageSize
	}
	for _, d := range m.imports {
		info.Imports = append(info.Imports, d.module+"."+d.name)
	}
	slices.Sort(info.Imports)
	info.Imports = slices.Compact(info.Imports)
	for _, e := range m.exports {
		if e.kind == kindFunc {
			info.Exports = append(info.Exports, e.name)
		}
	}
	slices.Sort(info.Exports)
	info.Grants = m.grantNames()
	for _, name := range info.Exports {
		if name != exportInitialize && name != exportCtors && m.callable(name) {
			info.Callable = append(info.Callable, name)
		}
	}
	return info, m, nil
}

// importHint says how to do without an import that a compiler asks for unless it is told not to.
func importHint(d importDecl) string {
	switch {
	case d.module == "env" && (d.name == "abort" || d.name == "seed" || d.name == "trace") || d.module == "env" && strings.HasPrefix(d.name, "console."):
		return `; with AssemblyScript, compile with --use abort=node/abort and an exported function abort, as keyfire node new --lang assemblyscript shows`
	case strings.HasPrefix(d.module, "wasi:"):
		return "; components and WASI preview 2 are not supported: compile for wasm32-wasip1"
	case d.kind == kindMemory:
		return "; the module has to define its memory itself"
	}
	return ""
}

// checkImports makes sure that a module asks only for host functions there are.
func checkImports(m *module) error {
	var unknown []core.Field
	for _, d := range m.imports {
		want, ok := hostSignature(d.module, d.name)
		switch {
		case d.kind != kindFunc || !ok:
			unknown = append(unknown, core.Field{Pointer: "#/uses", Detail: fmt.Sprintf("it imports %q %q, which Keyfire does not offer%s", printable(cut(d.module)), printable(cut(d.name)), importHint(d))})
		case !m.types[d.typ].equal(want):
			unknown = append(unknown, core.Field{Pointer: "#/uses", Detail: fmt.Sprintf("it imports %q %q with another signature than it has", d.module, d.name)})
		}
	}
	if len(unknown) > 0 {
		e := core.Errorf(core.CodeInvalidModule, "%s", unknown[0].Detail)
		if len(unknown) > 1 {
			e.Message += fmt.Sprintf(", and %d more imports that it cannot have", len(unknown)-1)
		}
		const most = 20
		e.Fields = unknown[:min(len(unknown), most)]
		return e
	}
	if len(m.memories) == 0 {
		return core.Errorf(core.CodeInvalidModule, "the module has no memory of its own, so it could neither read its input nor write an output")
	}
	return nil
}

func (t funcType) equal(u funcType) bool {
	return slices.Equal(t.params, u.params) && slices.Equal(t.results, u.results)
}

func digest(binary []byte) string {
	sum := sha256.Sum256(binary)
	return "sha256:" + hex.EncodeToString(sum[:])
}
