//go:build !linux

package wasm

import (
	"os/exec"
	"syscall"
	"time"
)

// limitProcess does nothing where the limits a Go process can set on itself are not enforced; the parent's clock remains.
func limitProcess(int64, int) error { return nil }

func confinements() []*syscall.SysProcAttr { return []*syscall.SysProcAttr{nil} }

// cpuTime is the time on the clock, for lack of a better one.
func cpuTime() time.Duration { return time.Duration(time.Now().UnixNano()) }

func endOf(*exec.ExitError, int) (limits, outside bool) { return true, false }
