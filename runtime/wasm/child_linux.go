package wasm

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"
)

// limitProcess bounds the calling process. A Go process reserves much address space before it begins to work, so the bound on memory is on
// what it maps from now on.
func limitProcess(memory int64, seconds int) error {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return fmt.Errorf("own address space: %w", err)
	}
	var pages uint64
	if _, err := fmt.Sscan(string(b), &pages); err != nil {
		return fmt.Errorf("own address space: %w", err)
	}
	for _, l := range []struct {
		name     string
		resource int
		value    uint64
	}{
		{"address space", syscall.RLIMIT_AS, pages*uint64(os.Getpagesize()) + uint64(memory)},
		{"CPU", syscall.RLIMIT_CPU, uint64(seconds)},
		{"file size", syscall.RLIMIT_FSIZE, 512 << 20},
		{"core file", syscall.RLIMIT_CORE, 0},
	} {
		if err := syscall.Setrlimit(l.resource, &syscall.Rlimit{Cur: l.value, Max: l.value}); err != nil {
			return fmt.Errorf("limit %s: %w", l.name, err)
		}
	}
	yield()
	// Where memory is short, as in a small container, this process is to end and not the server. It can be done again, and where it cannot be asked for, it is as before.
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("1000"), 0)
	return nil
}

// childNice is how far a compilation stands back for the server's triggers, on a machine where both want every processor.
const childNice = 5

// yield lowers the priority of this process. Each thread has its own; those that come later have that of the one that makes them.
func yield() {
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return // it computes as eagerly as the server, then
	}
	for _, t := range threads {
		if id, err := strconv.Atoi(t.Name()); err == nil {
			_ = syscall.Setpriority(syscall.PRIO_PROCESS, id, childNice)
		}
	}
}

// cpuTime is how long this process has been computing.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// confinements are the ways to start a child, best first. All die with the server; the first two also have no network. Which of them the
// system grants depends on privilege and on its settings for user namespaces.
func confinements() []*syscall.SysProcAttr {
	return []*syscall.SysProcAttr{
		{Pdeathsig: syscall.SIGKILL, Cloneflags: syscall.CLONE_NEWNET},
		{
			Pdeathsig: syscall.SIGKILL, Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWUSER,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: os.Getuid(), HostID: os.Getuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: os.Getgid(), HostID: os.Getgid(), Size: 1}},
		},
		{Pdeathsig: syscall.SIGKILL},
	}
}

// endOf reports whether a child was ended by its limits, or by a signal that has nothing to do with them: somebody's, or the kernel's when the whole machine
// has no memory left. cpu is its limit in seconds.
func endOf(err *exec.ExitError, cpu int) (limits, outside bool) {
	st, ok := err.Sys().(syscall.WaitStatus)
	switch {
	case !ok:
		return false, false
	case !st.Signaled():
		// What the Go runtime makes of SIGXCPU and of a refused mapping.
		return st.ExitStatus() == 2, false
	}
	// At the limit of CPU the kernel kills, by a count of its own that is somewhat ahead of what it reports.
	spent := err.UserTime()+err.SystemTime() >= time.Duration(cpu)*time.Second*3/4
	limits = spent || st.Signal() == syscall.SIGXCPU || st.Signal() == syscall.SIGXFSZ
	return limits, !limits
}
