package core

import "time"

// Admission is everything that must be true, and everything that must be written, for a run to be accepted. The store does it in
// one transaction; nobody hears "accepted" before that transaction is committed and synced.
type Admission struct {
	// Run is written as given, with status RunRunning, RunQueued or RunScheduled. A durable run that repeats another one has a step for every
	// node, in file order; those that are not pending are done already.
	Run Run
	// KeyID is the key to charge, "" when the principal is not a key. The key must be active at Run.CreatedAt and within its limits.
	KeyID string
	// KeyRevision is the revision of the key that the request was judged by; 0 leaves it open. KeyLimited says that the key has limits beyond a number
	// of runs, which saves asking.
	KeyRevision int64
	KeyLimited  bool
	// Idempotency, when set, makes the same request find the run of the first one instead of starting another.
	Idempotency *Idempotency
	// Audit is the event of the acceptance.
	Audit AuditEvent

	// Dedupe, when set, makes runs for one thing exclude each other.
	Dedupe *Dedupe
	// Visible reports whether the caller may read the runs that a principal has started. Dedupe neither shows nor cancels any other one: it refuses. nil is all.
	Visible func(principal string) bool
	// WhenFull says what happens when Run.Limit runs of the workflow have not ended; "" is to wait in the queue.
	WhenFull string
	// Cancel makes the audit event of a run that is cancelled for this one. Required with the policies that do that. It may be asked about a run
	// more than once.
	Cancel func(runID string) AuditEvent
	// Callbacks are written with the run.
	Callbacks []Callback
	// Tick is the scheduled time that the run is for. A tick has one run at most: CodeConflict for another one.
	Tick *Tick
}

// Idempotency is a caller's Idempotency-Key with its scope. The scope is the principal, not the key's secret, so it survives rotation.
type Idempotency struct {
	Principal   string
	Workflow    string // workflow id
	Key         string // 1..255 visible ASCII characters
	Fingerprint string // "sha256:<hex>" over the request
	ExpiresAt   time.Time
}

// Admitted is the outcome of an admission.
type Admitted struct {
	// RunID is the new run, or the earlier run that the same Idempotency-Key started or found.
	RunID string
	// Replayed is true when RunID is an earlier run. Nothing was written or charged then.
	Replayed bool
	// Deduped is true when RunID is the run that Dedupe found. Nothing was charged then, and nothing written but what Idempotency finds from now on.
	Deduped bool
	// Cancelled are the runs that were cancelled for this one.
	Cancelled []CancelledRun
	// KeyChanged is true when the key is not at the revision that the request was judged by any more. Nothing was written: the request is to be
	// judged again.
	KeyChanged bool
	// Limits is where the key stands after the run; empty for a key that has none but a number of runs in all.
	Limits []LimitState
}

// CancelledRun is a run that was cancelled for another one.
type CancelledRun struct {
	Run string
	Cancelled
}

// Page asks for one page of a list, newest first.
type Page struct {
	Limit  int    // 1..200; 0 is 50
	Cursor string // from the previous page; "" is the first page
}

// Limits of a page.
const (
	DefaultPage = 50
	MaxPage     = 200
)

// List is one page of a list.
type List[T any] struct {
	Items []T
	Next  string // cursor of the next page, "" when there is none
}

// RunFilter narrows a list of runs; zero fields do not filter.
type RunFilter struct {
	Workflow     string // workflow id
	Status       RunStatus
	KeyID        string
	TraceID      string
	Metadata     map[string]string
	CreatedAfter time.Time
}

// AuditFilter narrows a list of audit events; zero fields do not filter.
type AuditFilter struct {
	Action string
	Actor  string
	Object string
	After  time.Time
}
