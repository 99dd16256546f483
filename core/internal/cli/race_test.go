//go:build race

package cli

import (
	"sync"
	"testing"
)

const raceEnabled = true

// TestMapIsWatched is the test of that name in runtime/wasm, for this binary: the tests here compare with the engine used plainly, and so link more of its packages.
func TestMapIsWatched(t *testing.T) {
	t.Parallel()
	var m sync.Map
	var value int
	done := make(chan struct{})
	go func() {
		defer close(done)
		value = 1
		m.Store("ready", true)
	}()
	for ready := false; !ready; {
		_, ready = m.Load("ready")
	}
	if value != 1 {
		t.Errorf("value %d", value)
	}
	<-done
}
