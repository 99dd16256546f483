package compat

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/gin-gonic/gin"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/trigger"
)

// langflow answers clients of Langflow, of the API its old documents show (process, L1 to L5, L10, L11) and of the one its users run today (run and
// webhook, L12, L13). A flow is a workflow, by id, name or alias; tweaks are overrides.
type langflow struct{ Host }

func (l langflow) routes() []Route {
	post := func(path string, starts bool, handle func(*gin.Context) error) Route {
		return Route{Method: http.MethodPost, Path: path, Trigger: starts, Handle: answering(l, handle)}
	}
	return []Route{
		post("/api/v1/process/:workflow", true, l.process),
		post("/api/v1/run/:workflow", true, l.run),
		post("/api/v1/webhook/:workflow", true, l.webhook),
		post("/api/v1/process", false, l.noFlow),
		post("/api/v1/run", false, l.noFlow),
		post("/api/v1/webhook", false, l.noFlow),
		{Method: http.MethodGet, Path: "/api/v1/task/:run", Handle: answering(l, l.task)},
	}
}

func (l langflow) owns() []string {
	return []string{"/api/v1/process", "/api/v1/run", "/api/v1/webhook", "/api/v1/task"}
}

// langflowProcess is the answer of process (L10).
type langflowProcess struct {
	Result    json.RawMessage `json:"result"`
	Task      *langflowTask   `json:"task"`
	SessionID *string         `json:"session_id"`
	Backend   *string         `json:"backend"`
}

type langflowTask struct {
	ID   string `json:"id"`
	Href string `json:"href"`
}

// langflowRun is the answer of run (L12).
type langflowRun struct {
	SessionID string            `json:"session_id"`
	Outputs   []langflowOutputs `json:"outputs"`
}

type langflowOutputs struct {
	Inputs  json.RawMessage  `json:"inputs"`
	Outputs []langflowOutput `json:"outputs"`
}

type langflowOutput struct {
	Results              map[string]any `json:"results"`
	ComponentID          string         `json:"component_id"`
	ComponentDisplayName string         `json:"component_display_name"`
}

type langflowError struct {
	Detail string `json:"detail"`
}

// noFlow answers a path without a flow, which a client with an empty variable sends.
func (l langflow) noFlow(c *gin.Context) error {
	l.Send(c, http.StatusNotFound, typeJSON, langflowError{"Flow identifier is missing from the path"}, nil)
	return nil
}

// open finds the flow and reads the body.
func (l langflow) open(c *gin.Context) (*trigger.Ticket, members, error) {
	t, err := l.Open(c, "langflow", c.Param("workflow"))
	if err != nil {
		return nil, nil, err
	}
	m, err := readMembers(l, c, core.JSONLimits{})
	return t, m, err
}

// process handles the API of the old documents: inputs, tweaks, and sync to say whether to wait.
func (l langflow) process(c *gin.Context) error {
	t, m, err := l.open(c)
	if err != nil {
		return err
	}
	p, err := langflowPayload(t.Definition(), m)
	if err != nil {
		return err
	}
	if p.Variables, err = langflowVariables(c.Request.Header); err != nil {
		return err
	}
	answer := langflowProcess{}
	if answer.SessionID, err = m.optionalText("session_id"); err != nil {
		return err
	}
	sync := strings.Trim(string(m["sync"]), `"`)
	if sync == "null" {
		sync = ""
	}
	waits, err := yes("sync", sync, true)
	if err != nil {
		return err
	}
	if !waits {
		p.Durable = true // a task is a promise, so it survives the server
		begun, err := l.Begin(c, t, p)
		if err != nil {
			return err
		}
		answer.Task = &langflowTask{ID: begun.RunID, Href: "/api/v1/task/" + begun.RunID}
		l.Send(c, http.StatusOK, typeJSON, answer, nil)
		return nil
	}
	r, err := run(l, c, t, p)
	if err != nil {
		return err
	}
	answer.Result = r.Output
	l.ended(c, r, answer)
	return nil
}

// task tells how a run that was not waited for goes (L11).
func (l langflow) task(c *gin.Context) error {
	r, err := l.Run(c, c.Param("run"))
	if err != nil {
		return err
	}
	answer := struct {
		Status string          `json:"status"`
		Result json.RawMessage `json:"result"`
		Error  *string         `json:"error,omitempty"`
	}{Status: "PENDING"}
	switch {
	case r.Status == core.RunSucceeded:
		answer.Status, answer.Result = "SUCCESS", r.Output
	case r.Status.Terminal():
		text := failure(r)
		answer.Status, answer.Error = "FAILURE", &text
	}
	l.Send(c, http.StatusOK, typeJSON, answer, nil)
	return nil
}

// run handles today's API. It also takes the body of the old one, which documents went on showing at the new path (L3).
func (l langflow) run(c *gin.Context) error {
	t, err := l.Open(c, "langflow", c.Param("workflow"))
	if err != nil {
		return err
	}
	// Langflow's body is optional here, and a flow without an input is run by a bare POST.
	m, err := optionalMembers(l, c)
	if err != nil {
		return err
	}
	p, err := langflowPayload(t.Definition(), m)
	if err != nil {
		return err
	}
	stream, err := yes("stream", c.Query("stream"), false)
	if err != nil {
		return err
	}
	asked, err := m.optionalText("session_id")
	if err != nil {
		return err
	}
	if p.Variables, err = langflowVariables(c.Request.Header); err != nil {
		return err
	}
	begun, err := l.Begin(c, t, p)
	if err != nil {
		return err
	}
	session := begun.RunID // one of its own, as Langflow makes one up
	if asked != nil {
		session = *asked
	}
	if stream {
		l.stream(c, t.Definition(), begun, p, session)
		return nil
	}
	r, err := wait(c, begun)
	if err != nil {
		return err
	}
	l.ended(c, r, langflowAnswer(t.Definition(), r, session))
	return nil
}

// yes reads a switch the way Langflow's framework does. Clients in Python send True.
func yes(name, text string, absent bool) (bool, error) {
	switch strings.ToLower(text) {
	case "":
		return absent, nil
	case "true", "1", "yes", "on", "t", "y":
		return true, nil
	case "false", "0", "no", "off", "f", "n":
		return false, nil
	}
	return false, wrong(core.CodeInvalidRequest, name, "must be true or false")
}

// stream answers as Langflow streams: JSON objects with an empty line between them, and not the framing that the media type stands for. A run has one
// message, at its end.
func (l langflow) stream(c *gin.Context, def *core.Definition, begun *trigger.Begun, p trigger.Payload, session string) {
	type event struct {
		Event string `json:"event"`
		Data  any    `json:"data"`
	}
	c.Header("Content-Type", typeEvents)
	c.Header("Cache-Control", "no-store")
	c.Header("X-Accel-Buffering", "no")                            // or nginx keeps the first message until the last
	if h := c.Writer.Header(); h.Get("Keyfire-Run-Status") == "" { // else it was queued
		h.Set("Keyfire-Run-Status", string(core.RunRunning))
	}
	c.Status(http.StatusOK)
	send := func(name string, data any) {
		raw, err := json.Marshal(event{name, data})
		if err != nil {
			return // strings and raw JSON always marshal
		}
		_ = l.SendPart(c, append(raw, "\n\n"...)) // it fails when the caller has gone, and the run is not theirs alone
	}
	if text := messageOf(p.Input); text != "" {
		send("add_message", map[string]any{"sender": "User", "sender_name": "User", "text": text, "session_id": session})
	}
	r, err := wait(c, begun)
	switch {
	case err != nil:
		_, e := l.Status(err)
		send("error", map[string]any{"error": detail(e)})
	case r.Status != core.RunSucceeded:
		send("error", map[string]any{"error": failure(r), "run_id": r.ID})
	default:
		send("add_message", map[string]any{"sender": "Machine", "sender_name": "AI", "text": messageOf(r.Output), "session_id": session})
		send("end", map[string]any{"result": langflowAnswer(def, r, session)})
	}
}

// webhook starts a run on whatever it is sent and answers at once (L13). Unlike Langflow's, its answer names the run.
func (l langflow) webhook(c *gin.Context) error {
	t, err := l.Open(c, "langflow", c.Param("workflow"))
	if err != nil {
		return err
	}
	body, err := l.Body(c)
	if err != nil {
		return err
	}
	if len(bytes.TrimSpace(body)) == 0 {
		return core.Errorf(core.CodeInvalidRequest, "Request body is empty. You should provide a JSON payload containing the flow ID.")
	}
	variables, err := langflowVariables(c.Request.Header)
	if err != nil {
		return err
	}
	begun, err := l.Begin(c, t, trigger.Payload{Input: webhookInput(t.Definition(), body), Variables: variables, Durable: true})
	if err != nil {
		return err
	}
	c.Header("Location", "/v1/runs/"+begun.RunID)
	l.Send(c, http.StatusAccepted, typeJSON, map[string]string{
		"message": "Task started in the background", "status": "in progress", "run_id": begun.RunID,
	}, nil)
	return nil
}

// Bounds of the variables of a request.
const (
	langflowVariable  = "X-Langflow-Global-Var-"
	maxVariables      = 50
	maxVariableLength = 4 << 10 // bytes
)

// langflowVariables reads the headers X-LANGFLOW-GLOBAL-VAR-<NAME> (L12). Header names have no case, so a variable's name is in upper case, as Langflow has it. What a
// header holds may be a secret, so an error says its name only.
func langflowVariables(h http.Header) (map[string]string, error) {
	var all map[string]string
	for header, values := range h {
		name, ok := strings.CutPrefix(header, langflowVariable)
		if !ok {
			continue
		}
		name = strings.ToUpper(name)
		switch {
		case name == "" || len(name) > 64 || strings.Trim(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") != "":
			return nil, core.Errorf(core.CodeInvalidRequest, "the name after %s must have 1 to 64 letters, digits, _ or -", langflowVariable)
		case len(values) > 1:
			return nil, core.Errorf(core.CodeInvalidRequest, "the variable %s must be sent once", name)
		case len(values[0]) > maxVariableLength || !utf8.ValidString(values[0]):
			return nil, core.Errorf(core.CodeInvalidRequest, "the variable %s must be a text of at most %d bytes", name, maxVariableLength)
		case len(all) == maxVariables:
			return nil, core.Errorf(core.CodeInvalidRequest, "at most %d variables can be sent", maxVariables)
		}
		if all == nil {
			all = make(map[string]string)
		}
		all[name] = values[0]
	}
	return all, nil
}

// webhookInput is the body when it is an object; anything else is given to the workflow's single text, or as member "payload".
func webhookInput(def *core.Definition, body []byte) json.RawMessage {
	name, isText := onlyText(def)
	valid := core.CheckJSON(body, core.JSONLimits{}) == nil
	switch {
	case valid && bytes.TrimSpace(body)[0] == '{':
		return body
	case isText:
		return single(name, textOf(body))
	case valid:
		return single("payload", json.RawMessage(body))
	}
	return single("payload", textOf(body))
}

// textOf is a body as a text: itself, or its base64 when it is none, as on our own route.
func textOf(body []byte) string {
	if utf8.Valid(body) {
		return string(body)
	}
	return base64.StdEncoding.EncodeToString(body)
}

// langflowOthers are members of a request that are no input.
var langflowOthers = []string{"input_type", "output", "outputs", "output_type", "output_component"}

// langflowPayload reads inputs or input_value, and tweaks.
func langflowPayload(def *core.Definition, m members) (trigger.Payload, error) {
	var p trigger.Payload
	err := m.misnamed([]string{"inputs", "input_value"}, langflowOthers...)
	if err == nil {
		err = m.misnamed([]string{"tweaks"}) // never silent (L5)
	}
	if err != nil {
		return p, err
	}
	if _, old := m["inputs"]; old {
		p.Input, err = m.object("inputs")
	} else {
		p.Input, err = chatInput(def, m)
	}
	if err != nil {
		return p, err
	}
	tweaks, err := m.object("tweaks")
	if err != nil {
		return p, err
	}
	p.Overrides, err = overrides(def, tweaks)
	return p, err
}

// chatInput gives input_value to the workflow: under its own name when the schema declares that (and then the other members of the request that it
// declares too), else to its only text. A workflow without a schema gets input_value.
func chatInput(def *core.Definition, m members) (json.RawMessage, error) {
	value, given := m["input_value"]
	if given && (len(value) == 0 || value[0] != '"' && string(value) != "null") {
		return nil, wrong(core.CodeInvalidRequest, "input_value", "must be a string")
	}
	types := properties(def)
	if name, ok := onlyText(def); ok && name != "input_value" {
		if !given || string(value) == "null" {
			value = json.RawMessage(`""`)
		}
		return single(name, value), nil
	}
	input := map[string]json.RawMessage{}
	for _, name := range []string{"input_value", "input_type", "output_type", "output_component", "session_id"} {
		_, declared := types[name]
		if v, sent := m[name]; sent && (declared || len(types) == 0 && name == "input_value") {
			input[name] = v
		}
	}
	return json.Marshal(input)
}

// overrides turns tweaks into overrides (L5): node to fields as they are, and a field at the top level for every node whose author lets it be
// overridden. Nothing is dropped: a top-level field that no node takes is refused under the name it was sent with.
func overrides(def *core.Definition, tweaks json.RawMessage) (map[string]map[string]json.RawMessage, error) {
	var all map[string]json.RawMessage
	if err := json.Unmarshal(tweaks, &all); err != nil || len(all) == 0 {
		return nil, err
	}
	out := map[string]map[string]json.RawMessage{}
	set := func(node, field string, value json.RawMessage) {
		if out[node] == nil {
			out[node] = map[string]json.RawMessage{}
		}
		out[node][field] = value
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		value := all[name]
		if value[0] == '{' {
			var fields map[string]json.RawMessage
			if err := json.Unmarshal(value, &fields); err != nil {
				return nil, err
			}
			if out[name] == nil {
				out[name] = make(map[string]json.RawMessage, len(fields)) // also without fields, so that a node that there is not is told
			}
			maps.Copy(out[name], fields)
			continue
		}
		taken := false
		for _, listed := range def.Trigger.Overrides {
			if node, field, _ := strings.Cut(listed, "."); field == name {
				set(node, field, value)
				taken = true
			}
		}
		if !taken {
			e := core.Errorf(core.CodeOverrideNotAllowed, "%s may not be overridden by callers; the workflow's author lists what may in trigger.overrides", core.Clip(name))
			e.Fields = []core.Field{{Pointer: "#/tweaks/" + core.EscapePointer(core.Clip(name)), Detail: "not on the workflow's list of overrides"}}
			return nil, e
		}
	}
	return out, nil
}

// langflowAnswer is a run in the shape of L12.
func langflowAnswer(def *core.Definition, r *core.Run, session string) langflowRun {
	component := def.Nodes[len(def.Nodes)-1].ID // there is one at least
	return langflowRun{SessionID: session, Outputs: []langflowOutputs{{
		Inputs: single("input_value", messageOf(r.Input)),
		Outputs: []langflowOutput{{
			Results: map[string]any{
				"message": map[string]any{"text": messageOf(r.Output), "data": r.Output, "session_id": session},
			},
			ComponentID: component, ComponentDisplayName: component,
		}},
	}}}
}

// messageOf finds the text in a value: itself, or its member of a usual name, or its only text. Otherwise it is the value as JSON.
func messageOf(raw json.RawMessage) string {
	var text string
	if json.Unmarshal(raw, &text) == nil {
		return text
	}
	var object map[string]json.RawMessage
	if json.Unmarshal(raw, &object) == nil {
		for _, name := range []string{"text", "message", "input_value", "output", "result"} {
			if json.Unmarshal(object[name], &text) == nil {
				return text
			}
		}
		if len(object) == 1 {
			for _, v := range object {
				if json.Unmarshal(v, &text) == nil {
					return text
				}
			}
		}
	}
	return string(raw)
}

// ended answers a run that has ended, with the answer when it succeeded.
func (l langflow) ended(c *gin.Context, r *core.Run, answer any) {
	if r.Status != core.RunSucceeded {
		answer = langflowError{failure(r)}
	}
	l.Send(c, runStatus(l, r), typeJSON, answer, nil)
}

var langflowWords = strings.NewReplacer("#/input/", "#/inputs/", "#/overrides/", "#/tweaks/")

// fail answers in Langflow's words (L6, L7). Another owner's flow and one that does not exist are one answer: whoever is told the
// difference learns what others have.
func (l langflow) fail(c *gin.Context, err error) {
	status, e := l.Status(err)
	if strings.HasPrefix(c.FullPath(), "/api/v1/webhook/") {
		e = inWords(e, bodyWords)
	} else {
		e = inWords(e, langflowWords)
	}
	text := detail(e)
	switch e.Code {
	case core.CodeUnauthenticated:
		status, text = http.StatusForbidden, "An API key must be passed as query or header"
	case core.CodeInvalidKey, core.CodeKeyExpired, core.CodeKeyRevoked, core.CodeKeyDisabled:
		status, text = http.StatusForbidden, "Invalid or missing API key"
	case core.CodeInsufficientScope:
		text = "You do not have permission to run this flow"
	case core.CodeNotFound:
		if param(c, "workflow") != "" {
			status, text = http.StatusForbidden, "You do not have permission to run this flow"
		}
	case core.CodeInvalidInput:
		status = http.StatusBadRequest
	}
	l.Send(c, status, typeJSON, langflowError{text}, err)
}
