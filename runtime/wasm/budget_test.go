package wasm

import (
	"context"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
)

// O2: whoever has filled the memory with nodes that stay, and has hundreds more to come, makes others wait for one of them to end.
func TestBudgetIsFairO2(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		elephant, mouse, cat, other := holder{"acc", "elephant"}, holder{"acc", "mouse"}, holder{"acc", "cat"}, holder{"other", "elephant"}
		b := newBudget(40)
		var mu sync.Mutex
		var got []string
		ask := func(ctx context.Context, who holder, n int64) {
			go func() {
				if b.acquire(ctx, who, n) == nil {
					mu.Lock()
					defer mu.Unlock()
					got = append(got, who.account+"/"+who.caller)
				}
			}()
			synctest.Wait()
		}
		granted := func(what string, want ...string) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if got := strings.Join(got, " "); got != strings.Join(want, " ") {
				t.Errorf("%s: granted to %q, want %q", what, got, want)
			}
			got = nil
		}
		for range 12 {
			ask(t.Context(), elephant, 10)
		}
		granted("40 are free", "acc/elephant", "acc/elephant", "acc/elephant", "acc/elephant")
		gone, leave := context.WithCancel(t.Context())
		ask(gone, cat, 1)
		ask(t.Context(), mouse, 5)
		ask(t.Context(), mouse, 5)
		ask(t.Context(), other, 10)
		granted("none is free")
		leave()
		synctest.Wait()
		b.release(elephant, 10)
		granted("an account that holds nothing goes first", "other/elephant")
		b.release(elephant, 10)
		// Both accounts wait, but the other one for nothing.
		granted("then a caller that holds little", "acc/mouse", "acc/mouse")
		ask(t.Context(), other, 1)
		b.release(mouse, 5)
		granted("who goes next is not overtaken", "other/elephant")
		b.release(elephant, 10)
		granted("then the one that holds more", "acc/elephant")

		b.release(mouse, 5)
		b.release(other, 10)
		b.release(other, 1)
		for range 8 {
			b.release(elephant, 10)
			synctest.Wait()
		}
		b.release(elephant, 10)
		if taken, waiting := b.usage(); taken != 0 || waiting != 0 || len(b.held) != 0 {
			t.Errorf("in the end %d are taken, %d wait, and %d hold some", taken, waiting, len(b.held))
		}
	})
}
