package engine

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/runtime/wasm"
)

// guest compiles testdata/guest and returns a runtime that has it, and its digest.
func guest(t *testing.T) (*wasm.Runtime, string) {
	t.Helper()
	if testing.Short() {
		t.Skip("compiles a module")
	}
	file := filepath.Join(t.TempDir(), "guest.wasm")
	cmd := exec.Command("go", "build", "-o", file, "./testdata/guest")
	cmd.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	binary, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	rt, err := wasm.New(t.Context(), wasm.Config{
		CacheDir: filepath.Join(t.TempDir(), "cache"),
		Load:     func(context.Context, string, string) ([]byte, error) { return binary, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := rt.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	info, err := rt.Compile(t.Context(), binary)
	if err != nil {
		t.Fatal(err)
	}
	return rt, info.Digest
}

// TestRealModules runs graphs of real modules: values flow from one to the next, a busy loop is stopped by its node's timeout and by the
// run's, a node's own words reach the run, and after every failure the same module runs again.
func TestRealModules(t *testing.T) {
	rt, digest := guest(t)
	e, err := New(Config{Invoker: rt})
	if err != nil {
		t.Fatal(err)
	}
	execute := func(nodes, timeout string) *core.Run {
		t.Helper()
		def := define(t, `{"trigger":{"timeout":"`+timeout+`"},"nodes":`+nodes+`}`)
		for i := range def.Nodes {
			def.Nodes[i].Module = digest
		}
		if problems := Check(def); len(problems) > 0 {
			t.Fatal(problems)
		}
		run := &core.Run{ID: "run_1", Account: "acct_1", Input: json.RawMessage(`{"who":"ada"}`)}
		e.Execute(t.Context(), run, def)
		return run
	}
	const chain = `[{"id":"one","with":{"op":"upper","text":"${{ input.who }}"},"config":{"suffix":"!"}},{"id":"two","with":{"op":"upper","text":"hi ${{ nodes.one.output.text }}"}}]`
	works := func() {
		t.Helper()
		run := execute(chain, "30s")
		if got, want := string(run.Output), `{"text":"HI ADA!"}`+"\n"; describe(run) != "succeeded" || got != want {
			t.Fatalf("%s %q, want %q", describe(run), got, want)
		}
		if log := run.Steps[1].Attempts[0].Log; len(log) != 1 || log[0].Message != "op upper" {
			t.Errorf("log = %+v", log)
		}
		if a := run.Steps[0].Attempts[0]; a.PeakMemory == 0 || a.DurationUS == 0 {
			t.Errorf("attempt = %+v", a)
		}
	}
	works()

	// The best of some: the machine may be busy with something else, but a loop that is not stopped never ends in time.
	best := time.Hour
	for range 10 {
		run := execute(`[{"id":"loop","with":{"op":"spin"},"limits":{"timeout":"100ms"}}]`, "30s")
		if got, want := describe(run), `timed_out run_timed_out timeout step="loop": node loop: the node did not finish within 100ms`; got != want {
			t.Errorf("a loop: %s\nwant %s", got, want)
		}
		if best = min(best, run.FinishedAt.Sub(run.StartedAt)); best <= 350*time.Millisecond {
			break
		}
	}
	if best < 100*time.Millisecond || best > 350*time.Millisecond {
		t.Errorf("a loop with a timeout of 100ms ended after %s", best)
	}
	works()

	run := execute(`[{"id":"loop","with":{"op":"spin"}},{"id":"also","with":{"op":"spin"}},{"id":"after","needs":["loop"]}]`, "150ms")
	if got, want := describe(run), `timed_out run_timed_out timeout step="loop": the run did not finish within 150ms; node loop was running`; got != want {
		t.Errorf("loops: %s\nwant %s", got, want)
	}
	if got, want := statuses(run), "loop:timed_out also:timed_out after:cancelled"; got != want {
		t.Errorf("loops: %s, want %s", got, want)
	}
	works()

	run = execute(`[{"id":"a","with":{"op":"closed"},"retry":{"max_attempts":2,"initial":"1ms","max":"1ms","backoff":"constant","on":["unavailable"]}}]`, "30s")
	want := &core.RunError{Code: core.CodeRunFailed, Class: core.ClassUnavailable, Message: "node a: the service is closed (2 attempts)", Step: "a", Retryable: true}
	if diff := cmp.Diff(want, run.Error); diff != "" {
		t.Errorf("unavailable: -want +got:\n%s", diff)
	}
	run = execute(`[{"id":"a","with":{"op":"refuse"}},{"id":"loop","with":{"op":"spin"}}]`, "30s")
	want = &core.RunError{Code: core.CodeRunFailed, Class: core.ClassFailed, Message: "it exists", Step: "a", Status: 409, UserCode: "duplicate"}
	if diff := cmp.Diff(want, run.Error); diff != "" {
		t.Errorf("refused: -want +got:\n%s", diff)
	}
	if got, want := statuses(run), "a:failed loop:cancelled"; got != want {
		t.Errorf("refused: %s, want %s", got, want)
	}
	run = execute(`[{"id":"a","with":{"op":"other"}}]`, "30s")
	if s := run.Steps[0]; s.Error == nil || s.Error.ExitCode != 7 || s.Error.Class != core.ClassExit || s.Attempts[0].Error.ExitCode != 7 {
		t.Errorf("exit: %+v", s)
	}
	works()
}
