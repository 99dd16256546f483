package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/gin-gonic/gin"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/admin"
	"github.com/keyfire/keyfire/core/internal/console"
	"github.com/keyfire/keyfire/core/internal/trigger"
)

// request is what the server knows about one request. It lives in the request's context and is used by one goroutine.
type request struct {
	c      *gin.Context
	start  time.Time
	origin core.Origin

	hook       bool // it came in on the route of webhooks
	page       bool // it is for one of the pages for people
	trail      core.Trail
	credential auth.Credential
	noScheme   bool            // there was a key, or a token, in Authorization, and no scheme before it
	ambiguous  error           // set instead of a credential when the request presents two
	inQuery    bool            // a credential was in the URL, whether or not it is the one used
	session    auth.Secret     // of a person's browser, on the pages for people
	peer       *auth.Principal // who is at the other end of the local socket
	principal  auth.Principal  // set by authenticate
	allowed    bool            // principal is set
	place      *trigger.Place  // in the line before runs, for a request that may start one
	shed       bool            // there was no place

	body     []byte // read once, possibly by an auth backend
	bodyErr  error
	bodyRead bool

	answer core.Code // of the problem that was sent
	chosen bool      // by the workflow
	runID  string
}

type requestKey struct{}

// requestOf returns the request that a context belongs to.
func requestOf(ctx context.Context) *request {
	r, ok := ctx.Value(requestKey{}).(*request)
	if !ok {
		panic("server: context of no request")
	}
	return r
}

func (r *request) actor() admin.Actor { return admin.Actor{Principal: r.principal, Origin: r.origin} }

// handle is the outermost handler: it gives the request its id, its trace and its credential, bounds it, and answers, records
// and ends it whatever the handlers behind it do.
func (s *Server) handle(c *gin.Context) {
	req := &request{c: c, start: s.Now(), hook: c.FullPath() == routeHook, page: strings.HasPrefix(c.FullPath(), console.Prefix)}
	req.origin.RequestID = s.NewID(core.PrefixRequest)
	req.origin.Route = "native"
	req.origin.UserAgent = agent(c.Request)
	req.origin.Page = page(c.Request)
	req.origin.Trail = &req.trail
	h := c.Writer.Header()
	h.Set("Keyfire-Request-Id", req.origin.RequestID)
	h.Set("X-Content-Type-Options", "nosniff")

	ctx, release := outlastHalfClose(c.Request.Context())
	defer release()
	ctx = context.WithValue(ctx, requestKey{}, req)
	tooLarge := s.checkHead(c.Request)
	fromProxy := s.findSource(c.Request, req)
	ctx, span := s.startSpan(ctx, c, fromProxy)
	req.origin.TraceID = traceID(span)
	if tooLarge == nil {
		s.takeCredential(c.Request, req)
		s.countCredential(ctx, req)
	}
	c.Request = c.Request.WithContext(ctx)
	defer func() { s.end(c, req, span, recover()) }()

	if req.inQuery {
		// The key has been in a URL: at least nobody shall keep it or pass it on.
		h.Set("Cache-Control", "no-store")
		h.Set("Referrer-Policy", "no-referrer")
	}
	if c.Request.ContentLength != 0 {
		// Also bounds how long a body that no handler reads can hold the connection. Writers that have no deadline, such as those of
		// tests, need none.
		_ = http.NewResponseController(c.Writer).SetReadDeadline(time.Now().Add(s.BodyTimeout))
	}
	if s.leaving.Load() {
		h.Set("Connection", "close") // the next request is for another server
	}
	if len(c.Request.TransferEncoding) > 0 {
		// The request may have had a Content-Length too, which net/http takes out, and by which a proxy before us may have found its end. What follows
		// on this connection is then part of its body, and must not be read as a request (RFC 9112 section 6.1).
		h.Set("Connection", "close")
	}
	if tooLarge != nil {
		h.Set("Connection", "close")
		s.fail(c, tooLarge)
		return
	}
	if emptyElement(c.Params) {
		s.fail(c, errNoRoute())
		return
	}
	s.allowPage(c, req)
	if s.triggers[c.FullPath()] && req.peer == nil {
		var err error
		if req.place, err = s.Trigger.Enter(ctx, req.credential, req.origin.Source); err != nil {
			req.shed = true
			s.fail(c, err)
			return
		}
		defer req.place.End()
	}
	c.Next()
}

// emptyElement reports whether a path names something by nothing ("/v1/workflows//runs"). gin finds a route for it, and an empty name means the workflow of the key.
func emptyElement(params gin.Params) bool {
	return slices.ContainsFunc(params, func(p gin.Param) bool { return p.Value == "" })
}

// agent returns what program the caller says it is, as text that is fit to be shown.
func agent(r *http.Request) string {
	const longest = 200
	text := r.UserAgent()
	if len(text) > longest {
		text = text[:longest]
	}
	text = strings.Map(func(c rune) rune {
		if !unicode.IsPrint(c) {
			return -1
		}
		return c
	}, strings.ToValidUTF8(text, ""))
	return redact(strings.TrimSpace(text))
}

// checkHead applies the limits on the request's first line and header.
func (s *Server) checkHead(r *http.Request) error {
	if len(r.RequestURI) > s.MaxURL {
		return core.Errorf(core.CodeURLTooLong, "the URL has more than %d bytes", s.MaxURL)
	}
	fields, size := len(r.TransferEncoding), 0
	if r.Host != "" {
		fields, size = fields+1, len("Host: \r\n")+len(r.Host) // which net/http takes out of the header
	}
	for name, values := range r.Header {
		fields += len(values)
		for _, v := range values {
			size += len(name) + len(v) + len(": \r\n")
		}
	}
	switch {
	case fields > s.MaxFields:
		return core.Errorf(core.CodeHeadersTooLarge, "the request has more than %d header fields", s.MaxFields)
	case size > s.MaxHeader:
		return core.Errorf(core.CodeHeadersTooLarge, "the request header has more than %d bytes", s.MaxHeader)
	}
	return nil
}

// startSpan starts the request's span. A trace that the caller is in is linked, not continued: whoever sends a request must not decide what
// we sample and which trace our spans end up in. Only a trusted proxy's trace is continued.
func (s *Server) startSpan(ctx context.Context, c *gin.Context, fromProxy bool) (context.Context, trace.Span) {
	route := c.FullPath()
	if quiet(route) {
		return ctx, trace.SpanFromContext(ctx)
	}
	method := knownMethod(c.Request.Method)
	name := method
	switch {
	case method == http.MethodPost && s.triggers[route]:
		name = "trigger"
	case route != "":
		name = method + " " + route
	}
	options := make([]trace.SpanStartOption, 0, 2)
	options = append(options, trace.WithSpanKind(trace.SpanKindServer))
	if c.Request.Header["Traceparent"] != nil {
		remote := trace.SpanContextFromContext(propagation.TraceContext{}.Extract(context.Background(), propagation.HeaderCarrier(c.Request.Header)))
		switch {
		case !remote.IsValid():
		case fromProxy:
			ctx = trace.ContextWithRemoteSpanContext(ctx, remote)
		default:
			options = append(options, trace.WithLinks(trace.Link{SpanContext: remote}))
		}
	}
	id := requestOf(ctx).origin.RequestID
	ctx, span := s.Tracer.Start(ctx, name, options...)
	if span.IsRecording() {
		span.SetAttributes(
			attribute.String("http.request.method", method),
			attribute.String("http.route", route),
			attribute.String("keyfire.request.id", id),
		)
	}
	return ctx, span
}

// knownMethod keeps a caller from making up the names of our spans.
func knownMethod(m string) string {
	switch m {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions:
		return m
	}
	return "_OTHER"
}

func traceID(span trace.Span) string {
	if sc := span.SpanContext(); sc.HasTraceID() {
		return sc.TraceID().String()
	}
	return ""
}

// quiet reports whether a route is asked so often, for so little, that neither spans nor log lines are made of it.
func quiet(route string) bool { return route == "/healthz" || route == "/readyz" }

// end finishes a request: it turns a panic into an answer, and writes the one log line that every request gets.
func (s *Server) end(c *gin.Context, req *request, span trace.Span, panicked any) {
	ctx := c.Request.Context()
	if panicked != nil && panicked != http.ErrAbortHandler { //nolint:errorlint // net/http compares it the same way
		// The value and the stack only. The request itself may hold a credential, in places we did not think of.
		s.Logger.LogAttrs(ctx, slog.LevelError, "handler panicked",
			slog.String("request_id", req.origin.RequestID),
			slog.String("panic", redact(fmt.Sprint(panicked))),
			slog.String("stack", string(debug.Stack())))
		if !c.Writer.Written() {
			s.fail(c, errors.New("handler panicked"))
			panicked = nil
		}
	}
	status := c.Writer.Status()
	if span.IsRecording() {
		span.SetAttributes(attribute.Int("http.response.status_code", status))
		if req.answer != "" {
			span.SetAttributes(attribute.String("keyfire.error.code", string(req.answer)))
		}
		if status >= http.StatusInternalServerError {
			span.SetStatus(codes.Error, string(req.answer))
		}
	}
	if !quiet(c.FullPath()) {
		s.logRequest(ctx, c, req, status)
		code := req.answer
		if req.chosen {
			code = codeOfWorkflow
		}
		s.metrics.answered(ctx, knownMethod(c.Request.Method), c.FullPath(), status, code, s.Now().Sub(req.start))
		span.End()
	}
	if panicked != nil {
		// Part of the answer is out. Cutting the connection is the only way left to tell the caller that it is not whole.
		panic(http.ErrAbortHandler)
	}
}

func (s *Server) logRequest(ctx context.Context, c *gin.Context, req *request, status int) {
	level := slog.LevelInfo
	if req.shed {
		level = slog.LevelDebug // thousands a second say no more than the lines that the line itself writes
	}
	if !s.Logger.Enabled(ctx, level) {
		return
	}
	attrs := make([]slog.Attr, 0, 12)
	attrs = append(attrs,
		slog.String("request_id", req.origin.RequestID),
		slog.String("method", knownMethod(c.Request.Method)),
		slog.String("path", redact(c.Request.URL.Path)),
		slog.Int("status", status),
		slog.Duration("duration", s.Now().Sub(req.start)),
		slog.Int("bytes", max(c.Writer.Size(), 0)),
	)
	if ip := req.origin.SourceIP(); ip != "" {
		attrs = append(attrs, slog.String("source_ip", ip))
	}
	if req.answer != "" {
		attrs = append(attrs, slog.String("code", string(req.answer)))
	}
	if req.runID != "" {
		attrs = append(attrs, slog.String("run_id", req.runID))
	}
	if req.allowed {
		attrs = append(attrs, slog.String("principal", req.principal.Subject))
	}
	if req.inQuery {
		attrs = append(attrs, slog.Bool("credential_in_query", true))
	}
	s.Logger.LogAttrs(ctx, level, "request", attrs...)
}

// authenticate is the gate before every handler but those of the trigger routes, whose gate is trigger.Service.Open.
func (s *Server) authenticate(c *gin.Context) {
	req := requestOf(c.Request.Context())
	p, err := s.principal(c.Request.Context(), req)
	if err != nil {
		s.fail(c, err)
		return
	}
	if err := trigger.CheckPage(p, req.origin, nil); err != nil {
		s.fail(c, s.Trigger.RefuseKnown(c.Request.Context(), p, req.origin, err))
		return
	}
	req.accept(p)
	req.restrictPage(nil)
	c.Next()
}

// principal says who sent the request, and for which account. A credential outweighs the local socket: whoever presents one wants to act as that.
func (s *Server) principal(ctx context.Context, req *request) (auth.Principal, error) {
	var p auth.Principal
	switch {
	case req.ambiguous != nil:
		return auth.Principal{}, s.Trigger.Refuse(ctx, req.origin, req.ambiguous)
	case req.peer != nil && req.credential.None():
		p = *req.peer
	default:
		var err error
		if p, err = s.Trigger.Authenticate(ctx, req.credential, req.origin); err != nil {
			return auth.Principal{}, req.misspelt(err)
		}
	}
	return s.actFor(ctx, req, p)
}

// misspelt says so to whoever sent no credential, but a key without a scheme, or something in the URL that is called nearly like one.
func (r *request) misspelt(err error) error {
	if core.CodeOf(err) != core.CodeUnauthenticated {
		return err
	}
	if r.noScheme {
		return core.Wrap(core.CodeUnauthenticated, err, "the header Authorization has no scheme, so it is no credential; write Authorization: Bearer and then the key")
	}
	near := nearCredential(r.c.Request.URL)
	if near == "" {
		return err
	}
	return core.Wrap(core.CodeUnauthenticated, err, "the request has no credential, but a query parameter that is not read; did you mean "+near+"? Better, send the key as Authorization: Bearer or X-API-Key")
}

// headerAccount names the account that a superuser acts for.
const headerAccount = "Keyfire-Account"

// actFor changes the account that a principal acts for, if the request asks for it. Nothing else of the principal changes.
func (s *Server) actFor(ctx context.Context, req *request, p auth.Principal) (auth.Principal, error) {
	values := req.c.Request.Header[headerAccount]
	if len(values) == 0 {
		return p, nil
	}
	if len(values) > 1 || values[0] == "" {
		return auth.Principal{}, invalidField(core.CodeInvalidRequest, inHeader+headerAccount, "must be given once, and name an account by id or name")
	}
	acting, err := s.Admin.ActFor(ctx, p, values[0])
	if err != nil {
		return auth.Principal{}, s.Trigger.RefuseKnown(ctx, p, req.origin, err)
	}
	return acting, nil
}

// found names the run that a request has made or found, in its answer and in the log.
func (r *request) found(run *core.Run) {
	r.runID = run.ID
	h := r.c.Writer.Header()
	h.Set("Keyfire-Run-Id", run.ID)
	h.Set("Keyfire-Run-Status", string(run.Status))
}

// begun is found for a run that was just admitted. How an inline one stands is known when it ends, and is not worth asking for before.
func (r *request) begun(ctx context.Context, b *trigger.Begun) {
	r.runID = b.RunID
	r.c.Header("Keyfire-Run-Id", b.RunID)
	if !b.Durable {
		return
	}
	if run, err := b.Now(ctx); err == nil {
		r.found(run)
	}
}

// accept notes who was let in.
func (r *request) accept(p auth.Principal) {
	r.principal, r.allowed = p, true
	if r.inQuery { // also beside the same one in a header
		r.c.Writer.Header().Set("Deprecation", queryDeprecation)
	}
}
