package wasm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/tetratelabs/wazero/api"

	"github.com/keyfire/keyfire/core"
)

// Bounds of what nodes keep between runs.
const (
	MaxKVKey   = 512      // bytes of a key
	MaxKVValue = 64 << 10 // bytes of a value
	MaxKVKeys  = 10_000   // of one workflow
	MaxKVBytes = 16 << 20 // of one workflow's keys and values together
)

// KV keeps values for nodes from one run to the next. Each workflow has its own; nothing reaches another's. Implementations are safe for
// concurrent use.
type KV interface {
	// Get returns a value. CodeNotFound means that the key has none.
	Get(ctx context.Context, account, workflow, key string) ([]byte, error)
	// Swap sets a value, or removes it for a nil one. With check set, it does so only if the value is old (nil: there is none) and
	// reports whether it was. CodeQuotaExhausted means that the workflow keeps as much as it may.
	Swap(ctx context.Context, account, workflow, key string, value []byte, check bool, old []byte) (swapped bool, err error)
}

// errNoKV is what a runtime without a KV says.
var errNoKV = errors.New("this runtime keeps no values")

type noKV struct{}

func (noKV) Get(context.Context, string, string, string) ([]byte, error) { return nil, errNoKV }
func (noKV) Swap(context.Context, string, string, string, []byte, bool, []byte) (bool, error) {
	return false, errNoKV
}

// none, as a length, stands for "no value".
const none = 0xffffffff

func (g *guest) kvKey(m api.Memory, ptr, length uint64) (string, int32) {
	key, ok := g.utf8Text(m, ptr, length)
	switch {
	case !ok, !g.validKey(key):
		return "", abiInvalid
	}
	return key, abiOK
}

func (g *guest) validKey(key string) bool {
	if key == "" || len(key) > MaxKVKey || strings.Contains(key, "\x00") { // which not every database takes
		g.refuse(abiInvalid, "a key has 1 to %d bytes, none of which is 0", MaxKVKey)
		return false
	}
	return true
}

// kvValue reads a value argument; nil is none.
func (g *guest) kvValue(m api.Memory, ptr, length uint64) ([]byte, int32) {
	if uint32(length) == none {
		return nil, abiOK
	}
	b, ok := m.Read(uint32(ptr), uint32(length))
	if !ok {
		return nil, int32(g.badPointer())
	}
	if len(b) > MaxKVValue {
		return nil, int32(g.refuse(abiTooLarge, "a value has at most %s", byteSize(MaxKVValue)))
	}
	return append(make([]byte, 0, len(b)), b...), abiOK
}

func kvGet(g *guest, m api.Memory, p []uint64) int64 {
	key, code := g.kvKey(m, p[0], p[1])
	if code != abiOK {
		return int64(code)
	}
	value, code := g.kvRead(key)
	if code != abiOK {
		return int64(code)
	}
	return g.give(m, p[2], p[3], value)
}

// kvRead returns the value of a key.
func (g *guest) kvRead(key string) (value []byte, code int32) {
	var err error
	g.wait(func() { value, err = g.kv.Get(g.timed(), g.call.Account, g.call.Workflow, key) })
	if core.CodeOf(err) == core.CodeNotFound {
		return nil, int32(g.refuse(abiNotFound, "the key has no value"))
	}
	if err != nil {
		return nil, int32(g.kvFailed(err))
	}
	return value, abiOK
}

func kvPut(g *guest, m api.Memory, p []uint64) int64 {
	key, code := g.kvKey(m, p[0], p[1])
	if code != abiOK {
		return int64(code)
	}
	value, code := g.kvValue(m, p[2], p[3])
	if code != abiOK {
		return int64(code)
	}
	return g.kvSwap(key, value, false, nil)
}

func kvCAS(g *guest, m api.Memory, p []uint64) int64 {
	key, code := g.kvKey(m, p[0], p[1])
	if code != abiOK {
		return int64(code)
	}
	old, code := g.kvValue(m, p[2], p[3])
	if code != abiOK {
		return int64(code)
	}
	value, code := g.kvValue(m, p[4], p[5])
	if code != abiOK {
		return int64(code)
	}
	return g.kvSwap(key, value, true, old)
}

func (g *guest) kvSwap(key string, value []byte, check bool, old []byte) int64 {
	var swapped bool
	var err error
	g.wait(func() { swapped, err = g.kv.Swap(g.timed(), g.call.Account, g.call.Workflow, key, value, check, old) })
	switch {
	case err != nil:
		return g.kvFailed(err)
	case !swapped:
		return g.refuse(abiConflict, "the value is another one by now")
	}
	return int64(abiOK)
}

// kvFailed tells the guest what it can act on; anything else ends the invocation as the server's failure.
func (g *guest) kvFailed(err error) int64 {
	var e *core.Error
	if errors.As(err, &e) {
		switch e.Code {
		case core.CodeQuotaExhausted:
			return g.refuse(abiTooLarge, "the workflow keeps as much as it may: %d keys and %s", MaxKVKeys, byteSize(MaxKVBytes))
		case core.CodeOverloaded, core.CodeStoreUnavailable:
			return g.refuse(abiUnavailable, "the store does not take the value now")
		}
	}
	g.abort(fmt.Errorf("kv: %w", err))
	return 0
}

// SameValue reports whether two values of a KV are the same; nil is no value, which an empty one is not.
func SameValue(a, b []byte) bool { return (a == nil) == (b == nil) && bytes.Equal(a, b) }
