package server

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/admin"
	"github.com/keyfire/keyfire/core/internal/server/compat"
	"github.com/keyfire/keyfire/core/internal/trigger"
)

const flowID = "4441b773-0724-434e-9cee-19d995d8f2df"

// foreign is a server with every adapter on, and workflows as the clients of the four products know them.
type foreign struct {
	*bundle
	global, bound, old string // keys: for every workflow, for keyflow's, revoked
}

func setupForeign(t *testing.T) *foreign {
	t.Helper()
	f := &foreign{bundle: setup(t, func(_ *trigger.Config, c *Config) {
		c.Compat = compat.Products{Keyflow: true, Miiflow: true, Langflow: true, Bifrost: true}
	})}
	names := "input:\n  type: object\n  additionalProperties: false\n  properties: {Reference Document: {type: string}, undefined: {type: string}, Role Context: {type: string}}\n"
	f.publishWith("documents", "", names)
	f.publishWith("flow", "  overrides: [only.model_name]\n", "aliases: ["+flowID+", agent_xxxYYYzzz]\n")
	f.publishWith("text", "", "input:\n  type: object\n  required: [question]\n  properties: {question: {type: string}}\n")
	f.publishWith("closed", "  enabled: false\n", "")
	f.publishWith("shy", "  global_keys: false\n", "")
	f.publishWith("open", "  public: true\n", "")
	f.executor.set("failing", func(_ context.Context, run *core.Run) {
		run.Status, run.Output = core.RunFailed, nil
		run.Error = &core.RunError{Code: core.CodeRunFailed, Step: "only", Message: "no luck"}
	})
	f.executor.set("late", func(_ context.Context, run *core.Run) {
		run.Status, run.Output = core.RunTimedOut, nil
		run.Error = &core.RunError{Code: core.CodeRunTimedOut, Step: "only", Message: "too late"}
	})
	f.publishWith("failing", "", "")
	f.publishWith("late", "", "")
	f.publishWith("later", "  mode: async\n", "")
	_, f.global = f.key(admin.NewKey{Scopes: []string{auth.ScopeRunAll}, AllowQuery: true})
	_, f.bound = f.key(admin.NewKey{Scopes: []string{auth.ScopeRunWorkflow + "documents"}})
	k, text := f.key(admin.NewKey{Scopes: []string{auth.ScopeRunAll}})
	_, err := f.admin.RevokeKey(context.Background(), f.boss, k.ID, "")
	f.must(err)
	f.old = text
	return f
}

func (f *foreign) publishWith(slug, triggerLines, topLines string) {
	f.t.Helper()
	source := "keyfire: v1\nname: " + slug + "\n" + topLines + "trigger:\n"
	if !strings.Contains(triggerLines, "enabled") {
		source += "  enabled: true\n"
	}
	source += triggerLines + "nodes:\n  - id: only\n    uses: ./only.wasm\n    config: {model_name: small}\n"
	_, err := f.admin.PublishWorkflow(context.Background(), f.boss, admin.Publish{
		Slug: slug, Filename: "workflow.yaml", Source: []byte(source), Modules: map[string][]byte{"./only.wasm": []byte(wasm)},
	})
	f.must(err)
}

// The requests are those of the products' own documents, with damage in the text undone; the ids are those of the checklist.
func TestForeignClients(t *testing.T) {
	t.Parallel()
	f := setupForeign(t)
	type header = map[string]string
	for _, c := range []struct {
		id, method, target string
		header             header
		body               string
		status             int
		want               []string // parts of the answer
	}{
		{
			"K1 the key names the workflow", "POST", "/api/trigger",
			header{"X-API-Key": f.bound},
			`{"inputs":{"Reference Document":"","undefined":"","Role Context":""}}`, 200,
			[]string{`"run_id":"run_`, `"status":"succeeded"`, `"output":{"Reference Document":"","undefined":"","Role Context":""}`},
		},
		{"K2 unknown names are told", "POST", "/api/trigger", header{"X-API-Key": f.bound}, `{"inputs":{"Other":""}}`, 422, []string{`"code":"invalid_input"`, `#/inputs/Other`}},
		{"K4 switched off", "POST", "/api/trigger", header{"X-API-Key": f.only("closed")}, `{"inputs":{}}`, 403, []string{`{"error":{"code":"workflow_disabled"`}},
		{"K6 bad key", "POST", "/api/trigger", header{"X-API-Key": "nonsense"}, `{"inputs":{}}`, 401, []string{`{"error":{"code":"invalid_key"`}},
		{"K6 revoked key", "POST", "/api/trigger", header{"X-API-Key": f.old}, `{"inputs":{}}`, 401, []string{`"code":"key_revoked"`}},
		{"K6 a key for every workflow", "POST", "/api/trigger", header{"X-API-Key": f.global}, `{"inputs":{}}`, 400, []string{`"code":"workflow_required"`}},
		{"K6 the run fails", "POST", "/api/trigger", header{"X-API-Key": f.only("failing")}, `{"inputs":{}}`, 500, []string{`"run_id":"run_`, `"status":"failed"`, `no luck`}},
		{"K6 two keys", "POST", "/api/trigger", header{"X-API-Key": f.bound, "Authorization": "Bearer " + f.global}, `{"inputs":{}}`, 400, []string{`{"error":{"code":"multiple_credentials"`}},
		{"K6 one key twice", "POST", "/api/trigger", header{"X-API-Key": f.bound, "Authorization": "Bearer " + f.bound}, `{"inputs":{}}`, 200, []string{`"succeeded"`}},
		{"M1 two keys", "POST", "/api/v1/agent_run", header{"X-API-Key": f.bound, "Authorization": "Bearer " + f.global}, `{"agent_id":"flow"}`, 400, []string{`{"error":{"code":"multiple_credentials"`}},
		{"C1 not an object", "POST", "/api/trigger", header{"X-API-Key": f.bound}, `[1]`, 400, []string{`"error":{"code":"invalid_request"`}},
		{"C2 header names and schemes in any case", "POST", "/api/trigger", header{"authorization": "bEaReR " + f.bound}, `{"inputs":{}}`, 200, []string{`"succeeded"`}},
		{"C3 any place for the key", "POST", "/api/trigger", header{"X-Bifrost-Key": f.bound}, `{"inputs":{}}`, 200, []string{`"succeeded"`}},
		{"C5 JSON as a form", "POST", "/api/trigger", header{"X-API-Key": f.bound, "Content-Type": "application/x-www-form-urlencoded"}, `{"inputs":{}}`, 200, []string{`"succeeded"`}},
		{"C5 a form", "POST", "/api/trigger", header{"X-API-Key": f.bound, "Content-Type": "application/x-www-form-urlencoded"}, `a=b`, 415, []string{`"unsupported_media_type"`}},

		{"M1 the body names the workflow", "POST", "/api/v1/agent_run", header{"Authorization": "Bearer " + f.global}, `{"agent_id":"agent_xxxYYYzzz","input":{"a":1}}`, 200, []string{`"status":"succeeded"`, `"output":{"a":1}`}},
		{"M2 an object in a string", "POST", "/api/v1/agent_run", header{"Authorization": "Bearer " + f.global}, `{"agent_id":"flow","input":"{\"a\":12345678901234567890}"}`, 200, []string{`"output":{"a":12345678901234567890}`}},
		{"M2 the only text", "POST", "/api/v1/agent_run", header{"Authorization": "Bearer " + f.global}, `{"agent_id":"text","input":"why"}`, 200, []string{`"output":{"question":"why"}`}},
		{"M2 a string for nothing", "POST", "/api/v1/agent_run", header{"Authorization": "Bearer " + f.global}, `{"agent_id":"flow","input":"why"}`, 400, []string{`#/input`}},
		{"M3 the last of a repeated name", "POST", "/api/v1/agent_run", header{"Authorization": "Bearer " + f.global}, `{"agent_id":"flow","input":{"p":1,"p":2,"p":3}}`, 200, []string{`"output":{"p":3}`}},
		{"M4 one key, several workflows", "POST", "/api/v1/agent_run", header{"Authorization": "Bearer " + f.global}, `{"agent_id":"documents","input":{}}`, 200, []string{`"succeeded"`}},
		{"M5 unknown workflow", "POST", "/api/v1/agent_run", header{"Authorization": "Bearer " + f.global}, `{"agent_id":"nobody","input":{}}`, 404, []string{`"code":"not_found"`}},

		{"L1 L10 process", "POST", "/api/v1/process/" + flowID, header{"x-api-key": f.global}, `{"inputs":{"text":""},"tweaks":{}}`, 200, []string{`"result":{"text":""}`, `"task":null`, `"session_id":null`, `"backend":null`}},
		{"L1 without tweaks", "POST", "/api/v1/process/" + flowID, header{"x-api-key": f.global}, `{"inputs":{"text":""}}`, 200, []string{`"result":{"text":""}`}},
		{"L2 key in the query", "POST", "/api/v1/process/" + flowID + "?x-api-key=" + f.global, nil, `{"inputs":{"text":""},"tweaks":{}}`, 200, []string{`"result":{"text":""}`}},
		{"L3 old body, new path", "POST", "/api/v1/run/" + flowID + "/", header{"x-api-key": f.global}, `{"inputs":{"text":"hi"},"tweaks":{}}`, 200, []string{`"outputs":[`, `"text":"hi"`}},
		{"L4 the flow by its name", "POST", "/api/v1/run/flow", header{"x-api-key": f.global}, `{"inputs":{"text":"hi"},"tweaks":{}}`, 200, []string{`"outputs":[`, `"text":"hi"`}},
		{"L4 the flow by its id", "POST", "/api/v1/run/" + flowID, header{"x-api-key": f.global}, `{"inputs":{"text":"hi"},"tweaks":{}}`, 200, []string{`"outputs":[`, `"text":"hi"`}},
		{"L3 no flow", "POST", "/api/v1/run/", header{"x-api-key": f.global}, `{}`, 404, []string{`{"detail":`}},
		{"L5 a tweak that is allowed", "POST", "/api/v1/process/flow", header{"x-api-key": f.global}, `{"inputs":{},"tweaks":{"only":{"model_name":"gpt-4"}}}`, 200, []string{`"result":{}`}},
		{"L5 a tweak for every node", "POST", "/api/v1/process/flow", header{"x-api-key": f.global}, `{"inputs":{},"tweaks":{"model_name":"gpt-4"}}`, 200, []string{`"result":{}`}},
		{"L5 a tweak that is not", "POST", "/api/v1/process/flow", header{"x-api-key": f.global}, `{"inputs":{},"tweaks":{"OpenAI-XXXXX":{"model_name":"gpt-4"}}}`, 403, []string{`OpenAI-XXXXX/model_name`}},
		{"L5 nor at the top", "POST", "/api/v1/process/flow", header{"x-api-key": f.global}, `{"inputs":{},"tweaks":{"temperature":1}}`, 403, []string{`temperature`}},
		{"L6 no key", "POST", "/api/v1/process/flow", nil, `{"inputs":{}}`, 403, []string{`{"detail":"An API key must be passed as query or header"}`}},
		{"L6 no key, public flow", "POST", "/api/v1/process/open", nil, `{"inputs":{}}`, 200, []string{`"result":{}`}},
		{"L6 wrong key", "POST", "/api/v1/process/flow", header{"x-api-key": "wrong"}, `{"inputs":{}}`, 403, []string{`{"detail":"Invalid or missing API key"}`}},
		{"L7 not this key's flow", "POST", "/api/v1/process/flow", header{"x-api-key": f.bound}, `{"inputs":{}}`, 403, []string{`{"detail":"You do not have permission to run this flow"}`}},
		{"L7 nobody's flow", "POST", "/api/v1/process/nobody", header{"x-api-key": f.global}, `{"inputs":{}}`, 403, []string{`{"detail":"You do not have permission to run this flow"}`}},
		{"L12 chat", "POST", "/api/v1/run/text?stream=false", header{"x-api-key": f.global}, `{"input_value":"why","input_type":"chat","output_type":"chat","session_id":"s1"}`, 200, []string{`"session_id":"s1"`, `"message":{`, `"text":"why"`}},
		{"L12 no body", "POST", "/api/v1/run/flow", header{"x-api-key": f.global, "Content-Type": ""}, "", 200, []string{`"outputs":[`}},
		{"L12 bad chat input", "POST", "/api/v1/run/flow", header{"x-api-key": f.global}, `{"input_value":7}`, 400, []string{`{"detail":"input_value must be a string`}},
		{"L12 the run fails", "POST", "/api/v1/run/failing", header{"x-api-key": f.global}, `{"input_value":"x"}`, 500, []string{`{"detail":"step only: no luck"}`}},
		{"L13 empty webhook", "POST", "/api/v1/webhook/flow", header{"x-api-key": f.global}, ` `, 400, []string{`{"detail":`}},

		{"B1 the body is the input", "POST", "/api/endpoints/flow?from=query&input=no", header{"X-Bifrost-Key": f.global}, `{"input":"your data"}`, 200, []string{`"execution_id":"run_`, `"status":"Success"`, `"input":"your data"`, `"from":"query"`, `"error":null`}},
		{"B2 a specific key, another workflow", "POST", "/api/endpoints/flow", header{"X-Bifrost-Key": f.bound}, `{}`, 403, []string{`"detail":`}},
		{"B2 a specific key, no workflow", "POST", "/api/endpoints/nobody", header{"X-Bifrost-Key": f.bound}, `{}`, 403, []string{`"detail":`}},
		{"B3 revoked", "POST", "/api/endpoints/flow", header{"X-Bifrost-Key": f.old}, `{}`, 401, []string{`{"detail":"Invalid or expired API key"}`}},
		{"B4 not enabled", "POST", "/api/endpoints/closed", header{"X-Bifrost-Key": f.global}, `{}`, 404, []string{`"detail":`}},
		{"B4 global keys refused", "POST", "/api/endpoints/shy", header{"X-Bifrost-Key": f.global}, `{}`, 403, []string{`"detail":`}},
		{"B4 specific keys pass", "POST", "/api/endpoints/shy", header{"X-Bifrost-Key": f.only("shy")}, `{}`, 200, []string{`"Success"`}},
		{"B11 failed", "POST", "/api/endpoints/failing", header{"X-Bifrost-Key": f.global}, `{}`, 200, []string{`"status":"Failed"`, `no luck`, `"result":null`}},
		{"B11 timed out", "POST", "/api/endpoints/late", header{"X-Bifrost-Key": f.global}, `{}`, 200, []string{`"status":"Timeout"`}},
		{"B11 nobody waits", "POST", "/api/endpoints/later", header{"X-Bifrost-Key": f.global}, `{}`, 200, []string{`"execution_id":"run_`, `"status":"Pending"`, `"message":"`, `"result":null`, `"error":null`}},
		{"B11 no header", "POST", "/api/endpoints/flow", nil, `{}`, 422, []string{`"X-Bifrost-Key"`, `"missing"`}},
		{"B11 no such id", "POST", "/api/endpoints/" + strings.Replace(flowID, "4441", "4442", 1), header{"X-Bifrost-Key": f.global}, `{}`, 404, []string{`"detail":`}},
		{"B11 not an id", "POST", "/api/endpoints/nobody", header{"X-Bifrost-Key": f.global}, `{}`, 400, []string{`"detail":`}},
		{"B11 method", "GET", "/api/endpoints/flow", header{"X-Bifrost-Key": f.global}, ``, 405, []string{`"detail":`}},
	} {
		t.Run(c.id, func(t *testing.T) {
			var headers []string
			for name, value := range c.header {
				headers = append(headers, name, value)
			}
			b := *f.bundle
			b.t = t
			r := b.call(c.method, c.target, "", c.body, headers...).want(c.status)
			if ct := r.header.Get("Content-Type"); ct != "application/json" { // C1
				t.Errorf("Content-Type %q", ct)
			}
			if !json.Valid(r.body) {
				t.Errorf("not JSON: %s", r.body)
			}
			for _, part := range c.want {
				if !strings.Contains(string(r.body), part) {
					t.Errorf("%s is not in %s", part, r.body)
				}
			}
		})
	}
}

// only returns a key for one workflow.
func (f *foreign) only(slug string) string {
	_, text := f.key(admin.NewKey{Scopes: []string{auth.ScopeRunWorkflow + slug}})
	return text
}

// L11, L13: a run that is not waited for has an id to ask after, and C8: it is an ordinary run.
func TestForeignBackgroundRuns(t *testing.T) {
	t.Parallel()
	f := setupForeign(t)
	release := make(chan struct{})
	f.executor.set("flow", func(context.Context, *core.Run) { <-release })
	process := f.call("POST", "/api/v1/process/flow", "", `{"inputs":{"text":"x"},"sync":false}`, "x-api-key", f.global).want(200).object()
	task := process["task"].(map[string]any)
	hook := f.call("POST", "/api/v1/webhook/flow", "", `not JSON at all`, "x-api-key", f.global).want(202)
	id, _ := hook.object()["run_id"].(string)
	if hook.object()["message"] != "Task started in the background" || hook.object()["status"] != "in progress" || hook.header.Get("Location") != "/v1/runs/"+id {
		t.Errorf("%v %v", hook.header, hook.object())
	}
	state := func() map[string]any {
		return f.call("GET", task["href"].(string), "", "", "x-api-key", f.global).want(200).object()
	}
	if s := state(); s["status"] != "PENDING" {
		t.Errorf("%v", s)
	}
	close(release)
	for _, run := range []string{strings.TrimPrefix(task["href"].(string), "/api/v1/task/"), id} {
		f.call("GET", "/v1/runs/"+run, f.global, "", "Prefer", "wait=30").want(200)
	}
	if s := state(); s["status"] != "SUCCESS" || s["result"].(map[string]any)["text"] != "x" {
		t.Errorf("%v", s)
	}
	run := f.call("GET", "/v1/runs/"+id, f.global, "").want(200).object()
	if run["trigger"].(map[string]any)["route"] != "langflow" || run["input"].(map[string]any)["payload"] != "not JSON at all" {
		t.Errorf("%v", run)
	}
	f.call("GET", task["href"].(string), "", "", "x-api-key", f.bound).want(404)
}

// L12: bare JSON objects with an empty line between them, whatever the media type says.
func TestForeignStream(t *testing.T) {
	t.Parallel()
	f := setupForeign(t)
	r := f.call("POST", "/api/v1/run/text?stream=true", "", `{"input_value":"why"}`, "x-api-key", f.global).want(200)
	if ct := r.header.Get("Content-Type"); ct != "text/event-stream" {
		t.Errorf("Content-Type %q", ct)
	}
	_, inURL := f.key(admin.NewKey{Scopes: []string{auth.ScopeRunAll}, AllowQuery: true})
	for _, r := range []*reply{r, f.call("POST", "/api/v1/run/text?stream=true&x-api-key="+inURL, "", `{"input_value":"why"}`).want(200)} {
		if r.header.Get("Cache-Control") != "no-store" || r.header.Get("X-Accel-Buffering") != "no" {
			t.Errorf("an answer to one caller may be kept on the way: %v", r.header)
		}
	}
	var events []string
	for line := range strings.SplitSeq(strings.TrimSpace(string(r.body)), "\n\n") {
		var e struct {
			Event string
			Data  map[string]any
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%v in %q", err, line)
		}
		events = append(events, e.Event)
	}
	if got := strings.Join(events, " "); got != "add_message add_message end" {
		t.Error(got)
	}
	// The header is out before the run has ended, and names the run and its state like every other.
	addr, _, _ := f.serve()
	answer := raw(t, addr, "POST /api/v1/run/text?stream=true HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-API-Key: "+f.global+"\r\nContent-Length: 21\r\n\r\n"+`{"input_value":"why"}`)
	if !strings.Contains(answer, "\r\nKeyfire-Run-Id: run_") || !strings.Contains(answer, "\r\nKeyfire-Run-Status: running\r\n") {
		t.Errorf("%s", answer)
	}
}

// C8: an adapter that is switched off is not there.
func TestForeignSwitchedOff(t *testing.T) {
	t.Parallel()
	b := setup(t, func(_ *trigger.Config, c *Config) { c.Compat = compat.Products{Bifrost: true} })
	for _, path := range []string{"/api/trigger", "/api/v1/agent_run", "/api/v1/process/x", "/api/v1/run/x"} {
		b.call("POST", path, b.globalKey(), `{}`).problem(404, core.CodeNotFound)
	}
	b.call("POST", "/api/endpoints/nobody", b.globalKey(), `{}`).want(400)
}

// B5, B7, B8, B12: keys are managed as Bifrost's clients do.
func TestForeignKeyManagement(t *testing.T) {
	t.Parallel()
	f := setupForeign(t)
	boss := f.adminKey()
	made := f.call("POST", "/api/workflow-keys", boss, `{"description":"CI pipeline trigger","workflow_id":"flow"}`).want(201).object()
	raw, id := made["raw_key"].(string), made["id"].(string)
	expires, err := time.Parse(time.RFC3339, made["expires_at"].(string))
	if days := time.Until(expires).Hours() / 24; err != nil || days < 89 || days > 91 || made["masked_key"] != "..."+raw[len(raw)-4:] || made["workflow_name"] != "flow" || made["is_global"] != false {
		t.Errorf("%v", made)
	}
	f.call("POST", "/api/endpoints/flow", "", `{"input":"your data"}`, "X-Bifrost-Key", raw).want(200)
	if global := f.call("POST", "/api/workflow-keys", boss, `{"description":"all","is_global":true,"expires_in_days":null}`).want(201).object(); global["expires_at"] != nil || global["is_global"] != true {
		t.Errorf("%v", global)
	}
	for _, body := range []string{`{"workflow_id":"flow"}`, `{"description":"` + strings.Repeat("x", 33) + `","workflow_id":"flow"}`, `{"description":"x"}`, `{"description":"x","workflow_id":"flow","is_global":true}`, `{"description":"x","workflow_id":"flow","expires_in_days":0}`} {
		f.call("POST", "/api/workflow-keys", boss, body).want(422)
	}
	// A date that is not read would give the key 90 days, whatever it says.
	if r := f.call("POST", "/api/workflow-keys", boss, `{"description":"x","workflow_id":"flow","expires_at":"2027-01-01T00:00:00Z"}`).want(422).object(); !strings.Contains(r["detail"].(string), "expires_in_days") {
		t.Errorf("%v", r)
	}
	f.call("GET", "/api/workflow-keys/", f.bound, "").want(403)
	r := f.call("GET", "/api/workflow-keys", boss, "").want(200)
	if !strings.Contains(string(r.body), id) || strings.Contains(string(r.body), raw) {
		t.Errorf("%s", r.body)
	}
	f.call("DELETE", "/api/workflow-keys/"+id, boss, "").want(204)
	f.call("POST", "/api/endpoints/flow", "", `{}`, "X-Bifrost-Key", raw).want(401)
	none := f.call("DELETE", "/api/workflow-keys/key_none", boss, "").want(404)

	// An admin key is not among these, so it is not there to be revoked either.
	other := f.call("POST", "/v1/keys", boss, `{"name":"other","type":"admin"}`).want(201).object()
	if r := f.call("DELETE", "/api/workflow-keys/"+other["id"].(string), boss, "").want(404); string(r.body) != string(none.body) {
		t.Errorf("an admin key: %s, and none: %s", r.body, none.body)
	}
	f.call("GET", "/v1/keys", other["secret"].(string), "").want(200)
}

// L12: X-LANGFLOW-GLOBAL-VAR-* become variables of the run, under their names in upper case. They may be secrets: they are no part of what is stored or told of the run,
// and a run that would have to store them is refused.
func TestForeignVariables(t *testing.T) {
	t.Parallel()
	f := setupForeign(t)
	var seen []map[string]string
	f.executor.set("flow", func(_ context.Context, run *core.Run) { seen = append(seen, run.Variables) })
	const secret = "sk-QmFzZTY0aXNub3Rl"
	send := func(path string, header ...string) *reply {
		t.Helper()
		return f.call("POST", path, "", `{"input_value":"hi"}`, append([]string{"x-api-key", f.global}, header...)...)
	}
	for _, path := range []string{"/api/v1/run/flow?stream=false", "/api/v1/run/flow?stream=true", "/api/v1/process/flow"} {
		r := send(path, "X-LANGFLOW-GLOBAL-VAR-OPENAI_API_KEY", secret, "x-langflow-global-var-region", "eu").want(200)
		stored, err := f.store.Run(context.Background(), core.DefaultAccount, r.header.Get("Keyfire-Run-Id"))
		f.must(err)
		if stored.Variables != nil || strings.Contains(string(r.body), secret) {
			t.Errorf("%s: %v %s", path, stored.Variables, r.body)
		}
	}
	for i := range 3 {
		if len(seen) != 3 || len(seen[i]) != 2 || seen[i]["OPENAI_API_KEY"] != secret || seen[i]["REGION"] != "eu" {
			t.Fatalf("%v", seen)
		}
	}
	send("/api/v1/run/flow").want(200)
	if seen[3] != nil {
		t.Errorf("%v", seen[3])
	}
	// Part of what makes two requests the same.
	once := func(value string) *reply {
		return send("/api/v1/run/flow", "Idempotency-Key", "once", "X-LANGFLOW-GLOBAL-VAR-KEY", value)
	}
	once(secret).want(200)
	if r := once(secret).want(200); r.header.Get("Idempotency-Replayed") != "true" {
		t.Errorf("%v", r.header)
	}
	once(secret + "x").want(422)

	for name, r := range map[string]*reply{
		"a run that is queued":      send("/api/v1/webhook/flow", "X-LANGFLOW-GLOBAL-VAR-KEY", secret),
		"a workflow that is queued": send("/api/v1/run/later", "X-LANGFLOW-GLOBAL-VAR-KEY", secret),
		"no name":                   send("/api/v1/run/flow", "X-LANGFLOW-GLOBAL-VAR-", secret),
		"no such name":              send("/api/v1/run/flow", "X-LANGFLOW-GLOBAL-VAR-A.B", secret),
		"too long":                  send("/api/v1/run/flow", "X-LANGFLOW-GLOBAL-VAR-KEY", strings.Repeat("s", 4097)),
	} {
		if text, _ := r.want(400).object()["detail"].(string); text == "" || strings.Contains(text, secret) {
			t.Errorf("%s: %s", name, r.body)
		}
	}
	if strings.Contains(f.logs.String(), secret) {
		t.Error("the log holds a variable")
	}
}
