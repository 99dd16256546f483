package wasm

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// The engine's module comes with the WebAssembly specification's own tests in binary form. They are read from the module cache.

var engineSource = sync.OnceValues(func() (string, error) {
	b, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/tetratelabs/wazero").Output()
	return strings.TrimSpace(string(b)), err
})

// specCommand is one step of a specification test.
type specCommand struct {
	Type       string     `json:"type"`
	Line       int        `json:"line"`
	Filename   string     `json:"filename"`
	ModuleType string     `json:"module_type"`
	Name       string     `json:"name"`
	Action     specAction `json:"action"`
}

type specAction struct {
	Type   string `json:"type"`
	Module string `json:"module"`
	Field  string `json:"field"`
	Args   []struct {
		Type  string          `json:"type"`
		Value json.RawMessage `json:"value"`
	} `json:"args"`
}

// specTests calls f for each file of the version 2 tests, in a subtest.
func specTests(t *testing.T, f func(t *testing.T, dir string, commands []specCommand)) {
	t.Helper()
	source, err := engineSource()
	if err != nil {
		t.Skipf("the engine's source is not in the module cache: %v", err)
	}
	dir := filepath.Join(source, "internal", "integration_test", "spectest", "v2", "testdata")
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	if len(files) == 0 {
		t.Skip("the engine's module comes without specification tests")
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".json"), func(t *testing.T) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var test struct {
				Commands []specCommand `json:"commands"`
			}
			if err := json.Unmarshal(b, &test); err != nil {
				t.Fatal(err)
			}
			f(t, dir, test.Commands)
		})
	}
}

// TestParseSpec checks that valid modules are accepted, apart from those over our own bounds, and that nothing is accepted that is malformed and that
// the engine would not refuse by itself.
func TestParseSpec(t *testing.T) {
	t.Parallel()
	var valid, refused, left int
	specTests(t, func(t *testing.T, dir string, commands []specCommand) {
		for _, c := range commands {
			if !strings.HasSuffix(c.Filename, ".wasm") {
				continue
			}
			b, err := os.ReadFile(filepath.Join(dir, c.Filename))
			if err != nil {
				t.Fatal(err)
			}
			_, err = parse(b)
			switch c.Type {
			case "module", "assert_unlinkable", "assert_uninstantiable":
				if valid++; err != nil && !strings.Contains(err.Error(), "at most") {
					t.Errorf("line %d, %s: a valid module is refused: %v", c.Line, c.Filename, err)
				}
			case "assert_malformed":
				if err != nil {
					refused++
					continue
				}
				left++
				bad, failed := compileOnce(t.Context(), t.TempDir(), b)
				if failed != nil {
					t.Fatal(failed)
				}
				if bad == nil {
					t.Errorf("line %d, %s: a malformed module is accepted", c.Line, c.Filename)
				}
			}
		}
	})
	t.Logf("%d valid modules; of the malformed ones, %d refused by the parser and %d left to the engine", valid, refused, left)
	if valid < 1000 || refused < 100 {
		t.Errorf("only %d valid and %d malformed modules were found", valid, refused)
	}
}
