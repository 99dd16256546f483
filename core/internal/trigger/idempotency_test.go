package trigger

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
)

// D3: the ids of webhook messages and Idempotency-Keys are two sets of names, whatever a caller writes into either.
func TestMessageIDsAreNoIdempotencyKeysD3(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.publish("open", nil)
	_, c := b.key(0, auth.ScopeRunAll)
	first, err := b.start(c, "open", Payload{Input: json.RawMessage(`{"n":1}`), IdempotencyKey: "webhook-id:m1"})
	b.must(err)
	second, err := b.start(c, "open", Payload{Input: json.RawMessage(`{"n":2}`), Webhook: true, MessageID: "m1"})
	if err != nil || second.Replayed || second.Run.ID == first.Run.ID {
		t.Errorf("the message m1 found the run of the key webhook-id:m1, or %v", err)
	}
}

// D3: two requests that ask for different things have different fingerprints, also when their parts read the same one after another.
func TestFingerprintsTellRequestsApartD3(t *testing.T) {
	t.Parallel()
	zero := time.Time{}.Format(time.RFC3339Nano)
	run := func(metadata map[string]string) *core.Run {
		return &core.Run{Workflow: core.WorkflowRef{ID: "wf_1", Version: 3}, Input: json.RawMessage("{}"), Metadata: metadata}
	}
	requests := map[string]struct {
		run     *core.Run
		payload Payload
	}{
		"nothing":                {run(nil), Payload{}},
		"metadata like callback": {run(map[string]string{"https://a.example": zero}), Payload{}},
		"callback":               {run(nil), Payload{CallbackURL: "https://a.example"}},
		"metadata like variable": {run(map[string]string{"variable TOKEN": "x"}), Payload{}},
		"variable":               {run(nil), Payload{Variables: map[string]string{"TOKEN": "x"}}},
		"callback and dedupe":    {run(nil), Payload{CallbackURL: "https://a.example", Dedupe: &core.Dedupe{Key: "variable TOKEN", Policy: "x"}}},
		"callback and variable":  {run(nil), Payload{CallbackURL: "https://a.example", Variables: map[string]string{"TOKEN": "x"}}},
		"dedupe":                 {run(nil), Payload{Dedupe: &core.Dedupe{Key: "a", Policy: core.DedupeReject}}},
		"other dedupe":           {run(nil), Payload{Dedupe: &core.Dedupe{Key: "a", Policy: core.DedupeUseExisting}}},
		"later":                  {run(nil), Payload{RunAfter: time.Unix(1, 0)}},
		"version":                {run(nil), Payload{ticket: &Ticket{asked: true}}},
		"metadata like version":  {run(map[string]string{"version 3": ""}), Payload{}},
		"repeats":                {run(nil), Payload{repeats: "run_1 from start"}},
	}
	seen := map[string]string{}
	for name, r := range requests {
		print := fingerprint(r.run, &r.payload)
		if other, ok := seen[print]; ok {
			t.Errorf("%q and %q have one fingerprint", name, other)
		}
		seen[print] = name
	}
}
