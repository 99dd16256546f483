//go:build unix

package telemetry

import (
	"errors"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	patience = time.Second // how long a line waits for a reader that is slow
	chunk    = 4096        // what a pipe that is ready takes without waiting, PIPE_BUF of Linux
)

// lineWriter writes the log to a file whose reader may stop reading: a pipe, a socket, a terminal that somebody has halted. The first line waits a little for it, further ones
// are lost until it reads again; the server goes on.
type lineWriter struct {
	file *os.File
	fd   int32
	lost *gate

	mu     sync.Mutex
	stuck  bool
	broken bool // the last line has no end
}

// local returns what the log is written through.
func local(file *os.File, lost *gate) *lineWriter {
	return &lineWriter{file: file, fd: int32(file.Fd()), lost: lost}
}

var errStuck = errors.New("nobody reads the log")

func (l *lineWriter) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.broken {
		if !l.ready() {
			return 0, l.lose(errStuck)
		}
		if _, err := l.write([]byte("\n")); err != nil {
			return 0, l.lose(err)
		}
		l.broken = false
	}
	for done := 0; done < len(line); {
		if !l.ready() {
			return done, l.lose(errStuck)
		}
		n, err := l.write(line[done:min(len(line), done+chunk)])
		done += n
		l.broken = done > 0 && done < len(line)
		if err != nil {
			return done, l.lose(err)
		}
	}
	return len(line), nil
}

// write is the file's Write for what is ready. That one ends the process when the file is standard output or error and its reader has gone.
func (l *lineWriter) write(p []byte) (int, error) {
	defer runtime.KeepAlive(l.file)
	for {
		n, err := unix.Write(int(l.fd), p)
		if !errors.Is(err, unix.EINTR) {
			return max(n, 0), err
		}
	}
}

func (l *lineWriter) lose(err error) error {
	l.lost.fail(err)
	return err
}

// ready reports whether a chunk can be written without waiting, or that writing it will say what is wrong.
func (l *lineWriter) ready() bool {
	wait := patience
	if l.stuck {
		wait = 0
	}
	for until := time.Now().Add(wait); ; {
		fds := []unix.PollFd{{Fd: l.fd, Events: unix.POLLOUT}}
		n, err := unix.Poll(fds, int(max(time.Until(until), 0).Milliseconds()))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		l.stuck = n == 0 && err == nil
		return !l.stuck
	}
}
