package store

import (
	"path/filepath"
	"strings"
	"testing"
)

// gatheredDB returns an empty database with checksums, and a connection whose cache is so small that a transaction goes to the WAL, and comes back from there, long before it ends.
func gatheredDB(t *testing.T) (vfs, path string, c *liteConn) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "db")
	if err := makeDatabase(path); err != nil {
		t.Fatal(err)
	}
	vfs, err := pageSumVFS(path)
	if err != nil {
		t.Fatal(err)
	}
	if c, err = openLite(vfs, path, writeOptions); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.close(); err != nil {
			t.Error(err)
		}
	})
	mustRun(t, c, `pragma cache_size = 10`, `create table t (id integer primary key, s text not null)`)
	return vfs, path, c
}

func mustRun(t *testing.T, c *liteConn, queries ...string) {
	t.Helper()
	for _, query := range queries {
		if _, err := c.exec(query, nil); err != nil {
			t.Fatalf("%s: %v", query, err)
		}
	}
}

// What a transaction wrote is there for itself at once, for others once it is committed, and for nobody when it was rolled back, however much of it there is.
func TestGathered(t *testing.T) {
	t.Parallel()
	vfs, path, c := gatheredDB(t)
	reader, err := openLite(vfs, path, readOptions)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.close()
	const rows = 300
	fill := func(text string) {
		t.Helper()
		for range rows {
			if _, err := c.exec(`insert into t (s) values ($1)`, []any{strings.Repeat(text, 1000)}); err != nil {
				t.Fatal(err)
			}
		}
	}
	count := func(c *liteConn) (n int64, texts string) {
		t.Helper()
		if err := c.row(`select count(*), coalesce(group_concat(distinct substr(s, 1000)), '') from t`, nil).Scan(&n, &texts); err != nil {
			t.Fatal(err)
		}
		return n, texts
	}
	want := func(c *liteConn, n int64, texts string) {
		t.Helper()
		if gotN, gotTexts := count(c); gotN != n || gotTexts != texts {
			t.Errorf("%d rows of %q, want %d of %q", gotN, gotTexts, n, texts)
		}
	}
	mustRun(t, c, `begin immediate`)
	fill("a")
	want(c, rows, "a")
	want(reader, 0, "")
	mustRun(t, c, `rollback`)
	want(c, 0, "")
	mustRun(t, c, `begin immediate`)
	fill("b")
	mustRun(t, c, `commit`)
	want(c, rows, "b")
	want(reader, rows, "b")
	// Pages that are in the WAL already are written there again.
	mustRun(t, c, `begin immediate`, `update t set s = replace(s, 'b', 'c')`, `update t set s = replace(s, 'c', 'd')`)
	want(c, rows, "d")
	want(reader, rows, "b")
	mustRun(t, c, `commit`)
	want(reader, rows, "d")

	var verdict string
	if err := reader.row(`pragma integrity_check`, nil).Scan(&verdict); err != nil || verdict != "ok" {
		t.Errorf("integrity: %s, %v", verdict, err)
	}
}
