package workflow

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keyfire/keyfire/core"
)

const (
	digestA = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	digestB = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
)

func decode(t testing.TB, src string) *File {
	t.Helper()
	f, err := Decode([]byte(src), "workflow.yaml")
	if err != nil {
		t.Fatalf("Decode:\n%s", report(err))
	}
	return f
}

// TestLocateInsideText proves that a place inside a text is found in the file, for every notation of a text, by looking at the character there.
func TestLocateInsideText(t *testing.T) {
	t.Parallel()
	src := strings.Join([]string{
		`keyfire: v1`,
		`name: places`,
		`nodes:`,
		`  - id: a`,
		`    uses: ./a.wasm`,
		`    with:`,
		`      plain: é ab X cd`,
		`      single: 'it''s X'`,
		`      double: "a\"b\\c\u00e9\t\x41 X"`,
		`      block: |`,
		`        one`,
		`          two X`,
		``,
		`        three`,
		`      folded: >`,
		`        one`,
		`        two X`,
		`      lines: "one`,
		`        two X"`,
		`      pair: "\ud83d\ude00 X"`,
		`      list: [a, "b X"]`,
	}, "\n")
	f := decode(t, src)
	lines := strings.Split(src, "\n")
	tests := []struct {
		pointer string
		exact   bool // the X is found; otherwise the beginning of the text is
	}{
		{"plain", true},
		{"single", true},
		{"double", true},
		{"block", true},
		{"folded", false},
		{"lines", false},
		{"pair", false},
		{"list/1", true},
	}
	for _, tt := range tests {
		pointer := "#/nodes/0/with/" + tt.pointer
		v, whole := f.root.find(pointer)
		if !whole {
			t.Fatalf("%s: not found", pointer)
		}
		before, _, ok := strings.Cut(v.text, "X")
		if !ok {
			t.Fatalf("%s: no X in %q", pointer, v.text)
		}
		line, column := 1+strings.Count(before, "\n"), 1+len([]rune(before[strings.LastIndexByte(before, '\n')+1:]))
		got := f.Locate([]core.Field{{Pointer: pointer, Detail: "d", Line: line, Column: column}})[0]
		if got.File != "workflow.yaml" || got.Detail != "d" || got.Pointer != pointer {
			t.Errorf("%s: %+v", pointer, got)
		}
		at := string([]rune(lines[got.Line-1])[got.Column-1:])
		switch {
		case tt.exact && !strings.HasPrefix(at, "X"):
			t.Errorf("%s: %d:%d is %q, not X", pointer, got.Line, got.Column, at)
		case !tt.exact && (place{got.Line, got.Column}) != v.at:
			t.Errorf("%s: %d:%d is not the beginning of the text", pointer, got.Line, got.Column)
		}
		if want := lines[got.Line-1] + "\n" + strings.Repeat(" ", got.Column-1) + "^"; got.Excerpt != want {
			t.Errorf("%s: excerpt = %q, want %q", pointer, got.Excerpt, want)
		}
	}
}

func TestLocate(t *testing.T) {
	t.Parallel()
	f := decode(t, "keyfire: v1\nname: x\nnodes:\n  - id: a\n    uses: ./a.wasm\n    with: {a/b: {\"~\": 1}}\n")
	for _, tt := range []struct {
		pointer      string
		line, column int
	}{
		{"#", 1, 1},
		{"#/name", 2, 7},
		{"#/nodes/0", 4, 5},
		{"#/nodes/0/with/a~1b/~0", 6, 23},
		{"#/nodes/0/limits/timeout", 4, 5}, // where it could have been written
		{"#/nodes/7/with", 4, 3},
		{"#/trigger", 1, 1},
	} {
		got := f.Locate([]core.Field{{Pointer: tt.pointer}})[0]
		if got.Line != tt.line || got.Column != tt.column {
			t.Errorf("%s is at %d:%d, want %d:%d", tt.pointer, got.Line, got.Column, tt.line, tt.column)
		}
	}
	done := core.Field{Pointer: "#/name", File: "other.yaml", Line: 9, Column: 9, Excerpt: "x"}
	if got := f.Locate([]core.Field{done})[0]; got != done {
		t.Errorf("a located field was changed: %+v", got)
	}
}

// TestPlacesAreRight proves that every value of the good files is found where its place says.
func TestPlacesAreRight(t *testing.T) {
	t.Parallel()
	paths, _ := filepath.Glob("testdata/good/*")
	checked := 0
	for _, path := range paths {
		if strings.HasSuffix(path, ".golden") {
			continue
		}
		src, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		root, s := parse(src, path)
		var walk func(v *value)
		walk = func(v *value) {
			checked++
			at := string([]rune(s.lines[v.at.line-1])[v.at.column-1:])
			begins := ""
			switch v.kind {
			case number:
				begins = v.text
			case boolean:
				begins = v.text[:1]
			case text:
				begins = map[style]string{singleQuoted: "'", doubleQuoted: `"`, block: "|", folded: ">"}[v.style]
				if v.style == plain {
					begins = v.text
				}
			case list:
				if begins = "-"; at[0] == '[' {
					begins = "["
				}
			case object:
				if at[0] != '{' {
					if begins = v.members[0].name; at[0] == '"' {
						begins = `"` + begins
					}
				}
			}
			if !strings.HasPrefix(strings.ToLower(at), strings.ToLower(begins)) {
				t.Errorf("%s:%d:%d: %s %q begins with %q", path, v.at.line, v.at.column, v.kind, v.text, at)
			}
			for _, item := range v.items {
				walk(item)
			}
			for _, m := range v.members {
				walk(m.value)
			}
		}
		walk(root)
	}
	if checked < 100 {
		t.Errorf("only %d values were looked at", checked)
	}
}

func TestResolve(t *testing.T) {
	t.Parallel()
	src := "keyfire: v1\nname: x\nnodes:\n  - {id: a, uses: ./a.wasm}\n  - {id: b, uses: " + digestB + "}\n  - {id: c, uses: ../c.wasm}\n  - {id: d, uses: ./a.wasm}\n"
	f := decode(t, src)
	err := f.Resolve(map[string]string{"./a.wasm": digestA, "../c.wasm": "sha256:short"})
	var e *core.Error
	if !errors.As(err, &e) || len(e.Fields) != 1 || e.Fields[0].Pointer != "#/nodes/2/uses" || e.Fields[0].Line != 6 || e.Fields[0].Column != 19 {
		t.Fatalf("err = %v %+v", err, e)
	}
	if err := f.Resolve(map[string]string{"./a.wasm": digestA, "../c.wasm": digestB}); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, n := range f.Definition.Nodes {
		got = append(got, n.Module)
	}
	if diff := cmp.Diff([]string{digestA, digestB, digestB, digestA}, got); diff != "" {
		t.Error(diff)
	}
}

// TestCanonical proves that the digest covers what a workflow means and not how its file is written.
func TestCanonical(t *testing.T) {
	t.Parallel()
	canonical := func(src string) (string, string) {
		t.Helper()
		f := decode(t, src)
		if err := f.Resolve(map[string]string{"./a.wasm": digestA}); err != nil {
			t.Fatal(err)
		}
		text, digest, err := Canonical(&f.Definition)
		if err != nil {
			t.Fatal(err)
		}
		if !core.ValidDigest(digest) || !json.Valid(text) {
			t.Errorf("digest = %s, text = %s", digest, text)
		}
		return string(text), digest
	}
	base := "keyfire: v1\nname: x\ninput: {type: object, properties: {b: {maximum: 12345678901234567890.10}, a: {}}}\nnodes:\n  - {id: a, uses: ./a.wasm, with: {z: \"<&>é\", a: 1.50}}\n"
	text, digest := canonical(base)
	if want := `{"input":{"properties":{"a":{},"b":{"maximum":12345678901234567890.10}},"type":"object"},"keyfire":"v1","name":"x","nodes":[{"id":"a","limits":{},"module":"` +
		digestA + `","needs":[],"uses":"./a.wasm","with":{"a":1.50,"z":"<&>é"}}],"trigger":{"enabled":false,"global_keys":true,"timeout":"30s"}}`; text != want {
		t.Errorf("canonical\n%s, want\n%s", text, want)
	}
	again, same := canonical(`{"nodes": [{"with": {"a": 1.50, "z": "<\u0026>\u00e9"}, "uses": "./a.wasm", "id": "a", "limits": {}, "needs": []}],
		"trigger": {"timeout": "30s"}, "input": {"properties": {"a": {}, "b": {"maximum": 12345678901234567890.10}}, "type": "object"}, "name": "x", "keyfire": "v1"}`)
	if same != digest {
		t.Errorf("the same workflow as JSON has another digest:\n%s\n%s", text, again)
	}
	for _, change := range [][2]string{{"1.50", "1.5"}, {"name: x", "name: y"}, {"90.10", "90.11"}, {"id: a", "id: b"}, {"uses: ./a.wasm", "uses: ./a.wasm, at_most_once: true"}} {
		if _, other := canonical(strings.Replace(base, change[0], change[1], 1)); other == digest {
			t.Errorf("changing %q to %q does not change the digest", change[0], change[1])
		}
	}
	f := decode(t, base)
	if _, _, err := Canonical(&f.Definition); err == nil {
		t.Error("a definition without modules has a canonical form")
	}
	var stored core.Definition
	if err := json.Unmarshal([]byte(text), &stored); err != nil {
		t.Fatal(err)
	}
	if back, backDigest, err := Canonical(&stored); err != nil || string(back) != text || backDigest != digest {
		t.Errorf("a stored definition has another canonical form: %v\n%s", err, back)
	}
}

// TestLimits proves the limits of the file at their edge.
func TestLimits(t *testing.T) {
	t.Parallel()
	file := func(nodes int, more string) string {
		var b strings.Builder
		b.WriteString("keyfire: v1\nname: x\nnodes:\n")
		for i := range nodes {
			fmt.Fprintf(&b, "  - {id: n%d, uses: ./a.wasm}\n", i)
		}
		return b.String() + more
	}
	padded := func(size int) string {
		s := file(1, "# ")
		return s + strings.Repeat("x", size-len(s))
	}
	nested := func(levels int) string {
		return file(1, "output: "+strings.Repeat("[", levels-1)+strings.Repeat("]", levels-1)+"\n")
	}
	indented := func(levels int) string {
		var b strings.Builder
		for i := range levels - 1 {
			b.WriteString(strings.Repeat(" ", i+1) + "a:\n")
		}
		return file(1, "output:\n"+b.String()+strings.Repeat(" ", levels)+"1\n")
	}
	tests := []struct{ name, src, detail string }{
		{"200 nodes", file(200, ""), ""},
		{"201 nodes", file(201, ""), "has 201 entries; at most 200 are allowed"},
		{"256 KiB", padded(core.MaxWorkflowFile), ""},
		{"256 KiB and one byte", padded(core.MaxWorkflowFile + 1), "the file has 262145 bytes; at most 262144 are allowed"},
		{"64 levels in brackets", nested(maxDepth), ""},
		{"65 levels in brackets", nested(maxDepth + 1), tooDeep},
		{"brackets without end", file(1, "output: "+strings.Repeat("[", 40_000)), tooDeep},
		{"64 levels by indentation", indented(maxDepth), ""},
		{"65 levels by indentation", indented(maxDepth + 1), tooDeep},
		{"a list in a list in a list", file(1, "output:\n "+strings.Repeat("- ", 100_000)+"1\n"), "the file has"},
		{"the same, fewer", file(1, "output:\n "+strings.Repeat("- ", 10_000)+"1\n"), tooDeep},
		{"many names", file(1, "output: {"+strings.Repeat("a: 1, ", 15_000)+"b: 1}\n"), "the file has"},
		{"an alias bomb", "a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]\n", "anchors are not allowed"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := Decode([]byte(tt.src), "x.yaml")
			var e *core.Error
			switch {
			case tt.detail == "" && err != nil:
				t.Errorf("refused:\n%s", report(err))
			case tt.detail != "" && (!errors.As(err, &e) || !strings.HasPrefix(e.Fields[0].Detail, tt.detail)):
				t.Errorf("err = %v, want %q", err, tt.detail)
			}
		})
	}
}

// TestProblemsAreBounded proves that a file of many mistakes is answered with the first of them.
func TestProblemsAreBounded(t *testing.T) {
	t.Parallel()
	_, err := Decode([]byte("keyfire: v1\nname: x\nnodes: ["+strings.Repeat("{}, ", 150)+"]\n"), "x.yaml")
	var e *core.Error
	if !errors.As(err, &e) || len(e.Fields) != maxProblems || e.Message != "the workflow file has 300 problems" {
		t.Errorf("err = %v with %d fields", err, len(e.Fields))
	}
}

func TestExcerptOfLongLine(t *testing.T) {
	t.Parallel()
	_, err := Decode([]byte("keyfire: v1\nname: x\nnodes: [{id: a, uses: ./a.wasm, "+strings.Repeat(" ", 500)+"\tbad\x1b[31m: 1, "+strings.Repeat("z", 500)+": 1}]\n"), "x.yaml")
	var e *core.Error
	if !errors.As(err, &e) {
		t.Fatal(err)
	}
	for _, f := range e.Fields {
		shown, caret, _ := strings.Cut(f.Excerpt, "\n")
		if n := len([]rune(shown)); n > maxExcerpt {
			t.Errorf("%d characters are shown", n)
		}
		if strings.ContainsAny(f.Excerpt, "\t\x1b") {
			t.Errorf("control characters are shown: %q", f.Excerpt)
		}
		if len([]rune(caret)) > maxExcerpt+1 || !strings.HasSuffix(caret, "^") {
			t.Errorf("caret line %q", caret)
		}
	}
}

func TestWindowsFiles(t *testing.T) {
	t.Parallel()
	src := "\ufeffkeyfire: v1\r\nname: x\r\nnodes:\r\n  - id: a\r\n    uses: ./a.wasm\r\n    with:\r\n      b: |\r\n        x\r\n        y\r\n      q: \"p\r\n        q\"\r\n"
	f := decode(t, src)
	if got, want := string(f.Definition.Nodes[0].With), `{"b":"x\ny\n","q":"p q"}`; got != want {
		t.Errorf("with = %s, want %s", got, want)
	}
	if got := f.Locate([]core.Field{{Pointer: "#/nodes/0/id"}})[0]; got.Line != 4 || got.Column != 9 || got.Excerpt != "  - id: a\n        ^" {
		t.Errorf("id is at %+v", got)
	}
}

// FuzzDecode proves that no text makes Decode fail in another way than by a *core.Error with places inside the file, and that what it
// accepts has a canonical form that means the same.
func FuzzDecode(f *testing.F) {
	paths, _ := filepath.Glob("testdata/*/*")
	for _, path := range paths {
		if strings.HasSuffix(path, ".golden") {
			continue
		}
		src, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(src)
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		began := time.Now()
		file, err := Decode(src, "x.yaml")
		if took := time.Since(began); took > patience {
			t.Fatalf("took %s", took)
		}
		if err != nil {
			var e *core.Error
			if !errors.As(err, &e) || e.Code != core.CodeInvalidWorkflow || len(e.Fields) == 0 {
				t.Fatalf("err = %v", err)
			}
			lines := strings.Count(string(src), "\n") + strings.Count(string(src), "\r") + 1
			for _, field := range e.Fields {
				if field.Detail == "" || !strings.HasPrefix(field.Pointer, "#") || field.Line < 0 || field.Line > lines || field.Line > 0 && field.Column < 1 {
					t.Fatalf("field = %+v", field)
				}
			}
			return
		}
		for i := range file.Definition.Nodes {
			file.Definition.Nodes[i].Module = digestA
		}
		text, digest, err := Canonical(&file.Definition)
		if err != nil {
			t.Fatal(err)
		}
		var stored core.Definition
		if err := json.Unmarshal(text, &stored); err != nil {
			t.Fatal(err)
		}
		if again, same, err := Canonical(&stored); err != nil || same != digest {
			t.Fatalf("canonical form changes: %v\n%s\n%s", err, text, again)
		}
		if len(stored.Input) > 0 {
			schema, err := CompileSchema(stored.Input)
			if err != nil {
				t.Fatalf("stored schema: %v", err)
			}
			schema.Validate(json.RawMessage(`{"a":[1,null,"x",{"b":1e5}]}`))
		}
	})
}
