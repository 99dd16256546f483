package wasm

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/tetratelabs/wazero/api"

	"github.com/keyfire/keyfire/core"
)

// keyfireModule is the import module of Keyfire's own host functions, of which sdk/node/ABI.md is the contract. The version is part of
// the name: functions are only ever added to it, and never change.
const keyfireModule = "keyfire_v1"

// Results of host functions that are not lengths. They are part of the ABI.
const (
	abiOK          int32 = 0
	abiNotFound    int32 = -1
	abiInvalid     int32 = -2
	abiDenied      int32 = -3
	abiTooLarge    int32 = -4
	abiConflict    int32 = -5
	abiTimeout     int32 = -6
	abiUnavailable int32 = -7
)

// DefaultHostCalls is how many host functions one invocation may call, and MaxHostCalls what a node's limits may raise that to. The functions of
// WASI are not counted: language runtimes call them as they please.
const (
	DefaultHostCalls = 10_000
	MaxHostCalls     = 1_000_000
)

// abiFunc is one host function of keyfireModule. Its parameters are all i32; it gives an i32, or an i64 when wide is set.
type abiFunc struct {
	params int
	grant  grant // what the workflow must grant for a module to import it
	wide   bool
	fn     func(g *guest, m api.Memory, p []uint64) int64
}

var abiFuncs = map[string]abiFunc{
	"input_read":   {3, 0, false, inputRead},
	"output_write": {2, 0, false, outputWrite},
	"error_set":    {2, 0, false, errorSet},
	"error_text":   {2, 0, false, errorText},
	"log":          {3, 0, false, logWrite},
	"config_get":   {4, 0, false, configGet},
	"random":       {2, 0, false, randomBytes},
	"clock":        {0, 0, true, clock},
	"secret_get":   {4, grantSecrets, false, secretGet},
	"kv_get":       {4, grantKVRead, false, kvGet},
	"kv_put":       {4, grantKVWrite, false, kvPut},
	"kv_cas":       {6, grantKVWrite, false, kvCAS},
	"http_request": {4, grantHTTP, false, httpRequest},
	"http_head":    {2, grantHTTP, false, httpHead},
	"http_body":    {3, grantHTTP, false, httpBody},
}

func (f abiFunc) signature() funcType {
	t := funcType{params: bytes.Repeat([]byte{typeI32}, f.params), results: []byte{typeI32}}
	if f.wide {
		t.results[0] = typeI64
	}
	return t
}

// goFunc adapts f to the engine: on the raw stack, because calls through reflection cost twenty times as much. With resumes, a command that may be
// a shell is frozen at its first call, and comes back to it.
func (f abiFunc) goFunc(resumes bool) api.GoModuleFunc {
	if f.params == 0 {
		return func(ctx context.Context, mod api.Module, stack []uint64) {
			g := guestOf(ctx)
			g.spend(callWork)
			g.countCall()
			stack[0] = uint64(f.fn(g, mod.Memory(), nil))
		}
	}
	var fn api.GoModuleFunc
	fn = func(ctx context.Context, mod api.Module, stack []uint64) {
		g := guestOf(ctx)
		if resumes && g.shell != nil && g.shell.beforeRead(ctx, fn, stack) {
			stack[0] = retry
			return
		}
		g.spend(callWork)
		g.countCall()
		stack[0] = uint64(uint32(f.fn(g, mod.Memory(), stack)))
	}
	return fn
}

// hostState is what the host functions of one invocation know and remember.
type hostState struct {
	call   *Call
	rules  []HTTPRule // of the call's grants
	egress *egress
	vault  SecretSource
	kv     KV

	calls    int64           // host calls left
	said     []byte          // by error_set
	why      string          // text for the last host function that failed
	denied   bool            // something was denied in this invocation
	config   json.RawMessage // the whole of call.Config, once asked for
	byName   map[string]json.RawMessage
	requests int // HTTP requests begun
	response struct{ head, body []byte }
	extism   extismState
	secrets  map[string]string // that the guest has read, by name
}

func (g *guest) countCall() {
	if g.calls--; g.calls < 0 || g.asked != nil {
		g.refuseCall()
	}
}

// refuseCall ends a guest that may not call what it calls.
func (g *guest) refuseCall() {
	g.notWhileBooting("calls a host function")
	g.abort(errorf(core.ClassLimit, "the node called more host functions than its limits.host_calls allows"))
}

// refuse remembers why a host function fails, for error_text.
func (g *guest) refuse(code int32, format string, args ...any) int64 {
	g.why = fmt.Sprintf(format, args...)
	if code == abiDenied {
		g.denied = true
	}
	return int64(code)
}

func (g *guest) badPointer() int64 {
	return g.refuse(abiInvalid, "a pointer and length reach beyond the module's memory")
}

// give copies data to the guest's buffer if it fits, and returns its length in either case: when that is more than the limit, nothing was
// written and the guest calls again with a larger buffer.
func (g *guest) give(m api.Memory, ptr, limit uint64, data []byte) int64 {
	b, ok := m.Read(uint32(ptr), uint32(limit))
	if !ok {
		return g.badPointer()
	}
	if len(data) <= len(b) {
		g.spend(copy(b, data))
	}
	return int64(len(data))
}

// part copies what of data lies at offset to the guest's buffer, as much as fits, and returns how much it was; 0 is the end.
func (g *guest) part(m api.Memory, offset, ptr, limit uint64, data []byte) int64 {
	b, ok := m.Read(uint32(ptr), uint32(limit))
	if !ok {
		return g.badPointer()
	}
	n := copy(b, data[min(uint64(uint32(offset)), uint64(len(data))):])
	g.spend(n)
	return int64(n)
}

// wait runs f, which may take a while, and counts its time as the host's. When the guest's time was up meanwhile, the guest ends here.
func (g *guest) wait(f func()) {
	began := time.Now()
	g.pace.pause()
	f()
	g.host += time.Since(began)
	g.checkDeadline()
}

// outside is wait for what needs no processor of this server meanwhile.
func (g *guest) outside(f func()) {
	load := core.LoadOf(g.Context)
	g.wait(func() { // which may not return: a guest that ends here may be parked
		load.Outside(1)
		defer load.Outside(-1)
		f()
	})
}

// utf8Text reads a string argument: a name or a key, so it is short.
func (g *guest) utf8Text(m api.Memory, ptr, length uint64) (string, bool) {
	const most = 4 << 10 // more than any name or key has
	if uint32(length) > most {
		g.refuse(abiInvalid, "a name or key has at most %s", byteSize(most))
		return "", false
	}
	b, ok := m.Read(uint32(ptr), uint32(length))
	if !ok {
		g.badPointer()
		return "", false
	}
	if !utf8.Valid(b) {
		g.refuse(abiInvalid, "the text is not valid UTF-8")
		return "", false
	}
	return string(b), true
}
