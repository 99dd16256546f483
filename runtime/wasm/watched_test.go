package wasm

import (
	"sync"
	"testing"
)

// The race detector must see what sync.Map orders. It does not if a package that it does not watch brings its own copy of the map's code into the binary
// (the Makefile says which could), and then it reports, now and then, races of libraries that have none.
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
