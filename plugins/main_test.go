package plugins

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/sdk/authplugin"
	"github.com/keyfire/keyfire/sdk/authplugin/authv1"
)

// The test binary is also the plugin: with the cookie in its environment it serves faulty, whose behaviour a credential chooses, or
// misbehaves before the handshake as FAULT says.
func TestMain(m *testing.M) {
	if os.Getenv(authv1.CookieKey) != "" {
		misstart(os.Getenv("FAULT"))
		authplugin.Serve(&faulty{})
	}
	if dir := os.Getenv("PLUGINS_TEST_HOST"); dir != "" {
		serveHost(dir)
	}
	goleak.VerifyTestMain(m)
}

// misstart never returns for a FAULT it knows.
func misstart(fault string) {
	switch fault {
	case "":
		return
	case "exit 0":
		os.Exit(0)
	case "hang":
		time.Sleep(time.Hour)
	case "panic":
		panic("at start")
	case "garbage":
		fmt.Println("\x1b[31mhello, world|\xff\xfe")
	case "long garbage":
		fmt.Println(strings.Repeat("A", 1<<20))
	case "wrong version":
		fmt.Println("1|99|unix|/nowhere|grpc|")
	case "wrong core version":
		fmt.Println("2|1|unix|/nowhere|grpc|")
	case "netrpc":
		fmt.Println("1|1|unix|" + os.Getenv("PLUGIN_UNIX_SOCKET_DIR") + "/s|netrpc|")
	case "tcp":
		fmt.Println("1|1|tcp|127.0.0.1:1|grpc|")
	case "foreign socket":
		fmt.Println("1|1|unix|/tmp/somebody-elses.sock|grpc|")
	case "no certificate":
		fmt.Println("1|1|unix|" + os.Getenv("PLUGIN_UNIX_SOCKET_DIR") + "/s|grpc|")
	}
	time.Sleep(time.Hour)
}

// faulty does what the credential says.
type faulty struct {
	mu     sync.Mutex
	config struct {
		Account string   `json:"account"`
		Scopes  []string `json:"scopes"`
		Label   string   `json:"label"`
		Fail    string   `json:"fail"`
	}
}

func (f *faulty) Version() string { return "1.2.3" }

func (f *faulty) Validate(config []byte) error {
	var c struct {
		Account, Label, Fail string
		Scopes               []string
	}
	if err := authplugin.DecodeConfig(config, &c); err != nil {
		return err
	}
	if c.Fail != "" {
		return errors.Join(errors.New("first problem"), errors.New(c.Fail))
	}
	return nil
}

func (f *faulty) Configure(_ context.Context, config []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.Validate(config); err != nil {
		return err
	}
	return json.Unmarshal(config, &f.config)
}

func (f *faulty) Authenticate(ctx context.Context, r *authplugin.Request) (*authplugin.Principal, error) {
	f.mu.Lock()
	p := &authplugin.Principal{Subject: "alice", Account: f.config.Account, Scopes: f.config.Scopes, Attributes: map[string]string{"label": f.config.Label}}
	f.mu.Unlock()
	fault, _ := strings.CutPrefix(r.Credential, "tok_")
	switch fault {
	case "ok":
	case "see": // tells everything it was shown
		p.Attributes = map[string]string{
			"scheme": r.Scheme, "source": r.Source.String(), "method": r.Method, "path": r.Path, "workflow": r.Workflow,
			"body": string(r.Body), "header": fmt.Sprint(map[string][]string(r.Header)), "trace": r.TraceParent, "env": strings.Join(visibleEnv(), " "),
		}
	case "deny":
		return nil, authplugin.Deny("unknown token")
	case "deny-cached":
		return nil, &authplugin.Denied{Reason: fmt.Sprint(time.Now().UnixNano()), TTL: 10 * time.Second}
	case "not mine":
		return nil, authplugin.ErrNotMine
	case "error":
		return nil, errors.New("directory is down")
	case "both":
		return p, errors.New("and yet")
	case "neither":
		return nil, nil
	case "no subject":
		p.Subject = ""
	case "control characters":
		p.Subject = "alice\nroot"
	case "foreign account":
		p.Account = "acct_other"
	case "foreign scope":
		p.Scopes = []string{"keys:write"}
	case "expired":
		p.ExpiresAt = time.Now().Add(-time.Second)
	case "many scopes":
		p.Scopes = strings.Split(strings.Repeat("run:workflow/x ", 100), " ")
	case "slow":
		<-ctx.Done()
		return nil, ctx.Err()
	case "deaf":
		time.Sleep(3 * time.Second)
	case "panic":
		panic("secret " + r.Credential)
	case "crash":
		go panic("in another goroutine")
		time.Sleep(time.Hour)
	case "exit 0":
		os.Exit(0)
	case "kill":
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		time.Sleep(time.Hour)
	case "stop":
		_ = syscall.Kill(os.Getpid(), syscall.SIGSTOP)
		time.Sleep(time.Hour) // the signal may take a moment to stop this thread
	case "big reply":
		return nil, authplugin.Deny(strings.Repeat("x", 64<<20))
	case "half reply":
		go func() { time.Sleep(time.Millisecond); _ = syscall.Kill(os.Getpid(), syscall.SIGKILL) }()
		return nil, authplugin.Deny(strings.Repeat("x", 60<<10))
	case "flood":
		flood(os.Stderr, 100<<20)
	case "escape":
		_, _ = fmt.Fprintln(os.Stderr, "\x1b[31mred\x07 and \xff")
	default:
		return nil, authplugin.Deny("unknown token")
	}
	return p, nil
}

func flood(w io.Writer, n int) {
	line := []byte(strings.Repeat("flood ", 20) + "\n")
	for ; n > 0; n -= len(line) {
		if _, err := w.Write(line); err != nil {
			return
		}
	}
}

// visibleEnv is the environment but for the handshake's part of it.
func visibleEnv() []string {
	var all []string
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "PLUGIN_") && !strings.HasPrefix(e, "KEYFIRE_") {
			all = append(all, e)
		}
	}
	return all
}

// pluginHere returns a configuration that runs the test binary.
func pluginHere(t testing.TB, name string, env ...string) Plugin {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return Plugin{
		Name: name, Path: path, SHA256: digestHere(t), Env: env,
		Config: json.RawMessage(`{"account": "acct_a", "scopes": ["run:*"]}`),
		Route:  auth.Route{Prefixes: []string{"tok_"}},
		Grant:  auth.Grant{Accounts: []string{"acct_a"}, Scopes: []string{"run:*"}},
	}
}

var digestHere = func() func(testing.TB) string {
	once := sync.OnceValues(func() (string, error) {
		path, err := os.Executable()
		if err != nil {
			return "", err
		}
		return Digest(path)
	})
	return func(t testing.TB) string {
		t.Helper()
		d, err := once()
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
}()

// events collects a Host's events and lets tests wait for one.
type events struct {
	mu   sync.Mutex
	all  []Event
	more chan struct{}
}

func newEvents() *events { return &events{more: make(chan struct{})} }

func (e *events) add(ev Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, ev)
	close(e.more)
	e.more = make(chan struct{})
}

// count returns how many events of the kind there were so far.
func (e *events) count(plugin string, kind EventKind) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	n := 0
	for _, ev := range e.all {
		if ev.Plugin == plugin && ev.Kind == kind {
			n++
		}
	}
	return n
}

// await waits until there were n events of the kind and returns the n-th.
func (e *events) await(t testing.TB, plugin string, kind EventKind, n int) Event {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		e.mu.Lock()
		seen := 0
		for _, ev := range e.all {
			if ev.Plugin == plugin && ev.Kind == kind {
				if seen++; seen == n {
					e.mu.Unlock()
					return ev
				}
			}
		}
		more, have := e.more, append([]Event(nil), e.all...)
		e.mu.Unlock()
		select {
		case <-more:
		case <-deadline:
			t.Fatalf("no %d. %s of %s within 20 s; events: %+v", n, kind, plugin, have)
		}
	}
}

type testHost struct {
	*Host
	events *events
	dir    string
}

func testConfig(t testing.TB, ev *events, plugins ...Plugin) Config {
	t.Helper()
	dir, err := os.MkdirTemp("", "kfp") // t.TempDir has the test's name in it, which can be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return Config{Plugins: plugins, RuntimeDir: dir, Logger: slog.New(slog.DiscardHandler), OnEvent: ev.add, Now: time.Now, Random: rand.Reader}
}

func startHost(t testing.TB, plugins ...Plugin) *testHost {
	t.Helper()
	ev := newEvents()
	cfg := testConfig(t, ev, plugins...)
	h, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return &testHost{Host: h, events: ev, dir: cfg.RuntimeDir}
}

func (h *testHost) ask(t testing.TB, name, token string) (auth.Principal, error) {
	t.Helper()
	a, err := h.Authenticator(name)
	if err != nil {
		t.Fatal(err)
	}
	return a.Authenticate(t.Context(), auth.Credential{Place: auth.PlaceBearer, Secret: auth.NewSecret("tok_" + token)})
}

func (h *testHost) status(t testing.TB, name string) Status {
	t.Helper()
	for _, s := range h.Status() {
		if s.Name == name {
			return s
		}
	}
	t.Fatalf("no status of %s", name)
	return Status{}
}
