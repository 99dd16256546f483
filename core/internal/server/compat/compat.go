// Package compat answers the clients of four other products at the paths, and in the words, that those clients know: Keyflow,
// miiflow, Langflow and Bifrost. A client moves by changing its base URL and key.
//
// There is one file a product. An adapter fixes only the shape of requests and answers: every run it starts goes through the data
// plane like any other, with the same credentials, quota, history, trace and audit. Every answer is JSON, errors included, since every
// documented client decodes whatever comes back. The ids in the comments (K1, L5, ...) name what a client of that product relies on.
package compat

import (
	"bytes"
	"cmp"
	"encoding/json"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/gin-gonic/gin"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/admin"
	"github.com/keyfire/keyfire/core/internal/trigger"
)

// Host is what the adapters need of the server around them. Its methods are used by one request at a time each.
type Host interface {
	// Open authenticates the request and finds the workflow, "" being the one the key is made for. The run's route is named after the product.
	Open(c *gin.Context, product, workflow string) (*trigger.Ticket, error)
	// Authenticate finds out who sends the request, for products whose body names the workflow. Open does it otherwise.
	Authenticate(c *gin.Context) error
	// Body reads the request body, of any media type, within the server's limit. One with a Content-Encoding is CodeUnsupportedMediaType.
	Body(c *gin.Context) ([]byte, error)
	// Query returns the parameters of the URL, without credentials. What is not encoded well, or is no text, is CodeInvalidRequest.
	Query(c *gin.Context) (url.Values, error)
	// Begin admits a run and sets the headers that name it. An Idempotency-Key header holds here too.
	Begin(c *gin.Context, t *trigger.Ticket, p trigger.Payload) (*trigger.Begun, error)
	// Run returns a run that the sender of the request may read.
	Run(c *gin.Context, id string) (*core.Run, error)
	// Control returns the control plane and the sender of the request, who has been authenticated, for products whose keys are managed by an adapter.
	Control(c *gin.Context) (*admin.Service, admin.Actor, error)
	// Refused has it recorded when the sender may not do what they ask of the control plane, and returns the error to answer with.
	Refused(c *gin.Context, err error) error
	// Status is the status that a native route answers the error with, and what may be said of it in public.
	Status(err error) (int, *core.Error)
	// Send writes v as JSON. cause is logged when it is the server's fault; nil when there is none.
	Send(c *gin.Context, status int, contentType string, v any, cause error)
	// SendPart sends a part of an answer at once.
	SendPart(c *gin.Context, part []byte) error
}

// Products says which adapters are switched on.
type Products struct {
	Keyflow, Miiflow, Langflow, Bifrost bool
}

// Route is one path of an adapter.
type Route struct {
	Method, Path string
	Trigger      bool // starts a run
	Handle       gin.HandlerFunc
}

// product is one adapter.
type product interface {
	routes() []Route
	// owns are the paths that are the product's own, with everything below them.
	owns() []string
	fail(c *gin.Context, err error)
}

// answering is a handler whose errors are answered as the product does.
func answering(p product, handle func(c *gin.Context) error) gin.HandlerFunc {
	return func(c *gin.Context) {
		if err := handle(c); err != nil {
			p.fail(c, err)
		}
	}
}

func (on Products) all(h Host) []product {
	var all []product
	if on.Keyflow {
		all = append(all, keyflow{h})
	}
	if on.Miiflow {
		all = append(all, miiflow{h})
	}
	if on.Langflow {
		all = append(all, langflow{h})
	}
	if on.Bifrost {
		all = append(all, bifrost{h})
	}
	return all
}

// Routes returns the routes of the adapters that are switched on. Paths are gin patterns.
func Routes(h Host, on Products) []Route {
	var routes []Route
	for _, p := range on.all(h) {
		for _, r := range p.routes() {
			slash := r // L3, and the others' frameworks send their clients on from there
			slash.Path += "/"
			routes = append(routes, r, slash)
		}
	}
	return routes
}

// Failure returns how the product that owns a path answers errors, nil for a path of no adapter that is switched on. It is for errors that no route of the product has
// seen: a method that the path does not take, a head that is too large, a path that is not quite one of the product's (C1).
func Failure(h Host, on Products, path string) func(c *gin.Context, err error) {
	for _, p := range on.all(h) {
		for _, own := range p.owns() {
			if rest, ok := strings.CutPrefix(path, own); ok && (rest == "" || rest[0] == '/') {
				return p.fail
			}
		}
	}
	return nil
}

// param returns an element of the path, "" where no route was found: gin leaves what the nearest one has read.
func param(c *gin.Context, name string) string {
	if c.FullPath() == "" {
		return ""
	}
	return c.Param(name)
}

const (
	typeJSON   = "application/json"
	typeEvents = "text/event-stream"
)

// members is the body of a request whose members an adapter knows. Others are left alone: a client that worked yesterday shall not
// fail for a field that means nothing here.
type members map[string]json.RawMessage

// readMembers reads a body that must be a JSON object. By C5 it may come under any media type but a form of files, as curl -d sends it; a body
// that is no JSON under a type that is not JSON either is refused for its type.
func readMembers(h Host, c *gin.Context, limits core.JSONLimits) (members, error) {
	body, err := h.Body(c)
	if err != nil {
		return nil, err
	}
	mediaType := strings.ToLower(c.GetHeader("Content-Type"))
	err = core.CheckJSON(body, limits)
	if strings.HasPrefix(mediaType, "multipart/") || err != nil && mediaType != "" && !strings.Contains(mediaType, "json") {
		return nil, core.Errorf(core.CodeUnsupportedMediaType, "send the body as Content-Type: %s", typeJSON)
	}
	if err != nil {
		return nil, err
	}
	m := members{}
	if json.Unmarshal(body, &m) != nil || m == nil {
		return nil, core.Errorf(core.CodeInvalidRequest, "the body must be a JSON object")
	}
	return m, nil
}

// optionalMembers is readMembers for a body that may be left out. A client that sends in chunks does not say beforehand that it sends nothing.
func optionalMembers(h Host, c *gin.Context) (members, error) {
	if body, err := h.Body(c); err == nil && len(bytes.TrimSpace(body)) == 0 {
		return members{}, nil
	}
	return readMembers(h, c, core.JSONLimits{})
}

// text returns a member that is a string; ok is false when it is absent or something else.
func (m members) text(name string) (s string, ok bool) {
	ok = len(m[name]) > 0 && m[name][0] == '"' && json.Unmarshal(m[name], &s) == nil
	return s, ok
}

// object returns a member that must be an object. Absent and null are an empty one.
func (m members) object(name string) (json.RawMessage, error) {
	raw := bytes.TrimSpace(m[name])
	if len(raw) == 0 || string(raw) == "null" {
		return json.RawMessage("{}"), nil
	}
	if raw[0] != '{' {
		return nil, wrong(core.CodeInvalidInput, name, "must be an object")
	}
	return raw, nil
}

// misnamed refuses a body that has none of some members and one that is called nearly like one of them, be it misspelt or what other products, and our own API, call it. The run
// would start on nothing, and succeed. known are members that mean something else, or are at home in answers.
func (m members) misnamed(own []string, known ...string) error {
	for _, name := range own {
		if _, has := m[name]; has {
			return nil
		}
	}
	for _, name := range slices.Sorted(maps.Keys(m)) {
		if near := core.Nearest(name, own); near != "" && !slices.Contains(known, name) {
			return wrong(core.CodeUnknownField, core.EscapePointer(name), "is not a known field; did you mean "+near+"?")
		}
	}
	return nil
}

// optionalText returns a member that is a string, nil for one that is absent or null.
func (m members) optionalText(name string) (*string, error) {
	if raw := bytes.TrimSpace(m[name]); len(raw) == 0 || string(raw) == "null" {
		return nil, nil //nolint:nilnil // nothing was sent, which is no mistake
	}
	s, ok := m.text(name)
	if !ok {
		return nil, wrong(core.CodeInvalidInput, name, "must be a string")
	}
	return &s, nil
}

// run starts a run and waits for its end.
func run(h Host, c *gin.Context, t *trigger.Ticket, p trigger.Payload) (*core.Run, error) {
	begun, err := h.Begin(c, t, p)
	if err != nil {
		return nil, err
	}
	return wait(c, begun)
}

// wait returns a run that has ended. An error may also be that the server stops, and the run goes on elsewhere.
func wait(c *gin.Context, begun *trigger.Begun) (*core.Run, error) {
	result, err := begun.Wait(c.Request.Context())
	if err != nil {
		return nil, err
	}
	c.Header("Keyfire-Run-Status", string(result.Run.Status))
	if !result.Run.Status.Terminal() {
		return nil, core.Errorf(core.CodeDraining, "the server is stopping; the run %s goes on", result.Run.ID)
	}
	return result.Run, nil
}

// properties returns the names that the workflow's input schema declares, with their types ("" when it gives none or several).
func properties(def *core.Definition) map[string]string {
	var schema struct {
		Properties map[string]struct {
			Type json.RawMessage `json:"type"`
		} `json:"properties"`
	}
	if len(def.Input) == 0 || json.Unmarshal(def.Input, &schema) != nil {
		return nil
	}
	types := make(map[string]string, len(schema.Properties))
	for name, p := range schema.Properties {
		var t string
		_ = json.Unmarshal(p.Type, &t) // a list of types is no single type
		types[name] = t
	}
	return types
}

// onlyText returns the input's only property, when it is a string.
func onlyText(def *core.Definition) (string, bool) {
	types := properties(def)
	if len(types) != 1 {
		return "", false
	}
	for name, t := range types {
		return name, t == "string"
	}
	return "", false
}

// single returns an object with one member.
func single(name string, value any) json.RawMessage {
	raw, err := json.Marshal(map[string]any{name: value})
	if err != nil {
		panic(err) // strings and raw JSON always marshal
	}
	return raw
}

// failure is why a run did not succeed, for products that answer with a text.
func failure(r *core.Run) string {
	if r.Error == nil {
		return string(r.Status)
	}
	if r.Error.Step != "" && !strings.HasPrefix(r.Error.Message, "node "+r.Error.Step+": ") {
		return "step " + r.Error.Step + ": " + r.Error.Message
	}
	return r.Error.Message
}

// runStatus is the HTTP status that a native route answers the end of a run with.
func runStatus(h Host, r *core.Run) int {
	switch {
	case r.Status == core.RunSucceeded:
		return http.StatusOK
	case r.Error == nil:
		return http.StatusInternalServerError
	case r.Error.Status >= 400 && r.Error.Status <= 599:
		return r.Error.Status
	}
	status, _ := h.Status(&core.Error{Code: r.Error.Code})
	return status
}

// inWords returns e with its places named as the product's clients name them: what is input here is inputs there.
func inWords(e *core.Error, words *strings.Replacer) *core.Error {
	if len(e.Fields) == 0 {
		return e
	}
	own := *e
	own.Fields = slices.Clone(e.Fields)
	for i := range own.Fields {
		own.Fields[i].Pointer = words.Replace(own.Fields[i].Pointer)
	}
	return &own
}

// bodyWords are for products whose body is the input itself.
var bodyWords = strings.NewReplacer("#/input/", "#/")

// codedError is an error as Keyflow's and miiflow's clients read it.
type codedError struct {
	Code    string       `json:"code"`
	Message string       `json:"message"`
	Errors  []core.Field `json:"errors,omitempty"`
}

// coded is the body of an answer that is an error.
func coded(e *core.Error) map[string]codedError {
	return map[string]codedError{"error": {Code: codeOf(e), Message: detail(e), Errors: e.Fields}}
}

// runError is why a run did not succeed, with the workflow's own code when it failed on purpose; nil when it did.
func runError(r *core.Run) *codedError {
	if r.Status == core.RunSucceeded {
		return nil
	}
	code := string(core.CodeRunFailed)
	if r.Error != nil {
		code = cmp.Or(r.Error.UserCode, string(r.Error.Code))
	}
	return &codedError{Code: code, Message: failure(r)}
}

// runOutput is what came out of a run that succeeded.
func runOutput(r *core.Run) json.RawMessage {
	if r.Status != core.RunSucceeded {
		return nil
	}
	return r.Output
}

// wrong refuses a member of a body. detail says what would be right.
func wrong(code core.Code, member, detail string) error {
	e := core.Errorf(code, "%s %s", member, detail)
	e.Fields = []core.Field{{Pointer: "#/" + member, Detail: detail}}
	return e
}

// codeOf is the code of an error on the paths of adapters, where two have names of their own: what clients of these paths were promised.
func codeOf(e *core.Error) string {
	switch e.Code {
	case core.CodeAmbiguousCredential:
		return "multiple_credentials"
	case core.CodeAuthUnavailable:
		return "auth_backend_unavailable"
	}
	return string(e.Code)
}

// detail is the public text of an error, with the places that are wrong.
func detail(e *core.Error) string {
	if e.Code == core.CodeInternal {
		return "internal error"
	}
	text := e.Message
	for _, f := range e.Fields {
		if place := strings.TrimPrefix(f.Pointer, "#/"); place != "" && !strings.Contains(text, f.Detail) {
			text += "; " + place + ": " + f.Detail
		}
	}
	return text
}
