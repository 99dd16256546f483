package trigger

import (
	"testing"

	"github.com/keyfire/keyfire/core"
)

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
