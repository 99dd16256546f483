package wasm

import (
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/keyfire/keyfire/core"
)

// caller is a command that reads its input into memory at 0 and calls one host function with the first words of it as arguments.
func caller(fname string) []byte {
	host := abiFuncs[fname]
	sig := host.signature()
	code := concat(i32c(0), i32c(0), i32c(1<<15), []byte{opCall, 0, 0x1a}) // input_read to 0, and drop how much it was
	for i := range host.params {
		code = append(code, concat(i32c(int32(4*i)), []byte{opI32Load, 2, 0})...)
	}
	code = append(code, opCall, 1, 0x1a)
	read := concat([]byte{0x60}, sized([]byte{typeI32, typeI32, typeI32}), sized([]byte{typeI32}))
	called := concat([]byte{0x60}, sized(sig.params), sized(sig.results))
	return newModule().
		section(secType, vec([]byte{0x60, 0, 0}, read, called)...).
		section(secImport, vec(
			concat(name(keyfireModule), name("input_read"), []byte{kindFunc, 1}),
			concat(name(keyfireModule), name(fname), []byte{kindFunc, 2}))...).
		section(secFunction, 1, 0).
		section(secMemory, 1, 0, 1).
		section(secExport, vec(concat(name("_start"), []byte{kindFunc, 2}))...).
		section(secCode, vec(fn(nil, code...))...).b
}

// FuzzABI calls host functions with any arguments at all: the call must end, with a result or as a failure of the node, and never as one of the
// server's.
func FuzzABI(f *testing.F) {
	rt := setup(f, withHost, func(c *Config) {
		c.Engine, c.Egress.Resolver = EnginePlain, newNameServer(f, nil)
	})
	names := slices.Sorted(maps.Keys(abiFuncs))
	digests := make([]string, len(names))
	for i, n := range names {
		digests[i] = rt.publish(f, caller(n))
		f.Add(byte(i), []byte("\x20\x00\x00\x00\x10\x00\x00\x00\x30\x00\x00\x00\x08\x00\x00\x00\x38\x00\x00\x00\x04\x00\x00\x00........{\"url\":\"https://x\"}"))
		f.Add(byte(i), []byte("\xff\xff\xff\xff\xff\xff\xff\xff\x08\x00\x00\x00\xf0\xff\xff\xff\x00\x00\x00\x00\xff\xff\xff\xff"))
	}
	f.Fuzz(func(t *testing.T, which byte, raw []byte) {
		at := int(which) % len(names)
		_, err := rt.Invoke(t.Context(), Call{
			Account: core.DefaultAccount, Module: digests[at], Input: raw[:min(len(raw), MaxInput)], Grants: everything(), Workflow: "wf",
			Limits: core.Limits{Timeout: core.Duration(2 * time.Second)},
		})
		if _, ok := err.(*Error); err != nil && !ok {
			t.Fatalf("%s(%x): %v", names[at], raw, err)
		}
	})
}
