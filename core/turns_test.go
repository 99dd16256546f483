package core

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// O2: a caller with a thousand values ahead costs another one a turn.
func TestTurns(t *testing.T) {
	t.Parallel()
	var q Turns[string]
	if v, ok := q.Pop(); ok {
		t.Fatalf("an empty queue gave %q", v)
	}
	for i := range 1000 {
		q.Push("a", "elephant", fmt.Sprint("elephant ", i))
	}
	q.Push("a", "mouse", "mouse 0")
	q.Push("b", "elephant", "other 0")
	q.Push("a", "mouse", "mouse 1")
	var got []string
	for range 7 {
		peeked, _ := q.Peek()
		v, ok := q.Pop()
		if !ok || v != peeked {
			t.Fatalf("took %q after a look at %q", v, peeked)
		}
		got = append(got, v)
	}
	want := []string{"elephant 0", "other 0", "mouse 0", "elephant 1", "mouse 1", "elephant 2", "elephant 3"}
	if !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	if q.Len() != 1000+3-7 {
		t.Errorf("%d are left", q.Len())
	}
}

// Nothing is lost or taken twice, and each caller's values keep their order, whatever is done in whatever order.
func TestTurnsKeepEverything(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	var q Turns[[2]int]
	var pushed, popped [9]int
	pop := func() {
		v, ok := q.Pop()
		if ok && v[1] != popped[v[0]] {
			t.Fatalf("seed %d: caller %d got %d, want %d", seed, v[0], v[1], popped[v[0]])
		}
		if ok {
			popped[v[0]]++
		}
	}
	for range 20_000 {
		if who := r.IntN(2 * len(pushed)); who < len(pushed) {
			q.Push(fmt.Sprint(who%3), fmt.Sprint(who), [2]int{who, pushed[who]})
			pushed[who]++
		} else {
			pop()
		}
	}
	for q.Len() > 0 {
		pop()
	}
	if pushed != popped || len(q.accounts) != 0 {
		t.Errorf("seed %d: %v put, %v taken, %d accounts remembered", seed, pushed, popped, len(q.accounts))
	}
}
