package trigger

import (
	"context"
	"testing"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
)

// What keys were used for is everybody's: whoever asks for it and goes away must not take the counts of others along.
func TestUsageOutlivesWhoeverAsks(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.publish("open", nil)
	k, c := b.key(0, auth.ScopeRunAll)
	_, err := b.start(c, "open", Payload{})
	b.must(err)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	b.must(b.FlushUsage(gone))
	counts, err := b.store.KeyUsage(t.Context(), k.Account, k.ID, 0)
	b.must(err)
	runs := int64(0)
	for _, u := range counts {
		if u.Kind == core.UsageRuns {
			runs += u.Count
		}
	}
	if runs != 1 {
		t.Errorf("%d runs are counted, want 1", runs)
	}
}
