package server

import (
	"context"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/admin"
	"github.com/keyfire/keyfire/core/internal/server/compat"
	"github.com/keyfire/keyfire/core/internal/trigger"
)

// The order of checks: whoever may not do something is told so before anybody reads what they would do it with. Every operation with a body has its scope in
// the table, but for those that decide by the object or that anybody may use.
func TestScopeBeforeBody(t *testing.T) {
	t.Parallel()
	b := setup(t)
	w := b.publish("open", "")
	_, key := b.key(admin.NewKey{Scopes: []string{"run:workflow/open"}})
	free := map[string]bool{
		"trigger": true, "trigger-workflow": true, "post-webhook": true, "put-webhook": true, // the workflow
		"cancel-run": true, "replay-run": true, "redeliver-callback": true, // the run
		"login": true, "refresh": true, "setup": true, "logout": true, "check-auth": true, "set-user-password": true,
	}
	seen := map[string]bool{}
	for path, item := range at(document(t, b), "paths") {
		for method, v := range item.(map[string]any) {
			op := at(v)
			id := op["operationId"].(string)
			scope := needs[id]
			seen[id] = true
			if scope == "" {
				if op["requestBody"] != nil && !free[id] {
					t.Errorf("%s reads a body, and no scope is needed for that", id)
				}
				continue
			}
			if !strings.Contains(op["description"].(string), "Needs the scope "+scope) && id != "disable-user" && id != "enable-user" {
				t.Errorf("%s: needs %s, and says %s", id, scope, op["description"])
			}
			target := pathParameter.ReplaceAllString(strings.ReplaceAll(path, "{version}", "1"), w.ID)
			b.call(strings.ToUpper(method), target, key, `{"nonsense":`).problem(http.StatusForbidden, core.CodeInsufficientScope)
		}
	}
	for id := range needs {
		if !seen[id] {
			t.Errorf("there is no operation %s", id)
		}
	}
	// The object comes before the body too.
	for _, path := range []string{"/v1/runs/run_nobody/cancel", "/v1/runs/run_nobody/replay", "/v1/runs/run_nobody/callbacks/cb_x/redeliver"} {
		b.call("POST", path, key, `{"nonsense":`).problem(http.StatusNotFound, core.CodeNotFound)
	}
}

// Names in a body are compared exactly at every depth, and what is wrong is named by where it stands in the body, not in our types.
func TestI1NestedMembers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.publish("open", "")
	boss := b.adminKey()
	for _, c := range []struct {
		path, body string
		status     int
		code       core.Code
		pointer    string
	}{
		{"/v1/keys", `{"name":"x","workflow":"open","max_runs":5,"refill":{"Every":"month"}}`, 400, core.CodeUnknownField, "#/refill/Every"},
		{"/v1/keys", `{"name":"x","workflow":"open","max_runs":5,"refill":{"every":"month","days":1}}`, 400, core.CodeUnknownField, "#/refill/days"},
		{"/v1/keys", `{"name":"x","workflow":"open","max_runs":5,"refill":["month"]}`, 422, core.CodeInvalidInput, "#/refill"},
		{"/v1/keys", `{"name":"x","workflow":"open","metadata":{"a":1}}`, 422, core.CodeInvalidInput, "#/metadata/a"},
		{"/v1/keys", `{"name":7,"workflow":"open"}`, 422, core.CodeInvalidInput, "#/name"},
		{"/v1/keys", `{"name":"x","workflow":"open","rate_limits":[{"limit":"1"}]}`, 422, core.CodeInvalidInput, "#/rate_limits/0/limit"},
		{"/v1/keys/import", `{"name":"x","workflow":["open"],"sha256":"00"}`, 422, core.CodeInvalidInput, "#/workflow"},
		{"/v1/workflows/open/enable", `{"a":1}`, 400, core.CodeUnknownField, "#/a"},
	} {
		p := b.call("POST", c.path, boss, c.body).problem(c.status, c.code)
		if len(p.Errors) != 1 || p.Errors[0].Pointer != c.pointer {
			t.Errorf("%s: %+v", c.body, p.Errors)
		}
		if strings.Contains(p.Errors[0].Detail+p.Detail, "KeyFields") || strings.HasSuffix(p.Errors[0].Detail, " ") {
			t.Errorf("%s: %q", c.body, p.Errors[0].Detail)
		}
	}
	b.call("POST", "/v1/keys", boss, `{"name":"x","workflow":"open","max_runs":5,"refill":null}`).want(201)
}

// D3: a version that a request names is a part of what it asks for.
func TestD3IdempotencyKeyAndVersion(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.publish("open", "")
	b.publish("open", "  timeout: 20s\n")
	key := b.globalKey()
	run := func(workflow string) *reply {
		return b.call("POST", "/v1/workflows/"+workflow+"/runs", key, `{"input":{"a":1}}`, "Idempotency-Key", "once")
	}
	first := run("open@1").want(200)
	run("open@2").problem(422, core.CodeIdempotencyKeyReused)
	run("open").problem(422, core.CodeIdempotencyKeyReused)
	if again := run("open@1").want(200); again.header.Get("Idempotency-Replayed") != "true" || string(again.body) != string(first.body) {
		t.Errorf("%v %s", again.header, again.body)
	}
}

// brittle is a store that cancels a few runs and then fails for a while.
type brittle struct {
	trigger.Store
	left *atomic.Int64
}

func (s brittle) CancelRun(ctx context.Context, account, id, reason string, at time.Time, ev core.AuditEvent) (core.Cancelled, error) {
	if s.left.Add(-1) < 0 {
		return core.Cancelled{}, core.Errorf(core.CodeStoreUnavailable, "the store is out of order")
	}
	return s.Store.CancelRun(ctx, account, id, reason, at, ev)
}

// K2: a workflow is deleted with its runs, and when that fails in between, the same request goes on.
func TestK2DeleteWorkflowAgain(t *testing.T) {
	t.Parallel()
	left := &atomic.Int64{}
	left.Store(2)
	b := setup(t, func(c *trigger.Config, _ *Config) { c.Store = brittle{c.Store, left} })
	b.publish("open", "")
	key, boss := b.globalKey(), b.adminKey()
	ids := make([]string, 5)
	for i := range ids {
		ids[i], _ = b.call("POST", "/v1/workflows/open/runs", key, `{"run_after":"`+time.Now().Add(time.Hour).UTC().Format(time.RFC3339)+`"}`).want(202).object()["id"].(string)
	}
	const request = "/v1/workflows/open?cancel_runs=true&reason=over"
	p := b.call("DELETE", request, boss, "")
	if p.problem(503, core.CodeStoreUnavailable); p.header.Get("Keyfire-Cancelled-Runs") != "2" {
		t.Errorf("%v", p.header)
	}
	b.call("POST", "/v1/workflows/open/runs", key, `{}`).problem(409, core.CodeWorkflowDisabled)
	b.call("DELETE", "/v1/workflows/open?cancel_runs=true&reason="+strings.Repeat("x", 1001), boss, "").want(400)
	left.Store(100)
	if r := b.call("DELETE", request, boss, "").want(204); r.header.Get("Keyfire-Cancelled-Runs") != "3" {
		t.Errorf("%v", r.header)
	}
	for _, id := range ids {
		b.ends(core.DefaultAccount, id, core.RunCancelled, "workflow deleted: over")
	}
	b.call("POST", "/v1/workflows/open/runs", key, `{}`).problem(404, core.CodeNotFound)
	b.call("DELETE", request, boss, "").problem(404, core.CodeNotFound)
}

// Every answer that is about a run names it and its state in the header, whatever the route.
func TestRunHeaders(t *testing.T) {
	t.Parallel()
	f := setupForeign(t)
	boss := f.adminKey()
	id, _ := f.call("POST", "/v1/workflows/flow/runs", f.global, `{}`).want(200).object()["id"].(string)
	check := func(status int, r *reply, state string) string {
		t.Helper()
		r.want(status)
		if got := r.header.Get("Keyfire-Run-Status"); !strings.HasPrefix(r.header.Get("Keyfire-Run-Id"), "run_") || got != state {
			t.Errorf("run %q is %q, want %s: %s", r.header.Get("Keyfire-Run-Id"), got, state, r.body)
		}
		return r.header.Get("Keyfire-Run-Id")
	}
	for _, path := range []string{"", "/logs", "/steps/only", "/callbacks", "/events"} {
		check(200, f.call("GET", "/v1/runs/"+id+path, boss, ""), "succeeded")
	}
	check(404, f.call("GET", "/v1/runs/"+id+"/steps/nothing", boss, ""), "succeeded")
	check(409, f.call("POST", "/v1/runs/"+id+"/cancel", boss, ""), "succeeded")
	check(202, f.call("POST", "/v1/runs/"+id+"/replay", boss, ""), "queued")
	check(500, f.call("POST", "/v1/workflows/failing/runs", f.global, `{}`), "failed")
	check(202, f.call("POST", "/v1/workflows/flow/runs", f.global, `{}`, "Prefer", "respond-async"), "queued")
	check(200, f.call("POST", "/v1/workflows/flow/runs", f.global, `{}`, "Accept", "text/event-stream"), "queued")
	first := check(202, f.call("POST", "/v1/hooks/flow", f.global, `{}`, "Webhook-Id", "m1"), "queued")
	f.ends(core.DefaultAccount, first, core.RunSucceeded, "")
	if second := check(200, f.call("POST", "/v1/hooks/flow", f.global, `{}`, "Webhook-Id", "m1"), "succeeded"); second != first {
		t.Errorf("%s and %s", first, second)
	}
	check(500, f.call("POST", "/api/trigger", f.only("failing"), `{"inputs":{}}`), "failed")
	check(200, f.call("POST", "/api/endpoints/late", f.global, `{}`), "timed_out")
	check(200, f.call("POST", "/api/endpoints/later", f.global, `{}`), "queued")
	check(202, f.call("POST", "/api/v1/webhook/flow", f.global, `{}`), "queued")
	task := check(200, f.call("POST", "/api/v1/process/flow", f.global, `{"inputs":{},"sync":false}`), "queued")
	f.ends(core.DefaultAccount, task, core.RunSucceeded, "")
	check(200, f.call("GET", "/api/v1/task/"+task, f.global, ""), "succeeded")
}

// A public workflow is called without a credential in every account: by its id, since a name is one of the default account for who is nobody. Of one that is not
// public, nobody learns that it is there.
func TestPublicInEveryAccount(t *testing.T) {
	t.Parallel()
	b := setup(t, func(_ *trigger.Config, c *Config) { c.Compat = compat.Products{Bifrost: true} })
	acme := b.newAccount("acme")
	boss := b.boss
	boss.Principal.Account = acme.ID
	publish := func(slug, extra string) string {
		p, err := b.admin.PublishWorkflow(context.Background(), boss, admin.Publish{
			Slug: slug, Filename: "workflow.yaml", Source: []byte(workflowFile(slug, extra)), Modules: map[string][]byte{"./only.wasm": []byte(wasm)},
		})
		b.must(err)
		return p.Workflow.ID
	}
	open, private := publish("open", "  public: true\n  allowed_origins: [https://app.example]\n"), publish("private", "")
	run := func(workflow string) *reply { return b.call("POST", "/v1/workflows/"+workflow+"/runs", "", `{}`) }
	id, _ := run(open).want(200).object()["id"].(string)
	if r, err := b.store.Run(context.Background(), acme.ID, id); err != nil || r.Trigger.Principal != trigger.Public {
		t.Errorf("%+v %v", r, err)
	}
	b.call("POST", "/api/endpoints/"+open, "", `{}`).want(200)
	b.call("OPTIONS", "/v1/workflows/"+open+"/runs", "", "", "Origin", "https://app.example", "Access-Control-Request-Method", "POST").want(200)
	none := "wf_" + strings.Repeat("0", 26)
	for _, name := range []string{"open", private, none, open + "@x", open + "@01"} {
		if p := run(name).problem(401, core.CodeUnauthenticated); p.Detail != run(none).problem(401, core.CodeUnauthenticated).Detail {
			t.Errorf("%s: %+v", name, p)
		}
	}
	_, err := b.admin.SetAccountEnabled(context.Background(), b.boss, acme.ID, false, "")
	b.must(err)
	run(open).problem(401, core.CodeUnauthenticated)
	b.call("POST", "/v1/workflows/greet@+1/runs", b.globalKey(), `{}`).problem(404, core.CodeNotFound)
}

// An error of the control plane is no more to be kept than an answer: what is not there now may be there a moment later.
func TestNoProblemIsKept(t *testing.T) {
	t.Parallel()
	b := setup(t)
	boss := b.adminKey()
	for _, c := range []struct {
		method, target string
		status         int
	}{
		{"GET", "/v1/keys/key_none", 404},
		{"GET", "/v1/runs/run_none", 404},
		{"GET", "/v1/workflows/none", 404},
		{"GET", "/v1/keys?limit=0", 400},
		{"GET", "/v1/nothing", 404},
	} {
		if got := b.call(c.method, c.target, boss, "").want(c.status).header.Values("Cache-Control"); len(got) != 1 || got[0] != "no-store" {
			t.Errorf("%s %s: Cache-Control %q", c.method, c.target, got)
		}
	}
	if got := b.call("PATCH", "/v1/keys/key_none", boss, `{}`, "Content-Type", "text/plain").want(415).header.Get("Accept-Patch"); got != "application/json" {
		t.Errorf("Accept-Patch %q", got)
	}
}

// What is wrong with a parameter is said in the words of the API, not in those of a library or of Go. A name in the path that nothing can have is not found.
func TestParameterProblems(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.publish("flow", "")
	boss := b.adminKey()
	for target, want := range map[string]string{
		"/v1/keys?limit=0":                            "limit must be at least 1",
		"/v1/keys?limit=201":                          "limit must be at most 200",
		"/v1/keys?limit=1.5":                          "limit must be a whole number",
		"/v1/runs?status=done":                        "status must be one of scheduled, queued, running, waiting, cancelling, succeeded, failed, timed_out, cancelled, interrupted",
		"/v1/runs?created_after=2026-01-01":           `created_after must be a time such as "2026-12-31T23:59:59Z"`,
		"/v1/runs?cursor=" + strings.Repeat("x", 513): "cursor must have at most 512 characters",
	} {
		p := b.call("GET", target, boss, "").problem(400, core.CodeInvalidRequest)
		if p.Detail != want || len(p.Errors) != 1 || p.Errors[0].Parameter == "" || !strings.HasSuffix(want, p.Errors[0].Detail) {
			t.Errorf("%s: %q %+v", target, p.Detail, p.Errors)
		}
	}
	for _, version := range []string{"0", "01", "x"} {
		if p := b.call("GET", "/v1/workflows/flow/versions/"+version, boss, "").problem(404, core.CodeNotFound); p.Detail != "there is no such version" {
			t.Errorf("version %s: %q", version, p.Detail)
		}
	}
}

// Who misses the route that starts runs by a letter is told which it is.
func TestNearMissesNameTheRoute(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.publish("greet", "")
	key := b.globalKey()
	for _, path := range []string{"/v1/workflows/greet/run", "/v1/workflows/greet", "/v1/workflows/greet/trigger", "/v1/runs"} {
		if p := b.call("POST", path, key, `{"input":{}}`).problem(405, core.CodeMethodNotAllowed); !strings.Contains(p.Detail, "POST /v1/workflows/{workflow}/runs") {
			t.Errorf("%s: %q", path, p.Detail)
		}
	}
	if p := b.call("POST", "/v1/audit", key, `{}`).problem(405, core.CodeMethodNotAllowed); strings.Contains(p.Detail, "runs") {
		t.Errorf("the audit log: %q", p.Detail)
	}
}

// Clients that give every POST a Content-Type send it with no body too. Where none is needed, that is none; where one starts a run, it may have got lost.
func TestTypeWithoutBody(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.publish("greet", "")
	key := b.globalKey()
	typed := []string{"Content-Type", "application/json"}
	run := b.call("POST", "/v1/workflows/greet/runs", key, `{"run_after":"2031-01-01T00:00:00Z"}`).want(202).header.Get("Keyfire-Run-Id")
	if p := b.call("POST", "/v1/workflows/greet/runs", key, "", typed...).problem(400, core.CodeInvalidJSON); !strings.Contains(p.Detail, "there is no body") {
		t.Errorf("to start a run: %q", p.Detail)
	}
	b.call("POST", "/v1/runs/"+run+"/cancel", key, "", "Content-Type", "text/plain").problem(415, core.CodeUnsupportedMediaType)
	b.call("POST", "/v1/runs/"+run+"/cancel", key, "", typed...).want(202)
	if r := b.call("POST", "/v1/runs/"+run+"/replay", key, "", typed...).want(202); r.header.Get("Retry-After") != "1" || r.header.Get("Location") == "" {
		t.Errorf("a run that was accepted is answered with %v", r.header)
	}
	b.call("POST", "/v1/runs/"+run+"/callbacks/cb_none/redeliver", key, "", typed...).problem(404, core.CodeNotFound)
}

// Whoever sends a dedupe key can tell, without reading texts, whether the run is theirs or was there before, and which it is.
func TestExistingRunIsTold(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.publish("greet", "")
	key := b.globalKey()
	send := func(policy, credential string) *reply {
		return b.call("POST", "/v1/workflows/greet/runs", credential, `{"run_after":"2031-01-01T00:00:00Z","dedupe":{"key":"invoice-981","policy":"`+policy+`"}}`)
	}
	first := send("reject", key).want(202)
	run := first.header.Get("Keyfire-Run-Id")
	if got := first.header.Get("Keyfire-Run-Existing"); run == "" || got != "" {
		t.Errorf("a run that was started: %v", first.header)
	}
	for policy, status := range map[string]int{"reject": 409, "use_existing": 202} {
		if r := send(policy, key).want(status); r.header.Get("Keyfire-Run-Id") != run || r.header.Get("Keyfire-Run-Existing") != "true" {
			t.Errorf("%s: %v", policy, r.header)
		}
	}
	if r := send("reject", b.globalKey()).want(409); r.header.Get("Keyfire-Run-Id") != "" || r.header.Get("Keyfire-Run-Existing") != "" {
		t.Errorf("somebody else's run is named: %v", r.header)
	}
	if r := send("terminate_existing", key).want(202); r.header.Get("Keyfire-Run-Id") == run || r.header.Get("Keyfire-Run-Existing") != "" {
		t.Errorf("the run that took its place: %v", r.header)
	}
}
