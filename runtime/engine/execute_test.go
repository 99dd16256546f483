package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/runtime/wasm"
)

// TestGraph lists how nodes, conditions and outputs work together. A module that is not named echoes its input.
func TestGraph(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, def, input string
		modules          modules
		steps, ends      string // what became of the steps and of the run
		output           string
	}{
		{
			name: "one node", def: `{"nodes":[{"id":"a","with":{"n":"${{ input.n }}"}}]}`,
			steps: "a:succeeded", output: `{"n":1}`,
		},
		{
			name: "no with is an empty object", def: `{"nodes":[{"id":"a"}]}`,
			steps: "a:succeeded", output: `{}`,
		},
		{
			name: "values flow", def: `{"nodes":[{"id":"c","with":{"sum":"${{ nodes.a.output.n + nodes.b.output.n }}"}},{"id":"a","with":{"n":2}},{"id":"b","with":{"n":"${{ nodes.a.output.n * 10 }}"}}]}`,
			steps: "c:succeeded a:succeeded b:succeeded", output: `{"sum":22}`,
		},
		{
			name: "several last nodes", def: `{"nodes":[{"id":"a","with":{"n":2}},{"id":"z","needs":["a"],"with":1},{"id":"b","with":"${{ nodes.a.output }}"},{"id":"skip","if":"${{ false }}"}]}`,
			steps: "a:succeeded z:succeeded b:succeeded skip:skipped", output: `{"b":{"n":2},"z":1}`,
		},
		{
			name: "output template", def: `{"nodes":[{"id":"a","with":{"n":2}}],"output":{"x":["${{ nodes.a.output.n }}","${{ run.id }} by ${{ trigger.key_name }}"]}}`,
			steps: "a:succeeded", output: `{"x":[2,"run_1 by ci"]}`,
		},
		{
			name: "false if skips", def: `{"nodes":[{"id":"a","if":"${{ input.n > 1 }}"}]}`,
			steps: "a:skipped", output: `null`,
		},
		{
			name: "needing only skipped nodes skips", def: `{"nodes":[{"id":"a","if":"${{ false }}"},{"id":"b","if":"${{ false }}"},{"id":"c","needs":["a","b"]},{"id":"d","needs":["c"]}]}`,
			steps: "a:skipped b:skipped c:skipped d:skipped", output: `null`,
		},
		{
			name:  "needing one that ran does not skip",
			def:   `{"nodes":[{"id":"a","if":"${{ false }}"},{"id":"b"},{"id":"c","needs":["a","b"],"with":["${{ nodes.a.status }}","${{ nodes.a.output }}","${{ nodes.a.output.?x.orValue(1) }}","${{ nodes.b.status }}"]}]}`,
			steps: "a:skipped b:succeeded c:succeeded", output: `["skipped",null,1,"succeeded"]`,
		},
		{
			name: "either way joins", def: `{"nodes":[{"id":"yes","if":"${{ input.n == 1 }}","with":"y"},{"id":"no","if":"${{ input.n != 1 }}","with":"n"},{"id":"end","with":"${{ nodes.yes.status == 'succeeded' ? nodes.yes.output : nodes.no.output }}"}]}`,
			steps: "yes:succeeded no:skipped end:succeeded", output: `"y"`,
		},
		{
			name: "config beside the input", def: `{"nodes":[{"id":"a","with":{"x":1},"config":{"b":1.50,"a":"${"}},{"id":"b","needs":["a"],"config":{"c":true}}],"output":["${{ nodes.a.output }}","${{ nodes.b.output }}"]}`,
			steps: "a:succeeded b:succeeded", output: `[{"x":1,"config":{"a":"${","b":1.50}},{"config":{"c":true}}]`,
		},
		{
			name: "a failed node stops the run", def: `{"nodes":[{"id":"a"},{"id":"b","needs":["a"]},{"id":"c","needs":["b"]}]}`,
			modules: modules{"a": fails(wasm.Error{Class: core.ClassTrap, Message: "unreachable"})},
			steps:   "a:failed b:cancelled c:cancelled", ends: `failed run_failed trap step="a": node a: unreachable`,
		},
		{
			name: "failing on purpose", def: `{"nodes":[{"id":"a","retry":{"max_attempts":3,"on":["failed"]}}]}`,
			modules: modules{"a": fails(wasm.Error{Class: core.ClassFailed, Message: "this invoice exists", Status: 409, Code: "duplicate_invoice"})},
			steps:   "a:failed", ends: `failed run_failed failed step="a": this invoice exists`,
		},
		{
			name: "an expression that fails at run time", def: `{"nodes":[{"id":"a","with":{"o":{"n":"${{ input.nope }}"}}}]}`,
			steps: "a:failed", ends: `failed run_failed failed step="a": node a: with.o.n: input has no field "nope"`,
		},
		{
			name: "an if that fails at run time", def: `{"nodes":[{"id":"a","if":"${{ input.nope > 1 }}"}]}`,
			steps: "a:failed", ends: `failed run_failed failed step="a": node a: if: there is no field "nope"`,
		},
		{
			name: "an if that is no condition", def: `{"nodes":[{"id":"a","if":"${{ input.n }}"}]}`,
			steps: "a:failed", ends: `failed run_failed failed step="a": node a: if: must be true or false, not of type int`,
		},
		{
			name: "an output that fails", def: `{"nodes":[{"id":"a"}],"output":{"x":"${{ nodes.a.output.nope }}"}}`,
			steps: "a:succeeded", ends: `failed run_failed failed step="": the output of the run: output.x: nodes.a.output has no field "nope"`,
		},
		{
			name: "output that is no JSON", def: `{"nodes":[{"id":"a"}]}`,
			modules: modules{"a": gives(`{"a":`)},
			steps:   "a:failed", ends: `failed run_failed invalid_output step="a": node a: the node's output, at byte 5: the text ends where a value must follow`,
		},
		{
			name: "output that reads in two ways", def: `{"nodes":[{"id":"a"}]}`,
			modules: modules{"a": gives(`{"a":1,"\u0061":2}`)},
			steps:   "a:failed", ends: `failed run_failed invalid_output step="a": node a: the node's output, at byte 7: this object has a member of that name already`,
		},
		{
			name: "an input that is too large", def: `{"nodes":[{"id":"a"},{"id":"b","with":["${{ nodes.a.output }}","${{ nodes.a.output }}"]}]}`,
			modules: modules{"a": gives(`"` + strings.Repeat("x", 600_000) + `"`)},
			steps:   "a:succeeded b:failed", ends: `failed run_failed limit step="b": node b: the node's input has more than 1048576 bytes`,
		},
		{
			name: "an output of the run that is too large", def: `{"nodes":[{"id":"a"},{"id":"b"}]}`,
			modules: modules{"a": gives(`"` + strings.Repeat("x", 600_000) + `"`), "b": gives(`"` + strings.Repeat("x", 600_000) + `"`)},
			steps:   "a:succeeded b:succeeded", ends: `failed run_failed limit step="": the output of the run has more than 1048576 bytes`,
		},
		{
			name: "the server cannot", def: `{"nodes":[{"id":"a","module":"none"}]}`,
			steps: "a:failed", ends: `failed run_failed failed step="a": node a: the server could not run the node; its log says why`,
		},
		{
			name: "node's own timeout", def: `{"nodes":[{"id":"a","limits":{"timeout":"5ms"}},{"id":"b","needs":["a"]}]}`,
			modules: modules{"a": hangs},
			steps:   "a:timed_out b:cancelled", ends: `timed_out run_timed_out timeout step="a": node a: the node did not finish within 5ms`,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			def := checked(t, tt.def)
			m := modules{}
			for _, n := range def.Nodes {
				if n.Module != "none" {
					m[n.Module] = echo
				}
			}
			maps.Copy(m, tt.modules)
			run := execute(t, t.Context(), def, `{"n":1}`, m)
			if got := statuses(run); got != tt.steps {
				t.Errorf("steps = %s\nwant    %s", got, tt.steps)
			}
			want := tt.ends
			if want == "" {
				want = "succeeded"
			}
			if got := describe(run); got != want {
				t.Errorf("run ends\n     %s\nwant %s", got, want)
			}
			if got := string(run.Output); got != tt.output {
				t.Errorf("output = %s\nwant     %s", got, tt.output)
			}
		})
	}
}

func TestFailOnPurposeKeepsItsWords(t *testing.T) {
	t.Parallel()
	def := checked(t, `{"nodes":[{"id":"a"}]}`)
	run := execute(t, t.Context(), def, `{}`, modules{"a": fails(wasm.Error{Class: core.ClassFailed, Message: "this invoice exists", Status: 409, Code: "duplicate_invoice", ExitCode: 3})})
	want := &core.RunError{Code: core.CodeRunFailed, Class: core.ClassFailed, Message: "this invoice exists", Step: "a", Status: 409, UserCode: "duplicate_invoice"}
	if diff := cmp.Diff(want, run.Error); diff != "" {
		t.Errorf("run error: -want +got:\n%s", diff)
	}
	wantStep := &core.StepError{Class: core.ClassFailed, Message: "this invoice exists", Status: 409, Code: "duplicate_invoice", ExitCode: 3}
	if diff := cmp.Diff(wantStep, run.Steps[0].Error); diff != "" {
		t.Errorf("step error: -want +got:\n%s", diff)
	}
}

// TestOverrides proves that admitted overrides replace config and nothing else, and are data: an expression in one is not evaluated.
func TestOverrides(t *testing.T) {
	t.Parallel()
	def := checked(t, `{"nodes":[{"id":"a","with":{"x":1},"config":{"currency":"EUR","rate":1.50}},{"id":"b","config":{"currency":"EUR"}}]}`)
	e, err := New(Config{Invoker: modules{"a": echo, "b": echo}})
	if err != nil {
		t.Fatal(err)
	}
	run := &core.Run{Overrides: json.RawMessage(`{"a":{"currency":"${{ run.id }}","undeclared":1,"x":2}}`), Workflow: core.WorkflowRef{Digest: "sha256:x"}}
	e.Execute(t.Context(), run, def)
	if got, want := string(run.Output), `{"a":{"x":1,"config":{"currency":"${{ run.id }}","rate":1.50}},"b":{"config":{"currency":"EUR"}}}`; got != want {
		t.Errorf("output = %s\nwant     %s", got, want)
	}
	plain := &core.Run{Workflow: core.WorkflowRef{Digest: "sha256:x"}}
	e.Execute(t.Context(), plain, def)
	if got, want := string(plain.Output), `{"a":{"x":1,"config":{"currency":"EUR","rate":1.50}},"b":{"config":{"currency":"EUR"}}}`; got != want {
		t.Errorf("the next run: output = %s\nwant     %s", got, want)
	}
	broken := &core.Run{Overrides: json.RawMessage(`{"a":1}`), Workflow: core.WorkflowRef{Digest: "sha256:x"}}
	e.Execute(t.Context(), broken, def)
	if broken.Status != core.RunFailed || statuses(broken) != "a:cancelled b:cancelled" {
		t.Errorf("unreadable overrides: %s, %s", describe(broken), statuses(broken))
	}
}

// TestAttemptsAreRecorded proves that a step keeps what each attempt cost and logged.
func TestAttemptsAreRecorded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		def := checked(t, `{"nodes":[{"id":"a","with":{"n":1},"retry":{"max_attempts":5,"initial":"100ms","max":"1s","backoff":"exponential","on":["unavailable","timeout"]}}]}`)
		calls := 0
		m := modules{"a": func(_ context.Context, call wasm.Call) (wasm.Result, error) {
			calls++
			time.Sleep(3 * time.Millisecond)
			res := wasm.Result{PeakMemory: int64(calls) << 16, Fuel: 7, Host: time.Millisecond, LogDropped: 1, Log: []core.LogLine{{Level: "info", Message: fmt.Sprint("call ", calls)}}}
			if calls < 3 {
				return res, &wasm.Error{Class: core.ClassUnavailable, Message: "closed", ExitCode: 1}
			}
			res.Output = []byte(`"ok"`)
			return res, nil
		}}
		began := time.Now()
		run := execute(t, t.Context(), def, `{}`, m)
		if describe(run) != "succeeded" || string(run.Output) != `"ok"` {
			t.Fatalf("run: %s %s", describe(run), run.Output)
		}
		if took := time.Since(began); took != 309*time.Millisecond {
			t.Errorf("took %s, want two waits of 100ms and 200ms and three attempts of 3ms", took)
		}
		closed := &core.StepError{Class: core.ClassUnavailable, Message: "closed", ExitCode: 1}
		want := []core.Attempt{
			{Number: 1, StartedAt: began, DurationUS: 3000, Error: closed, PeakMemory: 1 << 16, Fuel: 7, HostUS: 1000, LogDropped: 1, Log: []core.LogLine{{Level: "info", Message: "call 1"}}},
			{Number: 2, StartedAt: began.Add(103 * time.Millisecond), DurationUS: 3000, Error: closed, PeakMemory: 2 << 16, Fuel: 7, HostUS: 1000, LogDropped: 1, Log: []core.LogLine{{Level: "info", Message: "call 2"}}},
			{Number: 3, StartedAt: began.Add(306 * time.Millisecond), DurationUS: 3000, PeakMemory: 3 << 16, Fuel: 7, HostUS: 1000, LogDropped: 1, Log: []core.LogLine{{Level: "info", Message: "call 3"}}},
		}
		if diff := cmp.Diff(want, run.Steps[0].Attempts); diff != "" {
			t.Errorf("attempts: -want +got:\n%s", diff)
		}
		s := run.Steps[0]
		if string(s.Input) != `{"n":1}` || s.Error != nil || !s.StartedAt.Equal(began) || !s.FinishedAt.Equal(began.Add(309*time.Millisecond)) {
			t.Errorf("step = %+v", s)
		}
	})
}

// TestRetryPolicy lists which failures are followed by another attempt, and after what waits.
func TestRetryPolicy(t *testing.T) {
	t.Parallel()
	unavailable := wasm.Error{Class: core.ClassUnavailable, Message: "closed"}
	tests := []struct {
		name, retry string
		timeout     string // of the run
		err         error
		attempts    int
		took        time.Duration
		ends        string
	}{
		{"exhausted", `{"max_attempts":4,"initial":"100ms","max":"300ms","backoff":"exponential","on":["unavailable"]}`, "30s", &unavailable, 4, 600 * time.Millisecond, `failed run_failed unavailable step="a": node a: closed (4 attempts)`},
		{"constant", `{"max_attempts":4,"initial":"100ms","max":"300ms","backoff":"constant","on":["unavailable"]}`, "30s", &unavailable, 4, 300 * time.Millisecond, `failed run_failed unavailable step="a": node a: closed (4 attempts)`},
		{"jitter", `{"max_attempts":2,"initial":"100ms","max":"300ms","backoff":"constant","jitter":true,"on":["unavailable"]}`, "30s", &unavailable, 2, 75 * time.Millisecond, `failed run_failed unavailable step="a": node a: closed (2 attempts)`},
		{"another class", `{"max_attempts":4,"initial":"100ms","max":"300ms","backoff":"constant","on":["timeout"]}`, "30s", &unavailable, 1, 0, `failed run_failed unavailable step="a": node a: closed`},
		{"on purpose", `{"max_attempts":4,"initial":"100ms","max":"300ms","backoff":"constant","on":["failed"]}`, "30s", &wasm.Error{Class: core.ClassFailed, Message: "no", Status: 400, Code: "no"}, 1, 0, `failed run_failed failed step="a": no`},
		{"no policy", `null`, "30s", &unavailable, 1, 0, `failed run_failed unavailable step="a": node a: closed`},
		{"a wait beyond the deadline", `{"max_attempts":4,"initial":"2s","max":"8s","backoff":"exponential","on":["unavailable"]}`, "5s", &unavailable, 2, 2 * time.Second, `failed run_failed unavailable step="a": node a: closed (2 attempts)`},
		{"the server's error", `{"max_attempts":4,"initial":"2s","max":"8s","backoff":"exponential","on":["failed"]}`, "5s", errors.New("disk"), 1, 0, `failed run_failed failed step="a": node a: the server could not run the node; its log says why`},
		{"time-outs, then the run's status", `{"max_attempts":3,"initial":"1s","max":"1s","backoff":"constant","on":["timeout"]}`, "30s", &wasm.Error{Class: core.ClassTimeout, Message: "late"}, 3, 2 * time.Second, `timed_out run_timed_out timeout step="a": node a: late (3 attempts)`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				def := checked(t, `{"trigger":{"timeout":"`+tt.timeout+`"},"nodes":[{"id":"a","retry":`+tt.retry+`}]}`)
				began := time.Now()
				run := execute(t, t.Context(), def, `{}`, modules{"a": func(context.Context, wasm.Call) (wasm.Result, error) { return wasm.Result{}, tt.err }})
				if got := describe(run); got != tt.ends {
					t.Errorf("run ends\n     %s\nwant %s", got, tt.ends)
				}
				if n := len(run.Steps[0].Attempts); n != tt.attempts {
					t.Errorf("%d attempts, want %d", n, tt.attempts)
				}
				if took := time.Since(began); took != tt.took {
					t.Errorf("took %s, want %s", took, tt.took)
				}
			})
		})
	}
}

// TestRunEndsFromOutside lists what stops a run, and what becomes of it and its nodes. Node a ends at once, b and c run until they are
// stopped, d needs c, e waits to be retried.
func TestRunEndsFromOutside(t *testing.T) {
	t.Parallel()
	custom := core.Errorf(core.CodeRunCancelled, "an operator cancelled the run")
	tests := []struct {
		name  string
		stop  func(t *testing.T, ctx context.Context) context.Context
		steps string
		ends  string
		took  time.Duration
	}{
		{
			"the run's deadline", func(_ *testing.T, ctx context.Context) context.Context { return ctx },
			"a:succeeded b:timed_out c:timed_out d:cancelled e:timed_out",
			`timed_out run_timed_out timeout step="b": the run did not finish within 4s; node b was running`, 4 * time.Second,
		},
		{
			"cancelled", cancelAfter(time.Second, core.ErrRunCancelled),
			"a:succeeded b:cancelled c:cancelled d:cancelled e:cancelled", `cancelled run_cancelled  step="": the run was cancelled`, time.Second,
		},
		{
			"cancelled with a reason", cancelAfter(time.Second, custom),
			"a:succeeded b:cancelled c:cancelled d:cancelled e:cancelled", `cancelled run_cancelled  step="": an operator cancelled the run`, time.Second,
		},
		{
			"cancelled without a cause", cancelAfter(time.Second, nil),
			"a:succeeded b:cancelled c:cancelled d:cancelled e:cancelled", `cancelled run_cancelled  step="": the run was cancelled`, time.Second,
		},
		{
			"the server stops", cancelAfter(time.Second, core.ErrRunInterrupted),
			"a:succeeded b:cancelled c:cancelled d:cancelled e:cancelled", `interrupted run_interrupted  step="": the server stopped while the run was executing`, time.Second,
		},
		{
			"the caller's deadline", func(t *testing.T, ctx context.Context) context.Context {
				ctx, cancel := context.WithTimeoutCause(ctx, 2*time.Second, errors.New("any cause"))
				t.Cleanup(cancel)
				return ctx
			},
			"a:succeeded b:timed_out c:timed_out d:cancelled e:timed_out",
			`timed_out run_timed_out timeout step="b": the run did not finish within 4s; node b was running`, 2 * time.Second,
		},
		{
			"before it began", func(t *testing.T, ctx context.Context) context.Context {
				ctx, cancel := context.WithCancelCause(ctx)
				cancel(core.ErrRunCancelled)
				return ctx
			},
			"a:cancelled b:cancelled c:cancelled d:cancelled e:cancelled", `cancelled run_cancelled  step="": the run was cancelled`, 0,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				def := checked(t, `{"trigger":{"timeout":"4s"},"nodes":[{"id":"a"},{"id":"b","needs":["a"]},{"id":"c"},{"id":"d","needs":["c"]},
					{"id":"e","retry":{"max_attempts":2,"initial":"1500ms","max":"1500ms","backoff":"constant","on":["unavailable"]}}]}`)
				calls := 0
				m := modules{"a": echo, "b": hangs, "c": hangs, "d": echo, "e": func(ctx context.Context, call wasm.Call) (wasm.Result, error) {
					if calls++; calls == 1 {
						return wasm.Result{}, &wasm.Error{Class: core.ClassUnavailable, Message: "closed"}
					}
					return hangs(ctx, call)
				}}
				began := time.Now()
				run := execute(t, tt.stop(t, t.Context()), def, `{}`, m)
				if got := describe(run); got != tt.ends {
					t.Errorf("run ends\n     %s\nwant %s", got, tt.ends)
				}
				if got := statuses(run); got != tt.steps {
					t.Errorf("steps = %s\nwant    %s", got, tt.steps)
				}
				if took := time.Since(began); took != tt.took {
					t.Errorf("took %s, want %s", took, tt.took)
				}
				if run.Output != nil {
					t.Errorf("output = %s", run.Output)
				}
			})
		})
	}
}

func cancelAfter(wait time.Duration, cause error) func(*testing.T, context.Context) context.Context {
	return func(t *testing.T, ctx context.Context) context.Context {
		ctx, cancel := context.WithCancelCause(ctx)
		timer := time.AfterFunc(wait, func() { cancel(cause) })
		t.Cleanup(func() { timer.Stop(); cancel(nil) })
		return ctx
	}
}

// TestFirstFailureStopsTheOthers proves that a failing node ends its siblings, whatever they wait for.
func TestFirstFailureStopsTheOthers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		def := checked(t, `{"nodes":[{"id":"slow"},{"id":"bad"},{"id":"late"},{"id":"retrying","retry":{"max_attempts":9,"initial":"9s","max":"9s","backoff":"constant","on":["unavailable"]}},{"id":"after","needs":["slow"]}]}`)
		m := modules{
			"slow": hangs,
			"bad": func(context.Context, wasm.Call) (wasm.Result, error) {
				time.Sleep(time.Second)
				return wasm.Result{}, &wasm.Error{Class: core.ClassExit, Message: "the node exited with code 2", ExitCode: 2}
			},
			"late": func(ctx context.Context, _ wasm.Call) (wasm.Result, error) {
				<-ctx.Done()
				return wasm.Result{}, &wasm.Error{Class: core.ClassTrap, Message: "trapped while it was stopped"}
			},
			"retrying": fails(wasm.Error{Class: core.ClassUnavailable, Message: "closed"}),
		}
		began := time.Now()
		run := execute(t, t.Context(), def, `{}`, m)
		if got, want := describe(run), `failed run_failed exit step="bad": node bad: the node exited with code 2`; got != want {
			t.Errorf("run ends\n     %s\nwant %s", got, want)
		}
		if got, want := statuses(run), "slow:cancelled bad:failed late:failed retrying:cancelled after:cancelled"; got != want {
			t.Errorf("steps = %s\nwant    %s", got, want)
		}
		if took := time.Since(began); took != time.Second {
			t.Errorf("took %s", took)
		}
		if e := run.Steps[0].Error; e == nil || e.Message != "stopped because another node of the run failed" {
			t.Errorf("the stopped node's error = %+v", e)
		}
	})
}

// TestPanicFailsTheRunOnly proves that a bug of ours in one of several nodes ends its run, with the nodes beside it stopped, and not the server.
func TestPanicFailsTheRunOnly(t *testing.T) {
	t.Parallel()
	def := checked(t, `{"nodes":[{"id":"a"},{"id":"b"},{"id":"c","needs":["a","b"]}]}`)
	m := modules{"a": func(context.Context, wasm.Call) (wasm.Result, error) { panic("a bug of ours") }, "b": hangs, "c": echo}
	run := execute(t, t.Context(), def, `{}`, m)
	if got, want := describe(run), `failed internal  step="a": node a: the server failed to execute the node`; got != want {
		t.Errorf("run ends\n     %s\nwant %s", got, want)
	}
	if got, want := statuses(run), "a:failed b:cancelled c:cancelled"; got != want {
		t.Errorf("steps = %s\nwant    %s", got, want)
	}
	m["b"] = echo
	alone := execute(t, t.Context(), checked(t, `{"nodes":[{"id":"b"},{"id":"a","needs":["b"]}]}`), `{}`, m)
	if got, want := statuses(alone), "b:succeeded a:failed"; got != want {
		t.Errorf("steps = %s\nwant    %s", got, want)
	}
}

// TestReadyNodesRunInParallel proves it by nodes that wait for each other, and that MaxParallel bounds it.
func TestReadyNodesRunInParallel(t *testing.T) {
	t.Parallel()
	def := checked(t, `{"nodes":[{"id":"a"},{"id":"b"},{"id":"c"},{"id":"d"},{"id":"e"}]}`)
	here := make(chan struct{})
	meet := func(context.Context, wasm.Call) (wasm.Result, error) {
		select {
		case here <- struct{}{}:
		case <-here:
		}
		return wasm.Result{Output: []byte("1")}, nil
	}
	var running, most atomic.Int64
	count := func(ctx context.Context, call wasm.Call) (wasm.Result, error) {
		n := running.Add(1)
		for {
			m := most.Load()
			if n <= m || most.CompareAndSwap(m, n) {
				break
			}
		}
		defer running.Add(-1)
		return meet(ctx, call)
	}
	e, err := New(Config{Invoker: modules{"a": count, "b": count, "c": count, "d": count, "e": echo}, MaxParallel: 2})
	if err != nil {
		t.Fatal(err)
	}
	run := &core.Run{}
	e.Execute(t.Context(), run, def) // ends only because two run at once
	if got := describe(run); got != "succeeded" {
		t.Error(got)
	}
	if most.Load() != 2 {
		t.Errorf("%d nodes ran at once, want 2", most.Load())
	}
}

// TestExecuteFillsTimes proves that times given are kept and others are filled in.
func TestExecuteFillsTimes(t *testing.T) {
	t.Parallel()
	now := time.Date(2024, 2, 29, 12, 0, 0, 0, time.UTC)
	e, err := New(Config{Invoker: modules{"a": echo}, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	def := checked(t, `{"trigger":{"timeout":"7s"},"nodes":[{"id":"a"}]}`)
	run := &core.Run{}
	e.Execute(t.Context(), run, def)
	if !run.StartedAt.Equal(now) || !run.FinishedAt.Equal(now) || !run.DeadlineAt.Equal(now.Add(7*time.Second)) {
		t.Errorf("times = %s, %s, %s", run.StartedAt, run.FinishedAt, run.DeadlineAt)
	}
	earlier := &core.Run{StartedAt: now.Add(-time.Second), DeadlineAt: now.Add(time.Second)}
	e.Execute(t.Context(), earlier, def)
	if !earlier.StartedAt.Equal(now.Add(-time.Second)) || !earlier.DeadlineAt.Equal(now.Add(time.Second)) {
		t.Errorf("times = %s, %s", earlier.StartedAt, earlier.DeadlineAt)
	}
	if earlier.Status != core.RunSucceeded {
		t.Error(describe(earlier))
	}
	late := &core.Run{DeadlineAt: now.Add(-time.Second)}
	e.Execute(t.Context(), late, def)
	if late.Status != core.RunTimedOut || statuses(late) != "a:cancelled" {
		t.Errorf("a run past its deadline: %s, %s", describe(late), statuses(late))
	}
}

// TestUnusableDefinition proves that a version that no longer compiles fails its runs and nothing else.
func TestUnusableDefinition(t *testing.T) {
	t.Parallel()
	run := execute(t, t.Context(), define(t, `{"nodes":[{"id":"a","with":"${{ nope }}"}]}`), `{}`, modules{})
	if run.Status != core.RunFailed || run.Error.Code != core.CodeRunFailed || len(run.Steps) != 0 {
		t.Errorf("run: %s", describe(run))
	}
}

func TestEvents(t *testing.T) {
	t.Parallel()
	var r recorder
	calls := 0
	m := modules{"b": func(ctx context.Context, call wasm.Call) (wasm.Result, error) {
		if calls++; calls == 1 {
			return wasm.Result{}, &wasm.Error{Class: core.ClassUnavailable, Message: "closed"}
		}
		return wasm.Result{}, &wasm.Error{Class: core.ClassFailed, Message: "no"}
	}}
	e, err := New(Config{Invoker: m, Observe: r.observe})
	if err != nil {
		t.Fatal(err)
	}
	def := checked(t, `{"nodes":[{"id":"a","if":"${{ false }}"},{"id":"b","retry":{"max_attempts":2,"initial":"1ms","max":"1ms","backoff":"constant","on":["unavailable"]}},{"id":"c","needs":["b"]},{"id":"d","needs":["a"]}]}`)
	e.Execute(t.Context(), &core.Run{ID: "run_1"}, def)
	want := map[string]bool{}
	for _, s := range r.events {
		want[s] = true
	}
	for _, s := range []string{
		"run.started running", "step.finished a skipped", "step.started b running", "step.retrying b retrying 1", "step.finished b failed", "step.finished c cancelled", "run.finished failed",
	} {
		if !want[s] {
			t.Errorf("no event %q in %q", s, r.events)
		}
	}
	if first, last := r.events[0], r.events[len(r.events)-1]; first != "run.started running" || last != "run.finished failed" {
		t.Errorf("events begin with %q and end with %q", first, last)
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	for _, c := range []Config{{}, {Invoker: modules{}, MaxParallel: -1}, {Invoker: modules{}, MaxPlans: -1}} {
		if _, err := New(c); err == nil {
			t.Errorf("New(%+v) succeeded", c)
		}
	}
}

// TestPlansAreBounded proves that the cache forgets the least recently used version and that a version is compiled once.
func TestPlansAreBounded(t *testing.T) {
	t.Parallel()
	e, err := New(Config{Invoker: modules{"a": echo}, MaxPlans: 2})
	if err != nil {
		t.Fatal(err)
	}
	def := checked(t, `{"nodes":[{"id":"a"}]}`)
	first, _ := e.plan("1", def)
	e.plan("2", def)
	if again, _ := e.plan("1", def); again != first {
		t.Error("a cached version was compiled again")
	}
	e.plan("3", def)
	if len(e.plans) != 2 || e.plans["1"] == nil || e.plans["3"] == nil {
		t.Errorf("plans kept: %v", e.plans)
	}
	if once, _ := e.plan("", def); once == nil || len(e.plans) != 2 {
		t.Error("a version without digest was kept")
	}
}

// TestRunHoldsABoundedAmount: the outputs of many nodes are bounded together too, as text and as what expressions have decoded of them; and they are what a durable run brings
// along from its last attempt.
func TestRunHoldsABoundedAmount(t *testing.T) {
	t.Parallel()
	text, values := `"`+strings.Repeat("x", 1_000_000)+`"`, "["+strings.Repeat("1,", 99_000)+"1]"
	chain := func(n int, output, of string) *core.Definition {
		nodes, outputs := make([]string, n), make([]string, n)
		for i := range nodes {
			nodes[i] = fmt.Sprintf(`{"id":"n%d","module":"m","needs":[]}`, i)
			if i > 0 {
				nodes[i] = fmt.Sprintf(`{"id":"n%d","module":"m","needs":["n%d"]}`, i, i-1)
			}
			outputs[i] = fmt.Sprintf(output, i)
		}
		return checked(t, `{"nodes":[`+strings.Join(nodes, ",")+`],"output":`+fmt.Sprintf(of, strings.Join(outputs, ","))+`}`)
	}
	for _, tt := range []struct {
		name, output string
		def          *core.Definition
		want         string // "" is success
	}{
		{"much text", text, chain(33, "%d", "[%s]"), ""},
		{"too much text", text, chain(35, "%d", "[%s]"), "n33: the outputs of the run's nodes have more than 33554432 bytes together"},
		{"many values", values, chain(10, `"${{ nodes.n%d.output[0] + 1 }}"`, "[%s]"), ""},
		{"too many values", values, chain(11, `"${{ nodes.n%d.output[0] + 1 }}"`, "[%s]"), "read hold more than 1000000 values together"},
		{"too many values by paths", values, chain(11, `"${{ nodes.n%d.output[0] }}"`, "[%s]"), "read hold more than 1000000 values together"},
		{"many values that nobody reads", values, chain(20, "%d", "[%s]"), ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			run := execute(t, t.Context(), tt.def, "{}", modules{"m": gives(tt.output)})
			switch {
			case tt.want == "" && run.Error != nil:
				t.Errorf("ended %s", describe(run))
			case tt.want != "" && (run.Error == nil || run.Error.Class != core.ClassLimit || !strings.Contains(run.Error.Message, tt.want)):
				t.Errorf("ended %s, want %q", describe(run), tt.want)
			}
		})
	}
	const lines, line = 1000, 65
	logs := func(context.Context, wasm.Call) (wasm.Result, error) {
		return wasm.Result{Output: []byte("1"), Log: slices.Repeat([]core.LogLine{{Level: "info", Message: strings.Repeat("x", line)}}, lines)}, nil
	}
	logged := execute(t, t.Context(), chain(200, "%d", "[%s]"), "{}", modules{"m": logs})
	var kept, dropped int64
	for _, step := range logged.Steps {
		kept += int64(len(step.Attempts[0].Log))
		dropped += step.Attempts[0].LogDropped
	}
	if most := int64(16<<20) / line; logged.Error != nil || kept > most || kept < most/3 || kept*line+dropped != 200*lines*line || len(logged.Steps[199].Attempts[0].Log) > 0 {
		t.Errorf("%d lines are kept and %d bytes dropped; the run ended %s", kept, dropped, describe(logged))
	}
	e, err := New(Config{Invoker: modules{"m": gives(text)}})
	if err != nil {
		t.Fatal(err)
	}
	run := &core.Run{ID: "run_1", Account: "acct_1", Input: json.RawMessage("{}")}
	for i := range 33 {
		run.Steps = append(run.Steps, core.Step{ID: fmt.Sprintf("n%d", i), Status: core.StepSucceeded, Output: json.RawMessage(text)})
	}
	if err := e.ExecuteDurable(t.Context(), run, chain(34, "%d", "[%s]"), &tape{}); err != nil {
		t.Fatal(err)
	}
	if run.Error == nil || !strings.Contains(run.Error.Message, "have more than 33554432 bytes together") {
		t.Errorf("a run that goes on ended %s", describe(run))
	}
}
