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

// heard is a core.Load that keeps what it hears. Only one node at a time may be under way.
type heard []string

func (h *heard) Compute(change int) { *h = append(*h, fmt.Sprintf("compute %+d", change)) }
func (h *heard) Outside(change int) { *h = append(*h, fmt.Sprintf("outside %+d", change)) }

// O1: whoever lets requests in hears when a node is executed, and when a run waits for its next attempt.
func TestExecutionIsHeardO1(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		node node
		want []string
	}{
		{"fails twice", fails(wasm.Error{Class: core.ClassUnavailable, Message: "closed"}), []string{"compute +1", "compute -1", "outside +1", "outside -1", "compute +1", "compute -1"}},
		{"panics", func(context.Context, wasm.Call) (wasm.Result, error) { panic("bug") }, []string{"compute +1", "compute -1"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var h heard
				def := checked(t, `{"nodes":[{"id":"a","retry":{"max_attempts":2,"initial":"1s","max":"1s","backoff":"constant","on":["unavailable"]}}]}`)
				execute(t, core.WithLoad(t.Context(), &h), def, `{}`, modules{"a": tt.node})
				if !slices.Equal(h, tt.want) {
					t.Errorf("heard %q, want %q", h, tt.want)
				}
			})
		})
	}
}
