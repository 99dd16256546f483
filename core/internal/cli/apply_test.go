package cli

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/keyfire/keyfire/sdk/client"
)

// A server that is too busy to publish says when to come back, and apply does. The server is real; what is in front of it speaks for it while it is busy.
func TestApplyInsists(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	target, err := url.Parse(s.url)
	if err != nil {
		t.Fatal(err)
	}
	behind := httputil.NewSingleHostReverseProxy(target)
	for name, c := range map[string]struct {
		busy     int64 // so many times
		problem  string
		attempts int64
		output   string
		fails    bool
	}{
		"busy":          {2, `{"code":"overloaded","detail":"this machine is too busy to compile the module","retryable":true}`, 3, "unchanged echo@1", false},
		"busy for long": {9, `{"code":"overloaded","detail":"this machine is too busy to compile the module","retryable":true}`, 3, "too busy to compile the module", true},
		"for good":      {1, `{"code":"store_unavailable","detail":"the disk is gone","retryable":false}`, 1, "the disk is gone", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var attempts atomic.Int64
			front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Method != http.MethodPut || attempts.Add(1) > c.busy {
					behind.ServeHTTP(w, r)
					return
				}
				w.Header().Set("Content-Type", "application/problem+json")
				w.Header().Set("Retry-After", "0")
				w.WriteHeader(http.StatusServiceUnavailable)
				_, _ = w.Write([]byte(c.problem))
			}))
			defer front.Close()
			key := s.createKey(t, client.NewKey{Name: "publish", Type: "admin"})
			cmd := exec.Command("keyfire", "apply", filepath.Join(workflowsDir(t), "echo"))
			cmd.Env = cleanEnv("KEYFIRE_URL="+front.URL, "KEYFIRE_KEY="+key.Secret)
			out, err := cmd.CombinedOutput()
			if (err != nil) != c.fails || !strings.Contains(string(out), c.output) || attempts.Load() != c.attempts {
				t.Errorf("%v after %d attempts:\n%s", err, attempts.Load(), out)
			}
		})
	}
}

// What would change is said before it does, and what has changed can be taken back.
func TestApplyDryRunAndRollback(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	dir := filepath.Join(t.TempDir(), "echo")
	if err := errors.Join(os.Mkdir(dir, 0o700), os.Symlink(filepath.Join(workflowsDir(t), "node.wasm"), filepath.Join(dir, "../node.wasm"))); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "workflow.yaml")
	source, err := os.ReadFile(filepath.Join(workflowsDir(t), "echo", "workflow.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	keyfire := func(want string, args ...string) {
		t.Helper()
		if out, errs, code := runKeyfire(t, dir, []string{"KEYFIRE_DATA=" + s.data}, args...); !strings.Contains(out+errs, want) || (code == 0) != (errs == "") {
			t.Errorf("%v: exit %d, want %q\n%s%s", args, code, want, out, errs)
		}
	}
	change := func(from, to string) {
		t.Helper()
		changed := strings.Replace(string(source), from, to, 1)
		if changed == string(source) {
			t.Fatalf("no %q in\n%s", from, source)
		}
		if err := os.WriteFile(file, []byte(changed), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	change("keyfire: v1", "keyfire:   v1")
	keyfire("unchanged echo@1\n", "apply", "--dry-run", ".")
	change("name: echo", "name: echo-again")
	keyfire("would publish echo-again@1, a new workflow\n", "apply", "--dry-run", ".")
	keyfire("no such workflow", "workflows", "versions", "echo-again")
	change("title: Give back the input", "title: \"\u009b31m\"\naliases: [ a, b ]")
	keyfire("would publish echo@2\n  + aliases [\"a\",\"b\"]\n  - title \"Give back the input\"\n  + title \"\\u009b31m\"\n", "apply", "--dry-run", ".")
	keyfire("published echo@2\n", "apply", ".")
	change("name: echo", "name: echo\naliases: [ b, c ]")
	keyfire("would publish echo@3\n  - aliases \"a\"\n  + aliases \"c\"\n  - title \"\\u009b31m\"\n", "apply", "--dry-run", ".")
	change("name: echo", "nam: echo")
	keyfire(`did you mean "name"?`, "apply", "--dry-run", ".")

	keyfire("keyfire workflows versions echo lists them", "workflows", "rollback", "echo")
	keyfire("would publish echo@3\n  - aliases", "workflows", "rollback", "echo@1", "--dry-run")
	keyfire("published echo@3\n", "workflows", "rollback", "echo@1")
	keyfire("unchanged echo@3\n", "workflows", "rollback", "echo@1")
	keyfire("keyfire workflows versions echo the versions", "workflows", "rollback", "echo@9")
	keyfire("\n3        ", "workflows", "versions", "echo")
	keyfire("ok (as version 1)", "audit", "list")
}

// Two files of one name would replace each other, once more with every apply. Nothing is published then, and it is said which files they are.
func TestApplyRefusesTwoFilesOfOneName(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	dir := t.TempDir()
	write := func(path, name string) string {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		text := "keyfire: v1\nname: " + name + "\nnodes:\n  - id: a\n    uses: ./node.wasm\n"
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for i, path := range []string{"all/a/workflow.yaml", "all/b/workflow.yaml", "all/c/workflow.json"} {
		write(path, []string{"one", "two", "one"}[i])
	}
	for _, args := range [][]string{{"all"}, {write("one.yaml", "two"), filepath.Join("all", "b")}, {"one.yaml", "one.yaml"}} {
		out, errs, code := runKeyfire(t, dir, []string{"KEYFIRE_DATA=" + s.data}, append([]string{"apply"}, args...)...)
		if code != exitUsage || out != "" || !strings.Contains(errs, "both called") {
			t.Errorf("%v: exit %d\n%s%s", args, code, out, errs)
		}
	}
	// A directory without a file of the right name says which names are, and what to do with another.
	if _, errs, code := runKeyfire(t, filepath.Dir(write("other/mine.yaml", "mine")), nil, "apply", "."); code != exitUsage || !strings.Contains(errs, "name the file itself") {
		t.Errorf("exit %d\n%s", code, errs)
	}
}
