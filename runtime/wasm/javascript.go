package wasm

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	_ "embed" // for the engine
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"sync"
	"unicode/utf8"

	"github.com/keyfire/keyfire/core"
)

// The JavaScript engine: QuickJS-ng (MIT licence, beside it) with javascript/engine.c, as javascript/build.sh builds it.
//
//go:embed javascript/engine.wasm.gz
var scriptEngineGzip []byte

// scriptEngineSum is the SHA-256 of the engine's binary. A change of engine is a change of this line.
const scriptEngineSum = "bfe315b446c8d3a9209a26f666a0a29bb100f86a395e9f377baea3cc0b16aa29"

// MaxScript is the most bytes of a script.
const MaxScript = 512 << 10

// scriptEngine is the engine made ready to take scripts.
type scriptEngine struct {
	binary []byte
	room   int32 // address of the memory that a script is put into
	size   int32 // address of its length
	data   int   // offset of the data section in binary
}

var loadScriptEngine = sync.OnceValues(func() (*scriptEngine, error) {
	z, err := gzip.NewReader(bytes.NewReader(scriptEngineGzip))
	if err != nil {
		return nil, fmt.Errorf("javascript engine: %w", err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		return nil, fmt.Errorf("javascript engine: %w", err)
	}
	if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) != scriptEngineSum {
		return nil, fmt.Errorf("javascript engine: its SHA-256 is %x, want %s", sum, scriptEngineSum)
	}
	m, err := parse(b)
	if err != nil {
		return nil, fmt.Errorf("javascript engine: %w", err)
	}
	e := &scriptEngine{binary: b}
	for name, to := range map[string]*int32{"script_room": &e.room, "script_size": &e.size} {
		if *to, err = m.address(name); err != nil {
			return nil, fmt.Errorf("javascript engine: %w", err)
		}
	}
	r := &reader{b: b, off: len(header)}
	for r.err == nil && r.off < len(b) {
		at := r.off
		id := r.byte()
		r.bytes(int(r.u32()))
		if id == secData {
			e.data = at
		}
	}
	if r.err != nil || e.data == 0 || m.dataCount != nil {
		return nil, errors.New("javascript engine: its sections are not as they should be")
	}
	return e, nil
})

// address returns the value of an exported constant global.
func (m *module) address(name string) (int32, error) {
	i, ok := m.export(name, kindGlobal)
	if !ok || int(i) >= len(m.globals) {
		return 0, fmt.Errorf("it does not export %s", name)
	}
	r := &reader{b: m.globals[i].init}
	if r.byte() != opI32Const {
		return 0, fmt.Errorf("%s is not a constant", name)
	}
	v := int32(r.signed(32))
	return v, r.err
}

// isScript reports whether what was uploaded is JavaScript: text, and not the beginning of a WebAssembly module.
func isScript(b []byte) bool {
	return len(b) > 0 && !bytes.HasPrefix(b, header[:4]) && bytes.IndexByte(b, 0) < 0 && utf8.Valid(b)
}

// link makes a module of a script and the engine. The script is one more piece of the engine's initial data, so the module is one like any other:
// it is compiled, cached, metered and started like any other.
func link(script []byte) ([]byte, error) {
	if len(script) > MaxScript {
		return nil, core.Errorf(core.CodeInvalidModule, "the script has %d bytes; at most %s are allowed", len(script), byteSize(MaxScript))
	}
	e, err := loadScriptEngine()
	if err != nil {
		return nil, err
	}
	r := &reader{b: e.binary, off: e.data}
	r.byte()
	size := int(r.u32())
	end := r.off + size
	count := r.u32()
	if r.err != nil {
		return nil, fmt.Errorf("javascript engine: %w", r.err)
	}
	content := appendU32(nil, count+2)
	content = append(content, e.binary[r.off:end]...)
	for _, piece := range []struct {
		at   int32
		data []byte
	}{{e.room, script}, {e.size, binary.LittleEndian.AppendUint32(nil, uint32(len(script)))}} {
		content = append(content, 0, opI32Const)
		content = appendSigned(content, int64(piece.at))
		content = append(content, opEnd)
		content = appendU32(content, uint32(len(piece.data)))
		content = append(content, piece.data...)
	}
	out := append(make([]byte, 0, len(e.binary)+len(script)+64), e.binary[:e.data]...)
	out = append(out, secData)
	out = appendU32(out, uint32(len(content)))
	out = append(out, content...)
	return append(out, e.binary[end:]...), nil
}

// checkScript runs a script up to its first call, and so finds out whether it is JavaScript and exports a function. The error says where
// it is not.
func (r *Runtime) checkScript(ctx context.Context, digest string, script []byte) error {
	r.unpublished.Store(digest, script)
	defer r.unpublished.Delete(digest)
	_, err := r.Invoke(ctx, Call{Module: digest, check: true})
	var e *Error
	if !errors.As(err, &e) {
		return err
	}
	if e.Class == core.ClassInvalidOutput { // it has none, because nothing was called
		return nil
	}
	return core.Errorf(core.CodeInvalidModule, "the script cannot be run: %s", e.Message)
}
