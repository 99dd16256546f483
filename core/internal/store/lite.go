package store

import (
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"reflect"
	"strconv"
	"strings"
	"sync"

	"modernc.org/libc"
	sqlite3 "modernc.org/sqlite/lib"
	"zombiezen.com/go/sqlite"
)

// What every trigger does many times, which is to change something and to look something up, goes to SQLite by a library that is no driver of database/sql: that
// and its driver ask for names and types of all columns each time, lock a mutex for each value, and take memory for each text. Lists, migrations and all
// else that is done seldom or may be interrupted go through them.

// liteConn is a connection to SQLite with what was prepared on it, for one goroutine at a time.
type liteConn struct {
	db    *sqlite.Conn
	stmts map[string]*liteStmt
	home  *litePool // where it belongs when it is not used, nil for none
}

// liteStmt is a statement that was prepared.
type liteStmt struct {
	*sqlite.Stmt
	c       *liteConn
	args    []int // by parameter: which of the arguments it is
	columns int
	busy    bool // it runs, or its row is yet to be read
	size    int  // of the texts that are bound, which the library has copied
}

const (
	keptTexts = 16 << 10 // what the texts of a statement that is not run may come to
	maxTexts  = 1 << 30  // and of one that is; SQLite itself takes no more than 1,000,000,000 bytes
)

// liteError is an error of SQLite.
type liteError struct{ error }

// Code returns SQLite's extended result code.
func (e *liteError) Code() int { return int(sqlite.ErrCode(e.error)) }

func (e *liteError) Unwrap() error { return e.error }

func failed(err error) error {
	if err == nil {
		return nil
	}
	return &liteError{err}
}

// openLite opens a connection.
func openLite(vfs, path string, options url.Values) (*liteConn, error) {
	uri, pragmas, err := sqliteURI(vfs, path, options)
	if err != nil {
		return nil, err
	}
	if err := defend(); err != nil {
		return nil, err
	}
	db, err := sqlite.OpenConn(uri, sqlite.OpenReadWrite, sqlite.OpenCreate, sqlite.OpenURI)
	if err != nil {
		return nil, failed(err)
	}
	c := &liteConn{db: db, stmts: map[string]*liteStmt{}}
	for _, pragma := range pragmas {
		if _, err := c.exec("pragma "+pragma, nil); err != nil {
			return nil, errors.Join(err, c.close())
		}
	}
	return c, nil
}

// defend has every connection of the process opened in defensive mode. The library has a method for one connection, which must not be used: it gives SQLite's function one
// argument of two, and what lies behind it in memory is where SQLite writes its answer.
var defend = sync.OnceValue(func() error {
	tls := libc.NewTLS()
	defer tls.Close()
	if rc := sqlite3.Xsqlite3_auto_extension(tls, function(defendConn)); rc != sqlite3.SQLITE_OK {
		return fmt.Errorf("SQLite takes no extension: code %d", rc)
	}
	return nil
})

func defendConn(tls *libc.TLS, db, _, _ uintptr) int32 {
	arguments := libc.NewVaList(int32(1), uintptr(0)) // on, and nobody asks whether it is now
	defer libc.Xfree(tls, arguments)
	return sqlite3.Xsqlite3_db_config(tls, db, sqlite3.SQLITE_DBCONFIG_DEFENSIVE, arguments)
}

func (c *liteConn) close() error { return failed(c.db.Close()) }

// statement returns the prepared statement for a text.
func (c *liteConn) statement(query string) (*liteStmt, error) {
	if s := c.stmts[query]; s != nil {
		return s, nil
	}
	prepared, err := c.db.Prepare(query)
	if err != nil {
		return nil, failed(err)
	}
	s := &liteStmt{Stmt: prepared, c: c, columns: prepared.ColumnCount(), args: make([]int, prepared.BindParamCount())}
	for i := range s.args {
		name := s.BindParamName(i + 1)
		n, err := strconv.Atoi(strings.TrimPrefix(name, "$"))
		if err != nil || n < 1 {
			return nil, errors.Join(fmt.Errorf("parameter %q of a statement is not $N", name), s.Finalize())
		}
		s.args[i] = n - 1
	}
	c.stmts[query] = s
	return s, nil
}

// start returns the statement for a text, with its arguments bound and its first step done, and whether that came to a row.
func (c *liteConn) start(query string, args []any) (*liteStmt, bool, error) {
	s, err := c.statement(query)
	if err != nil {
		return nil, false, err
	}
	if s.busy {
		return nil, false, errors.New("a statement is run while it runs")
	}
	if err := s.bind(args); err != nil {
		s.reset()
		return nil, false, err
	}
	s.busy = true
	more, err := s.step()
	return s, more, err
}

// step goes on to the next row or the end. After an error the statement has been reset.
func (s *liteStmt) step() (bool, error) {
	more, err := s.Step()
	if err != nil {
		s.reset()
	}
	return more, failed(err)
}

// reset ends what the statement does. What that returns is known from the last step.
func (s *liteStmt) reset() {
	_ = s.Reset()
	s.busy = false
	if s.size > keptTexts {
		_ = s.ClearBindings()
		s.size = 0
	}
}

// bind gives a statement its arguments.
func (s *liteStmt) bind(args []any) error {
	s.size = 0
	for i, n := range s.args {
		if n >= len(args) {
			return fmt.Errorf("a statement with the parameter $%d is run with %d arguments", n+1, len(args))
		}
		place := i + 1
		switch v := args[n].(type) {
		case string:
			if s.size += len(v); s.size > maxTexts {
				return failed(sqlite.ResultTooBig.ToError())
			}
			s.BindText(place, v)
		case []byte:
			if v == nil {
				s.BindNull(place)
				break
			}
			if s.size += len(v); s.size > maxTexts {
				return failed(sqlite.ResultTooBig.ToError())
			}
			s.BindBytes(place, v)
		case int64:
			s.BindInt64(place, v)
		case int:
			s.BindInt64(place, int64(v))
		case bool:
			s.BindBool(place, v)
		case nil:
			s.BindNull(place)
		default:
			return fmt.Errorf("argument $%d of a statement is a %T; that is not stored", n+1, v)
		}
	}
	return nil
}

// exec runs a statement and returns how many rows it changed.
func (c *liteConn) exec(query string, args []any) (int64, error) {
	s, more, err := c.start(query, args)
	for err == nil && more {
		more, err = s.step()
	}
	if err != nil {
		return 0, err
	}
	n := int64(c.db.Changes())
	s.reset()
	return n, nil
}

// row runs a query for one row, which has to be read before the statement can be run again.
func (c *liteConn) row(query string, args []any) row {
	s, more, err := c.start(query, args)
	switch {
	case err != nil:
		return row{err: err}
	case !more:
		s.reset()
		return row{err: sql.ErrNoRows}
	}
	return row{row: (*liteRow)(s)}
}

// stand runs a query for one row. The statement stands at the row until it is reset, and for as long its connection sees one state of the database.
func (c *liteConn) stand(query string, args []any) (*liteStmt, error) {
	s, more, err := c.start(query, args)
	if err == nil && !more {
		s.reset()
		err = sql.ErrNoRows
	}
	return s, err
}

// query runs a query for several rows.
func (c *liteConn) query(query string, args []any) (rows, error) {
	s, more, err := c.start(query, args)
	if err != nil {
		return nil, err
	}
	return &liteRows{s: s, more: more, first: true}, nil
}

// liteRow is a statement that stands at the one row that is asked for.
type liteRow liteStmt

func (r *liteRow) Scan(dest ...any) error {
	s := (*liteStmt)(r)
	if !s.busy {
		return errors.New("the row has been read")
	}
	defer s.finish()
	return s.scan(dest)
}

// finish ends what the statement does, and what its connection was taken for.
func (s *liteStmt) finish() {
	s.reset()
	if s.c.home != nil {
		s.c.home.put(s.c)
	}
}

type liteRows struct {
	s     *liteStmt // nil when they are at their end
	more  bool
	err   error
	first bool // the first step is done, and not yet asked for
}

func (r *liteRows) Next() bool {
	if r.s == nil {
		return false
	}
	if !r.first && r.more {
		r.more, r.err = r.s.step()
	}
	r.first = false
	if r.more {
		return true
	}
	r.end()
	return false
}

func (r *liteRows) Scan(dest ...any) error {
	if r.s == nil {
		return errors.New("there is no row")
	}
	return r.s.scan(dest)
}

func (r *liteRows) Err() error { return r.err }

func (r *liteRows) Close() error {
	if r.s != nil {
		r.end()
	}
	return nil
}

func (r *liteRows) end() {
	r.s.finish()
	r.s = nil
}

// scan reads the row that the statement stands at.
func (s *liteStmt) scan(dest []any) error {
	if len(dest) != s.columns {
		return fmt.Errorf("%d columns are read into %d variables", s.columns, len(dest))
	}
	return s.read(0, dest...)
}

// read reads some columns of the row that the statement stands at.
func (s *liteStmt) read(first int, dest ...any) error {
	for i, d := range dest {
		if err := s.column(first+i, d); err != nil {
			return fmt.Errorf("column %d: %w", first+i+1, err)
		}
	}
	return nil
}

func (s *liteStmt) column(i int, dest any) error {
	switch d := dest.(type) {
	case *string:
		if *d = s.ColumnText(i); *d == "" && s.ColumnIsNull(i) {
			return errNull
		}
	case *[]byte:
		*d = nil
		if !s.ColumnIsNull(i) {
			*d = make([]byte, s.ColumnLen(i))
			s.ColumnBytes(i, *d)
		}
	case *int64:
		return s.number(i, d)
	case *int:
		var n int64
		err := s.number(i, &n)
		*d = int(n)
		return err
	case *bool:
		var n int64
		err := s.number(i, &n)
		*d = n != 0
		return err
	default:
		return s.named(i, dest)
	}
	return nil
}

var errNull = errors.New("there is no value")

func (s *liteStmt) number(i int, n *int64) error {
	if s.ColumnType(i) != sqlite.TypeInteger {
		return errors.New("there is no integer")
	}
	*n = s.ColumnInt64(i)
	return nil
}

// named reads into a variable of a type that is a text, a number or bytes by another name.
func (s *liteStmt) named(i int, dest any) error {
	v := reflect.ValueOf(dest)
	if v.Kind() != reflect.Pointer {
		return fmt.Errorf("it is read into a %T", dest)
	}
	switch v = v.Elem(); v.Kind() {
	case reflect.String:
		var text string
		err := s.column(i, &text)
		v.SetString(text)
		return err
	case reflect.Int, reflect.Int64, reflect.Int32:
		var n int64
		err := s.number(i, &n)
		v.SetInt(n)
		return err
	case reflect.Slice:
		var b []byte
		err := s.column(i, &b)
		v.SetBytes(b)
		return err
	default:
		return fmt.Errorf("it is read into a %T", dest)
	}
}

// litePool is a number of connections to look things up with.
type litePool struct {
	places chan struct{} // one for each connection, taken while it is used

	mu   sync.Mutex
	idle []*liteConn // the one used last is at the end, and used next: it knows the state of the database best
}

// openLitePool opens n connections.
func openLitePool(vfs, path string, n int, options url.Values) (*litePool, error) {
	p := &litePool{places: make(chan struct{}, n)}
	for range n {
		c, err := openLite(vfs, path, options)
		if err != nil {
			return nil, errors.Join(err, p.close())
		}
		c.home = p
		p.idle = append(p.idle, c)
	}
	return p, nil
}

// row runs a query for one row, which has to be read: its connection serves nobody else until then.
func (p *litePool) row(query string, args []any) row {
	c, err := p.take()
	if err != nil {
		return row{err: err}
	}
	r := c.row(query, args)
	if r.err != nil {
		p.put(c)
	}
	return r
}

// query runs a query for a few rows, which have to be read or closed.
func (p *litePool) query(query string, args []any) (rows, error) {
	c, err := p.take()
	if err != nil {
		return nil, err
	}
	r, err := c.query(query, args)
	if err != nil {
		p.put(c)
	}
	return r, err
}

func (p *litePool) take() (*liteConn, error) {
	p.places <- struct{}{}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.idle) == 0 { // it is closed
		<-p.places
		return nil, sql.ErrConnDone
	}
	c := p.idle[len(p.idle)-1]
	p.idle = p.idle[:len(p.idle)-1]
	return c, nil
}

func (p *litePool) put(c *liteConn) {
	p.mu.Lock()
	p.idle = append(p.idle, c)
	p.mu.Unlock()
	<-p.places
}

// close closes the connections as soon as nobody uses them.
func (p *litePool) close() error {
	for range cap(p.places) {
		p.places <- struct{}{}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for _, c := range p.idle {
		errs = append(errs, c.close())
	}
	p.idle = nil
	for range cap(p.places) {
		<-p.places
	}
	return errors.Join(errs...)
}
