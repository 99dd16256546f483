//go:build !linux || !(amd64 || arm64)

package wasm

func newBacking(memory []byte, _ ResetMode) ([]byte, backing, error) {
	b, h := newHeap(memory)
	return b, h, nil
}
