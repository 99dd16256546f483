package wasm

// Numbers of calls that package syscall does not know.
const (
	sysMemfdCreate = 319
	sysUserfaultfd = 323
)
