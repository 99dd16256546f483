package main

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"

	"github.com/keyfire/keyfire/sdk/authplugin"
	"github.com/keyfire/keyfire/sdk/authplugin/plugintest"
)

func TestMain(m *testing.M) { plugintest.Main(m, newBackend()) }

// service decides by the credential, and tells in headers what it was asked.
func service(t *testing.T) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		admit := func() {
			w.Header().Set("X-Auth-Subject", "alice")
			w.Header().Set("X-Auth-Account", "acct_a")
			w.Header().Set("X-Auth-Scopes", "run:workflow/wf_1 runs:read")
			w.Header().Set("X-Asked", fmt.Sprintf("%s %s %s for %s from %s tenant %s body %s", r.Method, r.Header.Get("X-Forwarded-Method"), r.Header.Get("X-Forwarded-Uri"),
				r.Header.Get("X-Keyfire-Workflow"), r.Header.Get("X-Forwarded-For"), r.Header.Get("X-Tenant"), body))
		}
		switch r.Header.Get("Authorization") + r.Header.Get("X-Api-Key") {
		case "Bearer good", "key-good":
			admit()
		case "Bearer no-content":
			admit()
			w.WriteHeader(http.StatusNoContent)
		case "Bearer nobody":
			w.Header().Set("X-Auth-Account", "acct_a")
		case "Bearer no-account":
			w.Header().Set("X-Auth-Subject", "alice")
		case "Bearer two-subjects":
			admit()
			w.Header().Add("X-Auth-Subject", "root")
		case "Bearer forbidden":
			admit()
			w.WriteHeader(http.StatusForbidden)
		case "Bearer login":
			admit()
			http.Redirect(w, r, "/login", http.StatusFound)
		case "Bearer error":
			w.WriteHeader(http.StatusBadGateway)
		case "Bearer hang-up":
			panic(http.ErrAbortHandler)
		case "Bearer foreign":
			w.WriteHeader(http.StatusNotFound)
		default:
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	t.Cleanup(s.Close)
	return s.URL
}

func TestConformance(t *testing.T) {
	ask := func(token string) authplugin.Request {
		return authplugin.Request{
			Scheme: "bearer", Credential: token, Method: "PUT", Path: "/v1/trigger/x", Workflow: "x", Source: netip.MustParseAddr("203.0.113.7"),
			Header: http.Header{"X-Tenant": {"t1"}, "X-Other": {"not passed on"}}, Body: []byte("data"),
		}
	}
	alice := authplugin.Principal{
		Subject: "alice", Account: "acct_a", Scopes: []string{"run:workflow/wf_1", "runs:read"},
		Attributes: map[string]string{"asked": "POST PUT /v1/trigger/x for x from 203.0.113.7 tenant t1 body data"},
	}
	inAPIKey := ask("key-good")
	inAPIKey.Scheme = authplugin.SchemeAPIKey
	plugintest.Run(t, plugintest.Config{
		Settings: fmt.Sprintf(`{"url": %q, "headers": ["X-Tenant"], "body": true, "account_header": "X-Auth-Account", "scopes_header": "X-Auth-Scopes",
			"attributes": {"asked": "X-Asked"}}`, service(t)),
		BadSettings: []string{
			`{}`, `{"url": "http://auth.example"}`, `{"url": "https://auth.example", "headers": ["authorization"]}`, `{"url": "https://auth.example", "headers": ["x-keyfire-workflow"]}`,
			`{"url": "https://auth.example", "account": "a", "account_header": "b"}`, `{"url": "https://auth.example", "subject_header": ""}`,
		},
		Timeout: 2 * time.Second,
		Cases: []plugintest.Case{
			{Name: "good", Request: ask("good"), Want: plugintest.Allow, Principal: alice},
			{Name: "in X-API-Key", Request: inAPIKey, Want: plugintest.Allow, Principal: alice},
			{Name: "no content", Request: ask("no-content"), Want: plugintest.Allow, Principal: alice},
			{Name: "unknown", Request: ask("unknown"), Want: plugintest.Deny},
			{Name: "forbidden", Request: ask("forbidden"), Want: plugintest.Deny},
			{Name: "header injection", Request: ask("good\r\nX-Forwarded-For: 127.0.0.1"), Want: plugintest.Deny},
			{Name: "foreign", Request: ask("foreign"), Want: plugintest.NotMine},
			{Name: "admitted without subject", Request: ask("nobody"), Want: plugintest.Undecided},
			{Name: "admitted without account", Request: ask("no-account"), Want: plugintest.Undecided},
			{Name: "admitted as two subjects", Request: ask("two-subjects"), Want: plugintest.Undecided},
			{Name: "redirect to a login page", Request: ask("login"), Want: plugintest.Undecided},
			{Name: "error", Request: ask("error"), Want: plugintest.Undecided},
			{Name: "hang-up", Request: ask("hang-up"), Want: plugintest.Undecided},
		},
	})
}
