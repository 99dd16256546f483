package plugins

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
)

func TestAnswers(t *testing.T) {
	t.Parallel()
	p := pluginHere(t, "legacy")
	h := startHost(t, p)
	for _, tc := range []struct {
		token string
		want  core.Code // "" is a principal
	}{
		{"ok", ""},
		{"deny", core.CodeInvalidKey},
		{"nobody", core.CodeInvalidKey},
		{"error", core.CodeAuthUnavailable},
		{"both", core.CodeAuthUnavailable},
		{"ok", ""},
		{"neither", core.CodeAuthUnavailable},
		{"no subject", core.CodeAuthUnavailable},
		{"control characters", core.CodeAuthUnavailable},
		{"ok", ""},
		{"foreign account", core.CodeAuthUnavailable},
		{"foreign scope", core.CodeAuthUnavailable},
		{"expired", core.CodeAuthUnavailable},
		{"many scopes", core.CodeAuthUnavailable},
		{"panic", core.CodeAuthUnavailable},
		{"big reply", core.CodeAuthUnavailable},
		{"ok", ""},
	} {
		p, err := h.ask(t, "legacy", tc.token)
		if core.CodeOf(err) != tc.want {
			t.Errorf("%s: %v, want %q", tc.token, err, tc.want)
		}
		if (tc.want == "") != (p.Subject == "legacy:alice" && p.Account == "acct_a" && p.Backend == "legacy") {
			t.Errorf("%s: principal %+v", tc.token, p)
		}
		if err != nil && strings.Contains(err.Error(), "tok_"+tc.token) {
			t.Errorf("%s: the error quotes the credential: %v", tc.token, err)
		}
	}
	if _, err := h.ask(t, "legacy", "not mine"); !errors.Is(err, auth.ErrNotApplicable) {
		t.Errorf("not mine: %v", err)
	}
	_, _ = h.ask(t, "legacy", "foreign scope")
	_, _ = h.ask(t, "legacy", "ok")
	if s := h.status(t, "legacy"); !strings.Contains(s.LastCallError, "which the backend is not granted") {
		t.Errorf("why a call brought no verdict: %q", s.LastCallError)
	}
	if s := h.status(t, "legacy"); s.State != StateReady || s.Version != "1.2.3" || s.PID == 0 || s.Restarts != 0 {
		t.Errorf("status %+v", s)
	}
}

func TestPluginSeesWhatItIsGranted(t *testing.T) {
	t.Setenv("KEYFIRE_TEST_SECRET", "of the server") // a server's environment holds its secrets
	t.Setenv("TEST_SECRET", "of the server")
	narrow, wide := pluginHere(t, "narrow"), pluginHere(t, "wide", "REGION=eu")
	wide.Headers, wide.Body = []string{"x-tenant"}, true
	h := startHost(t, narrow, wide)
	cred := auth.Credential{
		Place: auth.PlaceBearer, Secret: auth.NewSecret("tok_see"), Source: netip.MustParseAddr("203.0.113.7"), Scheme: "bearer",
		Method: "POST", Path: "/v1/trigger/invoice", Workflow: "invoice", Header: map[string][]string{"X-Tenant": {"a", "b"}, "X-Other": {"c"}},
		Body: func() ([]byte, error) { return []byte("raw\x00body"), nil },
	}
	see := func(name string) map[string]string {
		a, err := h.Authenticator(name)
		if err != nil {
			t.Fatal(err)
		}
		c := cred
		if name == "narrow" {
			c.Body = func() ([]byte, error) { t.Error("the body was read for a plugin without it"); return nil, nil }
		}
		p, err := a.Authenticate(t.Context(), c)
		if name == "wide" && err != nil {
			// The attribute with a NUL in it does not print, so the answer is refused; ask again with a body that prints.
			c.Body = func() ([]byte, error) { return []byte("raw body"), nil }
			p, err = a.Authenticate(t.Context(), c)
		}
		if err != nil {
			t.Fatal(err)
		}
		return p.Attributes
	}
	n, w := see("narrow"), see("wide")
	for k, want := range map[string]string{"scheme": "bearer", "source": "203.0.113.7", "method": "POST", "path": "/v1/trigger/invoice", "workflow": "invoice", "body": "", "header": "map[]", "env": ""} {
		if n[k] != want {
			t.Errorf("narrow: %s = %q, want %q", k, n[k], want)
		}
	}
	for k, want := range map[string]string{"body": "raw body", "header": "map[X-Tenant:[a b]]", "env": "REGION=eu"} {
		if w[k] != want {
			t.Errorf("wide: %s = %q, want %q", k, w[k], want)
		}
	}
}

func TestRefusedAtStart(t *testing.T) {
	t.Parallel()
	here := pluginHere(t, "p")
	place := func(t *testing.T, dirMode, fileMode os.FileMode) string {
		t.Helper()
		dir := filepath.Join(t.TempDir(), "bin")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, "plugin")
		copyFile(t, here.Path, path, fileMode)
		if err := os.Chmod(dir, dirMode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, tc := range []struct {
		name, want string
		path       func(t *testing.T) string
		digest     string
	}{
		{name: "group-writable directory", want: "writable by group or others", path: func(t *testing.T) string { return place(t, 0o775, 0o755) }},
		{name: "sticky world-writable directory", want: "writable by group or others", path: func(t *testing.T) string { return place(t, 0o777|os.ModeSticky, 0o755) }},
		{name: "world-writable file", want: "writable by group or others", path: func(t *testing.T) string { return place(t, 0o755, 0o757) }},
		{name: "not executable", want: "not executable", path: func(t *testing.T) string { return place(t, 0o755, 0o644) }},
		{name: "symbolic link", want: "symbolic link", path: func(t *testing.T) string {
			link := filepath.Join(t.TempDir(), "plugin")
			if err := os.Symlink(here.Path, link); err != nil {
				t.Fatal(err)
			}
			return link
		}},
		{name: "symbolic link above", want: "symbolic link", path: func(t *testing.T) string {
			dir := place(t, 0o755, 0o755)
			link := filepath.Join(t.TempDir(), "dir")
			if err := os.Symlink(filepath.Dir(dir), link); err != nil {
				t.Fatal(err)
			}
			return filepath.Join(link, "plugin")
		}},
		{name: "directory", want: "not a regular file", path: func(t *testing.T) string { return filepath.Dir(place(t, 0o755, 0o755)) }},
		{name: "wrong digest", want: "sha256", path: func(t *testing.T) string { return place(t, 0o755, 0o755) }, digest: strings.Repeat("0", 64)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			p := here
			p.Path = tc.path(t)
			p.Required = true
			if tc.digest != "" {
				p.SHA256 = tc.digest
			}
			ev := newEvents()
			_, err := New(t.Context(), testConfig(t, ev, p))
			if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
			if ev.count("p", EventRefuse) != 1 {
				t.Errorf("events %+v, want one refusal", ev.all)
			}
		})
	}
}

func TestOneBitFlippedC1(t *testing.T) {
	t.Parallel()
	flipBits(t, 256<<10)
}

// flipBits flips 256 bits of an executable of at most size bytes, one after the other.
func flipBits(t *testing.T, size int64) {
	t.Helper()
	whole, _ := faultyPlugin(t)
	path := filepath.Join(t.TempDir(), "plugin")
	copyFile(t, whole, path, 0o755)
	if info, err := os.Stat(path); err != nil {
		t.Fatal(err)
	} else if size = min(size, info.Size()); os.Truncate(path, size) != nil { // what it does if it ran does not matter
		t.Fatal("the copy cannot be cut")
	}
	digest, err := Digest(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	const positions = 256
	for i := range int64(positions) {
		at := size / positions * i
		flip(t, f, at, byte(1)<<(i%8))
		if b, err := pin(path, digest, t.TempDir()); err == nil {
			b.close()
			t.Fatalf("a bit flipped at %d was not noticed", at)
		} else if !errors.Is(err, ErrRefused) {
			t.Fatal(err)
		}
		flip(t, f, at, byte(1)<<(i%8))
	}
	b, err := pin(path, digest, t.TempDir())
	if err != nil {
		t.Fatalf("with all bits back: %v", err)
	}
	b.close()
}

func TestStartFaults(t *testing.T) {
	t.Parallel()
	for _, fault := range []string{"exit 0", "hang", "panic", "garbage", "long garbage", "wrong version", "wrong core version", "netrpc", "tcp", "foreign socket", "no certificate"} {
		t.Run(fault, func(t *testing.T) {
			t.Parallel()
			p := pluginHere(t, "p", "FAULT="+fault)
			p.Required, p.StartTimeout = true, 2*time.Second
			cfg := testConfig(t, newEvents(), p)
			began := time.Now()
			_, err := New(t.Context(), cfg)
			if err == nil {
				t.Fatal("started")
			}
			if took := time.Since(began); took > 15*time.Second {
				t.Errorf("took %s", took)
			}
			if len(err.Error()) > 1000 || strings.ContainsAny(err.Error(), "\x1b\xff") { //nolint:staticcheck // bytes that are no text are the case
				t.Errorf("error text is not fit for a log: %.300q", err)
			}
			if says := map[string]string{"exit 0": "ended before the line of the handshake", "garbage": "must print the line of the handshake, 1|1|unix|", "hang": "not ready after 2s: it has not printed the line of the handshake, 1|1|unix|"}[fault]; !strings.Contains(err.Error(), says) {
				t.Errorf("error %q, want %q in it", err, says)
			}
			assertEmpty(t, cfg.RuntimeDir)
		})
	}
}

func TestRequiredIsAllOrNothing(t *testing.T) {
	t.Parallel()
	good, bad := pluginHere(t, "good"), pluginHere(t, "bad", "FAULT=exit 0")
	good.Required, bad.Required = true, true
	ev := newEvents()
	cfg := testConfig(t, ev, good, bad)
	if _, err := New(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "plugin bad") || strings.Contains(err.Error(), "plugin good") {
		t.Fatalf("error %v, want one that names bad alone", err)
	}
	if pid := ev.await(t, "good", EventLoad, 1).PID; alive(pid) {
		t.Errorf("process %d of the good plugin is still there", pid)
	}
	assertEmpty(t, cfg.RuntimeDir)

	bad.Required = false
	h := startHost(t, good, bad)
	if _, err := h.ask(t, "good", "ok"); err != nil {
		t.Error(err)
	}
	if _, err := h.ask(t, "bad", "ok"); core.CodeOf(err) != core.CodeAuthUnavailable {
		t.Error(err)
	}
	h.events.await(t, "bad", EventDegrade, 1)
	if s := h.status(t, "bad"); s.State != StateDown || s.Failures < degradedFailures || s.LastError == "" {
		t.Errorf("status %+v", s)
	}
}

func TestReload(t *testing.T) {
	t.Parallel()
	p := pluginHere(t, "p")
	h := startHost(t, p)
	old := h.status(t, "p").PID

	p.Config = json.RawMessage(`{"account": "acct_a", "label": "second"}`)
	if err := h.Reload(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if who, err := h.ask(t, "p", "ok"); err != nil || who.Attributes["label"] != "second" || len(who.Scopes) != 0 {
		t.Errorf("%+v, %v", who, err)
	}
	if pid := h.status(t, "p").PID; pid == old || alive(old) {
		t.Errorf("old process %d, new %d, old one alive: %v", old, pid, alive(old))
	}

	for name, bad := range map[string]func(*Plugin){
		"digest":        func(p *Plugin) { p.SHA256 = strings.Repeat("0", 64) },
		"configuration": func(p *Plugin) { p.Config = json.RawMessage(`{"fail": "no such directory"}`) },
		"version":       func(p *Plugin) { p.Version = "9" },
		"start":         func(p *Plugin) { p.Env = []string{"FAULT=exit 0"} },
		"route":         func(p *Plugin) { p.Route = auth.Route{} },
	} {
		worse := p
		bad(&worse)
		if err := h.Reload(t.Context(), worse); err == nil {
			t.Errorf("reload with a bad %s succeeded", name)
		}
		if who, err := h.ask(t, "p", "ok"); err != nil || who.Attributes["label"] != "second" {
			t.Errorf("after a reload with a bad %s: %+v, %v", name, who, err)
		}
	}
	if n := h.events.count("p", EventReload); n != 1 {
		t.Errorf("%d reloads, want 1", n)
	}

	p.Grant.Accounts = []string{"acct_b"}
	if err := h.Reload(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if _, err := h.ask(t, "p", "ok"); core.CodeOf(err) != core.CodeAuthUnavailable {
		t.Errorf("the new grant is not in force: %v", err)
	}
}

// TestReloadDrains keeps calls coming while the plugin is replaced over and over. Not one may fail.
func TestReloadDrains(t *testing.T) {
	t.Parallel()
	p := pluginHere(t, "p")
	h := startHost(t, p)
	ctx, stop := context.WithCancel(t.Context())
	failures := make(chan error, 4)
	asked := 0
	finished := make(chan int)
	for range 4 {
		go func() {
			n := 0
			for ; ctx.Err() == nil; n++ {
				if _, err := h.ask(t, "p", "ok"); err != nil {
					failures <- err
					break
				}
			}
			finished <- n
		}()
	}
	for range 5 {
		if err := h.Reload(t.Context(), p); err != nil {
			t.Error(err)
		}
	}
	stop()
	for range 4 {
		asked += <-finished
	}
	select {
	case err := <-failures:
		t.Errorf("a call failed during a reload: %v", err)
	default:
	}
	if asked == 0 {
		t.Error("no call was made")
	}
}

func TestDenialIsRemembered(t *testing.T) {
	t.Parallel()
	h := startHost(t, pluginHere(t, "p"))
	ask := func(path string) string {
		a, err := h.Authenticator("p")
		if err != nil {
			t.Fatal(err)
		}
		_, err = a.Authenticate(t.Context(), auth.Credential{Place: auth.PlaceBearer, Secret: auth.NewSecret("tok_deny-cached"), Path: path})
		if core.CodeOf(err) != core.CodeInvalidKey {
			t.Fatal(err)
		}
		return err.Error() // holds the time of the answer
	}
	first := ask("/a")
	if again := ask("/a"); again != first {
		t.Errorf("asked again for an identical request: %s, then %s", first, again)
	}
	if other := ask("/b"); other == first {
		t.Error("another request got the remembered refusal")
	}
	p, err := h.Config("p")
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Reload(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if again := ask("/a"); again == first {
		t.Error("a refusal outlived a reload")
	}
}

// A refusal of a process that was being replaced is not remembered for its successor.
func TestDenialOfAReplacedProcess(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := pluginHere(t, "p", "FAULT_DIR="+dir)
	h := startHost(t, p)
	a, err := h.Authenticator("p")
	if err != nil {
		t.Fatal(err)
	}
	ask := func() string {
		_, err := a.Authenticate(t.Context(), auth.Credential{Place: auth.PlaceBearer, Secret: auth.NewSecret("tok_deny-late")})
		if core.CodeOf(err) != core.CodeInvalidKey {
			t.Error(err)
			return ""
		}
		return err.Error() // holds the time of the answer
	}
	first, reloaded := make(chan string), make(chan error)
	go func() { first <- ask() }()
	eventually(t, MaxTimeout, "the process is asked", func() bool {
		_, err := os.Stat(filepath.Join(dir, "waits"))
		return err == nil
	})
	old := h.Status()[0].PID
	go func() { reloaded <- h.Reload(t.Context(), p) }()
	eventually(t, DefaultStartTimeout, "another process is in service", func() bool { return h.Status()[0].PID != old })
	if err := os.WriteFile(filepath.Join(dir, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	late := <-first
	if err := <-reloaded; err != nil {
		t.Fatal(err)
	}
	if again := ask(); again == late {
		t.Error("a refusal by the old process was remembered for the new one")
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	p := pluginHere(t, "p")
	report, err := Check(t.Context(), p)
	if err != nil || report.Version != "1.2.3" || report.SHA256 != p.SHA256 || report.Start <= 0 {
		t.Errorf("%+v, %v", report, err)
	}
	p.Config = json.RawMessage(`{"fail": "second problem"}`)
	if _, err := Check(t.Context(), p); err == nil || !strings.Contains(err.Error(), "first problem; second problem") {
		t.Errorf("%v, want both problems", err)
	}
	p.SHA256 = strings.Repeat("0", 64)
	if report, err := Check(t.Context(), p); !errors.Is(err, ErrRefused) || report.SHA256 != faulty.digest {
		t.Errorf("%+v, %v: want the digest the file has", report, err)
	}
}

func TestConfigIsValidated(t *testing.T) {
	t.Parallel()
	bad := Plugin{Name: "Bad", Path: "bin/x", SHA256: "abc", Timeout: time.Hour, Config: json.RawMessage("[]"), Env: []string{"LD_PRELOAD=x", "nothing"}, Headers: []string{"cookie"}}
	_, err := New(t.Context(), testConfig(t, newEvents(), bad, bad))
	for _, want := range []string{"name \"Bad\"", "absolute", "64 hex digits", "at most 5s", "one JSON object", "LD_PRELOAD", "NAME=value", "Cookie", "route:", "grant:", "used twice"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not mention %q", err, want)
		}
	}
}

func TestTwoHostsInOneDirectory(t *testing.T) {
	t.Parallel()
	h := startHost(t)
	cfg := testConfig(t, newEvents())
	cfg.RuntimeDir = h.dir
	if _, err := New(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "another server") {
		t.Errorf("%v", err)
	}
}
