//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package wasm

import "syscall"

// Linear memory is mapped, not taken from the Go heap: the kernel hands out zero pages as they are touched, growth needs no copy, and a
// large guest does not move the garbage collector's goal.

func reserve(limit int64) ([]byte, error) {
	return syscall.Mmap(-1, 0, int(limit), syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
}

func extend(b []byte, _ int64) []byte { return b }

func unreserve(b []byte) {
	// An error would mean that the range is not mapped, which nothing here can cause and nothing could repair.
	_ = syscall.Munmap(b)
}
