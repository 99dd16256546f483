package cli

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func runKeyfire(t *testing.T, dir string, env []string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := exec.Command("keyfire", args...)
	cmd.Dir, cmd.Env = dir, cleanEnv(env...)
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
	for lang, need := range map[string][]string{"go": {"go"}, "rust": {"/usr/bin/rustc", "wasm-ld-14"}, "c": {"clang"}, "assemblyscript": {"npx"}, "js": nil} {
		t.Run(lang, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			out, errs, code := runKeyfire(t, dir, nil, "node", "new", "--lang", lang, "hello")
			if code != 0 || !strings.Contains(out, filepath.Join("hello", "Makefile")) {
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
			node := filepath.Join(dir, "hello")
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
			cmd := exec.Command("make", "-C", node, "test", "KEYFIRE="+keyfire, "--old-file=node_modules")
			cmd.Env = cleanEnv()
			if out, err := cmd.CombinedOutput(); err != nil {
				if strings.Contains(string(out), "can't find crate for") || strings.Contains(string(out), "file not found") {
					t.Skipf("SKIPPED: the toolchain lacks WebAssembly:\n%s", out)
				}
				t.Fatalf("%v\n%s", err, out)
			}
		})
	}
	dir := t.TempDir()
	for _, args := range [][]string{{"hello"}, {"--lang", "cobol", "hello"}, {"--lang", "js", "Hello"}, {"--lang", "..", "hello"}} {
		if _, errs, code := runKeyfire(t, dir, nil, append([]string{"node", "new"}, args...)...); code != exitUsage {
			t.Errorf("%v: exit %d\n%s", args, code, errs)
		}
	}
	if _, _, code := runKeyfire(t, dir, nil, "node", "new", "--lang", "js", "hello"); code != 0 {
		t.Errorf("exit %d", code)
	}
	if _, errs, code := runKeyfire(t, dir, nil, "node", "new", "--lang", "js", "hello"); code != exitFailed || !strings.Contains(errs, "exists") {
		t.Errorf("a second time: exit %d\n%s", code, errs)
	}
}

// TestNodeRun runs a script with all that --grant gives, and shows how failures end.
func TestNodeRun(t *testing.T) {
	t.Parallel()
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("pong")) }))
	defer service.Close()
	dir := t.TempDir()
	script := `export default (input, ctx) => {
		if (input.op === 'fail') ctx.fail(409, 'taken', 'it is taken');
		if (input.op === 'loop') for (;;) {}
		ctx.log.warn('the token is ' + ctx.secret('TOKEN'));
		ctx.kv.put('k', 'v');
		return {pong: ctx.http(input.url).body, kept: ctx.kv.get('k'), region: ctx.config.region};
	}`
	if err := os.WriteFile(filepath.Join(dir, "n.js"), []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	grants := []string{"--grant", "http=GET " + service.URL, "--grant", "secret=TOKEN", "--grant", "kv=write", "--allow", "127.0.0.0/8"}
	run := func(more ...string) (string, string, int) {
		return runKeyfire(t, dir, []string{"TOKEN=s3cretvalue"}, slices.Concat([]string{"node", "run", "n.js"}, more)...)
	}
	out, errs, code := run(slices.Concat(grants, []string{"-i", "url=" + service.URL + "/x", "--config", "region=eu"})...)
	if code != 0 || strings.TrimSpace(out) != `{"pong":"pong","kept":"v","region":"eu"}` || !strings.Contains(errs, "warn  the token is [redacted]") {
		t.Errorf("exit %d\n%s%s", code, out, errs)
	}
	for _, tt := range []struct {
		args []string
		code int
		text string
	}{
		{[]string{"-i", "url=" + service.URL}, exitRunFailed, "grants: {secrets: [TOKEN]}"},
		{slices.Concat(grants[:6], []string{"-i", "url=" + service.URL}), exitRunFailed, "private, local or reserved"},
		{[]string{"-i", "op=fail"}, exitRunFailed, "it is taken"},
		{[]string{"-i", "op=loop", "--timeout", "200ms"}, exitRunTimedOut, "200ms"},
		{[]string{"--grant", "files=/"}, exitUsage, "want http="},
		{[]string{"--grant", "http=everything"}, exitUsage, "GET https://api.example.com"},
	} {
		if out, errs, code := run(tt.args...); code != tt.code || !strings.Contains(errs, tt.text) {
			t.Errorf("%v: exit %d, want %d with %q\n%s%s", tt.args, code, tt.code, tt.text, out, errs)
		}
	}

	out, errs, code = runKeyfire(t, dir, nil, "node", "inspect", "n.js", "--json")
	var info moduleInfo
	if err := json.Unmarshal([]byte(out), &info); err != nil || code != 0 || info.Door != "javascript" || info.Size != int64(len(script)) {
		t.Errorf("inspect: exit %d, %v\n%s%s", code, err, out, errs)
	}
	out, errs, code = runKeyfire(t, dir, nil, "node", "inspect", filepath.Join(workflowsDir(t), "node.wasm"))
	if code != 0 || !strings.Contains(out, "command") || !strings.Contains(out, "sha256:") {
		t.Errorf("inspect: exit %d\n%s%s", code, out, errs)
	}
}
