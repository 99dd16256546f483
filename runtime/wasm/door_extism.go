package wasm

import (
	"encoding/json"
	"unicode/utf8"

	"github.com/tetratelabs/wazero/api"

	"github.com/keyfire/keyfire/core"
)

// Names of exports by which languages' runtimes are started before a plugin is called.
const (
	exportCtors   = "__wasm_call_ctors"
	exportHaskell = "hs_init"
)

// callable reports whether an export can be what `call` names: a function without parameters that gives an i32 or nothing.
func (m *module) callable(name string) bool {
	f, ok := m.export(name)
	if !ok {
		return false
	}
	t, ok := m.typeOf(f)
	return ok && len(t.params) == 0 && (len(t.results) == 0 || len(t.results) == 1 && t.results[0] == typeI32)
}

// isExtism reports whether a module was built for Extism's host.
func (m *module) isExtism() bool {
	for _, d := range m.imports {
		if d.module == extismModule {
			return true
		}
	}
	return false
}

// enterExtism starts a plugin's language runtime and calls the function the node names.
func enterExtism(g *guest, mod api.Module) error {
	name := g.call.Export
	if name != exportStart && name != exportInitialize {
		if err := startExtism(g, mod); err != nil {
			return err
		}
	}
	return callExtism(g, mod.ExportedFunction(name))
}

// startExtism starts a plugin's language runtime.
func startExtism(g *guest, mod api.Module) error {
	initialize, ctors, haskell := mod.ExportedFunction(exportInitialize), mod.ExportedFunction(exportCtors), mod.ExportedFunction(exportHaskell)
	if initialize != nil {
		if _, err := initialize.Call(g); err != nil {
			return err
		}
	} else if ctors != nil {
		if _, err := ctors.Call(g); err != nil {
			return err
		}
	}
	if haskell != nil {
		if _, err := haskell.Call(g, 0, 0); err != nil {
			return err
		}
	}
	return nil
}

// callExtism calls a function of a plugin that is started.
func callExtism(g *guest, f api.Function) error {
	// A `with` that is a text goes in as it is; anything else goes in as JSON.
	input := plainText(g.call.Input)
	g.extism.input = extent{g.extismPut(input), uint64(len(input))}
	res, err := f.Call(g)
	if err != nil {
		return err
	}
	if len(res) > 0 {
		g.exited, g.code = true, uint32(res[0])
	}
	return nil
}

// extismError returns what a plugin that has ended said with error_set, nil if that was nothing. It may be an explanation in the form of sdk/node/ABI.md.
func (g *guest) extismError() error {
	const most = 64 << 10 // which is more than anybody is shown
	text := g.extism.text(g.extism.failure, most)
	if len(text) == 0 {
		return nil
	}
	if e, ok := explained(text, int(g.code), g.denied); ok {
		return e
	}
	return &Error{Class: core.ClassFailed, ExitCode: int(g.code), Message: message(string(text), "the plugin reported an error")}
}

// extismOutput turns what a plugin gave out into JSON: itself if it is JSON, otherwise a text. A plugin that also knows keyfire_v1 may use that instead.
func (g *guest) extismOutput() ([]byte, error) {
	out := g.extism.output
	if out.size == 0 && len(g.stdout) > 0 {
		return jsonOutput(g.stdout, DoorReactor)
	}
	if int64(out.size) > g.output || out.size > extismMemory {
		return nil, errorf(core.ClassLimit, "the node wrote more than %s of output", byteSize(g.output))
	}
	b := append([]byte(nil), g.extism.bytes(out.at, out.size)...)
	switch {
	case uint64(len(b)) < out.size:
		return nil, errorf(core.ClassInvalidOutput, "the plugin's output lies outside the memory it was given")
	case !utf8.Valid(b):
		return nil, errorf(core.ClassInvalidOutput, "the plugin's output is neither JSON nor text in UTF-8")
	case json.Valid(b):
		return b, nil
	}
	text, err := json.Marshal(string(b))
	if err != nil {
		return nil, err
	}
	if int64(len(text)) > g.output {
		return nil, errorf(core.ClassLimit, "the node wrote more than %s of output", byteSize(g.output))
	}
	return text, nil
}
