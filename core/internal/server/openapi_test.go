package server

import (
	"encoding/json"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/keyfire/keyfire/core"
)

// document fetches the API document as a client would.
func document(t *testing.T, b *bundle) map[string]any {
	t.Helper()
	r := b.call("GET", "/openapi.json", "", "").want(200)
	if ct := r.header.Get("Content-Type"); ct != "application/openapi+json" {
		t.Errorf("Content-Type %q", ct)
	}
	var doc map[string]any
	if err := json.Unmarshal(r.body, &doc); err != nil {
		t.Fatal(err)
	}
	return doc
}

// at follows names into nested objects.
func at(v any, names ...string) map[string]any {
	for _, n := range names {
		m, _ := v.(map[string]any)
		v = m[n]
	}
	m, _ := v.(map[string]any)
	return m
}

var pathParameter = regexp.MustCompile(`\{([^}]+)\}`)

// The document has exactly the routes that the server has, and says of each what a caller must know.
func TestDocumentMatchesRoutes(t *testing.T) {
	t.Parallel()
	b := setup(t)
	doc := document(t, b)
	if doc["openapi"] != "3.1.0" || at(doc, "info")["version"] != "0.0.0-test" {
		t.Errorf("%v %v", doc["openapi"], doc["info"])
	}
	var served, documented []string
	for _, r := range b.server.engine.Routes() {
		if r.Method == "OPTIONS" {
			continue // asked by browsers, not by callers
		}
		if path := regexp.MustCompile(`:(\w+)`).ReplaceAllString(r.Path, "{$1}"); r.Method == "HEAD" && at(doc, "paths", path)["head"] == nil && at(doc, "paths", path)["get"] != nil {
			continue // said once for all, in the document's description
		}
		served = append(served, r.Method+" "+regexp.MustCompile(`:(\w+)`).ReplaceAllString(r.Path, "{$1}"))
	}
	ids := map[string]bool{}
	for path, item := range at(doc, "paths") {
		for method, v := range item.(map[string]any) {
			op := v.(map[string]any)
			name := strings.ToUpper(method) + " " + path
			documented = append(documented, name)
			id, _ := op["operationId"].(string)
			if id == "" || ids[id] || op["summary"] == "" || len(op["tags"].([]any)) != 1 {
				t.Errorf("%s: id %q, summary %v, tags %v", name, id, op["summary"], op["tags"])
			}
			ids[id] = true
			var inPath []string
			for _, p := range asList(op["parameters"]) {
				if at(p)["description"] == nil || at(p)["schema"] == nil {
					t.Errorf("%s: parameter %v is not described", name, at(p)["name"])
				}
				if at(p)["in"] == "path" {
					inPath = append(inPath, at(p)["name"].(string))
					if at(p)["required"] != true {
						t.Errorf("%s: path parameter %v is not required", name, at(p)["name"])
					}
				}
			}
			var want []string
			for _, m := range pathParameter.FindAllStringSubmatch(path, -1) {
				want = append(want, m[1])
			}
			if !slices.Equal(inPath, want) {
				t.Errorf("%s: path parameters %v", name, inPath)
			}
			checkResponses(t, name, op)
		}
	}
	slices.Sort(served)
	slices.Sort(documented)
	if !slices.Equal(served, documented) {
		t.Errorf("served     %v\ndocumented %v", served, documented)
	}
}

func asList(v any) []any {
	l, _ := v.([]any)
	return l
}

func checkResponses(t *testing.T, name string, op map[string]any) {
	t.Helper()
	statuses := at(op, "responses")
	secured := len(asList(op["security"])) > 0
	for _, status := range []string{"401", "403", "400", "404", "414", "431", "429", "503", "500"} {
		if secured && statuses[status] == nil {
			t.Errorf("%s does not document %s", name, status)
		}
	}
	if op["requestBody"] != nil && (statuses["413"] == nil || statuses["415"] == nil || statuses["422"] == nil) {
		t.Errorf("%s does not document what it refuses of a body", name)
	}
	good := 0
	for status, v := range statuses {
		if status[0] == '2' {
			good++
		}
		r := at(v)
		if r["description"] == "" || status != "default" && at(r, "headers", "Keyfire-Request-Id") == nil {
			t.Errorf("%s %s: %v", name, status, r)
		}
		if n, err := strconv.Atoi(status); err == nil && n >= 400 && n != 503 && at(r, "content", "application/problem+json", "schema")["$ref"] != "#/components/schemas/Problem" {
			t.Errorf("%s %s is not a problem: %v", name, status, r)
		}
	}
	if good == 0 {
		t.Errorf("%s has no good end", name)
	}
}

// Every code a caller can meet is in the document.
func TestDocumentNamesCodes(t *testing.T) {
	t.Parallel()
	b := setup(t)
	text := string(b.call("GET", "/openapi.json", "", "").want(200).body)
	for _, c := range core.Codes() {
		switch c {
		case core.CodeMethodNotAllowed, core.CodeAuditUnavailable, core.CodeInvalidModule, core.CodeRunAlreadyFinished, core.CodeReplayIncompatible:
			continue // of no route, or of none that exists yet
		}
		if !strings.Contains(text, "`"+string(c)+"`") {
			t.Errorf("code %s is not in the document", c)
		}
	}
}

// Every reference leads somewhere, and every schema is one: they compile, and real answers fit them.
func TestAnswersFitTheDocument(t *testing.T) {
	t.Parallel()
	b := setup(t)
	doc := document(t, b)
	compiler := jsonschema.NewCompiler()
	compiler.DefaultDraft(jsonschema.Draft2020)
	compiler.AssertFormat()
	if err := compiler.AddResource("https://test/openapi.json", doc); err != nil {
		t.Fatal(err)
	}
	schemas := map[string]*jsonschema.Schema{}
	for name := range at(doc, "components", "schemas") {
		s, err := compiler.Compile("https://test/openapi.json#/components/schemas/" + name)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		schemas[name] = s
	}
	fits := func(name string, r *reply) {
		t.Helper()
		v, err := jsonschema.UnmarshalJSON(strings.NewReader(string(r.body)))
		if err != nil {
			t.Fatal(err)
		}
		if schemas[name] == nil {
			t.Fatalf("no schema %s", name)
		}
		if err := schemas[name].Validate(v); err != nil {
			t.Errorf("an answer is no %s: %v\n%s", name, err, r.body)
		}
	}
	b.publish("open", "")
	boss := b.adminKey()
	fits("CreatedKey", b.call("POST", "/v1/keys", boss, `{"name":"x","workflow":"open","max_runs":3,"expires_at":null}`).want(201))
	fits("CreatedKey", b.call("POST", "/v1/keys", boss, `{"name":"x","type":"admin"}`).want(201))
	r := b.call("POST", "/v1/workflows/open/runs", boss, `{"input":{"a":1},"metadata":{"m":"1"}}`).want(200)
	id := r.object()["id"].(string)
	fits("Run", r)
	fits("Run", b.call("GET", "/v1/runs/"+id, boss, "").want(200))
	fits("ListRun", b.call("GET", "/v1/runs", boss, "").want(200))
	fits("Step", b.call("GET", "/v1/runs/"+id+"/steps/only", boss, "").want(200))
	fits("ListRunLogLine", b.call("GET", "/v1/runs/"+id+"/logs", boss, "").want(200))
	fits("ListKey", b.call("GET", "/v1/keys", boss, "").want(200))
	fits("Workflow", b.call("GET", "/v1/workflows/open", boss, "").want(200))
	fits("ListWorkflow", b.call("GET", "/v1/workflows", boss, "").want(200))
	fits("Version", b.call("GET", "/v1/workflows/open/versions/1", boss, "").want(200))
	fits("ListVersion", b.call("GET", "/v1/workflows/open/versions", boss, "").want(200))
	fits("ListAuditEvent", b.call("GET", "/v1/audit", boss, "").want(200))
	fits("Problem", b.call("GET", "/v1/audit", "", "").want(401))
	fits("Problem", b.call("POST", "/v1/trigger", boss, `{"inputs":1}`).want(400))
	fits("Problem", b.call("GET", "/v1/runs?limit=x", boss, "").want(400))
}

// The page works without a script and without anything from elsewhere, and its policy says so.
func TestDocsPage(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r := b.call(http.MethodGet, "/docs", "", "").want(200)
	page := string(r.body)
	if policy := r.header.Get("Content-Security-Policy"); !strings.HasPrefix(policy, "default-src 'none'; style-src 'sha256-") || strings.Contains(policy, "unsafe") {
		t.Errorf("policy %q", policy)
	}
	for _, foreign := range []string{"<script", "<link", "<img", "style=", "onclick", "@import", "url("} {
		if strings.Contains(page, foreign) {
			t.Errorf("the page has %s", foreign)
		}
	}
	for path, item := range at(document(t, b), "paths") {
		for method, op := range item.(map[string]any) {
			if id, _ := at(op)["operationId"].(string); method != "head" && (!strings.Contains(page, `id="`+id+`"`) || !strings.Contains(page, path)) {
				t.Errorf("%s %s is not on the page", method, path)
			}
		}
	}
	for _, m := range regexp.MustCompile(`href="#([^"]+)"`).FindAllStringSubmatch(page, -1) {
		if !strings.Contains(page, `id="`+m[1]+`"`) {
			t.Errorf("a link to #%s leads nowhere", m[1])
		}
	}
}
