//go:build linux && (amd64 || arm64)

package wasm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"os"
	"sync"
	"syscall"
	"time"
	"unsafe"
)

// openPagemap opens the kernel's account of this process's pages, once: the file is a window on the process itself and stays open for its life.
var openPagemap = sync.OnceValues(func() (*os.File, error) { return os.Open("/proc/self/pagemap") })

// PAGEMAP_SCAN, as in linux/fs.h.
const (
	pagemapScan     = 0xc0606610
	pageWritten     = 1 << 1
	pageIsFile      = 1 << 2
	pagePresent     = 1 << 3
	pageSwapped     = 1 << 4
	pageZero        = 1 << 5 // the kernel's own page of zeros
	scanWatchedOnly = 1 << 1 // it is an error if the memory is not watched
	scanRegions     = 128    // in one call
	scanArgument    = 96     // bytes
)

type scanArgs struct {
	size, flags                                              uint64
	start, end, walkEnd                                      uint64
	vec, vecLen, maxPages                                    uint64
	categoryInverted, categoryMask, categoryAnyOf, returning uint64
}

type pageRegion struct{ start, end, categories uint64 }

// scanner is the finder that asks with PAGEMAP_SCAN for pages that are there and belong to no file.
func scanner(pagemap *os.File) finder {
	return scan(pagemap, scanArgs{categoryInverted: pageIsFile, categoryMask: pageIsFile, categoryAnyOf: pagePresent | pageSwapped, returning: pageZero})
}

// scan is the finder that asks with PAGEMAP_SCAN for certain pages.
func scan(pagemap *os.File, question scanArgs) finder {
	return func(memory []byte, f func(start, end uintptr, zero bool)) bool {
		var regions [scanRegions]pageRegion
		base := uint64(uintptr(unsafe.Pointer(&memory[0])))
		args := question
		args.size, args.start, args.end = scanArgument, base, base+uint64(len(memory))
		args.vec, args.vecLen = uint64(uintptr(unsafe.Pointer(&regions[0]))), scanRegions
		fd := pagemap.Fd()
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
}

// Bits of an entry of /proc/self/pagemap.
const (
	entryFile    = 1 << 61 // or shared
	entrySwapped = 1 << 62
	entryPresent = 1 << 63
)

// entries is the finder that reads the entry of every page.
func entries(pagemap *os.File) finder {
	page := os.Getpagesize()
	return func(memory []byte, f func(start, end uintptr, zero bool)) bool {
		var buf [8 * 512]byte
		base := uintptr(unsafe.Pointer(&memory[0]))
		for done := 0; done < len(memory); {
			want := min(len(buf), (len(memory)-done+page-1)/page*8)
			n, err := pagemap.ReadAt(buf[:want], int64((base+uintptr(done))/uintptr(page)*8))
			if err != nil || n != want {
				return false
			}
			start := -1
			for i := 0; i <= n; i += 8 {
				written := false
				if i < n {
					e := binary.NativeEndian.Uint64(buf[i:])
					written = e&(entryPresent|entrySwapped) != 0 && e&entryFile == 0
				}
				switch at := done + i/8*page; {
				case written && start < 0:
					start = at
				case !written && start >= 0:
					f(base+uintptr(start), base+uintptr(at), false)
					start = -1
				}
			}
			done += n / 8 * page
		}
		return true
	}
}

// tryReset resets a small memory in a way that is to be used, and looks whether it was.
func tryReset(m *memfd) error {
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
	probe := *m
	probe.file, probe.mapped = file, content
	r := probe.attach(memory, img)
	if _, ok := r.(copier); ok {
		return errors.New("memory files cannot be mapped")
	}
	for round := range 3 { // of 8 pages, the second is not written
		memory[1]++
		memory[2*os.Getpagesize()] = 0 // also a page that becomes all zero
		clear(memory[3*os.Getpagesize() : 4*os.Getpagesize()])
		memory[len(content)+round] = 1
		_ = memory[len(content)+os.Getpagesize()] // and one that is only read
		r.reset(memory, img)
		p, counts := r.(*pageResetter)
		if !img.equal(memory) || counts && (p.written < 4 || p.written > 7) {
			return errors.New("written pages are not found")
		}
	}
	return nil
}

// Sizes at which the ways of resetting are measured, and how many pages a use writes: a small module's, and a Go module's.
var measured = [2]struct{ size, pages int }{{smallImage, 4}, {4 << 20, 40}}

// resetCosts are what a reset took, for each way that works here.
var resetCosts = sync.OnceValue(func() map[ResetMode][len(measured)]time.Duration {
	costs := make(map[ResetMode][len(measured)]time.Duration)
	for _, mode := range resetModes[1:] {
		how, err := newMemfd(mode)
		if err != nil {
			continue
		}
		var c [len(measured)]time.Duration
		for i, m := range measured {
			if c[i], err = resetCost(mode, how, m.size, m.pages); err != nil {
				break
			}
		}
		if err == nil {
			costs[mode] = c
		}
	}
	return costs
})

// resetCost measures one way: the reset, and the writes before it, which take page faults after some of the ways. Everything was read before, as it is
// in use. The quickest of several rounds counts, since whatever else the machine does only adds.
func resetCost(mode ResetMode, how memfd, size, pages int) (time.Duration, error) {
	content := bytes.Repeat([]byte{1}, size)
	memory, err := reserve(int64(size))
	if err != nil {
		return 0, err
	}
	defer unreserve(memory)
	img := &image{memory: content}
	var r resetter = copier{}
	if mode == ResetCopy {
		copy(memory, content)
	} else {
		file, err := memoryFile(content)
		if err != nil {
			return 0, err
		}
		defer file.Close()
		how.file, how.mapped = file, content
		if r = how.attach(memory, img); r == (copier{}) {
			return 0, errors.New("memory files cannot be mapped")
		}
	}
	if !img.equal(memory) {
		return 0, errors.New("memory files do not have their content")
	}
	best := time.Duration(math.MaxInt64)
	for range 12 {
		began := time.Now()
		for p := range pages {
			memory[p*(size/pages)]++
		}
		r.reset(memory, img)
		best = min(best, time.Since(began))
	}
	if !img.equal(memory) {
		return 0, errors.New("a difference is left")
	}
	return best, nil
}

// fastest returns the way to reset an image of a size: between and beyond the two sizes measured, cost is taken to grow evenly. Images
// small enough are always copied, which needs no kernel's word for anything.
func fastest(size int) ResetMode {
	if size <= measured[0].size {
		return ResetCopy
	}
	best, least := ResetCopy, math.Inf(1)
	for _, mode := range resetModes[1:] {
		c, ok := resetCosts()[mode]
		if !ok {
			continue
		}
		share := float64(size-measured[0].size) / float64(measured[1].size-measured[0].size)
		if cost := float64(c[0]) + share*float64(c[1]-c[0]); cost < least {
			best, least = mode, cost
		}
	}
	return best
}
