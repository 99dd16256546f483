package plugins

import "time"

// State is what a plugin currently is.
type State string

// The states of a plugin. Requests that need a plugin are answered while it is ready or degraded.
const (
	StateStarting State = "starting" // its first process is being started
	StateReady    State = "ready"
	StateDegraded State = "degraded" // it answers, but failed degradedFailures times in the last minute, or brought no verdict breakerFailures times in a row
	StateDown     State = "down"     // its process ended or could not be started; another one will be
	StateRefused  State = "refused"  // its executable is not what the configuration says; nothing happens until a reload
	StateStopped  State = "stopped"  // the Host is closed
)

// Status is what is known of a plugin at one moment.
type Status struct {
	Name     string
	State    State
	Required bool
	Path     string
	SHA256   string
	Version  string // as the running process reports it, "" while there is none
	PID      int    // 0 while there is none
	// Since is when the running process became ready, or when the last one ended.
	Since time.Time
	// Restarts counts the processes that were started after one ended by itself or had to be ended.
	Restarts int64
	// Failures is how many processes ended or could not be started in the last minute.
	Failures int
	// Degraded says that it cannot be relied on: degradedFailures or more processes failed in the last minute, or calls are held off because too
	// many in a row brought no verdict. While a process answers, State says so too.
	Degraded bool
	// InFlight is how many calls are under way.
	InFlight int
	// LastError is why the last process ended or could not be started, "" if none has.
	LastError string
	// LastCallError is when and why a call last brought no verdict, such as an answer beyond the grant; "" if all have brought one.
	LastCallError string
}

// EventKind is a change in a plugin's life. The kinds are the audit actions "plugin.<kind>".
type EventKind string

// The kinds of events.
const (
	EventLoad    EventKind = "load"    // a process is ready, for the first time since the Host was made
	EventReload  EventKind = "reload"  // an operator's reload succeeded
	EventRestart EventKind = "restart" // a process is ready again after a crash
	EventCrash   EventKind = "crash"   // a process ended by itself, or was ended because it no longer answered
	EventFail    EventKind = "fail"    // a process could not be started, or a reload was turned down
	EventRefuse  EventKind = "refuse"  // an executable was refused, such as for its checksum
	EventDegrade EventKind = "degrade" // it failed degradedFailures times within a minute
	EventRecover EventKind = "recover" // it no longer does
	EventStop    EventKind = "stop"    // it was stopped with the Host
)

// Event is one change in a plugin's life, for the audit log.
type Event struct {
	Time    time.Time
	Plugin  string
	Kind    EventKind
	SHA256  string // of the executable concerned
	Version string
	PID     int
	Reason  string // of a crash, failure or refusal
}
