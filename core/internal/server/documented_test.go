package server

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// described is the API document, ready to be held against answers.
type described struct {
	doc     map[string]any
	schemas *jsonschema.Compiler
}

// The document is the same for every server, so that of the first one serves all tests of the package.
var (
	describedOnce sync.Once
	describedAll  described
	describedMu   sync.Mutex // jsonschema.Compiler is for one goroutine
)

// everyAnswer are headers that any answer may have, and that nobody looks up: those of HTTP itself and of its caches and browsers.
var everyAnswer = []string{
	"Content-Type", "Content-Length", "Cache-Control", "X-Content-Type-Options", "Vary", "Connection", "Referrer-Policy", "Content-Security-Policy", "X-Accel-Buffering",
	"Access-Control-Allow-Origin", "Access-Control-Expose-Headers", "Deprecation", "Allow",
}

// documented holds an answer against the served API document: its status, headers, media type and body must be there. Every answer to every test of this package is, so a
// route cannot answer what it does not say.
func (b *bundle) documented(req *http.Request, r *reply) {
	b.t.Helper()
	path, item := b.describedPath(req.URL.EscapedPath())
	if path == "" || r.code == http.StatusMethodNotAllowed || req.Method == http.MethodOptions {
		return // no route's answer
	}
	name := req.Method + " " + path + " " + strconv.Itoa(r.code)
	method := req.Method
	if method == http.MethodHead && item["head"] == nil {
		method = http.MethodGet // which it is described with
	}
	op := at(item, strings.ToLower(method))
	answer := at(op, "responses", strconv.Itoa(r.code))
	status := strconv.Itoa(r.code)
	if answer == nil {
		status, answer = "default", at(op, "responses", "default")
	}
	if answer == nil {
		b.t.Errorf("%s is not documented: %s", name, r.body)
		return
	}
	headers := at(answer, "headers")
	for header := range r.header {
		known := false
		for _, h := range everyAnswer {
			known = known || h == header
		}
		for h := range headers {
			known = known || http.CanonicalHeaderKey(h) == header
		}
		if !known {
			b.t.Errorf("%s: the header %s is not documented", name, header)
		}
	}
	media, _, _ := strings.Cut(r.header.Get("Content-Type"), ";")
	if len(r.body) == 0 || req.Method == http.MethodHead {
		return
	}
	if at(answer, "content", media) == nil {
		b.t.Errorf("%s: %s is not documented", name, media)
		return
	}
	if !strings.HasSuffix(media, "json") {
		return
	}
	b.fits("#/paths/"+strings.NewReplacer("~", "~0", "/", "~1").Replace(path)+"/"+strings.ToLower(req.Method)+"/responses/"+status+
		"/content/"+strings.ReplaceAll(media, "/", "~1")+"/schema", name, r.body)
}

// describedPath finds a path in the document.
func (b *bundle) describedPath(target string) (path string, item map[string]any) {
	describedOnce.Do(func() {
		document, err := b.server.document()
		if err == nil {
			err = json.Unmarshal(document, &describedAll.doc)
		}
		if err != nil {
			panic(err)
		}
		describedAll.schemas = jsonschema.NewCompiler()
		describedAll.schemas.DefaultDraft(jsonschema.Draft2020)
		describedAll.schemas.AssertFormat()
		if err := describedAll.schemas.AddResource("https://test/openapi.json", describedAll.doc); err != nil {
			panic(err)
		}
	})
	elements := strings.Split(target, "/")
	for template, found := range at(describedAll.doc, "paths") {
		parts := strings.Split(template, "/")
		same, fixed := len(parts) == len(elements), 0
		for i := 0; same && i < len(parts); i++ {
			if !strings.HasPrefix(parts[i], "{") {
				same = parts[i] == elements[i]
				fixed++
			} else {
				same = elements[i] != ""
			}
		}
		if same && (path == "" || fixed > strings.Count(path, "/")+1-strings.Count(path, "{")) {
			path, item = template, at(found)
		}
	}
	return path, item
}

// fits checks a body against the schema at a place in the document.
func (b *bundle) fits(place, name string, body []byte) {
	b.t.Helper()
	v, err := jsonschema.UnmarshalJSON(strings.NewReader(string(body)))
	if err != nil {
		b.t.Errorf("%s: %v in %s", name, err, body)
		return
	}
	describedMu.Lock()
	schema, err := describedAll.schemas.Compile("https://test/openapi.json" + place)
	describedMu.Unlock()
	if err != nil {
		b.t.Errorf("%s: %v", name, err)
		return
	}
	if err := schema.Validate(v); err != nil {
		b.t.Errorf("%s does not answer as documented: %v\n%s", name, err, body)
	}
}
