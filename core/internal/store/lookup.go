package store

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// This file is about look-ups in a database behind a network. One session of it may hang while others answer, or there may be none to be had for a moment: what would go through in the next moment is
// not to fail for its caller.

const (
	lookUpTimeout = 10 * time.Second // for what takes milliseconds
	lookUpTry     = 3 * time.Second  // after which another session is asked
	roomTimeout   = 2 * time.Second  // for which a session is waited for that the database has no room for
)

// lookUp is a row that is asked for when it is read.
type lookUp struct {
	s     *Store
	ctx   context.Context //nolint:containedctx // of the look-up, which is read at once
	query string
	args  []any
}

// Scan asks for the row and reads it. There is none for what is no text that could be kept.
func (l *lookUp) Scan(dest ...any) error {
	if !findable(l.args) {
		return sql.ErrNoRows
	}
	return l.s.lookUp(l.ctx, func(ctx context.Context) error {
		stmt, err := l.s.ready.get(ctx, l.query)
		if err != nil {
			return err
		}
		return stmt.QueryRowContext(ctx, l.args...).Scan(dest...)
	})
}

// lookUp has something looked up, once more when that may help. It does not end with ctx, but by itself: a database that falls silent must not keep callers waiting, nor those who wait for their
// connections.
func (s *Store) lookUp(ctx context.Context, look func(ctx context.Context) error) error {
	if s.cfg.URL == "" {
		return look(context.WithoutCancel(ctx))
	}
	begun := time.Now()
	end := begun.Add(lookUpTimeout)
	if sooner, ok := ctx.Deadline(); ok && sooner.Before(end) {
		end = sooner
	}
	ctx, done := context.WithDeadline(context.WithoutCancel(ctx), end)
	defer done()
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
		try, done := context.WithTimeout(ctx, s.cfg.oneTry)
		err := look(try)
		silent := errors.Is(err, context.DeadlineExceeded)
		done()
		var said *pgconn.PgError
		switch {
		case err == nil || ctx.Err() != nil:
			return err
		case silent: // that session is given up, and the next one may be another
		case errors.As(err, &said) && said.Code == pgTooMany && time.Since(begun) < roomTimeout:
			select { // until somebody gives one back, here or elsewhere
			case <-ctx.Done():
				return err
			case <-time.After(wait):
			}
		default:
			return err
		}
	}
}
