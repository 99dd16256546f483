package server

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/admin"
	"github.com/keyfire/keyfire/core/internal/server/compat"
	"github.com/keyfire/keyfire/core/internal/trigger"
)

// checked returns what a verdict says of each check.
func checked(t *testing.T, verdict map[string]any) map[string]string {
	t.Helper()
	outcomes := map[string]string{}
	for _, c := range verdict["chain"].([]any) {
		outcomes[c.(map[string]any)["check"].(string)] = c.(map[string]any)["outcome"].(string)
	}
	return outcomes
}

func TestAuthCheck(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.publish("open", "")
	b.publish("shy", "  global_keys: false\n")
	b.publish("closed", "")
	_, err := b.admin.SetWorkflowEnabled(context.Background(), b.boss, "closed", false)
	b.must(err)
	boss := b.adminKey()
	good, goodText := b.key(admin.NewKey{Scopes: []string{"run:*"}, MaxRuns: 2})
	gone, goneText := b.key(admin.NewKey{Scopes: []string{"run:*"}})
	_, err = b.admin.RevokeKey(context.Background(), b.boss, gone.ID, "")
	b.must(err)
	off, offText := b.key(admin.NewKey{Scopes: []string{"run:*"}})
	_, err = b.admin.SetKeyEnabled(context.Background(), b.boss, off.ID, false, "")
	b.must(err)
	_, bound := b.key(admin.NewKey{Scopes: []string{"run:workflow/open"}})
	_, far := b.key(admin.NewKey{Scopes: []string{"run:*"}, KeyLimits: admin.KeyLimits{AllowedIPs: []string{"198.51.100.0/24"}}})
	_, spent := b.key(admin.NewKey{Scopes: []string{"run:workflow/open"}, MaxRuns: 1})
	b.call("POST", "/v1/trigger", spent, `{}`).want(200)
	_, slow := b.key(admin.NewKey{Scopes: []string{"run:workflow/open"}, KeyLimits: admin.KeyLimits{RateLimits: []core.RateLimit{{Limit: 1, Per: core.Duration(time.Hour)}}}})
	b.call("POST", "/v1/trigger", slow, `{}`).want(200)
	expired := b.expiredKey()
	before := len(b.call("GET", "/v1/audit", boss, "").want(200).object()["data"].([]any))
	for _, c := range []struct{ name, body, word, reason, fails string }{
		{"good", `{"key":"` + goodText + `","workflow":"open"}`, "VALID", "", ""},
		{"no workflow", `{"key":"` + goodText + `"}`, "VALID", "", ""},
		{"unknown", `{"key":"` + wrongSecret(t, goodText) + `","workflow":"open"}`, "NOT_FOUND", "invalid_key", "backend"},
		{"another kind", `{"key":"nonsense","workflow":"open"}`, "NOT_FOUND", "invalid_key", "backend"},
		{"in the URL", `{"key":"` + goodText + `","workflow":"open","place":"query"}`, "NOT_FOUND", "invalid_key", "backend"},
		{"revoked", `{"key":"` + goneText + `"}`, "DISABLED", "key_revoked", "key"},
		{"disabled", `{"key":"` + offText + `"}`, "DISABLED", "key_disabled", "key"},
		{"expired", `{"key":"` + expired + `"}`, "EXPIRED", "key_expired", "key"},
		{"another workflow", `{"key":"` + bound + `","workflow":"shy"}`, "INSUFFICIENT_PERMISSIONS", "insufficient_scope", "scope"},
		{"no global keys", `{"key":"` + goodText + `","workflow":"shy"}`, "INSUFFICIENT_PERMISSIONS", "insufficient_scope", "scope"},
		{"closed", `{"key":"` + goodText + `","workflow":"closed"}`, "INSUFFICIENT_PERMISSIONS", "workflow_disabled", "workflow"},
		{"nothing", `{"key":"` + goodText + `","workflow":"nope"}`, "INSUFFICIENT_PERMISSIONS", "not_found", "workflow"},
		{"from elsewhere", `{"key":"` + far + `","workflow":"open"}`, "INSUFFICIENT_PERMISSIONS", "source_not_allowed", "source"},
		{"from there", `{"key":"` + far + `","workflow":"open","source_ip":"198.51.100.9"}`, "VALID", "", ""},
		{"used up", `{"key":"` + spent + `"}`, "USAGE_EXCEEDED", "quota_exhausted", "quota"},
		{"too fast", `{"key":"` + slow + `"}`, "RATE_LIMITED", "rate_limited", "rate"},
		{"oneself", `{"workflow":"open"}`, "VALID", "", ""},
		{"nothing presented", `{"key":"","workflow":"open"}`, "NOT_FOUND", "unauthenticated", "credential"},
		{"spaces presented", `{"key":"  ","workflow":"open","place":"x-api-key"}`, "NOT_FOUND", "unauthenticated", "credential"},
		{"null presented", `{"key":null,"workflow":"open"}`, "NOT_FOUND", "unauthenticated", "credential"},
	} {
		got := b.call("POST", "/v1/auth/check", boss, c.body).want(200).object()
		reason, _ := got["reason"].(string)
		if got["code"] != c.word || reason != c.reason || got["valid"] != (c.word == "VALID") {
			t.Errorf("%s: %v %v", c.name, got["code"], got["reason"])
		}
		for check, outcome := range checked(t, got["verdict"].(map[string]any)) {
			if (outcome == "fail") != (check == c.fails) {
				t.Errorf("%s: %s is %s, and %q should fail", c.name, check, outcome, c.fails)
			}
		}
	}
	if after := len(b.call("GET", "/v1/audit", boss, "").want(200).object()["data"].([]any)); after != before {
		t.Errorf("%d audit events after %d: a check left traces", after, before)
	}
	if k, err := b.store.Key(context.Background(), core.DefaultAccount, good.ID); err != nil || k.RunsUsed != 0 || !k.LastUsedAt.IsZero() {
		t.Errorf("%+v %v: a check was charged", k, err)
	}
	// Whoever has a key may ask about that key, and about no other.
	if got := b.call("POST", "/v1/auth/check", bound, "").want(200).object(); got["code"] != "VALID" {
		t.Errorf("%v", got)
	}
	b.call("POST", "/v1/auth/check", bound, `{"key":"`+goodText+`"}`).problem(403, core.CodeInsufficientScope)
	b.call("POST", "/v1/auth/check", boss, `{"key":5}`).problem(422, core.CodeInvalidInput)
	b.call("POST", "/v1/auth/check", bound, `{"key":""}`).problem(403, core.CodeInsufficientScope)
	b.call("POST", "/v1/auth/check", boss, `{"source_ip":"nowhere"}`).problem(422, core.CodeInvalidInput)
	// A key of another account is a key that does not exist.
	foreign := admin.Actor{Principal: auth.Principal{Account: "acct_other", Subject: "uid:1", Backend: "socket", Scopes: auth.AdminScopes()}}
	_, theirs, err := b.admin.CreateKey(context.Background(), foreign, admin.NewKey{Name: "x", Scopes: []string{"run:*"}})
	if err == nil { // that account may have to exist first
		other := b.call("POST", "/v1/auth/check", boss, `{"key":"`+theirs.Reveal()+`","workflow":"open"}`).want(200).object()
		if other["code"] != "NOT_FOUND" || other["key_id"] != nil {
			t.Errorf("%v", other)
		}
	}
}

// A3: to a check, whatever belongs to another account is what nobody knows, in every word of the answer.
func TestAuthCheckOfAnotherAccount(t *testing.T) {
	t.Parallel()
	b := setup(t)
	boss := b.adminKey()
	other, err := b.admin.CreateAccount(context.Background(), b.boss, "other", "")
	b.must(err)
	theirs := admin.Actor{Principal: auth.Principal{Account: other.ID, Subject: "uid:1", Backend: "socket", Scopes: auth.AdminScopes()}}
	made := func(change func(id string) error) string {
		k, text, err := b.admin.CreateKey(context.Background(), theirs, admin.NewKey{Name: "x", Scopes: []string{"run:*"}})
		b.must(err)
		if change != nil {
			b.must(change(k.ID))
		}
		return text.Reveal()
	}
	active := made(nil)
	revoked := made(func(id string) error { _, err := b.admin.RevokeKey(context.Background(), theirs, id, ""); return err })
	disabled := made(func(id string) error {
		_, err := b.admin.SetKeyEnabled(context.Background(), theirs, id, false, "")
		return err
	})
	legacy := sha256.Sum256([]byte("legacy-secret"))
	_, err = b.admin.ImportKey(context.Background(), theirs, admin.NewKey{Name: "old", Scopes: []string{"run:*"}}, hex.EncodeToString(legacy[:]), "")
	b.must(err)
	varies := regexp.MustCompile(`req_[0-9a-z]{26}|"time":"[^"]*"`)
	answer := func(key string) string {
		return varies.ReplaceAllString(string(b.call("POST", "/v1/auth/check", boss, `{"key":"`+key+`","workflow":"open"}`).want(200).body), "")
	}
	nobodys, err := auth.GenerateKey(auth.TriggerKey, rand.Reader)
	b.must(err)
	unknown, opaque := answer(nobodys.Secret().Reveal()), answer("nobodys-secret")
	for name, key := range map[string]string{"active": active, "revoked": revoked, "disabled": disabled, "wrong secret": wrongSecret(t, active)} {
		if got := answer(key); got != unknown {
			t.Errorf("%s: %s, want %s", name, got, unknown)
		}
	}
	if got := answer("legacy-secret"); got != opaque {
		t.Errorf("imported: %s, want %s", got, opaque)
	}
}

func TestAuthExplain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.publish("open", "")
	boss := b.adminKey()
	k, text := b.key(admin.NewKey{Scopes: []string{"run:workflow/open"}, MaxRuns: 1, KeyLimits: admin.KeyLimits{RateLimits: []core.RateLimit{{Name: "hourly", Limit: 2, Per: core.Duration(time.Hour)}}}})
	b.call("POST", "/v1/trigger", text, `{}`).want(200)
	explain := func(r *reply) map[string]any {
		t.Helper()
		return b.call("GET", "/v1/auth/explain/"+r.header.Get("Keyfire-Request-Id"), boss, "").want(200).object()
	}
	for _, c := range []struct {
		name  string
		reply *reply
		fails string
		says  []string
	}{
		{"no credential", b.call("POST", "/v1/trigger", "", `{}`), "credential", nil},
		{"wrong secret", b.call("POST", "/v1/trigger", wrongSecret(t, text), `{}`), "backend", []string{"well formed", "its secret is another one", k.ID, "apikey"}},
		{"malformed", b.call("POST", "/v1/trigger", flip(text), `{}`), "backend", []string{"malformed", "in bearer"}},
		{"in the URL", b.call("POST", "/v1/trigger?api_key="+text, "", `{}`), "backend", []string{"in query", "allow_query"}},
		{"another workflow", b.call("POST", "/v1/workflows/other/runs", text, `{}`), "scope", []string{"key:" + k.ID, "other"}},
		{"used up", b.call("POST", "/v1/trigger", text, `{}`), "quota", []string{"matched run:workflow/", "hourly", "quota_exhausted", "remaining:0"}},
		{"two of them", b.call("POST", "/v1/trigger", text, `{}`, "X-API-Key", "another"), "credential", []string{"more than one"}},
		{"control plane", b.call("GET", "/v1/keys", text, ""), "scope", []string{"keys:read"}},
	} {
		v := explain(c.reply)
		for check, outcome := range checked(t, v) {
			if (outcome == "fail") != (check == c.fails) {
				t.Errorf("%s: %s is %s, and %q should fail: %v", c.name, check, outcome, c.fails, v)
			}
		}
		all := fmt.Sprint(v)
		for _, part := range c.says {
			if !strings.Contains(all, part) {
				t.Errorf("%s: %q is not in %s", c.name, part, all)
			}
		}
		for i := 16; i+16 <= 48; i++ {
			if strings.Contains(all, text[i:i+16]) {
				t.Fatalf("%s: the explanation shows a part of the secret", c.name)
			}
		}
	}
	refused := b.call("POST", "/v1/workflows/other/runs", text, `{}`)
	b.call("GET", "/v1/auth/explain/"+refused.header.Get("Keyfire-Request-Id"), text, "").problem(403, core.CodeInsufficientScope)
	b.call("GET", "/v1/auth/explain/req_none", boss, "").problem(404, core.CodeNotFound)
	// What was refused to someone known outlives the server.
	b.trigger.Close()
	if chain, err := b.store.Refusal(context.Background(), core.DefaultAccount, refused.header.Get("Keyfire-Request-Id")); err != nil || !strings.Contains(chain, "insufficient_scope") {
		t.Errorf("%s %v", chain, err)
	}
}

// C4: a page may call if a key or the workflow says so, and reads the answer if that is its own key.
func TestPages(t *testing.T) {
	t.Parallel()
	b := setup(t, func(_ *trigger.Config, c *Config) {
		c.Compat = compat.Products{Keyflow: true, Miiflow: true, Langflow: true, Bifrost: true}
	})
	b.publish("open", "  allowed_origins: [https://page.example]\n")
	b.publish("plain", "")
	_, text := b.key(admin.NewKey{Scopes: []string{"run:*"}, KeyLimits: admin.KeyLimits{AllowedOrigins: []string{"https://app.example"}}})
	_, bare := b.key(admin.NewKey{Scopes: []string{"run:*"}})
	ask := func(path, origin string) *reply {
		return b.call("OPTIONS", path, "", "", "Origin", origin, "Access-Control-Request-Method", "POST", "Access-Control-Request-Headers", "x-api-key,content-type")
	}
	for _, c := range []struct {
		path, origin string
		ok           bool
	}{
		{"/v1/workflows/open/runs", "https://page.example", true},
		{"/v1/workflows/open/runs", "https://app.example", true},
		{"/v1/workflows/open/runs", "https://evil.example", false},
		{"/v1/workflows/plain/runs", "https://page.example", false},
		{"/v1/workflows/nope/runs", "https://page.example", false},
		{"/v1/trigger", "https://app.example", true},
		{"/api/trigger", "https://app.example", true},
		{"/api/trigger", "https://evil.example", false},
		{"/api/v1/run/open", "https://page.example", true},
		{"/api/endpoints/open", "https://app.example", true},
		{"/v1/runs/run_x", "https://app.example", true},
		{"/api/trigger", "null", false},
	} {
		r := ask(c.path, c.origin)
		if !c.ok {
			if r.want(403); !strings.Contains(string(r.body), "allowed_origins") { // in the shape of the path's product
				t.Errorf("%s from %s: %s", c.path, c.origin, r.body)
			}
			if r.header.Get("Access-Control-Allow-Origin") != "" {
				t.Errorf("%s from %s: %v", c.path, c.origin, r.header)
			}
			continue
		}
		h := r.want(200).header
		r.object() // C1: JSON, and never 204
		headers := "X-API-Key, Content-Type, Authorization, X-Bifrost-Key, Idempotency-Key, Prefer, traceparent"
		if strings.HasPrefix(c.path, "/v1/workflows/") || c.path == "/v1/trigger" { // which can be followed in the same request
			headers += ", Last-Event-ID"
		}
		if h.Get("Access-Control-Allow-Origin") != c.origin || h.Get("Access-Control-Allow-Headers") != headers ||
			h.Get("Access-Control-Allow-Methods") == "" || !strings.Contains(strings.Join(h.Values("Vary"), ","), "Origin") || h.Get("Access-Control-Allow-Credentials") != "" {
			t.Errorf("%s from %s: %v", c.path, c.origin, h)
		}
	}
	// A page follows a run by fetch, since EventSource takes no key, and goes on where it was by Last-Event-ID.
	if h := ask("/v1/runs/run_x/events", "https://app.example").want(200).header; !strings.HasSuffix(h.Get("Access-Control-Allow-Headers"), ", Last-Event-ID") {
		t.Errorf("events: %v", h)
	}
	b.call("OPTIONS", "/v1/keys", "", "", "Origin", "https://app.example", "Access-Control-Request-Method", "GET").problem(405, core.CodeMethodNotAllowed)
	b.call("OPTIONS", "/v1/trigger", "", "").problem(405, core.CodeMethodNotAllowed)

	for _, c := range []struct {
		name, key, path, origin string
		status                  int
		readable                bool
	}{
		{"own page", text, "plain", "https://app.example", 200, true},
		{"another page", text, "plain", "https://evil.example", 403, false},
		{"the workflow's page", text, "open", "https://page.example", 200, true},
		{"no page", text, "plain", "", 200, false},
		{"this server's page", text, "plain", "http://example.com", 200, false},
		{"a key without pages", bare, "plain", "https://app.example", 200, false},
		{"a key without pages on the workflow's", bare, "open", "https://page.example", 200, true},
		{"a bad key from a known page", "kft_x", "plain", "https://app.example", 401, true},
		{"a bad key from an unknown page", "kft_x", "plain", "https://evil.example", 401, false},
	} {
		r := b.call("POST", "/v1/workflows/"+c.path+"/runs", c.key, `{}`, "Origin", c.origin).want(c.status)
		if got := r.header.Get("Access-Control-Allow-Origin"); (got != "") != c.readable || c.readable && got != c.origin {
			t.Errorf("%s: Access-Control-Allow-Origin %q", c.name, got)
		}
	}
	_, boss := b.key(admin.NewKey{Type: auth.AdminKey, KeyLimits: admin.KeyLimits{AllowedOrigins: []string{"https://app.example"}}})
	b.call("GET", "/v1/keys", boss, "", "Origin", "https://evil.example").problem(403, core.CodeSourceNotAllowed)
	if r := b.call("GET", "/v1/keys", boss, "", "Origin", "https://app.example").want(200); r.header.Get("Access-Control-Allow-Origin") != "" {
		t.Error("the control plane is open to pages")
	}
}
