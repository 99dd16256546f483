package wasm

import (
	"fmt"
	"strings"
	"testing"

	"github.com/keyfire/keyfire/core"
)

// TestIntakeNames is promise S1 for what looks things up by name, or by the number of an import: as many of them as there may be, with names as long as fit
// into a module, are looked at in time that grows with the module only, and what is said of them is short. Each took from half a minute to three.
func TestIntakeNames(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("a", 780)
	named := func(typ []byte, more ...[]byte) []byte {
		exports := more
		for i := range maxExports - 1 {
			exports = append(exports, concat(name(long+fmt.Sprintf("%06d", i)), []byte{kindFunc, 0}))
		}
		return newModule().section(secType, vec(typ)...).section(secFunction, 1, 0).section(secMemory, 1, 0, 1).
			section(secExport, vec(exports...)...).section(secCode, vec(fn(nil))...).b
	}
	info, _, err := examine(named([]byte{0x60, 0, 0}, concat(name(exportStart), []byte{kindFunc, 0})))
	if err != nil || len(info.Callable) != maxExports {
		t.Fatalf("%d functions can be called, %v", len(info.Callable), err)
	}
	if said := info.checkCall(long); len(said) > 4<<10 || !strings.Contains(said, long[:10]) {
		t.Errorf("of a function that is not there, %d bytes are said", len(said))
	}
	if _, _, err := examine(named([]byte{0x60, 1, typeI32, 0})); core.CodeOf(err) != core.CodeInvalidModule {
		t.Errorf("functions that cannot be called: %v", err)
	}

	// A million calls of the last of the imports.
	four := []byte{0x60, 4, typeI32, typeI32, typeI32, typeI32, 1, typeI32}
	var imports [][]byte
	for range maxImports {
		imports = append(imports, concat(name(wasiModule), name("fd_read"), []byte{kindFunc, 1}))
	}
	last := appendU32(nil, maxImports-1)
	body := []byte{opUnreachable}
	for range 1_000_000 {
		body = append(append(body, opCall), last...)
		body = append(body, 0x1a)
	}
	_, m, err := examine(newModule().section(secType, vec([]byte{0x60, 0, 0}, four)...).section(secImport, vec(imports...)...).section(secFunction, 1, 0).
		section(secMemory, 1, 0, 1).section(secExport, vec(concat(name(exportStart), []byte{kindFunc}, appendU32(nil, maxImports)))...).
		section(secCode, vec(fn(nil, body...))...).b)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := rewrite(m); err != nil {
		t.Fatal(err)
	}

	// What is refused for a name does not repeat all of it.
	endless := strings.Repeat("b", 15<<20)
	for what, b := range map[string][]byte{
		"an import": newModule().section(secType, vec([]byte{0x60, 0, 0})...).section(secImport, vec(concat(name("env"), name(endless), []byte{kindFunc, 0}))...).b,
		"an export twice": newModule().section(secType, vec([]byte{0x60, 0, 0})...).section(secFunction, 1, 0).section(secMemory, 1, 0, 1).
			section(secExport, vec(concat(name(endless[:7<<20]), []byte{kindFunc, 0}), concat(name(endless[:7<<20]), []byte{kindFunc, 0}))...).
			section(secCode, vec(fn(nil))...).b,
	} {
		if _, _, err := examine(b); core.CodeOf(err) != core.CodeInvalidModule || len(err.Error()) > 4<<10 {
			t.Errorf("%s: %d bytes are said of it", what, len(fmt.Sprint(err)))
		}
	}
}
