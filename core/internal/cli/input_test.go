package cli

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keyfire/keyfire/sdk/client"
)

func TestBuildInput(t *testing.T) {
	t.Parallel()
	object := writeFile(t, "o.json", `{"name": "Ada", "big": 12345678901234567890}`)
	list := writeFile(t, "l.json", `[1, 2]`)
	text := writeFile(t, "t.csv", "a,b\n\"1\",2\n")
	latin := writeFile(t, "l.csv", "name\nJos\xe9\n")
	broken := writeFile(t, "b.json", `{"name": }`)
	for _, tc := range []struct {
		name  string
		parts []string
		stdin string
		want  string
		err   string
	}{
		{"none", nil, "", "", ""},
		{"text", []string{"name=Ada"}, "", `{"name":"Ada"}`, ""},
		{"text that looks like JSON", []string{"n=1", "t=true"}, "", `{"n":"1","t":"true"}`, ""},
		{"empty text", []string{"name="}, "", `{"name":""}`, ""},
		{"text with =", []string{"q=a=b"}, "", `{"q":"a=b"}`, ""},
		{"JSON", []string{"n:=12.50", "l:=[1]", "s:=\"x\""}, "", `{"l":[1],"n":12.50,"s":"x"}`, ""},
		{"name with a space", []string{"Reference Document=x"}, "", `{"Reference Document":"x"}`, ""},
		{"file as text", []string{"csv=@" + text}, "", `{"csv":"a,b\n\"1\",2\n"}`, ""},
		{"file as JSON", []string{"items:=@" + list}, "", `{"items":[1,2]}`, ""},
		{"whole file, untouched", []string{"@" + object}, "", `{"name": "Ada", "big": 12345678901234567890}`, ""},
		{"whole file that is no object", []string{"@" + list}, "", `[1, 2]`, ""},
		{"whole file and a member", []string{"@" + object, "name=Eve"}, "", `{"big":12345678901234567890,"name":"Eve"}`, ""},
		{"standard input", []string{"@-"}, `{"a":1}`, `{"a":1}`, ""},
		{"standard input as text", []string{"csv=@-"}, "x", `{"csv":"x"}`, ""},
		{"whole object, untouched", []string{`{"name": "a=b", "big": 12345678901234567890}`}, "", `{"name": "a=b", "big": 12345678901234567890}`, ""},
		{"whole object and a member", []string{`{"name": "a=b", "n": 1.0}`, "name=Eve"}, "", `{"n":1.0,"name":"Eve"}`, ""},
		{"name that begins like an object", []string{"{x}=1"}, "", `{"{x}":"1"}`, ""},
		{"object that is not JSON", []string{`{name: Ada}`}, "", "", "or a JSON object"},
		{"no value", []string{"name"}, "", "", "want name=text"},
		{"no name", []string{"=x"}, "", "", "want name=text"},
		{"not JSON", []string{"n:={"}, "", "", "is not JSON: at byte 1"},
		{"broken file", []string{"@" + broken}, "", "", "b.json is not JSON: at byte 10"},
		{"no file", []string{"@/nowhere/x"}, "", "", "no such file"},
		{"text that is not UTF-8", []string{"csv=@" + latin}, "", "", "-i csv: the text is not UTF-8"},
		{"argument that is not UTF-8", []string{"name=\xe9"}, "", "", "-i name: the text is not UTF-8"},
		{"the same member twice", []string{"a=1", "b=2", "a:=3"}, "", "", "-i a: this member is given twice"},
		{"list and members", []string{"@" + list, "a=b"}, "", "", "want a JSON object"},
		{"null and members", []string{"a=b", "@-"}, "null", "", "want a JSON object"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			a := &app{Env: Env{Stdin: strings.NewReader(tc.stdin)}}
			got, err := a.buildInput(tc.parts)
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Errorf("error %v, want one with %q", err, tc.err)
				}
				return
			}
			if err != nil || string(got) != tc.want {
				t.Errorf("input %s, %v; want %s", got, err, tc.want)
			}
		})
	}
}

func TestParseExpiry(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 21, 10, 0, 0, 123, time.UTC)
	for text, want := range map[string]client.NewKey{
		"":                          {},
		"never":                     {NeverExpire: true},
		"30d":                       {ExpiresAt: time.Date(2026, 12, 21, 10, 0, 0, 0, time.UTC)},
		"12h":                       {ExpiresAt: time.Date(2026, 11, 21, 22, 0, 0, 0, time.UTC)},
		"2027-01-31":                {ExpiresAt: time.Date(2027, 2, 1, 0, 0, 0, 0, time.UTC)},
		"2026-11-21":                {ExpiresAt: time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)},
		"2027-01-31T18:00:00+02:00": {ExpiresAt: time.Date(2027, 1, 31, 16, 0, 0, 0, time.UTC)},
	} {
		var k client.NewKey
		if err := parseExpiry(&k, text, now); err != nil {
			t.Errorf("%q: %v", text, err)
		} else if diff := cmp.Diff(want, k); diff != "" {
			t.Errorf("%q: (-want +got)\n%s", text, diff)
		}
	}
	for text, want := range map[string]string{
		"0d": "want 30d", "-3d": "want 30d", "tomorrow": "want 30d", "1.5d": "want 30d", "-5h": "is in the past", "2026-11-20": "is in the past",
	} {
		if err := parseExpiry(new(client.NewKey), text, now); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want one with %q", text, err, want)
		}
	}
}

func TestFindWorkflows(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, name := range []string{"b/workflow.yaml", "a/workflow.json", "a/x/workflow.yml", "a/other.yaml", "c/notes.txt"} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	files, single, err := findWorkflows([]string{dir})
	want := []string{filepath.Join(dir, "a/workflow.json"), filepath.Join(dir, "a/x/workflow.yml"), filepath.Join(dir, "b/workflow.yaml")}
	if diff := cmp.Diff(want, files); diff != "" || single || err != nil {
		t.Errorf("single %v, %v (-want +got)\n%s", single, err, diff)
	}
	if files, single, err := findWorkflows([]string{want[0]}); len(files) != 1 || !single || err != nil {
		t.Errorf("one file: %v, %v, %v", files, single, err)
	}
	if _, _, err := findWorkflows([]string{filepath.Join(dir, "c")}); err == nil || !strings.Contains(err.Error(), "holds no workflow.yaml") {
		t.Errorf("directory without workflows: %v", err)
	}
	if _, _, err := findWorkflows([]string{filepath.Join(dir, "nowhere")}); !os.IsNotExist(err) {
		t.Errorf("no such directory: %v, want %v", err, fs.ErrNotExist)
	}
}

func TestOutline(t *testing.T) {
	t.Parallel()
	name, uses, err := outline([]byte(`
keyfire: v1
name: w
some_new_field: {x: 1}
nodes:
  - {id: a, uses: ./a.wasm}
  - {id: b, uses: "sha256:00"}
  - {id: c, uses: ../c.wasm}
  - {id: d, uses: ./a.wasm}
  - {id: e, uses: "workflow:other@2"}
`), "w.yaml")
	if diff := cmp.Diff([]string{"./a.wasm", "../c.wasm"}, uses); diff != "" || name != "w" || err != nil {
		t.Errorf("name %q, %v (-want +got)\n%s", name, err, diff)
	}
	for _, bad := range []string{"name: [", "nodes: []", "name: 7", "- a", ""} {
		if name, _, err := outline([]byte(bad), "w.yaml"); err == nil {
			t.Errorf("%q: name %q, want an error", bad, name)
		}
	}
}

func TestPrintable(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"plain ünïcode\t": "plain ünïcode\t",
		"a\x1b]0;x\x07b":  `a\x1b]0;x\x07b`,
		"two\nlines":      `two\x0alines`,
	} {
		if got := printable(text); got != want {
			t.Errorf("printable(%q) = %q, want %q", text, got, want)
		}
	}
}

func TestShellQuote(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{"/var/lib/k": "/var/lib/k", "": "''", "a b": "'a b'", "it's": `'it'\''s'`, "$HOME": "'$HOME'"} {
		if got := shellQuote(text); got != want {
			t.Errorf("shellQuote(%q) = %s, want %s", text, got, want)
		}
	}
}
