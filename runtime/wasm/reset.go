package wasm

import "bytes"

// ResetMode is a way to put the memory of an instance back to its image.
type ResetMode string

// The ways. All give the same result; the portable one needs no kernel's word for it.
const (
	ResetAuto    ResetMode = ""        // the fastest for the image's size, as measured once in the process
	ResetCopy    ResetMode = "copy"    // copy the whole image: portable
	ResetScan    ResetMode = "scan"    // copy the pages that PAGEMAP_SCAN names (Linux 6.7)
	ResetPagemap ResetMode = "pagemap" // copy the pages that /proc/self/pagemap names (Linux)
	ResetDiscard ResetMode = "discard" // give all pages back to the kernel (Linux)
)

// resetModes are all of them. One that the platform does not have is ResetCopy.
var resetModes = []ResetMode{ResetAuto, ResetCopy, ResetScan, ResetPagemap, ResetDiscard}

// resetter puts a shell's memory back to its image.
type resetter interface {
	// reset restores a memory.
	reset(memory []byte, img *image)
	// held returns about how many bytes an idle memory of the given size occupies.
	held(size int64) int64
}

// copier is the resetter that is correct everywhere: it copies the whole image.
type copier struct{}

func (copier) reset(memory []byte, img *image) {
	n := copy(memory, img.memory)
	clear(memory[n:])
}

func (copier) held(size int64) int64 { return size + instanceSize }

// instanceSize is about what an idle instance holds beside its memory.
const instanceSize = 64 << 10

// backing is where an image's bytes are.
type backing interface {
	// attach makes the beginning of a memory equal to the image, and returns its resetter. It may replace the memory's pages by some that it
	// shares with the image.
	attach(memory []byte, img *image) resetter
	close()
}

// heap is the backing that is there everywhere.
type heap struct{}

func (heap) attach(memory []byte, img *image) resetter {
	copy(memory, img.memory)
	return copier{}
}

func (heap) close() {}

func newHeap(memory []byte) ([]byte, backing) { return bytes.Clone(memory), heap{} }
