package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pressly/goose/v3"
	_ "modernc.org/sqlite" // the driver
	sqlite3 "modernc.org/sqlite/lib"
)

// This file is what the store does differently because its database is SQLite. The SQL itself is the same everywhere.

// The options of connections. Double-quoted strings are off and defensive mode is on: both turn mistakes into errors.
var (
	commonOptions = url.Values{
		"_dqs":       {"0"},
		"_defensive": {"1"},
		"_error_rc":  {"1"},
		"_pragma":    {"busy_timeout(5000)", "foreign_keys(1)", "temp_store(memory)"},
	}
	// FULL syncs the WAL at every commit, which is what "committed" means here. The WAL goes to the database file in strides of 16 MB,
	// and is cut back when it has grown beyond that. The cache is small because SQLite may walk all of it at a commit.
	writeOptions = url.Values{
		"_txlock": {"immediate"},
		"_pragma": {"journal_mode(wal)", "synchronous(full)", "cache_size(-4096)", "wal_autocheckpoint(4000)", "journal_size_limit(67108864)"},
	}
	readOptions = url.Values{
		"mode":    {"ro"},
		"_pragma": {"query_only(1)", "cache_size(-4096)"},
	}
)

const bulkReaders = 2

// maxPointCache is what the connections for look-ups may keep of the file together. With a million keys their indexes do not fit into a small cache, and a look-up
// took a third longer than with a thousand.
const maxPointCache = 128 << 20

// pointOptions returns the options of n connections for look-ups.
func pointOptions(n int) url.Values {
	const least, most = 4 << 20, 32 << 20
	o := maps.Clone(readOptions)
	o["_pragma"] = []string{"query_only(1)", fmt.Sprintf("cache_size(-%d)", min(max(maxPointCache/n, least), most)>>10)}
	return o
}

// openSQLite opens the file, checks it, and brings its schema up to date. On a full disk that takes some of the space set aside.
func openSQLite(ctx context.Context, cfg *Config) (*database, error) {
	d, err := openFile(ctx, cfg)
	if kind := faultOf(err); (kind == faultFull || kind == faultIO) && os.Remove(reservePath(cfg)) == nil {
		cfg.Logger.Warn("the database cannot be opened as it is; trying with the space set aside for a full disk", slog.String("path", cfg.name()), slog.Any("error", err))
		d, err = openFile(ctx, cfg)
	}
	return d, err
}

func openFile(ctx context.Context, cfg *Config) (_ *database, err error) {
	// SQLite gives its WAL the permissions of the database file.
	if err := makeDatabase(cfg.Path); err != nil {
		return nil, err
	}
	// Whoever closes the file gives up all locks that this process has on it (POSIX), those of SQLite's connections included: another process would take the database for
	// one that nobody uses, and remove the WAL with what is committed from then on. So it is looked at once, before there are any.
	vfs, err := pageSumVFS(cfg.Path)
	if err != nil {
		return nil, err
	}
	write, err := openWriter(ctx, cfg, vfs)
	if err != nil {
		if faultOf(err) == faultDamage {
			return nil, damaged(cfg.Path, err)
		}
		return nil, err
	}
	d := &database{
		connect: func(ctx context.Context) (session, error) { return connectSQLite(ctx, cfg, vfs) },
		// SQLite has one snapshot for each transaction anyway, and no word for it.
		snapshot: &sql.TxOptions{ReadOnly: true},
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Close())
		}
	}()
	err = migrate(ctx, goose.DialectSQLite3, write, migrations(), func(schema int64) error { return backup(ctx, write, cfg, schema) })
	if err == nil {
		d.write, err = newSQLiteSession(vfs, cfg.Path)
	}
	if err = errors.Join(err, write.Close()); err != nil {
		return nil, err
	}
	if d.points, err = dialBy(ctx, vfs, cfg.Path, cfg.Readers, readOptions); err != nil {
		return nil, err
	}
	if d.quick, err = openLitePool(vfs, cfg.Path, cfg.Readers, pointOptions(cfg.Readers)); err != nil {
		return nil, err
	}
	if d.bulk, err = dialBy(ctx, vfs, cfg.Path, bulkReaders, readOptions); err != nil {
		return nil, err
	}
	return d, nil
}

// sqliteSession is the connection that writes. SQLite has one writer at a time, so there is one.
type sqliteSession struct {
	conn  *liteConn
	turns turns
}

// connectSQLite connects to a database that is checked once more: the connection before has failed.
func connectSQLite(ctx context.Context, cfg *Config, vfs string) (session, error) {
	db, err := openWriter(ctx, cfg, vfs)
	if err != nil {
		return nil, err
	}
	s, err := newSQLiteSession(vfs, cfg.Path)
	if err = errors.Join(err, db.Close()); err != nil {
		return nil, err
	}
	return s, nil
}

func newSQLiteSession(vfs, path string) (session, error) {
	conn, err := openLite(vfs, path, writeOptions)
	if err != nil {
		return nil, err
	}
	return &sqliteSession{conn: conn}, nil
}

func (s *sqliteSession) begin() (transaction, error) {
	if _, err := s.conn.exec(`begin immediate`, nil); err != nil {
		return nil, err
	}
	return &sqliteTx{s.conn, &s.turns}, nil
}

const sqlProbe = `insert into settings (name, value) values ('probe', $1) on conflict (name) do update set value = excluded.value`

func (s *sqliteSession) probe(_ context.Context, now time.Time) error {
	_, err := s.conn.exec(sqlProbe, []any{micros(now)})
	return err
}

// committed is never asked: what SQLite's commit answers, the process hears.
func (s *sqliteSession) committed(_ context.Context, err error) (bool, error) { return false, err }

func (s *sqliteSession) close() error { return s.conn.close() }

type sqliteTx struct {
	conn  *liteConn
	turns *turns
}

func (t *sqliteTx) exec(query string, args []any) (int64, error) {
	if err := storable(args); err != nil {
		return 0, err
	}
	return t.conn.exec(query, args)
}

func (t *sqliteTx) put(query string, args []any) error {
	_, err := t.exec(query, args)
	return err
}

func (t *sqliteTx) row(query string, args []any) row { return t.conn.row(query, args) }

func (t *sqliteTx) query(query string, args []any) (rows, error) { return t.conn.query(query, args) }

// ahead has nothing to save: no statement waits for anything but the processor.
func (t *sqliteTx) ahead([]*statement) ([]*answer, error) { return nil, nil }

func (t *sqliteTx) now(own time.Time) (time.Time, error) { return t.turns.now(own), nil }

func (t *sqliteTx) watched(time.Duration) (bool, error) { return true, nil }

func (t *sqliteTx) commit() error {
	_, err := t.conn.exec(`commit`, nil)
	if err != nil {
		t.rollback() // it may be open still
	}
	return err
}

// rollback may find that SQLite has rolled back already.
func (t *sqliteTx) rollback() { _, _ = t.conn.exec(`rollback`, nil) }

// openWriter opens the connection that writes and checks that the file is sound.
func openWriter(ctx context.Context, cfg *Config, vfs string) (*sql.DB, error) {
	db, err := dialBy(ctx, vfs, cfg.Path, 1, writeOptions)
	if err != nil {
		return nil, err
	}
	if err := verify(ctx, db, cfg.Path); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

// dial opens n connections that stay open: opening one reads the whole schema.
func dial(ctx context.Context, path string, n int, options url.Values) (*sql.DB, error) {
	vfs, err := pageSumVFS(path)
	if err != nil {
		return nil, err
	}
	return dialBy(ctx, vfs, path, n, options)
}

// dialBy is dial by the functions for files of that name; "" is SQLite's own, which neither compare nor write the checksums of pages.
func dialBy(ctx context.Context, vfs, path string, n int, options url.Values) (*sql.DB, error) {
	uri, _, err := sqliteURI(vfs, path, options)
	if err != nil {
		return nil, err
	}
	db, err := sql.Open("sqlite", uri)
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(n)
	db.SetMaxIdleConns(n)
	if err := db.PingContext(ctx); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

// sqliteURI returns what a connection is opened with, and the pragmas among it, which the driver runs by itself.
func sqliteURI(vfs, path string, options url.Values) (uri string, pragmas []string, err error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", nil, err
	}
	query := url.Values{}
	for _, from := range []url.Values{commonOptions, options} {
		for name, values := range from {
			query[name] = append(query[name], values...)
		}
	}
	if vfs != "" {
		query.Set("vfs", vfs)
	}
	// As a URI, so that no character in the path is taken for the start of the options.
	u := url.URL{Scheme: "file", OmitHost: true, Path: filepath.ToSlash(abs), RawQuery: query.Encode()}
	return u.String(), query["_pragma"], nil
}

// maxVerified is the size up to which a database is read through when it is opened: a second or so. Larger ones are
// checked by SQLite page by page as they are read.
const maxVerified = 128 << 20

// errDamaged marks an error that SQLite reports as a finding and not as a failure.
var errDamaged = errors.New("the check found")

// verify reads the database through and looks for damage.
func verify(ctx context.Context, db *sql.DB, path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.Size() > maxVerified {
		var version int64
		return db.QueryRowContext(ctx, `pragma schema_version`).Scan(&version)
	}
	rows, err := db.QueryContext(ctx, `pragma quick_check(3)`) //nolint:rowserrcheck // scanAll does
	if err != nil {
		return err
	}
	found, err := scanAll(rows, scanText)
	if err == nil && !slices.Equal(found, []string{"ok"}) {
		err = fmt.Errorf("%w: %s", errDamaged, strings.Join(found, "; "))
	}
	return err
}

// damaged tells an operator what to do about a damaged file.
func damaged(path string, err error) error {
	hint := "no backup made by Keyfire lies beside it"
	if backups, _ := filepath.Glob(globEscape(path) + ".*" + backupSuffix); len(backups) > 0 {
		hint = "the last backup beside it is " + filepath.Base(backups[len(backups)-1])
	}
	where := ""
	if page := unsoundPage(path); page > 0 {
		where = fmt.Sprintf("; page %d of the file is not as Keyfire wrote it: the disk changed it, or another program wrote to the file", page)
	}
	return fmt.Errorf("%s is damaged or not a database, and is left as it is: stop the server, move the file away with its -wal file, "+
		"and fill a new one with keyfire admin restore FILE (%s)%s: %w", filepath.Base(path), hint, where, err)
}

func globEscape(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}

const backupSuffix = ".bak"

// backupName returns a name for a backup that no file has. A server that dies in a migration may be started again within the second.
func backupName(cfg *Config, schema int64) string {
	base := fmt.Sprintf("%s.%s-v%d", cfg.Path, cfg.Now().UTC().Format("20060102T150405Z"), schema)
	name := base + backupSuffix
	for n := 2; ; n++ {
		if _, err := os.Lstat(name); err != nil {
			return name
		}
		name = fmt.Sprintf("%s-%d%s", base, n, backupSuffix)
	}
}

// backup copies the database as it is now, what is in the WAL included, to a file beside it. The file has its name only once it is
// whole, so what is called a backup is one.
func backup(ctx context.Context, db *sql.DB, cfg *Config, schema int64) error {
	to := backupName(cfg, schema)
	part := cfg.Path + ".backup-part"
	f, err := os.OpenFile(part, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("back up before the migration: %w", err)
	}
	if _, err = db.ExecContext(ctx, `vacuum into $1`, part); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(part, to)
	}
	if err != nil {
		return fmt.Errorf("back up before the migration to %s: %w", to, errors.Join(err, os.Remove(part)))
	}
	return nil
}

// sqliteCatalog is how SQLite describes itself.
var sqliteCatalog = catalog{
	tables:  `select name from sqlite_master where type = 'table' and name not like 'sqlite\_%' escape '\' order by name`,
	columns: `select name, type from pragma_table_info($1) order by cid`,
	refers:  `select distinct "table" from pragma_foreign_key_list($1)`,
}

// fault is the kind of trouble a database error means.
type fault int

const (
	faultOther  fault = iota // this statement failed; the connection is fine
	faultBug                 // a row contradicts the schema: ours to fix
	faultFull                // no space; the transaction is gone, the database is fine
	faultBusy                // another process has the write lock
	faultIO                  // reading, writing or syncing failed; what is on the disk is not known
	faultDamage              // the file is not a sound database
)

// faultOf classifies an error of the database.
func faultOf(err error) fault {
	if errors.Is(err, errDamaged) {
		return faultDamage
	}
	if errors.Is(err, driver.ErrBadConn) || errors.Is(err, sql.ErrConnDone) {
		return faultIO
	}
	var e interface { // SQLite's error from the driver, or without it
		error
		Code() int
	}
	if !errors.As(err, &e) {
		return postgresFault(err)
	}
	switch code := e.Code(); code & 0xff {
	case sqlite3.SQLITE_CONSTRAINT:
		if code == sqlite3.SQLITE_CONSTRAINT_TRIGGER {
			return faultOther
		}
		return faultBug
	case sqlite3.SQLITE_FULL:
		return faultFull
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
		return faultBusy
	case sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_NOMEM:
		return faultIO
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return faultDamage
	}
	return faultOther
}
