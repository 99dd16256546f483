//go:build !linux

package wasm

// doorbell is there on Linux only. Elsewhere guests let others go first who are ready to run.
type doorbell struct{}

func newDoorbell() *doorbell { return nil }

func (*doorbell) ring() {}

func (*doorbell) close() {}
