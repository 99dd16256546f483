package main

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/keyfire/keyfire/sdk/authplugin"
	"github.com/keyfire/keyfire/sdk/authplugin/plugintest"
)

func TestMain(m *testing.M) { plugintest.Main(m, newBackend()) }

// authorizationServer is an RFC 7662 endpoint with TLS that knows a few tokens. It returns the endpoint's URL and the file of its
// certificate.
func authorizationServer(t *testing.T) (endpoint, caFile string) {
	t.Helper()
	soon := time.Now().Add(time.Hour).Unix()
	token := func(change func(map[string]any)) map[string]any {
		answer := map[string]any{"active": true, "sub": "alice", "scope": "deploy read", "exp": soon, "iss": "https://as.example", "aud": []string{"other", "keyfire"}, "client_id": "ci", "tenant": "acct_a"}
		change(answer)
		return answer
	}
	tokens := map[string]map[string]any{
		"good":           token(func(map[string]any) {}),
		"no-scope":       token(func(a map[string]any) { delete(a, "scope") }),
		"past":           token(func(a map[string]any) { a["exp"] = 1 }),
		"future":         token(func(a map[string]any) { a["nbf"] = soon }),
		"other-issuer":   token(func(a map[string]any) { a["iss"] = "https://evil.example" }),
		"other-audience": token(func(a map[string]any) { a["aud"] = "other" }),
		"no-audience":    token(func(a map[string]any) { delete(a, "aud") }),
		"no-subject":     token(func(a map[string]any) { delete(a, "sub") }),
		"no-tenant":      token(func(a map[string]any) { delete(a, "tenant") }),
		"no-active":      token(func(a map[string]any) { delete(a, "active") }),
		"exp-as-text":    token(func(a map[string]any) { a["exp"] = "1" }),
		"exp-in-the-far": token(func(a map[string]any) { a["exp"] = 1e300 }),
		"nbf-as-text":    token(func(a map[string]any) { a["nbf"] = "tomorrow" }),
		"exp-zero":       token(func(a map[string]any) { a["exp"] = 0 }),
		"active-as-text": token(func(a map[string]any) { a["active"] = "true" }),
	}
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id, secret, _ := r.BasicAuth()
		if r.Method != http.MethodPost || id != "keyfire%3Aone" || secret != "s3cret+%26" {
			http.Error(w, "who are you?", http.StatusUnauthorized)
			return
		}
		switch t := r.PostFormValue("token"); t {
		case "broken":
			_, _ = fmt.Fprint(w, "<html>")
		case "null":
			_, _ = fmt.Fprint(w, "null")
		case "oauth-error":
			_, _ = fmt.Fprint(w, `{"error": "temporarily_unavailable"}`)
		case "error":
			http.Error(w, "oops", http.StatusInternalServerError)
		case "redirect":
			http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
		case "long":
			_, _ = fmt.Fprintf(w, `{"active": true, "sub": "%0100000d"}`, 1)
		default:
			answer, ok := tokens[t]
			if !ok {
				answer = map[string]any{"active": false, "sub": "nobody"}
			}
			_ = json.NewEncoder(w).Encode(answer)
		}
	}))
	t.Cleanup(s.Close)
	caFile = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(caFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return s.URL + "/introspect", caFile
}

func TestConformance(t *testing.T) {
	endpoint, ca := authorizationServer(t)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("s3cret &\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	ask := func(token string) authplugin.Request {
		return authplugin.Request{Scheme: "bearer", Credential: token, Method: "POST", Path: "/v1/trigger/x"}
	}
	cases := []plugintest.Case{
		{Name: "active", Request: ask("good"), Want: plugintest.Allow, Principal: authplugin.Principal{
			Subject: "alice", Account: "acct_a", Scopes: []string{"run:workflow/wf_deploy", "runs:read"}, Attributes: map[string]string{"client_id": "ci"},
		}},
		{Name: "without scope", Request: ask("no-scope"), Want: plugintest.Allow, Principal: authplugin.Principal{Subject: "alice", Account: "acct_a", Attributes: map[string]string{"client_id": "ci"}}},
		{Name: "not bearer", Request: authplugin.Request{Scheme: "basic", Credential: "Z29vZDo="}, Want: plugintest.NotMine},
	}
	for _, token := range []string{"unknown", "past", "future", "other-issuer", "other-audience", "no-audience", "exp-zero", "not a token", ""} {
		cases = append(cases, plugintest.Case{Name: token, Request: ask(token), Want: plugintest.Deny})
	}
	for _, token := range []string{"no-subject", "no-tenant", "broken", "error", "redirect", "long", "null", "oauth-error", "no-active", "active-as-text", "exp-as-text", "exp-in-the-far", "nbf-as-text"} {
		cases = append(cases, plugintest.Case{Name: token, Request: ask(token), Want: plugintest.Undecided})
	}
	plugintest.Run(t, plugintest.Config{
		Settings: fmt.Sprintf(`{"url": %q, "ca_file": %q, "client_id": "keyfire:one", "client_secret_file": %q, "issuer": "https://as.example",
			"audiences": ["keyfire"], "account_claim": "tenant", "scopes": {"deploy": ["run:workflow/wf_deploy"], "read": ["runs:read"]}}`, endpoint, ca, secret),
		BadSettings: []string{
			`{"url": "http://as.example", "client_id": "x", "client_secret": "y"}`, `{"url": "https://as.example", "client_id": "x"}`,
			`{"url": "https://as.example", "client_secret": "y"}`, `{"url": "https://as.example", "client_id": "x", "client_secret": "y", "inactive_ttl_seconds": 61}`,
		},
		Timeout: 2 * time.Second, // TLS handshakes of many callers on a busy machine
		Cases:   cases,
	})
}
