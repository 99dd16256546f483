package server

import (
	"encoding/json"
	"slices"
	"time"

	"github.com/keyfire/keyfire/core"
)

// Run is a run as the API shows it. Lists leave out input, output and steps.
type Run struct {
	Object     string            `json:"object" enum:"run" doc:"What this is."`
	ID         string            `json:"id" doc:"Never changes, sorts by time." example:"run_01jd3v6k9m8q2w4e6r8t0y1u3i"`
	Status     core.RunStatus    `json:"status" enum:"scheduled,queued,running,waiting,cancelling,succeeded,failed,timed_out,cancelled,interrupted" doc:"The last five are final. interrupted: the server stopped during the run, its outcome is unknown, and it is never executed again."`
	Workflow   RunWorkflow       `json:"workflow" doc:"What the run executes; pinned when it was triggered."`
	Trigger    RunTrigger        `json:"trigger" doc:"Who started the run, and how."`
	Input      json.RawMessage   `json:"input,omitempty" doc:"As it was sent."`
	Overrides  json.RawMessage   `json:"overrides,omitempty" doc:"Node to field to value, as admitted."`
	Output     json.RawMessage   `json:"output,omitzero" doc:"Of a run that succeeded; null before, and of every other."`
	Error      *core.RunError    `json:"error" doc:"Why the run did not succeed."`
	Metadata   map[string]string `json:"metadata" doc:"As it was sent."`
	CreatedAt  time.Time         `json:"created_at" doc:"When the run was accepted and committed."`
	StartedAt  *time.Time        `json:"started_at"`
	FinishedAt *time.Time        `json:"finished_at"`
	DeadlineAt *time.Time        `json:"deadline_at" doc:"When the run is stopped at the latest."`
	DurationMS *int64            `json:"duration_ms" doc:"From start to end."`
	QueueMS    *int64            `json:"queue_ms" doc:"From acceptance to start."`
	Durable    bool              `json:"durable" doc:"Whether the run goes through the queue and survives the server that executes it."`
	DueAt      *time.Time        `json:"due_at" doc:"When a run that is scheduled or waiting goes on."`
	Attempt    int               `json:"attempt" doc:"How often the run was picked up for execution."`
	ReplayOf   *string           `json:"replay_of" doc:"The run that this one repeats."`
	ParentRun  *string           `json:"parent_run"`
	TraceID    *string           `json:"trace_id"`
	Steps      []RunStep         `json:"steps,omitzero" doc:"One for every node, in the order of the workflow file; empty until one has begun, and of a run that was interrupted."`
	Links      RunLinks          `json:"links"`
}

// RunWorkflow pins what a run executes.
type RunWorkflow struct {
	ID      string `json:"id"`
	Name    string `json:"name" doc:"At the time of the trigger."`
	Version int    `json:"version"`
	Digest  string `json:"digest"`
}

// RunTrigger says who started a run.
type RunTrigger struct {
	Type      string `json:"type" doc:"How the run was started." example:"api"`
	Route     string `json:"route" doc:"native, or the name of the adapter that took the request."`
	Principal string `json:"principal" doc:"Who, namespaced by backend." example:"key:key_01jd3v6k9m8q2w4e6r8t0y1u3i"`
	KeyHint   string `json:"key_hint,omitempty" doc:"The key, masked."`
	Backend   string `json:"backend" doc:"The auth backend that decided."`
	SourceIP  string `json:"source_ip,omitempty"`

	Attributes map[string]string `json:"attributes,omitempty" doc:"Facts about the identity, as its backend told them, such as repo, ref and actor of a CI job."`
}

// RunStep is one node of a run, in short.
type RunStep struct {
	ID         string          `json:"id"`
	Status     core.StepStatus `json:"status" enum:"pending,running,retrying,succeeded,failed,timed_out,skipped,cancelled,unknown"`
	Attempts   int             `json:"attempts" doc:"How often the node was invoked."`
	Module     string          `json:"module" doc:"Digest of the WebAssembly module."`
	StartedAt  *time.Time      `json:"started_at"`
	DurationMS *int64          `json:"duration_ms" doc:"Over all attempts, the waits between them included."`
	PeakMemory int64           `json:"peak_memory_bytes" doc:"Largest linear memory of any attempt."`
	Tape       bool            `json:"tape" doc:"Whether an attempt can be executed again with keyfire replay: the step itself says which."`
	Error      *core.StepError `json:"error,omitempty"`
}

// RunLinks are where more about a run is found.
type RunLinks struct {
	Self   string `json:"self" doc:"The run."`
	Logs   string `json:"logs" doc:"What its nodes wrote to their logs."`
	Events string `json:"events" doc:"What happens in it, as server-sent events."`
}

// Step is one node of a run, in full.
type Step struct {
	Object     string          `json:"object" enum:"step"`
	RunID      string          `json:"run_id"`
	ID         string          `json:"id"`
	Status     core.StepStatus `json:"status" enum:"pending,running,retrying,succeeded,failed,timed_out,skipped,cancelled,unknown"`
	Module     string          `json:"module" doc:"Digest of the WebAssembly module."`
	Input      json.RawMessage `json:"input,omitempty" doc:"What the node was given."`
	Output     json.RawMessage `json:"output,omitempty" doc:"What it returned."`
	Error      *core.StepError `json:"error"`
	StartedAt  *time.Time      `json:"started_at"`
	FinishedAt *time.Time      `json:"finished_at"`
	DurationMS *int64          `json:"duration_ms"`
	PeakMemory int64           `json:"peak_memory_bytes"`
	Attempts   []core.Attempt  `json:"attempts" doc:"Every invocation of the node, with its log."`
}

// RunLogLine is one line a node wrote to its log.
type RunLogLine struct {
	Step    string    `json:"step"`
	Attempt int       `json:"attempt"`
	Time    time.Time `json:"time"`
	Level   string    `json:"level" enum:"debug,info,warn,error" doc:"What a command writes to stderr is info."`
	Message string    `json:"message"`
}

func runItem(r *core.Run) Run {
	body := Run{
		Object: "run", ID: r.ID, Status: r.Status,
		Workflow: RunWorkflow{ID: r.Workflow.ID, Name: r.Workflow.Slug, Version: r.Workflow.Version, Digest: r.Workflow.Digest},
		Trigger: RunTrigger{
			Type: r.Trigger.Type, Route: r.Trigger.Route, Principal: r.Trigger.Principal, KeyHint: r.Trigger.KeyHint,
			Backend: r.Trigger.Backend, SourceIP: r.Trigger.SourceIP, Attributes: r.Trigger.Attributes,
		},
		Error: r.Error, Metadata: r.Metadata,
		CreatedAt: r.CreatedAt.UTC(), StartedAt: timeOrNull(r.StartedAt), FinishedAt: timeOrNull(r.FinishedAt), DeadlineAt: timeOrNull(r.DeadlineAt),
		DurationMS: between(r.StartedAt, r.FinishedAt), QueueMS: between(r.CreatedAt, r.StartedAt),
		Attempt: r.Attempt, TraceID: textOrNull(r.TraceID), ReplayOf: textOrNull(r.ReplayOf), Durable: r.Durable, DueAt: timeOrNull(r.DueAt),
		Links: RunLinks{Self: "/v1/runs/" + r.ID, Logs: "/v1/runs/" + r.ID + "/logs", Events: "/v1/runs/" + r.ID + "/events"},
	}
	if body.Metadata == nil {
		body.Metadata = map[string]string{}
	}
	return body
}

func runBody(r *core.Run) Run {
	body := runItem(r)
	body.Input, body.Output, body.Overrides = r.Input, r.Output, r.Overrides
	if body.Output == nil {
		body.Output = null
	}
	body.Steps = make([]RunStep, len(r.Steps))
	for i := range r.Steps {
		step := &r.Steps[i]
		body.Steps[i] = RunStep{
			ID: step.ID, Status: step.Status, Attempts: len(step.Attempts), Module: step.Module,
			StartedAt: timeOrNull(step.StartedAt), DurationMS: between(step.StartedAt, step.FinishedAt), PeakMemory: peakMemory(step), Error: step.Error,
			Tape: slices.ContainsFunc(step.Attempts, func(a core.Attempt) bool { return a.Tape == core.TapeKept }),
		}
	}
	return body
}

func stepBody(run string, step *core.Step) Step {
	attempts := step.Attempts
	if attempts == nil {
		attempts = []core.Attempt{}
	}
	return Step{
		Object: "step", RunID: run, ID: step.ID, Status: step.Status, Module: step.Module, Input: step.Input, Output: step.Output, Error: step.Error,
		StartedAt: timeOrNull(step.StartedAt), FinishedAt: timeOrNull(step.FinishedAt), DurationMS: between(step.StartedAt, step.FinishedAt),
		PeakMemory: peakMemory(step), Attempts: attempts,
	}
}

func peakMemory(step *core.Step) int64 {
	var peak int64
	for i := range step.Attempts {
		peak = max(peak, step.Attempts[i].PeakMemory)
	}
	return peak
}

func timeOrNull(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

func textOrNull(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// between returns the whole milliseconds from a to b, nil while one of them has not come. Two servers may have written them, whose clocks differ.
func between(a, b time.Time) *int64 {
	if a.IsZero() || b.IsZero() {
		return nil
	}
	ms := max(0, b.Sub(a).Milliseconds())
	return &ms
}
