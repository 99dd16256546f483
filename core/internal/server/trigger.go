package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
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
}

// statusGone is what the log shows for a caller who went away before the answer, as other servers do.
const statusGone = 499

// envelope are the members of a trigger's body, for suggestions.
var envelope = []string{"input", "overrides", "metadata"}

// notYet are members that are documented for later servers. Ignoring one would start a run that does something else than asked.
var notYet = map[string]string{
	"dedupe":    "dedupe is not supported by this server yet; an Idempotency-Key header makes a repeated request find the first one's run",
	"callback":  "callback is not supported by this server yet; the answer to this request carries the result",
	"run_after": "run_after is not supported by this server yet; send the request when the run is due",
}

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
	attempt := trigger.Attempt{Credential: req.credential, Origin: req.origin, Workflow: ref}
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
		return nil, err
	}
	req.accept(ticket.Principal)
	return ticket, nil
}

// run starts a run and answers when it has ended.
func (s *Server) run(c *gin.Context, ref string) {
	ctx := c.Request.Context()
	req := requestOf(ctx)
	ticket, err := s.open(c, ref)
	if err != nil {
		s.fail(c, err)
		return
	}
	payload, err := s.payload(c, req)
	if err != nil {
		s.fail(c, err)
		return
	}
	begun, err := s.Trigger.Begin(ctx, ticket, payload)
	if err != nil {
		s.failRun(c, nil, err)
		return
	}
	req.runID = begun.RunID
	c.Header("Keyfire-Run-Id", begun.RunID)
	if begun.Replayed {
		c.Header("Idempotency-Replayed", "true")
	}
	result, err := begun.Wait(ctx)
	if err == nil {
		c.Header("Keyfire-Run-Status", string(result.Run.Status))
	}
	switch {
	case err != nil:
		s.failRun(c, result.Run, err)
	case result.Run.Status == core.RunSucceeded:
		s.send(c, http.StatusOK, "application/json", runBody(result.Run))
	case result.Run.Error != nil:
		s.answerFailure(c, result.Run)
	case !result.Run.Status.Terminal():
		// The run of an earlier request with the same Idempotency-Key, which another server executes.
		c.Header("Location", "/v1/runs/"+result.Run.ID)
		c.Header("Retry-After", "1")
		s.send(c, http.StatusAccepted, "application/json", runBody(result.Run))
	default:
		s.fail(c, errors.New("run "+result.Run.ID+" ended "+string(result.Run.Status)+" without an error"))
	}
}

// failRun answers an error of Start, which may come after the run was admitted.
func (s *Server) failRun(c *gin.Context, run *core.Run, err error) {
	if ctx := c.Request.Context(); ctx.Err() != nil && errors.Is(err, context.Canceled) {
		// Nobody reads this answer. It is for the log, where it must not count as our failure; the run goes on.
		c.Status(statusGone)
		c.Abort()
		return
	}
	p, k, e := problemOf(err)
	if run != nil {
		p.RunID = &run.ID
		p.Retryable = false // the run exists: sending the request again would start another one
		k.after, e = 0, &core.Error{Code: e.Code}
	}
	s.setProblemHeaders(c.Writer.Header(), k, e)
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
	if asksAsync(h["Prefer"]) {
		return p, invalidField(core.CodeNotSupported, inHeader+"Prefer", "respond-async is not supported by this server yet; without it, the answer comes when the run has ended")
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
		default:
			if detail, ok := notYet[name]; ok {
				e := core.Errorf(core.CodeNotSupported, "%s", detail)
				e.Fields = []core.Field{{Pointer: "#/" + name, Detail: detail}}
				return p, e
			}
			return p, unknownField(name, envelope)
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
			return nil, invalidField(core.CodeInvalidRequest, "#/overrides/"+pointerEscaper.Replace(clip(node)), detail)
		}
		overrides[node] = make(map[string]json.RawMessage)
		for field, value := range core.JSONMembers(fields) {
			overrides[node][field] = value
		}
	}
	return overrides, nil
}

func decodeMetadata(raw json.RawMessage) (map[string]string, error) {
	if bytes.Equal(raw, null) {
		return nil, nil
	}
	if !isObject(raw) {
		return nil, invalidField(core.CodeInvalidRequest, "#/metadata", "must be an object of strings")
	}
	metadata := make(map[string]string)
	for name, value := range core.JSONMembers(raw) {
		at := "#/metadata/" + pointerEscaper.Replace(clip(name))
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
		}
		metadata[name] = text
	}
	return metadata, nil
}

// clip bounds a name that a caller made up, for use in an answer.
func clip(name string) string {
	const longest = 64
	if len(name) > longest {
		name = strings.ToValidUTF8(name[:longest], "") + "..."
	}
	return redact(name)
}

// idempotencyKey reads the header: a structured-field string or, as many clients send it, the bare token.
func idempotencyKey(values []string) (string, error) {
	wrong := func(detail string) (string, error) {
		e := core.Errorf(core.CodeInvalidRequest, "Idempotency-Key %s", detail)
		e.Fields = []core.Field{{Pointer: inHeader + "Idempotency-Key", Detail: detail}}
		return "", e
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

// asksAsync reports whether the caller prefers an answer before the run has ended. Other preferences (RFC 7240) are not applied, which the absence of
// Preference-Applied tells; this one is refused, because whoever sends it may hang up before the answer and with it lose the run's id.
func asksAsync(values []string) bool {
	for _, v := range values {
		for pref := range strings.SplitSeq(v, ",") {
			name, _, _ := strings.Cut(pref, ";")
			name, _, _ = strings.Cut(name, "=")
			if strings.EqualFold(strings.TrimSpace(name), "respond-async") {
				return true
			}
		}
	}
	return false
}
