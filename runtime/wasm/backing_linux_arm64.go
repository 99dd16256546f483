package wasm

// Numbers of calls that package syscall does not know.
const (
	sysMemfdCreate = 279
	sysUserfaultfd = 282
)
