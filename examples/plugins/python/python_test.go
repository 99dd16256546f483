package python_test

import (
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/plugins"
	"github.com/keyfire/keyfire/sdk/authplugin"
	"github.com/keyfire/keyfire/sdk/authplugin/plugintest"
)

// build returns the path of the built plugin. Without what it needs on this machine the test is skipped, but not in the continuous integration:
// there the example has to be seen to work.
func build(t *testing.T) string {
	t.Helper()
	missing := ""
	if _, err := exec.LookPath("protoc"); err != nil {
		missing = "protoc is not installed (Debian: protobuf-compiler)"
	} else if out, err := exec.Command("/usr/bin/python3", "-c", "import grpc, google.protobuf, cryptography").CombinedOutput(); err != nil {
		missing = fmt.Sprintf("/usr/bin/python3 lacks a library (Debian: python3-grpcio, python3-protobuf, python3-cryptography): %s", out)
	}
	switch {
	case missing != "" && os.Getenv("CI") == "true":
		t.Fatal(missing)
	case missing != "":
		t.Skip("SKIPPED: " + missing)
	}
	path := filepath.Join(t.TempDir(), "keyfire-auth-python")
	cmd := exec.Command("./build.sh", path)
	cmd.Env = append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build.sh: %v\n%s", err, out)
	}
	return path
}

func TestConformance(t *testing.T) {
	const token = "py_alices-token"
	ask := func(credential string) authplugin.Request {
		return authplugin.Request{Scheme: "bearer", Credential: credential, Method: "POST", Path: "/v1/trigger/invoice"}
	}
	plugintest.Run(t, plugintest.Config{
		Executable:  build(t),
		Settings:    fmt.Sprintf(`{"users": {"%x": "alice"}}`, sha256.Sum256([]byte(token))),
		BadSettings: []string{`{"users": []}`},
		Timeout:     2 * time.Second, // an interpreter on a busy machine
		Cases: []plugintest.Case{
			{Name: "known", Request: ask(token), Want: plugintest.Allow, Principal: authplugin.Principal{Subject: "alice", Scopes: []string{"run:*"}}},
			{Name: "unknown", Request: ask("py_mallory"), Want: plugintest.Deny},
			{Name: "of another kind", Request: ask("other_token"), Want: plugintest.NotMine},
		},
	})
}

// TestUnderServer runs the archive as a server does: from sealed memory, not from its file.
func TestUnderServer(t *testing.T) {
	const token = "py_alices-token"
	path := build(t)
	digest, err := plugins.Digest(path)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "kfp")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	host, err := plugins.New(t.Context(), plugins.Config{
		RuntimeDir: dir, Logger: slog.New(slog.DiscardHandler), Now: time.Now, Random: rand.Reader,
		Plugins: []plugins.Plugin{{
			Name: "python", Path: path, SHA256: digest, Required: true, Timeout: 2 * time.Second,
			Config: fmt.Appendf(nil, `{"users": {"%x": "alice"}}`, sha256.Sum256([]byte(token))),
			Route:  auth.Route{Prefixes: []string{"py_"}},
			Grant:  auth.Grant{Accounts: []string{"acct_a"}, Scopes: []string{"run:*"}},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	backend, err := host.Authenticator("python")
	if err != nil {
		t.Fatal(err)
	}
	p, err := backend.Authenticate(t.Context(), auth.Credential{Place: auth.PlaceBearer, Secret: auth.NewSecret(token)})
	if err != nil || p.Subject != "python:alice" || p.Account != "acct_a" {
		t.Errorf("%+v, %v", p, err)
	}
}
