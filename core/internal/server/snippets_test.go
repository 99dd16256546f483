package server

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/admin"
)

// program finds a program that a test runs. Without it the test is skipped, but not where everything is installed for the tests.
func program(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	switch {
	case err == nil:
	case os.Getenv("CI") == "true":
		t.Fatalf("%s is not installed", name)
	default:
		t.Skipf("%s is not installed: its client is NOT TESTED", name)
	}
	return path
}

// awkward are input names and example values that a language, a shell or an encoder could get wrong.
var awkward = map[string]any{
	"Reference Document": "", "it's \"quoted\"": `C:\new\table 'a' "b"`, "back\\slash": "${HOME} $(id) `id` $KEYFIRE_KEY %s %d", "`id`": "a`b", "$HOME": true,
	"__proto__": "own", "constructor": map[string]any{"__proto__": false}, "true": "true, false and null", "null": nil, "": "empty name", "ключ 🔑": "日本語 \u2028 \ufeff end",
	"line\nbreak\ttab": "a\r\nb", "</script><!--": "</script>", "}, \"x\": {": []any{"[", nil, true}, "big": json.Number("12345678901234567890"), "exact": json.Number("0.10"),
	"bell\u0001\u007f": "\u0000", "slash": "a/b", "under_score-and.dot": json.Number("-1e-7"), "#{x}": "#{1+1} {{x}} {% x %}", "!history": "!!", "@file": "@/etc/passwd", "--flag": "-d",
}

// What JavaScript encodes as it is stays an object; the rest goes as text.
func TestJavaScriptBody(t *testing.T) {
	t.Parallel()
	for envelope, object := range map[string]bool{
		`{"input": {"a": 9007199254740991, "b": -1.5e300, "c": [true, null, "9007199254740993"]}}`: true, `{"input": {"a": 9007199254740993}}`: false,
		`{"input": {"__proto__": 1}}`: false, `{"input": {"a": -12345678901234567890}}`: false, `{"input": {}}`: true,
	} {
		if got := javaScriptBody(envelope); strings.HasPrefix(got, "JSON.stringify({") != object {
			t.Errorf("%s is written as %s", envelope, got)
		}
	}
}

// C6, K5: the snippets are programs: as they are written, they run the workflow with its own names, in every client's way, however awkward the names are.
func TestSnippetsRunC6K5(t *testing.T) {
	t.Parallel()
	f := setupForeign(t)
	srv := httptest.NewServer(f.handler)
	t.Cleanup(srv.Close)
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	properties := map[string]any{}
	for name, value := range awkward {
		properties[name] = map[string]any{"examples": []any{value}}
	}
	schema, err := json.Marshal(map[string]any{"type": "object", "properties": properties, "additionalProperties": false, "required": []string{"", "__proto__", "big"}})
	f.must(err)
	// JSON may escape what it need not.
	schema = []byte(strings.Replace(string(schema), `"a/b"`, `"a\/b"`, 1))
	source := `{"keyfire":"v1","name":"tools/awkward","trigger":{"enabled":true},"input":` + string(schema) + `,"nodes":[{"id":"only","uses":"./only.wasm"}]}`
	published, err := f.admin.PublishWorkflow(context.Background(), f.boss, admin.Publish{
		Slug: "tools/awkward", Filename: "workflow.json", Source: []byte(source), Modules: map[string][]byte{"./only.wasm": []byte(wasm)},
	})
	f.must(err)
	all := f.call("GET", "/v1/workflows/tools%2Fawkward/snippets?url="+srv.URL, f.adminKey(), "").want(200)
	var body Snippets
	f.must(json.Unmarshal(all.body, &body))
	if len(body.Data) != 8 {
		t.Fatalf("%d snippets", len(body.Data))
	}
	want, err := json.Marshal(awkward)
	f.must(err)
	for _, s := range body.Data {
		t.Run(s.Client, func(t *testing.T) {
			t.Parallel()
			k, key := f.key(admin.NewKey{Scopes: []string{auth.ScopeRunWorkflow + published.Workflow.ID}})
			dir := t.TempDir()
			name := map[string]string{"sh": "snippet.sh", "python": "snippet.py", "javascript": "snippet.mjs", "go": "main.go"}[s.Language]
			command := map[string][]string{"sh": {"sh", name}, "python": {"python3", "-I", name}, "javascript": {"node", name}, "go": {"go", "run", "main.go"}}[s.Language]
			if s.Language == "sh" {
				program(t, "curl")
			}
			if err := os.WriteFile(filepath.Join(dir, name), []byte(s.Code), 0o600); err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), program(t, command[0]), command[1:]...)
			cmd.Dir = dir
			cmd.Env = append(os.Environ(), "KEYFIRE_KEY="+key, "no_proxy=*", "GOFLAGS=-trimpath", "GOWORK=off", "CGO_ENABLED=0", "PYTHONIOENCODING=utf-8", "GO111MODULE=on")
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v: %s\n%s", err, out, s.Code)
			}
			runs, err := f.store.Runs(context.Background(), core.DefaultAccount, core.RunFilter{KeyID: k.ID}, core.Page{})
			if err != nil || len(runs.Items) != 1 {
				t.Fatalf("%d runs, %v: %s", len(runs.Items), err, out)
			}
			run, err := f.store.Run(context.Background(), core.DefaultAccount, runs.Items[0].ID)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(numbers(t, want), numbers(t, run.Input)); diff != "" {
				t.Errorf("input -want +got:\n%s", diff)
			}
			if route := run.Trigger.Route; route != s.Client && (route != "native" || s.Client == "keyflow" || s.Client == "miiflow" || s.Client == "langflow" || s.Client == "bifrost") {
				t.Errorf("the run came in by %s", route)
			}
		})
	}
}

// numbers decodes JSON; whole numbers keep their digits, and others are what a double holds.
func numbers(t *testing.T, raw []byte) any {
	t.Helper()
	var v any
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		t.Fatal(err)
	}
	var walk func(any) any
	walk = func(v any) any {
		switch v := v.(type) {
		case map[string]any:
			for name := range v {
				v[name] = walk(v[name])
			}
		case []any:
			for i := range v {
				v[i] = walk(v[i])
			}
		case json.Number:
			if _, err := strconv.ParseUint(v.String(), 10, 64); err != nil {
				f, _ := v.Float64()
				return f
			}
		}
		return v
	}
	return walk(v)
}
