package wasm

// Start is how invocations of a module begin. Which way a module gets follows from what its start-up does; it never changes what the
// module computes.
type Start string

// The ways to begin.
const (
	// StartShared: from one frozen image of the started module. Start-up neither read a clock nor asked for random bytes, or nothing
	// of that is left in its memory.
	StartShared Start = "shared"
	// StartReseeded: the same, and the Go runtime's random generators get a new state for each invocation.
	StartReseeded Start = "reseeded"
	// StartHooked: the same, and the module's own resume function is called with 32 random bytes before each invocation.
	StartHooked Start = "hooked"
	// StartAhead: in an instance that was started for this invocation alone, before it was asked for.
	StartAhead Start = "ahead"
	// StartPlain: each invocation starts the module anew.
	StartPlain Start = "plain"
)

// starts are all of them, in the order of their classes.
var starts = [...]Start{StartShared, StartReseeded, StartHooked, StartAhead, StartPlain}

// Class is the letter by which the documentation lists the ways.
func (s Start) Class() string {
	switch s {
	case StartShared:
		return "A"
	case StartReseeded:
		return "B"
	case StartHooked:
		return "C"
	case StartAhead:
		return "D"
	}
	return "E"
}
