//go:build linux && (amd64 || arm64)

package wasm

import (
	"os"
	"sync"
	"syscall"
	"unsafe"
)

// What PAGEMAP_SCAN tells of a page that was read and not written costs the kernel a look at the page itself, 40 ns, and whoever reads one page of a file
// has 15 others mapped beside it: of a Go module that came to most of a reset. So the kernel is asked to watch: it takes the right to write from every
// page of an image, and gives it back without a word to a page that is written (userfaultfd's WP_ASYNC, Linux 6.7). A page that has it was
// written, or is not known to be unwritten, and is copied at this reset and all later ones: nobody takes the right away a second time, so that there
// is one fault for each page in a shell's life, as there is without watching.

// As in linux/userfaultfd.h.
const (
	faultsUserOnly      = 1 // all that an unprivileged process may ask for, and enough
	faultsAPI           = 0xc018aa3f
	faultsAPIVersion    = 0xaa
	faultsAsync         = 1 << 15
	faultsRegister      = 0xc020aa00
	faultsRegisterWrite = 2
	faultsProtect       = 0xc018aa06
	faultsProtectOn     = 1
)

// openFaults opens the kernel's window on this process's page faults, once. Nothing is ever read from it.
var openFaults = sync.OnceValues(func() (*os.File, error) {
	fd, _, e := syscall.Syscall(sysUserfaultfd, syscall.O_CLOEXEC|faultsUserOnly, 0, 0)
	if e != 0 {
		return nil, os.NewSyscallError("userfaultfd", e)
	}
	f := os.NewFile(fd, "userfaultfd")
	api := struct{ version, features, ioctls uint64 }{version: faultsAPIVersion, features: faultsAsync}
	if err := control(f, faultsAPI, unsafe.Pointer(&api)); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
})

func control(f *os.File, request uintptr, argument unsafe.Pointer) error {
	if _, _, e := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), request, uintptr(argument)); e != 0 {
		return os.NewSyscallError("ioctl", e)
	}
	return nil
}

// watch has the kernel watch for writes to a memory, of which whole pages are mapped, until it is unmapped.
func watch(memory []byte) error {
	faults, err := openFaults()
	if err != nil {
		return err
	}
	registration := struct{ start, size, mode, ioctls uint64 }{start: uint64(uintptr(unsafe.Pointer(&memory[0]))), size: uint64(len(memory)), mode: faultsRegisterWrite}
	if err := control(faults, faultsRegister, unsafe.Pointer(&registration)); err != nil {
		return err
	}
	return protect(memory)
}

// protect takes the right to write from every page of a memory that is watched.
func protect(memory []byte) error {
	faults, err := openFaults()
	if err != nil {
		return err
	}
	protection := struct{ start, size, mode uint64 }{start: uint64(uintptr(unsafe.Pointer(&memory[0]))), size: uint64(len(memory)), mode: faultsProtectOn}
	return control(faults, faultsProtect, unsafe.Pointer(&protection))
}

// watched is the finder for a memory whose first n bytes are watched: what was written there, and beyond, where nothing is until something is written,
// what is there.
func watched(pagemap *os.File, n int) finder {
	within := scan(pagemap, scanArgs{flags: scanWatchedOnly, categoryMask: pageWritten, returning: pageWritten})
	beyond := scanner(pagemap)
	return func(memory []byte, f func(start, end uintptr, zero bool)) bool {
		return within(memory[:n], f) && (len(memory) == n || beyond(memory[n:], f))
	}
}
