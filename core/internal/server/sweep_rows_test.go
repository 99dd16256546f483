package server

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"strings"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/admin"
)

// This file is the table of A3's sweep: a row for every route of the server, and a kind for every type of object. The test is in sweep_test.go, which says what it does
// with them.
//
// A new route needs a row. Most are one line:
//
//	"GET /v1/things/{thing}":  {own: 200},                              // the path names an object; objectKinds()["thing"] makes one
//	"POST /v1/things":         {own: 201, body: `{"name":"x"}`},        // no object is named
//	"GET /v1/things":          {own: 200, filters: map[string]string{"workflow": "workflow"}},
//
// A new type of object needs a kind. Parameters of a path that name no object by themselves, such as the step of a run, go to pathValues; parameters and members
// that never name one go to plainNames.

// row says how to send a request to a route so that it reaches what it names.
type row struct {
	open string // why a route needs no account, and so no cases; nothing else is set then
	own  int    // status for an own object, or of the request as it is when it names none

	body string // a body that is well-formed; "" is none. {fresh} stands for a fresh name

	kinds   map[string]string // parameter of the path -> kind, where the names differ
	filters map[string]string // query parameter -> kind; the list must have an item for the own one
	members map[string]member // members of the body that name an object
	noPages bool              // has a cursor that belongs to one object, not to a list of the account
	creates bool              // answers with a new object: ids and times are left out of the comparison
	plain   []string          // further parameters and members that name no object here
}

// member is a member of a body that names an object.
type member struct {
	kind string
	body func(ref string) string
	own  int // 0 is the row's
}

// pathValues are parameters that name a part of the object before them.
var pathValues = map[string]string{"step": "only", "version": "1", "callback": "cb_" + noID}

// plainNames name no object, wherever they stand.
var plainNames = []string{
	"limit", "name", "description", "title", "reason", "type", "global", "max_runs", "allow_query", "expires_at", "role", "password", "current_password", "value",
	"status", "created_after", "after", "action", "step", "level", "input", "overrides", "metadata", "all", "If-None-Match", "Idempotency-Key", "Prefer", "traceparent",
	"cancel_runs", "dedupe", "callback", "run_after", "from", "version", "force", "Last-Event-ID", "Accept", "dry_run",
}

// objectKind is a type of object.
type objectKind struct {
	// make makes one in the world of an account and returns the ways to name it.
	make func(w *world) []string
	// none returns names of the same shape and length that nothing has, in the same order. A request may make what it names, so those that can be made are fresh.
	none func(own *world) []string
	// show reads the object as its own account's administrator, so that it can be seen whether somebody else has changed it. nil is for what is no object by itself.
	show func(w *world, names []string) string
}

const noID = "00000000000000000000000000"

func objectKinds() map[string]objectKind {
	get := func(path string) func(w *world, names []string) string {
		return func(w *world, names []string) string {
			w.b.t.Helper()
			return string(w.b.call("GET", path+names[0], w.adminKey, "").want(200).body)
		}
	}
	return map[string]objectKind{
		"workflow": {
			make: func(w *world) []string {
				slug := w.name("flow")
				p, err := w.b.admin.PublishWorkflow(context.Background(), w.boss, admin.Publish{
					Slug: slug, Filename: "workflow.yaml", Modules: map[string][]byte{"./only.wasm": []byte(wasm)},
					Source: []byte(strings.Replace(workflowFile(slug, "  global_keys: true\n"), "trigger:", "aliases: [a-"+slug+"]\ntrigger:", 1)),
				})
				w.b.must(err)
				return []string{p.Workflow.ID, slug, "a-" + slug}
			},
			none: func(*world) []string { return []string{"wf_" + noID, "flow-none0000", "a-flow-none0000"} },
			show: get("/v1/workflows/"),
		},
		// A workflow as its publication names it: by its name alone, which may be free.
		"published": {
			make: func(w *world) []string { return objectKinds()["workflow"].make(w)[1:2] },
			none: func(own *world) []string { return []string{own.name("flow")} },
			show: get("/v1/workflows/"),
		},
		"run": {
			make: func(w *world) []string {
				r := w.b.call("POST", "/v1/workflows/"+w.workflow+"/runs", w.triggerKey, `{"metadata":{"crm":"`+w.account+`"}}`).want(200)
				return []string{r.header.Get("Keyfire-Run-Id")}
			},
			none: func(*world) []string { return []string{"run_" + noID} },
			show: get("/v1/runs/"),
		},
		"key": {
			make: func(w *world) []string { return []string{w.key(auth.TriggerKey).ID} },
			none: func(*world) []string { return []string{"key_" + noID} },
			show: get("/v1/keys/"),
		},
		"used key": { // that has started a run
			make: func(w *world) []string { return []string{w.triggerID} },
			none: func(*world) []string { return []string{"key_" + noID} },
		},
		"user": {
			make: func(w *world) []string {
				name := w.name("user")
				u, err := w.b.admin.CreateUser(context.Background(), w.boss, admin.NewUser{Name: name, Role: auth.Operator, Password: auth.NewSecret(sweepPassword)})
				w.b.must(err)
				return []string{u.ID, name}
			},
			none: func(*world) []string { return []string{"usr_" + noID, "user-none0000"} },
			show: get("/v1/users/"),
		},
		"secret": {
			make: func(w *world) []string {
				name := secretName(w)
				_, _, err := w.b.admin.SetSecret(context.Background(), w.boss, name, "the value of it")
				w.b.must(err)
				return []string{name}
			},
			none: func(own *world) []string { return []string{secretName(own)} },
			show: func(w *world, names []string) string {
				w.b.t.Helper()
				for _, s := range w.b.call("GET", "/v1/secrets", w.adminKey, "").want(200).object()["data"].([]any) {
					if s.(map[string]any)["name"] == names[0] {
						raw, _ := json.Marshal(s)
						return string(raw)
					}
				}
				return "gone"
			},
		},
		"module": {
			make: func(w *world) []string {
				slug := w.name("flow")
				binary := wasm + "\x00\x05\x04" + "\x03" + slug[len(slug)-3:] // a custom section makes it another module
				_, err := w.b.admin.PublishWorkflow(context.Background(), w.boss, admin.Publish{
					Slug: slug, Filename: "workflow.yaml", Source: []byte(workflowFile(slug, "")), Modules: map[string][]byte{"./only.wasm": []byte(binary)},
				})
				w.b.must(err)
				var workflow struct{ Definition core.Definition }
				if err := json.Unmarshal(w.b.call("GET", "/v1/workflows/"+slug, w.adminKey, "").want(200).body, &workflow); err != nil {
					w.b.t.Fatal(err)
				}
				return []string{workflow.Definition.Nodes[0].Module}
			},
			none: func(*world) []string { return []string{"sha256:" + strings.Repeat("0", 64)} },
		},
		// Accounts and plugins belong to the server: whoever is of an account may see none of them, the own one included.
		"account": {
			make: func(w *world) []string { return []string{w.account, w.accountName} },
			none: func(*world) []string { return []string{"acct_" + noID, "none0"} },
		},
		"plugin": {
			make: func(*world) []string { return []string{"ldap"} },
			none: func(*world) []string { return []string{"none"} },
		},
		"trace": {
			make: func(w *world) []string {
				r := w.b.call("POST", "/v1/workflows/"+w.workflow+"/runs", w.triggerKey, `{}`).want(200)
				return []string{r.object()["trace_id"].(string)}
			},
			none: func(*world) []string { return []string{strings.Repeat("0", 32)} },
		},
		"metadata": {
			make: func(w *world) []string { objectKinds()["run"].make(w); return []string{w.account} },
			none: func(*world) []string { return []string{"acct_" + noID} },
		},
		"request": { // that was refused
			make: func(w *world) []string {
				return []string{w.b.call("POST", "/v1/trigger", w.adminKey, `{}`).want(400).header.Get("Keyfire-Request-Id")}
			},
			none: func(*world) []string { return []string{"req_" + noID} },
		},
		"actor": {
			make: func(w *world) []string { return []string{"key:" + w.triggerID} },
			none: func(*world) []string { return []string{"key:key_" + noID} },
		},
	}
}

func secretName(w *world) string {
	return strings.ToUpper(strings.ReplaceAll(w.name("secret"), "-", "_"))
}

const sweepPassword = "lamp-orchid-9-violet"

// flow is a workflow file of the given name, as the body of a publication.
func flow(slug, uses string) string {
	return strings.Replace(workflowFile(slug, ""), "./only.wasm", uses, 1)
}

// keyLimits are members of a key's body that name no object.
var keyLimits = []string{"refill", "rate_limits", "max_concurrent_runs", "allowed_ips", "allowed_origins"}

// freshDigest returns the SHA-256 of a secret that was not imported yet.
func freshDigest() string {
	var random [32]byte
	_, _ = rand.Read(random[:]) // it never fails
	return hex.EncodeToString(random[:])
}

func rows() map[string]row {
	scope := func(ref string) string { return fmt.Sprintf(`{"name":"x","scopes":["run:workflow/%s"]}`, ref) }
	all := map[string]row{
		"GET /healthz": {open: "tells nothing about anybody"}, "HEAD /healthz": {open: "the same"},
		"GET /readyz": {open: "tells nothing about anybody"}, "HEAD /readyz": {open: "the same"},
		"GET /openapi.json": {open: "the same for everybody"}, "HEAD /openapi.json": {open: "the same"},
		"GET /docs": {open: "the same for everybody"}, "HEAD /docs": {open: "the same"},
		"POST /v1/auth/login":   {open: "the body is the credential; an unknown account, an unknown user and a wrong password are compared by TestLoginIsNoOracle"},
		"POST /v1/auth/refresh": {open: "the body is the credential"},
		"POST /v1/setup":        {open: "the body is the credential"},

		"GET /v1/accounts":                    {own: 403},
		"POST /v1/accounts":                   {own: 403, body: `{"name":"x"}`},
		"GET /v1/accounts/{account}":          {own: 403},
		"PATCH /v1/accounts/{account}":        {own: 403, body: `{"title":"x"}`, plain: keyLimits},
		"DELETE /v1/accounts/{account}":       {own: 403},
		"POST /v1/accounts/{account}/enable":  {own: 403, body: `{}`},
		"POST /v1/accounts/{account}/disable": {own: 403, body: `{}`},

		"GET /v1/users":                    {own: 200},
		"POST /v1/users":                   {own: 201, creates: true, body: `{"name":"{fresh}","role":"viewer","password":"` + sweepPassword + `"}`},
		"GET /v1/users/{user}":             {own: 200},
		"DELETE /v1/users/{user}":          {own: 204},
		"PUT /v1/users/{user}/role":        {own: 200, body: `{"role":"viewer"}`},
		"PUT /v1/users/{user}/password":    {own: 200, body: `{"password":"` + sweepPassword + `"}`},
		"POST /v1/users/{user}/enable":     {own: 200, body: `{}`},
		"POST /v1/users/{user}/disable":    {own: 200, body: `{}`},
		"GET /v1/auth/whoami":              {own: 200},
		"POST /v1/auth/logout":             {own: 409, body: `{}`}, // the administrator of the sweep is a key
		"POST /v1/auth/signing-key/rotate": {own: 403},

		"GET /v1/keys": {own: 200},
		"POST /v1/keys": {
			own: 201, creates: true, body: `{"name":"x","global":true}`, plain: keyLimits,
			members: map[string]member{
				"workflow": {kind: "workflow", body: func(ref string) string { return `{"name":"x","workflow":"` + ref + `"}` }},
				"scopes":   {kind: "workflow", body: scope},
			},
		},
		"GET /v1/keys/{key}":    {own: 200},
		"DELETE /v1/keys/{key}": {own: 204},
		"PATCH /v1/keys/{key}": {
			own: 200, body: `{"description":"changed"}`, plain: append([]string{"disabled"}, keyLimits...),
			members: map[string]member{
				"workflow": {kind: "workflow", body: func(ref string) string { return `{"workflow":"` + ref + `"}` }},
				"scopes":   {kind: "workflow", body: func(ref string) string { return `{"scopes":["run:workflow/` + ref + `"]}` }},
			},
		},
		"POST /v1/keys/{key}/enable":  {own: 200, body: `{}`},
		"POST /v1/keys/{key}/disable": {own: 200, body: `{}`},
		"POST /v1/keys/{key}/rotate":  {own: 201, creates: true, body: `{}`, plain: []string{"overlap"}},
		"GET /v1/keys/{key}/usage":    {own: 200, plain: []string{"days"}},
		"POST /v1/keys/import": {
			own: 422, body: `{"name":"x","global":true,"sha256":"a secret is imported once"}`, plain: append([]string{"sha256", "last4"}, keyLimits...),
			members: map[string]member{
				"workflow": {kind: "workflow", own: 201, body: func(ref string) string {
					return `{"name":"x","workflow":"` + ref + `","sha256":"` + freshDigest() + `"}`
				}},
				"scopes": {kind: "workflow", own: 201, body: func(ref string) string {
					return `{"name":"x","scopes":["run:workflow/` + ref + `"],"sha256":"` + freshDigest() + `"}`
				}},
			},
		},
		"POST /v1/auth/check": {
			own: 200, creates: true, body: `{}`, plain: []string{"key", "place", "source_ip", "origin"},
			members: map[string]member{"workflow": {kind: "workflow", body: func(ref string) string { return `{"workflow":"` + ref + `"}` }}},
		},
		"GET /v1/auth/explain/{request}": {own: 200},

		"GET /v1/workflows":                                        {own: 200},
		"GET /v1/workflows/{workflow}":                             {own: 200},
		"PATCH /v1/workflows/{workflow}":                           {own: 200, body: `{"name":"{fresh}"}`},
		"DELETE /v1/workflows/{workflow}":                          {own: 204},
		"POST /v1/workflows/{workflow}/enable":                     {own: 200},
		"POST /v1/workflows/{workflow}/disable":                    {own: 200},
		"GET /v1/workflows/{workflow}/snippets":                    {own: 200, plain: []string{"client", "url"}},
		"GET /v1/workflows/{workflow}/versions":                    {own: 200, noPages: true},
		"GET /v1/workflows/{workflow}/versions/{version}":          {own: 200},
		"POST /v1/workflows/{workflow}/versions/{version}/publish": {own: 200}, // it is the newest one
		"POST /v1/workflows/{workflow}/runs":                       {own: 200, body: `{}`},
		"POST /v1/hooks/{workflow}":                                {own: 202, body: `{}`, creates: true, plain: []string{"webhook-id", "webhook-timestamp"}},
		"PUT /v1/hooks/{workflow}":                                 {own: 202, body: `{}`, creates: true, plain: []string{"webhook-id", "webhook-timestamp"}},
		"GET /v1/hooks/{workflow}":                                 {own: 202, creates: true, plain: []string{"webhook-id", "webhook-timestamp"}},
		"POST /v1/trigger":                                         {own: 400, body: `{}`}, // the administrator's key is made for no workflow
		// Publishing names a workflow that may not exist yet: another account's name is then as free as any. The file names modules by digest.
		"PUT /v1/workflows/{workflow}": {own: 201, creates: true, kinds: map[string]string{"workflow": "published"}, body: flow("{path}", fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(wasm)))), members: map[string]member{
			"nodes.uses": {kind: "module", own: 201, body: func(ref string) string { return flow("{path}", ref) }},
		}},

		"GET /v1/runs":                                       {own: 200, filters: map[string]string{"workflow": "used workflow", "key": "used key", "trace_id": "trace", "metadata.{name}": "metadata"}},
		"GET /v1/runs/{run}":                                 {own: 200},
		"GET /v1/runs/{run}/logs":                            {own: 200, noPages: true},
		"GET /v1/runs/{run}/events":                          {own: 200},
		"GET /v1/runs/{run}/callbacks":                       {own: 200},
		"POST /v1/runs/{run}/cancel":                         {own: 409, body: `{"reason":"enough"}`}, // it has ended
		"POST /v1/runs/{run}/replay":                         {own: 202, body: `{"from":"start"}`, creates: true},
		"POST /v1/runs/{run}/callbacks/{callback}/redeliver": {own: 404}, // the run has no such callback
		"GET /v1/runs/{run}/steps/{step}":                    {own: 200},
		"GET /v1/runs/{run}/steps/{step}/tape":               {own: 404, plain: []string{"attempt"}}, // its node keeps none
		"GET /v1/modules/{module}":                           {own: 200},

		"GET /v1/secrets":             {own: 200},
		"PUT /v1/secrets/{secret}":    {own: 200, creates: true, body: `{"value":"another value"}`},
		"DELETE /v1/secrets/{secret}": {own: 204},

		"GET /v1/audit": {own: 200, filters: map[string]string{"actor": "actor", "target": "key"}},

		"GET /v1/plugins":                  {own: 403},
		"GET /v1/plugins/{plugin}":         {own: 403},
		"GET /v1/plugins/{plugin}/logs":    {own: 403},
		"POST /v1/plugins/{plugin}/reload": {own: 403},

		// The adapters.
		"POST /api/trigger":              {own: 400, body: `{"inputs":{}}`},
		"POST /api/v1/agent_run":         {own: 400, body: `{}`, members: map[string]member{"agent_id": {kind: "workflow", own: 200, body: func(ref string) string { return `{"agent_id":"` + ref + `","input":{}}` }}}},
		"GET /api/v1/task/{run}":         {own: 200},
		"POST /api/endpoints/{workflow}": {own: 200, body: `{}`},
		"GET /api/workflow-keys":         {own: 200},
		"POST /api/workflow-keys": {own: 201, creates: true, body: `{"description":"x","is_global":true}`, members: map[string]member{
			"workflow_id": {kind: "workflow", body: func(ref string) string { return `{"description":"x","workflow_id":"` + ref + `"}` }},
		}},
		"DELETE /api/workflow-keys/{key}": {own: 204},
	}
	for _, path := range []string{"/api/v1/process", "/api/v1/run", "/api/v1/webhook"} {
		own := 200
		if strings.HasSuffix(path, "webhook") {
			own = http.StatusAccepted
		}
		for _, slash := range []string{"", "/"} {
			all["POST "+path+slash] = row{own: 404, body: `{}`}
			all["POST "+path+"/{workflow}"+slash] = row{own: own, body: `{"inputs":{}}`}
		}
	}
	for _, route := range []string{"POST /api/trigger", "POST /api/v1/agent_run", "GET /api/v1/task/{run}", "POST /api/endpoints/{workflow}", "GET /api/workflow-keys", "POST /api/workflow-keys", "DELETE /api/workflow-keys/{key}"} {
		all[route+"/"] = all[route]
	}
	for _, method := range hookMethods {
		all[method+" /v1/hooks/{workflow}"] = row{own: http.StatusAccepted, body: `{}`}
	}
	for route, r := range maps.Clone(all) { // HEAD tells as much as GET, without the body
		if path, ok := strings.CutPrefix(route, "GET "); ok && r.open == "" && path != "/v1/hooks/{workflow}" && !strings.HasPrefix(path, "/api/") {
			all["HEAD "+path] = r
		}
	}
	return all
}
