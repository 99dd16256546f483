//go:build linux && (amd64 || arm64)

package wasm

import (
	"bytes"
	"fmt"
	"os"
	"sync"
	"syscall"
	"unsafe"
)

// On Linux an image lies in a sealed memory file, which the memories of its shells map privately: an idle shell holds only the pages that
// some use has written, and a reset copies only those. The kernel says which they are (PAGEMAP_SCAN, since 6.7): a page that is
// present and belongs to no file was written. Nothing is counted or guessed, so none can be missed.

// newBacking makes the backing of an image from the memory of a booted shell, and returns the image's bytes.
func newBacking(memory []byte) ([]byte, backing, error) {
	scanner, err := pageScanner()
	if err != nil || copyOnly.Load() {
		return bytes.Clone(memory), heap{}, nil //nolint:nilerr // without a scanner, the portable backing does
	}
	f, err := memoryFile(memory)
	if err != nil {
		return nil, nil, fmt.Errorf("image: %w", err)
	}
	mapped, err := syscall.Mmap(int(f.Fd()), 0, len(memory), syscall.PROT_READ, syscall.MAP_PRIVATE)
	if err != nil {
		f.Close()
		return nil, nil, fmt.Errorf("image: %w", err)
	}
	return mapped, &memfd{scanner: scanner, file: f, mapped: mapped}, nil
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
	scanner *os.File
	file    *os.File
	mapped  []byte
}

func (m *memfd) attach(memory []byte) resetter {
	if copyOnly.Load() {
		return copier{}
	}
	addr := uintptr(unsafe.Pointer(&memory[0]))
	size := uintptr(len(m.mapped))
	// Whole pages of 4 KiB are what is scanned and copied, so none may be larger.
	_ = syscall.Madvise(memory, syscall.MADV_NOHUGEPAGE)
	// What was there equals the file, so the guest cannot tell.
	at, _, e := syscall.Syscall6(syscall.SYS_MMAP, addr, size, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_FIXED, m.file.Fd(), 0)
	if e != 0 || at != addr {
		return copier{}
	}
	return &pageResetter{scanner: m.scanner}
}

func (m *memfd) close() {
	// Private mappings of shells that are closed later keep the file's pages.
	_ = syscall.Munmap(m.mapped)
	_ = m.file.Close()
}

// pageResetter copies back the pages that were written.
type pageResetter struct {
	scanner *os.File
	written int // pages, at the last reset
}

// manyPages is how many written pages are given back to the kernel, rather than copied back now and at every later reset.
const manyPages = 1024

func (p *pageResetter) held(int64) int64 { return int64(p.written*os.Getpagesize()) + 64<<10 }

func (p *pageResetter) reset(memory []byte, img *image) {
	base := uintptr(unsafe.Pointer(&memory[0]))
	p.written = 0
	ok := !copyOnly.Load() && scanWritten(p.scanner, memory, func(start, end uintptr, zero bool) {
		from, to := int(start-base), int(end-base)
		if zero && from >= len(img.memory) {
			return // it was read, not written
		}
		p.written += (to - from) / os.Getpagesize()
		if from < len(img.memory) {
			from += copy(memory[from:to], img.memory[from:])
		}
		clear(memory[from:to])
	})
	if !ok {
		copier{}.reset(memory, img)
		return
	}
	if p.written > manyPages {
		// Private pages of the file go back to its content, the others to zero.
		if syscall.Madvise(memory, syscall.MADV_DONTNEED) == nil {
			p.written = 0
		}
	}
}

// PAGEMAP_SCAN, as in linux/fs.h.
const (
	pagemapScan  = 0xc0606610
	pageIsFile   = 1 << 2
	pagePresent  = 1 << 3
	pageSwapped  = 1 << 4
	pageZero     = 1 << 5 // the kernel's own page of zeros
	scanRegions  = 128    // in one call
	scanArgument = 96     // bytes
)

type scanArgs struct {
	size, flags                                              uint64
	start, end, walkEnd                                      uint64
	vec, vecLen, maxPages                                    uint64
	categoryInverted, categoryMask, categoryAnyOf, returning uint64
}

type pageRegion struct{ start, end, categories uint64 }

// scanWritten calls f with each range of pages of a memory that are no longer the image's, and whether they are the kernel's page of zeros. It
// reports false when the kernel does not say.
func scanWritten(scanner *os.File, memory []byte, f func(start, end uintptr, zero bool)) bool {
	var regions [scanRegions]pageRegion
	base := uint64(uintptr(unsafe.Pointer(&memory[0])))
	args := scanArgs{
		size: scanArgument, start: base, end: base + uint64(len(memory)),
		vec: uint64(uintptr(unsafe.Pointer(&regions[0]))), vecLen: scanRegions,
		categoryInverted: pageIsFile, categoryMask: pageIsFile, categoryAnyOf: pagePresent | pageSwapped, returning: pageZero,
	}
	fd := scanner.Fd()
	for args.start < args.end {
		n, _, e := syscall.Syscall(syscall.SYS_IOCTL, fd, pagemapScan, uintptr(unsafe.Pointer(&args)))
		if e == syscall.EINTR {
			continue
		}
		if e != 0 {
			return false
		}
		for _, r := range regions[:n] {
			f(uintptr(r.start), uintptr(r.end), r.categories&pageZero != 0)
		}
		args.start = args.walkEnd
	}
	return true
}

// pageScanner returns what written pages are asked of, once it has been seen to work on this kernel. The file stays open for the life of
// the process: it is a window on the process itself.
var pageScanner = sync.OnceValues(func() (*os.File, error) {
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return nil, err
	}
	if err := tryScanner(f); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
})

// tryScanner resets a small memory and looks whether it was.
func tryScanner(f *os.File) error {
	content := bytes.Repeat([]byte("keyfire!"), 4*os.Getpagesize()/8)
	file, err := memoryFile(content)
	if err != nil {
		return err
	}
	defer file.Close()
	memory, err := reserve(int64(2 * len(content)))
	if err != nil {
		return err
	}
	defer unreserve(memory)
	img := &image{memory: content}
	r := (&memfd{scanner: f, file: file, mapped: content}).attach(memory)
	p, ok := r.(*pageResetter)
	if !ok {
		return fmt.Errorf("memory files cannot be mapped")
	}
	for round := range 3 {
		memory[1]++
		memory[2*os.Getpagesize()] = 0 // also a page that becomes all zero
		clear(memory[3*os.Getpagesize() : 4*os.Getpagesize()])
		memory[len(content)+round] = 1
		p.reset(memory, img)
		if p.written == 0 || p.written > 4 || !img.equal(memory) {
			return fmt.Errorf("written pages are not found")
		}
	}
	return nil
}
