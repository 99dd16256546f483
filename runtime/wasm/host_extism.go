package wasm

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"

	"github.com/keyfire/keyfire/core"
)

// extismModule is the import module of plugins that were built with a plugin development kit of Extism. Keyfire implements it itself: such a
// plugin runs unchanged, in a fresh sandbox and under the same limits and grants as any other node.
const extismModule = "extism:host/env"

// extismMemory bounds what a plugin may have allocated on the host's side at one time: inputs, outputs, and what it passes to and gets from
// host functions.
const extismMemory = 16 << 20

// extismVars bounds the values of a plugin's variables together.
const extismVars = 1 << 20

// extismFunc is one function of extismModule. Types are written with one letter a value, "i" for i32 and "I" for i64.
type extismFunc struct {
	params, results string
	grant           grant
	effect          bool // counted as a host call; access to memory is not
	fn              func(g *guest, p []uint64) uint64
}

var extismFuncs = map[string]extismFunc{
	"alloc": {"I", "I", 0, false, func(g *guest, p []uint64) uint64 {
		g.spend(int(min(p[0], extismMemory)))
		g.extismTake(p[0])
		return g.extism.alloc(p[0])
	}},
	"free":             {"I", "", 0, false, func(g *guest, p []uint64) uint64 { g.extism.free(p[0]); return 0 }},
	"length":           {"I", "I", 0, false, func(g *guest, p []uint64) uint64 { return g.extism.length(p[0]) }},
	"length_unsafe":    {"I", "I", 0, false, func(g *guest, p []uint64) uint64 { return g.extism.length(p[0]) }},
	"load_u8":          {"I", "i", 0, false, func(g *guest, p []uint64) uint64 { return g.extism.load8(p[0]) }},
	"load_u64":         {"I", "I", 0, false, func(g *guest, p []uint64) uint64 { return g.extism.load64(p[0]) }},
	"store_u8":         {"Ii", "", 0, false, func(g *guest, p []uint64) uint64 { g.extism.store8(p[0], byte(p[1])); return 0 }},
	"store_u64":        {"II", "", 0, false, func(g *guest, p []uint64) uint64 { g.extism.store64(p[0], p[1]); return 0 }},
	"memory_bytes":     {"", "I", 0, false, func(g *guest, _ []uint64) uint64 { return uint64(len(g.extism.buf)) }},
	"reset":            {"", "", 0, false, func(g *guest, _ []uint64) uint64 { g.extism.reset(); return 0 }},
	"input_length":     {"", "I", 0, false, func(g *guest, _ []uint64) uint64 { return g.extism.input.size }},
	"input_offset":     {"", "I", 0, false, func(g *guest, _ []uint64) uint64 { return g.extism.input.at }},
	"input_load_u8":    {"I", "i", 0, false, func(g *guest, p []uint64) uint64 { return g.extism.inputLoad(p[0], 1) }},
	"input_load_u64":   {"I", "I", 0, false, func(g *guest, p []uint64) uint64 { return g.extism.inputLoad(p[0], 8) }},
	"input_set":        {"II", "", 0, false, func(g *guest, p []uint64) uint64 { g.extism.input = extent{p[0], p[1]}; return 0 }},
	"output_set":       {"II", "", 0, false, func(g *guest, p []uint64) uint64 { g.extism.output = extent{p[0], p[1]}; return 0 }},
	"output_length":    {"", "I", 0, false, func(g *guest, _ []uint64) uint64 { return g.extism.output.size }},
	"output_offset":    {"", "I", 0, false, func(g *guest, _ []uint64) uint64 { return g.extism.output.at }},
	"error_set":        {"I", "", 0, false, func(g *guest, p []uint64) uint64 { g.extism.failure = p[0]; return 0 }},
	"error_get":        {"", "I", 0, false, func(g *guest, _ []uint64) uint64 { return g.extism.failure }},
	"config_get":       {"I", "I", 0, true, extismConfigGet},
	"var_get":          {"I", "I", 0, true, extismVarGet},
	"var_set":          {"II", "", 0, true, extismVarSet},
	"http_request":     {"II", "I", grantHTTP, true, extismHTTPRequest},
	"http_status_code": {"", "i", 0, true, func(g *guest, _ []uint64) uint64 { return uint64(g.extism.status) }},
	"http_headers":     {"", "I", 0, true, extismHTTPHeaders},
	"get_log_level":    {"", "i", 0, true, func(*guest, []uint64) uint64 { return 0 }}, // trace: everything is kept
	"log_trace":        {"I", "", 0, true, extismLog("debug")},
	"log_debug":        {"I", "", 0, true, extismLog("debug")},
	"log_info":         {"I", "", 0, true, extismLog(levelInfo)},
	"log_warn":         {"I", "", 0, true, extismLog("warn")},
	"log_error":        {"I", "", 0, true, extismLog(levelError)},
}

func (f extismFunc) signature() (t funcType) {
	types := func(letters string) (b []byte) {
		for _, c := range letters {
			if c == 'I' {
				b = append(b, typeI64)
			} else {
				b = append(b, typeI32)
			}
		}
		return b
	}
	return funcType{params: types(f.params), results: types(f.results)}
}

func (f extismFunc) goFunc() api.GoModuleFunc {
	return func(ctx context.Context, _ api.Module, stack []uint64) {
		g := guestOf(ctx)
		g.notWhileBooting("calls a host function")
		g.spend(callWork)
		if f.effect {
			g.countCall()
		}
		v := f.fn(g, stack)
		if f.results != "" {
			stack[0] = v
		}
	}
}

func instantiateExtism(ctx context.Context, rt wazero.Runtime) error {
	b := rt.NewHostModuleBuilder(extismModule)
	for name, f := range extismFuncs {
		t := f.signature()
		b.NewFunctionBuilder().WithGoModuleFunction(f.goFunc(), valueTypes(t.params), valueTypes(t.results)).Export(name)
	}
	if _, err := b.Instantiate(ctx); err != nil {
		return fmt.Errorf("host module %s: %w", extismModule, err)
	}
	return nil
}

// extismState is what Extism calls the kernel: memory outside the plugin's own, which the plugin reads and writes by function calls, and what
// the plugin keeps there. An offset is never 0, which stands for "nothing".
type extismState struct {
	buf     []byte
	blocks  map[uint64]uint64   // offset to the length that was asked for
	spare   map[uint64][]uint64 // room of freed blocks, by its size
	made    uint64              // blocks, used or freed
	input   extent
	output  extent
	failure uint64 // offset of the error's text
	vars    map[string][]byte
	kept    int // bytes of vars
	status  int
	headers [][2]string
}

type extent struct{ at, size uint64 }

// extismBlock is what a block costs beside its bytes, in the host's memory.
const extismBlock = 64

const extismBase = 16 // the first offset; what lies before is never handed out

func extismRoom(n uint64) uint64 { return max((n+7)&^7, 8) }

func (e *extismState) alloc(n uint64) uint64 {
	if n == 0 || n > extismMemory {
		return 0
	}
	if e.blocks == nil {
		e.blocks, e.spare = make(map[uint64]uint64), make(map[uint64][]uint64)
		e.buf = make([]byte, extismBase, 4<<10)
	}
	room := extismRoom(n)
	if free := e.spare[room]; len(free) > 0 {
		at := free[len(free)-1]
		e.spare[room] = free[:len(free)-1]
		clear(e.buf[at : at+room])
		e.blocks[at] = n
		return at
	}
	at := uint64(len(e.buf))
	if e.made++; at+room+e.made*extismBlock > extismMemory {
		return 0
	}
	e.buf = append(e.buf, make([]byte, room)...)
	e.blocks[at] = n
	return at
}

func (e *extismState) free(at uint64) {
	if n, ok := e.blocks[at]; ok {
		delete(e.blocks, at)
		e.spare[extismRoom(n)] = append(e.spare[extismRoom(n)], at)
	}
}

func (e *extismState) reset() {
	e.buf, e.blocks, e.spare, e.made = nil, nil, nil, 0
	e.input, e.output, e.failure = extent{}, extent{}, 0
}

func (e *extismState) length(at uint64) uint64 { return e.blocks[at] }

// bytes returns n bytes at an offset, or nil when they are not all there. Like the original, access that reaches outside reads zeros and
// writes nothing; it cannot reach anything that is not the plugin's.
func (e *extismState) bytes(at, n uint64) []byte {
	if at > uint64(len(e.buf)) || n > uint64(len(e.buf))-at {
		return nil
	}
	return e.buf[at : at+n]
}

func (e *extismState) load8(at uint64) uint64 {
	if b := e.bytes(at, 1); b != nil {
		return uint64(b[0])
	}
	return 0
}

func (e *extismState) load64(at uint64) uint64 {
	if b := e.bytes(at, 8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

func (e *extismState) store8(at uint64, v byte) {
	if b := e.bytes(at, 1); b != nil {
		b[0] = v
	}
}

func (e *extismState) store64(at, v uint64) {
	if b := e.bytes(at, 8); b != nil {
		binary.LittleEndian.PutUint64(b, v)
	}
}

func (e *extismState) inputLoad(at, n uint64) uint64 {
	if at > e.input.size || n > e.input.size-at {
		return 0
	}
	if n == 1 {
		return e.load8(e.input.at + at)
	}
	return e.load64(e.input.at + at)
}

// extismPut copies data into a new block. Data of length 0 is no block. It is called before the guest is, too, so it must not look at the deadline.
func (g *guest) extismPut(data []byte) uint64 {
	if len(data) == 0 {
		return 0
	}
	at := g.extism.alloc(uint64(len(data)))
	if at == 0 {
		g.abort(errorf(core.ClassLimit, "the plugin holds more than %s of memory on the host's side", byteSize(extismMemory)))
	}
	copy(g.extism.buf[at:], data)
	return at
}

// extismTake takes memory for n bytes more on the host's side, and for a copy of all that is there.
func (g *guest) extismTake(n uint64) {
	e := &g.extism
	if total := 2*(uint64(len(e.buf)+e.kept)+min(n, extismMemory)) + e.made*extismBlock; total > smallText {
		g.take(useHost, int64(total))
	}
}

// extismGive is extismPut for a guest that asked for data.
func (g *guest) extismGive(data []byte) uint64 {
	g.spend(len(data))
	g.extismTake(uint64(len(data)))
	return g.extismPut(data)
}

// extismText returns the block at an offset, for a guest that runs. What is no block is empty.
func (g *guest) extismText(at uint64) []byte {
	g.spend(int(g.extism.length(at)))
	return g.extism.text(at, extismMemory)
}

// text returns the block at an offset, or as much of it as is asked for.
func (e *extismState) text(at, most uint64) []byte {
	return bytes.Clone(e.bytes(at, min(e.length(at), most)))
}

func extismLog(level string) func(*guest, []uint64) uint64 {
	return func(g *guest, p []uint64) uint64 {
		g.log.add(level, g.extismText(p[0]))
		return 0
	}
}

// extismConfigGet gives a value of the node's config, which Extism knows as text: a text as it is, anything else as JSON.
func extismConfigGet(g *guest, p []uint64) uint64 {
	name := string(g.extismText(p[0]))
	raw, ok := g.configValue(name)
	if !ok && slices.Contains(g.call.Grants.Secrets, name) {
		// Extism has no secrets; plugins expect theirs among their config.
		if value, code := g.secret(name); code == abiOK {
			return g.extismGive([]byte(value))
		}
	}
	if !ok {
		return 0
	}
	g.spend(parseWork * len(raw))
	return g.extismGive(plainText(raw))
}

// plainText returns the text that a JSON value is, or the JSON of any other value.
func plainText(raw []byte) []byte {
	var s string
	if len(raw) > 0 && raw[0] == '"' && json.Unmarshal(raw, &s) == nil {
		return []byte(s)
	}
	return raw
}

func extismVarGet(g *guest, p []uint64) uint64 {
	return g.extismGive(g.extism.vars[string(g.extismText(p[0]))])
}

// extismVarSet sets a variable, or removes it for the offset 0. Variables live as long as the invocation: every one is a fresh sandbox.
func extismVarSet(g *guest, p []uint64) uint64 {
	e := &g.extism
	name := string(g.extismText(p[0]))
	e.kept -= len(name) + len(e.vars[name])
	if _, ok := e.vars[name]; !ok {
		e.kept += len(name)
	}
	delete(e.vars, name)
	if p[1] == 0 {
		return 0
	}
	g.extismTake(g.extism.length(p[1]))
	value := g.extismText(p[1])
	if e.kept += len(name) + len(value); e.kept > extismVars {
		g.abort(errorf(core.ClassLimit, "the plugin's variables have more than %s", byteSize(extismVars)))
	}
	if e.vars == nil {
		e.vars = make(map[string][]byte)
	}
	e.vars[name] = value
	return 0
}

// extismHTTPRequest sends a request. A plugin has no way to hear why one failed, so the failure ends it, with the class the failure has.
func extismHTTPRequest(g *guest, p []uint64) uint64 {
	e := &g.extism
	e.status, e.headers = 0, nil
	var asked struct {
		Method  string            `json:"method"`
		URL     string            `json:"url"`
		Headers map[string]string `json:"headers"`
	}
	text := g.extismText(p[0])
	g.spend(parseWork * min(len(text), maxRequestHead))
	if len(text) > maxRequestHead || json.Unmarshal(text, &asked) != nil {
		g.abort(errorf(core.ClassFailed, "the plugin's HTTP request cannot be read"))
	}
	head := requestHead{Method: strings.ToUpper(asked.Method), URL: asked.URL}
	if head.Method == "" {
		head.Method = "GET"
	}
	for name, value := range asked.Headers {
		head.Headers = append(head.Headers, [2]string{name, value})
	}
	body := g.extismText(p[1])
	e.free(p[0])
	e.free(p[1])
	in, code := g.fetch(head, body)
	if code != abiOK {
		class := core.ClassUnavailable
		switch code {
		case abiDenied:
			class = core.ClassDenied
		case abiInvalid:
			class = core.ClassFailed
		case abiTooLarge:
			class = core.ClassLimit
		}
		g.abort(errorf(class, "%s", g.why))
	}
	e.status, e.headers = in.status, in.header
	return g.extismGive(in.body)
}

func extismHTTPHeaders(g *guest, _ []uint64) uint64 {
	joined := make(map[string][]byte)
	for _, f := range g.extism.headers {
		g.spend(parseWork * (len(f[0]) + len(f[1])))
		name := strings.ToLower(f[0])
		if was, ok := joined[name]; ok {
			joined[name] = append(append(was, ','), f[1]...)
		} else {
			joined[name] = []byte(f[1])
		}
	}
	if len(joined) == 0 {
		return 0
	}
	texts := make(map[string]string, len(joined))
	for name, value := range joined {
		texts[name] = string(value)
	}
	b, err := json.Marshal(texts)
	if err != nil {
		g.abort(fmt.Errorf("encode response headers: %w", err))
	}
	return g.extismGive(b)
}
