package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humagin"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
)

// The control plane's routes are described to huma, which binds their parameters and writes the OpenAPI document from the same types. Bodies and
// errors stay ours: huma repeats the offending value in its errors, ignores the case of member names and accepts duplicates.

// newAPI returns the huma API on the routes behind authenticate.
func (s *Server) newAPI() huma.API {
	format := huma.Format{
		Marshal: encodeJSON,
		Unmarshal: func([]byte, any) error {
			return errors.New("bodies are decoded by the handlers")
		},
	}
	config := huma.Config{
		OpenAPI:       s.describe(),
		Formats:       map[string]huma.Format{typeJSON: format, "json": format}, // "json" is what huma looks up for ...+json
		DefaultFormat: typeJSON,
		Transformers:  []huma.Transformer{s.transform},
	}
	api := humagin.NewWithGroup(s.engine, s.engine.Group("", s.authenticate), config)
	api.UseMiddleware(func(ctx huma.Context, next func(huma.Context)) { next(&apiContext{humaContext: ctx, s: s}) })
	return api
}

// humaContext is huma.Context under a name that can be embedded beside its method of the same name.
type humaContext = huma.Context

// apiContext lets transform change the status that huma has chosen.
type apiContext struct {
	humaContext
	s      *Server
	status int
}

// Unwrap returns the context inside.
func (c *apiContext) Unwrap() huma.Context { return c.humaContext }

// Header returns a header field. Accept is hidden: everything is JSON, and huma would answer with whatever type name was asked for.
func (c *apiContext) Header(name string) string {
	if name == "Accept" {
		return ""
	}
	return c.humaContext.Header(name)
}

// SetStatus sets the status of the answer, unless transform has set another one.
func (c *apiContext) SetStatus(status int) {
	if c.status != 0 {
		status = c.status
	}
	c.humaContext.SetStatus(status)
}

// BodyWriter returns the writer of the answer and starts its deadline.
func (c *apiContext) BodyWriter() io.Writer {
	g := humagin.Unwrap(c.humaContext)
	_ = http.NewResponseController(g.Writer).SetWriteDeadline(time.Now().Add(c.s.WriteTimeout))
	return c.humaContext.BodyWriter()
}

// transform turns the errors that huma makes itself, which are about parameters, into problems.
func (s *Server) transform(ctx huma.Context, _ string, v any) (any, error) {
	if model, ok := v.(*huma.ErrorModel); ok {
		v = s.apiError(ctx.Context(), parameterError(model))
	}
	if e, ok := v.(*apiError); ok {
		ctx.(*apiContext).status = e.problem.Status //nolint:forcetypeassert // the one middleware makes it so
		return e.problem, nil
	}
	return v, nil
}

func parameterError(model *huma.ErrorModel) error {
	if len(model.Errors) == 0 {
		return fmt.Errorf("huma: %d %s", model.Status, model.Detail)
	}
	e := &core.Error{Code: core.CodeInvalidRequest}
	for _, d := range model.Errors {
		place, name, _ := strings.Cut(d.Location, ".")
		switch place {
		case "path": // a name that nothing can have
			return core.Errorf(core.CodeNotFound, "there is no such %s", name)
		case "query":
			name = inQuery + name
		case "header":
			name = inHeader + name
		}
		e.Fields = append(e.Fields, core.Field{Pointer: name, Detail: parameterDetail(d.Message)})
	}
	first := e.Fields[0]
	e.Message = strings.TrimLeft(first.Pointer, inQuery+inHeader) + " " + first.Detail
	return e
}

// parameterDetail says in our words what huma says of a parameter, which is in part about Go.
func parameterDetail(message string) string {
	switch {
	case message == "invalid integer":
		return "must be a whole number"
	case message == "invalid boolean":
		return "must be true or false"
	case strings.HasPrefix(message, "invalid date/time"):
		return `must be a time such as "2026-12-31T23:59:59Z"`
	}
	for _, w := range []struct{ theirs, ours, end string }{
		{"expected value to be one of ", "must be one of ", ""},
		{"expected number >= ", "must be at least ", ""},
		{"expected number <= ", "must be at most ", ""},
		{"expected length >= ", "must have at least ", " characters"},
		{"expected length <= ", "must have at most ", " characters"},
	} {
		if rest, ok := strings.CutPrefix(message, w.theirs); ok {
			return w.ours + strings.Trim(rest, `"`) + w.end
		}
	}
	return message
}

// apiError carries an error through huma, which asks it for its status, its headers and its media type.
type apiError struct {
	problem Problem
	header  http.Header
	cause   error
}

func (e *apiError) Error() string             { return e.cause.Error() }
func (e *apiError) Unwrap() error             { return e.cause }
func (e *apiError) GetStatus() int            { return e.problem.Status }
func (e *apiError) GetHeaders() http.Header   { return e.header }
func (e *apiError) ContentType(string) string { return typeProblem }

func (s *Server) apiError(ctx context.Context, err error) *apiError {
	req := requestOf(ctx)
	p, k, e := problemOf(err)
	a := &apiError{problem: p, header: make(http.Header), cause: err}
	s.setProblemHeaders(a.header, k, e)
	req.c.Writer.Header().Set("Cache-Control", "no-store") // what is refused now may be there a moment later
	s.completeProblem(ctx, req, &a.problem, err)
	return a
}

// handler is a handler of the control plane: it gets parameters, reads the body itself if there is one, and returns what to
// answer. An error is a *core.Error or answered as internal.
type handler[I, O any] func(ctx context.Context, req *request, in *I) (*O, error)

// register adds a route. body documents what the handler reads with readJSON; nil is nothing.
func register[I, O any](s *Server, op huma.Operation, body *huma.RequestBody, h handler[I, O]) {
	op.Security = slices.Clone(secured)
	described := &op
	serve := func(ctx context.Context, in *I) (*O, error) {
		req := requestOf(ctx)
		if err := checkQuery(req.c.Request.URL, described.Parameters); err != nil {
			return nil, s.apiError(ctx, err)
		}
		out, err := guarded(ctx, req, in, needs[op.OperationID], h)
		if err != nil {
			return nil, s.apiError(ctx, s.refuse(ctx, req, err))
		}
		if header := req.c.Writer.Header(); header.Get("Cache-Control") == "" {
			header.Set("Cache-Control", "no-store")
		}
		return out, nil
	}
	huma.Register(s.api, op, serve)
	if op.Method == http.MethodGet {
		// Whoever may read may ask whether there is something to read; net/http leaves the body out. The document says so once, for all routes.
		head := op
		head.Method, head.Hidden = http.MethodHead, true
		huma.Register(s.api, head, serve)
	}
	described = operation(s.api.OpenAPI(), op.Method, op.Path)
	described.RequestBody = body
	s.describeErrors(described)
}

// guarded calls a handler for those who have a scope, "" being none that all of its callers need.
func guarded[I, O any](ctx context.Context, req *request, in *I, scope string, h handler[I, O]) (*O, error) {
	if scope != "" {
		if err := req.actor().Require(scope); err != nil {
			return nil, err
		}
	}
	return h(ctx, req, in)
}

// refuse has it recorded when someone who is known may not do what they ask for.
func (s *Server) refuse(ctx context.Context, req *request, err error) error {
	if core.CodeOf(err) != core.CodeInsufficientScope {
		return err
	}
	return s.Trigger.RefuseKnown(ctx, req.principal, req.origin, err)
}

// checkQuery refuses parameters that the route does not have: a filter with a typing error in its name must not list everything.
func checkQuery(u *url.URL, known []*huma.Param) error {
	if u.RawQuery == "" {
		return nil
	}
	values, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return core.Wrap(core.CodeInvalidRequest, err, "the query is not well-formed")
	}
	var names []string
	for _, p := range known {
		if p.In == "query" {
			names = append(names, p.Name)
		}
	}
	for name, v := range values {
		if strings.HasPrefix(name, metadataFilter) && slices.Contains(names, metadataFilter+"{name}") {
			continue
		}
		var detail string
		yesNo := slices.ContainsFunc(known, func(p *huma.Param) bool {
			return p.In == "query" && p.Name == name && p.Schema != nil && p.Schema.Type == huma.TypeBoolean
		})
		switch {
		case yesNo && len(v) == 1 && v[0] != "true" && v[0] != "false": // without a value it would mean false, to the surprise of whoever wrote it
			detail = "must be true or false"
		case !slices.Contains(names, name):
			detail = "is not a parameter of this route"
			if near := core.Nearest(name, names); near != "" {
				detail += "; did you mean " + near + "?"
			}
		case len(v) > 1:
			detail = "must be given once"
		default:
			continue
		}
		e := core.Errorf(core.CodeInvalidRequest, "a query parameter %s", detail)
		e.Fields = []core.Field{{Pointer: inQuery + clip(name), Detail: detail}}
		return e
	}
	return nil
}

// PageParams are the parameters of every list. Like all that is embedded here, it is exported because huma sees nothing else.
type PageParams struct {
	Limit  int    `query:"limit" minimum:"1" maximum:"200" default:"50" doc:"How many items to return at most."`
	Cursor string `query:"cursor" maxLength:"512" doc:"next_cursor of the previous page; absent is the first page."`
}

func (p PageParams) page() core.Page { return core.Page{Limit: p.Limit, Cursor: p.Cursor} }

// List is one page of a list, newest first.
type List[T any] struct {
	Object     string  `json:"object" enum:"list" doc:"What this is."`
	Data       []T     `json:"data" nullable:"false"`
	HasMore    bool    `json:"has_more" doc:"Whether there is another page."`
	NextCursor *string `json:"next_cursor" doc:"The cursor of that page."`
}

// listOf makes the answer of a list, and links the next page.
func listOf[S, T any](req *request, l core.List[S], item func(*S) T) *listAnswer[T] {
	a := &listAnswer[T]{}
	a.Body = List[T]{Object: "list", Data: make([]T, len(l.Items)), HasMore: l.Next != "", NextCursor: textOrNull(l.Next)}
	for i := range l.Items {
		a.Body.Data[i] = item(&l.Items[i])
	}
	if l.Next != "" {
		next := *req.c.Request.URL
		q := next.Query()
		q.Set("cursor", l.Next)
		next.RawQuery = q.Encode()
		a.Link = "<" + next.RequestURI() + `>; rel="next"`
	}
	return a
}

type listAnswer[T any] struct {
	Link string `header:"Link" doc:"The next page, as rel=next."`
	Body List[T]
}

// answer is an object as the body of an answer.
type answer[T any] struct{ Body T }

// show answers with an object that was found or changed, as body presents it, unless there is an error.
func show[T, B any](body func(*T) B) func(T, error) (*answer[B], error) {
	return func(v T, err error) (*answer[B], error) {
		if err != nil {
			return nil, err
		}
		return &answer[B]{Body: body(&v)}, nil
	}
}

// optionalTime tells a time that is absent from one that is null.
type optionalTime struct {
	set  bool
	time time.Time // zero when null
}

// UnmarshalJSON reads a time or null.
func (o *optionalTime) UnmarshalJSON(b []byte) error {
	o.set = true
	if string(b) == "null" {
		return nil
	}
	if err := json.Unmarshal(b, &o.time); err != nil {
		return invalidField(core.CodeInvalidInput, "#/expires_at", `must be a time such as "2026-12-31T23:59:59Z", or null for never`)
	}
	if o.time.IsZero() {
		// The first moment of the calendar is what a program sends that has set no time, and inside this one it stands for null.
		return invalidField(core.CodeInvalidInput, "#/expires_at", "must be in the future; null makes a key that never expires")
	}
	return nil
}

// Schema describes the value to the API document.
func (optionalTime) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, Format: "date-time", Nullable: true}
}

// jsonBody documents a JSON body of the type of v.
func (s *Server) jsonBody(v any, required bool, example any) *huma.RequestBody {
	t := reflect.TypeOf(v)
	media := &huma.MediaType{Schema: s.api.OpenAPI().Components.Schemas.Schema(t, true, t.Name())}
	if example != nil {
		media.Example = example
	}
	return &huma.RequestBody{Required: required, Content: map[string]*huma.MediaType{"application/json": media}}
}

// wholeNumber reads a positive number out of a path.
func wholeNumber(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || s[0] == '0' || s[0] == '+' { // written in one way
		return 0, core.Errorf(core.CodeNotFound, "there is no such version")
	}
	return n, nil
}

// keyTypes are the types of keys as the API names them.
var keyTypes = map[string]auth.KeyType{"trigger": auth.TriggerKey, "admin": auth.AdminKey}
