package wasm

import (
	"bytes"
	"context"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/keyfire/keyfire/core"
)

// checkedEngine is the version of the engine whose experimental interfaces were read and tried. Another one may have changed them without a
// word: read its experimental package, run `make chaos-nodes`, and then change this.
const checkedEngine = "v1.12.0"

// mayUse is what each file may use of the engine's experimental package.
var mayUse = map[string][]string{
	"runtime/wasm/memory.go":  {"LinearMemory", "MemoryAllocator", "WithMemoryAllocator"},
	"runtime/wasm/stack.go":   {"GetSnapshotter", "Snapshot", "WithSnapshotter"},
	"runtime/wasm/workers.go": {"WithCompilationWorkers"},
}

// TestExperimental: what the engine may change at any time is used in three files only, and is that of the version it was tried with.
func TestExperimental(t *testing.T) {
	t.Parallel()
	root := filepath.Join("..", "..")
	mod, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(mod), "github.com/tetratelabs/wazero "+checkedEngine+"\n") {
		t.Errorf("go.mod does not require wazero %s, whose experimental interfaces were checked", checkedEngine)
	}
	found := 0
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "node_modules" || strings.HasPrefix(d.Name(), ".") && path != root):
			return fs.SkipDir
		case d.IsDir() || !strings.HasSuffix(path, ".go"):
			return nil
		}
		used, err := experimentalUses(path)
		if err != nil || used == nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		found++
		for _, u := range used {
			if !slices.Contains(mayUse[filepath.ToSlash(name)], u) {
				t.Errorf("%s uses experimental.%s; only its own file may (%v)", name, u, mayUse)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if found != len(mayUse) {
		t.Errorf("%d files use the experimental package, want %d: a file that has lost its use has lost its row", found, len(mayUse))
	}
}

// experimentalUses returns the names that a file uses of the experimental package, nil if it does not import it.
func experimentalUses(path string) ([]string, error) {
	const imported = "github.com/tetratelabs/wazero/experimental"
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
	if err != nil {
		return nil, err
	}
	local := ""
	for _, i := range file.Imports {
		if p, _ := strconv.Unquote(i.Path.Value); p == imported || strings.HasPrefix(p, imported+"/") {
			local = p[strings.LastIndex(p, "/")+1:]
			if i.Name != nil {
				local = i.Name.Name
			}
		}
	}
	if local == "" {
		return nil, nil
	}
	if file, err = parser.ParseFile(token.NewFileSet(), path, nil, 0); err != nil {
		return nil, err
	}
	used := []string{}
	ast.Inspect(file, func(n ast.Node) bool {
		if s, ok := n.(*ast.SelectorExpr); ok {
			if x, ok := s.X.(*ast.Ident); ok && x.Name == local {
				used = append(used, s.Sel.Name)
			}
		}
		return true
	})
	return used, nil
}

// TestExperimentFallbacks: without the engine's allocator, without its snapshots of stacks and without both, every invocation finds what it would
// find with them, in every kind of module.
func TestExperimentFallbacks(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name                      string
		without                   experiments
		command, reactor, goStart Start
	}{
		{"no allocator", experiments{memory: true}, StartShared, StartShared, StartReseeded},
		{"no stacks", experiments{stack: true}, StartAhead, StartShared, StartAhead},
		{"neither", experiments{memory: true, stack: true}, StartAhead, StartShared, StartAhead},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, verified(t), func(c *Config) { c.without, c.Reset = tt.without, ResetScan })
			modules := []string{b.publish(t, probeCommand()), b.publish(t, probeReactor()), b.publish(t, probeInput())}
			b.warm(t, modules[0], tt.command)
			b.warm(t, modules[1], tt.reactor)
			b.warm(t, modules[2], tt.command)
			r := rand.New(rand.NewPCG(7, 8))
			for i := range 150 {
				if err := b.probe(t, modules[r.IntN(len(modules))], r); err != nil {
					t.Fatalf("call %d: %v", i, err)
				}
			}
			d := b.publish(t, guestModule(t))
			b.warm(t, d, tt.goStart)
			for _, in := range []string{`{"op":"echo","text":"x"}`, `{"op":"allocate","size":9000000}`, `{"op":"random"}`, `{"op":"echo","text":"x"}`} {
				if res, err := b.call(t, d, in, core.Limits{}); err != nil {
					t.Errorf("%s: %s, %v", in, res.Output, err)
				}
			}
			waitFor(t, func() bool { return b.Stats().Verified == b.Stats().Resets })
			if s := b.Stats(); s.Mismatches != 0 || s.Resets == 0 {
				t.Errorf("%+v", s)
			}
		})
	}
}

// TestCompilationWorkers: the engine makes the same of a module with one thread as with several.
func TestCompilationWorkers(t *testing.T) {
	t.Parallel()
	if raceEnabled {
		t.Skip("compiling under the detector takes too long")
	}
	_, m, err := examine(extismPlugin(t, "var"))
	if err != nil {
		t.Fatal(err)
	}
	rw, err := rewrite(m)
	if err != nil {
		t.Fatal(err)
	}
	var made [2][]byte
	for i, ctx := range []context.Context{t.Context(), withWorkers(t.Context(), 2)} {
		dir := t.TempDir()
		if err := errors.Join(compileOnce(ctx, dir, rw.binary)); err != nil {
			t.Fatal(err)
		}
		file, err := onlyFile(dir)
		if err != nil {
			t.Fatal(err)
		}
		if made[i], err = os.ReadFile(filepath.Join(dir, file)); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(made[0], made[1]) {
		t.Error("the compiled forms differ")
	}
}
