package wasm

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/tetratelabs/wazero"
)

// followed checks that the values of a function are followed exactly: where a block ends, there are as many as the block gives. It returns how many ends it saw.
func followed(t *testing.T, what string, w *rewriter, i int) (ends int) {
	t.Helper()
	var v values
	var dead []bool // for each open block, whether its rest is never reached
	body := w.m.bodies[i]
	results := len(w.m.types[w.m.funcs[i]].results)
	r := &reader{b: body.code}
	unreached := false
	for r.left() > 0 {
		in := r.next()
		switch in.op {
		case opEnd, opElse:
			want := results
			if n := len(v.bases); n > 0 {
				want = v.bases[n-1] + len(v.types[n-1].results)
			}
			if !unreached {
				ends++
				if v.now != want && !v.vectors || v.now < want {
					t.Fatalf("%s, function %d at %d: there seem to be %d values, and are %d", what, i, in.start, v.now, want)
				}
			}
			if in.op == opElse {
				unreached = dead[len(dead)-1]
			} else if n := len(dead); n > 0 {
				unreached, dead = dead[n-1], dead[:n-1]
			}
		case opBlock, opLoop, opIf:
			dead = append(dead, unreached)
		}
		v.step(w, in)
		switch in.op {
		case opUnreachable, opBr, opBrTable, opReturn:
			unreached = true
		}
	}
	return ends
}

// S2: the frame of a function is estimated by how many values it may keep there. That is followed exactly in all programs there are here, in every block that can be reached.
func TestFramesAreFollowedS2(t *testing.T) {
	t.Parallel()
	modules := map[string][]byte{"guest": guestModule(t), "sdk": sdkGuest(t, "./conformance", true)}
	if source, err := engineSource(); err == nil {
		rt := wazero.NewRuntimeWithConfig(t.Context(), wazero.NewRuntimeConfigInterpreter()) // it validates alike, and compiles faster
		defer rt.Close(t.Context())
		files, err := filepath.Glob(filepath.Join(source, "internal", "integration_test", "spectest", "v2", "testdata", "*.wasm"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if m, err := parse(b); err != nil || slices.ContainsFunc(m.imports, func(d importDecl) bool { return d.kind != kindFunc }) {
				continue
			}
			if c, err := rt.CompileModule(t.Context(), b); err == nil {
				modules[filepath.Base(file)] = b
				c.Close(t.Context())
			}
		}
	}
	ends := 0
	for what, b := range modules {
		m, err := parse(b)
		if err != nil {
			t.Fatal(err)
		}
		w := newRewriter(m)
		if err := w.run(); err != nil {
			continue // it could not be made an instance of
		}
		for i := range m.bodies {
			ends += followed(t, what, w, i)
		}
	}
	t.Logf("%d modules, %d ends of blocks", len(modules), ends)
	if ends < 50_000 {
		t.Error("too little was followed")
	}
}

// The frame of a function that keeps much is as large, however little code that takes: values over a call, results of a call, vectors; and a leaf with a large frame counts its depth.
func TestFrameOfLittleCode(t *testing.T) {
	t.Parallel()
	frameOf := func(b []byte, i int) plan {
		t.Helper()
		m, err := parse(b)
		if err != nil {
			t.Fatal(err)
		}
		w := newRewriter(m)
		if err := w.run(); err != nil {
			t.Fatal(err)
		}
		locals := 0
		for _, l := range m.bodies[i].locals {
			locals += int(l.count)
		}
		p, err := w.plan(&m.bodies[i], locals, m.types[m.funcs[i]])
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	kinds := deepest()
	for what, least := range map[string]int32{"small frames": 0, "120 globals": 8 * 120, "2000 globals": 8 * 2000, "20 vectors": 16 * 20, "2000 vectors": 16 * 2000} {
		if got := frameOf(kinds[what], 0).frame; got < least+128 || got > 2*least+int32(len(kinds[what]))+256 {
			t.Errorf("%s: a frame of %d, of %d that it keeps", what, got, least)
		}
	}
	leaf := func(locals uint32) plan {
		return frameOf(newModule().section(secType, vec([]byte{0x60, 0, 0})...).section(secFunction, 1, 0).section(secMemory, 1, 0, 1).
			section(secExport, vec(concat(name("_start"), []byte{kindFunc, 0}))...).
			section(secCode, vec(fn([][]byte{append(appendU32(nil, locals), typeI64)}, 1))...).b, 0)
	}
	if p := leaf(10); p.depth {
		t.Errorf("a leaf with a frame of %d counts its depth", p.frame)
	}
	if p := leaf(leafFrame / 8); !p.depth || !p.pays {
		t.Errorf("a leaf with a frame of %d does not count its depth", p.frame)
	}
}
