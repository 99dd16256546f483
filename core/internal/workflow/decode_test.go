package workflow

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keyfire/keyfire/core"
)

var update = flag.Bool("update", false, "rewrite the .golden files")

// report writes an error as the command line would, so that a reviewer of a golden file sees what an author sees.
func report(err error) string {
	var e *core.Error
	if !errors.As(err, &e) {
		return fmt.Sprintf("not a *core.Error: %v\n", err)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s\n", e.Code, e.Message)
	for _, f := range e.Fields {
		fmt.Fprintf(&b, "\n%s:%d:%d: %s\n  at %s\n", f.File, f.Line, f.Column, f.Detail, f.Pointer)
		for line := range strings.SplitSeq(f.Excerpt, "\n") {
			fmt.Fprintf(&b, "  | %s\n", line)
		}
	}
	return b.String()
}

// TestDecodeGolden reads every file of testdata/bad and compares what its author is told, and every file of testdata/good and
// compares the definition.
func TestDecodeGolden(t *testing.T) {
	t.Parallel()
	paths, err := filepath.Glob("testdata/*/*")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]int{}
	for _, path := range paths {
		kind := filepath.Base(filepath.Dir(path))
		if strings.HasSuffix(path, ".golden") || kind != "good" && kind != "bad" {
			continue
		}
		seen[kind]++
		t.Run(kind+"/"+filepath.Base(path), func(t *testing.T) {
			t.Parallel()
			src, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			f, err := Decode(src, filepath.Base(path))
			if bad := kind == "bad"; bad != (err != nil) {
				t.Fatalf("Decode: err = %v", err)
			}
			got := ""
			if err != nil {
				if core.CodeOf(err) != core.CodeInvalidWorkflow {
					t.Errorf("code = %s", core.CodeOf(err))
				}
				got = report(err)
			} else {
				got = indent(t, f.Definition)
			}
			golden := path + ".golden"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
	if seen["good"] == 0 || seen["bad"] == 0 {
		t.Fatalf("testdata is missing: %v", seen)
	}
}

func indent(t *testing.T, v any) string {
	t.Helper()
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return string(b) + "\n"
}
