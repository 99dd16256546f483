package workflow_test

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/workflow"
	"github.com/keyfire/keyfire/runtime/engine"
)

// TestExpressionsArePlaced proves what an author of a wrong expression sees: the caret stands inside the expression, whatever the notation
// of the text it is in.
func TestExpressionsArePlaced(t *testing.T) {
	t.Parallel()
	src, err := os.ReadFile("testdata/expressions/workflow.yaml")
	if err != nil {
		t.Fatal(err)
	}
	f, err := workflow.Decode(src, "workflow.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, p := range f.Locate(engine.Check(&f.Definition)) {
		fmt.Fprintf(&b, "%s:%d:%d: %s\n  at %s\n  | %s\n\n", p.File, p.Line, p.Column, p.Detail, p.Pointer, strings.ReplaceAll(p.Excerpt, "\n", "\n  | "))
	}
	golden := "testdata/expressions/workflow.golden"
	if flag.Lookup("update").Value.String() == "true" {
		if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), b.String()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// TestExamplesAreValid proves that the workflows we ship are read and checked without a problem.
func TestExamplesAreValid(t *testing.T) {
	t.Parallel()
	paths, err := filepath.Glob("../../../examples/workflows/*/workflow.yaml")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no examples: %v", err)
	}
	for _, path := range paths {
		src, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		f, err := workflow.Decode(src, path)
		var e *core.Error
		if errors.As(err, &e) {
			t.Errorf("%s: %+v", path, e.Fields)
			continue
		}
		for _, p := range f.Locate(engine.Check(&f.Definition)) {
			t.Errorf("%s:%d:%d: %s", p.File, p.Line, p.Column, p.Detail)
		}
	}
}
