package compat

import (
	"encoding/json"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/trigger"
)

// bifrost answers clients of Bifrost's workflow endpoints. The body is the input itself (B1).
type bifrost struct{ Host }

const (
	bifrostEndpoints = "/api/endpoints"
	bifrostKeys      = "/api/workflow-keys"
)

func (b bifrost) routes() []Route {
	return append(b.keyRoutes(), Route{Method: http.MethodPost, Path: bifrostEndpoints + "/:workflow", Trigger: true, Handle: answering(b, b.execute)})
}

func (b bifrost) owns() []string { return []string{bifrostEndpoints, bifrostKeys} }

type bifrostRun struct {
	ExecutionID string          `json:"execution_id"`
	Status      string          `json:"status"`
	Message     *string         `json:"message"`
	Result      json.RawMessage `json:"result"`
	Error       *string         `json:"error"`
	DurationMS  *int64          `json:"duration_ms"`
}

type bifrostError struct {
	Detail any `json:"detail"`
}

func (b bifrost) execute(c *gin.Context) error {
	t, err := b.Open(c, "bifrost", c.Param("workflow"))
	if err != nil {
		return err
	}
	input, err := b.input(c)
	if err != nil {
		return err
	}
	if t.Definition().Trigger.Mode == core.ModeAsync { // B11: nobody waits for it
		begun, err := b.Begin(c, t, trigger.Payload{Input: input})
		if err != nil {
			return err
		}
		text := "Workflow execution started"
		c.Header("Location", "/v1/runs/"+begun.RunID)
		b.Send(c, http.StatusOK, typeJSON, bifrostRun{ExecutionID: begun.RunID, Status: bifrostStatus(core.RunQueued), Message: &text}, nil)
		return nil
	}
	r, err := run(b, c, t, trigger.Payload{Input: input})
	if err != nil {
		return err
	}
	b.Send(c, http.StatusOK, typeJSON, bifrostResult(r), nil)
	return nil
}

// input is the query's parameters with the body's members over them.
func (b bifrost) input(c *gin.Context) (json.RawMessage, error) {
	m, err := optionalMembers(b, c)
	if err != nil {
		return nil, err
	}
	query, err := b.Query(c)
	if err != nil {
		return nil, err
	}
	for name, values := range query {
		if _, given := m[name]; given {
			continue
		}
		raw, err := json.Marshal(values[len(values)-1])
		if err != nil {
			return nil, err
		}
		m[name] = raw
	}
	return json.Marshal(m)
}

// bifrostResult is the answer of an execution. Bifrost answers 200 however it ended; the status says how (B11).
func bifrostResult(r *core.Run) bifrostRun {
	answer := bifrostRun{ExecutionID: r.ID, Status: bifrostStatus(r.Status), Result: r.Output}
	if !r.FinishedAt.IsZero() && !r.StartedAt.IsZero() {
		ms := max(0, r.FinishedAt.Sub(r.StartedAt).Round(time.Millisecond).Milliseconds()) // by the clocks of two servers, perhaps
		answer.DurationMS = &ms
	}
	if r.Status != core.RunSucceeded {
		text := failure(r)
		answer.Result, answer.Error = nil, &text
	}
	return answer
}

// bifrostStatus translates the state of a run into Bifrost's words.
func bifrostStatus(s core.RunStatus) string {
	switch s {
	case core.RunScheduled:
		return "Scheduled"
	case core.RunQueued:
		return "Pending"
	case core.RunRunning, core.RunWaiting:
		return "Running"
	case core.RunCancelling:
		return "Cancelling"
	case core.RunSucceeded:
		return "Success"
	case core.RunTimedOut:
		return "Timeout"
	case core.RunCancelled:
		return "Cancelled"
	case core.RunInterrupted:
		return "Stuck" // it was executing when its server went away
	}
	return "Failed"
}

// likeID is what an id looks like, Bifrost's or ours.
var likeID = regexp.MustCompile(`^([0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|wf_[0-9a-z]{26})$`)

func (b bifrost) fail(c *gin.Context, err error) {
	if strings.HasPrefix(c.Request.URL.Path, bifrostKeys) {
		b.failKey(c, err)
		return
	}
	ref := param(c, "workflow")
	status, e := b.Status(err)
	e = inWords(e, bodyWords)
	var text any = detail(e)
	switch e.Code {
	case core.CodeUnauthenticated:
		status = http.StatusUnprocessableEntity // its framework's answer to a header that is missing
		text = []map[string]any{{"type": "missing", "loc": []string{"header", "X-Bifrost-Key"}, "msg": "Field required", "input": nil}}
	case core.CodeInvalidKey, core.CodeKeyExpired, core.CodeKeyRevoked, core.CodeKeyDisabled:
		text = "Invalid or expired API key"
	case core.CodeInsufficientScope:
		text = "API key does not have permission to execute this workflow" // B2: the same whether the workflow exists or not
	case core.CodeWorkflowDisabled:
		status, text = http.StatusNotFound, "Workflow not found or not endpoint-enabled" // B4
	case core.CodeMethodNotAllowed: // B11
		text = "Method " + c.Request.Method + " not allowed. Allowed methods: " + c.Writer.Header().Get("Allow")
	case core.CodeNotFound:
		switch {
		case ref == "": // no path of Bifrost's
		case likeID.MatchString(ref):
			text = "Workflow not found or not endpoint-enabled"
		default:
			status, text = http.StatusBadRequest, "Invalid workflow ID"
		}
	}
	b.Send(c, status, typeJSON, bifrostError{text}, err)
}
