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
	"unsafe"

	"modernc.org/libc"
	sqlite3 "modernc.org/sqlite/lib"
)

// What every trigger does many times, which is to change something and to look something up, goes to SQLite's own functions, and not through database/sql and
// its driver: these ask for names and types of all columns each time, lock a mutex for each value, and take memory for each text. Lists, migrations and all
// else that is done seldom or may be interrupted go through them.

// liteConn is a connection to SQLite with what was prepared on it, for one goroutine at a time.
type liteConn struct {
	tls   *libc.TLS
	db    uintptr
	out   uintptr // where SQLite puts an address it answers with
	stmts map[liteQuery]*liteStmt
	home  *litePool // where it belongs when it is not used, nil for none
}

// liteQuery is the text of a statement by its place: only constants are passed, and hashing a kilobyte of SQL takes longer than some statements. A text that is at two
// places is prepared twice, which does no harm. Its place is not given to another text, since this keeps it.
type liteQuery struct {
	text   *byte
	length int
}

// liteStmt is a statement that was prepared.
type liteStmt struct {
	c       *liteConn
	handle  uintptr
	args    []int // by parameter: which of the arguments it is
	columns int
	busy    bool // it runs, or its row is yet to be read

	// The texts that are bound, one behind the other in memory that SQLite can read.
	texts uintptr
	size  int
}

// keptTexts is how much memory for texts a statement keeps.
const keptTexts = 16 << 10

// openLite opens a connection. SQLite need not protect it with a mutex, since two goroutines never use it at a time.
func openLite(vfs, path string, options url.Values) (*liteConn, error) {
	uri, pragmas, err := sqliteURI(vfs, path, options)
	if err != nil {
		return nil, err
	}
	name, err := libc.CString(uri)
	if err != nil {
		return nil, err
	}
	c := &liteConn{tls: libc.NewTLS(), stmts: map[liteQuery]*liteStmt{}}
	defer libc.Xfree(c.tls, name)
	if c.out = sqlite3.Xsqlite3_malloc(c.tls, int32(unsafe.Sizeof(uintptr(0)))); c.out == 0 {
		return nil, errors.Join(c.failed(sqlite3.SQLITE_NOMEM), c.close())
	}
	*at[uintptr](c.out) = 0
	rc := sqlite3.Xsqlite3_open_v2(c.tls, name, c.out, sqlite3.SQLITE_OPEN_READWRITE|sqlite3.SQLITE_OPEN_CREATE|sqlite3.SQLITE_OPEN_NOMUTEX|sqlite3.SQLITE_OPEN_URI, 0)
	c.db = *at[uintptr](c.out) // one that could not be opened has to be closed too
	if rc == sqlite3.SQLITE_OK {
		rc = sqlite3.Xsqlite3_extended_result_codes(c.tls, c.db, 1)
	}
	for _, o := range []struct{ option, on int32 }{{sqlite3.SQLITE_DBCONFIG_DEFENSIVE, 1}, {sqlite3.SQLITE_DBCONFIG_DQS_DDL, 0}, {sqlite3.SQLITE_DBCONFIG_DQS_DML, 0}} {
		if rc == sqlite3.SQLITE_OK {
			rc = c.configure(o.option, o.on)
		}
	}
	if rc != sqlite3.SQLITE_OK {
		err = c.failed(rc)
	}
	for _, pragma := range pragmas {
		if err == nil {
			_, err = c.exec("pragma "+pragma, nil)
		}
	}
	if err != nil {
		return nil, errors.Join(err, c.close())
	}
	return c, nil
}

// configure sets one of the options of a connection that are on or off.
func (c *liteConn) configure(option, on int32) int32 {
	const slot = 8 // of an argument in a list of arguments
	list := sqlite3.Xsqlite3_malloc(c.tls, 2*slot)
	if list == 0 {
		return sqlite3.SQLITE_NOMEM
	}
	defer sqlite3.Xsqlite3_free(c.tls, list)
	return sqlite3.Xsqlite3_db_config(c.tls, c.db, option, libc.VaList(list, on, uintptr(0)))
}

// close closes the connection, and its statements first: with one left open SQLite would keep the file open, and its WAL with it.
func (c *liteConn) close() error {
	var errs []error
	for _, s := range c.stmts {
		sqlite3.Xsqlite3_finalize(c.tls, s.handle) // says again what the statement's last run failed with
		sqlite3.Xsqlite3_free(c.tls, s.texts)
	}
	clear(c.stmts)
	if c.db != 0 {
		if rc := sqlite3.Xsqlite3_close_v2(c.tls, c.db); rc != sqlite3.SQLITE_OK {
			errs = append(errs, c.failed(rc))
		}
		c.db = 0
	}
	sqlite3.Xsqlite3_free(c.tls, c.out)
	c.out = 0
	c.tls.Close()
	return errors.Join(errs...)
}

// liteError is what SQLite says about a failure.
type liteError struct {
	code int
	text string
}

func (e *liteError) Error() string { return e.text }

// Code returns SQLite's extended result code.
func (e *liteError) Code() int { return e.code }

// failed returns the error for a result code. What else the connection has to say is of interest if it is about the same failure.
func (c *liteConn) failed(rc int32) error {
	text := libc.GoString(sqlite3.Xsqlite3_errstr(c.tls, rc))
	if c.db != 0 && sqlite3.Xsqlite3_extended_errcode(c.tls, c.db)&0xff == rc&0xff {
		if more := libc.GoString(sqlite3.Xsqlite3_errmsg(c.tls, c.db)); more != text {
			text += ": " + more
		}
	}
	return &liteError{code: int(rc), text: fmt.Sprintf("%s (%d)", text, rc)}
}

// statement returns the prepared statement for a text.
func (c *liteConn) statement(query string) (*liteStmt, error) {
	key := liteQuery{unsafe.StringData(query), len(query)}
	if s := c.stmts[key]; s != nil {
		return s, nil
	}
	text, err := libc.CString(query)
	if err != nil {
		return nil, err
	}
	defer libc.Xfree(c.tls, text)
	if rc := sqlite3.Xsqlite3_prepare_v3(c.tls, c.db, text, -1, sqlite3.SQLITE_PREPARE_PERSISTENT, c.out, 0); rc != sqlite3.SQLITE_OK {
		return nil, c.failed(rc)
	}
	s := &liteStmt{c: c, handle: *at[uintptr](c.out)}
	s.columns = int(sqlite3.Xsqlite3_column_count(c.tls, s.handle))
	s.args = make([]int, sqlite3.Xsqlite3_bind_parameter_count(c.tls, s.handle))
	for i := range s.args {
		name := libc.GoString(sqlite3.Xsqlite3_bind_parameter_name(c.tls, s.handle, int32(i+1)))
		n, err := strconv.Atoi(strings.TrimPrefix(name, "$"))
		if err != nil || n < 1 {
			sqlite3.Xsqlite3_finalize(c.tls, s.handle)
			return nil, fmt.Errorf("parameter %q of a statement is not $N", name)
		}
		s.args[i] = n - 1
	}
	c.stmts[key] = s
	return s, nil
}

// start returns the statement for a text, with its arguments bound and its first step done, and what that came to: SQLITE_ROW or SQLITE_DONE.
func (c *liteConn) start(query string, args []any) (*liteStmt, int32, error) {
	s, err := c.statement(query)
	if err != nil {
		return nil, 0, err
	}
	if s.busy {
		return nil, 0, errors.New("a statement is run while it runs")
	}
	if err := s.bind(args); err != nil {
		return nil, 0, err
	}
	s.busy = true
	rc, err := s.step()
	return s, rc, err
}

// step goes on to the next row or the end. After an error the statement has been reset.
func (s *liteStmt) step() (int32, error) {
	rc := sqlite3.Xsqlite3_step(s.c.tls, s.handle)
	if rc == sqlite3.SQLITE_ROW || rc == sqlite3.SQLITE_DONE {
		return rc, nil
	}
	err := s.c.failed(rc)
	s.reset()
	return rc, err
}

// reset ends what the statement does. What that returns is known from the last step.
func (s *liteStmt) reset() {
	sqlite3.Xsqlite3_reset(s.c.tls, s.handle)
	s.busy = false
	if s.size > keptTexts {
		sqlite3.Xsqlite3_clear_bindings(s.c.tls, s.handle)
		sqlite3.Xsqlite3_free(s.c.tls, s.texts)
		s.texts, s.size = 0, 0
	}
}

// bind gives a statement its arguments. Texts are copied once, to where SQLite reads them until the statement is reset.
func (s *liteStmt) bind(args []any) error {
	need := 1 // so that the empty text is somewhere
	for _, a := range args {
		switch v := a.(type) {
		case string:
			need += len(v)
		case []byte:
			need += len(v)
		}
	}
	if err := s.room(need); err != nil {
		return err
	}
	memory, used := at[[maxTexts]byte](s.texts)[:s.size], 0
	for i, n := range s.args {
		if n >= len(args) {
			return fmt.Errorf("a statement with the parameter $%d is run with %d arguments", n+1, len(args))
		}
		var rc int32
		place := int32(i + 1)
		switch v := args[n].(type) {
		case string:
			rc = sqlite3.Xsqlite3_bind_text(s.c.tls, s.handle, place, s.texts+uintptr(used), int32(len(v)), 0)
			used += copy(memory[used:], v)
		case []byte:
			if v == nil {
				rc = sqlite3.Xsqlite3_bind_null(s.c.tls, s.handle, place)
				break
			}
			rc = sqlite3.Xsqlite3_bind_blob(s.c.tls, s.handle, place, s.texts+uintptr(used), int32(len(v)), 0)
			used += copy(memory[used:], v)
		case int64:
			rc = sqlite3.Xsqlite3_bind_int64(s.c.tls, s.handle, place, v)
		case int:
			rc = sqlite3.Xsqlite3_bind_int64(s.c.tls, s.handle, place, int64(v))
		case bool:
			on := int64(0)
			if v {
				on = 1
			}
			rc = sqlite3.Xsqlite3_bind_int64(s.c.tls, s.handle, place, on)
		case nil:
			rc = sqlite3.Xsqlite3_bind_null(s.c.tls, s.handle, place)
		default:
			return fmt.Errorf("argument $%d of a statement is a %T; that is not stored", n+1, v)
		}
		if rc != sqlite3.SQLITE_OK {
			return s.c.failed(rc)
		}
	}
	return nil
}

// maxTexts is what the texts of one statement may come to; SQLite itself takes no more than 1,000,000,000 bytes.
const maxTexts = 1 << 30

// room makes room for texts.
func (s *liteStmt) room(need int) error {
	switch {
	case need <= s.size:
		return nil
	case need > maxTexts:
		return s.c.failed(sqlite3.SQLITE_TOOBIG)
	}
	sqlite3.Xsqlite3_free(s.c.tls, s.texts)
	need = max(need, 1<<10)
	if need <= keptTexts {
		need = min(2*need, keptTexts)
	}
	s.size = 0
	if s.texts = sqlite3.Xsqlite3_malloc(s.c.tls, int32(need)); s.texts == 0 {
		return s.c.failed(sqlite3.SQLITE_NOMEM)
	}
	s.size = need
	return nil
}

// exec runs a statement and returns how many rows it changed.
func (c *liteConn) exec(query string, args []any) (int64, error) {
	s, rc, err := c.start(query, args)
	for err == nil && rc == sqlite3.SQLITE_ROW {
		rc, err = s.step()
	}
	if err != nil {
		return 0, err
	}
	n := sqlite3.Xsqlite3_changes64(c.tls, c.db)
	s.reset()
	return n, nil
}

// row runs a query for one row, which has to be read before the statement can be run again.
func (c *liteConn) row(query string, args []any) row {
	s, rc, err := c.start(query, args)
	switch {
	case err != nil:
		return row{err: err}
	case rc == sqlite3.SQLITE_DONE:
		s.reset()
		return row{err: sql.ErrNoRows}
	}
	return row{row: (*liteRow)(s)}
}

// query runs a query for several rows.
func (c *liteConn) query(query string, args []any) (rows, error) {
	s, rc, err := c.start(query, args)
	if err != nil {
		return nil, err
	}
	return &liteRows{s: s, rc: rc, first: true}, nil
}

// liteRow is a statement that stands at the one row that is asked for.
type liteRow liteStmt

func (r *liteRow) Scan(dest ...any) error {
	s := (*liteStmt)(r)
	err := s.scan(dest)
	s.finish()
	return err
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
	rc    int32
	err   error
	first bool // the first step is done, and not yet asked for
}

func (r *liteRows) Next() bool {
	if r.s == nil {
		return false
	}
	if !r.first && r.rc == sqlite3.SQLITE_ROW {
		r.rc, r.err = r.s.step()
	}
	r.first = false
	if r.rc == sqlite3.SQLITE_ROW {
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
	for i, d := range dest {
		if err := s.column(int32(i), d); err != nil {
			return fmt.Errorf("column %d: %w", i+1, err)
		}
	}
	return nil
}

func (s *liteStmt) column(i int32, dest any) error {
	switch d := dest.(type) {
	case *string:
		p := sqlite3.Xsqlite3_column_text(s.c.tls, s.handle, i)
		if p == 0 {
			return errNull
		}
		*d = string(s.bytes(p, i))
	case *[]byte:
		*d = nil
		if sqlite3.Xsqlite3_column_type(s.c.tls, s.handle, i) != sqlite3.SQLITE_NULL {
			*d = append([]byte{}, s.bytes(sqlite3.Xsqlite3_column_blob(s.c.tls, s.handle, i), i)...)
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

// bytes returns what lies at an address that SQLite gave for a column, for as long as the statement stands there.
func (s *liteStmt) bytes(p uintptr, i int32) []byte {
	if p == 0 {
		return nil
	}
	return at[[maxTexts]byte](p)[:sqlite3.Xsqlite3_column_bytes(s.c.tls, s.handle, i)]
}

func (s *liteStmt) number(i int32, n *int64) error {
	if sqlite3.Xsqlite3_column_type(s.c.tls, s.handle, i) != sqlite3.SQLITE_INTEGER {
		return errors.New("there is no integer")
	}
	*n = sqlite3.Xsqlite3_column_int64(s.c.tls, s.handle, i)
	return nil
}

// named reads into a variable of a type that is a text, a number or bytes by another name.
func (s *liteStmt) named(i int32, dest any) error {
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
