//go:build !(darwin || dragonfly || freebsd || linux || netbsd || openbsd)

package wasm

// Without mmap, linear memory is an ordinary slice that grows by copying.

func reserve(int64) ([]byte, error) { return []byte{}, nil }

func extend(b []byte, size int64) []byte {
	if size <= int64(len(b)) {
		return b
	}
	grown := make([]byte, size)
	copy(grown, b)
	return grown
}

func unreserve([]byte) {}
