package store

import (
	"context"
	"fmt"
	"log/slog"
	"time"
)

// This file is about a server whose clock differs from the database's. Nothing is lost or done twice by that, but what is to begin at a time begins by the clock that is ahead of all others, and a login is
// no good on a server that is behind. Whoever sees only that does not think of clocks.

const (
	clockApart = 2 * time.Second // more than any clock is off that somebody sets
	clockEvery = time.Minute     // how often they are compared
	clockAgain = time.Hour       // how often it is told that they differ still
	clockWrong = time.Hour       // by which a clock is no measure of what is old
)

// clockAhead returns by how much the server's clock is ahead of the database's, 0 where there is none but its own.
func (s *Store) clockAhead(ctx context.Context) (time.Duration, error) {
	if s.cfg.URL == "" {
		return 0, nil
	}
	var us int64
	before := s.cfg.Now()
	if err := s.row(ctx, sqlPGClock).Scan(&us); err != nil {
		return 0, unavailable("read the clock", err)
	}
	return aheadOf(before, s.cfg.Now(), fromMicros(us)), nil
}

// mayTellAge refuses to let a clock decide what is old enough to be deleted that is far ahead of the database's: the history of all servers would be gone.
func (s *Store) mayTellAge(ctx context.Context) error {
	ahead, err := s.clockAhead(ctx)
	if err == nil && ahead > clockWrong {
		err = fmt.Errorf("the clock of this server is %s ahead of PostgreSQL's, so it cannot tell what is old", ahead.Round(time.Second))
	}
	return err
}

// clock compares the clocks. One goroutine uses it.
type clock struct {
	compared, told time.Time
}

func (c *clock) compare(ctx context.Context, s *Store) {
	begun := time.Now()
	if !c.compared.IsZero() && begun.Sub(c.compared) < clockEvery {
		return
	}
	c.compared = begun
	ahead, err := s.clockAhead(ctx)
	switch {
	case err != nil: // who misses the database hears of that elsewhere
	case ahead.Abs() <= clockApart:
		if !c.told.IsZero() {
			s.cfg.Logger.Info("the clocks of this server and of PostgreSQL agree again")
		}
		c.told = time.Time{}
	case c.told.IsZero() || begun.Sub(c.told) >= clockAgain:
		c.told = begun
		s.cfg.Logger.Warn("the clocks of this server and of PostgreSQL differ, so schedules and runs for a time may begin early, and who has logged in here may be refused elsewhere; have both set by NTP",
			slog.String("ahead", ahead.Round(time.Second).String()))
	}
}

// aheadOf returns by how much a clock that showed one time before and another after something was read is ahead of the one that it was read from, as far as that is certain. Negative is behind.
func aheadOf(before, after, read time.Time) time.Duration {
	return max(0, before.Sub(read)) + min(0, after.Sub(read))
}
