//go:build unix

package store

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// Lock takes a data directory for this process, so that a second server on it refuses to start. The lock ends with the process,
// however that ends, or with Close of what is returned. The directory must exist; the file it leaves there, "lock", holds the process id, for
// people.
func Lock(dir string) (io.Closer, error) {
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock data directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		defer f.Close()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock data directory %s: %w", dir, err)
		}
		holder := ""
		if pid, err := io.ReadAll(io.LimitReader(f, 20)); err == nil && len(pid) > 0 {
			holder = " (process " + strings.TrimSpace(string(pid)) + ")"
		}
		return nil, fmt.Errorf("data directory %s is in use by another keyfire server%s; stop that one, or give this one a directory of its own", dir, holder)
	}
	if err := f.Truncate(0); err == nil {
		// Only the message above needs the number.
		_, _ = fmt.Fprintln(f, os.Getpid())
	}
	return f, nil
}
