package client

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// TriggerRequest is what a run is started with.
type TriggerRequest struct {
	// Input is the workflow's input, encoded as JSON; nil is none. A json.RawMessage is sent as it is.
	Input any `json:"input,omitempty"`
	// Overrides changes node config that the workflow lists as overridable: node -> field -> value.
	Overrides map[string]map[string]any `json:"overrides,omitempty"`
	// Metadata is kept with the run and can be searched for.
	Metadata map[string]string `json:"metadata,omitempty"`
	// IdempotencyKey makes a repeated request find the run of the first one: 1 to 255 visible ASCII characters.
	IdempotencyKey string `json:"-"`
	// Async makes the run durable and returns as soon as it is accepted; Wait does so after that time at most. The run may not have ended then.
	Async bool          `json:"-"`
	Wait  time.Duration `json:"-"`
	// RunAfter is when the run is executed at the earliest.
	RunAfter *time.Time `json:"run_after,omitempty"`
	// Dedupe makes runs for one thing exclude each other.
	Dedupe *Dedupe `json:"dedupe,omitempty"`
	// Callback is told how the run ended.
	Callback *CallbackTo `json:"callback,omitempty"`
}

// Dedupe is what a run is for, and what happens when a run for the same thing has not ended.
type Dedupe struct {
	Key    string `json:"key"`
	Policy string `json:"policy,omitempty"` // reject, use_existing or terminate_existing
}

// CallbackTo is where the end of a run is told.
type CallbackTo struct {
	URL string `json:"url"`
}

// Run is one execution of a workflow.
type Run struct {
	ID         string            `json:"id"`
	Status     string            `json:"status"` // queued, running, succeeded, failed, timed_out, cancelled, interrupted, ...
	Workflow   RunWorkflow       `json:"workflow"`
	Trigger    RunTrigger        `json:"trigger"`
	Input      json.RawMessage   `json:"input,omitempty"`
	Overrides  json.RawMessage   `json:"overrides,omitempty"`
	Output     json.RawMessage   `json:"output,omitempty"` // null unless the run has succeeded; not in lists
	Error      *RunError         `json:"error"`
	Metadata   map[string]string `json:"metadata,omitempty"`
	CreatedAt  time.Time         `json:"created_at"`
	StartedAt  *time.Time        `json:"started_at"`
	FinishedAt *time.Time        `json:"finished_at"`
	DeadlineAt *time.Time        `json:"deadline_at"`
	DurationMS *int64            `json:"duration_ms"`
	QueueMS    *int64            `json:"queue_ms"`
	Durable    bool              `json:"durable"`
	DueAt      *time.Time        `json:"due_at"`
	Attempt    int               `json:"attempt"`
	ReplayOf   string            `json:"replay_of"`
	TraceID    string            `json:"trace_id"`
	Steps      []Step            `json:"steps,omitempty"` // not in lists

	Response Response `json:"-"`
}

// Raw returns the object as the server sent it, with members that this version of the package does not know.
func (r *Run) Raw() []byte { return r.Response.Body }

// RunWorkflow is the version a run is pinned to.
type RunWorkflow struct {
	ID      string `json:"id"`
	Name    string `json:"name"` // slug at the time of the trigger
	Version int    `json:"version"`
	Digest  string `json:"digest"`
}

// RunTrigger says who started a run and how.
type RunTrigger struct {
	Type      string `json:"type"`
	Route     string `json:"route"`
	Principal string `json:"principal"`
	KeyHint   string `json:"key_hint,omitempty"`
	Backend   string `json:"backend"`
	SourceIP  string `json:"source_ip,omitempty"`

	// Attributes are facts about the identity, as its auth backend told them, such as repo, ref and actor of a CI job.
	Attributes map[string]string `json:"attributes,omitempty"`
}

// Step is one node within a run, in the short form that a Run carries.
type Step struct {
	ID              string     `json:"id"`
	Status          string     `json:"status"`
	Attempts        int        `json:"attempts"`
	Module          string     `json:"module"` // digest
	StartedAt       *time.Time `json:"started_at"`
	DurationMS      *int64     `json:"duration_ms"`
	PeakMemoryBytes int64      `json:"peak_memory_bytes"`
	Tape            bool       `json:"tape"` // whether an attempt can be executed again with keyfire replay
	Error           *StepError `json:"error,omitempty"`
}

// StepError is why a step did not succeed.
type StepError struct {
	Class    string `json:"class"` // timeout, trap, exit, limit, invalid_output, denied, unavailable, failed
	Message  string `json:"message"`
	ExitCode int    `json:"exit_code,omitempty"`
	Status   int    `json:"status,omitempty"` // with Code: the node failed the run on purpose
	Code     string `json:"code,omitempty"`
}

// StepDetail is one node within a run, in full.
type StepDetail struct {
	RunID           string          `json:"run_id"`
	ID              string          `json:"id"`
	Status          string          `json:"status"`
	Module          string          `json:"module"` // digest
	Input           json.RawMessage `json:"input,omitempty"`
	Output          json.RawMessage `json:"output,omitempty"`
	Error           *StepError      `json:"error"`
	StartedAt       *time.Time      `json:"started_at"`
	FinishedAt      *time.Time      `json:"finished_at"`
	DurationMS      *int64          `json:"duration_ms"`
	PeakMemoryBytes int64           `json:"peak_memory_bytes"`
	Attempts        []Attempt       `json:"attempts"`

	Response Response `json:"-"`
}

// Raw returns the object as the server sent it, with members that this version of the package does not know.
func (s *StepDetail) Raw() []byte { return s.Response.Body }

// Attempt is one invocation of a step's module.
type Attempt struct {
	Number          int        `json:"number"` // from 1
	StartedAt       time.Time  `json:"started_at"`
	DurationUS      int64      `json:"duration_us"`
	Error           *StepError `json:"error,omitempty"`
	PeakMemoryBytes int64      `json:"peak_memory_bytes"`
	LogDroppedBytes int64      `json:"log_dropped_bytes,omitempty"`
	Tape            string     `json:"tape,omitempty"` // "kept" if the attempt can be replayed, "too_large", or ""
}

// RunQuery narrows a list of runs. Zero fields do not filter.
type RunQuery struct {
	Workflow     string // id, slug or alias
	Status       string
	Key          string // key id
	TraceID      string
	Metadata     map[string]string
	CreatedAfter time.Time
	Page
}

// LogLine is one line that a node wrote to its log.
type LogLine struct {
	Step    string    `json:"step"`
	Attempt int       `json:"attempt"`
	Time    time.Time `json:"time"`
	Level   string    `json:"level"`
	Message string    `json:"message"`
}

// LogQuery narrows the log of a run. Zero fields do not filter.
type LogQuery struct {
	Step  string
	Level string // this level and more serious ones
	Page         // of lines: up to 10000, usually 1000
}

// Trigger starts a run of a workflow, named by id or slug with an optional "@version", and waits for its end, or as long as the request says. An
// empty workflow means the one the key is made for. A run that did not succeed is an *Error with its RunID; one that has not ended is
// returned as it is.
func (c *Client) Trigger(ctx context.Context, workflow string, r TriggerRequest) (*Run, error) {
	path := []string{"v1", "trigger"}
	if workflow != "" {
		path = []string{"v1", "workflows", workflow, "runs"}
	}
	header := http.Header{}
	if r.IdempotencyKey != "" {
		header.Set("Idempotency-Key", r.IdempotencyKey)
	}
	if r.Async {
		header.Add("Prefer", "respond-async")
	}
	if r.Wait > 0 {
		header.Add("Prefer", preferWait(r.Wait))
	}
	return c.run(ctx, request{method: http.MethodPost, path: path, header: header, body: r})
}

// Run returns one run with its input, output and steps. That the run failed is no error here.
func (c *Client) Run(ctx context.Context, id string) (*Run, error) {
	return c.run(ctx, request{method: http.MethodGet, path: []string{"v1", "runs", id}})
}

func (c *Client) run(ctx context.Context, r request) (*Run, error) {
	return one(ctx, c, r, func(v *Run, res Response) { v.Response = res })
}

// Step returns one step of a run with its input, output and attempts.
func (c *Client) Step(ctx context.Context, run, step string) (*StepDetail, error) {
	return one(ctx, c, request{method: http.MethodGet, path: []string{"v1", "runs", run, "steps", step}}, func(v *StepDetail, res Response) { v.Response = res })
}

// Tape returns the tape of an attempt of a step, as keyfire replay reads it; attempt 0 is the last one that has a tape.
func (c *Client) Tape(ctx context.Context, run, step string, attempt int) ([]byte, error) {
	r := request{method: http.MethodGet, path: []string{"v1", "runs", run, "steps", step, "tape"}, query: url.Values{}}
	if attempt != 0 {
		r.query.Set("attempt", strconv.Itoa(attempt))
	}
	res, err := c.do(ctx, r, nil)
	if err != nil {
		return nil, err
	}
	return res.Body, nil
}

// Module returns the bytes of a published module or script by its digest.
func (c *Client) Module(ctx context.Context, digest string) ([]byte, error) {
	res, err := c.do(ctx, request{method: http.MethodGet, path: []string{"v1", "modules", digest}}, nil)
	if err != nil {
		return nil, err
	}
	return res.Body, nil
}

// Runs lists runs, newest first, without input, output and steps.
func (c *Client) Runs(ctx context.Context, q RunQuery) (*List[Run], error) {
	v := q.values()
	set(v, "workflow", q.Workflow)
	set(v, "status", q.Status)
	set(v, "key", q.Key)
	set(v, "trace_id", q.TraceID)
	set(v, "created_after", formatTime(q.CreatedAfter))
	for name, value := range q.Metadata {
		v.Set("metadata."+name, value)
	}
	return list[Run](ctx, c, v, "v1", "runs")
}

// RunLogs returns what the nodes of a run wrote to their logs, in the order of time.
func (c *Client) RunLogs(ctx context.Context, id string, q LogQuery) (*List[LogLine], error) {
	v := q.values()
	set(v, "step", q.Step)
	set(v, "level", q.Level)
	return list[LogLine](ctx, c, v, "v1", "runs", id, "logs")
}
