package telemetry

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// Lower packages write names as text. Whatever they write must be one of the constants, or a dashboard built on those would miss it.
func TestNamesAreTheVocabulary(t *testing.T) {
	t.Parallel()
	known := map[string]bool{}
	written := map[string]bool{ // by their constants
		MetricLost: true, MetricMemoryUsed: true, MetricMemoryWaiting: true, MetricModules: true, MetricModuleMemory: true, MetricCalls: true, AttrNodeStart: true,
		MetricIdle: true, MetricIdleMemory: true, MetricMade: true, MetricResets: true, MetricVerified: true, MetricMismatches: true,
	}
	for _, name := range stringLiterals(t, "names.go") {
		known[name] = true
	}
	attr := regexp.MustCompile(`^keyfire\.[a-z]+(\.[a-z_]+)*$`)
	root := filepath.Join("..", "..", "..")
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (strings.HasPrefix(d.Name(), ".") && d.Name() != ".." || d.Name() == "testdata"):
			return fs.SkipDir
		case d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		src, err := os.ReadFile(path)
		if err != nil || !strings.Contains(string(src), `"go.opentelemetry.io/otel/`) || strings.HasSuffix(path, "telemetry/names.go") {
			return err
		}
		for _, name := range stringLiterals(t, path) {
			if !attr.MatchString(name) {
				continue
			}
			written[name] = true
			if !known[name] {
				t.Errorf("%s writes the attribute %q; add a constant for it to names.go", path, name)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for name := range known {
		if attr.MatchString(name) && !written[name] {
			t.Errorf("nothing writes %q; remove its constant from names.go", name)
		}
	}
}

func stringLiterals(t *testing.T, path string) []string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	ast.Inspect(file, func(n ast.Node) bool {
		if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
			if s, err := strconv.Unquote(lit.Value); err == nil {
				all = append(all, s)
			}
		}
		return true
	})
	return all
}
