package cli

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/runtime/wasm"
)

func runKeyfire(t *testing.T, dir string, env []string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	return runKeyfireInput(t, dir, env, "", args...)
}

func runKeyfireInput(t *testing.T, dir string, env []string, stdin string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := exec.Command("keyfire", args...)
	cmd.Dir, cmd.Env, cmd.Stdin = dir, cleanEnv(env...), strings.NewReader(stdin)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// TestNodeNew makes a node in each language, and runs its own test.
func TestNodeNew(t *testing.T) {
	t.Parallel()
	keyfire, err := exec.LookPath("keyfire")
	if err != nil {
		t.Fatal(err)
	}
	for lang, need := range map[string][]string{"go": {"go"}, "rust": {"/usr/bin/rustc", "wasm-ld-14"}, "c": {"clang"}, "assemblyscript": {"npx"}, "javascript": nil} {
		t.Run(lang, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			const name = "fmt" // a package of Go's own
			out, errs, code := runKeyfire(t, dir, nil, "node", "new", "--lang", lang, name)
			if code != 0 || !strings.Contains(out, filepath.Join(name, "Makefile")) {
				t.Fatalf("exit %d\n%s%s", code, out, errs)
			}
			for _, tool := range append([]string{"make"}, need...) {
				if _, err := exec.LookPath(tool); err != nil {
					if slices.Contains(strings.Fields(os.Getenv("KEYFIRE_TOOLCHAINS")), filepath.Base(tool)) {
						t.Fatal(err)
					}
					t.Skipf("SKIPPED: %v", err)
				}
			}
			node := filepath.Join(dir, name)
			if lang == "assemblyscript" {
				modules, err := filepath.Abs("../../../examples/nodes/gallery/assemblyscript/node_modules")
				if err == nil {
					_, err = os.Stat(modules)
				}
				if err != nil {
					t.Skipf("SKIPPED: run npm install in examples/nodes/gallery/assemblyscript: %v", err)
				}
				if err := os.Symlink(modules, filepath.Join(node, "node_modules")); err != nil {
					t.Fatal(err)
				}
			}
			var env []string
			if lang == "javascript" {
				env = []string{"KEYFIRE_ENGINES_JAVASCRIPT=" + scriptEngine(t)}
			}
			cmd := exec.Command("make", "-C", node, "test", "KEYFIRE="+keyfire, "--old-file=node_modules")
			cmd.Env = cleanEnv(env...)
			if out, err := cmd.CombinedOutput(); err != nil {
				if strings.Contains(string(out), "can't find crate for") || strings.Contains(string(out), "file not found") {
					t.Skipf("SKIPPED: the toolchain lacks WebAssembly:\n%s", out)
				}
				t.Fatalf("%v\n%s", err, out)
			}
		})
	}
	dir := t.TempDir()
	for _, args := range [][]string{{"hello"}, {"--lang", "cobol", "hello"}, {"--lang", "go", "Hello"}, {"--lang", "..", "hello"}} {
		if _, errs, code := runKeyfire(t, dir, nil, append([]string{"node", "new"}, args...)...); code != exitUsage {
			t.Errorf("%v: exit %d\n%s", args, code, errs)
		}
	}
	if _, _, code := runKeyfire(t, dir, nil, "node", "new", "--lang", "go", "hello"); code != 0 {
		t.Errorf("exit %d", code)
	}
	if _, errs, code := runKeyfire(t, dir, nil, "node", "new", "--lang", "go", "hello"); code != exitFailed || !strings.Contains(errs, "exists") {
		t.Errorf("a second time: exit %d\n%s", code, errs)
	}
}

// TestNodeRun runs a node with all that --grant gives, and shows how failures end.
func TestNodeRun(t *testing.T) {
	t.Parallel()
	keys := make(chan string, 10)
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		keys <- r.Header.Get("Idempotency-Key")
		w.Write([]byte("pong"))
	}))
	defer service.Close()
	dir := t.TempDir()
	buildTypedNode(t, filepath.Join(dir, "typed.wasm"))
	grants := []string{"--grant", "http=GET " + service.URL, "--grant", "secret=TOKEN", "--grant", "kv=write", "--allow", "127.0.0.0/8"}
	tmp := t.TempDir()
	run := func(more ...string) (string, string, int) {
		return runKeyfire(t, dir, []string{"TOKEN=s3cretvalue", "TMPDIR=" + tmp}, slices.Concat([]string{"node", "run", "typed.wasm"}, more)...)
	}
	for _, tt := range []struct {
		args []string
		code int
		out  string
		errs string
	}{
		{slices.Concat(grants, []string{"-i", "op=http", "-i", "url=" + service.URL + "/x"}), 0, `"body":"pong"`, ""},
		{slices.Concat(grants, []string{"-i", "op=config", "--config", "region=eu", "--cache", "off"}), 0, `"config":"eu"`, ""},
		{slices.Concat(grants, []string{"-i", "op=secret"}), 0, `[redacted]`, "the secret is [redacted]"},
		{slices.Concat(grants, []string{"-i", "op=count"}), 0, `"status":1`, ""},
		{slices.Concat(grants[:6], []string{"-i", "op=http", "-i", "url=" + service.URL}), exitRunFailed, "", "private, local or reserved"},
		{slices.Concat(grants, []string{"-i", "op=fail"}), exitRunFailed, "", "on purpose (409 duplicate_invoice): this invoice exists"},
		{slices.Concat(grants, []string{"-i", "op=echo", "-i", `any:={"a":1,"a":2}`}), exitRunFailed, "", "invalid_output"}, // as on a server
		{[]string{"-i", "op=echo"}, exitRunFailed, "", "grants: {"},
		{[]string{"--grant", "files=/"}, exitUsage, "", "want http="},
		{[]string{"--cache", ""}, exitUsage, "", "off keeps nothing"},
		{[]string{"--timeout", "0s"}, exitUsage, "", "more than 0s"},
		{[]string{"--timeout", "301s"}, exitUsage, "", "at most 5m0s"},
		{[]string{"--grant", "http=everything"}, exitUsage, "", "GET https://api.example.com"},
	} {
		if out, errs, code := run(tt.args...); code != tt.code || !strings.Contains(out, tt.out) || !strings.Contains(errs, tt.errs) {
			t.Errorf("%v: exit %d, want %d with %q and %q\n%s%s", tt.args, code, tt.code, tt.out, tt.errs, out, errs)
		}
	}
	if key := <-keys; !strings.HasPrefix(key, "local-") || !strings.HasSuffix(key, "/node") {
		t.Errorf("Idempotency-Key %q", key)
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("left among the temporary files: %v, %v", left, err)
	}
	command := filepath.Join(workflowsDir(t), "node.wasm")
	if _, errs, code := runKeyfire(t, dir, nil, "node", "run", command, "-i", "do=loop", "--timeout", "200ms"); code != exitRunTimedOut || !strings.Contains(errs, "200ms") {
		t.Errorf("loop: exit %d\n%s", code, errs)
	}
	out, errs, code := runKeyfire(t, dir, nil, "node", "inspect", "typed.wasm", "--json")
	var info moduleInfo
	if err := json.Unmarshal([]byte(out), &info); err != nil || code != 0 || info.Door != "reactor" {
		t.Errorf("inspect: exit %d, %v\n%s%s", code, err, out, errs)
	}
	// One import a line, each in the column of the first.
	out, errs, code = runKeyfire(t, dir, nil, "node", "inspect", "typed.wasm")
	if column := strings.Index(out, "sha256:"); code != 0 || !strings.Contains(out, "\n"+strings.Repeat(" ", column)+"keyfire_v1.") {
		t.Errorf("inspect: exit %d\n%s%s", code, out, errs)
	}
	// What cannot be measured is still inspected.
	bad := filepath.Join(dir, "bad.json")
	if err := os.WriteFile(bad, []byte(`{"op":"nothing that it knows"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	out, errs, code = runKeyfire(t, dir, nil, "node", "inspect", "typed.wasm", "--measure", "--grant", "http=GET "+service.URL, "--grant", "secret=TOKEN", "--grant", "kv=write", "-i", "@"+bad)
	if code != exitRunFailed || !strings.Contains(out, "sha256:") || strings.Contains(errs, "-i gives") || strings.Contains(errs, "denied") {
		t.Errorf("measure with a bad input: exit %d\n%s%s", code, out, errs)
	}
	out, errs, code = runKeyfire(t, dir, nil, "node", "inspect", "typed.wasm", "--measure")
	if code != exitRunFailed || !strings.Contains(out, "sha256:") || !strings.Contains(errs, "measured with {} as its input; -i gives") || !strings.Contains(errs, "grants: {") {
		t.Errorf("measure without an input: exit %d\n%s%s", code, out, errs)
	}
	out, errs, code = runKeyfire(t, dir, nil, "node", "inspect", command)
	if code != 0 || !strings.Contains(out, "command") || !strings.Contains(out, "sha256:") {
		t.Errorf("inspect: exit %d\n%s%s", code, out, errs)
	}
}

// TestNodeRunValues: the values of keyfire node run have a server's bounds.
func TestNodeRunValues(t *testing.T) {
	t.Parallel()
	k := &memoryKV{values: make(map[string][]byte)}
	put := func(key string, value []byte) core.Code {
		_, err := k.Swap(t.Context(), "", "", key, value, false, nil)
		return core.CodeOf(err)
	}
	large := make([]byte, wasm.MaxKVValue)
	for i := range wasm.MaxKVBytes/len(large) - 1 {
		if code := put(fmt.Sprint(i), large); code != "" {
			t.Fatalf("value %d: %s", i, code)
		}
	}
	for _, step := range []struct {
		key   string
		value []byte
		want  core.Code
	}{{"a", large, core.CodeQuotaExhausted}, {"0", nil, ""}, {"a", large, ""}, {"a", large[:1], ""}, {"a", nil, ""}, {"1", large, ""}} {
		if code := put(step.key, step.value); code != step.want {
			t.Errorf("%s with %d bytes: %q, want %q", step.key, len(step.value), code, step.want)
		}
	}
	for i := range wasm.MaxKVKeys - len(k.values) {
		if code := put(fmt.Sprint("k", i), []byte{}); code != "" {
			t.Fatal(code)
		}
	}
	if code := put("one more", []byte{}); code != core.CodeQuotaExhausted {
		t.Errorf("beyond %d keys: %q", wasm.MaxKVKeys, code)
	}
}
