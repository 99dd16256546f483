package wasm

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"

	"github.com/keyfire/keyfire/core"
)

// scriptModule is the import module of the JavaScript engine. No other module is linked with it: it is not in hostSignature.
const scriptModule = "env"

// instantiateScript makes the functions importable that the engine asks for.
func instantiateScript(ctx context.Context, rt wazero.Runtime) error {
	b := rt.NewHostModuleBuilder(scriptModule)
	i32 := api.ValueTypeI32
	add := func(name string, params int, results int, f func(g *guest, p []uint64) uint32) {
		fn := api.GoModuleFunc(func(ctx context.Context, _ api.Module, stack []uint64) {
			v := f(guestOf(ctx), stack)
			if results > 0 {
				stack[0] = uint64(v)
			}
		})
		types := []api.ValueType{i32, i32, i32, i32, i32}
		b.NewFunctionBuilder().WithGoModuleFunction(fn, types[:params], types[:results]).Export(name)
	}
	nothing := func(*guest, []uint64) uint32 { return 0 }
	add("host_get_timezone_offset", 2, 1, nothing) // UTC
	add("host_interrupt", 0, 1, nothing)           // metering stops scripts
	add("host_promise_rejection", 3, 0, nothing)   // a promise that nobody waits for
	add("host_module_normalize", 2, 1, nothing)    // no imports
	add("host_module_load", 2, 1, nothing)
	add("host_call", 5, 1, scriptCall)
	if _, err := b.Instantiate(ctx); err != nil {
		return fmt.Errorf("host module %s: %w", scriptModule, err)
	}
	return nil
}

// scriptCall is the prelude's one function, ask(name, argument).
func scriptCall(g *guest, p []uint64) uint32 {
	s := g.inst.script
	must := func(err error) {
		var own *Error
		if errors.As(err, &own) {
			g.abort(own)
		}
		if err != nil {
			panic(err) // how the guest ended, one level deeper
		}
	}
	var words [2]string
	m := g.inst.mod.Memory()
	argc, argv := uint32(p[3]), uint32(p[4])
	for i := range words {
		if argc <= uint32(i) {
			break
		}
		v, ok := m.ReadUint32Le(argv + 4*uint32(i))
		if !ok {
			break
		}
		var err error
		words[i], err = s.read(g, v)
		must(err)
	}
	answer, err := s.text(g, string(g.scriptAnswer(words[0], []byte(words[1]))))
	must(err)
	return answer
}

// scriptReply is what the prelude reads.
type scriptReply struct {
	Value any          `json:"value,omitempty"`
	Error *scriptError `json:"error,omitempty"`
}

type scriptError struct {
	Kind    string `json:"kind"` // an error class
	Message string `json:"message"`
}

// scriptFuncs are what a prelude may ask for. Each gives a value for JSON, or a code of the ABI whose words are in g.why.
var scriptFuncs = map[string]func(g *guest, argument []byte) (any, int32){
	"log":    scriptLog,
	"config": func(g *guest, _ []byte) (any, int32) { v, _ := g.configValue(""); return v, abiOK },
	"secret": func(g *guest, b []byte) (any, int32) {
		var name string
		if json.Unmarshal(b, &name) != nil {
			return nil, int32(g.refuse(abiInvalid, "a secret is named by a text"))
		}
		return g.scriptText(g.secret(name))
	},
	"kv_get": scriptKVGet,
	"kv_put": scriptKVPut,
	"kv_cas": scriptKVCAS,
	"http":   scriptHTTP,
	"random": scriptRandom,
	"sleep":  scriptSleep,
	"decode": scriptDecode,
}

// scriptAnswer does what a script asks for.
func (g *guest) scriptAnswer(name string, argument []byte) []byte {
	if done := g.scriptEnd(name, argument); done {
		return nil
	}
	f := scriptFuncs[name]
	if f == nil {
		g.abort(fmt.Errorf("javascript prelude: it asks for %q", name))
	}
	g.spend(callWork + 16*len(argument))
	// The engine's own functions, which no other module must ask the host for, are not counted.
	if name != "decode" && name != "random" {
		g.countCall()
	}
	value, code := f(g, argument)
	reply := scriptReply{Value: value}
	if code != abiOK {
		reply = scriptReply{Error: &scriptError{Kind: scriptClass(code), Message: g.why}}
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(reply); err != nil {
		g.abort(fmt.Errorf("javascript: %w", err))
	}
	return b.Bytes()
}

// scriptEnd takes the script's answer, or its failure. What the script does afterwards is of no consequence.
func (g *guest) scriptEnd(name string, argument []byte) bool {
	switch name {
	case "done":
		g.write(argument)
		g.exited, g.code = true, 0
	case "failed":
		g.exited, g.code = true, 1
		// The engine says "out of memory" when the host gives it no more; the host says how much there was.
		if !g.memory.refused || !bytes.Contains(argument, []byte("out of memory")) {
			g.said = bytes.Clone(argument)
		}
	default:
		return false
	}
	return true
}

// scriptClass is the class of a host function's failure: that of the node, unless the script catches it.
func scriptClass(code int32) string {
	switch code {
	case abiDenied:
		return string(core.ClassDenied)
	case abiUnavailable, abiTimeout:
		return string(core.ClassUnavailable)
	}
	return string(core.ClassFailed)
}

// scriptText gives a text, or nothing with a code.
func (g *guest) scriptText(text string, code int32) (any, int32) {
	if code != abiOK {
		return nil, code
	}
	if !utf8.ValidString(text) {
		return nil, int32(g.refuse(abiInvalid, "the value is not a text"))
	}
	return text, abiOK
}

func scriptLog(g *guest, b []byte) (any, int32) {
	var line struct{ Level, Text string }
	if json.Unmarshal(b, &line) != nil {
		return nil, int32(g.refuse(abiInvalid, "a log line is a text"))
	}
	g.log.add(line.Level, []byte(line.Text))
	return nil, abiOK
}

func scriptKVGet(g *guest, b []byte) (any, int32) {
	var a struct{ Key string }
	if !g.mayKeep(grantKVRead) {
		return nil, abiDenied
	}
	if json.Unmarshal(b, &a) != nil || !g.validKey(a.Key) {
		return nil, abiInvalid
	}
	value, code := g.kvRead(a.Key)
	if code == abiNotFound {
		return nil, abiOK // null
	}
	return g.scriptText(string(value), code)
}

func scriptKVPut(g *guest, b []byte) (any, int32) {
	var a struct {
		Key   string
		Value *string
	}
	if !g.mayKeep(grantKVWrite) {
		return nil, abiDenied
	}
	if json.Unmarshal(b, &a) != nil || !g.validKey(a.Key) || !g.validValue(a.Value) {
		return nil, abiInvalid
	}
	return nil, int32(g.kvSwap(a.Key, optional(a.Value), false, nil))
}

func scriptKVCAS(g *guest, b []byte) (any, int32) {
	var a struct {
		Key        string
		Old, Value *string
	}
	if !g.mayKeep(grantKVWrite) {
		return nil, abiDenied
	}
	if json.Unmarshal(b, &a) != nil || !g.validKey(a.Key) || !g.validValue(a.Old) || !g.validValue(a.Value) {
		return nil, abiInvalid
	}
	code := int32(g.kvSwap(a.Key, optional(a.Value), true, optional(a.Old)))
	if code == abiConflict {
		return false, abiOK
	}
	return true, code
}

// optional returns the bytes of a text, nil for none.
func optional(s *string) []byte {
	if s == nil {
		return nil
	}
	return append([]byte{}, *s...)
}

func (g *guest) validValue(v *string) bool {
	if v != nil && len(*v) > MaxKVValue {
		g.refuse(abiTooLarge, "a value has at most %s", byteSize(MaxKVValue))
		return false
	}
	return true
}

// mayKeep checks the grant of a guest that was linked without it, as scripts are.
func (g *guest) mayKeep(need grant) bool {
	if grantsOf(g.call.Grants)&need != 0 {
		return true
	}
	line := "grants: {kv: read}"
	if need == grantKVWrite {
		line = "grants: {kv: write}"
	}
	g.refuse(abiDenied, "the values of the workflow are not granted; the node would need %s", line)
	return false
}

func scriptHTTP(g *guest, b []byte) (any, int32) {
	var a struct {
		requestHead
		Text   *string `json:"text"`
		Base64 []byte  `json:"base64"`
	}
	if err := json.Unmarshal(b, &a); err != nil {
		return nil, int32(g.refuse(abiInvalid, `a request is {method: "GET", url: "https://...", headers: {Name: "value"}, body: "..."}`))
	}
	body := a.Base64
	if a.Text != nil {
		body = []byte(*a.Text)
	}
	in, code := g.fetch(a.requestHead, body)
	if code != abiOK {
		return nil, code
	}
	out := map[string]any{"status": in.status, "headers": in.header}
	if utf8.Valid(in.body) {
		out["text"] = string(in.body)
	} else {
		out["base64"] = in.body
	}
	return out, abiOK
}

func scriptRandom(g *guest, b []byte) (any, int32) {
	var n int
	if json.Unmarshal(b, &n) != nil || n < 0 || n > 64<<10 {
		return nil, int32(g.refuse(abiInvalid, "at most %s of random bytes are given at a time", byteSize(64<<10)))
	}
	if g.asked != nil {
		g.asked.random++
	}
	out := make([]byte, n)
	g.fillRandom(out)
	return out, abiOK
}

func scriptSleep(g *guest, b []byte) (any, int32) {
	var ms float64
	if json.Unmarshal(b, &ms) != nil || ms < 0 {
		return nil, int32(g.refuse(abiInvalid, "a time is a number of milliseconds"))
	}
	g.sleep(time.Duration(min(ms, 3_600_000) * float64(time.Millisecond)))
	return nil, abiOK
}

// scriptDecode turns bytes into text.
func scriptDecode(g *guest, b []byte) (any, int32) {
	var text string
	if json.Unmarshal(b, &text) != nil {
		return nil, int32(g.refuse(abiInvalid, "bytes come in base64"))
	}
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, int32(g.refuse(abiInvalid, "bytes come in base64"))
	}
	return map[string]any{"valid": utf8.Valid(raw), "text": strings.ToValidUTF8(string(raw), "\uFFFD")}, abiOK
}

// asScript reports whether an error is what a script said.
func asScript(err error) bool { return errors.As(err, new(errScript)) }
