package cli

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keyfire/keyfire/runtime/wasm"
)

// scriptEngine finds the engine of JavaScript nodes: where npm install put it for the gallery.
func scriptEngine(t testing.TB) string {
	t.Helper()
	file, err := filepath.Abs(filepath.FromSlash("../../../examples/nodes/gallery/javascript/node_modules/" + wasm.ScriptEnginePackage + "/" + wasm.ScriptEngineFile))
	if err == nil {
		_, err = os.Stat(file)
	}
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skipf("SKIPPED: run npm install in examples/nodes/gallery/javascript: %v", err)
	}
	return file
}

// packed makes a package as npm does, of one file.
func packed(t *testing.T, name string, content []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content))}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestEngine installs the engine of JavaScript nodes and takes nothing else for it; a server that runs already then takes scripts.
func TestEngine(t *testing.T) {
	t.Parallel()
	engine, err := os.ReadFile(scriptEngine(t))
	if err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(engine)
	flipped[len(flipped)/2] ^= 1
	dir := t.TempDir()
	for name, content := range map[string][]byte{
		"flipped.wasm": flipped, "flipped.tgz": packed(t, "package/quickjs.wasm", flipped), "other.tgz": packed(t, "package/other.wasm", engine),
		"cut.tgz": packed(t, "package/quickjs.wasm", engine)[:50_000], "good.tgz": packed(t, "package/quickjs.wasm", engine), "text": []byte("hello"),
		"node.js":   []byte("export default async ({name}) => {\n  await null;\n  if (!name) null.length;\n  return `Hello, ${name}`;\n};\n"),
		"region.js": []byte("export default (_, ctx) => ctx.config.region;\n"),
		"bad.js":    []byte("export default () => {\n  let x = ;\n};\n"),
		"good.yaml": []byte("keyfire: v1\nname: scripted\ntrigger: {enabled: true}\nnodes:\n  - id: greet\n    uses: ./node.js\n    with: {name: \"${{ input.?name.orValue('') }}\"}\n"),
		"bad.yaml":  []byte("keyfire: v1\nname: broken\nnodes:\n  - id: greet\n    uses: ./bad.js\n"),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := startServer(t)
	env := []string{"KEYFIRE_DATA=" + s.data}
	keyfire := func(args ...string) (string, int) {
		out, errs, code := runKeyfire(t, dir, env, args...)
		return out + errs, code
	}
	want := func(code int, text string, args ...string) {
		t.Helper()
		if out, got := keyfire(args...); got != code || !strings.Contains(out, text) {
			t.Errorf("keyfire %s: exit %d, want %d with %q\n%s", strings.Join(args, " "), got, code, text, out)
		}
	}
	want(0, "npm pack", "engine", "show")
	if out, code := keyfire("apply", "good.yaml"); code == 0 || !strings.Contains(out, "keyfire engine install quickjs-wasi-") {
		t.Errorf("without an engine: exit %d\n%s", code, out)
	}
	for _, name := range []string{"flipped.wasm", "flipped.tgz", "other.tgz", "cut.tgz", "text", "absent"} {
		if out, code := keyfire("engine", "install", name); code == 0 {
			t.Errorf("%s was installed\n%s", name, out)
		}
	}
	want(0, "npm pack", "engine", "show")
	want(0, ".wasm", "engine", "install", "good.tgz")
	want(0, "yes", "engine", "show")
	want(0, `"eu"`, "node", "run", "region.js", "--config", "region=eu")
	want(1, "nor a script", "node", "run", "good.yaml")
	want(0, "scripted", "apply", "good.yaml")
	want(0, `Hello, Ada`, "trigger", "scripted", "-i", "name=Ada")
	if out, code := keyfire("trigger", "scripted"); code != exitRunFailed || !strings.Contains(out, "node.js:3:") {
		t.Errorf("a script that fails: exit %d\n%s", code, out)
	}
	if out, code := keyfire("apply", "bad.yaml"); code == 0 || !strings.Contains(out, "node.js:2:") || !strings.Contains(out, "SyntaxError") {
		t.Errorf("a script that is none: exit %d\n%s", code, out)
	}
}

// TestLanguagePages runs every command of the page of each language, in the order in which they stand there, in a copy of the gallery. A language whose
// toolchain is absent is skipped, loudly, unless KEYFIRE_TOOLCHAINS says that it must be there.
func TestLanguagePages(t *testing.T) {
	t.Parallel()
	source, err := filepath.Abs(filepath.FromSlash("../../../examples/nodes/gallery"))
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(filepath.Join(source, "output.json"))
	if err != nil {
		t.Fatal(err)
	}
	for lang, tools := range map[string][]string{"go": {"go"}, "rust": {"/usr/bin/rustc", "wasm-ld-14"}, "c": {"clang", "wasm-ld"}, "assemblyscript": {"npx"}, "javascript": {"npm"}} {
		t.Run(lang, func(t *testing.T) {
			t.Parallel()
			for _, tool := range tools {
				if _, err := exec.LookPath(tool); err != nil {
					if slices.Contains(strings.Fields(os.Getenv("KEYFIRE_TOOLCHAINS")), filepath.Base(tool)) {
						t.Fatal(err)
					}
					t.Skipf("SKIPPED: %v", err)
				}
			}
			tree := t.TempDir()
			for _, from := range []string{"examples/nodes/gallery", "sdk/node"} { // the Go node finds the SDK beside it
				if err := copyTracked(filepath.Join(tree, from), filepath.Join(source, "../../..", from)); err != nil {
					t.Fatal(err)
				}
			}
			dir := filepath.Join(tree, "examples/nodes/gallery", lang)
			if lang == "assemblyscript" {
				if err := os.Symlink(filepath.Join(source, lang, "node_modules"), filepath.Join(dir, "node_modules")); err != nil {
					t.Fatal(err)
				}
			}
			page, err := os.ReadFile(filepath.Join(dir, "README.md"))
			if err != nil {
				t.Fatal(err)
			}
			env := cleanEnv("KEYFIRE_DATA="+filepath.Join(tree, "data"), "GOFLAGS=-mod=mod -trimpath")
			ran, results := 0, 0
			for line := range strings.Lines(string(page)) {
				command, ok := strings.CutPrefix(strings.TrimRight(line, "\n"), "$ ")
				if !ok {
					continue
				}
				if strings.HasPrefix(command, "npm install") {
					if _, err := os.Stat(filepath.Join(dir, "node_modules", "assemblyscript")); err != nil {
						if os.Getenv("CI") == "true" {
							t.Fatal(err)
						}
						t.Skipf("SKIPPED: run npm install in examples/nodes/gallery/%s", lang)
					}
					continue // the packages are there; asking the registry again would prove nothing
				}
				if strings.HasPrefix(command, "npm pack") {
					// The package as the registry gives it was unpacked by npm install; the tests of the engine pack it again.
					engine, err := os.ReadFile(scriptEngine(t))
					if err != nil {
						t.Fatal(err)
					}
					name := wasm.ScriptEnginePackage + "-" + wasm.ScriptEngineVersion + ".tgz"
					if !strings.HasSuffix(command, wasm.ScriptEnginePackage+"@"+wasm.ScriptEngineVersion) {
						t.Errorf("the page packs another engine: %s", command)
					}
					if err := os.WriteFile(filepath.Join(dir, name), packed(t, "package/"+wasm.ScriptEngineFile, engine), 0o600); err != nil {
						t.Fatal(err)
					}
					continue
				}
				cmd := exec.Command("sh", "-c", command)
				cmd.Dir, cmd.Env = dir, env
				var stdout, stderr bytes.Buffer
				cmd.Stdout, cmd.Stderr = &stdout, &stderr
				if err := cmd.Run(); err != nil {
					if strings.Contains(stderr.String(), "can't find crate for") || strings.Contains(stderr.String(), "file not found") {
						t.Skipf("SKIPPED: the toolchain lacks WebAssembly:\n%s", stderr.String())
					}
					t.Fatalf("%s: %v\n%s%s", command, err, stdout.String(), stderr.String())
				}
				ran++
				if strings.HasPrefix(command, "keyfire node run") {
					results++
					var got, wanted any
					if err := errors.Join(json.Unmarshal(stdout.Bytes(), &got), json.Unmarshal(want, &wanted)); err != nil {
						t.Fatalf("%s: %v", command, err)
					}
					if diff := cmp.Diff(wanted, got); diff != "" {
						t.Errorf("%s (-want +got):\n%s", command, diff)
					}
				}
			}
			if ran < 3 || results == 0 {
				t.Errorf("the page has %d commands, %d of which run the node; is it written as this test reads it?", ran, results)
			}
		})
	}
}

// copyTracked copies a directory without what a build left there.
func copyTracked(to, from string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		switch {
		case d.IsDir() && d.Name() == "node_modules":
			return filepath.SkipDir
		case d.IsDir():
			return os.MkdirAll(filepath.Join(to, rel), 0o700)
		case strings.HasSuffix(path, ".wasm"), strings.HasSuffix(path, ".tgz"), !d.Type().IsRegular():
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, rel), b, 0o600)
	})
}
