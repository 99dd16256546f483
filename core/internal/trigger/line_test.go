package trigger

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
)

func newTestLine(t *testing.T, places, waiting int) *line {
	t.Helper()
	l, err := newLine(places, places, 1000, waiting, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	l.roomPer = 1 // so that a few are a crowd
	t.Cleanup(l.close)
	return l
}

// queue has a request of a caller enter. The outcome is read from what it returns once synctest.Wait says that nothing moves.
func (l *line) queue(ctx context.Context, caller string) *entering {
	e := &entering{}
	go func() {
		p, err := l.enter(ctx, caller)
		e.mu.Lock()
		defer e.mu.Unlock()
		e.place, e.err = p, err
	}()
	synctest.Wait()
	return e
}

type entering struct {
	mu    sync.Mutex
	place *Place
	err   error
}

func (e *entering) String() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.place != nil:
		return "in"
	case e.err != nil:
		return string(core.CodeOf(e.err))
	}
	return "waits"
}

// leave has requests leave, and those that are let in for that, until the line is empty.
func (l *line) leave(all ...*entering) {
	for l.order.Len() > 0 || l.inside.Len() > 0 {
		for _, e := range all {
			if e.String() == "in" {
				e.place.Leave()
			}
			synctest.Wait()
		}
	}
}

func outcomes(all []*entering) string {
	var s []string
	for _, e := range all {
		s = append(s, e.String())
	}
	return strings.Join(s, " ")
}

// O1: a burst is worked off, in the order in which it came as far as there is room for those that wait, and nobody of it is refused.
func TestLineWorksABurstOffO1(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newTestLine(t, 2, 1000)
		var all []*entering
		for range 200 {
			all = append(all, l.queue(t.Context(), "a"))
		}
		served := 0
		for served < len(all) {
			time.Sleep(time.Millisecond)
			for _, e := range all {
				if e.String() == "in" && e.place.inside != nil {
					served++
					e.place.Leave()
					synctest.Wait()
				}
			}
		}
		for i, e := range all {
			if got := e.String(); got != "in" {
				t.Fatalf("the request of number %d: %s", i, got)
			}
		}
		if l.inside.Len() != 0 || l.order.Len() != 0 || len(l.crowds) != 0 || l.turns.Len() != 0 || l.flood.crowded {
			t.Errorf("something is left: %d inside, %d waiting, %d crowds", l.inside.Len(), l.order.Len(), len(l.crowds))
		}
	})
}

// O1: callers who wait for an answer before they ask again are answered in their order, for as long as they like: more of them than there are places are not more than can be done.
func TestLineAnswersAClosedLoopO1(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newTestLine(t, 2, 1000)
		l.roomPer = roomPerPlace
		var all []*entering
		for range 2 + 2*roomPerPlace - 1 {
			all = append(all, l.queue(t.Context(), "a"))
		}
		for began := time.Now(); time.Since(began) < 6*patience; time.Sleep(longestPlace / 5) {
			if got := all[0].String(); got != "in" {
				t.Fatalf("after %v, who has waited for longest: %s", time.Since(began), got)
			}
			all[0].place.Leave()
			all = append(all[1:], l.queue(t.Context(), "a"))
		}
		l.leave(all...)
	})
}

// pass lets time pass in which what is inside goes on, a place a moment, so that none is taken back.
func pass(d time.Duration, held ...*Place) {
	for range int(d / (10 * time.Millisecond)) {
		time.Sleep(10 * time.Millisecond)
		for _, p := range held {
			p.line.mu.Lock()
			p.since = time.Now()
			p.line.mu.Unlock()
		}
	}
	synctest.Wait()
}

// O1: when more come than can be done, for longer than a burst, the newest are let in, and nobody who has waited for longer than is timely: whoever was not let in by then is refused a moment
// later, not at once. When there was room enough for a while, all is as before.
func TestLineRefusesTheOldestO1(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newTestLine(t, 2, 1000)
		come := func(n int) []*entering {
			var some []*entering
			for range n {
				some = append(some, l.queue(t.Context(), "a"))
			}
			return some
		}
		all := come(7)
		if got := outcomes(all); got != "in in waits waits waits waits waits" {
			t.Fatal(got)
		}
		held := []*Place{all[0].place, all[1].place}
		pass(patience, held...)
		all = append(all, come(1)...)
		if got := outcomes(all); got != "in in overloaded overloaded overloaded overloaded overloaded waits" {
			t.Errorf("after %v: %s", patience, got)
		}
		var refused *core.Error
		if !errors.As(all[2].err, &refused) || refused.RetryAfter <= 0 {
			t.Errorf("it was refused with %#v", all[2].err)
		}
		flood := append(all[7:], come(3)...)
		pass(timely/2, held...)
		flood = append(flood, come(2)...)
		held[0].Leave()
		synctest.Wait()
		if got := outcomes(flood); got != "waits waits waits waits waits in" {
			t.Errorf("with a free place: %s, and the newest was to be let in", got)
		}
		pass(timely/2, held[1], flood[5].place)
		held[1].Leave()
		synctest.Wait()
		if got := outcomes(flood); got != "waits waits waits waits in in" {
			t.Errorf("with another free place: %s, and four have waited for %v", got, timely)
		}
		late := come(1)[0]
		if got := late.String(); got != "waits" {
			t.Errorf("the newest while both places are taken: %s", got)
		}
		flood[4].place.Leave()
		synctest.Wait()
		if got := late.String(); got != "in" {
			t.Errorf("the newest, with a free place: %s", got)
		}
		pass(refusalAfter-timely+longestPlace, flood[5].place, late.place)
		if got := outcomes(flood); got != "overloaded overloaded overloaded overloaded in in" {
			t.Errorf("after %v: %s", refusalAfter, got)
		}
		flood[5].place.Leave()
		late.place.Leave()
		// That nobody waited for a moment, as when those who send stop to breathe, does not begin another burst.
		time.Sleep(10 * time.Millisecond)
		more := come(7)
		held = []*Place{more[0].place, more[1].place}
		pass(refusalAfter+longestPlace, held...)
		if got := outcomes(more); got != "in in overloaded overloaded overloaded overloaded overloaded" {
			t.Errorf("a moment after everybody had gone: %s", got)
		}
		l.leave(more...)
		time.Sleep(patience)
		burst := come(7)
		held = []*Place{burst[0].place, burst[1].place}
		pass(refusalAfter+longestPlace, held...)
		if got := outcomes(burst); got != "in in waits waits waits waits waits" {
			t.Errorf("%v after everybody had gone: %s", patience, got)
		}
		l.leave(burst...)
	})
}

// O1: as many as there is room for are no flood, even if they come right after one.
func TestLineForgetsAFloodO1(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newTestLine(t, 2, 1000)
		l.roomPer = 2
		var all []*entering
		for range 7 {
			all = append(all, l.queue(t.Context(), "a"))
		}
		held := []*Place{all[0].place, all[1].place}
		pass(patience, held...)
		var few []*entering
		for range 3 {
			few = append(few, l.queue(t.Context(), "a"))
		}
		if got := outcomes(append(all, few...)); got != "in in overloaded overloaded overloaded overloaded overloaded waits waits waits" {
			t.Fatal(got)
		}
		pass(relief-10*time.Millisecond, held...)
		held[0].Leave()
		synctest.Wait()
		if got := outcomes(few); got != "waits waits waits" {
			t.Errorf("shortly before %v: %s", relief, got)
		}
		pass(10*time.Millisecond, held[1])
		last := l.queue(t.Context(), "a")
		if got := outcomes(append(few, last)); got != "in waits waits waits" {
			t.Errorf("after %v with room for all: %s", relief, got)
		}
		l.leave(append(append(all, few...), last)...)
	})
}

// O1: what waits is bounded from the first moment on.
func TestLineIsBoundedO1(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newTestLine(t, 1, 3)
		var all []*entering
		for range 6 {
			all = append(all, l.queue(t.Context(), "a"))
		}
		if got := outcomes(all); got != "in overloaded overloaded waits waits waits" {
			t.Error(got)
		}
		l.leave(all...)
	})
}

// O2: whoever sends a hundred makes another caller wait for one turn, and has what is refused refused of its own.
func TestLineCallersTakeTurnsO2(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newTestLine(t, 1, 20)
		inside := l.queue(t.Context(), "elephant")
		var elephant []*entering
		for range 100 {
			elephant = append(elephant, l.queue(t.Context(), "elephant"))
		}
		mouse := []*entering{l.queue(t.Context(), "mouse"), l.queue(t.Context(), "mouse")}
		elephant = append(elephant, l.queue(t.Context(), "elephant"))
		if got := outcomes(mouse); got != "waits waits" {
			t.Fatalf("the mouse: %s", got)
		}
		inside.place.Leave()
		synctest.Wait()
		for range 3 { // turns: one or the other first
			for _, e := range append(elephant, mouse...) {
				if e.String() == "in" && e.place.inside != nil {
					e.place.Leave()
					synctest.Wait()
					break
				}
			}
		}
		if got := outcomes(mouse); got != "in in" {
			t.Errorf("after four turns the mouse: %s", got)
		}
		l.leave(append(elephant, mouse...)...)
	})
}

// A2: whoever is inside and waits for something else, such as an auth backend that hangs, does not keep the others out.
func TestLineTakesPlacesBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newTestLine(t, 1, 20)
		hangs, next := l.queue(t.Context(), "a"), l.queue(t.Context(), "a")
		time.Sleep(longestPlace - 1)
		synctest.Wait()
		if got := outcomes([]*entering{hangs, next}); got != "in waits" {
			t.Errorf("just before %v: %s", longestPlace, got)
		}
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		if got := outcomes([]*entering{hangs, next}); got != "in in" {
			t.Errorf("after %v: %s", longestPlace, got)
		}
		last := l.queue(t.Context(), "a")
		time.Sleep(longestPlace)
		synctest.Wait()
		if got := last.String(); got != "in" {
			t.Errorf("after twice %v: %s", longestPlace, got)
		}
		for _, e := range []*entering{hangs, next, last} {
			e.place.Leave()
			e.place.Leave() // twice is no more than once
		}
		if l.inside.Len() != 0 {
			t.Errorf("%d inside", l.inside.Len())
		}
	})
}

// O2: who sends no more than its share is not refused because others flood the server, and waits for its turn only.
func TestLineKnowsWhoFloodsO2(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newTestLine(t, 4, 1000)
		var elephant []*entering
		for range 20 {
			elephant = append(elephant, l.queue(t.Context(), "elephant"))
		}
		var held []*Place
		for _, e := range elephant[:3] {
			held = append(held, e.place)
		}
		pass(patience, held...)
		inside := l.queue(t.Context(), "mouse") // the last place is for others
		held = append(held, inside.place)
		mouse := l.queue(t.Context(), "mouse")
		pass(refusalAfter+longestPlace, held...)
		if got := outcomes(append(elephant[3:], mouse)); strings.Count(got, "overloaded") != 17 || mouse.String() != "waits" {
			t.Errorf("after a while, the elephant and the mouse: %s", got)
		}
		late := l.queue(t.Context(), "elephant")
		held[0].End()
		synctest.Wait()
		if got := outcomes([]*entering{late, mouse}); got != "waits waits" {
			t.Errorf("with a place that is kept for who has none: %s", got)
		}
		held[1].End()
		synctest.Wait()
		if got := outcomes([]*entering{late, mouse}); got != "waits in" {
			t.Errorf("with two free places: %s", got)
		}
		l.leave(append(elephant, inside, mouse, late)...)
	})
}

// compute has a node be executed for each of the requests, or no more.
func compute(change int, all ...*entering) {
	for _, e := range all {
		e.place.Compute(change)
	}
	synctest.Wait()
}

// O1: of runs that compute, no more are let in than keep the processors busy, and they keep their places, however long they take. When they have ended, there are as many places as before.
func TestLineLetsFewComputeO1(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newTestLine(t, 16, 1000)
		l.least = 4
		var all []*entering
		for range 12 {
			all = append(all, l.queue(t.Context(), "a"))
		}
		for _, e := range all[:12] {
			if got := e.String(); got != "in" {
				t.Fatal(got)
			}
		}
		compute(1, all[:10]...)
		if l.places != 6 { // two that are inside do not compute yet
			t.Errorf("%d places while ten compute, of twelve", l.places)
		}
		compute(1, all[10:]...)
		late := l.queue(t.Context(), "a")
		time.Sleep(20 * longestPlace)
		synctest.Wait()
		if got := late.String(); l.places != 4 || got != "waits" {
			t.Errorf("%d places while twelve compute for %v, and one that came then: %s", l.places, 20*longestPlace, got)
		}
		end := func(some ...*entering) {
			for _, e := range some {
				e.place.End()
			}
			synctest.Wait()
		}
		end(all[:8]...)
		if got := late.String(); got != "waits" {
			t.Errorf("with four that compute: %s", got)
		}
		end(all[8])
		if got := late.String(); got != "in" {
			t.Errorf("with three that compute: %s", got)
		}
		end(append(all[9:], late)...)
		for range 20 {
			end(l.queue(t.Context(), "a"))
		}
		if l.places != 16 || l.computing != 0 || len(l.held) != 0 {
			t.Errorf("%d places when nobody computes (%d), of 16; %d callers hold some", l.places, l.computing, len(l.held))
		}
	})
}

// O2: whoever computes has no place while it waits for something outside, and is not refused when it goes on. So many may wait.
func TestLineGivesPlacesOfThoseOutsideO2(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newTestLine(t, 2, 1000)
		l.running = 3
		var all []*entering
		for range 6 {
			all = append(all, l.queue(t.Context(), "a"))
		}
		outside := func(change int, some ...*entering) {
			for _, e := range some {
				e.place.Outside(change)
			}
			synctest.Wait()
		}
		compute(1, all[:2]...)
		outside(1, all[:2]...)
		if got := outcomes(all); l.computing != 0 || got != "in in waits waits in in" {
			t.Errorf("while two wait outside: %s, and %d compute", got, l.computing)
		}
		compute(1, all[4:]...)
		outside(1, all[4])
		if got := outcomes(all); got != "in in waits waits in in" {
			t.Errorf("while three wait outside, which is all that may: %s", got)
		}
		outside(-1, all[:2]...)
		if l.computing != 3 || l.inside.Len() != 3 || l.outside != 1 {
			t.Errorf("two are back: %d compute, %d inside, %d outside", l.computing, l.inside.Len(), l.outside)
		}
		// Of two nodes at once one waits, and the other computes.
		compute(1, all[0])
		outside(1, all[0])
		if l.computing != 3 || l.outside != 1 {
			t.Errorf("one of two nodes waits: %d compute, %d outside", l.computing, l.outside)
		}
		// What waits and is not executed makes no difference to what is.
		all[0].place.Wait(1)
		if l.computing != 3 || l.outside != 1 {
			t.Errorf("one more waits for memory: %d compute, %d outside", l.computing, l.outside)
		}
		all[1].place.Wait(1)
		all[1].place.Compute(-1)
		if l.computing != 2 || l.outside != 2 {
			t.Errorf("only what waits is left of one: %d compute, %d outside", l.computing, l.outside)
		}
		for _, e := range append(all[:2:2], all[4:]...) {
			e.place.End()
			e.place.Wait(-1)
			e.place.Outside(-1) // what ends late
			synctest.Wait()
		}
		if got := outcomes(all); l.computing != 0 || l.outside != 0 || got != "in in in in in in" {
			t.Errorf("in the end: %s, %d compute, %d outside", got, l.computing, l.outside)
		}
		l.leave(all...)
	})
}

// O2: who computes with all places leaves some to others.
func TestLineKeepsPlacesForOthersO2(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newTestLine(t, 8, 1000)
		var elephant []*entering
		for range 10 {
			elephant = append(elephant, l.queue(t.Context(), "elephant"))
		}
		if got := outcomes(elephant); got != "in in in in in in waits waits waits waits" {
			t.Errorf("of eight places: %s", got)
		}
		compute(1, elephant[:6]...)
		var mice []*entering
		for range 3 {
			mice = append(mice, l.queue(t.Context(), "mouse"))
		}
		if got := outcomes(mice); got != "in in waits" {
			t.Errorf("another caller: %s", got)
		}
		// Also when there are suddenly less of them than are taken, because the elephant's compute.
		mice[0].place.End()
		mice[1].place.End()
		synctest.Wait()
		l.least = 4
		compute(1, elephant[0])
		for _, e := range mice {
			e.place.End()
		}
		late := l.queue(t.Context(), "mouse")
		if got := late.String(); l.places != 4 || l.kept != 1 || got != "in" {
			t.Errorf("%d places of which %d are kept, and another caller: %s", l.places, l.kept, got)
		}
		late.place.End()
		if l.kept != 0 {
			t.Errorf("%d places are kept for nobody", l.kept)
		}
		l.leave(append(elephant, mice...)...)
	})
}

// O2: who computes for long with all places, under several names, keeps nobody out who has none.
func TestLineLetsGuestsInO2(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newTestLine(t, 8, 1000)
		l.roomPer, l.guestsPer = 4, 3
		l.least = 2
		var elephants []*entering
		for _, name := range []string{"a", "a", "a", "a", "a", "a", "b", "b", "b", "a", "a"} {
			elephants = append(elephants, l.queue(t.Context(), name))
		}
		compute(1, elephants[:8]...)
		mouse := l.queue(t.Context(), "mouse")
		if got := outcomes(elephants) + ", " + mouse.String(); got != "in in in in in in in in waits waits waits, waits" {
			t.Errorf("when eight begin to compute: %s", got)
		}
		time.Sleep(longestPlace + longestPlace/5)
		synctest.Wait()
		if got := outcomes(elephants) + ", " + mouse.String(); got != "in in in in in in in in waits waits waits, in" {
			t.Errorf("when eight have computed for %v: %s", longestPlace, got)
		}
		compute(1, mouse)
		// The next ones are let in without a wait, but no more at a time than keep the processors busy, and no more in all than are bearable.
		guests := []*entering{mouse}
		for i := range l.guestsPer * l.least {
			guests = append(guests, l.queue(t.Context(), fmt.Sprint("guest ", i)))
		}
		for i, want := range []string{"in in waits waits waits waits waits", "in in in in waits waits waits", "in in in in in in waits", "in in in in in in waits"} {
			if got := outcomes(guests); got != want {
				t.Errorf("others, after %v: %s, want %s", time.Duration(i)*longestPlace, got, want)
			}
			for _, e := range guests[1:] {
				if e.String() == "in" && e.place.computing == 0 {
					compute(1, e)
				}
			}
			time.Sleep(longestPlace + longestPlace/5)
			synctest.Wait()
		}
		l.leave(append(elephants, guests...)...)
		if l.guests != 0 || len(l.held) != 0 {
			t.Errorf("in the end: %d guests, %d callers hold places", l.guests, len(l.held))
		}
	})
}

// A run keeps its place when its caller goes away.
func TestLineKeepsThePlaceOfARunO1(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newTestLine(t, 1, 1000)
		run := l.queue(t.Context(), "a")
		next := l.queue(t.Context(), "a")
		run.place.execute()
		run.place.End()
		if got := next.String(); got != "waits" {
			t.Errorf("while the run executes: %s", got)
		}
		run.place.executed()
		synctest.Wait()
		if got := next.String(); got != "in" {
			t.Errorf("when it has ended: %s", got)
		}
		next.place.End()
		var none *Place
		none.execute()
		none.executed()
		none.End()
		none.Compute(1)
		none.Outside(1)
	})
}

// Whoever goes away does not wait any more, and whoever sends a body gives its place to others meanwhile.
func TestLinePlacesAreGivenUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newTestLine(t, 1, 20)
		first := l.queue(t.Context(), "a")
		ctx, cancel := context.WithCancel(t.Context())
		gone, next := l.queue(ctx, "a"), l.queue(t.Context(), "b")
		cancel()
		synctest.Wait()
		if got := outcomes([]*entering{gone, next}); got != "internal waits" {
			t.Error(got)
		}
		first.place.Leave()
		synctest.Wait()
		if got := next.String(); got != "in" {
			t.Errorf("while the first sends its body: %s", got)
		}
		first.place.Return()
		if l.inside.Len() != 2 {
			t.Errorf("%d inside, and both are", l.inside.Len())
		}
		third := l.queue(t.Context(), "c")
		first.place.Leave()
		synctest.Wait()
		if got := third.String(); got != "waits" {
			t.Errorf("with as many inside as there are places: %s", got)
		}
		next.place.Leave()
		synctest.Wait()
		third.place.Leave()
		var none *Place
		none.Leave()
		none.Return()
	})
}

// O2: callers are told apart by credentials that were good, and by their address before that: neither made-up keys nor another one's id get a share of their own.
func TestLineKnowsCallersByWhatTheyProvedO2(t *testing.T) {
	t.Parallel()
	l := newTestLine(t, 1, 20)
	from, other := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("198.51.100.7")
	key := func(text string) auth.Credential {
		return auth.Credential{Place: auth.PlaceBearer, Secret: auth.NewSecret(text)}
	}
	l.prove(key("good"), &auth.Principal{Account: "acc", Subject: "key:1"})
	if a, b := l.caller(key("good"), from), l.caller(key("good"), other); a != "acc key:1" || a != b {
		t.Errorf("a key that was good is %q from one address and %q from another", a, b)
	}
	first := l.caller(key("made up"), from)
	for _, c := range []auth.Credential{key("another"), {}, {Place: auth.PlaceHeader}} {
		if got := l.caller(c, from); got != first {
			t.Errorf("%v is %q, and made-up keys of its address are %q", c.Place, got, first)
		}
	}
	if got := l.caller(key("made up"), other); got == first {
		t.Errorf("two addresses are both %q", got)
	}
	for i := range 2 * maxProven {
		l.prove(key(fmt.Sprint(i)), &auth.Principal{Account: "acc", Subject: "key:1"})
	}
	if n := l.proven.Len(); n > maxProven {
		t.Errorf("%d credentials are remembered", n)
	}
}

// O2: whoever has filled what may wait outside keeps nobody out who has few there.
func TestLineKeepsRoomOutsideO2(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newTestLine(t, 8, 1000)
		l.running = 16 // an eighth of which is 2
		var elephant, mice []*entering
		ask := func(who *[]*entering, caller string, n int) string {
			t.Helper()
			for range n {
				e := l.queue(t.Context(), caller)
				*who = append(*who, e)
				if outcomes([]*entering{e}) == "in" {
					compute(1, e)
					e.place.Outside(1)
					synctest.Wait()
				}
			}
			return outcomes((*who)[len(*who)-n:])
		}
		if got := ask(&elephant, "a", 15); strings.Count(got, "in") != 14 {
			t.Errorf("of 15 that one caller sends: %s", got)
		}
		if got := ask(&mice, "b", 1); got != "in" {
			t.Errorf("another caller %s", got)
		}
		mice[0].place.belong("c")
		if got := ask(&mice, "b", 1); got != "in" {
			t.Errorf("a third caller %s", got)
		}
		if got := ask(&mice, "d", 1); got != "waits" {
			t.Errorf("one more than may wait outside %s", got)
		}
		for _, e := range append(elephant[:14:14], mice[:2]...) {
			e.place.End()
		}
		synctest.Wait()
		if len(l.away) != 0 || l.outside != 0 {
			t.Errorf("%d are outside in the end, of %d callers", l.outside, len(l.away))
		}
		l.leave(append(elephant, mice...)...)
	})
}

// A run has its place as long as it executes and does not wait outside, and no longer when it is queued.
func TestRunsHoldTheirPlace(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.publish("w", nil)
	_, c := b.key(0, auth.ScopeRunAll)
	step, next := make(chan struct{}), make(chan struct{})
	b.engine.run = func(ctx context.Context, _ *core.Run) {
		load := core.LoadOf(ctx)
		for _, do := range []func(){func() {}, func() { load.Compute(1) }, func() { load.Outside(1) }, func() { load.Outside(-1) }} {
			do()
			step <- struct{}{}
			<-next
		}
	}
	inside := func() [3]int {
		b.line.mu.Lock()
		defer b.line.mu.Unlock()
		return [3]int{b.line.inside.Len(), b.line.computing, b.line.outside}
	}
	begin := func(p Payload) (*Begun, error) {
		place, err := b.Enter(t.Context(), c, b.origin.Source)
		b.must(err)
		ticket, err := b.Open(t.Context(), Attempt{Credential: c, Origin: b.origin, Workflow: "w", Place: place})
		b.must(err)
		if n := inside(); n != [3]int{1} {
			t.Errorf("%d places are taken before the run is admitted", n)
		}
		begun, err := b.Begin(t.Context(), ticket, p)
		place.End() // as when its caller goes away
		return begun, err
	}
	_, err := begin(Payload{Durable: true})
	b.must(err)
	if n := inside(); n != [3]int{} {
		t.Errorf("%d places are taken when the run is queued", n)
	}
	inline, err := begin(Payload{})
	b.must(err)
	for i, want := range [][3]int{{1, 0, 0}, {1, 1, 0}, {0, 0, 1}, {1, 1, 0}} {
		<-step
		if got := inside(); got != want {
			t.Errorf("step %d: inside, computing and outside are %v, want %v", i, got, want)
		}
		next <- struct{}{}
	}
	_, err = inline.Wait(t.Context())
	b.must(err)
	if n := inside(); n != [3]int{} {
		t.Errorf("%d places are taken when the run has ended", n)
	}
}

// O2: from when on it is proved who a request is from, it takes no place of others who come from the same address.
func TestPlacesBelongToWhoIsProvedO2(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.publish("w", nil)
	who := map[string]int{}
	var places []*Place
	for range 3 {
		p, c := b.key(0, auth.ScopeRunAll)
		place, err := b.Enter(t.Context(), c, b.origin.Source)
		b.must(err)
		places = append(places, place)
		b.line.mu.Lock()
		if n := b.line.held[core.Network(b.origin.Source).String()]; n != 1 {
			t.Errorf("nobody has proved anything, and %d places are the address's, want 1", n)
		}
		b.line.mu.Unlock()
		_, err = b.Open(t.Context(), Attempt{Credential: c, Origin: b.origin, Workflow: "w", Place: place})
		b.must(err)
		who[holder(p.Account, "key:"+p.ID)] = 1
	}
	b.line.mu.Lock()
	if !maps.Equal(b.line.held, who) {
		t.Errorf("places are held by %v, want %v", b.line.held, who)
	}
	b.line.mu.Unlock()
	for _, place := range places {
		place.Leave()
		place.Return()
		place.End()
	}
	b.line.mu.Lock()
	defer b.line.mu.Unlock()
	if len(b.line.held) != 0 {
		t.Errorf("in the end places are held by %v", b.line.held)
	}
}
