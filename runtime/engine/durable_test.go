package engine

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/runtime/wasm"
)

// tape is a core.Journal in memory, which can fail and be paused.
type tape struct {
	mu     sync.Mutex
	steps  map[int]core.Step
	order  []string // "id status" as committed
	events []core.RunEvent
	fail   error
	paused bool
}

func (j *tape) Commit(_ context.Context, position int, step core.Step) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.fail != nil {
		return j.fail
	}
	if j.steps == nil {
		j.steps = map[int]core.Step{}
	}
	j.steps[position] = step
	j.order = append(j.order, step.ID+" "+string(step.Status))
	return nil
}

func (j *tape) Record(e core.RunEvent) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.events = append(j.events, e)
}

func (j *tape) Paused() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.paused
}

// recorded returns what the next attempt of the run finds.
func (j *tape) recorded() []core.Step {
	steps := make([]core.Step, 0, len(j.steps))
	for i := range 10 {
		if st, ok := j.steps[i]; ok {
			steps = append(steps, st)
		}
	}
	return steps
}

// script is an Invoker that does what a test says, by step, and remembers who was invoked.
type script struct {
	mu      sync.Mutex
	invoked []string
	do      map[string]func(ctx context.Context, n int) (string, error)
}

func (s *script) Invoke(ctx context.Context, call wasm.Call) (wasm.Result, error) {
	s.mu.Lock()
	s.invoked = append(s.invoked, call.Step)
	n := 0
	for _, id := range s.invoked {
		if id == call.Step {
			n++
		}
	}
	do := s.do[call.Step]
	s.mu.Unlock()
	out := `"` + call.Step + `"`
	if do != nil {
		var err error
		if out, err = do(ctx, n); err != nil {
			return wasm.Result{Log: []core.LogLine{{Time: time.Now(), Level: "error", Message: "oh"}}}, err
		}
	}
	return wasm.Result{Output: json.RawMessage(out)}, nil
}

func durableRun(t *testing.T, s *script, nodes ...core.Node) (*Engine, *core.Run, *core.Definition) {
	t.Helper()
	def := &core.Definition{Keyfire: "v1", Name: "w", Trigger: core.TriggerSpec{Timeout: core.Duration(time.Minute)}, Nodes: nodes}
	if problems := Check(def); len(problems) > 0 {
		t.Fatal(problems)
	}
	e, err := New(Config{Invoker: s})
	if err != nil {
		t.Fatal(err)
	}
	return e, &core.Run{ID: "run_1", Account: "acct", Durable: true, Attempt: 1, Input: json.RawMessage("{}")}, def
}

func nodeNeeding(id string, needs ...string) core.Node {
	return core.Node{ID: id, Module: "sha256:" + id, Needs: needs}
}

// D2: a run goes on after its last committed step, and what was committed is never executed again.
func TestDurableGoesOn(t *testing.T) {
	t.Parallel()
	gone := errors.New("taken over")
	s := &script{do: map[string]func(context.Context, int) (string, error){}}
	e, run, def := durableRun(t, s, nodeNeeding("a"), nodeNeeding("b", "a"), nodeNeeding("c", "b"))
	j := &tape{}
	s.do["b"] = func(context.Context, int) (string, error) {
		j.mu.Lock()
		j.fail = gone // the worker is cut off while b executes
		j.mu.Unlock()
		return `2`, nil
	}
	if err := e.ExecuteDurable(t.Context(), run, def, j); !errors.Is(err, gone) {
		t.Fatalf("error %v", err)
	}
	if want := []string{"a", "b"}; !slices.Equal(s.invoked, want) {
		t.Fatalf("invoked %v, want %v: nothing may rest on a step that was not committed", s.invoked, want)
	}
	j.fail, s.do["b"] = nil, nil
	run.Steps = j.recorded()
	if err := e.ExecuteDurable(t.Context(), run, def, j); err != nil {
		t.Fatal(err)
	}
	if want := []string{"a", "b", "b", "c"}; !slices.Equal(s.invoked, want) || run.Status != core.RunSucceeded || string(run.Output) != `"c"` {
		t.Errorf("invoked %v, %s %s", s.invoked, run.Status, run.Output)
	}
	if want := []string{"a succeeded", "b succeeded"}; !slices.Equal(j.order, want) {
		t.Errorf("committed %v, want %v: the last step is committed with the end of the run", j.order, want)
	}
	var kinds []string
	for _, e := range j.events {
		kinds = append(kinds, e.Type+" "+e.Step)
	}
	if want := "step.started a"; kinds[0] != want || !slices.Contains(kinds, "step.output c") || kinds[len(kinds)-1] != "step.finished c" {
		t.Errorf("events %v", kinds)
	}
}

// A node that waits for a retry holds nothing, and its attempts are counted across executions.
func TestDurableRetryWaits(t *testing.T) {
	t.Parallel()
	s := &script{do: map[string]func(context.Context, int) (string, error){
		"b": func(_ context.Context, n int) (string, error) {
			if n < 3 {
				return "", &wasm.Error{Class: core.ClassUnavailable, Message: "later"}
			}
			return `3`, nil
		},
	}}
	b := nodeNeeding("b", "a")
	b.Retry = &core.Retry{MaxAttempts: 3, Initial: core.Duration(20 * time.Millisecond), Max: core.Duration(time.Second), Backoff: "constant", On: []core.ErrorClass{core.ClassUnavailable}}
	e, run, def := durableRun(t, s, nodeNeeding("a"), b)
	j := &tape{}
	for attempt := 1; attempt < 3; attempt++ {
		began := time.Now()
		if err := e.ExecuteDurable(t.Context(), run, def, j); err != nil {
			t.Fatal(err)
		}
		st := j.steps[1]
		if run.Status != core.RunWaiting || st.Status != core.StepRetrying || len(st.Attempts) != attempt || !run.DueAt.Equal(st.RetryAt) || run.DueAt.Sub(began) < 20*time.Millisecond {
			t.Fatalf("after attempt %d: run %s until %s, step %+v", attempt, run.Status, run.DueAt, st)
		}
		time.Sleep(time.Until(run.DueAt)) // what the queue does
		run.Steps = j.recorded()
	}
	if err := e.ExecuteDurable(t.Context(), run, def, j); err != nil {
		t.Fatal(err)
	}
	if run.Status != core.RunSucceeded || len(run.Steps[1].Attempts) != 3 || run.Steps[1].Attempts[2].Number != 3 {
		t.Errorf("%s %+v", run.Status, run.Steps)
	}
	if want := []string{"a", "b", "b", "b"}; !slices.Equal(s.invoked, want) {
		t.Errorf("invoked %v", s.invoked)
	}
}

// D2: a node that may be attempted at most once, and whose attempt was cut off, ends as unknown.
func TestDurableAtMostOnce(t *testing.T) {
	t.Parallel()
	once := nodeNeeding("a")
	once.AtMostOnce = true
	t.Run("the server died", func(t *testing.T) {
		t.Parallel()
		s := &script{}
		e, run, def := durableRun(t, s, once, nodeNeeding("b", "a"))
		run.Steps = []core.Step{{ID: "a", Status: core.StepRunning, StartedAt: time.Now()}}
		if err := e.ExecuteDurable(t.Context(), run, def, &tape{}); err != nil {
			t.Fatal(err)
		}
		if run.Status != core.RunFailed || run.Steps[0].Status != core.StepUnknown || run.Steps[1].Status != core.StepCancelled || len(s.invoked) > 0 || run.Error.Step != "a" {
			t.Errorf("%s %+v, invoked %v", run.Status, run.Steps, s.invoked)
		}
	})
	t.Run("the server stops", func(t *testing.T) {
		t.Parallel()
		ctx, stop := context.WithCancelCause(t.Context())
		j := &tape{}
		s := &script{do: map[string]func(context.Context, int) (string, error){"a": func(ctx context.Context, _ int) (string, error) {
			if j.steps[0].Status != core.StepRunning {
				t.Error("the attempt began before that was committed")
			}
			stop(core.ErrRunInterrupted)
			<-ctx.Done()
			return "", context.Cause(ctx)
		}}}
		e, run, def := durableRun(t, s, once)
		if err := e.ExecuteDurable(ctx, run, def, j); err != nil {
			t.Fatal(err)
		}
		if run.Status != core.RunFailed || run.Steps[0].Status != core.StepUnknown {
			t.Errorf("%s %+v", run.Status, run.Steps)
		}
	})
	t.Run("it succeeded", func(t *testing.T) {
		t.Parallel()
		s := &script{}
		e, run, def := durableRun(t, s, once)
		j := &tape{}
		if err := e.ExecuteDurable(t.Context(), run, def, j); err != nil {
			t.Fatal(err)
		}
		if want := []string{"a running", "a succeeded"}; !slices.Equal(j.order, want) || run.Status != core.RunSucceeded {
			t.Errorf("committed %v, %s", j.order, run.Status)
		}
	})
}

// L1: a run is handed back between two steps when the server stops, and in the middle of one when that takes too long.
func TestDurableHandsBack(t *testing.T) {
	t.Parallel()
	j := &tape{}
	ctx, stop := context.WithCancelCause(t.Context())
	s := &script{do: map[string]func(context.Context, int) (string, error){
		"a": func(context.Context, int) (string, error) {
			j.mu.Lock()
			j.paused = true
			j.mu.Unlock()
			return `1`, nil
		},
		"b": func(ctx context.Context, n int) (string, error) {
			if n == 1 {
				stop(core.ErrRunInterrupted)
				<-ctx.Done()
				return "", context.Cause(ctx)
			}
			return `2`, nil
		},
	}}
	e, run, def := durableRun(t, s, nodeNeeding("a"), nodeNeeding("b", "a"))
	for range 2 {
		if err := e.ExecuteDurable(ctx, run, def, j); err != nil {
			t.Fatal(err)
		}
		if want := []string{"a succeeded"}; run.Status != core.RunQueued || !slices.Equal(j.order, want) {
			t.Fatalf("%s, committed %v", run.Status, j.order)
		}
		run.Steps, j.paused = j.recorded(), false
	}
	if err := e.ExecuteDurable(t.Context(), run, def, j); err != nil {
		t.Fatal(err)
	}
	if want := []string{"a", "b", "b"}; run.Status != core.RunSucceeded || !slices.Equal(s.invoked, want) {
		t.Errorf("%s, invoked %v", run.Status, s.invoked)
	}
}
