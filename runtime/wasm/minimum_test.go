package wasm

import (
	"bytes"
	"context"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyfire/keyfire/core"
)

// startingWith is a reactor that does nothing, with so many pages of memory from the start.
func startingWith(pages uint32) []byte {
	return newModule().
		section(secType, vec([]byte{0x60, 1, typeI32, 1, typeI32})...).
		section(secFunction, 1, 0).
		section(secMemory, concat([]byte{1, 0}, appendU32(nil, pages))...).
		section(secExport, vec(concat(name("run"), []byte{kindFunc, 0}), concat(name("memory"), []byte{2, 0}))...).
		section(secCode, vec(fn(nil, i32c(1)...))...).b
}

// TestS1MemoryMinimum is promise S1 for a module that begins with more memory than a node may have: it is refused when it is published, and one that
// was published when more was allowed fails its own calls and nothing else.
func TestS1MemoryMinimum(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "cache")
	wide := setup(t, func(c *Config) { c.CacheDir, c.MemoryLimit = dir, 2*DefaultMemoryLimit })
	narrow := setup(t, func(c *Config) { c.CacheDir = dir })
	for _, pages := range []uint32{1025, 2048} {
		binary := startingWith(pages)
		if _, err := narrow.Compile(t.Context(), binary); core.CodeOf(err) != core.CodeInvalidModule || !strings.Contains(err.Error(), "at most 64 MiB") {
			t.Errorf("%d pages: got %v, want it refused", pages, err)
		}
		d := wide.publish(t, binary)
		if got, err := wide.Warm(t.Context(), core.DefaultAccount, d); err != nil || got.Start != StartShared {
			t.Errorf("%d pages where they are allowed: %v, %v", pages, got, err)
		}
		narrow.library.modules[d] = binary
		if got, err := narrow.Warm(t.Context(), core.DefaultAccount, d); err != nil || got.Start != StartPlain || !strings.Contains(got.Why, "may have 64 MiB") {
			t.Errorf("%d pages: started as %v, %v", pages, got, err)
		}
		_, err := narrow.call(t, d, "{}", core.Limits{})
		wantError(t, err, core.ClassLimit)
	}
	for _, pages := range []uint32{1 << 15, 1 << 16, 1<<16 + 1, 1<<32 - 1} {
		if _, err := wide.Compile(t.Context(), startingWith(pages)); core.CodeOf(err) != core.CodeInvalidModule {
			t.Errorf("%d pages: got %v, want it refused", pages, err)
		}
	}
	if d := narrow.publish(t, startingWith(1024)); d != "" {
		narrow.warm(t, d, StartShared)
	}
}

// TestS1MemoryMinimumOfANode compares a module with the limit its node sets, when it is published.
func TestS1MemoryMinimumOfANode(t *testing.T) {
	t.Parallel()
	info, err := inspect(startingWith(32))
	if err != nil {
		t.Fatal(err)
	}
	wrong := info.Check(&core.Node{Limits: core.Limits{Memory: 1 << 20}})
	if len(wrong) != 1 || wrong[0].Pointer != "/limits/memory" || !strings.Contains(wrong[0].Detail, "2 MiB") {
		t.Errorf("a limit below it: %v", wrong)
	}
	for _, limit := range []int64{0, 2 << 20, 64 << 20} {
		if wrong := info.Check(&core.Node{Limits: core.Limits{Memory: limit}}); len(wrong) > 0 {
			t.Errorf("limit %d: %v", limit, wrong)
		}
	}
}

// TestInstancePanic makes the engine panic over a module, which is to be the module's failure.
func TestInstancePanic(t *testing.T) {
	t.Parallel()
	b := setup(t)
	d := b.publish(t, startingWith(1))
	p, release, err := b.modules.acquire(t.Context(), core.DefaultAccount, d)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	mem, err := b.config.without.newLinearMemory(pageSize)
	if err != nil {
		t.Fatal(err)
	}
	mem.limit = 0 // the engine does not expect to be refused the first page
	mod, err := b.engineInstance(&guest{Context: t.Context(), memory: mem}, p)
	if mod != nil || err == nil || !strings.Contains(err.Error(), "cannot make an instance") {
		t.Errorf("got %v, %v", mod, err)
	}
	mem.limit = pageSize
	mem.Free()
	// The runtime still works.
	if res, err := b.call(t, b.publish(t, writer(`"next"`, 1)), "{}", core.Limits{}); err != nil || !bytes.Equal(res.Output, []byte(`"next"`)) {
		t.Errorf("the next call: %s, %v", res.Output, err)
	}
}

// TestPanicInTheBackground has what is done to a module in goroutines of its own panic: loading it, and freezing it. Calls are told of the first, and do
// without the second.
func TestPanicInTheBackground(t *testing.T) {
	t.Parallel()
	missing := setup(t)
	missing.config.Load = func(context.Context, string, string) ([]byte, error) { panic("no such library") }
	for range 2 {
		if _, err := missing.call(t, digest([]byte("nothing")), "{}", core.Limits{}); err == nil || !strings.Contains(err.Error(), "no such library") {
			t.Errorf("a call of a module that cannot be loaded: %v", err)
		}
	}
	unseeded := setup(t, func(c *Config) { c.Random = noRandom{} })
	d := unseeded.publish(t, writer(`"next"`, 1))
	if got, err := unseeded.Warm(t.Context(), core.DefaultAccount, d); err != nil || got.Start != StartPlain || !strings.Contains(got.Why, "no entropy") {
		t.Errorf("started as %v, %v", got, err)
	}
	if res, err := unseeded.call(t, d, "{}", core.Limits{}); err != nil || !bytes.Equal(res.Output, []byte(`"next"`)) {
		t.Errorf("a call of a module that cannot be frozen: %s, %v", res.Output, err)
	}
}

type noRandom struct{}

func (noRandom) Read([]byte) (int, error) { panic("no entropy") }
