package server

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/admin"
	"github.com/keyfire/keyfire/core/internal/trigger"
)

// Every code has its row, and the rows say what http-api.md promises of them.
func TestEveryCodeHasAnAnswer(t *testing.T) {
	t.Parallel()
	types := map[string]bool{}
	for _, c := range core.Codes() {
		k, ok := kinds[c]
		if !ok {
			t.Errorf("code %s has no row", c)
			continue
		}
		if k.status < 400 || k.status > 599 || k.title == "" || types[typeURI(c)] {
			t.Errorf("row of %s: %+v", c, k)
		}
		types[typeURI(c)] = true
		if k.status == 401 && k.challenge == "" {
			t.Errorf("%s is a 401 without a challenge, which RFC 9110 requires", c)
		}
		if (k.after > 0) != k.retryable {
			t.Errorf("%s: a retryable problem says when, and no other does", c)
		}
	}
	if len(kinds) != len(core.Codes()) {
		t.Errorf("%d rows for %d codes", len(kinds), len(core.Codes()))
	}
}

func TestUnknownErrorsSayNothing(t *testing.T) {
	t.Parallel()
	for _, err := range []error{
		errors.New("select * from keys"),
		core.Wrap(core.CodeInternal, errors.New("/var/lib"), "the schema cannot be used"),
		core.Errorf("made_up", "secret detail"),
	} {
		p, _, _ := problemOf(err)
		if p.Status != 500 || p.Code != "internal" || p.Detail != "" || p.Errors != nil {
			t.Errorf("%v is answered with %+v", err, p)
		}
	}
}

// TestTriggerStatusTable sends what each row of the table in the API's documentation describes. Rows of what does not exist yet (rates, source
// lists, cancelling) have no case.
func TestTriggerStatusTable(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.publish("open", "")
	b.publish("own", "  global_keys: false\n")
	b.publish("shut", "")
	if _, err := b.admin.SetWorkflowEnabled(t.Context(), b.boss, "shut", false); err != nil {
		t.Fatal(err)
	}
	_, err := b.admin.PublishWorkflow(t.Context(), b.boss, admin.Publish{
		Slug: "schema", Filename: "w.yaml",
		Source:  []byte(workflowFile("schema", "") + "input:\n  type: object\n  required: [amount]\n  properties: {amount: {type: number, minimum: 0}}\n"),
		Modules: map[string][]byte{"./only.wasm": []byte(wasm)},
	})
	b.must(err)
	key := b.globalKey()
	_, scoped := b.key(admin.NewKey{Scopes: []string{"run:workflow/open"}})
	_, spent := b.key(admin.NewKey{Scopes: []string{auth.ScopeRunAll}, MaxRuns: 1})
	b.call("POST", "/v1/workflows/open/runs", spent, "{}").want(200)
	expired := b.expiredKey()
	revoked, gone := b.key(admin.NewKey{Scopes: []string{auth.ScopeRunAll}})
	if _, err := b.admin.RevokeKey(t.Context(), b.boss, revoked.ID, ""); err != nil {
		t.Fatal(err)
	}
	_, reader := b.key(admin.NewKey{Scopes: []string{auth.ScopeRunsRead}})
	b.executor.set("open", func(_ context.Context, run *core.Run) {
		fail := func(s core.RunStatus, e core.RunError) { run.Status, run.Output, run.Error = s, nil, &e }
		switch string(run.Input) {
		case `"fail"`:
			fail(core.RunFailed, core.RunError{Code: core.CodeRunFailed, Class: core.ClassTrap, Message: "unreachable executed", Step: "only"})
		case `"slow"`:
			fail(core.RunTimedOut, core.RunError{Code: core.CodeRunTimedOut, Class: core.ClassTimeout, Message: "the node's time is over", Step: "only", Retryable: true})
		case `"refuse"`:
			fail(core.RunFailed, core.RunError{Code: core.CodeRunFailed, Class: core.ClassFailed, Message: "paid already", Step: "only", Status: 409, UserCode: "duplicate_invoice"})
		case `"cancel"`:
			fail(core.RunCancelled, core.RunError{Code: core.CodeRunCancelled, Message: "cancelled"})
		case `"stop"`:
			fail(core.RunInterrupted, core.RunError{Code: core.CodeRunInterrupted, Message: "the server is stopping"})
		}
	})
	const runs = "/v1/workflows/open/runs"
	long := strings.Repeat("x", 1<<20)
	for _, c := range []struct {
		name   string
		target string
		key    string
		body   string
		header []string
		status int
		code   core.Code
		check  func(t *testing.T, r *reply, p *Problem)
	}{
		{name: "succeeded", target: runs, key: key, body: `{"input":1}`, status: 200},
		{name: "by version", target: "/v1/workflows/open@1/runs", key: key, body: `{}`, status: 200},
		{name: "without a body", target: runs, key: key, status: 200},
		{name: "failed", target: runs, key: key, body: `{"input":"fail"}`, status: 500, code: core.CodeRunFailed, check: func(t *testing.T, r *reply, p *Problem) {
			if p.RunID == nil || *p.RunID != r.header.Get("Keyfire-Run-Id") || p.FailedStep != "only" || p.Error.Message != "unreachable executed" || r.header.Get("Keyfire-Run-Status") != "failed" {
				t.Errorf("%s", r.body)
			}
		}},
		{name: "timed out", target: runs, key: key, body: `{"input":"slow"}`, status: 500, code: core.CodeRunTimedOut, check: func(t *testing.T, r *reply, p *Problem) {
			if !p.Retryable || p.RunID == nil {
				t.Errorf("%s", r.body)
			}
		}},
		{name: "failed on purpose", target: runs, key: key, body: `{"input":"refuse"}`, status: 409, code: "duplicate_invoice", check: func(t *testing.T, r *reply, p *Problem) {
			if p.RunID == nil || p.Detail != "paid already" {
				t.Errorf("%s", r.body)
			}
		}},
		{name: "cancelled", target: runs, key: key, body: `{"input":"cancel"}`, status: 409, code: core.CodeRunCancelled},
		{name: "interrupted", target: runs, key: key, body: `{"input":"stop"}`, status: 503, code: core.CodeRunInterrupted, check: func(t *testing.T, r *reply, _ *Problem) {
			if r.header.Get("Retry-After") != "" {
				t.Error("a run whose outcome is unknown must not be sent again unasked")
			}
		}},
		{name: "no credential", target: runs, status: 401, code: core.CodeUnauthenticated, check: challenged(`Bearer realm="keyfire"`)},
		{name: "empty credential", target: runs, header: []string{"Authorization", "Bearer ", "X-API-Key", " "}, status: 401, code: core.CodeUnauthenticated},
		{name: "other scheme", target: runs, header: []string{"Authorization", "Basic dXNlcjpwYXNz"}, status: 401, code: core.CodeUnauthenticated},
		{name: "malformed", target: runs, key: "kft_short", status: 401, code: core.CodeInvalidKey, check: challenged(`Bearer realm="keyfire", error="invalid_token"`)},
		{name: "foreign", target: runs, key: "bk_live_0123456789", status: 401, code: core.CodeInvalidKey},
		{name: "bad check", target: runs, key: flip(key), status: 401, code: core.CodeInvalidKey},
		{name: "wrong secret", target: runs, key: wrongSecret(t, key), status: 401, code: core.CodeInvalidKey},
		{name: "in the query, not allowed", target: runs + "?x-api-key=" + key, status: 401, code: core.CodeInvalidKey},
		{name: "expired", target: runs, key: expired, status: 401, code: core.CodeKeyExpired},
		{name: "revoked", target: runs, key: gone, status: 401, code: core.CodeKeyRevoked},
		{name: "two credentials", target: runs, key: key, header: []string{"X-API-Key", gone}, status: 400, code: core.CodeAmbiguousCredential, check: challenged(`Bearer realm="keyfire", error="invalid_request"`)},
		{name: "a list of credentials", target: runs, header: []string{"X-API-Key", key + "," + key}, status: 400, code: core.CodeAmbiguousCredential},
		{name: "the same credential twice", target: runs, key: key, header: []string{"X-Bifrost-Key", key}, body: "{}", status: 200},
		{name: "scoped key, other workflow", target: "/v1/workflows/own/runs", key: scoped, status: 403, code: core.CodeInsufficientScope, check: challenged(`Bearer realm="keyfire", error="insufficient_scope"`)},
		{name: "scoped key, no workflow", target: "/v1/workflows/nothing/runs", key: scoped, status: 403, code: core.CodeInsufficientScope},
		{name: "global key, workflow without global keys", target: "/v1/workflows/own/runs", key: key, status: 403, code: core.CodeInsufficientScope},
		{name: "key that may not run", target: runs, key: reader, status: 403, code: core.CodeInsufficientScope},
		{name: "global key, no workflow", target: "/v1/workflows/nothing/runs", key: key, status: 404, code: core.CodeNotFound},
		{name: "no such version", target: "/v1/workflows/open@9/runs", key: key, status: 404, code: core.CodeNotFound},
		{name: "bad version", target: "/v1/workflows/open@x/runs", key: key, status: 404, code: core.CodeNotFound},
		{name: "disabled", target: "/v1/workflows/shut/runs", key: key, status: 409, code: core.CodeWorkflowDisabled},
		{name: "override", target: runs, key: key, body: `{"overrides":{"only":{"model":"x"}}}`, status: 403, code: core.CodeOverrideNotAllowed, check: pointer("#/overrides/only/model")},
		{name: "no workflow named", target: "/v1/trigger", key: key, body: `{}`, status: 400, code: core.CodeWorkflowRequired},
		{name: "bound key", target: "/v1/trigger", key: scoped, body: `{}`, status: 200},
		{name: "wrong type", target: runs, key: key, body: `a=b`, header: []string{"Content-Type", "application/x-www-form-urlencoded"}, status: 415, code: core.CodeUnsupportedMediaType, check: func(t *testing.T, r *reply, _ *Problem) {
			if r.header.Get("Accept-Post") != "application/json" {
				t.Errorf("Accept-Post %q", r.header.Get("Accept-Post"))
			}
		}},
		{name: "no type", target: runs, key: key, body: `{}`, header: []string{"Content-Type", ""}, status: 415, code: core.CodeUnsupportedMediaType},
		{name: "multipart", target: runs, key: key, body: `{}`, header: []string{"Content-Type", "multipart/form-data; boundary=x"}, status: 415, code: core.CodeUnsupportedMediaType},
		{name: "other charset", target: runs, key: key, body: `{}`, header: []string{"Content-Type", "application/json; charset=latin1"}, status: 415, code: core.CodeUnsupportedMediaType},
		{name: "charset", target: runs, key: key, body: `{}`, header: []string{"Content-Type", "application/json; charset=UTF-8"}, status: 200},
		{name: "compressed", target: runs, key: key, body: `{}`, header: []string{"Content-Encoding", "gzip"}, status: 415, code: core.CodeUnsupportedMediaType},
		{name: "too large", target: runs, key: key, body: `{"input":"` + long + `"}`, status: 413, code: core.CodeBodyTooLarge, check: func(t *testing.T, _ *reply, p *Problem) {
			if !strings.Contains(p.Detail, "1048576") {
				t.Errorf("%q does not name the limit", p.Detail)
			}
		}},
		{name: "long URL", target: runs + "?x=" + strings.Repeat("y", 5000), key: key, status: 414, code: core.CodeURLTooLong},
		{name: "large header", target: runs, key: key, header: []string{"X-Large", strings.Repeat("y", 17<<10)}, status: 431, code: core.CodeHeadersTooLarge},
		{name: "bad JSON", target: runs, key: key, body: `{"input":}`, status: 400, code: core.CodeInvalidJSON},
		{name: "empty JSON", target: runs, key: key, header: []string{"Content-Type", "application/json"}, status: 400, code: core.CodeInvalidJSON},
		{name: "duplicate name", target: runs, key: key, body: `{"input":{"a":1,"a":2}}`, status: 400, code: core.CodeInvalidJSON},
		{name: "no object", target: runs, key: key, body: `[1]`, status: 400, code: core.CodeInvalidRequest},
		{name: "unknown field", target: runs, key: key, body: `{"inputs":{"name":"Ada"}}`, status: 400, code: core.CodeUnknownField, check: func(t *testing.T, r *reply, p *Problem) {
			pointer("#/inputs")(t, r, p)
			if !strings.Contains(p.Detail, "did you mean input?") || bytes.Contains(r.body, []byte("Ada")) {
				t.Errorf("%s", r.body)
			}
		}},
		{name: "other case", target: runs, key: key, body: `{"Input":{}}`, status: 400, code: core.CodeUnknownField},
		{name: "dedupe policy", target: runs, key: key, body: `{"dedupe":{"key":"x","policy":"drop"}}`, status: 400, code: core.CodeInvalidRequest, check: pointer("#/dedupe/policy")},
		{name: "dedupe key", target: runs, key: key, body: `{"dedupe":{"key":5}}`, status: 400, code: core.CodeInvalidRequest, check: pointer("#/dedupe/key")},
		{name: "dedupe key with NUL", target: runs, key: key, body: `{"dedupe":{"key":"x\u0000"}}`, status: 400, code: core.CodeInvalidRequest, check: pointer("#/dedupe/key")},
		{name: "metadata with NUL", target: runs, key: key, body: `{"metadata":{"a":"x\u0000"}}`, status: 400, code: core.CodeInvalidRequest, check: pointer("#/metadata/a")},
		{name: "callback URL", target: runs, key: key, body: `{"callback":{"url":["x"]}}`, status: 400, code: core.CodeInvalidRequest, check: pointer("#/callback/url")},
		{name: "dedupe member", target: runs, key: key, body: `{"dedupe":{"kee":"x"}}`, status: 400, code: core.CodeUnknownField, check: pointer("#/dedupe/kee")},
		{name: "dedupe", target: runs, key: key, body: `{"dedupe":{"key":"x"}}`, status: 200},
		{name: "callback", target: runs, key: key, body: `{"callback":{"url":"https://x"}}`, status: 400, code: core.CodeNotSupported, check: pointer("#/callback")},
		{name: "callback without an event", target: runs, key: key, body: `{"callback":{"url":"https://x","events":[]}}`, status: 400, code: core.CodeInvalidRequest, check: pointer("#/callback/events")},
		{name: "callback event", target: runs, key: key, body: `{"callback":{"url":"https://x","events":["run.started"]}}`, status: 400, code: core.CodeInvalidRequest, check: pointer("#/callback/events")},
		{name: "run_after", target: runs, key: key, body: `{"run_after":"2030-01-01T00:00:00Z"}`, status: 202, check: func(t *testing.T, r *reply, _ *Problem) {
			if o := r.object(); o["status"] != "scheduled" || o["due_at"] != "2030-01-01T00:00:00Z" || r.header.Get("Location") == "" {
				t.Errorf("%v", o)
			}
		}},
		{name: "run_after that is no time", target: runs, key: key, body: `{"run_after":"tomorrow"}`, status: 400, code: core.CodeInvalidRequest, check: pointer("#/run_after")},
		{name: "respond-async", target: runs, key: key, body: `{}`, header: []string{"Prefer", "Respond-Async"}, status: 202, check: func(t *testing.T, r *reply, _ *Problem) {
			id, _ := r.object()["id"].(string)
			if r.header.Get("Preference-Applied") != "respond-async" || r.header.Get("Location") != "/v1/runs/"+id || r.header.Get("Retry-After") != "1" {
				t.Errorf("%v", r.header)
			}
		}},
		{name: "wait", target: runs, key: key, body: `{}`, header: []string{"Prefer", "handling=lenient, respond-async, wait=10"}, status: 200, check: func(t *testing.T, r *reply, _ *Problem) {
			if got := r.header.Get("Preference-Applied"); got != "respond-async, wait=10" {
				t.Errorf("applied: %q", got)
			}
		}},
		{name: "wait longer than can be counted", target: runs, key: key, body: `{}`, header: []string{"Prefer", "wait=99999999999999999999"}, status: 200, check: func(t *testing.T, r *reply, _ *Problem) {
			if got := r.header.Get("Preference-Applied"); got != "wait=60" {
				t.Errorf("Preference-Applied %q", got)
			}
		}},
		{name: "events and JSON are as welcome", target: runs, key: key, body: `{}`, header: []string{"Accept", "application/json, text/event-stream"}, status: 200, check: func(t *testing.T, r *reply, _ *Problem) {
			r.object()
		}},
		{name: "JSON is preferred to events", target: runs, key: key, body: `{}`, header: []string{"Accept", "text/event-stream;q=0.5, application/json"}, status: 200, check: func(t *testing.T, r *reply, _ *Problem) {
			r.object()
		}},
		{name: "events are not acceptable", target: runs, key: key, body: `{}`, header: []string{"Accept", "application/json, text/event-stream;q=0"}, status: 200, check: func(t *testing.T, r *reply, _ *Problem) {
			r.object()
		}},
		{name: "wait longer than allowed", target: runs, key: key, body: `{}`, header: []string{"Prefer", "wait=100000"}, status: 200, check: func(t *testing.T, r *reply, _ *Problem) {
			if got := r.header.Get("Preference-Applied"); got != "wait=60" {
				t.Errorf("applied: %q", got)
			}
		}},
		{name: "other preference", target: runs, key: key, body: `{}`, header: []string{"Prefer", "handling=lenient, wait=soon"}, status: 200, check: func(t *testing.T, r *reply, _ *Problem) {
			if r.header.Get("Preference-Applied") != "" {
				t.Error("no preference was applied")
			}
		}},
		{name: "a comma in another preference", target: runs, key: key, body: `{}`, header: []string{"Prefer", `note="a \", respond-async, wait=3"; by="x,wait=4", handling=lenient`}, status: 200, check: func(t *testing.T, r *reply, _ *Problem) {
			if got := r.header.Get("Preference-Applied"); got != "" {
				t.Errorf("applied: %q", got)
			}
		}},
		{name: "metadata of another type", target: runs, key: key, body: `{"metadata":{"n":1}}`, status: 400, code: core.CodeInvalidRequest, check: pointer("#/metadata/n")},
		{name: "long metadata", target: runs, key: key, body: `{"metadata":{"n":"` + strings.Repeat("é", 501) + `"}}`, status: 400, code: core.CodeInvalidRequest, check: pointer("#/metadata/n")},
		{name: "input that does not fit", target: "/v1/workflows/schema/runs", key: key, body: `{"input":{"amount":-48151623}}`, status: 422, code: core.CodeInvalidInput, check: func(t *testing.T, r *reply, p *Problem) {
			pointer("#/input/amount")(t, r, p)
			if bytes.Contains(r.body, []byte("48151623")) {
				t.Errorf("the value is repeated: %s", r.body)
			}
		}},
		{name: "spent", target: runs, key: spent, body: `{}`, status: 429, code: core.CodeQuotaExhausted, check: func(t *testing.T, r *reply, p *Problem) {
			if p.Retryable || r.header.Get("Retry-After") != "" {
				t.Error("waiting does not bring runs back")
			}
		}},
		{name: "bad Idempotency-Key", target: runs, key: key, body: `{}`, header: []string{"Idempotency-Key", "a b"}, status: 400, code: core.CodeInvalidRequest},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := *b
			b.t = t
			r := b.call(http.MethodPost, c.target, c.key, c.body, c.header...)
			var p *Problem
			if c.code == "" {
				r.want(c.status)
				if r.header.Get("Keyfire-Run-Id") == "" || r.object()["object"] != "run" {
					t.Errorf("no run: %s", r.body)
				}
			} else {
				p = r.problem(c.status, c.code)
				if ran := c.status >= 500 || c.code == core.CodeRunCancelled || c.code == "duplicate_invoice"; (p.RunID != nil) != ran {
					t.Errorf("run_id: %s", r.body)
				}
			}
			if c.check != nil {
				c.check(t, r, p)
			}
		})
	}
}

func challenged(want string) func(*testing.T, *reply, *Problem) {
	return func(t *testing.T, r *reply, _ *Problem) {
		t.Helper()
		if got := r.header.Values("WWW-Authenticate"); !slices.Equal(got, []string{want}) {
			t.Errorf("WWW-Authenticate %q, want %q", got, want)
		}
	}
}

func pointer(want string) func(*testing.T, *reply, *Problem) {
	return func(t *testing.T, r *reply, p *Problem) {
		t.Helper()
		if len(p.Errors) != 1 || p.Errors[0].Pointer != want || p.Errors[0].Detail == "" {
			t.Errorf("want pointer %s in %s", want, r.body)
		}
	}
}

// K4: whoever guesses learns nothing. Apart from the ids of request and trace, the four ways to be wrong have one answer.
func TestNoOracle(t *testing.T) {
	t.Parallel()
	b := setup(t, func(tc *trigger.Config, _ *Config) { tc.MaxBadCredentials = -1 })
	b.publish("open", "")
	key := b.globalKey()
	answers := map[string]bool{}
	for _, k := range []string{"nonsense", "kft_", key[:53], flip(key), wrongSecret(t, key)} {
		for _, how := range [][]string{{"Authorization", "Bearer " + k}, {"X-API-Key", k}, {"X-Bifrost-Key", k}} {
			r := b.call("POST", "/v1/workflows/open/runs", "", "", how...)
			p := r.problem(401, core.CodeInvalidKey)
			answers[normal(r, p)] = true
		}
	}
	r := b.call("POST", "/v1/workflows/open/runs?api_key="+key, "", "")
	r.header.Del("Referrer-Policy")
	answers[normal(r, r.problem(401, core.CodeInvalidKey))] = true
	if len(answers) != 1 {
		t.Errorf("%d different answers: %v", len(answers), answers)
	}
}

// normal is an answer without what differs between any two.
func normal(r *reply, p *Problem) string {
	s := strings.NewReplacer(p.RequestID, "", p.TraceID, "").Replace(string(r.body))
	h := r.header.Clone()
	h.Del("Keyfire-Request-Id")
	var w strings.Builder
	_ = h.Write(&w)
	return s + w.String()
}

// A3: another account's object, and one that does not exist, have one answer.
func TestForeignObjectsDoNotExist(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := b.publish("mine", "")
	key := b.globalKey()
	k, _ := b.key(admin.NewKey{Scopes: []string{auth.ScopeRunAll}})
	run := b.call("POST", "/v1/workflows/mine/runs", key, "{}").want(200).object()["id"].(string)
	foreign := &auth.Principal{Account: "acct_other", Subject: "uid:1", Backend: "socket", Scopes: auth.AdminScopes()}
	ask := func(method, target string) string {
		req := httptest.NewRequest(method, target, nil)
		req = req.WithContext(context.WithValue(req.Context(), peerKey{}, foreign))
		r := b.do(req)
		p := r.problem(404, core.CodeNotFound)
		return strings.ReplaceAll(normal(r, p), p.Instance, "")
	}
	for _, c := range []struct{ method, path, theirs, none string }{
		{"GET", "/v1/runs/%", run, "run_00000000000000000000000000"},
		{"GET", "/v1/runs/%/logs", run, "run_00000000000000000000000000"},
		{"GET", "/v1/runs/%/steps/only", run, "run_00000000000000000000000000"},
		{"GET", "/v1/keys/%", k.ID, "key_00000000000000000000000000"},
		{"DELETE", "/v1/keys/%", k.ID, "key_00000000000000000000000000"},
		{"GET", "/v1/workflows/%", w.ID, "wf_00000000000000000000000000"},
		{"GET", "/v1/workflows/%", "mine", "none"},
		{"GET", "/v1/workflows/%/versions", w.ID, "wf_00000000000000000000000000"},
		{"GET", "/v1/workflows/%/versions/1", w.ID, "wf_00000000000000000000000000"},
		{"POST", "/v1/workflows/%/enable", w.ID, "wf_00000000000000000000000000"},
		{"POST", "/v1/workflows/%/disable", w.ID, "wf_00000000000000000000000000"},
		{"POST", "/v1/workflows/%/runs", w.ID, "wf_00000000000000000000000000"},
	} {
		theirs, none := ask(c.method, strings.ReplaceAll(c.path, "%", c.theirs)), ask(c.method, strings.ReplaceAll(c.path, "%", c.none))
		if theirs != none {
			t.Errorf("%s %s: %s\n%s", c.method, c.path, theirs, none)
		}
	}
	// Lists of another account are empty, whatever is filtered for.
	for _, target := range []string{"/v1/runs", "/v1/runs?workflow=mine", "/v1/runs?key=" + k.ID, "/v1/keys", "/v1/workflows", "/v1/audit?target=" + k.ID} {
		req := httptest.NewRequest("GET", target, nil)
		req = req.WithContext(context.WithValue(req.Context(), peerKey{}, foreign))
		if data := b.do(req).want(200).object()["data"].([]any); len(data) != 0 {
			t.Errorf("%s shows %v", target, data)
		}
	}
}

// A4: every route but the open ones refuses a request without a credential, before it reads the body.
func TestNothingWithoutACredential(t *testing.T) {
	t.Parallel()
	b := setup(t)
	open := map[string]bool{"/healthz": true, "/readyz": true, "/openapi.json": true, "/docs": true}
	// The credential of these is in the body.
	inBody := map[string]core.Code{"/v1/auth/login": core.CodeInvalidLogin, "/v1/auth/refresh": core.CodeInvalidKey, "/v1/setup": core.CodeInvalidLogin}
	for _, route := range b.server.engine.Routes() {
		if route.Method == "OPTIONS" {
			continue // a browser asks without a credential; TestPages shows what it is told
		}
		path := strings.NewReplacer(":request", "r", ":workflow", "w", ":run", "r", ":step", "s", ":key", "k", ":version", "1").Replace(route.Path)
		if open[path] {
			b.call(route.Method, path, "", "").want(200)
			continue
		}
		if code, ok := inBody[path]; ok {
			b.call(route.Method, path, "", "{}").problem(401, code)
			continue
		}
		req := httptest.NewRequest(route.Method, path, unread{t})
		req.Header.Set("Content-Type", "application/json")
		if route.Method == "HEAD" { // which has no body to name the code in
			if r := b.do(req).want(401); r.header.Get("Www-Authenticate") == "" || len(r.body) > 0 {
				t.Errorf("HEAD %s: %v %s", path, r.header, r.body)
			}
			continue
		}
		b.do(req).problem(401, core.CodeUnauthenticated)
	}
}

// unread is a body that nobody may read.
type unread struct{ t *testing.T }

func (u unread) Read([]byte) (int, error) {
	u.t.Error("the body was read")
	return 0, errors.New("read")
}

func TestEverythingIsJSON(t *testing.T) {
	t.Parallel()
	b := setup(t)
	key := b.adminKey()
	b.call("GET", "/", "", "").problem(404, core.CodeNotFound)
	b.call("GET", "/v1/nothing", key, "").problem(404, core.CodeNotFound)
	b.call("GET", "/v1/keys/", key, "").problem(404, core.CodeNotFound)
	b.call("GET", "//v1/keys", key, "").problem(404, core.CodeNotFound)
	for _, path := range []string{"/healthz", "/readyz", "/openapi.json", "/docs"} { // what anybody may see can be looked for, too
		got, head := b.call("GET", path, "", "").want(200), b.call("HEAD", path, "", "").want(200)
		if len(head.body) > 0 || head.header.Get("Content-Length") != got.header.Get("Content-Length") || head.header.Get("Content-Type") != got.header.Get("Content-Type") {
			t.Errorf("HEAD %s: %v, %d bytes; GET: %v", path, head.header, len(head.body), got.header)
		}
	}
	r := b.call("GET", "/v1/workflows/x/runs", key, "")
	r.problem(405, core.CodeMethodNotAllowed)
	if r.header.Get("Allow") != "POST" {
		t.Errorf("Allow %q", r.header.Get("Allow"))
	}
	for _, method := range []string{"PATCH", "TRACE", "OPTIONS", "BREW", "CONNECT"} {
		r := b.call(method, "/v1/keys", key, "")
		r.problem(405, core.CodeMethodNotAllowed)
		if got := strings.Split(r.header.Get("Allow"), ", "); !slices.Contains(got, "GET") || !slices.Contains(got, "POST") {
			t.Errorf("%s: Allow %q", method, got)
		}
	}
	b.call("GET", "/v1/keys?limit=0", key, "").problem(400, core.CodeInvalidRequest)
	b.call("GET", "/v1/keys?limit=201", key, "").problem(400, core.CodeInvalidRequest)
	p := b.call("GET", "/v1/keys?limit=kft_abcdefgh", key, "").problem(400, core.CodeInvalidRequest)
	if len(p.Errors) != 1 || p.Errors[0].Parameter != "limit" || strings.Contains(p.Detail, "kft_") {
		t.Errorf("%+v", p)
	}
	p = b.call("GET", "/v1/runs?stauts=failed", key, "").problem(400, core.CodeInvalidRequest)
	if p.Errors[0].Parameter != "stauts" || !strings.Contains(p.Detail, "did you mean status?") {
		t.Errorf("%+v", p)
	}
	b.call("GET", "/v1/runs?status=sleeping", key, "").problem(400, core.CodeInvalidRequest)
	// People read answers in terminals, and copy addresses out of them.
	b.publish("echo", "")
	const address = `"https://crm.example/?a=1&b=<2>"`
	for _, r := range []*reply{
		b.call("POST", "/v1/workflows/echo/runs", b.globalKey(), `{"input":{"at":`+address+`}}`).want(200),
		b.call("POST", "/v1/workflows/echo/runs", b.globalKey(), `{"input":{"at":`+address+`}}`, "Accept", "text/event-stream").want(200),
	} {
		if !bytes.Contains(r.body, []byte(address)) {
			t.Errorf("%s is not in %s", address, r.body)
		}
	}
	if r := b.call("POST", "/v1/keys", key, `{}`); !bytes.Contains(r.body, []byte("run:workflow/<name>")) {
		t.Errorf("%s", r.body)
	}
	p = b.call("GET", "/v1/audit?action=key.revoked", key, "").problem(400, core.CodeInvalidRequest) // nobody shall think that no key was
	if p.Errors[0].Parameter != "action" || !strings.Contains(p.Detail, "did you mean key.revoke?") {
		t.Errorf("%+v", p)
	}
	b.call("GET", "/v1/audit?action=plugin.crash", key, "").want(200)
	b.call("GET", "/v1/runs?created_after=yesterday", key, "").problem(400, core.CodeInvalidRequest)
	b.call("GET", "/v1/runs?limit=1&limit=2", key, "").problem(400, core.CodeInvalidRequest)
	b.call("GET", "/v1/runs?metadata.=x", key, "").problem(400, core.CodeInvalidRequest)
	b.call("GET", "/v1/keys?metadata.a=x", key, "").problem(400, core.CodeInvalidRequest)
	b.call("GET", "/v1/runs?cursor=forged", key, "").problem(400, core.CodeInvalidRequest)
	b.call("GET", "/v1/keys", key, "", "Accept", "text/html").want(200).object()
	b.call("GET", "/v1/keys", key, "", "Accept", "application/problem+json").want(200).object()
	b.call("GET", "/v1/keys", key, "", "Accept", "json").want(200).object()
	b.call("POST", "/v1/keys", key, `{"name":"x","global":true,"max_run":5}`).problem(400, core.CodeUnknownField)
	b.call("POST", "/v1/keys", key, `{"name":"x","global":true,"Max_Runs":5}`).problem(400, core.CodeUnknownField)
	b.call("POST", "/v1/keys", key, `{"name":"x","global":true,"max_runs":0}`).problem(422, core.CodeInvalidInput)
	b.call("POST", "/v1/keys", key, `{"name":"x","global":true,"max_runs":1.5}`).problem(422, core.CodeInvalidInput)
	b.call("POST", "/v1/keys", key, `{"name":"x","global":true,"workflow":"y"}`).problem(422, core.CodeInvalidInput)
	b.call("POST", "/v1/keys", key, `{"name":"x","global":true,"expires_at":"soon"}`).problem(422, core.CodeInvalidInput)
	b.call("POST", "/v1/keys", key, `{"name":"x","global":true,"expires_at":"2001-01-01T00:00:00Z"}`).problem(422, core.CodeInvalidInput)
	b.call("POST", "/v1/keys", key, `{"name":"x","type":"root"}`).problem(422, core.CodeInvalidInput)
	b.call("POST", "/v1/keys", key, `{"name":"x"}`).problem(422, core.CodeInvalidInput)
	b.call("POST", "/v1/keys", key, `{"name":"x","workflow":"none"}`).problem(422, core.CodeInvalidInput)
	b.call("POST", "/v1/keys", key, `"x"`).problem(400, core.CodeInvalidRequest)
	b.call("POST", "/v1/keys", key, ``).problem(400, core.CodeInvalidRequest)
	b.call("POST", "/v1/keys", key, `{"name":"x"`, "Content-Type", "text/plain").problem(415, core.CodeUnsupportedMediaType)
	b.call("POST", "/v1/keys", key, `{"name":"a","name":"b"}`).problem(400, core.CodeInvalidJSON)
	never := b.call("POST", "/v1/keys", key, `{"name":"x","global":true,"expires_at":null}`).want(201).object()
	if never["expires_at"] != nil || never["max_runs"] != nil || never["runs_remaining"] != nil {
		t.Errorf("%v", never)
	}
}

func TestWorkflowsOverHTTP(t *testing.T) {
	t.Parallel()
	b := setup(t)
	key := b.adminKey()
	put := func(slug, contentType, body string) *reply {
		return b.call("PUT", "/v1/workflows/"+slug, key, body, "Content-Type", contentType)
	}
	ct, form := publication(t, [3]string{"workflow", "dir/flow.yaml", workflowFile("billing/invoice", "")}, [3]string{"module", "./only.wasm", wasm})
	r := put("billing/invoice", ct, form).want(201)
	if !strings.HasPrefix(r.header.Get("Location"), "/v1/workflows/wf_") {
		t.Errorf("Location %q", r.header.Get("Location"))
	}
	// Its module is stored by now, so the file alone is enough when it names the digest; a path must be sent along.
	p := put("billing/invoice", "application/yaml", workflowFile("billing/invoice", "  timeout: 3s\n")).problem(422, core.CodeInvalidWorkflow)
	if p.Errors[0].Line == 0 {
		t.Errorf("%+v", p.Errors)
	}
	for _, target := range []string{"billing/invoice", "billing%2Finvoice", "billing/invoice@1"} {
		w := b.call("GET", "/v1/workflows/"+target, key, "").want(200).object()
		if w["name"] != "billing/invoice" || w["source"] == "" || w["definition"] == nil {
			t.Errorf("%v", w)
		}
	}
	b.call("GET", "/v1/workflows/billing/invoice/versions", key, "").want(200)
	b.call("GET", "/v1/workflows/billing/invoice/versions/1", key, "").want(200)
	b.call("GET", "/v1/workflows/billing/invoice/versions/2", key, "").problem(404, core.CodeNotFound)
	b.call("GET", "/v1/workflows/billing/invoice/versions/x", key, "").problem(404, core.CodeNotFound)
	b.call("POST", "/v1/workflows/billing/invoice/disable", key, "").want(200)
	b.call("POST", "/v1/workflows/billing/invoice/enable", key, "{}").want(200)
	b.call("POST", "/v1/workflows/billing/invoice/enable", key, `{"force":true}`).problem(400, core.CodeUnknownField)
	b.call("POST", "/v1/workflows/billing/invoice/runs", b.globalKey(), "{}").want(200)
	b.call("POST", "/v1/workflows/billing%2Finvoice/runs", b.globalKey(), "{}").want(200)

	b.server.publications.patience = 0
	for _, account := range []string{"x", "x", "y", "y"} {
		if err := b.server.publications.enter(t.Context(), account); err != nil {
			t.Fatal(err)
		}
	}
	put("other", ct, form).problem(503, core.CodeOverloaded)
	for _, account := range []string{"x", "x", "y", "y"} {
		b.server.publications.leave(account)
	}
	put("other", ct, form).problem(422, core.CodeInvalidWorkflow)
	put("billing/invoice", "text/plain", form).problem(415, core.CodeUnsupportedMediaType)
	put("billing/invoice", "multipart/form-data", form).problem(400, core.CodeInvalidRequest)
	put("billing/invoice", ct, form[:len(form)-20]).problem(400, core.CodeInvalidRequest)
	put("billing/invoice", "application/json", `{"a":1,"a":2}`).problem(400, core.CodeInvalidJSON)
	put("billing/invoice", "application/yaml", strings.Repeat("#", core.MaxWorkflowFile+1)).problem(413, core.CodeBodyTooLarge)
	ct, form = publication(t, [3]string{"workflow", "", workflowFile("x", "")}, [3]string{"module", "./only.wasm", "no module"})
	put("x", ct, form).problem(422, core.CodeInvalidWorkflow)
	for _, parts := range [][][3]string{
		{{"module", "./only.wasm", wasm}},
		{{"workflow", "a", "x"}, {"workflow", "b", "x"}},
		{{"workflow", "a", "x"}, {"module", "m", wasm}, {"module", "m", wasm}},
		{{"workflow", "a", "x"}, {"module", "", wasm}},
		{{"workflow", "a", "x"}, {"extra", "m", wasm}},
	} {
		ct, form := publication(t, parts...)
		put("x", ct, form).problem(400, core.CodeInvalidRequest)
	}
}

func TestIdempotencyKey(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]string{
		"abc": "abc", `"abc"`: "abc", `"a\"b\\c"`: `a"b\c`, "8e03978e-40d5-43e8-bc93-6894a57f9324": "8e03978e-40d5-43e8-bc93-6894a57f9324", "a:b/c;d=e": "a:b/c;d=e",
		strings.Repeat("x", 255): strings.Repeat("x", 255),
		"":                       "!", `""`: "!", `"abc`: "!", `"a\n"`: "!", `"a b"`: "!", "a b": "!", "a\tb": "!", "é": "!", `"abc";p=1`: "!", strings.Repeat("x", 256): "!", "a\x7fb": "!", `"a\`: "!",
	} {
		got, err := idempotencyKey([]string{value})
		if err != nil {
			got = "!"
		}
		if got != want {
			t.Errorf("%q: %q, want %q (%v)", value, got, want, err)
		}
	}
	if _, err := idempotencyKey([]string{"a", "a"}); err == nil {
		t.Error("two headers are accepted")
	}

	b := setup(t)
	b.publish("open", "")
	key := b.globalKey()
	first := b.call("POST", "/v1/workflows/open/runs", key, `{"input":{"a":1,"b":2}}`, "Idempotency-Key", "k1").want(200)
	again := b.call("POST", "/v1/workflows/open/runs", key, `{"input": {"b":2,"a":1}}`, "Idempotency-Key", `"k1"`).want(200)
	if first.header.Get("Idempotency-Replayed") != "" || again.header.Get("Idempotency-Replayed") != "true" || first.object()["id"] != again.object()["id"] {
		t.Errorf("%s\n%s", first.body, again.body)
	}
	b.call("POST", "/v1/workflows/open/runs", key, `{"input":{"a":2}}`, "Idempotency-Key", "k1").problem(422, core.CodeIdempotencyKeyReused)
}

func TestRunRetrieval(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.publish("open", "")
	key, other, boss := b.globalKey(), b.globalKey(), b.adminKey()
	var ids []string
	for range 5 {
		ids = append(ids, b.call("POST", "/v1/workflows/open/runs", key, `{"input":{"n":1}}`).want(200).object()["id"].(string))
	}
	r := b.call("GET", "/v1/runs/"+ids[0], key, "").want(200)
	tag := r.header.Get("ETag")
	if tag == "" || r.header.Get("Keyfire-Run-Id") != ids[0] || r.header.Get("Keyfire-Run-Status") != "succeeded" || !strings.Contains(r.header.Get("Cache-Control"), "no-cache") {
		t.Errorf("header %v", r.header)
	}
	for _, match := range []string{tag, `"x", ` + tag, "W/" + tag, "*"} {
		if r := b.call("GET", "/v1/runs/"+ids[0], key, "", "If-None-Match", match).want(304); len(r.body) > 0 || r.header.Get("ETag") != tag {
			t.Errorf("304 with body %q", r.body)
		}
	}
	b.call("GET", "/v1/runs/"+ids[0], key, "", "If-None-Match", `"other"`).want(200)
	// A trigger key reads only the runs it started; the others do not exist for it.
	none := b.call("GET", "/v1/runs/run_0", other, "").problem(404, core.CodeNotFound)
	if p := b.call("GET", "/v1/runs/"+ids[0], other, "").problem(404, core.CodeNotFound); p.Detail != none.Detail {
		t.Errorf("%q and %q", p.Detail, none.Detail)
	}
	b.call("GET", "/v1/runs/"+ids[0]+"/steps/none", key, "").problem(404, core.CodeNotFound)
	step := b.call("GET", "/v1/runs/"+ids[0]+"/steps/only", key, "").want(200).object()
	if step["object"] != "step" || len(step["attempts"].([]any)) != 2 || step["peak_memory_bytes"] != 1966080.0 {
		t.Errorf("%v", step)
	}
	logs := b.call("GET", "/v1/runs/"+ids[0]+"/logs?limit=1", key, "").want(200).object()
	if lines := logs["data"].([]any); len(lines) != 1 || logs["has_more"] != true {
		t.Errorf("%v", logs)
	}
	logs = b.call("GET", "/v1/runs/"+ids[0]+"/logs?limit=1&cursor="+logs["next_cursor"].(string), key, "").want(200).object()
	if lines := logs["data"].([]any); len(lines) != 1 || lines[0].(map[string]any)["message"] != "oh" || logs["has_more"] != false {
		t.Errorf("%v", logs)
	}
	b.call("GET", "/v1/runs/"+ids[0]+"/logs?cursor=x", key, "").problem(400, core.CodeInvalidRequest)
	b.call("GET", "/v1/runs/"+ids[0]+"/logs?level=loud", key, "").problem(400, core.CodeInvalidRequest)

	// Pages follow each other by the Link header alone, without gaps or repeats.
	var seen []string
	next := "/v1/runs?limit=2"
	for next != "" {
		r := b.call("GET", next, boss, "").want(200)
		for _, item := range r.object()["data"].([]any) {
			run := item.(map[string]any)
			seen = append(seen, run["id"].(string))
			if run["input"] != nil || run["output"] != nil || run["steps"] != nil {
				t.Errorf("a list item carries documents: %v", run)
			}
		}
		next, _, _ = strings.Cut(strings.TrimPrefix(r.header.Get("Link"), "<"), ">")
	}
	slices.Reverse(seen)
	if !slices.Equal(seen, ids) {
		t.Errorf("pages give %v, want %v", seen, ids)
	}
}

func TestOperatorsSeeTheSourceOnly(t *testing.T) {
	t.Parallel()
	b := setup(t, func(_ *trigger.Config, sc *Config) {
		sc.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	})
	for _, c := range []struct{ remote, forwarded, want string }{
		{"203.0.113.7:1", "", "203.0.113.7"},
		{"203.0.113.7:1", "10.9.9.9", "203.0.113.7"},
		{"10.0.0.1:1", "", "10.0.0.1"},
		{"10.0.0.1:1", "198.51.100.4", "198.51.100.4"},
		{"10.0.0.1:1", "1.1.1.1, 198.51.100.4", "198.51.100.4"},
		{"10.0.0.1:1", "1.1.1.1, 198.51.100.4, 10.0.0.2", "198.51.100.4"},
		{"10.0.0.1:1", "garbage", "10.0.0.1"},
		{"10.0.0.1:1", "garbage, 10.0.0.3", "10.0.0.3"},
		{"10.0.0.1:1", "[2001:db8::1]:443", "2001:db8::1"},
		{"[::ffff:10.0.0.1]:1", "2001:db8::1", "2001:db8::1"},
	} {
		req := httptest.NewRequest("GET", "/v1/keys", nil)
		req.RemoteAddr = c.remote
		if c.forwarded != "" {
			req.Header.Set("X-Forwarded-For", c.forwarded)
		}
		state := &request{}
		b.server.findSource(req, state)
		if got := state.origin.SourceIP(); got != c.want {
			t.Errorf("%+v: got %s", c, got)
		}
	}
}
