package queue

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/nats-io/nats.go/jetstream"
)

// This file is about messages that are in the stream although they were settled. A NATS that is killed, or whose disk is full, brings back messages at its next start that had been removed, and
// knows at the same time that their consumer is past them. Nobody would ever be given them, they would count as runs that wait, and their runs would not be missing.

// removeSettled removes such messages of lines, as they were told of by NATS.
func (q *JetStream) removeSettled(ctx context.Context, lines []*jetstream.ConsumerInfo) error {
	info, err := q.stream.Info(ctx)
	if err != nil {
		return fmt.Errorf("count what is queued: %w", err)
	}
	idle := int64(info.State.Msgs)
	for _, c := range lines {
		idle -= int64(c.NumPending) + int64(c.NumAckPending)
	}
	if idle <= 0 {
		return nil // as it nearly always is
	}
	removed := 0
	defer func() {
		if removed > 0 {
			q.cfg.Logger.Warn("messages that were settled had come back in NATS, and are removed", slog.Int("messages", removed))
		}
	}()
	for _, c := range lines {
		n, err := q.removeSettledOf(ctx, c)
		if removed += n; err != nil {
			return fmt.Errorf("remove what was settled in line %s: %w", c.Name, err)
		}
	}
	return nil
}

func (q *JetStream) removeSettledOf(ctx context.Context, line *jetstream.ConsumerInfo) (removed int, err error) {
	for last, asked := uint64(0), false; ; {
		m, err := q.stream.GetMsg(ctx, last+1, jetstream.WithGetMsgSubject(line.Config.FilterSubject))
		switch {
		case errors.Is(err, jetstream.ErrMsgNotFound):
			return removed, nil
		case err != nil:
			return removed, err
		case m.Sequence > line.AckFloor.Stream:
			return removed, nil
		}
		last = m.Sequence
		if !asked { // again: the message may be of a stream that was made anew since, and numbers its messages from 1
			c, err := q.stream.Consumer(ctx, line.Name)
			if err != nil {
				return removed, err
			}
			if line = c.CachedInfo(); last > line.AckFloor.Stream {
				return removed, nil
			}
			asked = true
		}
		switch err := q.stream.DeleteMsg(ctx, last); {
		case err == nil:
			removed++
		case !answered(err, natsNoMessage): // which another server was faster with
			return removed, err
		}
	}
}
