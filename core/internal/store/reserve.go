package store

import (
	"errors"
	"os"
)

// reserve is disk space set aside in a file of its own. When the disk is full the file is given up, and essential changes
// are written in its place, so that a key can be revoked on a full disk. The writer's goroutine owns it.
type reserve struct {
	path string
	size int64
	have bool // the file holds the space
	used bool // the file was given up for an essential change and has not been restored
}

// newReserve sets the space aside if the disk has it; a server that starts on a full disk works without.
func newReserve(cfg *Config) *reserve {
	r := &reserve{path: cfg.Path + ".reserve", size: cfg.Reserve}
	if r.size > 0 {
		r.have = r.allocate() == nil
	}
	return r
}

// spent reports whether the space was given up and is not back yet.
func (r *reserve) spent() bool { return r.used }

// release gives the space up. It reports whether there was any.
func (r *reserve) release() bool {
	if !r.have {
		return false
	}
	r.have = false
	r.used = os.Remove(r.path) == nil
	return r.used
}

// restore sets the space aside again once the disk has it, and reports whether it is there.
func (r *reserve) restore() bool {
	if r.allocate() != nil {
		return false
	}
	r.have, r.used = true, false
	return true
}

// allocate fills the file with zeros, for a hole would take no space. On failure the file is removed, so that its part of the
// space is not lost to the changes it is for.
func (r *reserve) allocate() (err error) {
	f, err := os.OpenFile(r.path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			err = errors.Join(err, os.Remove(r.path))
		}
	}()
	info, err := f.Stat()
	if err != nil || info.Size() == r.size {
		return err
	}
	zeros := make([]byte, 1<<20)
	for at := int64(0); at < r.size; {
		n, err := f.WriteAt(zeros[:min(int64(len(zeros)), r.size-at)], at)
		if err != nil {
			return err
		}
		at += int64(n)
	}
	if err := f.Truncate(r.size); err != nil {
		return err
	}
	// Delayed allocation would find out only now that there is no space.
	return f.Sync()
}
