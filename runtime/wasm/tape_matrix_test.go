package wasm

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/keyfire/keyfire/core"
)

// TestReplayGallery: a node in any language, by any door, is the same again, with a good input and with a bad one.
func TestReplayGallery(t *testing.T) {
	t.Parallel()
	for _, n := range galleryNodes() {
		t.Run(n.name, func(t *testing.T) {
			t.Parallel()
			b := n.runtimeFor(t)
			d := b.publish(t, n.binary(t))
			document, _ := galleryDocument()
			text, err := json.Marshal(document)
			if err != nil {
				t.Fatal(err)
			}
			for _, input := range []string{`{"text":` + string(text) + `}`, document, `{"text":7}`, `{}`} {
				r, res, err := recordCall(t, b, Call{Module: d, Export: n.call, Input: []byte(input), Limits: core.Limits{Timeout: core.Duration(time.Minute)}})
				r.identical(t, 3, res, err)
			}
		})
	}
}

// TestReplayHostile: a guest that means harm, and is stopped by its deadline or by another bound, is stopped at the same place again.
func TestReplayHostile(t *testing.T) {
	t.Parallel()
	b := setup(t, withHost)
	stopped := 0
	for kind, k := range hostileKinds() {
		r, res, err := recordCall(t, b, Call{
			Module: b.publish(t, k.binary), Input: []byte(`{}`), Export: k.export, Workflow: "wf",
			Grants: core.Grants{HTTP: []string{"GET https://api.example.com"}, Secrets: []string{"TOKEN"}, KV: core.KVWrite},
			Limits: core.Limits{Timeout: core.Duration(50 * time.Millisecond)},
		})
		if err == nil {
			t.Errorf("%s ends well", kind)
		}
		if r.tape.Stopped() {
			stopped++
		}
		r.identical(t, 1, res, err)
	}
	if stopped < 10 {
		t.Errorf("only %d guests ran into their deadline", stopped)
	}
}
