package storetest

import (
	"context"
	"database/sql"
	"errors"
	"net/url"
	"path/filepath"
	"sync"
	"testing"
)

// BareGroupCommit is the baseline of what is written durably: it inserts a row in a SQLite database of its own, after an update of a counter if charge is set, by one
// goroutine with prepared statements and one commit for all that wait, and nothing else. It returns when the row is synced, and may be called concurrently
// until b ends. The driver must be linked in.
func BareGroupCommit(b testing.TB, charge bool) func(id, body string) error {
	b.Helper()
	query := url.Values{"_txlock": {"immediate"}, "_pragma": {"journal_mode(wal)", "synchronous(full)", "cache_size(-4096)", "wal_autocheckpoint(4000)"}}
	dsn := url.URL{Scheme: "file", OmitHost: true, Path: filepath.Join(b.TempDir(), "bare.db"), RawQuery: query.Encode()}
	db, err := sql.Open("sqlite", dsn.String())
	if err != nil {
		b.Fatal(err)
	}
	conn, err := db.Conn(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	_, err = conn.ExecContext(b.Context(), `create table rows (id text not null primary key, body text not null);
		create table counters (id text not null primary key, used bigint not null, most bigint not null);
		insert into counters (id, used, most) values ('key_1', 0, 1000000000)`)
	if err != nil {
		b.Fatal(err)
	}
	insert, err := conn.PrepareContext(b.Context(), `insert into rows (id, body) values ($1, $2)`)
	if err != nil {
		b.Fatal(err)
	}
	update, err := conn.PrepareContext(b.Context(), `update counters set used = used + 1 where id = $1 and used < most`)
	if err != nil {
		b.Fatal(err)
	}
	type row struct {
		id, body string
		done     chan error
	}
	queue := make(chan row, 4096)
	var writer sync.WaitGroup
	commit := func(batch []row) error {
		ctx := context.Background()
		tx, err := conn.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback() }() // after a commit there is nothing to undo
		for _, r := range batch {
			if charge {
				if _, err := update.ExecContext(ctx, "key_1"); err != nil {
					return err
				}
			}
			if _, err := insert.ExecContext(ctx, r.id, r.body); err != nil {
				return err
			}
		}
		return tx.Commit()
	}
	writer.Go(func() {
		var batch []row
		for r := range queue {
			batch = append(batch[:0], r)
			for len(batch) < 256 && len(queue) > 0 {
				batch = append(batch, <-queue)
			}
			err := commit(batch)
			for _, r := range batch {
				r.done <- err
			}
		}
	})
	b.Cleanup(func() {
		close(queue)
		writer.Wait()
		if err := errors.Join(insert.Close(), update.Close(), conn.Close(), db.Close()); err != nil {
			b.Error(err)
		}
	})
	return func(id, body string) error {
		done := make(chan error, 1)
		queue <- row{id, body, done}
		return <-done
	}
}
