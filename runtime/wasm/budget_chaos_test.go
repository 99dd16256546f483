package wasm

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"sync"
	"testing"
	"time"

	"github.com/keyfire/keyfire/core"
)

// deepest are guests that nest their calls without end, with frames for which the engine takes as much as it can: values that are all needed after the call.
func deepest() map[string][]byte {
	endless := func(globals [][]byte, before []byte, add []byte, n int) []byte {
		code := concat(before, []byte{opCall, 0})
		for range n - 1 {
			code = append(code, add...)
		}
		m := newModule().section(secType, vec([]byte{0x60, 0, 0})...).section(secFunction, 1, 0).section(secMemory, 1, 0, 1)
		return m.section(secGlobal, vec(globals...)...).section(secExport, vec(concat(name("_start"), []byte{kindFunc, 0}))...).
			section(secCode, vec(fn(nil, append(code, opGlobalSet, 0)...))...).b
	}
	number, vector := concat([]byte{typeI64, 1, 0x42, 1}, []byte{opEnd}), concat([]byte{typeV128, 1, opPrefixVector, 12}, make([]byte, 16), []byte{opEnd})
	kinds := map[string][]byte{"small frames": command(nil, 0, opCall, 0)}
	for _, n := range []int{20, 120, 2000} {
		var globals [][]byte
		var get, load []byte
		for i := range n {
			globals = append(globals, number)
			get = appendU32(append(get, opGlobalGet), uint32(i))
			load = appendU32(append(load, concat(i32c(0), []byte{opPrefixVector, 0, 0})...), uint32(16*i))
		}
		kinds[fmt.Sprint(n, " globals")] = endless(globals, get, []byte{0x7c}, n)
		kinds[fmt.Sprint(n, " vectors")] = endless([][]byte{vector}, load, []byte{opPrefixVector, 0x51}, n)
	}
	return kinds
}

// TestChaosMemory is S2's bound of memory: guests that take all they can, hundreds at a time, stay within the budget as the kernel counts it.
func TestChaosMemory(t *testing.T) {
	if os.Getenv("KEYFIRE_CHAOS") == "" {
		t.Skip("run it with make chaos")
	}
	const budget = 1 << 30
	kinds := deepest()
	kinds["memory"] = grower(false, DefaultMemoryLimit/pageSize-1)
	kinds["memory, read first"] = grower(true, DefaultMemoryLimit/pageSize-1)
	for kind, binary := range kinds {
		for _, parallel := range []int{1, 8, 16, 200} {
			b := setup(t, func(c *Config) { c.MemoryBudget = budget })
			d := b.publish(t, binary)
			debug.FreeOSMemory() // of what ran before
			before, peak := resident(t), residentMost(t)
			began := time.Now()
			var wg sync.WaitGroup
			for range parallel {
				wg.Go(func() {
					_, err := b.Invoke(t.Context(), Call{Account: core.DefaultAccount, Module: d, Input: []byte("{}")})
					var e *Error
					if err != nil && (!errors.As(err, &e) || e.Class != core.ClassLimit && e.Class != core.ClassTrap) {
						t.Errorf("%s ends with %v", kind, err)
					}
				})
			}
			wg.Wait()
			most := peak()
			t.Logf("%-20s %3d at a time: at most %4d MiB more than before, in %s", kind, parallel, (most-before)>>20, time.Since(began).Round(time.Millisecond))
			if most-before > budget {
				t.Errorf("%d of %s took %d MiB of a budget of %d", parallel, kind, (most-before)>>20, budget>>20)
			}
			waitFor(t, func() bool { taken, _ := b.memory.usage(); return taken == 0 })
		}
	}
}
