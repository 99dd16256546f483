package server

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/keyfire/keyfire/core"
)

// Publications are held in memory, with modules of up to MaxPublish, so few are let in at once, and not all of one account's.
func TestFewPublicationsAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPublications()
		outcome := make(chan error, 1)
		enter := func(ctx context.Context, account string) { go func() { outcome <- p.enter(ctx, account) }() }
		entered := func() bool {
			synctest.Wait()
			return len(outcome) == 1 && <-outcome == nil
		}
		for _, account := range []string{"a", "a", "b", "c"} {
			if enter(t.Context(), account); !entered() {
				t.Fatalf("there is no place for %s", account)
			}
		}
		if enter(t.Context(), "d"); entered() {
			t.Error("there is a place for a fifth")
		}
		if p.leave("b"); !entered() {
			t.Error("a place that was left is not taken")
		}
		p.leave("c")
		if enter(t.Context(), "a"); entered() {
			t.Error("there is a third place for one account")
		}
		if err := <-outcome; core.CodeOf(err) != core.CodeOverloaded { // a minute later
			t.Errorf("after a long wait: %v", err)
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		gone := errors.New("gone")
		enter(ctx, "a")
		synctest.Wait()
		cancel(gone)
		if err := <-outcome; !errors.Is(err, gone) {
			t.Errorf("of a caller that went away: %v", err)
		}
		for _, account := range []string{"a", "a", "d"} {
			p.leave(account)
		}
		if p.all != 0 || len(p.of) != 0 {
			t.Errorf("%d places are taken, by %v", p.all, p.of)
		}
	})
}
