package wasm

import (
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyfire/keyfire/core"
)

// waits is a core.Load that counts what waits outside.
type waits struct{ now, changes atomic.Int32 }

func (o *waits) Compute(int) {}
func (o *waits) Outside(change int) {
	o.now.Add(int32(change))
	o.changes.Add(1)
}

// O2: whoever lets requests in hears that a node waits for a service or for a time, and that it goes on, also when its time is up meanwhile. Values and secrets are at hand.
func TestWaitingOutsideO2(t *testing.T) {
	t.Parallel()
	var load waits
	s, e := allowedServer(t, func(_ http.ResponseWriter, r *http.Request) {
		if n := load.now.Load(); n != 1 {
			t.Errorf("%d wait while the service answers", n)
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
		if now, n := load.now.Load(), load.changes.Load(); now != 0 || n != tt.changes {
			t.Errorf("%s (%v): %d changes, want %d, and %d wait in the end", tt.input, err, n, tt.changes, now)
		}
	}
}
