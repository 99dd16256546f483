package compat

import (
	"encoding/json"
	"net/http"

	"github.com/gin-gonic/gin"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/trigger"
)

// miiflow answers clients of miiflow's agent_run. One key of an account runs every workflow (M4), which the body names (M1).
type miiflow struct{ Host }

func (m miiflow) routes() []Route {
	return []Route{{Method: http.MethodPost, Path: "/api/v1/agent_run", Trigger: true, Handle: answering(m, m.agentRun)}}
}

func (m miiflow) owns() []string { return []string{"/api/v1/agent_run"} }

type miiflowRun struct {
	RunID   string          `json:"run_id"`
	AgentID string          `json:"agent_id"`
	Status  core.RunStatus  `json:"status"`
	Output  json.RawMessage `json:"output"`
	Error   *codedError     `json:"error,omitempty"`
}

// agentRun reads the body before it knows the workflow, because the body names it; the sender is known first all the same.
func (m miiflow) agentRun(c *gin.Context) error {
	if err := m.Authenticate(c); err != nil {
		return err
	}
	// M3: the documented example repeats a name. The last one wins, as it did there, and the input is written anew so that
	// nothing after this sees another.
	body, err := readMembers(m, c, core.JSONLimits{RepeatedNames: true})
	if err != nil {
		return err
	}
	agent, ok := body.text("agent_id")
	if !ok || agent == "" {
		e := core.Errorf(core.CodeInvalidRequest, "agent_id must name a workflow: its id, its name or an alias")
		e.Fields = []core.Field{{Pointer: "#/agent_id", Detail: "must name a workflow"}}
		return e
	}
	t, err := m.Open(c, "miiflow", agent)
	if err != nil {
		return err
	}
	input, err := miiflowInput(t.Definition(), body)
	if err != nil {
		return err
	}
	r, err := run(m, c, t, trigger.Payload{Input: input})
	if err != nil {
		return err
	}
	m.Send(c, runStatus(m, r), typeJSON, miiflowRun{RunID: r.ID, AgentID: agent, Status: r.Status, Output: runOutput(r), Error: runError(r)}, nil)
	return nil
}

// miiflowInput returns the input (M2): an object, or a string that holds one, or any string for a workflow that takes a single text.
func miiflowInput(def *core.Definition, body members) (json.RawMessage, error) {
	text, isText := body.text("input")
	if err := body.misnamed([]string{"input"}, "output", "outputs"); err != nil {
		return nil, err
	}
	if !isText {
		input, err := body.object("input")
		if err != nil {
			return nil, err
		}
		return lastWins(input), nil
	}
	if core.CheckJSON([]byte(text), core.JSONLimits{RepeatedNames: true}) == nil {
		if input := lastWins(json.RawMessage(text)); len(input) > 0 && input[0] == '{' {
			return input, nil
		}
	}
	if name, ok := onlyText(def); ok {
		return single(name, text), nil
	}
	e := core.Errorf(core.CodeInvalidRequest, "input is a string that holds no JSON object, and the workflow does not take a single text")
	e.Fields = []core.Field{{Pointer: "#/input", Detail: "must be an object, or a string with a JSON object in it"}}
	return nil, e
}

// lastWins writes a JSON text anew with one member a name. Numbers keep their digits.
func lastWins(raw json.RawMessage) json.RawMessage {
	v, err := core.DecodeJSON(raw)
	if err != nil {
		return nil // the text was checked; this cannot be
	}
	out, err := json.Marshal(v)
	if err != nil {
		return nil
	}
	return out
}

func (m miiflow) fail(c *gin.Context, err error) {
	status, e := m.Status(err)
	m.Send(c, status, typeJSON, coded(e), err)
}
