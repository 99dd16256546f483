package wasm

// experiments says which of the engine's experimental interfaces are left alone. The engine may change or drop them at any time, so each is
// used by one file only and has a fallback that gives the same results more slowly; a test runs every fallback. The zero value uses them all.
//
//	memory.go    the allocator of linear memory: without it, the engine's own memory on the Go heap, reset by copying
//	stack.go     the snapshots of machine stacks: without them, an instance started ahead for each invocation of a command
//	workers.go   concurrent compilation: without it, one thread
//
// When a new version of the engine drops one, its file loses the import and the switch here stays on.
type experiments struct {
	memory, stack bool
}
