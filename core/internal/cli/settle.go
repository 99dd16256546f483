package cli

import "runtime/debug"

// settle gives back what only the start needed: garbage of the heap, and pages of the program itself, of which a start touches most and serving
// few. Both would go in time, when the machine is short of memory; until then they look as if the server needed them.
func settle() {
	debug.FreeOSMemory()
	dropProgram()
}
