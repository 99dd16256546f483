package engine

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/runtime/wasm"
)

// heard is a core.Load that keeps what it hears.
type heard []string

func (h *heard) Compute(change int) { *h = append(*h, fmt.Sprintf("compute %+d", change)) }
func (h *heard) Outside(change int) { *h = append(*h, fmt.Sprintf("outside %+d", change)) }
func (h *heard) Wait(change int)    { *h = append(*h, fmt.Sprintf("wait %+d", change)) }

// O1: whoever lets requests in hears when a run waits for its next attempt, and the nodes of a run are told who it is.
func TestExecutionIsHeardO1(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var h heard
		def := checked(t, `{"nodes":[{"id":"a","retry":{"max_attempts":2,"initial":"1s","max":"1s","backoff":"constant","on":["unavailable"]}}]}`)
		execute(t, core.WithLoad(t.Context(), &h), def, `{}`, modules{"a": func(ctx context.Context, _ wasm.Call) (wasm.Result, error) {
			core.LoadOf(ctx).Compute(1)
			return wasm.Result{}, &wasm.Error{Class: core.ClassUnavailable, Message: "closed"}
		}})
		if want := (heard{"compute +1", "wait +1", "wait -1", "compute +1"}); !slices.Equal(h, want) {
			t.Errorf("heard %q, want %q", h, want)
		}
	})
}

// O2: a node waits for memory in the turn of whoever has started the run.
func TestNodesAreTheCallersO2(t *testing.T) {
	t.Parallel()
	var got []string
	e, err := New(Config{Invoker: modules{"a": func(_ context.Context, c wasm.Call) (wasm.Result, error) {
		got = append(got, c.Account+" "+c.Caller)
		return wasm.Result{Output: []byte("{}")}, nil
	}}})
	if err != nil {
		t.Fatal(err)
	}
	run := &core.Run{ID: "run_1", Account: "acct_1", Input: []byte("{}"), Trigger: core.TriggerInfo{Type: "api", Principal: "key:key_1"}}
	e.Execute(t.Context(), run, checked(t, `{"nodes":[{"id":"a"}]}`))
	if want := []string{"acct_1 key:key_1"}; !slices.Equal(got, want) {
		t.Errorf("executed for %q, want %q", got, want)
	}
}
