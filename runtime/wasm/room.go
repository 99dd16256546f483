package wasm

import (
	"cmp"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// A cache directory with a bound holds what was used last, by the times of its files. Each file is removed by itself: what is left of a module whose
// other files are gone is built again when it is asked for, and otherwise grows old. So nothing has to know which files belong together, those of other
// versions of the engine and of processes that were killed between two of them included, and processes need no lock.

// makeRoom removes the files that were not used for longest, but for those that are spared, until so many more bytes fit.
func (a *artifacts) makeRoom(size int64, spared ...string) error {
	if a.most == 0 {
		return nil
	}
	type file struct {
		path string
		info fs.FileInfo
	}
	var files []file
	used := size
	for _, d := range []string{"engine", "records", "prepared"} {
		err := filepath.WalkDir(filepath.Join(a.dir, d), func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				var info fs.FileInfo
				if info, err = d.Info(); err == nil {
					files = append(files, file{path, info})
					used += info.Size()
				}
			}
			return gone(err) // another process makes room too
		})
		if err != nil {
			return err
		}
	}
	slices.SortFunc(files, func(x, y file) int {
		return cmp.Or(x.info.ModTime().Compare(y.info.ModTime()), cmp.Compare(x.path, y.path))
	})
	for _, f := range files {
		if used <= a.most {
			break
		}
		if slices.Contains(spared, f.path) {
			continue
		}
		if err := gone(os.Remove(f.path)); err != nil {
			return err
		}
		used -= f.info.Size()
	}
	return nil
}

// used notes that files were read. Where that is not allowed, they are older than they could be.
func (a *artifacts) used(files ...string) {
	if a.most == 0 {
		return
	}
	now := time.Now()
	for _, f := range files {
		_ = os.Chtimes(f, now, now)
	}
}

// gone takes it for success that a file is not there.
func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
