package wasm

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/keyfire/keyfire/core"
)

// Bounds of one invocation. They are part of what a node's author may rely on.
const (
	MaxInput           = 1 << 20  // bytes of input
	MaxOutput          = 1 << 20  // bytes of output; a call may ask for less
	MaxLog             = 64 << 10 // bytes of log kept; the rest is counted
	MaxLogLines        = 1_000    // lines of log kept; the rest is counted in bytes
	DefaultMemoryLimit = 64 << 20 // bytes of linear memory
)

// Call is one invocation of a module.
type Call struct {
	Account string // whose module it is; handed to Config.Load
	Caller  string // for whom it is executed, a name within Account, or ""; callers have equal rights to memory
	Module  string // digest, "sha256:<hex>"
	Input   []byte // what the guest reads, at most MaxInput

	// Workflow is the id of the workflow, whose values the node reads and writes by the kv functions.
	Workflow string
	// Run and Step name the invocation to services outside: they make the Idempotency-Key of its HTTP requests, "<run>/<step>".
	Run, Step string
	// Config is a JSON object of what the guest reads beside its input, or nil. A command finds it in its input, as WithConfig puts it there; any
	// module finds it by name with the host function config_get.
	Config json.RawMessage
	// Export names the function of an Extism plugin to call; "" for the other doors.
	Export string
	// Grants are what the workflow lets the node do. A module that imports a host function without its grant is not started.
	Grants core.Grants

	// Engine is EnginePlain for a call that begins plain, whatever Config.Engine is; any other value leaves it to that.
	Engine Engine
	// Observe hears about HTTP requests of the guest; nil is nobody.
	Observe Observer
	// Record makes the call leave a tape, Result.Tape. It begins plain then, so that all that happens in it is on the tape.
	Record bool
	// Attempt is which attempt of the step this is, for the tape.
	Attempt int
	// Private are values, by name, that the call hands to the guest and that no tape may hold.
	Private map[string]string

	play *player // of a replay

	// Limits of this call. Zero fields take the defaults: core.DefaultNodeLimit, Config.MemoryLimit, MaxOutput. Values above
	// core.MaxRunTimeout, Config.MemoryLimit and MaxOutput are brought down to them.
	Limits core.Limits
}

// Result is what an invocation gave and cost. With an error it is filled as far as the invocation got.
type Result struct {
	Output     []byte         // one JSON value; nil with an error
	Log        []core.LogLine // what the guest wrote to standard error, in order
	LogDropped int64          // bytes of log beyond MaxLog or MaxLogLines
	PeakMemory int64          // bytes of linear memory at the largest
	Start      Start          // how the invocation began
	Fuel       int64          // instructions charged: a function's code and each turn of a loop count in full, taken or not
	Wall       time.Duration  // from the start of the guest to its end
	Host       time.Duration  // of Wall, spent waiting in host calls
	Queued     time.Duration  // waited for the memory budget
	Tape       *Tape          // of a recorded call; nil if it would be too large, or if the server failed and not the node
	TooLong    bool           // the tape would be too large
	Load       time.Duration  // waited for the module to be loaded; 0 when it was in memory
}

// Error says how a node failed. Every other error that Invoke returns is the server's, not the node's.
//
// Message and the fields above it may be shown to the caller of the workflow; Err is the cause, for the log, and errors.Is and errors.As see it.
type Error struct {
	Class    core.ErrorClass
	Message  string // one sentence, no final period, control characters removed
	ExitCode int    // of a guest that exited by itself; 0 otherwise
	// Status and Code are set when the node failed the run on purpose (class "failed"): an HTTP status from 400 to 599 and a code of the
	// author's choice, [a-z0-9_]{1,64}.
	Status int
	Code   string
	Err    error
}

// Error returns the class, the message and the cause.
func (e *Error) Error() string {
	s := string(e.Class) + ": " + e.Message
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

func errorf(class core.ErrorClass, format string, args ...any) *Error {
	return &Error{Class: class, Message: fmt.Sprintf(format, args...)}
}

// Info is what is known of a module once it was checked.
type Info struct {
	Digest    string   // "sha256:<hex>" of the binary
	Door      Door     // how it is entered
	Size      int64    // bytes of the binary
	MinMemory int64    // bytes of linear memory it starts with
	MaxMemory int64    // bytes it may grow to by its own declaration; 0 when it declares no maximum
	Imports   []string // host functions it asks for, "module.name", sorted
	Exports   []string // functions it exports, sorted
	Callable  []string // exported functions that a node may name with call, sorted
	Grants    []string // what a workflow must grant for it to be linked: "http", "secrets", "kv", "kv: write"
}
