package store

import (
	"errors"
	"os"
	"time"
)

// reserve is disk space set aside in a file of its own. When the disk is full the file is given up, and essential changes
// are written in its place, so that a key can be revoked on a full disk. The writer's goroutine owns it.
type reserve struct {
	path    string
	size    int64     // 0 or less: there is none, and none is wanted
	have    bool      // the file holds the space
	used    bool      // the file was given up for an essential change
	retryAt time.Time // when to try to set the space aside again
}

func reservePath(cfg *Config) string { return cfg.Path + ".reserve" }

// newReserve sets the space aside if the disk has it. A server that starts on a full disk works without.
func newReserve(cfg *Config) *reserve {
	r := &reserve{path: reservePath(cfg), size: cfg.Reserve}
	if r.size > 0 {
		r.have = r.allocate() == nil
	}
	return r
}

// release gives the space up for an essential change. It reports whether there was any.
func (r *reserve) release(now time.Time) bool {
	if !r.have || os.Remove(r.path) != nil {
		return false
	}
	r.have, r.used, r.retryAt = false, true, now.Add(retryEvery)
	return true
}

// whole reports whether changes of any kind may be written. After the space was given up it tries, not too often, to set it aside
// again, which is also how it finds out that the disk is not full any more.
func (r *reserve) whole(now time.Time) bool {
	if !r.used {
		return true
	}
	if now.Before(r.retryAt) {
		return false
	}
	r.retryAt = now.Add(retryEvery)
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
