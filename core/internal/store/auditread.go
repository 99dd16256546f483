package store

import (
	"context"
	"fmt"
	"io"

	"github.com/keyfire/keyfire/core"
)

const sqlAuditAfter = sqlAudit + ` where seq > $1 order by seq limit $2`

// AuditAfter returns the first events, of all accounts, whose numbers are greater than seq, in the order of their numbers and at most limit.
func (s *Store) AuditAfter(ctx context.Context, seq int64, limit int) ([]core.AuditEvent, error) {
	return all(ctx, s, "read audit log", scanAudit, sqlAuditAfter, seq, limit)
}

// ReadAudit reads the whole audit log of the database that cfg names, as it is at one moment, while servers go on working with it. with is given a function that
// returns the events of all accounts in the order of their numbers, and io.EOF after the last one.
func ReadAudit(ctx context.Context, cfg Config, with func(next func() (*core.AuditEvent, error)) error) error {
	p, err := openPlace(ctx, cfg, useSnapshot)
	if err != nil {
		return fmt.Errorf("read audit log: %w", err)
	}
	defer p.close() //nolint:errcheck // only read
	rows, err := p.db.QueryContext(ctx, sqlAudit+` order by seq`)
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
