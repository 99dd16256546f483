package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/gin-gonic/gin"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/trigger"
)

// Bounds of a run's metadata.
const (
	maxMetadata      = 50  // members
	maxMetadataName  = 64  // characters
	maxMetadataValue = 500 // characters
)

// Trigger is the body of a trigger request. All of it may be left out.
type Trigger struct {
	Input     json.RawMessage                       `json:"input,omitempty" doc:"The workflow's input; it must fit the workflow's input schema. Absent is an empty object."`
	Overrides map[string]map[string]json.RawMessage `json:"overrides,omitempty" doc:"Node id to config field to value. Only fields that the workflow's author lists in trigger.overrides."`
	Metadata  map[string]string                     `json:"metadata,omitempty" maxProperties:"50" doc:"Kept with the run and searchable: up to 50 names of up to 64 characters with values of up to 500."`
	Dedupe    *TriggerDedupe                        `json:"dedupe,omitempty" doc:"Makes runs for one thing exclude each other while one of them has not ended."`
	Callback  *TriggerCallback                      `json:"callback,omitempty" doc:"Who is told how the run ended, by a signed request (Standard Webhooks). Makes the run durable."`
	RunAfter  *time.Time                            `json:"run_after,omitempty" doc:"The run is not executed before this time, at most ten years ahead. Makes it durable."`
}

// TriggerDedupe is the dedupe of a trigger request.
type TriggerDedupe struct {
	Key    string `json:"key" minLength:"1" maxLength:"255" doc:"What the run is for, such as invoice-981. The scope is the workflow."`
	Policy string `json:"policy,omitempty" enum:"reject,use_existing,terminate_existing" default:"use_existing" doc:"What happens when a run with the key has not ended: 409, that run is the answer, or it is cancelled for this one. For a run that the caller may not read it is always 409."`
}

// TriggerCallback is the callback of a trigger request.
type TriggerCallback struct {
	URL    string   `json:"url" format:"uri" doc:"Must be among the destinations that the server allows."`
	Events []string `json:"events,omitempty" enum:"run.finished" doc:"What is told; run.finished is all there is."`
}

// maxRunAfter bounds how far ahead a run may be scheduled.
const maxRunAfter = 10 * 366 * 24 * time.Hour

// envelope are the members of a trigger's body, for suggestions.
var envelope = []string{"input", "overrides", "metadata", "dedupe", "callback", "run_after"}

// runWorkflow handles POST /v1/workflows/{workflow}/runs.
func (s *Server) runWorkflow(c *gin.Context) { s.run(c, c.Param("workflow")) }

// runBound handles POST /v1/trigger, for keys that are made for one workflow.
func (s *Server) runBound(c *gin.Context) { s.run(c, "") }

// open authenticates a trigger request and finds its workflow. Who may start a run is settled before the body is read.
func (s *Server) open(c *gin.Context, ref string) (*trigger.Ticket, error) {
	ctx := c.Request.Context()
	req := requestOf(ctx)
	if req.ambiguous != nil {
		return nil, s.Trigger.Refuse(ctx, req.origin, req.ambiguous)
	}
	attempt := trigger.Attempt{Credential: req.credential, Origin: req.origin, Workflow: ref, Place: req.place}
	attempt.Repeatable = len(c.Request.Header["Idempotency-Key"]) > 0 || req.hook && len(c.Request.Header["Webhook-Id"]) > 0
	attempt.Credential.Workflow = ref
	switch {
	case req.allowed: // by Authenticate, a moment ago
		attempt.Principal = &req.principal
	case req.c.Request.Header[headerAccount] != nil:
		p, err := s.principal(ctx, req)
		if err != nil {
			return nil, err
		}
		attempt.Principal = &p
	case req.credential.None():
		attempt.Principal = req.peer
	}
	if p := attempt.Principal; p != nil && p.Key != nil && p.Key.Account != p.Account {
		return nil, s.Trigger.RefuseKnown(ctx, *p, req.origin, core.Errorf(core.CodeInsufficientScope, "a key starts runs of its own account only; nobody's quota would be charged for these"))
	}
	ticket, err := s.Trigger.Open(ctx, attempt)
	if err != nil {
		return nil, req.misspelt(err)
	}
	req.accept(ticket.Principal)
	req.restrictPage(ticket.Origins())
	return ticket, nil
}

// noQuery refuses the parameters of a native trigger, which has none but for credentials, and those are taken out of the URL by now: whoever writes ?wait=30 wants something that would
// not happen. Webhooks and the other products' clients keep theirs.
func noQuery(u *url.URL) error {
	e := checkQuery(u, nil)
	var wrong *core.Error
	if !errors.As(e, &wrong) || len(wrong.Fields) == 0 {
		return e
	}
	detail := "is not a parameter of this route, which has none: the input goes into the body, and how long to wait into the header Prefer"
	if near := nearCredential(u); near != "" {
		detail = "is not a parameter of this route; did you mean " + near + "?"
	}
	wrong.Message, wrong.Fields[0].Detail = "a query parameter "+detail, detail
	return wrong
}

// runExisting is the header that tells a run which a dedupe key has found from one that the request has started.
const runExisting = "Keyfire-Run-Existing"

// asked is what a caller asks for who starts a run.
type asked struct {
	ticket  *trigger.Ticket
	payload trigger.Payload
	prefer  preference
	follow  bool
	after   int64 // the last event that a follower knows
}

// asked reads a request to run a workflow.
func (s *Server) asked(c *gin.Context, ref string) (a asked, err error) {
	ctx, header := c.Request.Context(), c.Request.Header
	if a.ticket, err = s.open(c, ref); err != nil {
		return a, err
	}
	if err := noQuery(c.Request.URL); err != nil {
		return a, err
	}
	if a.payload, err = s.payload(c, requestOf(ctx)); err != nil {
		return a, err
	}
	if a.payload.CallbackURL != "" {
		if err := s.Trigger.CheckCallback(ctx, a.ticket.Principal.Account, a.payload.CallbackURL); err != nil {
			return a, err
		}
	}
	a.prefer, a.follow = parsePrefer(header["Prefer"], s.MaxWait), wantsEvents(header["Accept"])
	if a.follow {
		a.after, err = lastEventID(header["Last-Event-Id"])
	}
	a.payload.Durable = a.prefer.asks() || a.follow
	return a, err
}

// run starts a run and answers when it has ended, or when the caller's patience has.
func (s *Server) run(c *gin.Context, ref string) {
	ctx := c.Request.Context()
	req := requestOf(ctx)
	asked, err := s.asked(c, ref)
	if err != nil {
		s.fail(c, err)
		return
	}
	begun, err := s.Trigger.Begin(ctx, asked.ticket, asked.payload)
	var existing *core.ExistingRun
	if errors.As(err, &existing) {
		c.Header("Keyfire-Run-Id", existing.ID)
		c.Header(runExisting, "true")
	}
	if err != nil {
		s.fail(c, err)
		return
	}
	req.runID = begun.RunID
	c.Header("Keyfire-Run-Id", begun.RunID)
	if begun.Deduped {
		c.Header(runExisting, "true")
	}
	if asked.follow {
		req.begun(ctx, begun)
	}
	setLimits(c.Writer.Header(), begun.Limits)
	if begun.Replayed {
		c.Header("Idempotency-Replayed", "true")
	} else {
		asked.after = 0 // of another run
	}
	asked.prefer.applied(c)
	if asked.follow {
		s.stream(c, begun.RunID, asked.after)
		return
	}
	result, err := s.await(ctx, begun, asked.prefer, asked.ticket.Definition().Trigger.Mode == core.ModeAsync || !asked.payload.RunAfter.IsZero())
	if err == nil {
		c.Header("Keyfire-Run-Status", string(result.Run.Status))
	}
	switch {
	case err != nil:
		s.failAdmitted(c, err)
	case result.Run.Status == core.RunSucceeded:
		s.send(c, http.StatusOK, "application/json", runBody(result.Run))
	case result.Run.Error != nil:
		s.answerFailure(c, result.Run)
	case !result.Run.Status.Terminal():
		c.Header("Location", "/v1/runs/"+result.Run.ID)
		c.Header("Retry-After", "1")
		s.send(c, http.StatusAccepted, "application/json", runBody(result.Run))
	default:
		s.fail(c, errors.New("run "+result.Run.ID+" ended "+string(result.Run.Status)+" without an error"))
	}
}

// await waits for a run as long as its caller wants to. An inline run that this request started is waited for to its end, which its deadline bounds.
func (s *Server) await(ctx context.Context, begun *trigger.Begun, prefer preference, async bool) (trigger.Result, error) {
	if !begun.Durable && !prefer.asks() {
		return begun.Wait(ctx)
	}
	wait := s.patience(prefer, async)
	if wait <= 0 {
		run, err := begun.Now(ctx)
		return trigger.Result{Run: run, Replayed: begun.Replayed}, err
	}
	limited, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	result, err := begun.Wait(limited)
	if err != nil && ctx.Err() == nil && limited.Err() != nil {
		result.Run, err = begun.Now(ctx) // an inline run, joined by a request that waits less
	}
	return result, err
}

// failAdmitted answers that it cannot be said how a run ended that this request has started.
func (s *Server) failAdmitted(c *gin.Context, err error) {
	p, k, _ := problemOf(err)
	p.RunID, p.Retryable = &requestOf(c.Request.Context()).runID, false
	s.setProblemHeaders(c.Writer.Header(), k.admitted(), &core.Error{})
	s.sendProblem(c, p, err)
}

// answerFailure answers with a run that has ended, but not well. A workflow that fails on purpose chooses status and code.
func (s *Server) answerFailure(c *gin.Context, run *core.Run) {
	e := run.Error
	k, ok := kinds[e.Code]
	if !ok {
		e = &core.RunError{Code: core.CodeRunFailed, Class: e.Class, Message: e.Message, Step: e.Step, Retryable: e.Retryable, Status: e.Status, UserCode: e.UserCode}
		k = kinds[core.CodeRunFailed]
	}
	p := Problem{
		Type: typeURI(e.Code), Title: k.title, Status: k.status, Code: string(e.Code), Detail: e.Message, RunID: &run.ID,
		Retryable: e.Retryable, FailedStep: e.Step, Error: e,
	}
	if e.Status >= 400 && e.Status <= 599 {
		p.Status, p.Title = e.Status, "The workflow failed on purpose"
		if e.UserCode != "" {
			p.Code = e.UserCode
		}
	}
	s.sendProblem(c, p, nil)
}

// payload reads what a trigger request carries.
func (s *Server) payload(c *gin.Context, req *request) (trigger.Payload, error) {
	var p trigger.Payload
	var err error
	h := c.Request.Header
	if p.IdempotencyKey, err = idempotencyKey(h["Idempotency-Key"]); err != nil {
		return p, err
	}
	body, err := s.readJSON(c, req)
	if err != nil || body == nil {
		return p, err
	}
	if !isObject(body) {
		return p, invalidField(core.CodeInvalidRequest, "#", `must be an object such as {"input": {...}}`)
	}
	for name, value := range core.JSONMembers(body) {
		switch name {
		case "input":
			p.Input = value
		case "overrides":
			p.Overrides, err = decodeOverrides(value)
		case "metadata":
			p.Metadata, err = decodeMetadata(value)
		case "dedupe":
			p.Dedupe, err = decodeDedupe(value)
		case "callback":
			p.CallbackURL, err = decodeCallback(value)
		case "run_after":
			p.RunAfter, err = decodeRunAfter(value, s.Now())
		default:
			return p, unknownField("#", name, envelope)
		}
		if err != nil {
			return p, err
		}
	}
	return p, nil
}

var null = []byte("null")

func decodeOverrides(raw json.RawMessage) (map[string]map[string]json.RawMessage, error) {
	const detail = "must be an object of objects: node id, then field, then value"
	if bytes.Equal(raw, null) {
		return nil, nil
	}
	if !isObject(raw) {
		return nil, invalidField(core.CodeInvalidRequest, "#/overrides", detail)
	}
	overrides := make(map[string]map[string]json.RawMessage)
	for node, fields := range core.JSONMembers(raw) {
		if !isObject(fields) {
			return nil, invalidField(core.CodeInvalidRequest, "#/overrides/"+core.EscapePointer(clip(node)), detail)
		}
		overrides[node] = maps.Collect(core.JSONMembers(fields))
	}
	return overrides, nil
}

// nul cannot be kept as text by PostgreSQL, so it is taken nowhere: what a file keeps must be able to move there.
const (
	nul        = "\x00"
	withoutNUL = "must not contain the character U+0000"
)

func decodeMetadata(raw json.RawMessage) (map[string]string, error) {
	if bytes.Equal(raw, null) {
		return nil, nil
	}
	if !isObject(raw) {
		return nil, invalidField(core.CodeInvalidRequest, "#/metadata", "must be an object of strings")
	}
	metadata := make(map[string]string)
	for name, value := range core.JSONMembers(raw) {
		at := "#/metadata/" + core.EscapePointer(clip(name))
		var text string
		switch {
		case len(metadata) == maxMetadata:
			return nil, invalidField(core.CodeInvalidRequest, "#/metadata", "must have at most 50 members")
		case name == "" || utf8.RuneCountInString(name) > maxMetadataName:
			return nil, invalidField(core.CodeInvalidRequest, at, "must have a name of 1 to 64 characters")
		case value[0] != '"' || json.Unmarshal(value, &text) != nil:
			return nil, invalidField(core.CodeInvalidRequest, at, "must be a string")
		case utf8.RuneCountInString(text) > maxMetadataValue:
			return nil, invalidField(core.CodeInvalidRequest, at, "must have at most 500 characters")
		case strings.Contains(text, nul):
			return nil, invalidField(core.CodeInvalidRequest, at, withoutNUL)
		}
		metadata[name] = text
	}
	return metadata, nil
}

// clip bounds a name that a caller made up, for use in an answer.
func clip(name string) string {
	return redact(core.Clip(name))
}

// idempotencyKey reads the header: a structured-field string or, as many clients send it, the bare token.
func idempotencyKey(values []string) (string, error) {
	wrong := func(detail string) (string, error) {
		return "", invalidField(core.CodeInvalidRequest, inHeader+"Idempotency-Key", detail)
	}
	switch len(values) {
	case 0:
		return "", nil
	case 1:
	default:
		return wrong("must be sent once")
	}
	key := values[0]
	if quoted, ok := strings.CutPrefix(key, `"`); ok {
		var b strings.Builder
		for {
			i := strings.IndexAny(quoted, `"\`)
			if i < 0 || quoted[i] == '\\' && (i+1 == len(quoted) || quoted[i+1] != '"' && quoted[i+1] != '\\') {
				return wrong("must end with the double quote it starts with")
			}
			b.WriteString(quoted[:i])
			if quoted[i] == '"' {
				quoted = quoted[i+1:]
				break
			}
			b.WriteByte(quoted[i+1])
			quoted = quoted[i+2:]
		}
		if quoted != "" {
			return wrong("must be one string, without parameters")
		}
		key = b.String()
	}
	if len(key) < 1 || len(key) > 255 {
		return wrong("must have 1 to 255 characters")
	}
	for i := range len(key) {
		if key[i] <= ' ' || key[i] > '~' {
			return wrong("must be visible ASCII")
		}
	}
	return key, nil
}

// decodeMember decodes a member of the body that is an object, which may be null.
func decodeMember(name string, raw json.RawMessage, v any) error {
	if !isObject(raw) {
		return invalidField(core.CodeInvalidRequest, "#/"+name, "must be an object")
	}
	err := decodeObject(raw, v)
	var e *core.Error
	if errors.As(err, &e) {
		for i := range e.Fields {
			e.Fields[i].Pointer = strings.TrimSuffix("#/"+name+strings.TrimPrefix(e.Fields[i].Pointer, "#"), "/")
		}
		if e.Code == core.CodeInvalidInput && len(e.Fields) > 0 { // which is about the workflow's input here
			return invalidField(core.CodeInvalidRequest, e.Fields[0].Pointer, e.Fields[0].Detail)
		}
	}
	return err
}

func decodeDedupe(raw json.RawMessage) (*core.Dedupe, error) {
	if bytes.Equal(raw, null) {
		return nil, nil
	}
	var d TriggerDedupe
	if err := decodeMember("dedupe", raw, &d); err != nil {
		return nil, err
	}
	if n := utf8.RuneCountInString(d.Key); n < 1 || n > 255 {
		return nil, invalidField(core.CodeInvalidRequest, "#/dedupe/key", "must have 1 to 255 characters")
	}
	if strings.Contains(d.Key, nul) {
		return nil, invalidField(core.CodeInvalidRequest, "#/dedupe/key", withoutNUL)
	}
	switch d.Policy {
	case "":
		d.Policy = core.DedupeUseExisting
	case core.DedupeReject, core.DedupeUseExisting, core.DedupeTerminateExisting:
	default:
		return nil, invalidField(core.CodeInvalidRequest, "#/dedupe/policy", "must be reject, use_existing or terminate_existing")
	}
	return &core.Dedupe{Key: d.Key, Policy: d.Policy}, nil
}

func decodeCallback(raw json.RawMessage) (string, error) {
	if bytes.Equal(raw, null) {
		return "", nil
	}
	var cb TriggerCallback
	if err := decodeMember("callback", raw, &cb); err != nil {
		return "", err
	}
	if cb.URL == "" || len(cb.URL) > 2048 {
		return "", invalidField(core.CodeInvalidRequest, "#/callback/url", "must be a URL of at most 2048 characters")
	}
	// A list without an event would be a callback that is told nothing, and not one that is told everything.
	if cb.Events != nil && len(cb.Events) == 0 || slices.ContainsFunc(cb.Events, func(e string) bool { return e != core.EventRunFinished }) {
		return "", invalidField(core.CodeInvalidRequest, "#/callback/events", "must be run.finished, or left out")
	}
	return cb.URL, nil
}

func decodeRunAfter(raw json.RawMessage, now time.Time) (time.Time, error) {
	var t time.Time
	switch {
	case bytes.Equal(raw, null):
		return t, nil
	case raw[0] != '"' || json.Unmarshal(raw, &t) != nil:
		return t, invalidField(core.CodeInvalidRequest, "#/run_after", `must be a time such as "2026-12-31T23:59:59Z"`)
	case t.Sub(now) > maxRunAfter:
		return t, invalidField(core.CodeInvalidRequest, "#/run_after", "must be at most ten years ahead")
	}
	return t.UTC(), nil
}
