package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/runtime/wasm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// node is the behaviour of a module in tests.
type node func(ctx context.Context, call wasm.Call) (wasm.Result, error)

// modules is an Invoker whose modules are Go functions, by the digest of the node.
type modules map[string]node

func (m modules) Invoke(ctx context.Context, call wasm.Call) (wasm.Result, error) {
	f := m[call.Module]
	if f == nil {
		return wasm.Result{}, fmt.Errorf("no module %s", call.Module)
	}
	return f(ctx, call)
}

// echo returns its input, with its config as a command finds it there.
func echo(_ context.Context, call wasm.Call) (wasm.Result, error) {
	if len(call.Config) == 0 {
		return wasm.Result{Output: call.Input}, nil
	}
	return wasm.Result{Output: wasm.WithConfig(call.Input, call.Config)}, nil
}

// gives returns a node with a fixed output.
func gives(output string) node {
	return func(context.Context, wasm.Call) (wasm.Result, error) { return wasm.Result{Output: []byte(output)}, nil }
}

// fails returns a node that fails by itself.
func fails(err wasm.Error) node {
	return func(context.Context, wasm.Call) (wasm.Result, error) { return wasm.Result{}, &err }
}

// hangs runs until it is stopped, as a guest that computes without end does.
func hangs(ctx context.Context, call wasm.Call) (wasm.Result, error) {
	timer := time.NewTimer(call.Limits.Timeout.Std())
	defer timer.Stop()
	select {
	case <-timer.C:
		return wasm.Result{}, &wasm.Error{Class: core.ClassTimeout, Message: fmt.Sprintf("the node did not finish within %s", call.Limits.Timeout)}
	case <-ctx.Done():
		return wasm.Result{}, fmt.Errorf("stopped: %w", context.Cause(ctx))
	}
}

// define reads a definition. Nodes are written as in a file; each node's module is its id unless it has one.
func define(t testing.TB, src string) *core.Definition {
	t.Helper()
	def := &core.Definition{Trigger: core.TriggerSpec{Timeout: core.Duration(core.DefaultRunLimit)}}
	if err := json.Unmarshal([]byte(src), def); err != nil {
		t.Fatalf("definition: %v", err)
	}
	for i := range def.Nodes {
		if def.Nodes[i].Module == "" {
			def.Nodes[i].Module = def.Nodes[i].ID
		}
	}
	return def
}

// checked is define for definitions that must be valid.
func checked(t testing.TB, src string) *core.Definition {
	t.Helper()
	def := define(t, src)
	for _, f := range Check(def) {
		t.Errorf("%s:%d:%d: %s", f.Pointer, f.Line, f.Column, f.Detail)
	}
	if t.Failed() {
		t.FailNow()
	}
	return def
}

// recorder collects events.
type recorder struct {
	mu     sync.Mutex
	events []string
}

func (r *recorder) observe(e Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := string(e.Type)
	if e.Step != "" {
		s += " " + e.Step + " " + string(e.Status)
	} else {
		s += " " + string(e.Run)
	}
	if e.Attempt > 0 {
		s += fmt.Sprintf(" %d", e.Attempt)
	}
	r.events = append(r.events, s)
}

// execute runs a definition once with the given modules.
func execute(t testing.TB, ctx context.Context, def *core.Definition, input string, m modules) *core.Run {
	t.Helper()
	e, err := New(Config{Invoker: m, Random: func() float64 { return 0.5 }})
	if err != nil {
		t.Fatal(err)
	}
	run := &core.Run{ID: "run_1", Account: "acct_1", Input: json.RawMessage(input), Trigger: core.TriggerInfo{Type: "api", KeyName: "ci"}}
	e.Execute(ctx, run, def)
	if !run.Status.Terminal() {
		t.Errorf("status = %s, which is not an end", run.Status)
	}
	if run.FinishedAt.IsZero() {
		t.Error("FinishedAt is zero")
	}
	return run
}

// statuses writes the steps of a run as "a:succeeded b:skipped".
func statuses(run *core.Run) string {
	var parts []string
	for _, s := range run.Steps {
		parts = append(parts, s.ID+":"+string(s.Status))
	}
	return strings.Join(parts, " ")
}

// describe writes how a run ended in one line.
func describe(run *core.Run) string {
	s := string(run.Status)
	if run.Error != nil {
		s += fmt.Sprintf(" %s %s step=%q: %s", run.Error.Code, run.Error.Class, run.Error.Step, run.Error.Message)
	}
	return s
}

// patience is how long a test waits for what should take a fraction of a second, on a machine that does other things. What the tests guard
// against takes many minutes, or all memory.
const patience = time.Minute
