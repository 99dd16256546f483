package queue

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// natsSilence is when JetStream is not asked, because it did not answer of late: NATS may be there all the same, in a cluster that has lost most of its servers. Then one caller at a time
// waits for it in vain, and not each of them. The zero value asks.
type natsSilence struct{ until atomic.Int64 } // in Unix nanoseconds; 0 is no silence

var errSilent = errors.New("JetStream has not answered just now, and was not asked again yet")

// ask reports whether a caller may ask. When the silence is over, one is sent ahead.
func (s *natsSilence) ask(now time.Time) bool {
	until := s.until.Load()
	return until == 0 || now.UnixNano() >= until && s.until.CompareAndSwap(until, now.Add(natsPut).UnixNano())
}

// heard is told what became of that.
func (s *natsSilence) heard(now time.Time, err error) {
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, nats.ErrTimeout), errors.Is(err, jetstream.ErrNoStreamResponse):
		s.until.Store(now.Add(natsSilent).UnixNano())
	case s.until.Load() != 0:
		s.until.Store(0) // whatever it said, it is there
	}
}
