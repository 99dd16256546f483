package store

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"
	"strings"
	"time"
)

// A dump is a database as text, one JSON value a line, the same for every database under a store: a header, then each table with its
// columns and its rows, then a line that closes it with the number of rows and a digest of all that came before. The tables come in an
// order in which each finds the rows that it refers to.

const (
	dumpFormat = 1
	dumpName   = "keyfire dump"
	maxDumpRow = 128 << 20 // a module of 16 MiB is the largest thing in a row
)

type dumpHeader struct {
	Object    string           `json:"object"` // dumpName
	Format    int              `json:"format"`
	Schema    int64            `json:"schema"` // version of the schema that the rows belong to
	CreatedAt time.Time        `json:"created_at"`
	Rows      map[string]int64 `json:"rows"` // by table
}

type dumpTable struct {
	Table   string   `json:"table"`
	Columns []string `json:"columns"`
}

type dumpEnd struct {
	End    bool   `json:"end"`
	Rows   int64  `json:"rows"`
	SHA256 string `json:"sha256"`
}

// Progress hears how far an operation on a whole database has come: how many rows of how many. It may be nil.
type Progress func(done, total int64)

func (p Progress) say(done, total int64) {
	if p != nil && (done%512 == 0 || done == total) {
		p(done, total)
	}
}

// column kinds, as a dump tells them apart.
type kind int

const (
	kindText kind = iota
	kindInt
	kindBool
	kindBytes
)

// table is a table as the database describes it.
type table struct {
	name    string
	columns []string
	kinds   []kind
	refers  []string // tables that must have their rows first
	rows    int64
}

// addColumn adds a column that the catalog tells of.
func (t *table) addColumn(row scanner) (name string, err error) {
	var typ string
	if err := row.Scan(&name, &typ); err != nil {
		return "", err
	}
	k, ok := map[string]kind{
		"text": kindText, "bytea": kindBytes, "boolean": kindBool, "bigint": kindInt, "integer": kindInt,
	}[strings.ToLower(typ)]
	if !ok {
		return "", fmt.Errorf("column %s of table %s has type %s, which a dump does not know", name, t.name, typ)
	}
	t.columns, t.kinds = append(t.columns, name), append(t.kinds, k)
	return name, nil
}

// catalog is how a database is asked what it holds.
type catalog struct {
	tables  string
	columns string // name and type of each column of table $1
	refers  string // tables that table $1 refers to
}

// passing are tables whose rows mean nothing outside of the servers that run now.
var passing = []string{schemaTable, "servers"}

// describe reads Keyfire's own tables in the order of a dump.
func describe(ctx context.Context, tx *sql.Tx, c catalog) ([]table, error) {
	own, err := ownTables()
	if err != nil {
		return nil, err
	}
	names, err := texts(ctx, tx, c.tables)
	if err != nil {
		return nil, err
	}
	all := map[string]*table{}
	for _, name := range names {
		if slices.Contains(passing, name) || !slices.Contains(own, name) {
			continue
		}
		t := &table{name: name}
		rows, err := tx.QueryContext(ctx, c.columns, name) //nolint:rowserrcheck // scanAll does
		if err != nil {
			return nil, err
		}
		if _, err := scanAll(rows, t.addColumn); err != nil {
			return nil, err
		}
		if t.refers, err = texts(ctx, tx, c.refers, name); err != nil {
			return nil, err
		}
		if err := tx.QueryRowContext(ctx, "select count(*) from "+name).Scan(&t.rows); err != nil {
			return nil, err
		}
		all[name] = t
	}
	var ordered []table
	for len(all) > 0 {
		before := len(all)
		for _, name := range names {
			t := all[name]
			if t != nil && !slices.ContainsFunc(t.refers, func(to string) bool { return to != name && all[to] != nil }) {
				ordered = append(ordered, *t)
				delete(all, name)
			}
		}
		if len(all) == before {
			return nil, errors.New("tables refer to each other in a circle")
		}
	}
	return ordered, nil
}

func texts(ctx context.Context, tx *sql.Tx, query string, args ...any) ([]string, error) {
	rows, err := tx.QueryContext(ctx, query, args...) //nolint:rowserrcheck // scanAll does
	if err != nil {
		return nil, err
	}
	return scanAll(rows, scanText)
}

// source reads the rows of one state of a database.
type source struct {
	tx      *sql.Tx
	catalog catalog
	schema  int64
}

const sqlSchemaVersion = `select coalesce(max(version_id), 0) from ` + schemaTable

func newSource(ctx context.Context, db *sql.DB, opts *sql.TxOptions, c catalog) (*source, error) {
	tx, err := db.BeginTx(ctx, opts)
	if err != nil {
		return nil, err
	}
	s := &source{tx: tx, catalog: c}
	if err := tx.QueryRowContext(ctx, sqlSchemaVersion).Scan(&s.schema); err != nil {
		return nil, errors.Join(fmt.Errorf("this is not a database of Keyfire: %w", err), tx.Rollback())
	}
	return s, nil
}

func (s *source) close() { _ = s.tx.Rollback() } // nothing was written

// sink takes the rows of a dump. Nothing of it is to be seen before end.
type sink interface {
	table(ctx context.Context, t dumpTable) error
	row(ctx context.Context, values []any) error
	end(ctx context.Context) error
}

// copyTo gives every row to a sink.
func (s *source) copyTo(ctx context.Context, header func(dumpHeader) error, to sink, now time.Time, progress Progress) (int64, error) {
	tables, err := describe(ctx, s.tx, s.catalog)
	if err != nil {
		return 0, err
	}
	h := dumpHeader{Object: dumpName, Format: dumpFormat, Schema: s.schema, CreatedAt: now.UTC(), Rows: map[string]int64{}}
	var total, done int64
	for _, t := range tables {
		h.Rows[t.name] = t.rows
		total += t.rows
	}
	if err := header(h); err != nil {
		return 0, err
	}
	for _, t := range tables {
		if err := to.table(ctx, dumpTable{t.name, t.columns}); err != nil {
			return 0, err
		}
		if err := s.rows(ctx, &t, func(values []any) error {
			done++
			progress.say(done, total)
			return to.row(ctx, values)
		}); err != nil {
			return 0, err
		}
	}
	progress.say(total, total)
	return done, to.end(ctx)
}

func (s *source) rows(ctx context.Context, t *table, each func([]any) error) error {
	failed := func(err error) error {
		if err == nil {
			return nil
		}
		return fmt.Errorf("read table %s: %w", t.name, err)
	}
	rows, err := s.tx.QueryContext(ctx, "select "+strings.Join(t.columns, ", ")+" from "+t.name) //nolint:gosec // names of our own tables
	if err != nil {
		return failed(err)
	}
	defer rows.Close()
	values, dest := make([]any, len(t.columns)), make([]any, len(t.columns))
	for i := range values {
		dest[i] = &values[i]
	}
	for rows.Next() {
		if err := rows.Scan(dest...); err != nil {
			return failed(err)
		}
		for i, v := range values {
			if values[i], err = plain(t.kinds[i], v); err != nil {
				return failed(fmt.Errorf("column %s: %w", t.columns[i], err))
			}
		}
		if err := each(values); err != nil {
			return err
		}
	}
	return failed(rows.Err())
}

// plain returns a value as the driver of the other database takes it: nil, string, int64, bool or []byte. Drivers and SQLite's loose types
// differ in what they make of one column.
func plain(k kind, v any) (any, error) {
	switch v := v.(type) {
	case nil:
		return nil, nil
	case string:
		switch k {
		case kindText:
			return v, nil
		case kindBytes:
			return []byte(v), nil
		}
	case []byte:
		switch k {
		case kindText:
			return string(v), nil
		case kindBytes:
			return bytes.Clone(v), nil
		}
	case int64:
		switch k {
		case kindInt:
			return v, nil
		case kindBool:
			return v != 0, nil
		}
	case bool:
		if k == kindBool {
			return v, nil
		}
	}
	return nil, fmt.Errorf("holds a %T where it should not", v)
}

// dumpWriter writes a dump.
type dumpWriter struct {
	out  *bufio.Writer
	sum  hash.Hash
	enc  *json.Encoder
	rows int64
}

func newDumpWriter(w io.Writer) *dumpWriter {
	d := &dumpWriter{out: bufio.NewWriterSize(w, 1<<20), sum: sha256.New()}
	d.enc = json.NewEncoder(io.MultiWriter(d.out, d.sum))
	d.enc.SetEscapeHTML(false)
	return d
}

func (d *dumpWriter) header(h dumpHeader) error                  { return d.enc.Encode(h) }
func (d *dumpWriter) table(_ context.Context, t dumpTable) error { return d.enc.Encode(t) }

// dumpBytes is how bytes stand in a dump, where text is a string.
type dumpBytes struct {
	Base64 []byte `json:"base64"`
}

func (d *dumpWriter) row(_ context.Context, values []any) error {
	d.rows++
	line := make([]any, len(values))
	for i, v := range values {
		if b, ok := v.([]byte); ok {
			v = dumpBytes{b}
		}
		line[i] = v
	}
	return d.enc.Encode(line)
}

func (d *dumpWriter) end(context.Context) error {
	line, err := json.Marshal(dumpEnd{true, d.rows, hex.EncodeToString(d.sum.Sum(nil))})
	if err != nil {
		return err
	}
	if _, err := d.out.Write(append(line, '\n')); err != nil {
		return err
	}
	return d.out.Flush()
}

// dumpReader reads a dump.
type dumpReader struct {
	in  *bufio.Reader
	sum hash.Hash
	h   dumpHeader
}

func newDumpReader(r io.Reader) (*dumpReader, error) {
	d := &dumpReader{in: bufio.NewReaderSize(r, 1<<20), sum: sha256.New()}
	line, err := d.line()
	if err != nil || json.Unmarshal(line, &d.h) != nil || d.h.Object != dumpName {
		return nil, errors.Join(errors.New("this is not a dump of Keyfire"), err)
	}
	if d.h.Format != dumpFormat {
		return nil, fmt.Errorf("the dump has format %d and this binary reads format %d: it was written by a newer Keyfire", d.h.Format, dumpFormat)
	}
	d.sum.Write(line)
	return d, nil
}

// line returns the next line with its end.
func (d *dumpReader) line() ([]byte, error) {
	var line []byte
	for {
		part, err := d.in.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case err == nil:
			return line, nil
		case len(line) > maxDumpRow:
			return nil, errors.New("a line of the dump is too long")
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF): // the second is of one that is compressed
			return nil, errors.New("the dump ends before its end: it was cut off")
		default:
			return nil, err
		}
	}
}

// copyTo gives every row to a sink, and ends it only once the dump has proved to be whole.
func (d *dumpReader) copyTo(ctx context.Context, to sink, progress Progress) (rows int64, err error) {
	var total int64
	for _, n := range d.h.Rows {
		total += n
	}
	for n := 2; ; n++ {
		line, err := d.line()
		if err != nil {
			return 0, fmt.Errorf("line %d: %w", n, err)
		}
		if line[0] == '[' {
			d.sum.Write(line)
			rows++
			progress.say(rows, total)
			var values []any
			if values, err = dumpValues(line); err == nil {
				err = to.row(ctx, values)
			}
			if err != nil {
				return 0, fmt.Errorf("line %d: %w", n, err)
			}
			continue
		}
		var mark struct {
			dumpTable
			dumpEnd
		}
		if err := json.Unmarshal(line, &mark); err != nil || !mark.End && mark.Table == "" {
			return 0, fmt.Errorf("line %d is no line of a dump", n)
		}
		if mark.End {
			if sum := hex.EncodeToString(d.sum.Sum(nil)); mark.SHA256 != sum || mark.Rows != rows || rows != total {
				return 0, fmt.Errorf("the dump is damaged: it has %d rows with the digest %s, and says that it had %d with %s", rows, sum, mark.Rows, mark.SHA256)
			}
			return rows, to.end(ctx)
		}
		d.sum.Write(line)
		if err := to.table(ctx, mark.dumpTable); err != nil {
			return 0, fmt.Errorf("line %d: %w", n, err)
		}
	}
}

// dumpValues reads a row.
func dumpValues(line []byte) ([]any, error) {
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.UseNumber()
	var values []any
	if err := dec.Decode(&values); err != nil {
		return nil, err
	}
	for i, v := range values {
		switch v := v.(type) {
		case json.Number:
			n, err := v.Int64()
			if err != nil {
				return nil, err
			}
			values[i] = n
		case map[string]any:
			text, ok := v["base64"].(string)
			b, err := base64.StdEncoding.DecodeString(text)
			if !ok || err != nil {
				return nil, errors.New("bytes are written as an object with base64")
			}
			values[i] = b
		case []any:
			return nil, errors.New("a list within a row")
		}
	}
	return values, nil
}

// sqlSink inserts rows in one transaction, which the caller commits once end was called without an error.
type sqlSink struct {
	tx   *sql.Tx
	own  []string // the tables there are
	stmt *sql.Stmt
	into dumpTable
}

func (s *sqlSink) table(ctx context.Context, t dumpTable) (err error) {
	if err := s.end(ctx); err != nil {
		return err
	}
	if !slices.Contains(s.own, t.Table) || slices.ContainsFunc(t.Columns, func(c string) bool { return !identifier(c) }) || slices.Contains(passing, t.Table) {
		return fmt.Errorf("%q is no table of a dump", t.Table)
	}
	// What the migrations have put there is in the dump too.
	if _, err := s.tx.ExecContext(ctx, "delete from "+t.Table); err != nil { //nolint:gosec // identifiers, checked above
		return err
	}
	marks := make([]string, len(t.Columns))
	for i := range marks {
		marks[i] = fmt.Sprintf("$%d", i+1)
	}
	s.into = t
	s.stmt, err = s.tx.PrepareContext(ctx, "insert into "+t.Table+" ("+strings.Join(t.Columns, ", ")+") values ("+strings.Join(marks, ", ")+")") //nolint:gosec // identifiers, checked above
	return err
}

func (s *sqlSink) row(ctx context.Context, values []any) error {
	if s.stmt == nil || len(values) != len(s.into.Columns) {
		return errors.New("a row without a table, or with another number of columns")
	}
	if _, err := s.stmt.ExecContext(ctx, values...); err != nil {
		return fmt.Errorf("table %s: %w", s.into.Table, err)
	}
	return nil
}

func (s *sqlSink) end(context.Context) error {
	if s.stmt == nil {
		return nil
	}
	stmt := s.stmt
	s.stmt = nil
	return stmt.Close()
}

// identifier reports whether a name may stand in a statement as it is.
func identifier(name string) bool {
	return name != "" && !strings.ContainsFunc(name, func(r rune) bool { return r != '_' && (r < 'a' || r > 'z') && (r < '0' || r > '9') })
}
