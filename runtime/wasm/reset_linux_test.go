//go:build amd64 || arm64

package wasm

import (
	"bytes"
	"os"
	"testing"
)

// TestResettersGiveBack: a use that writes much of a memory does not leave it with the shell, and afterwards as few pages are copied as before.
func TestResettersGiveBack(t *testing.T) {
	t.Parallel()
	page := os.Getpagesize()
	content := bytes.Repeat([]byte("keyfire!"), (manyPages+100)*page/8)
	for _, mode := range []ResetMode{ResetScan, ResetPagemap, ResetWatch} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			if _, err := newMemfd(mode); err != nil {
				t.Skipf("the kernel does not have it: %v", err)
			}
			mapped, back, err := newBacking(content, mode)
			if err != nil {
				t.Fatal(err)
			}
			defer back.close()
			img := &image{memory: mapped}
			memory, err := reserve(int64(len(content) + 4*page))
			if err != nil {
				t.Fatal(err)
			}
			defer unreserve(memory)
			r := back.attach(memory, img).(*pageResetter)
			if r.watched != nil != (mode == ResetWatch) {
				t.Errorf("watched are %d bytes", len(r.watched))
			}
			few := func() {
				t.Helper()
				if !img.equal(memory) {
					t.Fatal("a difference is left")
				}
				memory[page]++
				memory[len(content)-1]++
				memory[len(content)+page]++
				r.reset(memory, img)
				if !img.equal(memory) {
					t.Fatal("a difference is left")
				}
				if mode != ResetPagemap && r.written != 3 || r.written > 6 { // by that one, four pages that were only read look written
					t.Errorf("%d pages count as written, of 3", r.written)
				}
			}
			few()
			few()
			for at := range memory {
				memory[at] = 0xee
			}
			r.reset(memory, img)
			if r.written != 0 {
				t.Errorf("%d pages are left written", r.written)
			}
			few()
			few()
		})
	}
}
