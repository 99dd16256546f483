package plugins

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// ErrRefused marks an executable that must not be run: wrong digest, loose permissions, a symbolic link. Waiting does not help, so the
// supervisor does not retry; a reload reads the file again.
var ErrRefused = errors.New("executable refused")

// maxBinary bounds the memory that one plugin's executable takes.
const maxBinary = 512 << 20

// binary is an executable that was read once. What was hashed and what runs are the same memory.
type binary struct {
	file   *os.File // sealed memory, or a private copy where the system has none
	digest string   // hex
	remove func()   // of the private copy
}

func (b *binary) close() {
	if b != nil {
		_ = b.file.Close()
		b.remove()
	}
}

// pin reads the executable at path and returns it if its digest is want. dir is for systems that cannot execute from memory.
func pin(path, want, dir string) (*binary, error) {
	if err := checkDirs(filepath.Dir(path)); err != nil {
		return nil, err
	}
	src, err := openNoFollow(path)
	if err != nil {
		var perr *fs.PathError
		if errors.As(err, &perr) && errors.Is(err, errSymlink) {
			return nil, fmt.Errorf("%w: %s is a symbolic link; name the file itself", ErrRefused, path)
		}
		return nil, fmt.Errorf("open executable: %w", err)
	}
	defer func() { _ = src.Close() }()
	info, err := src.Stat()
	if err != nil {
		return nil, fmt.Errorf("open executable: %w", err)
	}
	switch mode := info.Mode(); {
	case !mode.IsRegular():
		return nil, fmt.Errorf("%w: %s is not a regular file", ErrRefused, path)
	case mode.Perm()&0o111 == 0:
		return nil, fmt.Errorf("%w: %s is not executable", ErrRefused, path)
	case mode.Perm()&0o022 != 0:
		return nil, fmt.Errorf("%w: %s is writable by group or others (mode %04o); chmod go-w", ErrRefused, path, mode.Perm())
	case !ownedByUs(info):
		return nil, fmt.Errorf("%w: %s belongs to neither root nor the server's user", ErrRefused, path)
	case info.Size() > maxBinary:
		return nil, fmt.Errorf("%w: %s is larger than %d MiB", ErrRefused, path, maxBinary>>20)
	}
	dst, err := newExecutable(filepath.Base(path), dir)
	if err != nil {
		return nil, fmt.Errorf("copy executable: %w", err)
	}
	hash := sha256.New()
	if _, err := io.Copy(io.MultiWriter(dst.file, hash), io.LimitReader(src, maxBinary+1)); err != nil {
		dst.close()
		return nil, fmt.Errorf("copy executable: %w", err)
	}
	dst.digest = hex.EncodeToString(hash.Sum(nil))
	if dst.digest != want {
		dst.close()
		return nil, fmt.Errorf("%w: %s has sha256 %s, the configuration says %s", ErrRefused, path, dst.digest, want)
	}
	if err := dst.seal(); err != nil {
		dst.close()
		return nil, fmt.Errorf("seal executable: %w", err)
	}
	return dst, nil
}

// checkDirs refuses a directory in which somebody else could put another file in the executable's place. The digest would find that
// out, but a plugin that stops working because of it is an outage in somebody else's hands.
func checkDirs(dir string) error {
	for d := dir; ; d = filepath.Dir(d) {
		info, err := os.Lstat(d)
		if err != nil {
			return fmt.Errorf("open executable: %w", err)
		}
		loose := info.Mode().Perm()&0o022 != 0
		switch {
		case info.Mode()&fs.ModeSymlink != 0:
			return fmt.Errorf("%w: %s is a symbolic link; write the path without it", ErrRefused, d)
		case loose && (d == dir || info.Mode()&fs.ModeSticky == 0):
			return fmt.Errorf("%w: directory %s is writable by group or others (mode %04o); chmod go-w", ErrRefused, d, info.Mode().Perm())
		case !ownedByUs(info):
			return fmt.Errorf("%w: directory %s belongs to neither root nor the server's user", ErrRefused, d)
		}
		if d == filepath.Dir(d) {
			return nil
		}
	}
}
