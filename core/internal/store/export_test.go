package store

import (
	"context"
	"database/sql"
	"slices"

	"github.com/pressly/goose/v3"
)

// MigrateTo brings a database to a version of the schema, as a server of that time left it. It returns the newest version.
func MigrateTo(ctx context.Context, db *sql.DB, postgres bool, version int64) (int64, error) {
	dialect := goose.DialectSQLite3
	if postgres {
		dialect = goose.DialectPostgres
	}
	p, _, newest, err := migrator(ctx, dialect, db, migrations())
	if err != nil {
		return 0, err
	}
	_, err = p.UpTo(ctx, version)
	return newest, err
}

// Sweep deletes what has expired, as a server does from time to time.
func (s *Store) Sweep(ctx context.Context) { s.sweepOnce(ctx) }

// OwnTables is ownTables.
func OwnTables() ([]string, error) { return ownTables() }

// Tables returns the names of all tables of a database, but for the one that migrations are counted in.
func Tables(ctx context.Context, cfg Config) ([]string, error) {
	p, err := openPlace(ctx, cfg, useSnapshot)
	if err != nil {
		return nil, err
	}
	defer p.close()
	tx, err := p.db.BeginTx(ctx, p.opts)
	if err != nil {
		return nil, err
	}
	defer tx.Rollback()
	names, err := texts(ctx, tx, p.catalog.tables)
	return slices.DeleteFunc(names, func(name string) bool { return name == schemaTable }), err
}
