package plugins

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/keyfire/keyfire/auth"
)

// The test binary is also a server to be killed: see serveHost.
func TestMain(m *testing.M) {
	if dir := os.Getenv("PLUGINS_TEST_HOST"); dir != "" {
		serveHost(dir)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		_ = os.RemoveAll(faulty.dir)
		os.Exit(code)
	}))
}

// faulty is testdata/faulty, built once for all tests as plugins are built: the race detector would make each of hundreds of starts take several times
// as long.
var faulty struct {
	once              sync.Once
	dir, path, digest string
	err               error
}

// faultyPlugin returns the executable whose behaviour a credential chooses, or FAULT before the handshake, and its digest.
func faultyPlugin(t testing.TB) (path, digest string) {
	t.Helper()
	faulty.once.Do(func() {
		if faulty.dir, faulty.err = os.MkdirTemp("", "kfp-bin"); faulty.err != nil {
			return
		}
		faulty.path = filepath.Join(faulty.dir, "faulty")
		cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", faulty.path, "./testdata/faulty")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-trimpath")
		if out, err := cmd.CombinedOutput(); err != nil {
			faulty.err = fmt.Errorf("build the faulty plugin: %w\n%s", err, out)
			return
		}
		faulty.digest, faulty.err = Digest(faulty.path)
	})
	if faulty.err != nil {
		t.Fatal(faulty.err)
	}
	return faulty.path, faulty.digest
}

// pluginHere returns a configuration that runs the faulty plugin. The machine may be busy, so it has all the time there is; a test of a plugin that lets callers
// wait gives it less.
func pluginHere(t testing.TB, name string, env ...string) Plugin {
	t.Helper()
	path, digest := faultyPlugin(t)
	return Plugin{
		Name: name, Path: path, SHA256: digest, Env: env, Timeout: MaxTimeout,
		Config: json.RawMessage(`{"account": "acct_a", "scopes": ["run:*"]}`),
		Route:  auth.Route{Prefixes: []string{"tok_"}},
		Grant:  auth.Grant{Accounts: []string{"acct_a"}, Scopes: []string{"run:*"}},
	}
}

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
	return a.Authenticate(t.Context(), bearer("tok_"+token))
}

func bearer(token string) auth.Credential {
	return auth.Credential{Place: auth.PlaceBearer, Secret: auth.NewSecret(token)}
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
