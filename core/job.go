package core

import "time"

// Job names a run that waits to be executed, with what a queue must know to be fair and to keep limits. The run itself is in the store.
type Job struct {
	Account  string
	Run      string
	Workflow string // workflow id
	// Lane is whose turn the job takes within its account: the subject of the principal that started the run. Lanes take turns, so that one
	// caller with many runs does not make another one with few wait for them.
	Lane string
	// Due is when the run may be executed at the earliest; zero is at once.
	Due time.Time
	// Recovered says that a worker had the run and died, or could not say how far it came: what it had left of its time is not known, so its time begins anew.
	Recovered bool
	// Limit is how many runs of the workflow may be with workers at once; 0 is any number.
	Limit int
}
