package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/runtime/wasm"
)

// taped returns a node that leaves a tape if it is to be recorded, whose step is call.Step and whose size is about size, and ends with the error.
func taped(size int, failure func(n int) error) node {
	return func(_ context.Context, call wasm.Call) (wasm.Result, error) {
		res := wasm.Result{Output: []byte(`1`)}
		if call.Record {
			res.Tape = &wasm.Tape{Step: call.Step, Attempt: call.Attempt, Run: strings.Repeat("x", size)}
		}
		return res, failure(call.Attempt)
	}
}

func tapes(run *core.Run) (list []string) {
	for _, st := range run.Steps {
		for _, a := range st.Attempts {
			s := fmt.Sprintf("%s %d %s", st.ID, a.Number, a.Tape)
			if want := fmt.Sprintf(`"step":%q,"attempt":%d`, st.ID, a.Number); len(a.Recording) > 0 && bytes.Contains(a.Recording, []byte(want)) {
				s += " +"
			}
			list = append(list, s)
		}
	}
	return list
}

// TestRecord: tapes are kept of those attempts that the node names, and of no others.
func TestRecord(t *testing.T) {
	t.Parallel()
	twice := func(n int) error {
		if n < 3 {
			return &wasm.Error{Class: core.ClassUnavailable, Message: "later"}
		}
		return nil
	}
	const retry = `,"retry":{"max_attempts":3,"initial":"1ms","max":"1ms","backoff":"constant","on":["unavailable"]}`
	for record, want := range map[string]string{
		``:                     "[a 1  a 2  a 3 ]",
		`,"record":"failures"`: "[a 1 kept + a 2 kept + a 3 ]",
		`,"record":"all"`:      "[a 1 kept + a 2 kept + a 3 kept +]",
	} {
		run := execute(t, t.Context(), checked(t, `{"nodes":[{"id":"a","module":"a"`+record+retry+`}]}`), `{}`, modules{"a": taped(0, twice)})
		if got := fmt.Sprint(tapes(run)); got != want {
			t.Errorf("%s: %s, want %s", record, got, want)
		}
	}
	never := func(int) error { return nil }
	for name, c := range map[string]struct {
		node node
		want string
	}{
		"too large": {taped(wasm.MaxTape, never), "[a 1 too_large]"},
		"too large to be taken": {func(context.Context, wasm.Call) (wasm.Result, error) {
			return wasm.Result{Output: []byte("1"), TooLong: true}, nil
		}, "[a 1 too_large]"},
		"the server failed": {func(context.Context, wasm.Call) (wasm.Result, error) { return wasm.Result{}, errors.New("no disk") }, "[a 1 ]"},
		"not JSON that is read": {func(_ context.Context, call wasm.Call) (wasm.Result, error) {
			return wasm.Result{Output: []byte(`{"a":1,"a":2}`), Tape: &wasm.Tape{Step: "a", Attempt: 1}}, nil
		}, "[a 1 kept +]"},
	} {
		run := execute(t, t.Context(), checked(t, `{"nodes":[{"id":"a","module":"a","record":"all"}]}`), `{}`, modules{"a": c.node})
		if got := fmt.Sprint(tapes(run)); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
	// Together they are bounded.
	var nodes []string
	for i := range 6 {
		nodes = append(nodes, fmt.Sprintf(`{"id":"n%d","module":"a","record":"all"}`, i))
	}
	run := execute(t, t.Context(), checked(t, `{"nodes":[`+strings.Join(nodes, ",")+`]}`), `{}`, modules{"a": taped(wasm.MaxTape-1000, never)})
	if got := fmt.Sprint(tapes(run)); strings.Count(got, "kept +") != 4 || strings.Count(got, "too_large") != 2 {
		t.Errorf("six large tapes: %s", got)
	}
}

// TestRecordAllRuns: the tapes of all runs are bounded together, until they are stored and gone, as those are that end while the store is out of order.
func TestRecordAllRuns(t *testing.T) {
	t.Parallel()
	e, err := New(Config{Invoker: modules{"a": taped(wasm.MaxTape-1000, func(int) error { return nil })}})
	if err != nil {
		t.Fatal(err)
	}
	e.tapes = newTapeRoom(3 * wasm.MaxTape)
	def := checked(t, `{"nodes":[{"id":"a","module":"a","record":"all"}]}`)
	record := func() *core.Run {
		run := &core.Run{ID: "run_1", Account: "acct", Input: json.RawMessage(`{}`)}
		e.Execute(t.Context(), run, def)
		return run
	}
	var ended []*core.Run
	for i, want := range []string{"[a 1 kept +]", "[a 1 kept +]", "[a 1 kept +]", "[a 1 too_large]"} {
		ended = append(ended, record())
		if got := fmt.Sprint(tapes(ended[i])); got != want {
			t.Errorf("run %d: %s, want %s", i+1, got, want)
		}
	}
	clear(ended)
	for e.tapes.held.Load() > 0 { // the collector runs what is to be done after it when it likes
		runtime.GC()
		runtime.Gosched()
	}
	if got := fmt.Sprint(tapes(record())); got != "[a 1 kept +]" {
		t.Errorf("when they are gone: %s", got)
	}
}

// TestRecordPrivate: the runtime is told which values are variables of the run, so that they are not on the tape.
func TestRecordPrivate(t *testing.T) {
	t.Parallel()
	var got wasm.Call
	e, err := New(Config{Invoker: modules{"a": func(_ context.Context, call wasm.Call) (wasm.Result, error) {
		got = call
		return wasm.Result{Output: []byte(`1`)}, nil
	}}})
	if err != nil {
		t.Fatal(err)
	}
	run := &core.Run{ID: "run_1", Account: "acct_1", Input: json.RawMessage(`{}`), Variables: map[string]string{"KEY": "sk-QmFzZTY0aXNub3Rl"}}
	e.Execute(t.Context(), run, checked(t, `{"nodes":[{"id":"a","module":"a","record":"failures"}]}`))
	if !got.Record || got.Private["variables.KEY"] != "sk-QmFzZTY0aXNub3Rl" || len(got.Private) != 1 {
		t.Errorf("call %+v", got)
	}
}

// TestRecordDurable: a tape is committed with its step, once.
func TestRecordDurable(t *testing.T) {
	t.Parallel()
	def := checked(t, `{"nodes":[{"id":"a","module":"a","record":"all"},{"id":"b","module":"a","record":"all","needs":["a"]}]}`)
	e, err := New(Config{Invoker: modules{"a": taped(0, func(int) error { return nil })}})
	if err != nil {
		t.Fatal(err)
	}
	run := &core.Run{ID: "run_1", Account: "acct", Durable: true, Attempt: 1, Input: json.RawMessage("{}")}
	j := &keeping{}
	if err := e.ExecuteDurable(t.Context(), run, def, j); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(j.tapes); got != "[a 1 kept +]" {
		t.Errorf("committed %s", got)
	}
	if got := fmt.Sprint(tapes(run)); got != "[a 1 kept b 1 kept +]" {
		t.Errorf("left for the end of the run: %s", got)
	}
}

// keeping is a journal that looks at tapes when they are committed.
type keeping struct {
	tape
	tapes []string
}

func (k *keeping) Commit(ctx context.Context, position int, step core.Step) error {
	k.tapes = append(k.tapes, tapes(&core.Run{Steps: []core.Step{step}})...)
	return k.tape.Commit(ctx, position, step)
}
