package plugins

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

var errSymlink error = unix.ELOOP // what open with O_NOFOLLOW answers

// openNoFollow opens path for reading. O_NONBLOCK keeps a FIFO in the executable's place from holding up the server.
func openNoFollow(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
}

func ownedByUs(info fs.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && (st.Uid == 0 || int(st.Uid) == os.Geteuid())
}

// newExecutable returns anonymous memory that can be executed. Kernels since 6.3 want to be told that it will be.
func newExecutable(name, _ string) (*binary, error) {
	flags := unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate(name, flags|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) {
		fd, err = unix.MemfdCreate(name, flags)
	}
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	return &binary{file: os.NewFile(uintptr(fd), name), remove: func() {}}, nil
}

// seal makes the memory unchangeable for everybody, for good.
func (b *binary) seal() error {
	_, err := unix.FcntlInt(b.file.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL)
	return os.NewSyscallError("fcntl", err)
}

// command returns the command that executes b. The descriptor becomes number 3 of the child, and the kernel resolves the path in the child,
// after descriptors are in place and before it becomes the plugin. An interpreter named by a script's first line opens it the same way.
func (b *binary) command() *exec.Cmd {
	return &exec.Cmd{Path: "/proc/self/fd/3", Args: []string{filepath.Base(b.file.Name())}, ExtraFiles: []*os.File{b.file}, Dir: "/"}
}

// isolate gives the process a group of its own, so that its children can be ended with it and a terminal's ^C reaches the server alone,
// and has the kernel kill it when the thread that started it ends. See forker for that thread.
func isolate(cmd *exec.Cmd, user *User) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if user != nil {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: user.UID, Gid: user.GID}
	}
}

// killGroup kills the process and what it started.
func killGroup(p *os.Process) { _ = unix.Kill(-p.Pid, unix.SIGKILL) }

// await returns when the process has been reaped, and with it what it started. It waits without reaping first: until then the id
// belongs to nobody else, and the group can be killed by it.
func (p *process) await() {
	for errors.Is(unix.Waitid(unix.P_PID, p.cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil), unix.EINTR) {
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	killGroup(p.cmd.Process)
	_ = p.cmd.Wait()
	p.reaped = true
}

// lockDir makes sure that one Host at a time uses dir. The kernel drops the lock with the process.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("another server uses %s: %w", dir, err)
	}
	return f, nil
}
