package server

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/keyfire/keyfire/core"
)

// Snippets are ready-made requests that run a workflow.
type Snippets struct {
	Object   string    `json:"object" enum:"snippets"`
	Workflow string    `json:"workflow" doc:"Name of the workflow."`
	URL      string    `json:"url" doc:"Where the requests go."`
	Code     string    `json:"code,omitempty" doc:"The snippet, when one client was asked for."`
	Data     []Snippet `json:"data" nullable:"false"`
}

// Snippet is one of them. It reads the key from the environment variable KEYFIRE_KEY.
type Snippet struct {
	Client   string `json:"client" enum:"curl,python,javascript,go,keyflow,miiflow,langflow,bifrost"`
	Language string `json:"language" enum:"sh,python,javascript,go"`
	Code     string `json:"code"`
}

func (s *Server) routeSnippets() {
	register(s, huma.Operation{
		OperationID: "get-snippets", Method: http.MethodGet, Path: "/v1/workflows/{workflow}/snippets", Tags: []string{"Workflows"},
		Summary: "Ready-made requests",
		Description: "Code that runs the workflow with its own input names, for curl, Python, JavaScript and Go, and as clients of the products whose adapters are switched on send it. " +
			"The key is read from the environment variable KEYFIRE_KEY. Needs the scope workflows:read.",
	}, nil, s.getSnippets)
}

type snippetParams struct {
	Workflow string `path:"workflow" doc:"Id, slug or alias."`
	Client   string `query:"client" enum:"curl,python,javascript,go,keyflow,miiflow,langflow,bifrost" doc:"Only this one; absent is all."`
	URL      string `query:"url" maxLength:"200" doc:"Where callers reach the server; absent is where this request has reached it."`
}

func (s *Server) getSnippets(ctx context.Context, req *request, in *snippetParams) (*answer[Snippets], error) {
	w, v, err := s.Admin.Workflow(ctx, req.actor(), in.Workflow, 0)
	if err != nil {
		return nil, err
	}
	base, err := snippetBase(req, in.URL)
	if err != nil {
		return nil, err
	}
	call := snippetCall{base: base, workflow: w, input: exampleInput(v.Definition.Input)}
	body := Snippets{Object: "snippets", Workflow: w.Slug, URL: base, Data: []Snippet{}}
	for _, c := range s.snippetClients() {
		if in.Client == "" || in.Client == c.name {
			body.Data = append(body.Data, Snippet{Client: c.name, Language: c.language, Code: c.code(&call)})
		}
	}
	switch {
	case in.Client == "":
	case len(body.Data) == 0:
		return nil, invalidField(core.CodeInvalidRequest, inQuery+"client", "names a product whose adapter is switched off on this server")
	default:
		body.Code = body.Data[0].Code
	}
	return &answer[Snippets]{Body: body}, nil
}

// snippetBase returns the address that the snippets are written with.
func snippetBase(req *request, asked string) (string, error) {
	if asked == "" {
		asked = req.origin.Base(req.c.Request.Host)
	}
	if !plainURL(asked) {
		return "", invalidField(core.CodeInvalidRequest, inQuery+"url", "must be an address such as https://keyfire.example.com")
	}
	return strings.TrimRight(asked, "/"), nil
}

// plainURL reports whether text is the address of a server that means nothing else in any of the languages of the snippets.
func plainURL(text string) bool {
	u, err := url.Parse(text)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != "" && u.User == nil && u.RawQuery == "" && u.Fragment == "" &&
		!strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune("\"'`\\$<>", r) })
}

// snippetCall is what all snippets say.
type snippetCall struct {
	base     string
	workflow core.Workflow
	input    json.RawMessage // indented by two
}

type snippetClient struct {
	name, language string
	code           func(*snippetCall) string
}

// snippetClients returns the clients there are snippets for.
func (s *Server) snippetClients() []snippetClient {
	all := []snippetClient{{"curl", "sh", snippetCurl}, {"python", "python", snippetPython}, {"javascript", "javascript", snippetJavaScript}, {"go", "go", snippetGo}}
	for _, p := range []struct {
		on   bool
		name string
		code func(*snippetCall) string
	}{
		{s.Compat.Keyflow, "keyflow", func(c *snippetCall) string {
			return curlCommand(c.base+"/api/trigger", "X-API-Key: $KEYFIRE_KEY", `{"inputs": `+string(c.input)+"}")
		}},
		{s.Compat.Miiflow, "miiflow", func(c *snippetCall) string {
			return curlCommand(c.base+"/api/v1/agent_run", "Authorization: Bearer $KEYFIRE_KEY", `{"agent_id": `+strconv.Quote(c.workflow.Slug)+`, "input": `+string(c.input)+"}")
		}},
		{s.Compat.Langflow, "langflow", func(c *snippetCall) string {
			return curlCommand(c.base+"/api/v1/run/"+url.PathEscape(c.workflow.Slug), "x-api-key: $KEYFIRE_KEY", `{"inputs": `+string(c.input)+`, "tweaks": {}}`)
		}},
		{s.Compat.Bifrost, "bifrost", func(c *snippetCall) string {
			return curlCommand(c.base+"/api/endpoints/"+c.workflow.ID, "X-Bifrost-Key: $KEYFIRE_KEY", string(c.input))
		}},
	} {
		if p.on {
			all = append(all, snippetClient{p.name, "sh", p.code})
		}
	}
	return all
}

func (c *snippetCall) target() string {
	return c.base + "/v1/workflows/" + url.PathEscape(c.workflow.Slug) + "/runs"
}

func (c *snippetCall) envelope() string { return `{"input": ` + string(c.input) + "}" }

func curlCommand(target, header, body string) string {
	return "curl -X POST '" + target + "' \\\n  -H \"" + header + "\" \\\n  -H 'Content-Type: application/json' \\\n  -d '" + strings.ReplaceAll(body, "'", `'\''`) + "'\n"
}

func snippetCurl(c *snippetCall) string {
	return curlCommand(c.target(), "Authorization: Bearer $KEYFIRE_KEY", c.envelope())
}

// CallByCurl returns a shell command that runs a workflow whose input has the schema, with the key in the variable KEYFIRE_KEY. Callers reach the server at base;
// there is no command for one that is not an address.
func CallByCurl(base string, w core.Workflow, input json.RawMessage) string {
	if !plainURL(base) {
		return ""
	}
	return snippetCurl(&snippetCall{base: base, workflow: w, input: exampleInput(input)})
}

func snippetPython(c *snippetCall) string {
	return `import json
import os
import sys
import urllib.error
import urllib.request

request = urllib.request.Request(
    "` + c.target() + `",
    data=json.dumps(` + pythonLiteral(c.envelope()) + `).encode(),
    headers={
        "Authorization": "Bearer " + os.environ["KEYFIRE_KEY"],
        "Content-Type": "application/json",
    },
)
try:
    with urllib.request.urlopen(request) as response:
        run = json.load(response)
        print(run.get("output", run))
except urllib.error.HTTPError as problem:  # its body says why
    sys.exit(problem.read().decode())
`
}

// pythonLiteral writes JSON as Python does. Only the three names differ, and strings are left alone.
func pythonLiteral(text string) string {
	var b strings.Builder
	inString := false
	for i := 0; i < len(text); i++ {
		switch {
		case inString && text[i] == '\\':
			b.WriteByte(text[i])
			i++
		case text[i] == '"':
			inString = !inString
		case !inString:
			replaced := false
			for name, python := range map[string]string{"true": "True", "false": "False", "null": "None"} {
				if strings.HasPrefix(text[i:], name) {
					b.WriteString(python)
					i += len(name) - 1
					replaced = true
					break
				}
			}
			if replaced {
				continue
			}
		}
		if i < len(text) {
			b.WriteByte(text[i])
		}
	}
	return b.String()
}

// javaScriptBody writes the envelope as an object that JavaScript encodes, or, where JavaScript would change it, as the text to send: in an object literal __proto__ is no
// member, and a number is a double.
func javaScriptBody(envelope string) string {
	safe := !strings.Contains(envelope, `"__proto__"`)
	for d := json.NewDecoder(strings.NewReader(envelope)); safe; {
		d.UseNumber()
		token, err := d.Token()
		if err != nil {
			break
		}
		if n, ok := token.(json.Number); ok && !strings.ContainsAny(n.String(), ".eE") {
			const most = 1<<53 - 1
			i, err := n.Int64()
			safe = err == nil && i <= most && i >= -most
		}
	}
	if safe {
		return "JSON.stringify(" + envelope + ")"
	}
	text, err := jsonString(envelope)
	if err != nil {
		return strconv.Quote(envelope)
	}
	return string(text)
}

func snippetJavaScript(c *snippetCall) string {
	return `const response = await fetch("` + c.target() + `", {
  method: "POST",
  headers: {
    "Authorization": "Bearer " + process.env.KEYFIRE_KEY,
    "Content-Type": "application/json",
  },
  body: ` + javaScriptBody(c.envelope()) + `,
});
const run = await response.json();
console.log(response.status, JSON.stringify(run.output ?? run));
`
}

func snippetGo(c *snippetCall) string {
	body := strconv.Quote(c.envelope())
	if !strings.ContainsAny(c.envelope(), "`\ufeff") { // neither can be in a raw string of Go
		body = "`" + c.envelope() + "`"
	}
	return `package main

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strings"
)

func main() {
	body := ` + body + `
	req, err := http.NewRequest(http.MethodPost, "` + c.target() + `", strings.NewReader(body))
	if err != nil {
		log.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+os.Getenv("KEYFIRE_KEY"))
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(resp.Status, string(answer))
}
`
}

// exampleInput returns an input with every name that the schema declares, in its order. Values are what the schema suggests, and otherwise the least that
// its types admit.
func exampleInput(schema json.RawMessage) json.RawMessage {
	raw := exampleValue(schema, 0)
	if len(raw) == 0 || raw[0] != '{' {
		raw = json.RawMessage("{}")
	}
	var indented bytes.Buffer
	if json.Indent(&indented, raw, "", "  ") != nil {
		return raw
	}
	return indented.Bytes()
}

const maxExampleDepth = 4

func exampleValue(schema json.RawMessage, depth int) json.RawMessage {
	if !isObject(schema) {
		return json.RawMessage("{}")
	}
	var s struct {
		Type       json.RawMessage   `json:"type"`
		Format     string            `json:"format"`
		Const      json.RawMessage   `json:"const"`
		Default    json.RawMessage   `json:"default"`
		Examples   []json.RawMessage `json:"examples"`
		Enum       []json.RawMessage `json:"enum"`
		Properties json.RawMessage   `json:"properties"`
		Minimum    json.RawMessage   `json:"minimum"`
		MinLength  int               `json:"minLength"`
	}
	if json.Unmarshal(schema, &s) != nil {
		return json.RawMessage(`""`)
	}
	for _, suggested := range [][]json.RawMessage{s.Examples, {s.Default}, {s.Const}, s.Enum} {
		if len(suggested) > 0 && len(suggested[0]) > 0 {
			return suggested[0]
		}
	}
	var kind string
	if json.Unmarshal(s.Type, &kind) != nil {
		var several []string
		if json.Unmarshal(s.Type, &several) == nil && len(several) > 0 {
			kind = several[0]
		}
	}
	if kind == "" && len(s.Properties) > 0 {
		kind = "object"
	}
	switch kind {
	case "string":
		return exampleText(s.Format, s.MinLength)
	case "integer", "number":
		if len(s.Minimum) > 0 {
			return s.Minimum
		}
		return json.RawMessage("1")
	case "boolean":
		return json.RawMessage("true")
	case "array":
		return json.RawMessage("[]")
	case "null":
		return json.RawMessage("null")
	case "object":
		return exampleObject(s.Properties, depth)
	}
	if depth == 0 {
		return json.RawMessage("{}")
	}
	return json.RawMessage(`""`)
}

func exampleObject(properties json.RawMessage, depth int) json.RawMessage {
	if !isObject(properties) || depth >= maxExampleDepth {
		return json.RawMessage("{}")
	}
	var b bytes.Buffer
	b.WriteByte('{')
	for name, schema := range core.JSONMembers(properties) {
		if b.Len() > 1 {
			b.WriteByte(',')
		}
		key, err := jsonString(name)
		if err != nil {
			continue
		}
		b.Write(key)
		b.WriteByte(':')
		b.Write(exampleValue(schema, depth+1))
	}
	b.WriteByte('}')
	return b.Bytes()
}

func exampleText(format string, least int) json.RawMessage {
	for known, text := range map[string]string{
		"date-time": "2026-01-31T12:00:00Z", "date": "2026-01-31", "time": "12:00:00Z", "email": "ada@example.com", "uri": "https://example.com", "uuid": "4441b773-0724-434e-9cee-19d995d8f2df",
	} {
		if format == known {
			return json.RawMessage(strconv.Quote(text))
		}
	}
	const longest = 200
	return json.RawMessage(strconv.Quote(strings.Repeat("x", min(least, longest))))
}
