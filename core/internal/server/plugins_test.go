package server

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace/noop"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/admin"
	"github.com/keyfire/keyfire/core/internal/trigger"
)

// pluginHost is a host of one plugin, without its process.
type pluginHost struct {
	reloads int
	fail    error
}

func (h *pluginHost) Plugins() []admin.Plugin {
	return []admin.Plugin{{Name: "ldap", State: "degraded", Degraded: true, Failures: 5, Version: "1.4.0", PID: 42, SHA256: strings.Repeat("a", 64), Restarts: int64(h.reloads), Since: time.Unix(1_800_000_000, 0)}}
}

func (h *pluginHost) Logs(name string) ([]admin.PluginLine, error) {
	if name != "ldap" {
		return nil, core.Errorf(core.CodeNotFound, "no plugin is called %q", name)
	}
	return []admin.PluginLine{{Time: time.Unix(1_800_000_000, 0), PID: 42, Text: "someone tried kft_0123456789abcdef"}}, nil
}

func (h *pluginHost) Reload(context.Context, string) error { h.reloads++; return h.fail }

func TestPluginRoutes(t *testing.T) {
	t.Parallel()
	b := setup(t)
	host := &pluginHost{}
	b.admin.Plugins = host
	boss := b.adminKey()
	_, reader := b.key(admin.NewKey{Type: auth.AdminKey, Scopes: []string{auth.ScopePluginsRead}})
	_, other := b.key(admin.NewKey{Type: auth.AdminKey, Scopes: []string{auth.ScopeAuditRead}})

	for _, tc := range []struct {
		method, path, key string
		status            int
		want              string
	}{
		{"GET", "/v1/plugins", reader, 200, `"name":"ldap","state":"degraded"`},
		{"GET", "/v1/plugins/ldap", reader, 200, `"version":"1.4.0"`},
		{"GET", "/v1/plugins/ldap/logs", reader, 200, `kft_[redacted]`},
		{"GET", "/v1/plugins/none", reader, 404, `"code":"not_found"`},
		{"GET", "/v1/plugins/none/logs", reader, 404, `"code":"not_found"`},
		{"GET", "/v1/plugins", other, 403, `"code":"insufficient_scope"`},
		{"GET", "/v1/plugins/ldap/logs", other, 403, `"code":"insufficient_scope"`},
		{"POST", "/v1/plugins/ldap/reload", reader, 403, `"code":"insufficient_scope"`},
		{"POST", "/v1/plugins/none/reload", boss, 404, `"code":"not_found"`},
		{"POST", "/v1/plugins/ldap/reload", boss, 200, `"restarts":1`},
		{"GET", "/v1/audit?action=plugin.reload", boss, 200, `"target":"ldap"`},
	} {
		r := b.call(tc.method, tc.path, tc.key, "")
		if r.code != tc.status || !strings.Contains(string(r.body), tc.want) {
			t.Errorf("%s %s: %d %s, want %d with %s", tc.method, tc.path, r.code, r.body, tc.status, tc.want)
		}
	}
	const detail = `{"status":"ok","plugins":[{"name":"ldap","state":"degraded","degraded":true,"required":false,"failures":5}]}`
	for name, tc := range map[string]struct{ key, want string }{
		"nobody": {"", `{"status":"ok"}`}, "a reader": {reader, detail}, "somebody else": {other, `{"status":"ok"}`}, "a forged key": {flip(reader), `{"status":"ok"}`},
	} {
		if r := b.call("GET", "/readyz", tc.key, ""); r.code != 200 || strings.TrimSpace(string(r.body)) != tc.want {
			t.Errorf("readiness for %s: %d %s, want %s", name, r.code, r.body, tc.want)
		}
	}
	host.fail = core.Errorf(core.CodeConflict, "the executable was refused")
	if r := b.call("POST", "/v1/plugins/ldap/reload", boss, ""); r.code != http.StatusConflict {
		t.Errorf("a reload that failed: %d %s", r.code, r.body)
	}
	b.admin.Plugins = nil
	if r := b.call("GET", "/v1/plugins", boss, ""); r.code != 200 || !strings.Contains(string(r.body), `"data":[]`) {
		t.Errorf("a server without plugins: %d %s", r.code, r.body)
	}
}

// signatures admits requests whose X-Signature header is the length of their body, written as a line of x.
type signatures struct{ seen []auth.Credential }

func (*signatures) Name() string { return "sig" }

func (s *signatures) Authenticate(_ context.Context, c auth.Credential) (auth.Principal, error) {
	s.seen = append(s.seen, c)
	body, err := c.Body()
	if err != nil {
		return auth.Principal{}, err
	}
	if got := c.Header["X-Signature"]; len(got) != 1 || got[0] != strings.Repeat("x", len(body)) {
		return auth.Principal{}, core.Errorf(core.CodeInvalidKey, "wrong")
	}
	return auth.Principal{Account: core.DefaultAccount, Subject: "sig:erp", Backend: "sig", Scopes: []string{"run:workflow/greet"}}, nil
}

func TestSignatureIsACredential(t *testing.T) {
	t.Parallel()
	backend := &signatures{}
	bound, err := auth.Bind(backend, auth.Binding{
		Route: auth.Route{Headers: []string{"X-Signature"}}, Grant: auth.Grant{Accounts: []string{core.DefaultAccount}, Scopes: []string{"run:workflow/*"}}, Now: time.Now,
	})
	if err != nil {
		t.Fatal(err)
	}
	b := setup(t, func(tc *trigger.Config, sc *Config) {
		tc.Chain = auth.NewChain(noop.NewTracerProvider().Tracer(""), bound)
		sc.AuthHeaders, sc.AuthShown, sc.AuthBody = []string{"x-signature"}, []string{"x-tenant"}, true
	})
	b.publish("greet", "")
	const body = `{"input":{}}`
	good := strings.Repeat("x", len(body))
	const path = "/v1/workflows/greet/runs"

	if r := b.call("POST", path, "", body, "X-Signature", good, "X-Tenant", "t1"); r.code != 200 {
		t.Fatalf("signed: %d %s", r.code, r.body)
	}
	if c := backend.seen[0]; c.Place != auth.PlaceHeader || c.Header["X-Tenant"][0] != "t1" || c.Method != "POST" || c.Path != path || len(c.Header) != 2 {
		t.Errorf("the backend saw %+v", c)
	}
	if r := b.call("POST", path, "", body, "X-Signature", "x"); r.code != 401 {
		t.Errorf("signed wrongly: %d %s", r.code, r.body)
	}
	if r := b.call("POST", path, "", body, "X-Tenant", "t1"); r.code != 401 || !strings.Contains(string(r.body), "unauthenticated") {
		t.Errorf("a header that is only shown passed for a credential: %d %s", r.code, r.body)
	}
	if r := b.call("POST", path, "kft_whatever", body, "X-Signature", good); r.code != 400 || !strings.Contains(string(r.body), "ambiguous_credential") {
		t.Errorf("a signature beside a key: %d %s", r.code, r.body)
	}
	if len(backend.seen) != 2 {
		t.Errorf("the backend was asked %d times, want 2", len(backend.seen))
	}
}
