package cli

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/keyfire/keyfire/auth"
)

// Names within the data directory.
const (
	lockFile     = "keyfire.lock"
	socketFile   = "keyfire.sock"
	pepperFile   = "pepper.json"
	vaultFile    = "secrets.json"
	sealFile     = "audit.seals"
	databaseFile = "keyfire.db"
	cacheDir     = "cache"
	pluginDir    = "plugins" // sockets of auth plugins
)

// dataDir is the server's data directory, held by this process alone. Everything in it is the owner's only: the database holds
// inputs and outputs, the pepper makes stolen key hashes useless, and the socket takes orders without a key.
type dataDir struct {
	path string
	lock *os.File
}

// openDataDir creates the directory if there is none and takes its lock. It refuses a directory that others can enter, and one
// that another server holds. Close releases it.
func openDataDir(path string) (_ *dataDir, err error) {
	if err := ownDir("data directory", path); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(path, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	defer func() {
		if err != nil {
			lock.Close()
		}
	}()
	// The lock goes with the process, however that ends; the file stays and holds the pid for whoever comes second.
	switch err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); {
	case errors.Is(err, syscall.EWOULDBLOCK):
		holder, _ := io.ReadAll(io.LimitReader(lock, 200))
		pid, _, _ := bytes.Cut(holder, []byte("\n"))
		return nil, fmt.Errorf("data directory %s is in use by the server with pid %s; stop it first or choose another with --data", path, pid)
	case err != nil:
		return nil, fmt.Errorf("lock data directory %s: %w", path, err)
	}
	// In place: a full disk might not give back what truncating frees.
	n, err := lock.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0)
	if err == nil {
		err = lock.Truncate(int64(n))
	}
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	return &dataDir{path: path, lock: lock}, nil
}

// ownDir creates a directory if there is none, and refuses one that is not this user's alone. what is its name in errors.
func ownDir(what, path string) error {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("%s %s belongs to uid %d and this is uid %d; run keyfire as its owner", what, path, st.Uid, os.Geteuid())
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return fmt.Errorf("%s %s can be entered by others (mode %04o); run: chmod 0700 %s", what, path, mode, shellQuote(path))
	}
	return nil
}

func (d *dataDir) file(name string) string { return filepath.Join(d.path, name) }

// note leaves the server's address beside its pid, for commands that show callers how to reach it.
func (d *dataDir) note(url string) error {
	text := fmt.Sprintf("%d\n%s\n", os.Getpid(), url)
	_, err := d.lock.WriteAt([]byte(text), 0)
	return err
}

// Close lets go of the directory.
func (d *dataDir) Close() error { return d.lock.Close() }

// listen opens the control socket. A socket left behind by a server that was killed is removed: nobody else can hold it, since
// this process has the lock. The directory's mode keeps others out from the first moment, the socket's own mode is for those who copy it elsewhere.
func (d *dataDir) listen() (net.Listener, error) {
	if err := os.Remove(d.file(socketFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	l, err := listenUnix(d.path, socketFile)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	if err := os.Chmod(d.file(socketFile), 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("control socket: %w", err), l.Close())
	}
	return &socketListener{Listener: l, path: d.file(socketFile)}, nil
}

// socketListener removes the socket's file by the path it really has; the one it was bound by may be an alias.
type socketListener struct {
	net.Listener
	path string
}

func (l *socketListener) Close() error {
	err := l.Listener.Close()
	if rerr := os.Remove(l.path); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
		err = errors.Join(err, rerr)
	}
	return err
}

// pepperDoc is the pepper's file: every version that some key was made with.
type pepperDoc struct {
	Versions map[int][]byte `json:"versions"` // base64 in the file
}

// pepper reads the pepper, and makes one when there is neither a pepper nor a database. A database without its pepper is refused: a
// new one would silently turn every key that was ever issued into an unknown one.
func (d *dataDir) pepper() (*auth.Pepper, error) {
	path := d.file(pepperFile)
	raw, err := d.readSecret(pepperFile)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if _, err := os.Stat(d.file(databaseFile)); !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%s is missing, but there is a database whose keys depend on it; put back the copy of it that goes with %s and that no backup holds", path, databaseFile)
		}
		if raw, err = d.makePepper(); err != nil {
			return nil, fmt.Errorf("make %s: %w", path, err)
		}
	case err != nil:
		return nil, fmt.Errorf("pepper: %w", err)
	}
	var doc pepperDoc
	// The decoder's own error could quote the file.
	if json.Unmarshal(raw, &doc) != nil {
		return nil, fmt.Errorf(`%s is damaged: want {"versions":{"1":"<base64 of %d bytes>"}}; restore it from a backup`, path, auth.PepperSize)
	}
	p, err := auth.NewPepper(doc.Versions)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return p, nil
}

// makePepper writes a fresh pepper so that it is there whole and durable, or not at all.
func (d *dataDir) makePepper() ([]byte, error) {
	secret := make([]byte, auth.PepperSize)
	rand.Read(secret) // never fails, by its contract
	raw, err := json.Marshal(pepperDoc{Versions: map[int][]byte{1: secret}})
	if err != nil {
		return nil, err
	}
	raw = append(raw, '\n')
	return raw, d.makeFile(pepperFile, raw)
}

// readSecret reads a file that makeFile wrote, and refuses one that others can read meanwhile. The error is fs.ErrNotExist when there is none.
func (d *dataDir) readSecret(name string) ([]byte, error) {
	path := d.file(name)
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("%s can be read by others (mode %04o); run: chmod 0600 %s", path, mode, shellQuote(path))
	}
	return io.ReadAll(f)
}

// makeFile writes a file of the owner's only so that it is there whole and durable, or not at all. It never replaces one.
func (d *dataDir) makeFile(name string, raw []byte) error {
	whole := d.file(name) + ".new"
	if err := os.Remove(whole); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err // left by a server that was killed right here
	}
	f, err := os.OpenFile(whole, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(raw)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	// A link, unlike a rename, never replaces a file that is there already.
	if err := os.Link(whole, d.file(name)); err != nil {
		return err
	}
	if err := os.Remove(whole); err != nil {
		return err
	}
	return syncDir(d.path)
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// shellQuote makes text one word of a POSIX shell.
func shellQuote(text string) string {
	if text != "" && !strings.ContainsFunc(text, func(r rune) bool {
		return !strings.ContainsRune("/._-+=:@%,abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", r)
	}) {
		return text
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}
