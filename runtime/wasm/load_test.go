package wasm

import (
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyfire/keyfire/core"
)

// waits is a core.Load that counts what waits outside, and of that the nodes that are executed.
type waits struct{ now, changes, computing, executed atomic.Int32 }

func (o *waits) Compute(change int) { o.computing.Add(int32(change)) }
func (o *waits) Outside(change int) {
	o.executed.Add(int32(change))
	o.Wait(change)
}

func (o *waits) Wait(change int) {
	o.now.Add(int32(change))
	o.changes.Add(1)
}

// O2: whoever lets requests in hears that a node waits for a service or for a time, and that it goes on, also when its time is up meanwhile. Values and secrets are at hand.
func TestWaitingOutsideO2(t *testing.T) {
	t.Parallel()
	var load waits
	s, e := allowedServer(t, func(_ http.ResponseWriter, r *http.Request) {
		if n, computing := load.now.Load(), load.computing.Load(); n != 1 || computing != 1 || load.executed.Load() != 1 {
			t.Errorf("%d wait while the service answers, of %d", n, computing)
		}
		if r.URL.Path == "/hangs" {
			<-r.Context().Done()
		}
	})
	b := setup(t, withHost, func(c *Config) { c.Egress = e.config })
	sdk, plain := b.publish(t, sdkGuest(t, "./conformance/typed", true)), b.publish(t, guestModule(t))
	origin := at(t, s, "example.com")
	for _, tt := range []struct {
		module, input string
		changes       int32
	}{
		{sdk, `{"op":"http","url":"` + origin + `/"}`, 2},
		{sdk, `{"op":"http","url":"` + origin + `/hangs"}`, 2},
		{sdk, `{"op":"count"}`, 0},
		{sdk, `{"op":"secret"}`, 0},
		{plain, `{"op":"sleep","size":50}`, 2},
		{plain, `{"op":"sleep","size":60000}`, 2},
	} {
		load.changes.Store(0)
		_, err := b.Invoke(core.WithLoad(t.Context(), &load), Call{
			Account: core.DefaultAccount, Module: tt.module, Input: []byte(tt.input), Run: "run_1", Step: "s", Workflow: "wf_a", Limits: core.Limits{Timeout: core.Duration(time.Second)},
			Grants: core.Grants{HTTP: []string{"GET " + origin}, Secrets: []string{"TOKEN"}, KV: core.KVWrite},
		})
		if now, n, computing := load.now.Load(), load.changes.Load(), load.computing.Load(); now != 0 || n != tt.changes || computing != 0 {
			t.Errorf("%s (%v): %d changes, want %d, and %d wait in the end, %d compute", tt.input, err, n, tt.changes, now, computing)
		}
	}
	// So is one that waits for memory, which is no more than a moment for most.
	all, err := b.memory.start(t.Context(), holder{}, b.memory.size, b.memory.size)
	if err != nil {
		t.Fatal(err)
	}
	load.changes.Store(0)
	done := make(chan error)
	go func() {
		_, err := b.Invoke(core.WithLoad(t.Context(), &load), Call{Account: core.DefaultAccount, Module: plain, Input: []byte(`{"op":"echo"}`)})
		done <- err
	}()
	waitFor(t, func() bool { _, waiting := b.memory.usage(); return waiting == 1 })
	if now, computing := load.now.Load(), load.computing.Load(); now != 1 || computing != 0 || load.executed.Load() != 0 {
		t.Errorf("without memory %d wait and %d compute", now, computing)
	}
	b.memory.end(all)
	if err := <-done; err != nil || load.now.Load() != 0 || load.changes.Load() != 2 {
		t.Errorf("%v: %d changes, %d wait in the end", err, load.changes.Load(), load.now.Load())
	}
}
