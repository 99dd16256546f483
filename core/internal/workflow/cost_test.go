package workflow

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/keyfire/keyfire/core"
)

// TestCostOfEveryKeyword: what a schema has at one place is counted whatever keyword it stands under. Each of these takes half a minute and more for an input of
// a hundred thousand empty objects or of one field, which any caller may send.
func TestCostOfEveryKeyword(t *testing.T) {
	t.Parallel()
	doubling := make(map[string]any)
	for i := range 26 {
		next := map[string]any{"$ref": fmt.Sprintf("#/$defs/d%d", i+1)}
		doubling[fmt.Sprintf("d%d", i)] = map[string]any{"allOf": []any{next, next}}
	}
	doubling["d26"] = map[string]any{"maxLength": 10}
	required, schemas := map[string]any{}, map[string]any{}
	for i := range 12_000 {
		required[fmt.Sprintf("%x", i)] = []any{"a", "b", "c", "d", "e", "f", "g", "h"}
		if i < 5_100 {
			schemas[fmt.Sprintf("%x", i)] = true
		}
	}
	for what, schema := range map[string]any{
		"names of fields":          map[string]any{"propertyNames": map[string]any{"$ref": "#/$defs/d0"}, "$defs": doubling},
		"fields that ask for some": map[string]any{"items": map[string]any{"dependentRequired": required}},
		"fields that ask for more": map[string]any{"items": map[string]any{"dependentSchemas": schemas}},
		"alternatives of nothing":  map[string]any{"items": map[string]any{"anyOf": repeated(false, 5_100)}},
		"numbers to compare with":  map[string]any{"items": map[string]any{"enum": repeated(1, 30_000)}},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			raw, err := json.Marshal(schema)
			if err != nil {
				t.Fatal(err)
			}
			if _, err = CompileSchema(raw); core.CodeOf(err) != core.CodeInvalidWorkflow {
				t.Fatalf("err = %v", err)
			}
			if got := schemaProblems(err)[0].Detail; !strings.HasPrefix(got, "could take too long") {
				t.Error(got)
			}
		})
	}
	// A schema that refers to itself for the names of fields, too, is an ordinary one.
	if _, err := CompileSchema(json.RawMessage(`{"propertyNames":{"$ref":"#"},"properties":{"a":{"$ref":"#"}},"additionalProperties":{"$ref":"#"}}`)); err != nil {
		t.Error(err)
	}
}

// TestManySchemas: compiling compares each schema with all others, so their number has a bound. Values that cannot be schemas do not count.
func TestManySchemas(t *testing.T) {
	t.Parallel()
	for what, c := range map[string]struct {
		schema any
		fits   bool
	}{
		"texts":                 {map[string]any{"enum": repeated("x", 20_000)}, true},
		"as many as may be":     {map[string]any{"$defs": map[string]any{"all": map[string]any{"allOf": repeated(true, maxSchemas-3)}}}, true},
		"more than that by one": {map[string]any{"$defs": map[string]any{"all": map[string]any{"allOf": repeated(true, maxSchemas-2)}}}, false},
	} {
		raw, err := json.Marshal(c.schema)
		if err != nil {
			t.Fatal(err)
		}
		if _, err = CompileSchema(raw); c.fits != (err == nil) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func repeated(v any, n int) []any {
	all := make([]any, n)
	for i := range all {
		all[i] = v
	}
	return all
}

// TestRunsAreRefused: the lexer takes minutes for such a file of the allowed size.
func TestRunsAreRefused(t *testing.T) {
	t.Parallel()
	for what, tt := range map[string]struct{ src, detail string }{
		"empty lines in a text": {"title: |\n  a" + strings.Repeat("\n", 200_000) + "name: b\n", "more than 100 empty lines in a row"},
		"lines of white space":  {"title: >\n  a" + strings.Repeat("\n \t", 80_000) + "\nname: b\n", "more than 100 empty lines in a row"},
		"signs":                 {"title: a" + strings.Repeat("<", 200_000), "more than 1000 signs < in a row"},
	} {
		_, err := Decode([]byte(tt.src), "w.yaml")
		var e *core.Error
		if !errors.As(err, &e) || len(e.Fields) != 1 || e.Fields[0].Detail != tt.detail {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestSizeOfPatterns: a repetition in a pattern is written out when it is compiled, so a file of a few kilobytes could ask for gigabytes.
func TestSizeOfPatterns(t *testing.T) {
	t.Parallel()
	large := strings.Repeat("a{1000}", 140)
	many := make(map[string]any)
	for i := range 2_000 {
		many[fmt.Sprint(i)] = map[string]any{"pattern": "a{1000}"}
	}
	for what, schema := range map[string]any{
		"one pattern":   map[string]any{"pattern": large},
		"many patterns": map[string]any{"properties": many},
	} {
		raw, err := json.Marshal(schema)
		if err != nil {
			t.Fatal(err)
		}
		if _, err = CompileSchema(raw); core.CodeOf(err) != core.CodeInvalidWorkflow {
			t.Errorf("%s: err = %v", what, err)
		}
	}
	// What a caller sends as a pattern is read, and not written out.
	s, err := CompileSchema(json.RawMessage(`{"items":{"format":"regex"}}`))
	if err != nil {
		t.Fatal(err)
	}
	input, err := json.Marshal(repeated(large, 10))
	if err != nil {
		t.Fatal(err)
	}
	if problems := s.Validate(input); problems != nil {
		t.Error(problems)
	}
	if problems := s.Validate(json.RawMessage(`["("]`)); len(problems) != 1 {
		t.Error(problems)
	}
}
