package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/server/compat"
)

// problemBase precedes a code in the URI of a problem's type.
const problemBase = "https://keyfire.dev/problems/"

// kind is how the errors of one code are answered.
type kind struct {
	status    int
	title     string
	retryable bool          // the same request may succeed later
	after     time.Duration // Retry-After when the error does not say; only for statuses that may be retried
	challenge string        // WWW-Authenticate
}

// admitted is k for a request that has started a run: whoever sends it again starts another one, so nobody is asked to.
func (k kind) admitted() kind {
	k.after = 0
	return k
}

// Challenges by RFC 6750. A request without a credential is told the scheme only.
const (
	challenge             = `Bearer realm="keyfire"`
	challengeToken        = `Bearer realm="keyfire", error="invalid_token"`
	challengeRequest      = `Bearer realm="keyfire", error="invalid_request"`
	challengeInsufficient = `Bearer realm="keyfire", error="insufficient_scope"`
)

// kinds is the one table of codes and their answers. 403 means "known, and may never do it", 404 "for you it does not exist", 429 "later, or more
// quota", 500 with a run_ code "the workflow", 503 "us, not you".
var kinds = map[core.Code]kind{
	core.CodeUnauthenticated:     {status: 401, title: "A credential is required", challenge: challenge},
	core.CodeInvalidKey:          {status: 401, title: "The credential is not valid", challenge: challengeToken},
	core.CodeKeyExpired:          {status: 401, title: "The key has expired", challenge: challengeToken},
	core.CodeKeyRevoked:          {status: 401, title: "The key was revoked", challenge: challengeToken},
	core.CodeKeyDisabled:         {status: 401, title: "The key is disabled", challenge: challengeToken},
	core.CodeAmbiguousCredential: {status: 400, title: "The request has more than one credential", challenge: challengeRequest},
	core.CodeAuthUnavailable:     {status: 503, title: "The credential cannot be checked right now", retryable: true, after: time.Second},
	core.CodeSourceNotAllowed:    {status: 403, title: "The key may not be used from this address or page"},
	core.CodeInsufficientScope:   {status: 403, title: "The credential may not do this", challenge: challengeInsufficient},
	core.CodeAccountDisabled:     {status: 401, title: "The account is disabled", challenge: challengeToken},
	core.CodeUserDisabled:        {status: 401, title: "The user is disabled", challenge: challengeToken},
	core.CodeInvalidLogin:        {status: 401, title: "The name or the password is not right", challenge: challengeToken},
	core.CodeSessionExpired:      {status: 401, title: "The session's token has expired", challenge: challengeToken},
	core.CodeSessionEnded:        {status: 401, title: "The session has ended", challenge: challengeToken},

	core.CodeNotFound:             {status: 404, title: "Not found"},
	core.CodeMethodNotAllowed:     {status: 405, title: "The resource does not take this method"},
	core.CodeUnsupportedMediaType: {status: 415, title: "The body's media type is not supported"},
	core.CodeBodyTooLarge:         {status: 413, title: "The body is too large"},
	core.CodeURLTooLong:           {status: 414, title: "The URL is too long"},
	core.CodeHeadersTooLarge:      {status: 431, title: "The request header is too large"},
	core.CodeInvalidRequest:       {status: 400, title: "The request is not valid"},
	core.CodeInvalidJSON:          {status: 400, title: "The body is not acceptable JSON"},
	core.CodeUnknownField:         {status: 400, title: "The body has an unknown field"},
	core.CodeInvalidInput:         {status: 422, title: "The input is not valid"},
	// 400 and not 501: it is this request that asks for too much, and an alarm on server errors must not ring for it.
	core.CodeNotSupported: {status: 400, title: "Not supported by this server yet"},
	core.CodeConflict:     {status: 409, title: "The object exists already or has changed"},

	core.CodeInvalidWorkflow:      {status: 422, title: "The workflow file is not valid"},
	core.CodeInvalidModule:        {status: 422, title: "The module is not valid"},
	core.CodeWorkflowRequired:     {status: 400, title: "The request must name a workflow"},
	core.CodeWorkflowDisabled:     {status: 409, title: "The workflow's trigger is not enabled"},
	core.CodeOverrideNotAllowed:   {status: 403, title: "The override is not allowed"},
	core.CodeIdempotencyKeyReused: {status: 422, title: "The Idempotency-Key was used with another request"},
	core.CodeRateLimited:          {status: 429, title: "Too many requests", retryable: true, after: time.Second},
	core.CodeConcurrencyLimited:   {status: 429, title: "Too many runs at once", retryable: true, after: time.Second},
	core.CodeQuotaExhausted:       {status: 429, title: "The key has no runs left"},

	core.CodeRunFailed:          {status: 500, title: "The run failed"},
	core.CodeRunTimedOut:        {status: 500, title: "The run exceeded its time limit"}, // not 504: proxies replace its body
	core.CodeRunCancelled:       {status: 409, title: "The run was cancelled"},
	core.CodeRunInterrupted:     {status: 503, title: "The server stopped during the run; its outcome is unknown"},
	core.CodeRunAlreadyFinished: {status: 409, title: "The run has finished already"},
	core.CodeReplayIncompatible: {status: 409, title: "The run cannot be replayed like this"},

	core.CodeOverloaded:       {status: 503, title: "The server is overloaded", retryable: true, after: time.Second},
	core.CodeDraining:         {status: 503, title: "The server is stopping", retryable: true, after: time.Second},
	core.CodeStoreUnavailable: {status: 503, title: "The store is not available", retryable: true, after: 5 * time.Second},
	core.CodeAuditUnavailable: {status: 503, title: "The audit log is not available", retryable: true, after: 5 * time.Second},
	core.CodeInternal:         {status: 500, title: "Internal error"},
}

// Problem is the body of every answer that is not a success (RFC 9457).
type Problem struct {
	Type     string `json:"type" format:"uri" doc:"Identifies the kind of problem; ends with the code."`
	Title    string `json:"title" doc:"What kind of problem this is; the same text every time."`
	Status   int    `json:"status" doc:"The HTTP status."`
	Detail   string `json:"detail,omitempty" doc:"What is wrong this time, and what would be right."`
	Instance string `json:"instance,omitempty" doc:"The path of the request."`
	Code     string `json:"code" doc:"Stable, machine-readable name of the problem. Codes are only added, never renamed. A workflow that fails on purpose chooses its own."`
	// Errors are the places in the request or the workflow file that are wrong. They name places and rules, never the value sent.
	Errors     []FieldProblem `json:"errors,omitempty" doc:"The places that are wrong. Values are never repeated."`
	RequestID  string         `json:"request_id" doc:"Quote it when asking about this request."`
	TraceID    string         `json:"trace_id,omitempty" doc:"The trace of this request, when tracing is on."`
	RunID      *string        `json:"run_id" doc:"The run, when there is one: the problem is then the workflow's."`
	Retryable  bool           `json:"retryable" doc:"Whether the same request may succeed later."`
	FailedStep string         `json:"failed_step,omitempty" doc:"The node that made the run fail."`
	Error      *core.RunError `json:"error,omitempty" doc:"Why the run failed."`
}

// FieldProblem is one place in a request or workflow file that is wrong.
type FieldProblem struct {
	Pointer   string `json:"pointer,omitempty" doc:"JSON pointer (RFC 6901) into the body or the workflow file, as a URI fragment."`
	Parameter string `json:"parameter,omitempty" doc:"Name of a query parameter."`
	Header    string `json:"header,omitempty" doc:"Name of a request header."`
	Detail    string `json:"detail" doc:"What would be right."`
	File      string `json:"file,omitempty" doc:"Workflow file."`
	Line      int    `json:"line,omitempty" doc:"Line in the workflow file, from 1."`
	Column    int    `json:"column,omitempty" doc:"Column in the workflow file, from 1."`
	Excerpt   string `json:"excerpt,omitempty" doc:"The lines of the workflow file around the place."`
}

// Places that are not in a body are written into core.Field.Pointer with one of these before their name.
const (
	inQuery  = "?"
	inHeader = ":"
)

func fieldProblems(fields []core.Field) []FieldProblem {
	if len(fields) == 0 {
		return nil
	}
	out := make([]FieldProblem, len(fields))
	for i, f := range fields {
		p := FieldProblem{Detail: f.Detail, File: f.File, Line: f.Line, Column: f.Column, Excerpt: f.Excerpt}
		if name, ok := strings.CutPrefix(f.Pointer, inQuery); ok {
			p.Parameter = name
		} else if name, ok := strings.CutPrefix(f.Pointer, inHeader); ok {
			p.Header = name
		} else {
			p.Pointer = f.Pointer
		}
		out[i] = p
	}
	return out
}

// public returns an error whose public parts hold no key: they name what the caller has written, and callers write keys in the wrong places.
func public(e *core.Error) *core.Error {
	own := *e
	own.Message, own.Fields = redact(e.Message), slices.Clone(e.Fields)
	for i := range own.Fields {
		f := &own.Fields[i]
		f.Pointer, f.Detail, f.Excerpt = redact(f.Pointer), redact(f.Detail), redact(f.Excerpt)
	}
	return &own
}

// problemOf describes err for the caller and returns the code's kind with it, and the error with what may be said in public. Only a *core.Error has anything to say; of any
// other error, and of CodeInternal, the caller learns the request id.
func problemOf(err error) (Problem, kind, *core.Error) {
	var e *core.Error
	if !errors.As(err, &e) {
		e = core.Wrap(core.CodeInternal, err, "")
	}
	e = public(e)
	code := e.Code
	k, ok := kinds[code]
	if !ok {
		code, k = core.CodeInternal, kinds[core.CodeInternal]
	}
	p := Problem{Type: typeURI(code), Title: k.title, Status: k.status, Code: string(code), Retryable: k.retryable}
	if code != core.CodeInternal {
		p.Detail = e.Message
		p.Errors = fieldProblems(e.Fields)
	}
	return p, k, e
}

func typeURI(code core.Code) string { return problemBase + strings.ReplaceAll(string(code), "_", "-") }

// statusGone is what the log shows for a caller who went away before the answer, as other servers do: it must not count as our failure.
const statusGone = 499

// fail answers with err and runs no further handler. On the paths of an adapter it does so as that product would.
func (s *Server) fail(c *gin.Context, err error) {
	if answer := compat.Failure(adapters{s}, s.Compat, c.Request.URL.Path); answer != nil {
		answer(c, err)
		return
	}
	p, k, e := problemOf(err)
	s.setProblemHeaders(c.Writer.Header(), k, e)
	s.sendProblem(c, p, err)
}

func (s *Server) setProblemHeaders(h http.Header, k kind, e *core.Error) {
	if k.challenge != "" {
		h.Set("WWW-Authenticate", k.challenge)
	}
	setLimits(h, e.Limits)
	if wait := max(e.RetryAfter, k.after); wait > 0 {
		if k.status == http.StatusServiceUnavailable {
			// Spread over some seconds, or everyone who was refused together comes back together.
			wait += rand.N(4 * time.Second) //nolint:gosec // nothing depends on nobody guessing it
		}
		h.Set("Retry-After", strconv.Itoa(int((wait+time.Second-1)/time.Second)))
	}
}

// sendProblem completes and writes a problem.
func (s *Server) sendProblem(c *gin.Context, p Problem, cause error) {
	ctx := c.Request.Context()
	s.completeProblem(ctx, requestOf(ctx), &p, cause)
	s.send(c, p.Status, typeProblem, p)
	c.Abort()
}

// completeProblem fills in what is known of the request, and logs the cause when it is ours. A run's own failure has no cause: it is recorded with
// the run.
func (s *Server) completeProblem(ctx context.Context, req *request, p *Problem, cause error) {
	p.Instance = redact(req.c.Request.URL.Path)
	p.RequestID = req.origin.RequestID
	p.TraceID = req.origin.TraceID
	req.answer, req.chosen = core.Code(p.Code), p.Error != nil && p.Error.UserCode != "" && p.Code == p.Error.UserCode
	level, message := slog.LevelError, "request failed"
	switch {
	case cause == nil:
		return
	case ctx.Err() != nil && errors.Is(cause, context.Canceled):
		// Hardly anybody reads this answer.
		p.Status, req.answer = statusGone, ""
		p.Type, p.Title, p.Code = typeURI(core.CodeInvalidRequest), kinds[core.CodeInvalidRequest].title, string(core.CodeInvalidRequest)
		p.Detail = "the connection was closed for sending before there was an answer; keep it open until then"
		level, message = slog.LevelDebug, "the caller went away"
	case p.Status < http.StatusInternalServerError, req.answer == core.CodeDraining, req.answer == core.CodeOverloaded:
		// The last two are foreseen and come by the thousand; the access log and the metrics have them.
		level, message = slog.LevelDebug, "request refused"
	}
	times := int64(1)
	if outage := s.outages[req.answer]; outage != nil && level == slog.LevelError {
		// What is away is away for all requests, and each has its line in the access log.
		if times = outage.Happened(time.Now()); times == 0 {
			level = slog.LevelDebug
		}
	}
	if s.Logger.Enabled(ctx, level) {
		said := []slog.Attr{slog.String("request_id", p.RequestID), slog.String("code", p.Code), slog.String("error", redact(cause.Error()))}
		if times > 1 {
			said = append(said, slog.Int64("requests", times))
		}
		s.Logger.LogAttrs(ctx, level, message, said...)
	}
}

// send writes v as JSON. The writer gets a deadline, so that a caller that does not take the answer cannot hold the connection.
func (s *Server) send(c *gin.Context, status int, contentType string, v any) {
	body, _ := answers.Get().(*bytes.Buffer)
	body.Reset()
	if err := encodeJSON(body, v); err != nil {
		panic(err) // our own types always marshal
	}
	s.sendBytes(c, status, contentType, body.Bytes())
	if body.Cap() <= keptAnswer {
		answers.Put(body)
	}
}

// encodeJSON writes v and a line break, and leaves alone what only HTML minds: people read answers in terminals, and copy addresses out of them.
func encodeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// answers are buffers for answers, of which those of up to keptAnswer bytes are used again: nothing holds on to one that was sent.
var answers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

const keptAnswer = 64 << 10

func (s *Server) sendBytes(c *gin.Context, status int, contentType string, body []byte) {
	h := c.Writer.Header()
	h.Set("Content-Type", contentType)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	if h.Get("Cache-Control") == "" {
		h.Set("Cache-Control", "no-store")
	}
	_ = http.NewResponseController(c.Writer).SetWriteDeadline(time.Now().Add(s.WriteTimeout))
	c.Writer.WriteHeader(status)
	if c.Request.Method == http.MethodHead {
		c.Writer.WriteHeaderNow()
		return
	}
	_, _ = c.Writer.Write(body) // it fails when the caller has gone, which concerns nobody any more
}

// sendPart sends a part of an answer at once. Its reader has as long as for a whole one.
func (s *Server) sendPart(c *gin.Context, part []byte) error {
	control := http.NewResponseController(c.Writer)
	_ = control.SetWriteDeadline(time.Now().Add(s.WriteTimeout)) // a writer without deadlines needs none
	if _, err := c.Writer.Write(part); err != nil {
		return err
	}
	return control.Flush()
}
