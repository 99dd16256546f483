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
	ResetWatch   ResetMode = "watch"   // have the kernel watch for writes, and copy the pages that were written (Linux 6.7, where userfaultfd is allowed)
	ResetDiscard ResetMode = "discard" // give all pages back to the kernel (Linux)
)

// resetModes are all of them. One that the platform does not have is ResetCopy.
var resetModes = []ResetMode{ResetAuto, ResetCopy, ResetScan, ResetPagemap, ResetWatch, ResetDiscard}

// resetter puts a shell's memory back to its image.
type resetter interface {
	// reset restores a memory.
	reset(memory []byte, img *image)
	// held returns about how many bytes an idle memory of the given size occupies.
	held(size int64) int64
}

// smallImage is the size up to which an image is copied whole at each reset: that takes a few microseconds.
const smallImage = 256 << 10

// copier is the resetter that is correct everywhere: it copies the whole image.
type copier struct{}

func (copier) reset(memory []byte, img *image) {
	n := copy(memory, img.memory)
	clear(memory[n:])
}

func (copier) held(size int64) int64 { return size }

// pageCopier is the same for small images: it copies the pages that differ. Pages that nobody wrote and that are zero in the image are then not even
// there.
type pageCopier struct {
	there []bool // by page
	count int
}

const smallPage = 4096

func (p *pageCopier) reset(memory []byte, img *image) {
	for n := 0; n*smallPage < len(memory); n++ {
		at := n * smallPage
		now := memory[at:min(at+smallPage, len(memory))]
		if at >= len(img.memory) { // images have whole pages
			if !allZero(now) {
				clear(now)
				p.note(n)
			}
			continue
		}
		if want := img.memory[at : at+smallPage]; !bytes.Equal(now, want) {
			copy(now, want)
			p.note(n)
		}
	}
}

func (p *pageCopier) note(page int) {
	for page >= len(p.there) {
		p.there = append(p.there, false)
	}
	if !p.there[page] {
		p.there[page] = true
		p.count++
	}
}

func (p *pageCopier) held(int64) int64 { return int64(p.count) * smallPage }

// besides estimates what an idle instance of a module holds beside its memory: the engine's tables, which grow with the functions of the module, and its
// stack. Measured were 20 KiB for modules of 16 KB, and 170 KiB for a Go module of 3.8 MB.
func besides(module int64) int64 { return 20<<10 + module/24 }

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
	if len(img.memory) <= smallImage {
		p := &pageCopier{}
		p.reset(memory[:len(img.memory)], img)
		for at := 0; at < len(img.memory); at += smallPage {
			if !allZero(img.memory[at : at+smallPage]) {
				p.note(at / smallPage) // also where the memory was equal already
			}
		}
		return p
	}
	copy(memory, img.memory)
	return copier{}
}

func (heap) close() {}

func newHeap(memory []byte) ([]byte, backing) { return bytes.Clone(memory), heap{} }
