package store

import (
	"context"
	"database/sql"

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
