package server

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"
	"github.com/gin-gonic/gin"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/trigger"
)

const (
	typeEvents     = "text/event-stream"
	routeRunEvents = "/v1/runs/:run/events"
)

// routeFollow adds the routes by which a run is followed, stopped and repeated.
func (s *Server) routeFollow() {
	s.engine.GET(routeRunEvents, s.authenticate, s.streamRun)
	s.engine.HEAD(routeRunEvents, s.authenticate, s.streamRun)
	tags := []string{"Runs"}
	register(s, huma.Operation{
		OperationID: "cancel-run", Method: http.MethodPost, Path: "/v1/runs/{run}/cancel", Tags: tags, DefaultStatus: http.StatusAccepted,
		Summary: "Cancel a run",
		Description: "A run that nobody executes is cancelled at once; one that executes is stopped, computing nodes included. 200 for a run that was cancelled before. " +
			"A run of another credential needs a scope that runs its workflow, or workflows:write, beside runs:read.",
	}, s.jsonBody(CancelRequest{}, false, map[string]any{"reason": "no longer needed"}), s.cancelRun)
	register(s, huma.Operation{
		OperationID: "replay-run", Method: http.MethodPost, Path: "/v1/runs/{run}/replay", Tags: tags, DefaultStatus: http.StatusAccepted,
		Summary: "Repeat a run",
		Description: "Starts a new, durable run with the same input. Steps before the one it begins at keep their results and are not executed. " +
			"Needs the right to read the run and to run its workflow, and is charged like any run.",
	}, s.jsonBody(ReplayRequest{}, false, map[string]any{"from": "failed"}), s.replayRun)
	register(s, huma.Operation{
		OperationID: "list-run-callbacks", Method: http.MethodGet, Path: "/v1/runs/{run}/callbacks", Tags: tags,
		Summary: "List the callbacks of a run", Description: "With every attempt to deliver them. Access as for the run.",
	}, nil, s.listCallbacks)
	register(s, huma.Operation{
		OperationID: "redeliver-callback", Method: http.MethodPost, Path: "/v1/runs/{run}/callbacks/{callback}/redeliver", Tags: tags, DefaultStatus: http.StatusAccepted,
		Summary: "Deliver a callback again", Description: "Whatever became of it before. Access as for cancelling the run.",
	}, nil, s.redeliver)
	describeLimits(operation(s.api.OpenAPI(), http.MethodPost, "/v1/runs/{run}/replay").Responses["202"].Headers)
	operation(s.api.OpenAPI(), http.MethodPost, "/v1/runs/{run}/cancel").Responses["200"] = &huma.Response{
		Description: "The run was cancelled before.",
		Headers: map[string]*huma.Param{
			"Keyfire-Request-Id": requestIDHeader(), "Keyfire-Run-Id": textHeader("Id of the run."), "Keyfire-Run-Status": textHeader("State of the run."),
		},
		Content: map[string]*huma.MediaType{typeJSON: {Schema: s.schema(Run{})}},
	}
}

func (r *request) caller() trigger.Caller {
	return trigger.Caller{Principal: r.principal, Origin: r.origin}
}

// streamRun handles GET /v1/runs/{run}/events. HEAD is told that there is a stream, and does not wait for the events.
func (s *Server) streamRun(c *gin.Context) {
	ctx := c.Request.Context()
	req := requestOf(ctx)
	if err := checkQuery(c.Request.URL, nil); err != nil {
		s.fail(c, err)
		return
	}
	after, err := lastEventID(c.Request.Header["Last-Event-Id"])
	if err != nil {
		s.fail(c, err)
		return
	}
	run, err := s.findRun(ctx, req, c.Param("run"))
	if err != nil {
		s.fail(c, s.refuse(ctx, req, err))
		return
	}
	left, err := s.Trigger.EventsLeft(ctx, run, after)
	if err != nil {
		s.fail(c, s.refuse(ctx, req, err))
		return
	}
	if !left { // which tells an EventSource to come back no more, as it does after every end of a stream
		c.Header("Cache-Control", "no-store")
		c.Status(http.StatusNoContent)
		c.Writer.WriteHeaderNow()
		return
	}
	s.stream(c, run.ID, after)
}

// lastEventID reads where a follower goes on.
func lastEventID(values []string) (int64, error) {
	if len(values) == 0 || len(values) == 1 && values[0] == "" {
		return 0, nil
	}
	if n, err := strconv.ParseInt(values[0], 10, 64); err == nil && n >= 0 && len(values) == 1 {
		return n, nil
	}
	return 0, invalidField(core.CodeInvalidRequest, inHeader+"Last-Event-ID", "must be the id of an event of this run")
}

// stream writes the events of a run as server-sent events until the last one. The header is sent at once, so that a caller that just
// triggered the run has its id.
func (s *Server) stream(c *gin.Context, run string, after int64) {
	h := c.Writer.Header()
	h.Set("Content-Type", typeEvents)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no") // proxies hold small answers back otherwise
	if c.Request.Method == http.MethodHead {
		c.Status(http.StatusOK)
		c.Writer.WriteHeaderNow()
		return
	}
	c.Status(http.StatusOK)
	if s.sendPart(c, []byte(": "+run+"\n\n")) != nil {
		return
	}
	ctx := c.Request.Context()
	req := requestOf(ctx)
	asked := time.Now()
	mayStill := func() error {
		asked = time.Now()
		return s.mayStillRead(ctx, req, run)
	}
	var buf bytes.Buffer
	err := s.Trigger.Follow(ctx, req.principal, run, after, s.Heartbeat, func(e core.RunEvent) error {
		if time.Since(asked) >= s.Heartbeat {
			if err := mayStill(); err != nil {
				return err
			}
		}
		buf.Reset()
		fmt.Fprintf(&buf, "id: %d\nevent: %s\ndata: ", e.Seq, e.Type)
		if err := encodeJSON(&buf, e); err != nil {
			return err
		}
		buf.WriteByte('\n')
		return s.sendPart(c, buf.Bytes())
	}, func() error {
		if err := mayStill(); err != nil {
			return err
		}
		return s.sendPart(c, []byte(": still here\n\n"))
	})
	// The follower comes back with Last-Event-ID, so an end before the last event is no loss. What it was is for the log.
	if err != nil && ctx.Err() == nil && core.CodeOf(err) != core.CodeDraining {
		s.Logger.DebugContext(ctx, "stream of events ended early", "run_id", run, "error", redact(err.Error()))
	}
}

// mayStillRead judges a follower again: a run may take days, and what was revoked meanwhile must not go on reading. Keys and sessions end here, so they are looked up anew; of a
// credential that others have vouched for, the word at the beginning counts, as it does for a run that it started.
func (s *Server) mayStillRead(ctx context.Context, req *request, run string) error {
	p := req.principal
	var err error
	if p.Key != nil || p.Session != nil {
		p, err = s.principal(ctx, req)
	} else {
		err = s.Trigger.AccountOpen(ctx, p)
	}
	if err != nil {
		return err
	}
	_, err = s.Trigger.Run(ctx, p, run)
	return err
}

// wantsEvents reports whether a request asks for a stream of events and not for JSON: a client that takes both has to prefer the stream, or it could not read
// the answer that it gets everywhere else.
func wantsEvents(values []string) bool {
	var events, other float64
	for _, v := range values {
		for part := range strings.SplitSeq(v, ",") {
			media, params, err := mime.ParseMediaType(part)
			if err != nil {
				continue
			}
			q, err := strconv.ParseFloat(params["q"], 64)
			if err != nil {
				q = 1
			}
			switch media {
			case typeEvents:
				events = max(events, q) // 0 is "not acceptable" (RFC 9110 section 12.4.2)
			case typeJSON, typeProblem:
				other = max(other, q)
			}
		}
	}
	return events > other
}

// CancelRequest is the body of a request to cancel a run.
type CancelRequest struct {
	Reason string `json:"reason,omitempty" maxLength:"500" doc:"Why; it is shown with the run."`
}

type cancelParams struct {
	RunParams
	Force bool `query:"force" doc:"Skip cleanup steps. No workflow of this version has any, so it changes nothing."`
}

type runAnswer struct {
	Status    int
	Location  string `header:"Location" doc:"The run."`
	Retry     string `header:"Retry-After" doc:"Seconds to wait before asking how far it is, when it has not ended."`
	RunID     string `header:"Keyfire-Run-Id" doc:"Id of the run."`
	RunStatus string `header:"Keyfire-Run-Status" doc:"State of the run."`
	Replayed  string `header:"Idempotency-Replayed" doc:"true when an earlier request with the same Idempotency-Key started the run."`
	Body      Run
}

// acceptedRun answers with a run for which something was accepted.
func acceptedRun(run *core.Run) *runAnswer {
	a := &runAnswer{Status: http.StatusAccepted, RunID: run.ID, RunStatus: string(run.Status), Body: runBody(run)}
	if !run.Status.Terminal() {
		a.Retry = "1"
	}
	return a
}

// longestReason bounds the reason that a run is cancelled for, in characters.
const longestReason = 500

func (s *Server) cancelRun(ctx context.Context, req *request, in *cancelParams) (*runAnswer, error) {
	if _, err := s.findRun(ctx, req, in.Run); err != nil {
		return nil, err
	}
	var body CancelRequest
	if err := s.readOptional(req, &body); err != nil {
		return nil, err
	}
	if utf8.RuneCountInString(body.Reason) > longestReason || strings.ContainsFunc(body.Reason, func(r rune) bool { return r < ' ' }) {
		return nil, invalidField(core.CodeInvalidInput, "#/reason", "must be one line of at most 500 characters")
	}
	run, before, err := s.Trigger.Cancel(ctx, req.caller(), in.Run, body.Reason)
	if err != nil {
		return nil, err
	}
	req.found(run)
	a := acceptedRun(run)
	if before {
		a.Status = http.StatusOK
	}
	return a, nil
}

// ReplayRequest is the body of a request to repeat a run.
type ReplayRequest struct {
	From    string          `json:"from,omitempty" doc:"Where to begin: start, failed for what did not succeed, or the id of a step. Absent is start."`
	Version json.RawMessage `json:"version,omitempty" doc:"Which version of the workflow: same, latest, or a number. Absent is same."`
	Input   json.RawMessage `json:"input,omitempty" doc:"Replaces the input; only from the start. Absent or null keeps it."`
}

func (s *Server) replayRun(ctx context.Context, req *request, in *RunParams) (*runAnswer, error) {
	_, err := s.findRun(ctx, req, in.Run)
	if err != nil {
		return nil, err
	}
	var body ReplayRequest
	if err = s.readOptional(req, &body); err != nil {
		return nil, err
	}
	r := trigger.Replay{From: body.From}
	if r.Version, err = replayVersion(body.Version); err != nil {
		return nil, err
	}
	if len(body.Input) > 0 && !bytes.Equal(body.Input, null) {
		r.Input = body.Input
	}
	if r.IdempotencyKey, err = idempotencyKey(req.c.Request.Header["Idempotency-Key"]); err != nil {
		return nil, err
	}
	begun, err := s.Trigger.ReplayRun(ctx, req.caller(), in.Run, r)
	if err != nil {
		return nil, err
	}
	run, err := begun.Now(ctx)
	if err != nil {
		return nil, err
	}
	req.found(run)
	a := acceptedRun(run)
	a.Location = "/v1/runs/" + run.ID
	setLimits(req.c.Writer.Header(), begun.Limits)
	if begun.Replayed {
		a.Replayed = "true"
	}
	return a, nil
}

func replayVersion(raw json.RawMessage) (string, error) {
	var text string
	var number int
	switch {
	case len(raw) == 0, bytes.Equal(raw, null):
		return "", nil
	case json.Unmarshal(raw, &text) == nil && (text == trigger.ReplaySame || text == trigger.ReplayLatest):
		return text, nil
	case json.Unmarshal(raw, &number) == nil && number > 0:
		return strconv.Itoa(number), nil
	}
	if n, err := strconv.Atoi(text); err == nil && n > 0 {
		return strconv.Itoa(n), nil
	}
	return "", invalidField(core.CodeInvalidInput, "#/version", `must be "same", "latest" or the number of a version`)
}

// Callback is a callback of a run as the API shows it.
type Callback struct {
	Object    string                 `json:"object" enum:"callback"`
	ID        string                 `json:"id" doc:"Also the webhook-id of every attempt."`
	RunID     string                 `json:"run_id"`
	URL       string                 `json:"url"`
	State     core.CallbackState     `json:"state" enum:"waiting,pending,delivered,failed,disabled" doc:"waiting: the run has not ended. pending: it is sent, or sent again, when it is due. disabled: the receiver answered 410."`
	Attempts  int                    `json:"attempts"`
	NextAt    *time.Time             `json:"next_at" doc:"When it is sent next."`
	CreatedAt time.Time              `json:"created_at"`
	Log       []core.CallbackAttempt `json:"log" doc:"The last attempts, oldest first."`
}

func callbackBody(c *core.Callback) Callback {
	log := c.Log
	if log == nil {
		log = []core.CallbackAttempt{}
	}
	return Callback{
		Object: "callback", ID: c.ID, RunID: c.Run, URL: c.URL, State: c.State, Attempts: c.Attempts, NextAt: timeOrNull(c.NextAt), CreatedAt: c.CreatedAt.UTC(), Log: log,
	}
}

func (s *Server) listCallbacks(ctx context.Context, req *request, in *RunParams) (*listAnswer[Callback], error) {
	if _, err := s.findRun(ctx, req, in.Run); err != nil {
		return nil, err
	}
	all, err := s.Trigger.RunCallbacks(ctx, req.caller(), in.Run)
	if err != nil {
		return nil, err
	}
	return listOf(req, core.List[core.Callback]{Items: all}, callbackBody), nil
}

type callbackParams struct {
	RunParams
	Callback string `path:"callback" doc:"Id of the callback." maxLength:"64"`
}

func (s *Server) redeliver(ctx context.Context, req *request, in *callbackParams) (*answer[Callback], error) {
	if _, err := s.findRun(ctx, req, in.Run); err != nil {
		return nil, err
	}
	if err := s.readOptional(req, &struct{}{}); err != nil {
		return nil, err
	}
	return show(callbackBody)(s.Trigger.Redeliver(ctx, req.caller(), in.Run, in.Callback))
}

// CallbackData is a run as callbacks carry it: without its input.
func CallbackData(run *core.Run) any {
	body := runBody(run)
	body.Input, body.Overrides = nil, nil
	return body
}

// describeStream documents the route that is not huma's.
func (s *Server) describeStream() {
	op := &huma.Operation{
		OperationID: "stream-run", Method: http.MethodGet, Path: "/v1/runs/{run}/events", Tags: []string{"Runs"}, Security: secured,
		Summary: "Follow a run",
		Description: "Server-sent events: `id` is the event's number, `event` one of run.started, step.started, step.log, step.output, step.retrying, step.finished and run.finished, `data` " +
			"one line of JSON. The stream ends after run.finished. It can be read at any time, also after the end of the run, and resumed with Last-Event-ID. A comment comes every 15 seconds at least. It ends early when the key or session is not good any more. " +
			"204 when the run has ended and has no event after Last-Event-ID. A run that is carried on after the end of its server says so by a greater run_attempt. An inline run tells its steps when it has ended. Access as for the run.",
		Parameters: []*huma.Param{
			{Name: "run", In: "path", Required: true, Schema: &huma.Schema{Type: huma.TypeString}, Description: "Id of the run."},
			{Name: "Last-Event-ID", In: "header", Schema: &huma.Schema{Type: huma.TypeString}, Description: "Id of the last event that was received; the stream goes on after it."},
		},
		Responses: map[string]*huma.Response{"200": {
			Description: "The events.", Content: map[string]*huma.MediaType{typeEvents: {Schema: s.schema(RunEvent{})}},
			Headers: map[string]*huma.Param{"Keyfire-Run-Id": textHeader("Id of the run."), "Keyfire-Run-Status": textHeader("State of the run when the stream began.")},
		}, "204": {
			Description: "The run has ended, and its last event is the one of Last-Event-ID.",
			Headers:     map[string]*huma.Param{"Keyfire-Run-Id": textHeader("Id of the run."), "Keyfire-Run-Status": textHeader("State of the run.")},
		}},
	}
	s.describeErrors(op)
	s.api.OpenAPI().AddOperation(op)
}

// RunEvent documents the data of an event. core.RunEvent is what is sent.
type RunEvent struct {
	Seq     int64           `json:"seq" doc:"The event's number within the run; numbers grow, not always by one."`
	Type    string          `json:"type"`
	Time    time.Time       `json:"time"`
	RunID   string          `json:"run_id"`
	Step    string          `json:"step,omitempty"`
	Status  string          `json:"status,omitempty" doc:"Of the step, or of the run."`
	Attempt int             `json:"attempt,omitempty" doc:"Of the step; of run.started and run.finished, the run's."`
	Level   string          `json:"level,omitempty" doc:"Of a line of a log."`
	Message string          `json:"message,omitempty" doc:"The line."`
	Output  json.RawMessage `json:"output,omitempty" doc:"Of the step, or of the run, up to 16 KiB."`
	Omitted int64           `json:"omitted_bytes,omitempty" doc:"Size of an output that is larger; read it from the step or the run."`
	Error   json.RawMessage `json:"error,omitempty" doc:"Why the step, its attempt or the run did not succeed."`
	RetryAt *time.Time      `json:"retry_at,omitempty" doc:"When the step is attempted again."`

	RunAttempt int `json:"run_attempt,omitempty" doc:"Which attempt of the run this is of. It grows when the run is carried on, after a wait or the end of a server; steps that had not ended then begin again."`
}
