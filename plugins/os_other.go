//go:build !linux

package plugins

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
)

// Systems without sealed memory get a private copy of the executable in the runtime directory. That directory belongs to the server
// alone, so the copy that was hashed is the one that runs, as long as nobody else has the server's identity.

var errSymlink = errors.New("symbolic link")

func openNoFollow(path string) (*os.File, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		return nil, &fs.PathError{Op: "open", Path: path, Err: errSymlink}
	}
	return os.Open(path)
}

func ownedByUs(fs.FileInfo) bool { return true }

func newExecutable(name, dir string) (*binary, error) {
	tmp, err := os.MkdirTemp(dir, socketDirPrefix)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(tmp, name), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o700)
	if err != nil {
		_ = os.RemoveAll(tmp)
		return nil, err
	}
	return &binary{file: f, remove: func() { _ = os.RemoveAll(tmp) }}, nil
}

// seal closes the copy for writing: some systems refuse to execute a file that is open for writing.
func (b *binary) seal() error {
	name := b.file.Name()
	if err := b.file.Close(); err != nil {
		return err
	}
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	b.file = f
	return nil
}

func (b *binary) command() *exec.Cmd {
	return &exec.Cmd{Path: b.file.Name(), Args: []string{b.file.Name()}}
}

func isolate(*exec.Cmd, *User) {}

func killGroup(p *os.Process) { _ = p.Kill() }

func (p *process) await() { _ = p.cmd.Wait() }

func lockDir(dir string) (*os.File, error) {
	return os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
}
