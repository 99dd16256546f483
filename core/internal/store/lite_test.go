package store

import (
	"bytes"
	"database/sql"
	"encoding/json"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	sqlite3 "modernc.org/sqlite/lib"

	"github.com/keyfire/keyfire/core"
)

// liteDB returns an empty database by its path, and a connection to it.
func liteDB(t *testing.T) (string, *liteConn) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "db")
	c, err := openLite("", path, writeOptions)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.close(); err != nil {
			t.Error(err)
		}
	})
	const table = `create table t (id integer primary key, s text not null, b blob, n integer, on_ boolean)`
	if _, err := c.exec(table, nil); err != nil {
		t.Fatal(err)
	}
	return path, c
}

const liteInsert = `insert into t (n, s, b, on_) values ($3, $1, $2, $4)`

// What is stored comes back as it was, and as the driver reads it.
func TestLiteValues(t *testing.T) {
	t.Parallel()
	path, c := liteDB(t)
	other, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	large := strings.Repeat("large ", keptTexts)
	for i, v := range []struct {
		s string
		b []byte
		n int64
		o bool
	}{
		{"text", []byte("bytes"), 1, true},
		{"", []byte{}, -1 << 63, false},
		{"with \x00 in it, and ü", []byte{0, 255}, 1<<63 - 1, true},
		{large, []byte(large), 0, false},
		{"after a large one", nil, 0, false},
	} {
		if n, err := c.exec(liteInsert, []any{v.s, v.b, v.n, v.o}); err != nil || n != 1 {
			t.Fatalf("%d: %d rows, %v", i, n, err)
		}
		read := func(r scanner) {
			t.Helper()
			var got struct {
				s string
				b []byte
				n int64
				o bool
			}
			if err := r.Scan(&got.s, &got.b, &got.n, &got.o); err != nil {
				t.Fatalf("%d: %v", i, err)
			}
			if got.s != v.s || !bytes.Equal(got.b, v.b) || got.n != v.n || got.o != v.o {
				t.Errorf("%d: %q, %q, %d, %t", i, got.s, got.b, got.n, got.o)
			}
		}
		const query = `select s, b, n, on_ from t where id = $1`
		read(c.row(query, []any{i + 1}))
		read(other.QueryRowContext(t.Context(), query, i+1))
	}
	for _, s := range c.stmts {
		if s.size > keptTexts {
			t.Errorf("a statement keeps %d bytes for texts", s.size)
		}
	}

	var (
		status core.RunStatus
		body   json.RawMessage
		number int
	)
	if err := c.row(`select 'queued', x'7b7d', 3`, nil).Scan(&status, &body, &number); err != nil || status != core.RunQueued || string(body) != "{}" || number != 3 {
		t.Errorf("by other names: %q, %q, %d, %v", status, body, number, err)
	}
	none := []byte("to be replaced")
	if err := c.row(`select null`, nil).Scan(&none); err != nil || none != nil {
		t.Errorf("null is read as %q, %v", none, err)
	}
}

// What cannot be right is an error, after which the statement can be run again.
func TestLiteRefusals(t *testing.T) {
	t.Parallel()
	_, c := liteDB(t)
	if _, err := c.exec(liteInsert, []any{"text", nil, 1, true}); err != nil {
		t.Fatal(err)
	}
	var (
		text   string
		number int64
		on     bool
		wrong  struct{}
	)
	for name, err := range map[string]error{
		"too few arguments":       func() error { _, err := c.exec(liteInsert, []any{"text"}); return err }(),
		"an argument of no type":  func() error { _, err := c.exec(liteInsert, []any{wrong, nil, 1, true}); return err }(),
		"no SQL":                  func() error { _, err := c.exec(`create nothing`, nil); return err }(),
		"a name for a parameter":  func() error { _, err := c.exec(`select :name`, []any{1}); return err }(),
		"null for a text":         c.row(`select b from t`, nil).Scan(&text),
		"a text for a number":     c.row(`select s from t`, nil).Scan(&number),
		"null for a number":       c.row(`select null`, nil).Scan(&number),
		"null for a boolean":      c.row(`select null, 1`, nil).Scan(&on, &number),
		"more columns than asked": c.row(`select s, n from t`, nil).Scan(&text),
		"a variable of no type":   c.row(`select n from t`, nil).Scan(&wrong),
		"no variable":             c.row(`select n from t where id = 1`, nil).Scan(1),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if err := c.row(`select s from t where id = 2`, nil).Scan(&text); !errors.Is(err, sql.ErrNoRows) {
		t.Errorf("no row: %v", err)
	}
	_, err := c.exec(`insert into t (id, s) values ($1, $2)`, []any{1, "taken"})
	var failure *liteError
	if !errors.As(err, &failure) || failure.Code() != sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY || faultOf(err) != faultBug || !strings.Contains(err.Error(), "t.id") {
		t.Errorf("a row that is there: %v", err)
	}
	if n, err := c.exec(`insert into t (id, s) values ($1, $2)`, []any{2, "free"}); err != nil || n != 1 {
		t.Errorf("the same for one that is not: %d, %v", n, err)
	}
}

// What SQLite cannot do is told apart by its codes, as those of the driver are, and leaves a connection that goes on.
func TestLiteFaults(t *testing.T) {
	t.Parallel()
	path, c := liteDB(t)
	other, err := openLite("", path, writeOptions)
	if err != nil {
		t.Fatal(err)
	}
	defer other.close()
	must := func(_ int64, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(c.exec(`pragma busy_timeout(0)`, nil))
	must(other.exec(`begin immediate`, nil))
	if _, err := c.exec(`begin immediate`, nil); faultOf(err) != faultBusy {
		t.Errorf("while another writes: %v", err)
	}
	must(other.exec(`rollback`, nil))

	must(c.exec(`pragma max_page_count = 10`, nil))
	large := strings.Repeat("large ", 10*pageSize)
	if _, err := c.exec(liteInsert, []any{large, nil, 1, true}); faultOf(err) != faultFull {
		t.Errorf("without space: %v", err)
	}
	must(c.exec(`pragma query_only(1)`, nil))
	if _, err := c.exec(liteInsert, []any{"small", nil, 1, true}); faultOf(err) != faultIO {
		t.Errorf("without leave to write: %v", err)
	}
	must(c.exec(`pragma query_only(0)`, nil))
	must(c.exec(liteInsert, []any{"small", nil, 1, true}))

	must(c.exec(`create table u (n integer not null check (n > 0))`, nil))
	var failure *liteError
	if _, err := c.exec(`insert into u (n) values ($1)`, []any{0}); !errors.As(err, &failure) || failure.Code() != sqlite3.SQLITE_CONSTRAINT_CHECK {
		t.Errorf("against a rule: %v", err)
	}
}

// What could damage a file by SQL alone is refused.
func TestLiteDefends(t *testing.T) {
	t.Parallel()
	_, c := liteDB(t)
	if _, err := c.exec(`pragma writable_schema(1)`, nil); err != nil {
		t.Fatal(err)
	}
	if n, err := c.exec(`update sqlite_schema set sql = '' where name = 't'`, nil); err == nil {
		t.Errorf("the schema was overwritten in %d rows", n)
	}
	if _, err := c.exec(`insert into t (s) values ("text")`, nil); err == nil {
		t.Error("a name in double quotes is taken for a text")
	}
}

// A text that is put together anew each time is one statement, since nothing ever forgets those that are prepared.
func TestLiteStatements(t *testing.T) {
	t.Parallel()
	_, c := liteDB(t)
	before := len(c.stmts)
	for n := range 3 {
		var twice, once int
		err := c.row(strings.Join([]string{"select $3, $1", "where $3 > $2"}, " "), []any{n, -1, 7}).Scan(&twice, &once)
		if err != nil || twice != 7 || once != n {
			t.Errorf("%d, %d, %v", twice, once, err)
		}
	}
	if n := len(c.stmts) - before; n != 1 {
		t.Errorf("it is prepared as %d statements", n)
	}
}

// Rows are read one by one, while other statements run; one that is not read to its end is closed, and until then it is not run again.
func TestLiteRows(t *testing.T) {
	t.Parallel()
	_, c := liteDB(t)
	for _, text := range []string{"a", "b", "c"} {
		if _, err := c.exec(liteInsert, []any{text, nil, 1, false}); err != nil {
			t.Fatal(err)
		}
	}
	const query = `select s from t where n = $1 order by s`
	for range 2 {
		var got []string
		all, err := c.query(query, []any{1})
		for err == nil && all.Next() {
			var text string
			if err = all.Scan(&text); err == nil {
				got = append(got, text)
				_, err = c.exec(`update t set b = $1 where s = $1`, []any{text})
			}
			if _, busy := c.query(query, []any{2}); busy == nil {
				t.Fatal("a statement was run while its rows are read")
			}
		}
		if err = errors.Join(err, all.Err(), all.Close()); err != nil || !slices.Equal(got, []string{"a", "b", "c"}) {
			t.Fatalf("%q, %v", got, err)
		}
		if all.Next() || all.Scan(new(string)) == nil {
			t.Error("there is more after the end")
		}
	}
	for range 2 {
		some, err := c.query(query, []any{1})
		if err != nil || !some.Next() {
			t.Fatal(err)
		}
		if err := some.Close(); err != nil {
			t.Error(err)
		}
	}
}

// A look-up gives its connection back whatever comes of it, and after the end there are none.
func TestLitePool(t *testing.T) {
	t.Parallel()
	path, c := liteDB(t)
	if _, err := c.exec(liteInsert, []any{"text", nil, 1, true}); err != nil {
		t.Fatal(err)
	}
	p, err := openLitePool("", path, 1, readOptions)
	if err != nil {
		t.Fatal(err)
	}
	var text string
	for range 2 {
		if err := p.row(`select s from t where n = $1`, []any{1}).Scan(&text); err != nil || text != "text" {
			t.Errorf("%q, %v", text, err)
		}
		if err := p.row(`select s from t where n = $1`, []any{2}).Scan(&text); !errors.Is(err, sql.ErrNoRows) {
			t.Errorf("no row: %v", err)
		}
		if err := p.row(`select s from nowhere`, nil).Scan(&text); err == nil {
			t.Error("a table that is not there has a row")
		}
		if err := p.row(`select null`, nil).Scan(&text); err == nil {
			t.Error("null is a text")
		}
		if err := p.row(`insert into t (s) values ('written')`, nil).Scan(&text); err == nil {
			t.Error("a look-up writes")
		}
	}
	r := p.row(`select 'text'`, nil)
	if err := r.Scan(&text); err != nil {
		t.Error(err)
	}
	if r.Scan(&text) == nil {
		t.Error("a row was read twice, and its connection given back twice")
	}
	if n := len(p.idle); n != 1 {
		t.Errorf("%d connections of 1", n)
	}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("bytes are read into numbers")
			}
		}()
		_ = p.row(`select 'text'`, nil).Scan(&[]int{})
	}()
	if err := errors.Join(p.close(), p.close()); err != nil {
		t.Error(err)
	}
	if err := p.row(`select 1`, nil).Scan(&text); err == nil {
		t.Error("there is a connection after the end")
	}
	if _, err := openLitePool("", filepath.Join(path, "nowhere"), 2, readOptions); err == nil {
		t.Error("a file that is not there was opened")
	}
}

// A commit that fails leaves no transaction behind.
func TestLiteCommitFails(t *testing.T) {
	t.Parallel()
	path, c := liteDB(t)
	if _, err := c.exec(`create table child (t integer references t (id) deferrable initially deferred)`, nil); err != nil {
		t.Fatal(err)
	}
	s, err := newSQLiteSession("", path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.close(); err != nil {
			t.Error(err)
		}
	}()
	for range 2 {
		tx, err := s.begin()
		if err != nil {
			t.Fatal(err)
		}
		if err := tx.put(`insert into child (t) values ($1)`, []any{7}); err != nil {
			t.Fatal(err)
		}
		if err := tx.commit(); faultOf(err) != faultBug {
			t.Errorf("committed a row that refers to none: %v", err)
		}
	}
	var n int64
	if err := c.row(`select count(*) from child`, nil).Scan(&n); err != nil || n != 0 {
		t.Errorf("%d rows, %v", n, err)
	}
}
