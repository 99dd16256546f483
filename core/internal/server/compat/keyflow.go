package compat

import (
	"encoding/json"
	"net/http"
	"strings"

	"github.com/gin-gonic/gin"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/trigger"
)

// keyflow answers clients of Keyflow's API trigger. Its requests name no workflow: the key is made for one (K1).
type keyflow struct{ Host }

func (k keyflow) routes() []Route {
	return []Route{{Method: http.MethodPost, Path: "/api/trigger", Trigger: true, Handle: answering(k, k.trigger)}}
}

func (k keyflow) owns() []string { return []string{"/api/trigger"} }

// Keyflow's documents give no answer's shape. This one says what its users asked for: the run, how it ended, what came out (K6).
type keyflowRun struct {
	RunID  string          `json:"run_id"`
	Status core.RunStatus  `json:"status"`
	Output json.RawMessage `json:"output"`
	Error  *codedError     `json:"error,omitempty"`
}

func (k keyflow) trigger(c *gin.Context) error {
	t, err := k.Open(c, "keyflow", "")
	if err != nil {
		return err
	}
	m, err := readMembers(k, c, core.JSONLimits{})
	if err != nil {
		return err
	}
	if err := m.misnamed([]string{"inputs"}, "output", "outputs"); err != nil {
		return err
	}
	input, err := m.object("inputs") // K2: any names, spaces and all; the workflow's schema decides
	if err != nil {
		return err
	}
	r, err := run(k, c, t, trigger.Payload{Input: input})
	if err != nil {
		return err
	}
	k.Send(c, runStatus(k, r), typeJSON, keyflowRun{RunID: r.ID, Status: r.Status, Output: runOutput(r), Error: runError(r)}, nil)
	return nil
}

var keyflowWords = strings.NewReplacer("#/input/", "#/inputs/")

func (k keyflow) fail(c *gin.Context, err error) {
	status, e := k.Status(err)
	e = inWords(e, keyflowWords)
	if e.Code == core.CodeWorkflowDisabled {
		status = http.StatusForbidden // K4, K6: the API trigger of the workflow is switched off
	}
	k.Send(c, status, typeJSON, coded(e), err)
}
