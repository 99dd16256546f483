package wasm

import (
	"os"
	"runtime"
	"syscall"
)

// doorbell has Go's scheduler look for what the network has brought, which it does otherwise when nothing is ready to run, or every 10 ms. Who rings waits for something that the network
// has brought already: the bell itself. So for a moment it is not ready to run, and if nobody else is, the scheduler looks.
//
// It is used by one goroutine at a time.
type doorbell struct {
	file *os.File
	raw  syscall.RawConn
	rung bool
	look func(fd uintptr) (done bool)
}

var ringing = []byte{1, 0, 0, 0, 0, 0, 0, 0} // adds one to the counter that the file is

// newDoorbell returns nil where there is none.
func newDoorbell() *doorbell {
	fd, _, failed := syscall.Syscall(syscall.SYS_EVENTFD2, 0, syscall.O_CLOEXEC|syscall.O_NONBLOCK, 0)
	if failed != 0 {
		return nil
	}
	b := &doorbell{file: os.NewFile(fd, "doorbell")}
	var err error
	if b.raw, err = b.file.SyscallConn(); err != nil {
		_ = b.file.Close()
		return nil
	}
	b.look = func(fd uintptr) bool {
		if b.rung {
			return true
		}
		b.rung = true
		_, err := syscall.Write(int(fd), ringing) // the poller hears of each, so nobody need read the file
		return err != nil
	}
	return b
}

// ring lets everybody go first who is ready to run, or becomes it by what the network has brought.
func (b *doorbell) ring() {
	b.rung = false
	if b.raw.Read(b.look) != nil {
		runtime.Gosched()
	}
}

func (b *doorbell) close() { _ = b.file.Close() }
