package queue

import (
	"errors"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// A JetStream that does not answer is asked by one caller at a time, and by all again as soon as it has answered one.
func TestSilence(t *testing.T) {
	t.Parallel()
	var s natsSilence
	now := time.Now()
	ask := func(want bool) {
		t.Helper()
		if got := s.ask(now); got != want {
			t.Errorf("a caller may ask: %v, want %v", got, want)
		}
	}
	ask(true)
	ask(true)
	s.heard(now, nil)
	ask(true)
	s.heard(now, jetstream.ErrNoStreamResponse)
	ask(false)
	now = now.Add(natsSilent)
	ask(true)
	ask(false) // while the first one waits
	now = now.Add(natsPut)
	s.heard(now, jetstream.ErrNoStreamResponse)
	ask(false)
	now = now.Add(natsSilent)
	ask(true)
	s.heard(now, errors.New("it has no room"))
	ask(true)
	ask(true)
	s.heard(now, jetstream.ErrNoStreamResponse)
	now = now.Add(natsSilent)
	ask(true)
	now = now.Add(natsPut) // the one who was sent ahead never came back
	ask(true)
}
