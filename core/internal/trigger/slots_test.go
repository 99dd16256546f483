package trigger

import (
	"context"
	"runtime"
	"testing"

	"github.com/keyfire/keyfire/core"
)

// O2: when no slot is free, callers take turns for the next one.
func TestSlotsAreGivenInTurns(t *testing.T) {
	t.Parallel()
	s := slots{free: 1}
	if !s.acquire(t.Context(), "a", "first", nil) {
		t.Fatal("a free slot was not given")
	}
	order := make(chan string)
	waits := func(caller string) {
		before := s.waits()
		go func() {
			if s.acquire(context.Background(), "a", caller, nil) {
				order <- caller
			}
		}()
		for s.waits() == before {
			runtime.Gosched()
		}
	}
	for range 50 {
		waits("elephant")
	}
	waits("mouse")
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if s.acquire(gone, "a", "gone", nil) {
		t.Error("a slot was given twice")
	}
	s.release()
	at := 0
	for i := range 51 {
		if <-order == "mouse" {
			at = i
		}
		s.release()
	}
	if at > 1 {
		t.Errorf("the mouse was number %d to get a slot", at)
	}
	if s.free != 1 || s.waits() != 0 {
		t.Errorf("%d slots are free in the end, and %d wait", s.free, s.waits())
	}
}

func (s *slots) waits() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.waiting.Len()
}

// O2: nobody takes the last places for pending runs who has filled the others.
func TestLastPlacesAreForOthers(t *testing.T) {
	t.Parallel()
	b := setup(t, func(c *Config) { c.MaxPending = 16 })
	s := b.Service
	for i := range 14 {
		if err := s.enter("a elephant"); err != nil {
			t.Fatalf("place %d: %v", i, err)
		}
	}
	if err := s.enter("a elephant"); core.CodeOf(err) != core.CodeOverloaded {
		t.Errorf("one of the last places: %v", err)
	}
	for i := range 2 {
		if err := s.enter("a mouse"); err != nil {
			t.Errorf("another caller's place %d: %v", i, err)
		}
	}
	if err := s.enter("b mouse"); core.CodeOf(err) != core.CodeOverloaded {
		t.Errorf("one place too many: %v", err)
	}
	for range 14 {
		s.exit("a elephant")
	}
	for range 2 {
		s.exit("a mouse")
	}
	if s.pending != 0 || len(s.held) != 0 {
		t.Errorf("%d places are taken in the end, by %d callers", s.pending, len(s.held))
	}
}
