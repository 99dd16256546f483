package cli

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/keyfire/keyfire/sdk/client"
)

// TestChaosHostileTriggers has guests that compute until they are stopped, 16 at a time, beside triggers of another key (S2): what that costs those is printed, and fails the test when it is
// what no busy machine explains.
func TestChaosHostileTriggers(t *testing.T) {
	long, crowds := min(chaosTime(t), 20*time.Second), []int{1, 2, 4, 16, 64}
	if long < 10*time.Second {
		long, crowds = 2*time.Second, []int{2, 16}
	}
	o := newOverload(t, "")
	_, err := o.admin.PublishWorkflow(t.Context(), "hostile", client.Publication{
		Filename: "hostile.json", Modules: map[string][]byte{"./endless.wasm": busyModule(0)}, // which counts down from 0, and around
		Source: []byte(`{"keyfire": "v1", "name": "hostile", "trigger": {"enabled": true}, "nodes": [{"id": "endless", "uses": "./endless.wasm", "limits": {"timeout": "1s"}}]}`),
	})
	if err != nil {
		t.Fatal(err)
	}
	hostile, mouse := o.key(t, "hostile", "hostile"), o.key(t, "mouse", "greet")
	const share = 50 // a second
	others := func() figures { return o.by(mouse, benchInput, 64, share).run(t, long, o.admin) }
	others() // so that everything is loaded
	alone := others()
	o.show("another key alone", alone)
	for _, guests := range crowds {
		stop := make(chan struct{})
		var strangers sync.WaitGroup
		ask := o.by(hostile, "{}", guests, 0)
		for range guests {
			strangers.Go(func() {
				s := &sender{address: o.address}
				defer s.close()
				for {
					select {
					case <-stop:
						return
					default:
					}
					if _, err := s.exchange(ask.request); err != nil {
						t.Errorf("a guest that is to be stopped: %v", err)
						return
					}
				}
			})
		}
		time.Sleep(500 * time.Millisecond) // until all of them compute
		beside := others()
		close(stop)
		strangers.Wait()
		o.show(fmt.Sprintf("beside %d guests", guests), beside)
		if beside.accepted < 9*beside.refused || beside.quantile(0.5) > 10*alone.quantile(0.99)+500*time.Millisecond {
			t.Errorf("beside %d guests %d were let in and %d refused, and half of those let in answered within %v", guests, beside.accepted, beside.refused, beside.quantile(0.5))
		}
	}
	o.end(t)
}
