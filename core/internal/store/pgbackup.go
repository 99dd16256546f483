package store

import (
	"context"
	"database/sql"
)

func backupPostgres(ctx context.Context, db *sql.DB, cfg *Config, schema int64) error { return nil }
