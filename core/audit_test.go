package core

import (
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// Every action there is can be asked for, and nothing else.
func TestCheckActionKnowsAll(t *testing.T) {
	t.Parallel()
	file, err := parser.ParseFile(token.NewFileSet(), "audit.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	ast.Inspect(file, func(node ast.Node) bool {
		spec, ok := node.(*ast.ValueSpec)
		if !ok || !strings.HasPrefix(spec.Names[0].Name, "Action") || len(spec.Values) != 1 {
			return true
		}
		text, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
		if err != nil {
			t.Fatal(err)
		}
		if text != ActionPluginPrefix && CheckAction(text) != nil {
			t.Errorf("%s is missing from auditActions", spec.Names[0].Name)
		}
		n++
		return true
	})
	if want := len(auditActions) + 1; n != want || len(slices.Compact(slices.Sorted(slices.Values(auditActions)))) != len(auditActions) {
		t.Errorf("%d actions, want %d, each once", n, want)
	}
	for name, says := range map[string]string{"key.revoked": "did you mean key.revoke?", "made.up": "they are key.create, ", "": "they are "} {
		if err := CheckAction(name); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v", name, err)
		}
	}
}
