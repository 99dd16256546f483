package store

import (
	"database/sql"
	"path/filepath"
	"testing"
)

// A transaction that needs a statement which is prepared gets it, however many others wait for a connection to prepare theirs: it may be the one that
// has that connection.
func TestStatementsWhileAnotherIsPrepared(t *testing.T) {
	t.Parallel()
	db, err := sql.Open("sqlite", filepath.Join(t.TempDir(), "db"))
	if err != nil {
		t.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	defer db.Close()
	s := newStatements(db)
	const ready, other = "select 1", "select 2"
	if _, err := s.get(t.Context(), ready); err != nil {
		t.Fatal(err)
	}
	view, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	prepared := make(chan error, 2)
	for range cap(prepared) {
		go func() {
			_, err := s.get(t.Context(), other)
			prepared <- err
		}()
	}
	for db.Stats().WaitCount < int64(cap(prepared)) && !t.Failed() {
		select {
		case err := <-prepared:
			t.Errorf("prepared without a connection: %v", err)
		default:
		}
	}
	stmt, err := s.get(t.Context(), ready)
	if err != nil {
		t.Fatal(err)
	}
	var n int
	if err := view.StmtContext(t.Context(), stmt).QueryRowContext(t.Context()).Scan(&n); err != nil || n != 1 {
		t.Errorf("%d, %v", n, err)
	}
	if err := view.Rollback(); err != nil {
		t.Fatal(err)
	}
	for range cap(prepared) {
		if err := <-prepared; err != nil {
			t.Error(err)
		}
	}
	if err := s.close(); err != nil {
		t.Error(err)
	}
}
