//go:build linux && (amd64 || arm64)

package wasm

import (
	"errors"
	"os"
	"syscall"
	"unsafe"
)

// On Linux an image lies in a sealed memory file, which the memories of its shells map privately: an idle shell holds only the pages that
// some use has written, and a reset copies only those. The kernel says which they are: a page that is present and belongs to no file
// was written. Nothing is counted or guessed, so none can be missed.

// newBacking makes the backing of an image from the memory of a booted shell, and returns the image's bytes.
func newBacking(memory []byte, mode ResetMode) ([]byte, backing, error) {
	if mode == ResetAuto {
		mode = fastest(len(memory))
	}
	how, err := newMemfd(mode)
	if mode == ResetCopy || err != nil || len(memory) == 0 { // of nothing there is no mapping
		b, h := newHeap(memory)
		return b, h, nil //nolint:nilerr // where the kernel does not help, the portable backing does
	}
	f, mapped, err := mappedFile(memory)
	if err != nil {
		// Out of descriptors or mappings; or the kernel would not seal the file while, for a moment, something held a page of it.
		b, h := newHeap(memory)
		return b, h, nil //nolint:nilerr // as above
	}
	how.file, how.mapped = f, mapped
	return mapped, &how, nil
}

// mappedFile makes a file in memory with the given content, and maps it.
func mappedFile(content []byte) (*os.File, []byte, error) {
	f, err := memoryFile(content)
	for tries := 0; errors.Is(err, syscall.EBUSY) && tries < 3; tries++ {
		f, err = memoryFile(content)
	}
	if err != nil {
		return nil, nil, err
	}
	mapped, err := syscall.Mmap(int(f.Fd()), 0, len(content), syscall.PROT_READ, syscall.MAP_PRIVATE)
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return f, mapped, nil
}

const (
	memfdCloexec      = 0x1
	memfdAllowSealing = 0x2
	fcntlAddSeals     = 1033
	allSeals          = 0xf // seal, shrink, grow, write
)

// memoryFile makes a file in memory with the given content, which nobody can change any more.
func memoryFile(content []byte) (*os.File, error) {
	name := []byte("keyfire-image\x00")
	fd, _, e := syscall.Syscall(sysMemfdCreate, uintptr(unsafe.Pointer(&name[0])), memfdCloexec|memfdAllowSealing, 0)
	if e != 0 {
		return nil, os.NewSyscallError("memfd_create", e)
	}
	f := os.NewFile(fd, "keyfire-image")
	if _, err := f.Write(content); err != nil {
		f.Close()
		return nil, err
	}
	if _, _, e := syscall.Syscall(syscall.SYS_FCNTL, fd, fcntlAddSeals, allSeals); e != 0 {
		f.Close()
		return nil, os.NewSyscallError("fcntl(F_ADD_SEALS)", e)
	}
	return f, nil
}

// memfd is an image in a memory file.
type memfd struct {
	finder finder // nil gives all pages back at every reset
	watch  bool   // the kernel watches for writes, and finder is for when it would not
	file   *os.File
	mapped []byte
}

func (m *memfd) attach(memory []byte, img *image) resetter {
	addr := uintptr(unsafe.Pointer(&memory[0]))
	// Whole pages of 4 KiB are what is looked for and copied, so none may be larger.
	_ = syscall.Madvise(memory, syscall.MADV_NOHUGEPAGE)
	at, _, e := syscall.Syscall6(syscall.SYS_MMAP, addr, uintptr(len(m.mapped)), syscall.PROT_READ|syscall.PROT_WRITE,
		syscall.MAP_PRIVATE|syscall.MAP_FIXED, m.file.Fd(), 0)
	if e != 0 || at != addr {
		// Out of mappings, most likely. A failed call has changed nothing.
		copy(memory, img.memory)
		return copier{}
	}
	if m.finder == nil {
		return &discarder{}
	}
	if within := memory[:len(m.mapped)]; m.watch && watch(within) == nil {
		pagemap, _ := openPagemap() // has been opened
		return &pageResetter{finder: watched(pagemap, len(within)), watched: within}
	}
	return &pageResetter{finder: m.finder}
}

func (m *memfd) close() {
	// Private mappings of shells that are closed later keep the file's pages.
	_ = syscall.Munmap(m.mapped)
	_ = m.file.Close()
}

// finder calls f with each range of pages of a memory that may no longer be the image's, and whether they are known to be the kernel's own page
// of zeros. It reports false when the kernel does not say.
type finder func(memory []byte, f func(start, end uintptr, zero bool)) bool

// newMemfd returns what a mode does, without its image.
func newMemfd(mode ResetMode) (memfd, error) {
	if mode == ResetDiscard || mode == ResetCopy {
		return memfd{}, nil
	}
	pagemap, err := openPagemap()
	if err != nil {
		return memfd{}, err
	}
	m := memfd{finder: scanner(pagemap)}
	switch mode {
	case ResetPagemap:
		m.finder = entries(pagemap)
	case ResetWatch:
		m.watch = true
		if _, err := openFaults(); err != nil {
			return memfd{}, err
		}
	}
	return m, tryReset(&m)
}

// pageResetter copies back the pages that were written.
type pageResetter struct {
	finder  finder
	watched []byte // what the kernel watches of the memory
	written int    // pages, at the last reset
}

// manyPages is how many written pages are given back to the kernel, rather than copied back now and at every later reset.
const manyPages = 1024

func (p *pageResetter) held(int64) int64 { return int64(p.written * os.Getpagesize()) }

func (p *pageResetter) reset(memory []byte, img *image) {
	base := uintptr(unsafe.Pointer(&memory[0]))
	p.written = 0
	ok := p.finder(memory, func(start, end uintptr, zero bool) {
		from, to := int(start-base), min(int(end-base), len(memory))
		if from < len(img.memory) {
			n := copy(memory[from:to], img.memory[from:])
			p.written += n / os.Getpagesize()
			from += n
		}
		if zero {
			return // it was read beyond the image, and not written
		}
		p.written += (to - from) / os.Getpagesize()
		for from < to { // a page of zeros may be the kernel's own, which to clear would be to write; or may be the guest's
			page := memory[from:min(from+os.Getpagesize(), to)]
			if !allZero(page) {
				clear(page)
			}
			from += len(page)
		}
	})
	if !ok {
		copier{}.reset(memory, img)
		return
	}
	if p.written > manyPages && discard(memory) {
		p.written = 0
		if len(p.watched) > 0 {
			_ = protect(p.watched) // pages that are not protected count as written, so nothing but time would be lost
		}
	}
}

// discarder gives all pages back: private pages of the file go back to its content, the others to zero.
type discarder struct{}

func (*discarder) held(int64) int64 { return 0 }

func (*discarder) reset(memory []byte, img *image) {
	if !discard(memory) {
		copier{}.reset(memory, img)
	}
}

func discard(memory []byte) bool { return syscall.Madvise(memory, syscall.MADV_DONTNEED) == nil }
