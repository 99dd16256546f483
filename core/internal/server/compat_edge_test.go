package server

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/keyfire/keyfire/core"
)

// C1: every documented client decodes whatever comes back, so what no handler of an adapter has seen is answered in the product's shape too: methods, heads
// that are too large, and paths that are nearly right.
func TestC1AdaptersAnswerInTheirShape(t *testing.T) {
	t.Parallel()
	f := setupForeign(t)
	long := strings.Repeat("x", 5000)
	for _, p := range []struct{ path, shape, method string }{
		{"/api/trigger", "error", "PUT"},
		{"/api/v1/agent_run", "error", "GET"},
		{"/api/v1/process/" + flowID, "detail", "GET"},
		{"/api/v1/run/" + flowID, "detail", "DELETE"},
		{"/api/v1/run/", "detail", "GET"},
		{"/api/v1/webhook/" + flowID, "detail", "PATCH"},
		{"/api/v1/task/run_x", "detail", "POST"},
		{"/api/endpoints/" + flowID, "detail", "GET"},
		{"/api/endpoints/" + flowID, "detail", "PURGE"},
		{"/api/workflow-keys", "detail", "PUT"},
	} {
		for _, c := range []struct {
			method, target string
			status         int
			header         []string
		}{
			{p.method, p.path, 405, nil},
			{"OPTIONS", p.path, 405, nil},
			{"OPTIONS", p.path, 403, []string{"Origin", "https://evil.example", "Access-Control-Request-Method", "POST"}},
			{"POST", p.path + "?a=" + long, 414, nil},
			{"POST", p.path, 431, []string{"X-Large", strings.Repeat(long, 4)}},
			{"POST", strings.TrimSuffix(p.path, "/") + "/of/nothing", 404, nil},
		} {
			r := f.call(c.method, c.target, f.global, "", c.header...).want(c.status)
			var members map[string]json.RawMessage
			if err := json.Unmarshal(r.body, &members); err != nil || len(members) != 1 || members[p.shape] == nil || r.header.Get("Content-Type") != "application/json" {
				t.Errorf("%s %.60s: %q %s", c.method, c.target, r.header.Get("Content-Type"), r.body)
			}
			if allow := r.header.Get("Allow"); c.status == 405 && allow == "" {
				t.Errorf("%s %s: no Allow", c.method, c.target)
			}
		}
		if r := f.call("HEAD", p.path, f.global, "").want(405); r.header.Get("Content-Type") != "application/json" || len(r.body) > 0 {
			t.Errorf("HEAD %s: %v %s", p.path, r.header, r.body)
		}
	}
	if r := f.call("GET", "/api/endpoints/flow", f.global, "").object(); r["detail"] != "Method GET not allowed. Allowed methods: POST" {
		t.Errorf("B11: %v", r)
	}
	// Elsewhere, and next to them, problems are problems.
	f.call("GET", "/api/triggers", f.global, "").problem(404, core.CodeNotFound)
	f.call("PUT", "/v1/trigger", f.global, "").problem(405, core.CodeMethodNotAllowed)
}

// A name that is empty is no name: it must not mean the workflow that the key is made for.
func TestL3EmptyNames(t *testing.T) {
	t.Parallel()
	f := setupForeign(t)
	for _, path := range []string{"/api/v1/process//", "/api/v1/run//", "/api/v1/webhook//"} {
		f.call("POST", path, f.bound, `{"inputs":{}}`).want(404).object()
	}
	for _, path := range []string{"/v1/workflows//runs", "/v1/hooks//"} {
		f.call("POST", path, f.bound, `{}`).problem(404, core.CodeNotFound)
	}
	boss := f.adminKey()
	for _, path := range []string{"/v1/workflows//versions", "/v1/runs//logs", "/v1/runs//events", "/v1/keys//usage"} {
		f.call("GET", path, boss, "").problem(404, core.CodeNotFound)
	}
	if runs := f.call("GET", "/v1/runs", boss, "").object()["data"].([]any); len(runs) != 0 {
		t.Errorf("%d runs", len(runs))
	}
}

// What clients of these products send and our own API does not take.
func TestForeignHabits(t *testing.T) {
	t.Parallel()
	f := setupForeign(t)
	for _, c := range []struct {
		id, target, body string
		header           []string
		status           int
		want             string
	}{
		{"C1 no encoding, said aloud", "/api/trigger", `{"inputs":{}}`, []string{"X-API-Key", f.bound, "Content-Encoding", "identity"}, 200, `"succeeded"`},
		{"C1 an encoding", "/api/trigger", `{"inputs":{}}`, []string{"X-API-Key", f.bound, "Content-Encoding", "gzip"}, 415, `"unsupported_media_type"`},
		{"K1 with a slash", "/api/trigger/", `{"inputs":{"Reference Document":""}}`, []string{"X-API-Key", f.bound}, 200, `"succeeded"`},
		{"K2 a misspelt member would run on nothing", "/api/trigger", `{"input":{"Reference Document":""}}`, []string{"X-API-Key", f.bound}, 400, `"message":"input is not a known field; did you mean inputs?`},
		{"K2 members that mean nothing here", "/api/trigger", `{"inputs":{"Reference Document":""},"input":1,"user":"ada"}`, []string{"X-API-Key", f.bound}, 200, `"succeeded"`},
		{"M1 with a slash", "/api/v1/agent_run/", `{"agent_id":"flow","input":{}}`, nil, 200, `"succeeded"`},
		{"M3 a misspelt member would run on nothing", "/api/v1/agent_run", `{"agent_id":"flow","inputs":{"a":1}}`, nil, 400, `"code":"unknown_field"`},
		{"L1 a misspelt member would run on nothing", "/api/v1/process/flow", `{"input":{"a":1}}`, nil, 400, `{"detail":"input is not a known field; did you mean inputs?`},
		{"L12 input_value is not misspelt", "/api/v1/run/text", `{"input":{"a":1},"input_value":"why"}`, nil, 200, `{"session_id":"run_`},
		{"K2 another misspelling", "/api/trigger", `{"Imputs":{"Reference Document":""}}`, []string{"X-API-Key", f.bound}, 400, `"message":"Imputs is not a known field; did you mean inputs?`},
		{"K2 what is far from it means nothing here", "/api/trigger", `{"user":"ada","output":1}`, []string{"X-API-Key", f.bound}, 200, `"succeeded"`},
		{"M3 another misspelling", "/api/v1/agent_run", `{"agent_id":"flow","inptu":{"a":1}}`, nil, 400, `inptu is not a known field; did you mean input?`},
		{"L12 a misspelt member would run on nothing", "/api/v1/run/text", `{"inputValue":"why"}`, nil, 400, `{"detail":"inputValue is not a known field; did you mean input_value?`},
		{"L12 members that are not the input", "/api/v1/run/flow", `{"input_type":"chat","output_type":"chat","output_component":"","unheard_of":1}`, nil, 200, `{"session_id":"run_`},
		{"L5 misspelt tweaks would be dropped", "/api/v1/process/flow", `{"inputs":{},"tweak":{"only":{}}}`, nil, 400, `{"detail":"tweak is not a known field; did you mean tweaks?`},
		{"L12 a session that is no text", "/api/v1/run/text", `{"input_value":"why","session_id":7}`, nil, 400, `{"detail":"session_id must be a string`},
		{"L11 a session that is no text", "/api/v1/process/flow", `{"inputs":{},"session_id":{"a":1}}`, nil, 400, `{"detail":"session_id must be a string`},
		{"L12 no session", "/api/v1/run/text", `{"input_value":"why","session_id":null}`, nil, 200, `{"session_id":"run_`},
		{"L13 the places of a body that is the input", "/api/v1/webhook/text", `{"a":1}`, nil, 400, `; question: required`},
		{"B1 the places of a body that is the input", "/api/endpoints/text/", `{"a":1}`, nil, 422, `; question: required`},
		{"L5 a node that there is not, without fields", "/api/v1/process/flow", `{"inputs":{},"tweaks":{"OpenAI-XXXXX":{}}}`, nil, 403, `tweaks/OpenAI-XXXXX`},
		{"L5 a node without fields", "/api/v1/process/flow", `{"inputs":{},"tweaks":{"only":{}}}`, nil, 200, `"result":{}`},
		{"L11 sync as a text", "/api/v1/process/flow", `{"inputs":{},"sync":"false"}`, nil, 200, `"task":{"id":"run_`},
		{"L11 sync as nothing", "/api/v1/process/flow", `{"inputs":{},"sync":null}`, nil, 200, `"task":null`},
		{"L11 sync as nonsense", "/api/v1/process/flow", `{"inputs":{},"sync":"later"}`, nil, 400, `{"detail":"sync must be true or false`},
		{"L12 stream as Python writes it", "/api/v1/run/text?stream=True", `{"input_value":"why","session_id":"s1"}`, nil, 200, `{"event":"end","data":{"result":{"session_id":"s1"`},
		{"L12 stream as a number", "/api/v1/run/text?stream=1", `{"input_value":"why"}`, nil, 200, `{"event":"end"`},
		{"L12 no stream", "/api/v1/run/text?stream=False", `{"input_value":"why"}`, nil, 200, `{"session_id":"run_`},
		{"L12 stream as nonsense", "/api/v1/run/text?stream=maybe", `{"input_value":"why"}`, nil, 400, `{"detail":"stream must be true or false`},
		{"L12 the end of a stream", "/api/v1/run/text?stream=true", `{"input_value":"why"}`, nil, 200, `"component_id":"only"`},
		{"B1 a query that is no text", "/api/endpoints/flow?a=%ff", `{}`, nil, 400, `{"detail":`},
		{"B1 a name with NUL", "/api/endpoints/flow?a%00b=1", `{}`, nil, 400, `{"detail":`},
		{"B1 a query that is not encoded", "/api/endpoints/flow?a=%zz", `{}`, nil, 400, `{"detail":`},
		{"B11 an id of ours that is gone", "/api/endpoints/wf_01m8b8degt4mgrzaxqsqkhvq83", `{}`, nil, 404, `{"detail":"Workflow not found`},
		{"B1 a repeated parameter", "/api/endpoints/flow?a=1&a=2", ``, nil, 200, `"a":"2"`},
	} {
		header := c.header
		if header == nil {
			header = []string{"X-API-Key", f.global}
		}
		r := f.call("POST", c.target, "", c.body, header...).want(c.status)
		if !strings.Contains(string(r.body), c.want) {
			t.Errorf("%s: %s is not in %s", c.id, c.want, r.body)
		}
	}
	// B12: who may not make keys is not told how to.
	if r := f.call("POST", "/api/workflow-keys", f.global, `{`).want(403).object(); !strings.Contains(r["detail"].(string), "keys:write") {
		t.Errorf("%v", r)
	}
	// L13: bytes that are no text arrive as they are, in base64, and not as other characters.
	hooked := f.call("POST", "/api/v1/webhook/flow", f.global, "\xff\xfe\x00", "Content-Type", "application/octet-stream").want(202).object()
	if input := f.call("GET", "/v1/runs/"+hooked["run_id"].(string), f.global, "").want(200).object()["input"].(map[string]any); input["payload"] != "//4A" {
		t.Errorf("L13: %v", input)
	}
	// L13: any body is taken as it is, and a form with files is one: nobody takes it apart. Elsewhere it is refused, JSON or not (I1).
	form := "--x\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.txt\"\r\n\r\nhello\r\n--x--\r\n"
	for _, mediaType := range []string{"multipart/form-data; boundary=x", "Multipart/Form-Data; boundary=x", "multipart/mixed; boundary=x", "text/xml", "not a type"} {
		hooked := f.call("POST", "/api/v1/webhook/flow", f.global, form, "Content-Type", mediaType).want(202).object()
		if input := f.call("GET", "/v1/runs/"+hooked["run_id"].(string), f.global, "").want(200).object()["input"].(map[string]any); input["payload"] != form {
			t.Errorf("L13: %s: %v", mediaType, input)
		}
		for _, path := range []string{"/api/trigger", "/api/v1/agent_run", "/api/v1/process/flow", "/api/v1/run/flow", "/api/endpoints/flow"} {
			f.call("POST", path, f.only("flow"), form, "Content-Type", mediaType).want(415)
			if strings.HasPrefix(strings.ToLower(mediaType), "multipart/") {
				f.call("POST", path, f.only("flow"), `{"agent_id":"flow"}`, "Content-Type", mediaType).want(415)
			}
		}
	}
	// B1: an empty body is none, also when nothing says so beforehand.
	addr, _, _ := f.serve()
	for _, framing := range []string{"Content-Length: 0\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"} {
		answer := raw(t, addr, "POST /api/endpoints/flow?a=1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\nX-Bifrost-Key: "+f.global+"\r\n"+framing)
		if !strings.HasPrefix(answer, "HTTP/1.1 200 ") || !strings.Contains(answer, `"result":{"a":"1"}`) {
			t.Errorf("B1: %q: %s", framing, answer)
		}
	}
	// L12: what one session's messages are about has one name.
	r := f.call("POST", "/api/v1/run/text?stream=true", f.global, `{"input_value":"why"}`).want(200)
	session := r.header.Get("Keyfire-Run-Id")
	if n := strings.Count(string(r.body), `"session_id":"`+session+`"`); n != 4 || session == "" {
		t.Errorf("%d of 4 places name the session %s: %s", n, session, r.body)
	}
	if r := f.call("POST", "/api/v1/run/text", f.global, `{"input_value":"why"}`).want(200); r.header.Get("Keyfire-Run-Status") != "succeeded" {
		t.Errorf("%v", r.header)
	}
	allowed := f.call("OPTIONS", "/api/endpoints/open", "", "", "Origin", "http://example.com", "Access-Control-Request-Method", "POST").header.Get("Access-Control-Allow-Methods")
	if methods := strings.Split(allowed, ", "); !slices.Equal(methods, []string{"POST"}) {
		t.Errorf("C4: pages are told of %q", allowed)
	}
}

// C7, L8: a key needs no name, its secret is told once, and every product's client is refused on the very next request after it was revoked.
func TestKeysOfAllProductsC7L8(t *testing.T) {
	t.Parallel()
	f := setupForeign(t)
	for path, c := range map[string]struct {
		key, body string
		refused   int
	}{
		"/api/trigger":         {`{"workflow":"documents"}`, `{"inputs":{}}`, 401},
		"/api/v1/agent_run":    {`{"global":true}`, `{"agent_id":"flow","input":{}}`, 401},
		"/api/v1/process/flow": {`{"global":true}`, `{"inputs":{}}`, 403},
		"/api/v1/run/flow":     {`{"global":true}`, `{"input_value":"x"}`, 403},
		"/api/endpoints/flow":  {`{"global":true}`, `{}`, 401},
	} {
		t.Run(path, func(t *testing.T) {
			created := f.call("POST", "/v1/keys", f.adminKey(), c.key).want(201).texts()
			secret := created["secret"]
			if created["name"] != "" {
				t.Errorf("the key is called %q", created["name"])
			}
			f.call("POST", path, secret, c.body).want(200)
			if shown := f.call("GET", "/v1/keys/"+created["id"], f.adminKey(), "").want(200); bytes.Contains(shown.body, []byte(secret)) {
				t.Error("the secret is told again")
			}
			f.call("DELETE", "/v1/keys/"+created["id"], f.adminKey(), "").want(204)
			f.call("POST", path, secret, c.body).want(c.refused)
		})
	}
}
