package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"

	"github.com/keyfire/keyfire/core"
)

const sqlAuditAfter = sqlAudit + ` where seq > $1 order by seq limit $2`

// AuditAfter returns the first events, of all accounts, whose numbers are greater than seq, in the order of their numbers and at most limit.
func (s *Store) AuditAfter(ctx context.Context, seq int64, limit int) ([]core.AuditEvent, error) {
	const doing = "read audit log"
	if s.quick == nil {
		return all(ctx, s, doing, scanAudit, sqlAuditAfter, seq, limit)
	}
	// Every run has an event, and a server reads them all to seal them.
	if ctx.Err() != nil {
		return nil, unavailable(doing, ended(ctx))
	}
	rows, err := s.quick.query(sqlAuditAfter, []any{seq, limit})
	if err != nil {
		return nil, unavailable(doing, err)
	}
	events, err := scanAll(rows, scanAudit)
	return events, unavailable(doing, err)
}

// ReadAudit reads the whole audit log of the database that cfg names, as it is at one moment, while servers go on working with it. with is given a function that
// returns the events of all accounts in the order of their numbers, and io.EOF after the last one. Where the file of the database is damaged, which it also is when another
// program has written to it, with is called once more: for what can be read all the same, of a copy that is removed afterwards. Its error then counts if it is none of reading.
func ReadAudit(ctx context.Context, cfg Config, with func(next func() (*core.AuditEvent, error)) error) error {
	p, err := openPlace(ctx, cfg, useSnapshot)
	if err != nil {
		err = fmt.Errorf("read audit log: %w", err)
	} else if err = errors.Join(readAudit(ctx, p.db, with), p.close()); err == nil {
		return nil
	}
	if cfg.URL != "" || faultOf(err) != faultDamage {
		return err
	}
	db, remove, cerr := copyUnchecked(ctx, cfg.Path)
	if cerr != nil {
		return errors.Join(err, cerr)
	}
	found := readAudit(ctx, db, with)
	if cerr = errors.Join(db.Close(), remove()); found == nil || faultOf(found) == faultDamage {
		found = damaged(cfg.Path, err)
	}
	return errors.Join(found, cerr)
}

func readAudit(ctx context.Context, db *sql.DB, with func(next func() (*core.AuditEvent, error)) error) error {
	rows, err := db.QueryContext(ctx, sqlAudit+` order by seq`)
	if err != nil {
		return fmt.Errorf("read audit log: %w", err)
	}
	defer rows.Close()
	return with(func() (*core.AuditEvent, error) {
		if !rows.Next() {
			if err := rows.Err(); err != nil {
				return nil, fmt.Errorf("read audit log: %w", err)
			}
			return nil, io.EOF
		}
		ev, err := scanAudit(rows)
		if err != nil {
			return nil, fmt.Errorf("read audit log: %w", err)
		}
		return &ev, nil
	})
}

// copyUnchecked opens a copy of a database file, with its log, whose pages are taken as they are. The copy lies beside the file, where nobody else can read it.
func copyUnchecked(ctx context.Context, path string) (_ *sql.DB, remove func() error, err error) {
	dir, err := os.MkdirTemp(filepath.Dir(path), "audit-verify-")
	if err != nil {
		return nil, nil, err
	}
	remove = func() error { return os.RemoveAll(dir) }
	defer func() {
		if err != nil {
			err = errors.Join(err, remove())
		}
	}()
	to := filepath.Join(dir, "copy.db")
	for _, suffix := range []string{"", "-wal"} {
		if err := copyTo(to+suffix, path+suffix); err != nil && (suffix == "" || !errors.Is(err, fs.ErrNotExist)) {
			return nil, nil, err
		}
	}
	db, err := dialBy(ctx, "", to, 1, url.Values{"mode": {"rw"}})
	return db, remove, err
}

func copyTo(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
