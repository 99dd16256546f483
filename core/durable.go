package core

import (
	"context"
	"encoding/json"
	"time"
)

// Journal keeps the progress of a durable run while it executes. Its methods are called from several goroutines at once.
type Journal interface {
	// Commit records a step: one that has ended well or was skipped, one that waits for its next attempt, or, for a node that may be
	// attempted at most once, that its attempt begins. It returns once that is committed; nothing that rests on it happens before. An error
	// means that this attempt of the run is over and that what it did since does not count.
	Commit(ctx context.Context, position int, step Step) error
	// Record notes an event for those who follow the run. It is committed with the next step, or soon.
	Record(e RunEvent)
	// Paused reports whether the run is to start nothing more and to be handed back, because the server stops.
	Paused() bool
}

// The types of run events, in the order in which they can occur.
const (
	EventRunStarted   = "run.started"
	EventStepStarted  = "step.started"
	EventStepLog      = "step.log"
	EventStepOutput   = "step.output"
	EventStepRetrying = "step.retrying"
	EventStepFinished = "step.finished"
	EventRunFinished  = "run.finished"
)

// MaxEventOutput is the size up to which the output of a step is part of its event. A larger one is read from the step.
const MaxEventOutput = 16 << 10

// RunEvent is one thing that happened in a run. Its JSON form is what followers get, and what is kept.
type RunEvent struct {
	Seq     int64           `json:"seq"` // from 1 within the run, growing, not always by one
	Type    string          `json:"type"`
	Time    time.Time       `json:"time"`
	RunID   string          `json:"run_id"`
	Step    string          `json:"step,omitempty"`
	Status  string          `json:"status,omitempty"`  // of the run or the step
	Attempt int             `json:"attempt,omitempty"` // of the step; for a run event, of the run
	Level   string          `json:"level,omitempty"`   // of a line of a log
	Message string          `json:"message,omitempty"` // the line
	Output  json.RawMessage `json:"output,omitempty"`
	Omitted int64           `json:"omitted_bytes,omitempty"` // size of an output that is too large to be shown here
	Error   any             `json:"error,omitempty"`         // *RunError or *StepError
	RetryAt *time.Time      `json:"retry_at,omitempty"`

	// RunAttempt is which attempt of the run did it. A step whose end was not committed before the server died is begun again by the next, with the same Attempt.
	RunAttempt int `json:"run_attempt,omitempty"`
}

// StepEvents returns the events at the end of a step: the lines that its last attempt logged, its output, and that it finished.
func StepEvents(run string, s *Step) []RunEvent {
	var events []RunEvent
	if n := len(s.Attempts); n > 0 {
		events = AttemptLog(run, s.ID, &s.Attempts[n-1])
	}
	at := s.FinishedAt.UTC()
	if len(s.Output) > 0 {
		e := RunEvent{Type: EventStepOutput, Time: at, RunID: run, Step: s.ID, Output: s.Output}
		if len(s.Output) > MaxEventOutput {
			e.Output, e.Omitted = nil, int64(len(s.Output))
		}
		events = append(events, e)
	}
	e := RunEvent{Type: EventStepFinished, Time: at, RunID: run, Step: s.ID, Status: string(s.Status), Attempt: len(s.Attempts)}
	if s.Error != nil {
		e.Error = s.Error
	}
	return append(events, e)
}

// AttemptLog returns the lines that one attempt of a step logged.
func AttemptLog(run, step string, a *Attempt) []RunEvent {
	events := make([]RunEvent, 0, len(a.Log)+2)
	for _, l := range a.Log {
		events = append(events, RunEvent{Type: EventStepLog, Time: l.Time.UTC(), RunID: run, Step: step, Attempt: a.Number, Level: l.Level, Message: l.Message})
	}
	return events
}

// RunFinished returns the last event of a run.
func RunFinished(r *Run) RunEvent {
	e := RunEvent{Type: EventRunFinished, Time: r.FinishedAt.UTC(), RunID: r.ID, Status: string(r.Status), Attempt: r.Attempt, RunAttempt: r.Attempt, Output: r.Output}
	if len(r.Output) > MaxEventOutput {
		e.Output, e.Omitted = nil, int64(len(r.Output))
	}
	if r.Error != nil {
		e.Error = r.Error
	}
	return e
}

// Concurrency limits how many runs of a workflow execute at once. Such a workflow's runs are always durable.
type Concurrency struct {
	Limit    int    `json:"limit"`     // 1..10000
	WhenFull string `json:"when_full"` // WhenFullQueue, WhenFullReject or WhenFullReplace
}

// What happens to a run of a workflow that is at its limit.
const (
	WhenFullQueue   = "queue"   // it waits
	WhenFullReject  = "reject"  // it is refused with CodeConcurrencyLimited
	WhenFullReplace = "replace" // the oldest run that has not ended is cancelled for it
)

// Dedupe makes runs for one thing of the caller's business exclude each other: while a run with this key has not ended, Policy decides
// what another request with it means. The scope is the workflow.
type Dedupe struct {
	Key    string // 1..255 characters
	Policy string // DedupeReject, DedupeUseExisting or DedupeTerminateExisting
}

// The policies of Dedupe.
const (
	DedupeReject            = "reject"             // it is refused with CodeConflict
	DedupeUseExisting       = "use_existing"       // it finds the existing run
	DedupeTerminateExisting = "terminate_existing" // the existing run is cancelled
)

// ExistingRun is the cause of a refusal because of a run that has not ended.
type ExistingRun struct{ ID string }

// Error implements error.
func (e *ExistingRun) Error() string { return e.ID + " has not ended" }

// Claim is a durable run that a worker has taken over for execution.
type Claim struct {
	Run     Run   // with its steps as far as they were committed, and the number of this attempt
	LastSeq int64 // of the events so far
}

// Cancelled says what a request to cancel a run did.
type Cancelled struct {
	Status RunStatus // RunCancelling, or RunCancelled when nobody was executing the run
	Before bool      // it was cancelled before, so nothing was changed
	Job    Job       // of a durable run that ended at once, for the queue; Run is "" otherwise
}
