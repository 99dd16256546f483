package store

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/pressly/goose/v3"
)

// withMigration returns the real migrations and one more.
func withMigration(t *testing.T, text string) fstest.MapFS {
	t.Helper()
	files := fstest.MapFS{"99999_next.sql": {Data: []byte(text)}}
	names, err := migrationFiles.ReadDir("migrations")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		b, err := migrationFiles.ReadFile("migrations/" + n.Name())
		if err != nil {
			t.Fatal(err)
		}
		files[n.Name()] = &fstest.MapFile{Data: b}
	}
	return files
}

// oldDatabase returns the path of a database with the present schema and one audit event in it.
func oldDatabase(t *testing.T) Config {
	t.Helper()
	cfg := Config{
		Path: filepath.Join(t.TempDir(), "data [1]?#%20.db"), Reserve: -1, // a path that URIs and globs would both misread
		Now: func() time.Time { return time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC) },
	}
	s, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Audit(t.Context(), event("kept")); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return cfg
}

// backupOf returns the name of the backup that a migration from the present schema makes at the time of oldDatabase.
func backupOf(t *testing.T, cfg Config) string {
	t.Helper()
	names, err := migrationFiles.ReadDir("migrations")
	if err != nil {
		t.Fatal(err)
	}
	newest, err := strconv.Atoi(names[len(names)-1].Name()[:5])
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%s.20260301T120000Z-v%d.bak", cfg.Path, newest)
}

func dialOne(t *testing.T, path string) *sql.DB {
	t.Helper()
	db, err := dial(t.Context(), path, 1, writeOptions)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

func count(t *testing.T, db *sql.DB, table string) int {
	t.Helper()
	var n int
	if err := db.QueryRow(`select count(*) from ` + table).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestUpgradeL2(t *testing.T) {
	t.Parallel()
	cfg := oldDatabase(t)
	db := dialOne(t, cfg.Path)
	upgrade := func(text string) error {
		return migrate(t.Context(), goose.DialectSQLite3, db, withMigration(t, text), func(schema int64) error { return backup(t.Context(), db, &cfg, schema) })
	}

	err := upgrade("create table extra (a text);\ninsert into audit (seq) values (1);\n")
	if err == nil || !strings.Contains(err.Error(), "99999") {
		t.Fatalf("a migration that cannot be applied: error = %v, want one that names it", err)
	}
	if count(t, db, `sqlite_master where name = 'extra'`) != 0 {
		t.Error("half of a migration was applied")
	}
	if err := os.Remove(backupOf(t, cfg)); err != nil {
		t.Fatalf("the backup made before a migration: %v", err)
	}

	if err := upgrade("create table extra (a text);\ndelete from audit;\n"); err != nil {
		t.Fatal(err)
	}
	if n := count(t, db, "extra") + count(t, db, "audit"); n != 0 {
		t.Errorf("%d rows after the migration, want none", n)
	}
	info, err := os.Stat(backupOf(t, cfg))
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("backup has mode %v, want 0600", info.Mode())
	}
	old := cfg
	old.Path = backupOf(t, cfg)
	if n := count(t, dialOne(t, old.Path), "audit"); n != 1 {
		t.Errorf("the backup holds %d events, want 1", n)
	}

	// The database is too new for this binary now, and the backup is what its message asks for.
	_, err = Open(t.Context(), cfg)
	if err == nil || !strings.Contains(err.Error(), "version 99999") || !strings.Contains(err.Error(), "newer Keyfire") {
		t.Errorf("Open of a newer schema: error = %v, want a refusal that names the version", err)
	}
	s, err := Open(t.Context(), old)
	if err != nil {
		t.Fatalf("Open of the backup: %v", err)
	}
	if got := seqs(t, s); len(got) != 1 || got[0] != "kept" {
		t.Errorf("the backup holds %q", got)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestBackupFailureStopsMigration(t *testing.T) {
	t.Parallel()
	cfg := oldDatabase(t)
	db := dialOne(t, cfg.Path)
	if err := os.Mkdir(cfg.Path+".backup-part", 0o700); err != nil { // where the backup is written first
		t.Fatal(err)
	}
	err := migrate(context.Background(), goose.DialectSQLite3, db, withMigration(t, "delete from audit;\n"), func(schema int64) error {
		return backup(t.Context(), db, &cfg, schema)
	})
	if err == nil || !strings.Contains(err.Error(), "back up") {
		t.Errorf("error = %v, want that the backup failed", err)
	}
	if count(t, db, "audit") != 1 {
		t.Error("the migration went on without a backup")
	}
}

func TestMigrateTwice(t *testing.T) {
	t.Parallel()
	cfg := oldDatabase(t)
	s, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(globEscape(cfg.Path) + "*")
	if err != nil || len(left) != 1 {
		t.Errorf("files after a second start: %q (%v), want the database alone", left, err)
	}
}
