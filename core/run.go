package core

import (
	"encoding/json"
	"time"
)

// Causes a run's context is cancelled with. Whoever executes the run records the status that the cause's code stands for; another
// *Error with one of these codes does the same and brings its own message.
var (
	ErrRunTimedOut    = Errorf(CodeRunTimedOut, "the run's deadline passed")
	ErrRunCancelled   = Errorf(CodeRunCancelled, "the run was cancelled")
	ErrRunInterrupted = Errorf(CodeRunInterrupted, "the server stopped while the run was executing")
)

// RunStatus is the state of a run.
type RunStatus string

// The states of a run. The last five are terminal and never change again.
const (
	RunScheduled   RunStatus = "scheduled"
	RunQueued      RunStatus = "queued"
	RunRunning     RunStatus = "running"
	RunWaiting     RunStatus = "waiting"
	RunCancelling  RunStatus = "cancelling"
	RunSucceeded   RunStatus = "succeeded"
	RunFailed      RunStatus = "failed"
	RunTimedOut    RunStatus = "timed_out"
	RunCancelled   RunStatus = "cancelled"
	RunInterrupted RunStatus = "interrupted" // an inline run whose server died: outcome unknown, never executed again
)

// Terminal reports whether a run in this state has ended.
func (s RunStatus) Terminal() bool {
	switch s {
	case RunSucceeded, RunFailed, RunTimedOut, RunCancelled, RunInterrupted:
		return true
	}
	return false
}

// StepStatus is the state of one node within a run.
type StepStatus string

// The states of a step.
const (
	StepPending   StepStatus = "pending"
	StepRunning   StepStatus = "running"
	StepRetrying  StepStatus = "retrying"
	StepSucceeded StepStatus = "succeeded"
	StepFailed    StepStatus = "failed"
	StepTimedOut  StepStatus = "timed_out"
	StepSkipped   StepStatus = "skipped"
	StepCancelled StepStatus = "cancelled"
	// StepUnknown is the end of a node that may be attempted at most once and whose attempt was cut off: what it did is not known.
	StepUnknown StepStatus = "unknown"
)

// ErrorClass says in what way a node failed; retries choose by it.
type ErrorClass string

// The classes of node errors.
const (
	ClassTimeout       ErrorClass = "timeout"        // the node's deadline passed
	ClassTrap          ErrorClass = "trap"           // the guest did something WebAssembly forbids
	ClassExit          ErrorClass = "exit"           // the guest exited with a code other than 0 and said nothing more
	ClassLimit         ErrorClass = "limit"          // memory, output or another bound was exceeded
	ClassInvalidOutput ErrorClass = "invalid_output" // stdout is not one JSON value
	ClassDenied        ErrorClass = "denied"         // the guest asked for something it was not granted
	ClassUnavailable   ErrorClass = "unavailable"    // the node says: try again later
	ClassFailed        ErrorClass = "failed"         // the node says: this cannot work
)

// ErrorClasses returns every class, in documentation order.
func ErrorClasses() []ErrorClass {
	return []ErrorClass{ClassTimeout, ClassTrap, ClassExit, ClassLimit, ClassInvalidOutput, ClassDenied, ClassUnavailable, ClassFailed}
}

// Run is one execution of one workflow version.
type Run struct {
	ID         string
	Account    string
	Status     RunStatus
	Workflow   WorkflowRef
	Trigger    TriggerInfo
	Input      json.RawMessage
	Output     json.RawMessage // of a succeeded run
	Error      *RunError       // of a run that ended in any other way
	Overrides  json.RawMessage // node -> field -> value, as admitted
	Metadata   map[string]string
	Variables  map[string]string // what the request brought along for expressions; may be secret, so it is never stored, and only inline runs have any
	CreatedAt  time.Time         // accepted and committed
	StartedAt  time.Time         // zero while not started
	FinishedAt time.Time         // zero while not finished
	DeadlineAt time.Time
	Attempt    int // fences writes: a write with an older attempt is refused
	TraceID    string
	Span       string // of the request that started the run, within the trace: span id and flags; "" for none
	RequestID  string
	Steps      []Step // in file order; while the run has not ended, those that were recorded

	// Durable runs go through the queue and survive the server that executes them. The others are inline: executed at once, and interrupted by
	// the end of their server.
	Durable  bool
	DueAt    time.Time     // of a durable run that waits: when it goes on; zero otherwise
	Timeout  time.Duration // of a durable run, from which DeadlineAt is set when it starts
	Limit    int           // of a durable run: trigger.concurrency of its workflow, 0 for none
	ReplayOf string        // the run that this one repeats
}

// Job returns what a queue must know of a durable run.
func (r *Run) Job() Job {
	return Job{Account: r.Account, Run: r.ID, Workflow: r.Workflow.ID, Lane: r.Trigger.Principal, Due: r.DueAt, Limit: r.Limit}
}

// TruncateTimes cuts every time of the run to the microsecond, which is what a store keeps. A run then reads the same when it is answered
// at once and when it is read again.
func (r *Run) TruncateTimes() {
	cut := func(times ...*time.Time) {
		for _, t := range times {
			*t = t.Truncate(time.Microsecond)
		}
	}
	cut(&r.CreatedAt, &r.StartedAt, &r.FinishedAt, &r.DeadlineAt, &r.DueAt)
	for i := range r.Steps {
		step := &r.Steps[i]
		cut(&step.StartedAt, &step.FinishedAt, &step.RetryAt)
		for j := range step.Attempts {
			attempt := &step.Attempts[j]
			cut(&attempt.StartedAt)
			for k := range attempt.Log {
				cut(&attempt.Log[k].Time)
			}
		}
	}
}

// WorkflowRef pins what a run executes.
type WorkflowRef struct {
	ID      string
	Slug    string // at the time of the trigger
	Version int
	Digest  string
}

// TriggerInfo says who started a run and how.
type TriggerInfo struct {
	Type      string // "api", "schedule", "replay", or "webhook" for a request on a webhook route
	Route     string // "native" or the adapter's name
	Principal string // namespaced subject, such as "key:key_01..."
	KeyID     string // "" unless the principal is a key
	KeyName   string // name of that key, which expressions read as trigger.key_name
	KeyHint   string // masked key text
	Backend   string // auth backend that decided, such as "apikey"
	SourceIP  string

	// Attributes are facts about the identity, as its backend told them, such as repo, ref and actor of a CI job.
	Attributes map[string]string
}

// RunError is why a run did not succeed. Its text is shown to the caller.
type RunError struct {
	Code      Code       `json:"code"` // CodeRunFailed, CodeRunTimedOut, CodeRunCancelled, CodeRunInterrupted
	Class     ErrorClass `json:"class,omitempty"`
	Message   string     `json:"message"`
	Step      string     `json:"step,omitempty"` // the node that failed, "" when it was none
	Retryable bool       `json:"retryable"`

	// Status and UserCode are set when the workflow failed on purpose: the HTTP status (400..599) and code it chose.
	Status   int    `json:"status,omitempty"`
	UserCode string `json:"user_code,omitempty"`
}

// Step is one node within one run.
type Step struct {
	ID         string // node id
	Status     StepStatus
	Module     string // digest
	Attempts   []Attempt
	Input      json.RawMessage
	Output     json.RawMessage
	Error      *StepError
	StartedAt  time.Time // zero when skipped
	FinishedAt time.Time
	RetryAt    time.Time // of a step that is retrying in a durable run: when its next attempt begins
}

// StepError is why a step did not succeed.
type StepError struct {
	Class    ErrorClass `json:"class,omitempty"` // "" when the node was stopped and did not fail itself
	Message  string     `json:"message"`
	ExitCode int        `json:"exit_code,omitempty"`
	Status   int        `json:"status,omitempty"` // with Code: the node failed the run on purpose
	Code     string     `json:"code,omitempty"`
}

// Attempt is one invocation of a step's module, with what it cost.
type Attempt struct {
	Number     int        `json:"number"` // from 1
	StartedAt  time.Time  `json:"started_at"`
	DurationUS int64      `json:"duration_us"`
	Error      *StepError `json:"error,omitempty"`
	PeakMemory int64      `json:"peak_memory_bytes"`
	Fuel       int64      `json:"fuel,omitempty"` // instructions charged; 0 while the runtime does not count
	HostUS     int64      `json:"host_us,omitempty"`
	Log        []LogLine  `json:"log,omitempty"`
	LogDropped int64      `json:"log_dropped_bytes,omitempty"`
	// Tape says whether the attempt can be replayed: TapeKept, TapeTooLarge, or "" for one of which no tape was to be kept.
	Tape string `json:"tape,omitempty"`
	// Recording is the tape itself until it is stored, apart from the step.
	Recording []byte `json:"-"`
}

// What became of the tape of an attempt.
const (
	TapeKept     = "kept"
	TapeTooLarge = "too_large"
)

// LogLine is one line a node wrote to its log.
type LogLine struct {
	Time    time.Time `json:"time"`
	Level   string    `json:"level"` // debug, info, warn, error; what a command writes to stderr is info
	Message string    `json:"message"`
}
