package wasm

import (
	"bytes"
	"context"
	_ "embed" // for the prelude
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/tetratelabs/wazero/api"

	"github.com/keyfire/keyfire/core"
)

// The engine of the JavaScript door: QuickJS-ng as the npm package quickjs-wasi ships it. It is no part of this program: the operator
// installs it, and nothing but these very bytes is taken for it.
const (
	ScriptEnginePackage = "quickjs-wasi"
	ScriptEngineVersion = "3.6.2"
	ScriptEngineDigest  = "sha256:d4c9375f2b1ca4dc95f72c8aa2982a7a9951ac8011490d79c6582df732b4bbd9"
	ScriptEngineFile    = "quickjs.wasm" // in the package
)

// MaxScript is the most bytes of a script.
const MaxScript = 512 << 10

// scriptName is what errors call a script. Its real name is not part of its digest, so it cannot be part of its behaviour.
const scriptName = "node.js"

// preludeName is what errors call the prelude.
const preludeName = "keyfire"

// scriptStack is how much of its own stack the engine may use, in bytes, of the 1 MiB it has: then a script gets a RangeError.
const scriptStack = 768 << 10

//go:embed javascript/prelude.js
var scriptPrelude []byte

// isScript reports whether what was uploaded is JavaScript: text, and not the beginning of a WebAssembly module.
func isScript(b []byte) bool {
	return len(b) > 0 && !bytes.HasPrefix(b, header[:4]) && bytes.IndexByte(b, 0) < 0 && utf8.Valid(b)
}

func isScriptEngine(b []byte) bool { return digest(b) == ScriptEngineDigest }

// CheckScriptEngine reports whether binary is the engine this version runs scripts on. The error says what would be.
func CheckScriptEngine(binary []byte) error {
	if isScriptEngine(binary) {
		return nil
	}
	return core.Errorf(core.CodeInvalidModule, "it has digest %s; the engine is %s of %s %s, with digest %s",
		digest(binary), ScriptEngineFile, ScriptEnginePackage, ScriptEngineVersion, ScriptEngineDigest)
}

// inspectScript tells what a script is. Which host functions it uses shows when it calls them.
func inspectScript(script []byte) (Info, error) {
	if len(script) > MaxScript {
		return Info{}, core.Errorf(core.CodeInvalidModule, "the script has %d bytes; at most %s are allowed", len(script), byteSize(MaxScript))
	}
	return Info{Door: DoorJavaScript, Digest: digest(script), Size: int64(len(script))}, nil
}

// errNoEngine tells an operator how to get the engine.
func errNoEngine(why string) error {
	return core.Errorf(core.CodeInvalidModule, "the file is text, so it is a script, and this server cannot run JavaScript: its engine %s; get it with: npm pack %s@%s && keyfire engine install %s-%s.tgz",
		why, ScriptEnginePackage, ScriptEngineVersion, ScriptEnginePackage, ScriptEngineVersion)
}

// scriptEngine reads the engine's bytes.
func (r *Runtime) scriptEngine() ([]byte, error) {
	if r.config.ScriptEngine == "" {
		return nil, errNoEngine("is not installed")
	}
	b, err := os.ReadFile(r.config.ScriptEngine)
	if errors.Is(err, os.ErrNotExist) {
		return nil, errNoEngine("is not installed")
	}
	if err != nil {
		return nil, fmt.Errorf("javascript engine: %w", err)
	}
	if !isScriptEngine(b) {
		return nil, errNoEngine("is not the one this version takes (its digest is " + digest(b) + ")")
	}
	return b, nil
}

// loadScript makes a program of a script: the engine's module, which all scripts share, and the script's text.
func (r *Runtime) loadScript(ctx context.Context, script []byte) (*program, error) {
	info, err := inspectScript(script)
	if err != nil {
		return nil, err
	}
	engine, release, err := r.modules.acquire(ctx, "", ScriptEngineDigest)
	if err != nil {
		return nil, err
	}
	info.MinMemory = engine.info.MinMemory
	return &program{
		rewritten: engine.rewritten, compiled: engine.compiled, info: info, size: 4<<10 + int64(len(script)),
		script: script, releaseEngine: release,
	}, nil
}

// scriptGuest is the host's handle on an instance of the engine.
type scriptGuest struct {
	call, execute, pending, newString, getString, freeCString, isException, getException, undefined, malloc, free api.Function

	room              uint32 // 16 bytes of the guest's memory: a length, and the arguments of a call
	begin, wake, load uint32 // functions of the prelude
	say               uint32
}

// scriptFunc is a call into the engine by name, for what is called once.
func scriptFunc(g *guest, name string, args ...uint64) (uint32, error) {
	f := g.inst.mod.ExportedFunction(name)
	if f == nil {
		return 0, fmt.Errorf("javascript engine: it has no function %s", name)
	}
	return invoke(g, f, args...)
}

// invoke calls a function of the engine that gives an i32 or nothing.
func invoke(g *guest, f api.Function, args ...uint64) (uint32, error) {
	res, err := f.Call(g, args...)
	if err != nil || len(res) == 0 {
		return 0, err
	}
	return uint32(res[0]), nil
}

// errScript is what a script threw, in words.
type errScript struct{ said string }

func (e errScript) Error() string { return e.said }

// bindScript looks up the engine's functions in an instance.
func bindScript(g *guest) (*scriptGuest, error) {
	s := &scriptGuest{}
	for name, to := range map[string]*api.Function{
		"qjs_call": &s.call, "qjs_execute_pending_job": &s.execute, "qjs_is_job_pending": &s.pending, "qjs_new_string": &s.newString,
		"qjs_get_string_len": &s.getString, "qjs_free_cstring": &s.freeCString, "qjs_is_exception": &s.isException, "qjs_get_exception": &s.getException,
		"qjs_get_undefined": &s.undefined, "wasm_malloc": &s.malloc, "wasm_free": &s.free,
	} {
		if *to = g.inst.mod.ExportedFunction(name); *to == nil {
			return nil, fmt.Errorf("javascript engine: it has no function %s", name)
		}
	}
	return s, nil
}

// rebind returns a handle on another instance whose memory is the same.
func (s *scriptGuest) rebind(g *guest) (*scriptGuest, error) {
	bound, err := bindScript(g)
	if err == nil {
		bound.room, bound.begin, bound.wake, bound.load, bound.say = s.room, s.begin, s.wake, s.load, s.say
	}
	return bound, err
}

// startScript starts the engine, the prelude and then the script, up to its first call. An errScript is the script's own.
func startScript(g *guest, script []byte) error {
	// What the engine seeds with the time, the prelude replaces. So the engine gets no time, and the same bytes each time.
	g.still = true
	s, err := bindScript(g)
	if err != nil {
		return err
	}
	g.inst.script = s
	if _, err := scriptFunc(g, exportInitialize); err != nil {
		return err
	}
	if _, err := scriptFunc(g, "qjs_init"); err != nil {
		return err
	}
	if _, err := scriptFunc(g, "qjs_set_max_stack_size", scriptStack); err != nil {
		return err
	}
	if s.room, err = invoke(g, s.malloc, 16); err != nil {
		return err
	}
	make, err := s.eval(g, scriptPrelude, preludeName, 0)
	if err != nil {
		return err
	}
	name, err := s.put(g, "ask\x00")
	if err != nil {
		return err
	}
	ask, err := scriptFunc(g, "qjs_new_host_function", uint64(name), 3, 0)
	if err != nil {
		return err
	}
	prelude, err := s.apply(g, make, ask)
	if err != nil {
		return err
	}
	// In one order, because each leaves something in the engine's memory.
	for _, f := range []struct {
		name string
		to   *uint32
	}{{"begin", &s.begin}, {"wake", &s.wake}, {"load", &s.load}, {"say", &s.say}} {
		at, err := s.put(g, f.name+"\x00")
		if err != nil {
			return err
		}
		if *f.to, err = scriptFunc(g, "qjs_get_prop_string", uint64(prelude), uint64(at)); err != nil {
			return err
		}
	}
	g.still = false
	return s.evaluate(g, script)
}

// evaluate runs the script's top level, and hands its exports to the prelude.
func (s *scriptGuest) evaluate(g *guest, script []byte) error {
	const module = 1
	promise, err := s.eval(g, script, scriptName, module)
	if err != nil {
		return err
	}
	if err := s.drain(g); err != nil {
		return err
	}
	state, err := scriptFunc(g, "qjs_promise_state", uint64(promise))
	if err != nil {
		return err
	}
	result, err := scriptFunc(g, "qjs_promise_result", uint64(promise))
	if err != nil {
		return err
	}
	const pending, rejected = 0, 2
	switch state {
	case pending:
		return errScript{"its top level waits for a promise that nothing will settle (" + scriptName + ")"}
	case rejected:
		return s.thrown(g, result)
	}
	_, err = s.apply(g, s.load, result)
	return err
}

// runScript calls a script that is started. How it fared is in g.
func runScript(g *guest) error {
	s := g.inst.script
	input, err := s.text(g, string(g.call.Input))
	if err != nil {
		return err
	}
	if _, err := s.apply(g, s.begin, input); err != nil {
		return err
	}
	for {
		if err := s.drain(g); err != nil {
			return err
		}
		if g.exited {
			return nil
		}
		if _, err := s.apply(g, s.wake); err != nil {
			return err
		}
	}
}

// drain lets promises go on until none can, or the script has answered.
func (s *scriptGuest) drain(g *guest) error {
	for !g.exited {
		more, err := invoke(g, s.pending)
		if err != nil || more == 0 {
			return err
		}
		if _, err := invoke(g, s.execute); err != nil {
			return err
		}
	}
	return nil
}

// eval evaluates source text and returns its value.
func (s *scriptGuest) eval(g *guest, source []byte, name string, flags uint64) (uint32, error) {
	at, err := s.put(g, string(source)+"\x00")
	if err != nil {
		return 0, err
	}
	file, err := s.put(g, name+"\x00")
	if err != nil {
		return 0, err
	}
	v, err := scriptFunc(g, "qjs_eval", uint64(at), uint64(len(source)), uint64(file), flags)
	if err != nil {
		return 0, err
	}
	return v, s.check(g, v)
}

// apply calls a function with at most one argument.
func (s *scriptGuest) apply(g *guest, f uint32, args ...uint32) (uint32, error) {
	this, err := invoke(g, s.undefined)
	if err != nil {
		return 0, err
	}
	for _, a := range args {
		g.inst.mod.Memory().WriteUint32Le(s.room+8, a)
	}
	v, err := invoke(g, s.call, uint64(f), uint64(this), uint64(len(args)), uint64(s.room+8))
	if err != nil {
		return 0, err
	}
	return v, s.check(g, v)
}

// check returns what was thrown if v is an exception.
func (s *scriptGuest) check(g *guest, v uint32) error {
	thrown, err := invoke(g, s.isException, uint64(v))
	if err != nil || thrown == 0 {
		return err
	}
	e, err := invoke(g, s.getException)
	if err != nil {
		return err
	}
	return s.thrown(g, e)
}

// thrown describes an exception: in the prelude's words, once that is there.
func (s *scriptGuest) thrown(g *guest, e uint32) error {
	if s.say == 0 {
		text, err := s.read(g, e)
		return errors.Join(fmt.Errorf("javascript prelude: %s", text), err)
	}
	say := s.say
	s.say = 0 // if that throws, too, there is nobody to ask
	said, err := s.apply(g, say, e)
	s.say = say
	if err != nil {
		return err
	}
	text, err := s.read(g, said)
	if err != nil {
		return err
	}
	return errScript{text}
}

// put copies bytes into memory of the engine's. When there is none left it gives an *Error: it is also called when no guest runs whom a panic would end.
func (s *scriptGuest) put(g *guest, data string) (uint32, error) {
	at, err := invoke(g, s.malloc, uint64(len(data)))
	if err != nil {
		return 0, err
	}
	if at == 0 || !g.inst.mod.Memory().WriteString(at, data) {
		return 0, g.outOfMemory(0, nil)
	}
	return at, nil
}

// text makes a string of the engine's.
func (s *scriptGuest) text(g *guest, data string) (uint32, error) {
	at, err := s.put(g, data+"\x00")
	if err != nil {
		return 0, err
	}
	v, err := invoke(g, s.newString, uint64(at), uint64(len(data)))
	if err != nil {
		return 0, err
	}
	_, err = invoke(g, s.free, uint64(at))
	return v, err
}

// scriptText is the most bytes of text that the host takes from a script at once, of which it makes some copies. A request's body and a script's output have a
// megabyte.
const scriptText = 8 << 20

// read returns the text of a value of the engine's. For one that is too long it gives an *Error.
func (s *scriptGuest) read(g *guest, v uint32) (string, error) {
	at, err := invoke(g, s.getString, uint64(v), uint64(s.room))
	if err != nil {
		return "", err
	}
	m := g.inst.mod.Memory()
	n, _ := m.ReadUint32Le(s.room)
	b, ok := m.Read(at, n)
	if at == 0 || !ok {
		return "", nil
	}
	if len(b) > scriptText {
		return "", errorf(core.ClassLimit, "the script handed a text of more than %s to the host", byteSize(scriptText))
	}
	if len(b) > smallText {
		if err := g.tryTake(useHost, 3*int64(len(b))); err != nil {
			return "", err
		}
	}
	text := strings.ToValidUTF8(string(b), "\uFFFD") // a lone surrogate is not
	_, err = invoke(g, s.freeCString, uint64(at))
	return text, err
}

// scriptFailure turns an errScript into the node's failure. Other errors stay.
func (g *guest) scriptFailure(err error) error {
	var own *Error
	if errors.As(err, &own) && g.stop == nil {
		g.stop = own
		return own
	}
	var said errScript
	if !errors.As(err, &said) {
		return err
	}
	g.stop = &Error{Class: core.ClassFailed, Message: message(said.said, "the script failed while it was loaded")}
	return g.stop
}

// checkScript runs a script up to its first call, and so finds out whether it is JavaScript and exports a function. The error, a *core.Error of
// CodeInvalidModule, says where it is not. A script that does at its top level what it may do only in a call passes: there is no
// call it could do that for.
func (r *Runtime) checkScript(ctx context.Context, script []byte) error {
	p, err := r.loadScript(ctx, script)
	if err != nil {
		return err
	}
	defer p.releaseEngine()
	share, err := r.reserve(ctx, r.bootCost(p))
	if err != nil {
		return err
	}
	defer r.memory.end(share)
	s, err := r.boot(p, [32]byte{}, time.Unix(0, 0))
	if err == nil {
		s.close()
		return nil
	}
	var said errScript
	if errors.As(err, &said) {
		return core.Errorf(core.CodeInvalidModule, "the script cannot be run: %s", cut(message(said.said, "it fails without a word")))
	}
	if errors.As(err, new(errNotPoolable)) {
		return nil
	}
	return err
}
