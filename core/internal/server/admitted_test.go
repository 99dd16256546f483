package server

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/admin"
	"github.com/keyfire/keyfire/core/internal/console"
	"github.com/keyfire/keyfire/core/internal/server/compat"
	"github.com/keyfire/keyfire/core/internal/trigger"
)

// blind is a store that admits runs and cannot be read any more.
type blind struct {
	trigger.Store
	on atomic.Bool
}

func (s *blind) Run(ctx context.Context, account, id string) (*core.Run, error) {
	if s.on.Load() {
		return nil, core.Errorf(core.CodeStoreUnavailable, "the store does not answer")
	}
	return s.Store.Run(ctx, account, id)
}

// D3: a run that is admitted is named in whatever is answered, and the answer asks nobody to send the request again: that would start another one.
func TestAdmittedRunIsNamedWithoutTheStoreD3(t *testing.T) {
	t.Parallel()
	s := &blind{}
	b := setup(t, func(tc *trigger.Config, c *Config) {
		s.Store, tc.Store, c.Compat = tc.Store, s, compat.Products{Langflow: true, Bifrost: true}
	})
	b.publish("later", "  mode: async\n")
	key := b.globalKey()
	s.on.Store(true)
	r := b.call("POST", "/v1/workflows/later/runs", key, `{}`, "Prefer", "wait=5")
	p := r.problem(503, core.CodeStoreUnavailable)
	if p.RunID == nil || *p.RunID == "" || *p.RunID != r.header.Get("Keyfire-Run-Id") || p.Retryable || r.header.Get("Retry-After") != "" {
		t.Errorf("Retry-After %q in the answer about run %s: %s", r.header.Get("Retry-After"), r.header.Get("Keyfire-Run-Id"), r.body)
	}
	r = b.call("POST", "/api/v1/run/later", key, `{"input_value":"x"}`).want(503)
	if r.header.Get("Keyfire-Run-Id") == "" || r.header.Get("Retry-After") != "" {
		t.Errorf("Retry-After %q in the answer about run %s", r.header.Get("Retry-After"), r.header.Get("Keyfire-Run-Id"))
	}
}

// K1: what a client writes where a name belongs may be a key. No adapter repeats it.
func TestAdaptersRepeatNoKeyK1(t *testing.T) {
	t.Parallel()
	f := setupForeign(t)
	_, pasted := f.key(admin.NewKey{Scopes: []string{auth.ScopeRunAll}})
	for path, body := range map[string]string{
		"/api/v1/process/flow": `{"inputs":{},"tweaks":{"` + pasted + `":1}}`,
		"/api/v1/run/flow":     `{"input_value":"x","tweaks":{"` + pasted + `":{"field":1}}}`,
	} {
		r := f.call("POST", path, f.global, body)
		if r.code < 400 || strings.Contains(string(r.body), pasted[20:40]) {
			t.Errorf("%s: %d %s", path, r.code, r.body)
		}
	}
	r := f.call("POST", "/api/workflow-keys", f.adminKey(), `{"description":"x","workflow_id":"`+pasted+`"}`)
	if r.code < 400 || strings.Contains(string(r.body), pasted[20:40]) {
		t.Errorf("%d %s", r.code, r.body)
	}
}

// U1: a key that may not manage keys is refused in the audit log too, whichever product's client sends it.
func TestAdaptersAuditRefusalsU1(t *testing.T) {
	t.Parallel()
	f := setupForeign(t)
	k, text := f.key(admin.NewKey{Scopes: []string{auth.ScopeRunAll}})
	calls := []struct{ method, path, body string }{
		{"GET", "/api/workflow-keys", ""}, {"POST", "/api/workflow-keys", `{"description":"x","is_global":true}`}, {"DELETE", "/api/workflow-keys/" + k.ID, ""},
	}
	for _, c := range calls {
		f.call(c.method, c.path, text, c.body).want(403)
	}
	l, err := f.store.AuditEvents(t.Context(), core.DefaultAccount, core.AuditFilter{Action: core.ActionAuthRefuse}, core.Page{Limit: 200})
	f.must(err)
	if len(l.Items) != len(calls) {
		t.Fatalf("%d rows for %d refusals: %+v", len(l.Items), len(calls), l.Items)
	}
	for _, e := range l.Items {
		if e.KeyID != k.ID || e.Reason != string(core.CodeInsufficientScope) {
			t.Errorf("%+v", e)
		}
	}
}

// Whether a caller has come over TLS is the trusted proxy's word, and for pages and snippets alike: the cookie is Secure where the snippet says https.
func TestSchemeIsTheTrustedProxysWord(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.publish("greet", "")
	key := b.adminKey()
	pages, err := console.New(console.Config{Admin: b.admin, Refused: b.trigger.Refuse, Call: CallByCurl})
	b.must(err)
	s, err := New(Config{
		Trigger: b.trigger, Admin: b.admin, Tracer: b.server.Tracer, NewID: b.ids, Logger: b.server.Logger, Console: pages,
		TrustedProxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
	})
	b.must(err)
	b.user(core.DefaultAccount, "vera", auth.Operator)
	for _, c := range []struct {
		name, remote string
		said, from   []string
		tls, secure  bool
	}{
		{"anybody", "203.0.113.7:1", []string{"https"}, nil, false, false},
		{"nobody said", "10.0.0.1:1", nil, nil, false, false},
		{"the proxy", "10.0.0.1:1", []string{"https"}, nil, false, true},
		{"the proxy, loudly", "10.0.0.1:1", []string{"HTTPS"}, nil, false, true},
		{"the proxy, of no TLS", "10.0.0.1:1", []string{"http"}, nil, true, false},
		{"two proxies", "10.0.0.1:1", []string{"https, http"}, []string{"198.51.100.4, 10.0.0.2"}, false, true},
		{"two proxies, each on a line", "10.0.0.1:1", []string{"https", "http"}, []string{"198.51.100.4", "10.0.0.2"}, false, true},
		{"two proxies, of which one says it", "10.0.0.1:1", []string{"https"}, []string{"198.51.100.4, 10.0.0.2"}, false, true},
		{"a caller before the proxy", "10.0.0.1:1", []string{"https, http"}, []string{"198.51.100.4"}, false, false},
		{"a caller before two proxies", "10.0.0.1:1", []string{"http, https, http"}, []string{"10.0.0.9, 198.51.100.4, 10.0.0.2"}, false, true},
		{"our own TLS", "203.0.113.7:1", nil, nil, true, true},
		{"our own TLS, denied by anybody", "203.0.113.7:1", []string{"http"}, nil, true, true},
	} {
		send := func(method, path, body, contentType string) *http.Response {
			req := httptest.NewRequest(method, path, strings.NewReader(body))
			req.RemoteAddr, req.Host = c.remote, "keyfire.example.com"
			req.Header.Set("Content-Type", contentType)
			if c.said != nil {
				req.Header["X-Forwarded-Proto"] = c.said
			}
			if c.from != nil {
				req.Header["X-Forwarded-For"] = c.from
			}
			if c.tls {
				req.TLS = &tls.ConnectionState{}
			}
			if method == http.MethodGet {
				req.Header.Set("Authorization", "Bearer "+key)
			}
			w := httptest.NewRecorder()
			s.Handler().ServeHTTP(w, req)
			return w.Result()
		}
		in := send("POST", "/settings/login", url.Values{"user": {"vera"}, "password": {sweepPassword}}.Encode(), "application/x-www-form-urlencoded")
		if in.StatusCode != http.StatusSeeOther || len(in.Cookies()) != 1 || in.Cookies()[0].Secure != c.secure {
			t.Errorf("%s: the login is answered %d with %q, want Secure %v", c.name, in.StatusCode, in.Header.Get("Set-Cookie"), c.secure)
		}
		var got struct{ URL string }
		want := map[bool]string{false: "http", true: "https"}[c.secure] + "://keyfire.example.com"
		if err := json.NewDecoder(send("GET", "/v1/workflows/greet/snippets", "", typeJSON).Body).Decode(&got); err != nil || got.URL != want {
			t.Errorf("%s: snippets begin with %q, %v, want %q", c.name, got.URL, err, want)
		}
	}
}

// U1: a person whose role does not allow what they do in the browser is refused in the audit log too.
func TestConsoleAuditsRefusalsU1(t *testing.T) {
	t.Parallel()
	b := setup(t)
	pages, err := console.New(console.Config{Admin: b.admin, Refused: b.trigger.Refuse, Call: CallByCurl})
	b.must(err)
	s, err := New(Config{Trigger: b.trigger, Admin: b.admin, Tracer: b.server.Tracer, NewID: b.ids, Logger: b.server.Logger, Console: pages})
	b.must(err)
	id := b.user(core.DefaultAccount, "vera", auth.Viewer)
	send := func(method, path, cookie string, form url.Values) *http.Response {
		req := httptest.NewRequest(method, path, strings.NewReader(form.Encode()))
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		if cookie != "" {
			req.Header.Set("Cookie", cookie)
		}
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, req)
		return w.Result()
	}
	in := send("POST", "/settings/login", "", url.Values{"user": {"vera"}, "password": {sweepPassword}})
	cookie, _, _ := strings.Cut(in.Header.Get("Set-Cookie"), ";")
	if in.StatusCode != http.StatusSeeOther || cookie == "" {
		t.Fatalf("login: %d", in.StatusCode)
	}
	if r := send("GET", "/settings/workflow-keys/new", cookie, nil); r.StatusCode != http.StatusForbidden {
		t.Fatalf("%d", r.StatusCode)
	}
	if r := send("POST", "/settings/workflow-keys", cookie, url.Values{"description": {"x"}, "global": {"on"}, "expires": {"30"}}); r.StatusCode != http.StatusForbidden {
		t.Fatalf("%d", r.StatusCode)
	}
	l, err := b.store.AuditEvents(t.Context(), core.DefaultAccount, core.AuditFilter{Action: core.ActionAuthRefuse}, core.Page{Limit: 200})
	b.must(err)
	if len(l.Items) != 2 || l.Items[0].Actor != "user:"+id || l.Items[0].Reason != string(core.CodeInsufficientScope) {
		t.Errorf("%+v", l.Items)
	}
}

// Whoever may not see what a key is used for does not make the server write it down either.
func TestKeyUsageWritesForNobodyElse(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.publish("open", "")
	k, text := b.key(admin.NewKey{Scopes: []string{auth.ScopeRunAll}})
	b.call("POST", "/v1/workflows/open/runs", text, `{}`).want(200)
	b.call("GET", "/v1/keys/"+k.ID+"/usage", text, "").problem(403, core.CodeInsufficientScope)
	if written, err := b.store.KeyUsage(t.Context(), k.Account, k.ID, 0); err != nil || len(written) != 0 {
		t.Errorf("%v %v", written, err)
	}
	if seen := b.call("GET", "/v1/keys/"+k.ID+"/usage", b.adminKey(), "").want(200).object(); seen["runs"] != 1.0 {
		t.Errorf("%v", seen)
	}
}

// The adapter reads the same clock as the rest of the server: what a key's life begins with, and whether it is over.
func TestBifrostKeysReadTheServersClock(t *testing.T) {
	t.Parallel()
	f := setupForeign(t)
	_, boss := f.key(admin.NewKey{Type: auth.AdminKey})
	later := time.Now().Add(200 * 24 * time.Hour)
	f.admin.Now = func() time.Time { return later }
	made := f.call("POST", "/api/workflow-keys", boss, `{"description":"CI","workflow_id":"flow"}`).want(201).object()
	if got, want := made["expires_at"], later.Add(90*24*time.Hour); !strings.HasPrefix(fmt.Sprint(got), want.UTC().Format("2006-01-02T15:04")) {
		t.Errorf("expires_at is %v, want %v", got, want)
	}
	later = later.Add(91 * 24 * time.Hour)
	if r := f.call("GET", "/api/workflow-keys", boss, "").want(200); !strings.Contains(string(r.body), `"is_expired":true`) {
		t.Errorf("no key has expired: %s", r.body)
	}
}

// The reason of a cancellation has as many characters as the API's description says, in any script.
func TestReasonIsCountedInCharacters(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.publish("later", "  mode: async\n")
	key := b.globalKey()
	_, boss := b.key(admin.NewKey{Type: auth.AdminKey})
	for _, c := range []struct{ n, status int }{{500, 202}, {501, 422}} {
		id := b.call("POST", "/v1/workflows/later/runs", key, `{"run_after":"`+time.Now().Add(time.Hour).UTC().Format(time.RFC3339)+`"}`).want(202).header.Get("Keyfire-Run-Id")
		b.call("POST", "/v1/runs/"+id+"/cancel", boss, `{"reason":"`+strings.Repeat("語", c.n)+`"}`).want(c.status)
	}
}

// A version is written in one way, where it is shown as where it is run.
func TestVersionIsWrittenInOneWay(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.publish("greet", "")
	_, boss := b.key(admin.NewKey{Type: auth.AdminKey})
	for version, status := range map[string]int{"1": 200, "01": 404, "+1": 404, "0": 404} {
		b.call("GET", "/v1/workflows/greet@"+version, boss, "").want(status)
		b.call("GET", "/v1/workflows/greet/versions/"+version, boss, "").want(status)
		b.call("POST", "/v1/workflows/greet@"+version+"/runs", b.globalKey(), "{}").want(status)
	}
}

// O1: what is wrong with a request is told in a bounded answer, however much of it is wrong and however it is written.
func TestRefusedOverridesAreToldShortlyO1(t *testing.T) {
	t.Parallel()
	f := setupForeign(t)
	long := strings.Repeat("x", 10_000)
	var many strings.Builder
	for i := range 2000 {
		fmt.Fprintf(&many, `,"no%d":{"a":1}`, i)
	}
	if r := f.call("POST", "/api/workflow-keys", f.adminKey(), `{"description":"x","workflow_id":"flow","expires`+long+`":1}`).want(422); len(r.body) > 4<<10 {
		t.Errorf("%d bytes for a long name", len(r.body))
	}
	for path, member := range map[string]string{"/v1/workflows/flow/runs": "overrides", "/api/v1/process/flow": "tweaks"} {
		for _, value := range []string{`{"` + long + `":{"` + long + `":1}}`, `{"` + long + `":{}}`, `{` + many.String()[1:] + `}`, `{"` + long + `":1}`, `{"a/b~":1}`} {
			r := f.call("POST", path, f.global, `{"`+member+`":`+value+`}`)
			if len(r.body) > 4<<10 || r.code < 400 || r.code > 499 {
				t.Errorf("%s: %d and %d bytes for %.30s", path, r.code, len(r.body), value)
			}
			if strings.Contains(value, "~") && !strings.Contains(string(r.body), member+"/a~1b~0") {
				t.Errorf("%s: %s", path, r.body)
			}
		}
	}
}

// A run has the same members before and after its end, and however it ended: callers read them without asking whether they are there.
func TestRunHasItsMembersInEveryState(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.publish("later", "")
	key := b.globalKey()
	r := b.call("POST", "/v1/workflows/later/runs", key, `{"run_after":"`+time.Now().Add(time.Hour).UTC().Format(time.RFC3339)+`"}`).want(202)
	id := r.header.Get("Keyfire-Run-Id")
	bodies := []*reply{r, b.call("POST", "/v1/runs/"+id+"/cancel", key, "").want(202), b.call("GET", "/v1/runs/"+id, key, "").want(200)}
	for _, r := range bodies {
		run := r.object()
		output, hasOutput := run["output"]
		steps, hasSteps := run["steps"].([]any)
		if !hasOutput || output != nil || !hasSteps || len(steps) != 0 {
			t.Errorf("%s", r.body)
		}
	}
}

// D3: a repeated request gets the answer of the first whatever its author does with the workflow in between, on every route that starts runs. A new one is refused.
func TestRepetitionOutlivesChangesD3(t *testing.T) {
	t.Parallel()
	f := setupForeign(t)
	_, err := f.admin.PublishWorkflow(context.Background(), f.boss, admin.Publish{
		Slug: "moving", Filename: "workflow.yaml", Source: []byte(workflowFile("moving", "  overrides: [only.color]\n") + "    config: {color: blue}\n"), Modules: map[string][]byte{"./only.wasm": []byte(wasm)},
	})
	f.must(err)
	k, key := f.key(admin.NewKey{Scopes: []string{"run:workflow/moving"}, MaxRuns: 5})
	requests := []struct{ path, body string }{
		{"/v1/workflows/moving/runs", `{"input":{"a":1},"overrides":{"only":{"color":"red"}}}`},
		{"/v1/trigger", `{"input":{"a":2}}`},
		{"/api/trigger", `{"inputs":{"a":3}}`},
		{"/v1/hooks/moving", `{"a":4}`},
	}
	send := func(i int, id string) *reply {
		return f.call("POST", requests[i].path, key, requests[i].body, "Idempotency-Key", id)
	}
	ids := make([]string, len(requests))
	for i := range requests {
		ids[i] = send(i, strconv.Itoa(i)).header.Get("Keyfire-Run-Id")
	}
	message := func(id string) *reply {
		return f.call("POST", "/v1/hooks/moving", key, `{"a":5}`, "Webhook-Id", id)
	}
	told := message("m1").want(202).header.Get("Keyfire-Run-Id")
	check := func(what string, want int) {
		t.Helper()
		if again := message("m1").want(200); !strings.Contains(string(again.body), `"duplicate":true`) || again.header.Get("Keyfire-Run-Id") != told {
			t.Errorf("%s, a message that comes again: %s", what, again.body)
		}
		if r := message("m2"); r.code != want || r.header.Get("Keyfire-Run-Id") != "" {
			t.Errorf("%s, another message: %d %s", what, r.code, r.body)
		}
		for i, r := range requests {
			if again := send(i, strconv.Itoa(i)).want(200); again.header.Get("Keyfire-Run-Id") != ids[i] || again.header.Get("Idempotency-Replayed") != "true" {
				t.Errorf("%s, %s: %v", what, r.path, again.header)
			}
			for _, id := range []string{"", "new"} {
				refused := f.call("POST", r.path, key, r.body)
				if id != "" {
					refused = send(i, id)
				}
				if refused.code/100 != 4 || refused.header.Get("Keyfire-Run-Id") != "" {
					t.Errorf("%s, %s with the key %q: %d %s", what, r.path, id, refused.code, refused.body)
				}
			}
		}
		changed := strings.Replace(requests[1].body, "2", "5", 1)
		if r := f.call("POST", requests[1].path, key, changed, "Idempotency-Key", "1"); r.code != want || r.header.Get("Keyfire-Run-Id") != "" {
			t.Errorf("%s, another request with a used key: %d %s", what, r.code, r.body)
		}
	}
	f.publish("moving", "input: {type: object, required: [b]}\n") // and no override
	check("another schema", 422)
	_, err = f.admin.SetWorkflowEnabled(context.Background(), f.boss, "moving", false)
	f.must(err)
	check("switched off", 409)
	_, err = f.admin.RevokeKey(context.Background(), f.boss, k.ID, "")
	f.must(err)
	send(0, "0").problem(401, core.CodeKeyRevoked)
}
