package wasm

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"

	"github.com/keyfire/keyfire/core"
)

// Door is the way a module is entered. The module's exports say which one it is.
type Door string

// The doors.
const (
	DoorCommand Door = "command" // exports _start: a program that reads standard input and writes standard output
	DoorReactor Door = "reactor" // exports run(i32) -> i32, as sdk/node/ABI.md has it
	DoorExtism  Door = "extism"  // a plugin for Extism, or any module with a function () -> i32; the node says which with `call`
)

// DoorJavaScript is a script that exports a function, and not a module of WebAssembly at all. It runs on an engine that is one.
const DoorJavaScript Door = "javascript"

// Names of the exports that make a door.
const (
	exportStart      = "_start"
	exportInitialize = "_initialize"
	exportRun        = "run"
)

// doorOf finds a module's door. The error, a *core.Error, says what would make one.
func doorOf(m *module) (Door, error) {
	if m.isExtism() {
		return DoorExtism, nil
	}
	if start, ok := m.export(exportStart); ok {
		if t, ok := m.typeOf(start); !ok || len(t.params)+len(t.results) > 0 {
			return "", core.Errorf(core.CodeInvalidModule, "the module's _start takes parameters or gives results; a WASI command's does not")
		}
		return DoorCommand, nil
	}
	run, ok := m.export(exportRun)
	if !ok {
		for _, e := range m.exports {
			if e.kind == kindFunc && e.name != exportInitialize && e.name != exportCtors && m.callable(e.name) {
				return DoorExtism, nil
			}
		}
		return "", core.Errorf(core.CodeInvalidModule,
			"the module does not export _start, nor run(i32) -> i32: build it as a WASI command (for Go: GOOS=wasip1 GOARCH=wasm, without -buildmode) or as a reactor (with -buildmode=c-shared and sdk/node)")
	}
	want := funcType{params: []byte{typeI32}, results: []byte{typeI32}}
	if t, ok := m.typeOf(run); !ok || !t.equal(want) {
		return "", core.Errorf(core.CodeInvalidModule, "the module's run has another signature than run(i32) -> i32, which a reactor exports")
	}
	if start, ok := m.export(exportInitialize); ok {
		if t, ok := m.typeOf(start); !ok || len(t.params)+len(t.results) > 0 {
			return "", core.Errorf(core.CodeInvalidModule, "the module's _initialize takes parameters or gives results; a reactor's does not")
		}
	}
	return DoorReactor, nil
}

// enter runs a fresh instance to its end, with the hook that a shell's guest would have been called by. The error is the engine's; how a guest that simply returned fared is in g.
func enter(g *guest, mod api.Module, h hooks) error {
	if g.door == DoorExtism {
		return enterExtism(g, mod)
	}
	if g.door == DoorJavaScript {
		if err := startScript(g, g.script); err != nil {
			return g.scriptFailure(err)
		}
		return g.scriptFailure(runScript(g))
	}
	if g.door == DoorCommand {
		_, err := mod.ExportedFunction(exportStart).Call(g)
		return err
	}
	if f := mod.ExportedFunction(exportInitialize); f != nil {
		if _, err := f.Call(g); err != nil {
			return err
		}
	}
	if h.Resume {
		if err := resume(g, mod.ExportedFunction(exportResume)); err != nil {
			return err
		}
	}
	return callRun(g, mod.ExportedFunction(exportRun))
}

// hostState prepares the host functions for one call.
func (r *Runtime) hostState(c *Call) hostState {
	s := hostState{call: c, egress: r.egress, vault: r.config.Secret, kv: r.config.KV, calls: DefaultHostCalls}
	if c.Limits.HostCalls > 0 {
		s.calls = min(c.Limits.HostCalls, MaxHostCalls)
	}
	for _, text := range c.Grants.HTTP {
		// A rule that cannot be read grants nothing; a workflow that has one was not published.
		if rule, err := ParseHTTPRule(text); err == nil {
			s.rules = append(s.rules, rule)
		}
	}
	return s
}

func instantiateABI(ctx context.Context, rt wazero.Runtime) error {
	b := rt.NewHostModuleBuilder(keyfireModule)
	for name, f := range abiFuncs {
		t := f.signature()
		b.NewFunctionBuilder().WithGoModuleFunction(f.goFunc(name == "input_read"), valueTypes(t.params), valueTypes(t.results)).Export(name)
	}
	if _, err := b.Instantiate(ctx); err != nil {
		return fmt.Errorf("host module %s: %w", keyfireModule, err)
	}
	if err := instantiateExtism(ctx, rt); err != nil {
		return err
	}
	return instantiateScript(ctx, rt)
}

// doorOf returns the door of one call: `call` makes a plugin of any module that has the function.
func (p *program) doorOf(c *Call) (Door, error) {
	if wrong := p.info.checkCall(c.Export); wrong != "" {
		return "", errorf(core.ClassFailed, "%s", wrong)
	}
	if c.Export != "" {
		return DoorExtism, nil
	}
	return p.info.Door, nil
}

// checkCall says what is wrong with a node's `call`, "" for nothing.
func (i Info) checkCall(name string) string {
	has := func() string {
		if len(i.Callable) == 0 {
			return "it has none"
		}
		const most = 20
		var names []string
		for _, n := range i.Callable[:min(len(i.Callable), most)] {
			names = append(names, printable(cut(n)))
		}
		if len(i.Callable) > most {
			names = append(names, fmt.Sprintf("and %d more", len(i.Callable)-most))
		}
		return "it has " + cut(strings.Join(names, ", "))
	}
	switch {
	case name == "" && i.Door == DoorExtism:
		return "the module is an Extism plugin, so the node must say which of its functions to call; " + has()
	case name != "" && !slices.Contains(i.Callable, name):
		return fmt.Sprintf("the module has no function %q without parameters that could be called; %s", printable(cut(name)), has())
	}
	return ""
}

// CheckNode compares a node with the module it uses, at publish: binary, or if that is nil the stored module of that digest. See Info.Check.
func (r *Runtime) CheckNode(ctx context.Context, account, digest string, binary []byte, n *core.Node) ([]core.Field, error) {
	if binary == nil {
		var err error
		if binary, err = r.config.Load(ctx, account, digest); err != nil {
			return nil, fmt.Errorf("load module %s: %w", digest, err)
		}
	}
	info, err := inspect(binary)
	if err != nil {
		return nil, err
	}
	return info.Check(n), nil
}

// Inspect tells what a module or script is, without compiling or running it. What could not be published is refused as Compile does.
func Inspect(binary []byte) (Info, error) {
	info, err := inspect(binary)
	return info, err
}
