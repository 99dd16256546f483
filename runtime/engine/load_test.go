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
		if want := (heard{"compute +1", "outside +1", "outside -1", "compute +1"}); !slices.Equal(h, want) {
			t.Errorf("heard %q, want %q", h, want)
		}
	})
}
