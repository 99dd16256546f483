package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"syscall"
	"testing"
)

type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) {
	return 0, &os.PathError{Op: "write", Path: "/dev/stdout", Err: syscall.ENOSPC}
}

// A result that was not written is no success, whatever command has made it: a script would go on with half a file, or without the only copy of a secret.
func TestLostOutputIsAFailure(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"version"}, {"version", "--json"}, {"schema", "workflow"}, {"help"}, {"completion", "bash"}, {"config", "print"}} {
		var stderr bytes.Buffer
		env := Env{Args: args, Environ: cleanEnv("HOME=" + t.TempDir()), Stdin: strings.NewReader(""), Stdout: fullDisk{}, Stderr: &stderr}
		if status := Main(t.Context(), env); status != exitFailed {
			t.Errorf("%q: exit status %d, want %d", args, status, exitFailed)
		}
		if !strings.Contains(stderr.String(), syscall.ENOSPC.Error()) {
			t.Errorf("%q: standard error %q does not say why", args, stderr.String())
		}
		if _, err := (&output{to: fullDisk{}}).Write(nil); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("the writer hides the error from commands that look: %v", err)
		}
	}
}

// Only a terminal shows a secret to a person. Other devices are places where it would be kept, or lost.
func TestADeviceIsNoTerminal(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"/dev/null", "/dev/zero", "/dev/full"} {
		f, err := os.OpenFile(name, os.O_WRONLY, 0)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if isTerminal(f) || isTerminal(&output{to: f}) {
			t.Errorf("%s counts as a terminal", name)
		}
		f.Close()
	}
}

// Behind a wrong address there is often another web server, whose "Not Found" is not about the key or the run.
func TestAnAnswerOfSomethingElse(t *testing.T) {
	t.Parallel()
	other := httptest.NewServer(http.NotFoundHandler())
	defer other.Close()
	var stdout, stderr bytes.Buffer
	env := Env{Args: []string{"keys", "list", "--url", other.URL}, Environ: cleanEnv("HOME="+t.TempDir(), "KEYFIRE_KEY=kfa_x"), Stdin: strings.NewReader(""), Stdout: &stdout, Stderr: &stderr}
	if status := Main(t.Context(), env); status != exitFailed {
		t.Errorf("exit status %d, want %d", status, exitFailed)
	}
	if !strings.Contains(stderr.String(), "not one of Keyfire: 404") {
		t.Errorf("standard error %q", stderr.String())
	}
}

// What a proxy says in the server's place is no reason to doubt the address: a run that it did not wait for goes on, and its bounds are its operator's.
func TestAnAnswerOfAProxy(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		status, exit int
		says, hint   string
	}{
		{http.StatusGatewayTimeout, exitUnavailable, "may be done all the same", "keyfire runs list shows whether"},
		{http.StatusBadGateway, exitUnavailable, "may be done all the same", "keyfire runs list shows whether"},
		{http.StatusServiceUnavailable, exitUnavailable, "reaches no server", "keyfire runs list shows whether"},
		{http.StatusRequestEntityTooLarge, exitInvalid, "client_max_body_size", ""},
	} {
		proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			w.WriteHeader(c.status)
			_, _ = io.WriteString(w, "<html><h1>no</h1></html>")
		}))
		defer proxy.Close()
		var stdout, stderr bytes.Buffer
		env := Env{Args: []string{"trigger", "greet", "--url", proxy.URL}, Environ: cleanEnv("HOME="+t.TempDir(), "KEYFIRE_KEY=kft_x"), Stdin: strings.NewReader(""), Stdout: &stdout, Stderr: &stderr}
		if status := Main(t.Context(), env); status != c.exit {
			t.Errorf("%d: exit status %d, want %d", c.status, status, c.exit)
		}
		said := stderr.String()
		if !strings.Contains(said, c.says) || !strings.Contains(said, c.hint) || strings.Contains(said, "is the address right?") || c.hint == "" && strings.Contains(said, "runs list") {
			t.Errorf("%d: standard error %q", c.status, said)
		}
	}
}

// What callers choose cannot speak to the terminal of who looks at it, also where it is JSON and means the same as before.
func TestJSONForATerminal(t *testing.T) {
	t.Parallel()
	const value = "\u009b31m\x7fü"
	body := `{"object":"run","id":"run_1","status":"succeeded","input":{"a":"` + value + `"},"output":"` + value + `","metadata":{"m":"` + value + `"}}`
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, body)
	}))
	defer server.Close()
	for _, args := range [][]string{{"runs", "show", "run_1"}, {"runs", "show", "run_1", "--json"}} {
		var stdout, stderr bytes.Buffer
		env := Env{Args: append(args, "--url", server.URL), Environ: cleanEnv("HOME="+t.TempDir(), "KEYFIRE_KEY=kfa_x"), Stdin: strings.NewReader(""), Stdout: &stdout, Stderr: &stderr}
		if status := Main(t.Context(), env); status != exitOK {
			t.Fatalf("%q: exit status %d: %s", args, status, stderr.String())
		}
		if strings.ContainsAny(stdout.String(), "\u009b\x7f") || !strings.Contains(stdout.String(), `"\u009b31m\u007fü"`) {
			t.Errorf("%q: standard output %q", args, stdout.String())
		}
		var run struct{ Output string }
		if args[len(args)-1] == "--json" && (json.Unmarshal(stdout.Bytes(), &run) != nil || run.Output != value) {
			t.Errorf("the output is %q, want %q", run.Output, value)
		}
	}
}

// Every value stands below its heading, also in a table whose rows lack the last ones.
func TestTableColumns(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	a := &app{Env: Env{Stdout: &out}}
	a.table([][]string{{"NAME", "ID", "CREATED", "TITLE"}, {"default", "acct_default", "", ""}, {"acme", "acct_01", "2026-11-26", "x"}, {"b", "acct_02", "2026-11-27", ""}})
	want := "NAME     ID            CREATED     TITLE\ndefault  acct_default\nacme     acct_01       2026-11-26  x\nb        acct_02       2026-11-27\n"
	if out.String() != want {
		t.Errorf("got\n%swant\n%s", out.String(), want)
	}
}
