package wasm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"github.com/keyfire/keyfire/core"
)

// prepare makes sure that the cache holds the compiled form of a module, building it if need be, and returns its file, open. The module has passed inspect.
func (r *Runtime) prepare(ctx context.Context, digest string, binary []byte) (held, error) {
	code, err := r.artifacts.verify(digest)
	if err == nil {
		return code, nil
	}
	// One at a time: each may take a gigabyte.
	select {
	case r.building <- struct{}{}:
		defer func() { <-r.building }()
	case <-ctx.Done():
		return held{}, context.Cause(ctx)
	}
	// Whoever was before may have built this very module.
	if code, err := r.artifacts.verify(digest); err == nil {
		return code, nil
	}
	if !errors.Is(err, errNoArtifact) {
		r.config.Logger.WarnContext(ctx, "compiling a module again", "module", digest, "error", err)
	}
	scratch, err := r.artifacts.scratch()
	if err != nil {
		return held{}, fmt.Errorf("compile: %w", err)
	}
	defer os.RemoveAll(scratch)
	if err := r.build(ctx, scratch, binary); err != nil {
		return held{}, err
	}
	if code, err = r.artifacts.adopt(digest, scratch); err != nil {
		return held{}, fmt.Errorf("compile cache: %w", err)
	}
	return code, nil
}

// build compiles a module into a directory of its own: in a child process, or here when no command for one is configured. An error
// of the module is a *core.Error of CodeInvalidModule.
func (r *Runtime) build(ctx context.Context, dir string, binary []byte) error {
	var refused, failed error
	if len(r.config.CompileCommand) == 0 {
		refused, failed = compileInto(ctx, dir, binary)
	} else {
		refused, failed = r.buildInChild(ctx, dir, binary)
	}
	switch {
	case ctx.Err() != nil && (refused != nil || failed != nil):
		return fmt.Errorf("compile: %w", context.Cause(ctx))
	case failed != nil:
		return fmt.Errorf("compile: %w", failed)
	case refused != nil:
		return core.Wrap(core.CodeInvalidModule, refused, "the module is not valid WebAssembly: "+printable(firstLine(refused.Error())))
	}
	return nil
}

var errOutOfBounds = fmt.Errorf("compiling it takes more than %d s of CPU or %s of memory; its largest functions are too large",
	childCPU, byteSize(childMemory))

func (r *Runtime) buildInChild(ctx context.Context, dir string, binary []byte) (refused, failed error) {
	ctx, cancel := context.WithTimeout(ctx, r.childWall)
	defer cancel()
	// The kernel ties a child's life to the thread that started it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	request, err := json.Marshal(childRequest{Dir: dir, Size: len(binary), Memory: childMemory, CPU: r.childCPU})
	if err != nil {
		return nil, err
	}
	var out, diagnosis head
	var cmd *exec.Cmd
	for _, c := range confinements() {
		cmd = exec.CommandContext(ctx, r.config.CompileCommand[0], r.config.CompileCommand[1:]...) //nolint:gosec // our own binary, as wired
		cmd.Env = []string{}                                                                       // nothing, as opposed to nil, which is ours
		cmd.Dir = dir
		cmd.Stdin = io.MultiReader(bytes.NewReader(append(request, '\n')), bytes.NewReader(binary))
		cmd.Stdout, cmd.Stderr = &out, &diagnosis
		cmd.SysProcAttr = c
		cmd.WaitDelay = childWall
		if err = cmd.Start(); err == nil {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("start the compiler: %w", err)
	}
	err = cmd.Wait()
	var a childAnswerJSON
	var exit *exec.ExitError
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		// A module is to blame for the CPU it used, and not for what others left it.
		if used := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(); used < childBusy {
			return nil, &core.Error{
				Code: core.CodeOverloaded, RetryAfter: r.childWall,
				Message: fmt.Sprintf("this machine is too busy to compile the module: it got %s of CPU in %s; try again", used.Round(100*time.Millisecond), r.childWall),
			}
		}
		return errOutOfBounds, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.As(err, &exit):
		limits, outside := endOf(exit, r.childCPU)
		switch {
		case limits:
			return fmt.Errorf("%w (%w: %s)", errOutOfBounds, exit, diagnosis.firstLine()), nil
		case outside:
			e := core.Wrap(core.CodeOverloaded, exit, "the compiler was ended by a signal from outside, which says nothing about the module, such as by the kernel when memory is short: a Go module takes some 200 MiB to compile; try again")
			e.RetryAfter = time.Second
			return nil, e
		}
		return nil, fmt.Errorf("the compiler: %w: %s", err, diagnosis.firstLine())
	case err != nil:
		return nil, fmt.Errorf("the compiler: %w: %s", err, diagnosis.firstLine())
	}
	if err := json.Unmarshal(out.b, &a); err != nil {
		return nil, fmt.Errorf("the compiler's answer: %w", err)
	}
	if a.Refused != "" {
		refused = errors.New(a.Refused)
	}
	if a.Failed != "" {
		failed = errors.New(a.Failed)
	}
	return refused, failed
}

// head is a writer that keeps the first bytes written to it and discards the rest.
type head struct{ b []byte }

func (h *head) Write(p []byte) (int, error) {
	if room := childAnswer - len(h.b); room > 0 {
		h.b = append(h.b, p[:min(room, len(p))]...)
	}
	return len(p), nil
}

func (h *head) firstLine() string { return printable(firstLine(strings.TrimSpace(string(h.b)))) }
