package plugins

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/go-plugin/runner"
)

// forker starts processes, all from one thread that lives as long as it does. A parent-death signal is tied to the thread that
// started the process, not to the server, and Go ends threads as it pleases: a process started from just any goroutine could be killed
// for no reason.
type forker struct {
	work chan func()
	done chan struct{}
}

func newForker() *forker {
	f := &forker{work: make(chan func()), done: make(chan struct{})}
	go func() {
		defer close(f.done)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		for fn := range f.work {
			fn()
		}
	}()
	return f
}

func (f *forker) start(cmd *exec.Cmd) error {
	started := make(chan error)
	f.work <- func() { started <- cmd.Start() }
	return <-started
}

// close returns when the thread is done. No process may be running or be started any more.
func (f *forker) close() {
	close(f.work)
	<-f.done
}

// process is one run of a pinned executable. It is what go-plugin calls a runner.
type process struct {
	binary *binary
	env    []string
	user   *User
	forker *forker
	output *output
	dir    string // of its socket, removed with it

	cmd      *exec.Cmd
	lifeline *os.File // never written to: its end tells the plugin that the server is gone
	stdout   *os.File
	copied   sync.WaitGroup // reading of standard error
	exited   chan struct{}  // closed when the process has been reaped and its output read

	mu     sync.Mutex // its holder can rely on the process id being the process's
	killed bool       // before it was started
	reaped bool
}

var _ runner.Runner = (*process)(nil)

// grace is how long descendants may keep the output of an ended process open before it is closed under them.
const grace = 500 * time.Millisecond

// Start implements runner.Runner.
func (p *process) Start(context.Context) error {
	var files []*os.File
	closeAll := func() {
		for _, f := range files {
			_ = f.Close()
		}
	}
	pipe := func() (r, w *os.File, err error) {
		r, w, err = os.Pipe()
		if err == nil {
			files = append(files, r, w)
		}
		return r, w, err
	}
	stdin, lifeline, err1 := pipe()
	stdout, stdoutW, err2 := pipe()
	stderr, stderrW, err3 := pipe()
	if err := errors.Join(err1, err2, err3); err != nil {
		closeAll()
		return fmt.Errorf("start plugin: %w", err)
	}
	if p.user != nil {
		if err := os.Chown(p.dir, int(p.user.UID), int(p.user.GID)); err != nil {
			closeAll()
			return fmt.Errorf("start plugin as uid %d: %w", p.user.UID, err)
		}
	}
	cmd := p.binary.command()
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = p.env, stdin, stdoutW, stderrW
	isolate(cmd, p.user)
	p.lifeline, p.stdout = lifeline, stdout
	if err := p.fork(cmd); err != nil {
		closeAll()
		return fmt.Errorf("start plugin: %w", err)
	}
	_ = stdin.Close()
	_ = stdoutW.Close()
	_ = stderrW.Close()
	p.copied.Go(func() { p.output.copy(stderr, cmd.Process.Pid) })
	go p.reap(stdout, stderr)
	return nil
}

func (p *process) fork(cmd *exec.Cmd) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.killed {
		return context.Canceled
	}
	if err := p.forker.start(cmd); err != nil {
		return err
	}
	p.cmd = cmd
	return nil
}

// reap waits for the process and clears up after it: first whatever it started, then its pipes.
func (p *process) reap(stdout, stderr *os.File) {
	defer close(p.exited)
	p.await()
	// A descendant that left the group can still hold the pipes. Its output is not waited for.
	late := time.AfterFunc(grace, func() { _ = stderr.Close() })
	p.copied.Wait()
	late.Stop()
	_ = stderr.Close()
	_ = stdout.Close()
	_ = p.lifeline.Close()
}

// started reports whether there was a process.
func (p *process) started() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cmd != nil
}

// pid returns the process id. The process must have been started.
func (p *process) pid() int { return p.cmd.Process.Pid }

// how says in what way the process ended. It must have.
func (p *process) how() string { return p.cmd.ProcessState.String() }

// Wait implements runner.Runner.
func (p *process) Wait(context.Context) error {
	<-p.exited
	return nil
}

// Kill implements runner.Runner. It may be called at any time, and twice.
func (p *process) Kill(context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.cmd == nil:
		p.killed = true
	case !p.reaped:
		killGroup(p.cmd.Process)
	}
	return nil
}

// Stdout implements runner.Runner: the handshake is read from it.
func (p *process) Stdout() io.ReadCloser { return p.stdout }

// Stderr implements runner.Runner. The process's standard error is read elsewhere, so this only ends with it.
func (p *process) Stderr() io.ReadCloser { return endWith(p.exited) }

type endWith <-chan struct{}

func (e endWith) Read([]byte) (int, error) { <-e; return 0, io.EOF }
func (e endWith) Close() error             { return nil }

// Name implements runner.Runner.
func (p *process) Name() string { return p.binary.file.Name() }

// ID implements runner.Runner.
func (p *process) ID() string {
	if p.cmd == nil {
		return ""
	}
	return strconv.Itoa(p.cmd.Process.Pid)
}

// Diagnose implements runner.Runner.
func (p *process) Diagnose(context.Context) string { return "" }

// PluginToHost implements runner.Runner. Only a socket in the process's own directory is an address it may name.
func (p *process) PluginToHost(network, addr string) (string, string, error) {
	if network != "unix" || filepath.Dir(addr) != p.dir {
		return "", "", fmt.Errorf("plugin listens on %s %q; it must listen on a unix socket in $PLUGIN_UNIX_SOCKET_DIR", network, addr)
	}
	return network, addr, nil
}

// HostToPlugin implements runner.Runner.
func (p *process) HostToPlugin(network, addr string) (string, string, error) {
	return network, addr, nil
}
