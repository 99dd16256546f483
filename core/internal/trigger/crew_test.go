package trigger

import (
	"context"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
)

// O1: of durable runs that compute, no more do at once than keep the processors busy, and those that wait keep nobody out.
func TestDurableRunsComputeInTurnO1(t *testing.T) {
	t.Parallel()
	most := crewPerProcessor * runtime.GOMAXPROCS(0)
	runs := 3 * most
	b := setup(t, func(c *Config) { c.MaxWorkers = runs })
	b.publish("w", nil)
	_, c := b.key(0, auth.ScopeRunAll)
	var computing atomic.Int32
	began, waiting, next, end := make(chan struct{}, runs), make(chan struct{}, runs), make(chan struct{}), make(chan struct{})
	b.engine.run = func(ctx context.Context, _ *core.Run) {
		load := core.LoadOf(ctx)
		load.Compute(1)
		if n := computing.Add(1); int(n) > most {
			t.Errorf("%d compute at once, of %d that may", n, most)
		}
		began <- struct{}{}
		<-next
		computing.Add(-1)
		load.Outside(1)
		waiting <- struct{}{}
		<-end
		load.Outside(-1)
		load.Compute(-1)
	}
	var ids []string
	for range runs {
		ids = append(ids, b.durable(c, "w", Payload{}))
	}
	b.StartWorkers()
	for range 3 {
		for range most {
			<-began
		}
		for range most {
			next <- struct{}{}
		}
		for range most {
			<-waiting
		}
	}
	close(end)
	for _, id := range ids {
		b.ended(id)
	}
	b.Drain(context.Background())
	if free, _ := b.computing.State(); free != most {
		t.Errorf("%d turns are free in the end, of %d", free, most)
	}
}

// A run that is stopped while a node waits for its turn does not wait for it.
func TestCrewGoesWithItsRun(t *testing.T) {
	t.Parallel()
	turns := core.NewSlots(1)
	ctx, stop := context.WithCancel(t.Context())
	first := &crew{ctx: t.Context(), turns: turns, account: "a", caller: "k"}
	first.Compute(1)
	second := &crew{ctx: ctx, turns: turns, account: "a", caller: "k"}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		second.Compute(1)
	}()
	select {
	case <-ended:
		t.Error("two have the one turn")
	case <-time.After(10 * time.Millisecond):
	}
	stop()
	<-ended
	second.Compute(-1)
	second.end()
	first.end()
	first.Compute(-1) // what ends late
	if free, _ := turns.State(); free != 1 {
		t.Errorf("%d turns are free in the end, want 1", free)
	}
}

// The turn of a node that computes is not given away because another one of its run waits for memory.
func TestCrewKeepsItsTurn(t *testing.T) {
	t.Parallel()
	turns := core.NewSlots(2)
	c := &crew{ctx: t.Context(), turns: turns, account: "a", caller: "k"}
	c.Compute(1)
	for _, do := range []struct {
		what string
		do   func()
		free int
	}{
		{"another node waits for memory", func() { c.Wait(1) }, 1},
		{"it has it", func() { c.Wait(-1); c.Compute(1) }, 0},
		{"it waits for a service", func() { c.Outside(1) }, 1},
		{"it is back", func() { c.Outside(-1) }, 0},
		{"both have ended", func() { c.Compute(-1); c.Compute(-1) }, 2},
	} {
		do.do()
		if free, _ := turns.State(); free != do.free {
			t.Errorf("%s: %d turns are free, want %d", do.what, free, do.free)
		}
	}
}
