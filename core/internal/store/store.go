package store

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/keyfire/keyfire/core"
)

// Config configures a Store. Path or URL is required; every other zero field is its default.
type Config struct {
	// Path is the database file of SQLite. It is made, readable by its owner only, when it does not exist. Its directory must exist.
	// With URL it is where backups made before a migration go: "<path>.<time>-v<schema>.bak".
	Path string

	// URL is a PostgreSQL database, such as postgres://keyfire@db.example.com/keyfire, in the notation of libpq. It must exist and
	// may be empty. What the URL leaves out comes from the PG* variables, the service file and the password file, as with psql. "" is SQLite.
	URL string
	// Server is the id of this server among those of a PostgreSQL database, another one at each start. "" is a random one.
	Server string
	// Shared lets several servers use the database at a time. All of them must be opened so; one that is not is alone or refused.
	Shared bool

	// Tool is for what is no server and only works on the database as a whole.
	Tool bool
	// Leaving opens a PostgreSQL database although a move of it was not seen to end, to find out how far that came.
	Leaving bool

	Now    func() time.Time // nil is time.Now; decides when idempotency keys are swept and names backups
	Random io.Reader        // nil is crypto/rand.Reader; for the key that seals cursors
	Logger *slog.Logger     // nil is slog.Default(); hears of trouble that no caller can be told about

	// MaxQueue bounds the changes of each lane that wait for the writer, MaxQueueBytes the memory they hold together. One more is
	// refused with CodeOverloaded. 0 is 4096 changes and 256 MiB.
	MaxQueue      int
	MaxQueueBytes int64
	// MaxBatch and MaxBatchBytes bound what shares one commit. 0 is 256 changes and 32 MiB.
	MaxBatch      int
	MaxBatchBytes int64
	// Readers is the number of connections for look-ups by name or id. Lists and large documents have two of their own, so that
	// no list, however slow, delays a trigger. 0 is the number of processors, at least 4.
	Readers int
	// SweepEvery is how often expired idempotency keys and sessions are deleted. 0 is one minute, negative is never.
	SweepEvery time.Duration
	// MaxPayload is the size up to which the input and the output of a step are kept once its run has ended. Of a larger one, size and
	// digest are kept. 0 is no limit beside the runtime's own.
	MaxPayload int64
	// Reserve is the disk space set aside so that keys can still be revoked when the disk is full. 0 is 16 MiB, negative is none.
	Reserve int64

	reconnect time.Duration // what connecting may take where several addresses are tried
	oneTry    time.Duration // of a look-up
}

func (c *Config) check() error {
	if c.Path == "" {
		return errors.New("store: Path is required")
	}
	if c.URL != "" {
		c.Reserve = -1 // the disk is the database's own
	}
	if c.MaxQueue < 0 || c.MaxQueueBytes < 0 || c.MaxBatch < 0 || c.MaxBatchBytes < 0 || c.Readers < 0 {
		return errors.New("store: MaxQueue, MaxQueueBytes, MaxBatch, MaxBatchBytes and Readers must not be negative")
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Random == nil {
		c.Random = rand.Reader
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	c.MaxQueue = orDefault(c.MaxQueue, 4096)
	c.MaxQueueBytes = orDefault(c.MaxQueueBytes, 256<<20)
	c.MaxBatch = orDefault(c.MaxBatch, 256)
	c.MaxBatchBytes = orDefault(c.MaxBatchBytes, 32<<20)
	c.Readers = orDefault(c.Readers, max(4, runtime.GOMAXPROCS(0)))
	c.SweepEvery = orDefault(c.SweepEvery, time.Minute)
	c.Reserve = orDefault(c.Reserve, 16<<20)
	return nil
}

// name returns what messages call the database: never the URL, which may hold a password.
func (c *Config) name() string {
	if c.URL != "" {
		return Redact(c.URL)
	}
	return c.Path
}

func orDefault[T int | int64 | time.Duration](v, otherwise T) T {
	if v == 0 {
		return otherwise
	}
	return v
}

// Store is the database of one server.
type Store struct {
	cfg    Config
	writer *writer
	quick  *litePool   // look-ups that touch a handful of rows; nil where the database is not SQLite
	points *sql.DB     // the same, and those of several statements
	ready  *statements // on points
	bulk   *sql.DB     // lists and large documents

	snapshot *sql.TxOptions
	seal     cursorSeal
	cache    versionCache
	named    workflowCache

	stop    context.CancelFunc // ends the sweeper
	sweeper sync.WaitGroup
	awake   chan struct{} // begins a round of the sweeper
	close   sync.Once
	closed  error
}

// Open opens the database at cfg.Path and brings its schema up to date, after copying a database that is not empty to
// "<path>.<time>-v<schema>.bak". It refuses, and says why, when the file is damaged or not a database, and when its schema was
// made by a newer Keyfire. ctx bounds the opening only. Two servers on one file would interrupt each other's runs: see Lock.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	s := &Store{cfg: cfg, awake: make(chan struct{}, 1)}
	open := openSQLite
	if cfg.URL != "" {
		open = openPostgres
	}
	db, err := open(ctx, &s.cfg)
	if err != nil {
		return nil, fmt.Errorf("open store %s: %w", cfg.name(), err)
	}
	s.quick, s.points, s.ready, s.bulk, s.snapshot = db.quick, db.points, newStatements(db.points), db.bulk, db.snapshot
	s.cache.init(maxCachedVersions, maxCachedBytes)
	s.writer = startWriter(&s.cfg, db.write, db.connect)
	if err = s.refuseLeft(ctx); err == nil {
		s.seal, err = s.loadCursorSeal(ctx)
	}
	if err != nil {
		s.stop = func() {}
		return nil, errors.Join(fmt.Errorf("open store %s: %w", cfg.name(), err), s.Close())
	}

	ctx, s.stop = context.WithCancel(context.WithoutCancel(ctx))
	if cfg.SweepEvery > 0 {
		s.sweeper.Go(func() { s.sweep(ctx) })
	}
	if cfg.URL != "" {
		s.sweeper.Go(func() { s.beat(ctx) })
	}
	return s, nil
}

// database is an open database of either kind: connections to read with and the one that writes, nil while it is not open.
type database struct {
	write        session
	connect      func(context.Context) (session, error) // makes another one to write with
	quick        *litePool                              // nil where there is none
	points, bulk *sql.DB
	snapshot     *sql.TxOptions // of a transaction that reads one state of the database
}

func (d *database) Close() error {
	var errs []error
	for _, db := range []*sql.DB{d.bulk, d.points} {
		if db != nil {
			errs = append(errs, db.Close())
		}
	}
	if d.quick != nil {
		errs = append(errs, d.quick.close())
	}
	if d.write != nil {
		errs = append(errs, d.write.close())
	}
	return errors.Join(errs...)
}

// Close writes what is waiting, refuses what comes later, and closes the database. It may be called more than once.
func (s *Store) Close() error {
	s.close.Do(func() {
		s.stop()
		s.sweeper.Wait()
		s.writer.drain()
		// The writer's connection goes last: closing the last one moves what is in the WAL to the database file.
		s.closed = errors.Join(s.ready.close(), s.points.Close(), s.bulk.Close())
		if s.quick != nil {
			s.closed = errors.Join(s.closed, s.quick.close())
		}
		s.closed = errors.Join(s.closed, s.writer.session.close())
		if s.closed != nil {
			s.closed = fmt.Errorf("close store: %w", s.closed)
		}
	})
	return s.closed
}

// Ping reports whether the store can read and, as far as is known, write. After a failed commit it makes the store try again, so
// that a server that was taken out of service for it comes back by itself.
func (s *Store) Ping(ctx context.Context) error {
	var one int
	if err := s.row(ctx, sqlPing).Scan(&one); err != nil {
		return unavailable("ping", err)
	}
	if s.writer.healthy() {
		return nil
	}
	return s.write(ctx, &change{name: "ping", lane: control}, func(t *tx) error { return t.put(sqlTouchSetting, settingPing) })
}

const (
	sqlPing = `select 1`
	// sqlTouchSetting writes something of no meaning.
	sqlTouchSetting = `insert into settings (name, value) values ($1, '') on conflict (name) do update set value = excluded.value`
	settingPing     = "ping"
)

// write hands a change to the writer and waits for its commit.
func (s *Store) write(ctx context.Context, c *change, apply func(*tx) error) error {
	c.apply = apply
	return s.writer.do(ctx, c)
}

// statements prepares each SQL text once on a database or connection and keeps it. Only constants are passed, so the map is
// bounded.
type statements struct {
	on preparer
	mu sync.RWMutex
	by map[string]*sql.Stmt
}

// preparer is a *sql.DB or a *sql.Conn.
type preparer interface {
	PrepareContext(ctx context.Context, query string) (*sql.Stmt, error)
}

func newStatements(on preparer) *statements {
	return &statements{on: on, by: make(map[string]*sql.Stmt)}
}

func (s *statements) get(ctx context.Context, query string) (*sql.Stmt, error) {
	s.mu.RLock()
	stmt := s.by[query]
	s.mu.RUnlock()
	if stmt != nil {
		return stmt, nil
	}
	// Not under the lock: this may wait for a connection, which may be in the hands of a transaction that needs another statement to get done.
	stmt, err := s.on.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if first := s.by[query]; first != nil {
		return first, stmt.Close() // somebody else was faster
	}
	s.by[query] = stmt
	return stmt, nil
}

func (s *statements) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, stmt := range s.by {
		errs = append(errs, stmt.Close())
	}
	clear(s.by)
	return errors.Join(errs...)
}

// row runs a look-up that touches a handful of rows. It ignores the end of ctx once it has begun: watching a context costs the
// driver a goroutine and, when it ends, the connection, and the look-up is over sooner than either.
func (s *Store) row(ctx context.Context, query string, args ...any) row {
	if ctx.Err() != nil {
		return row{err: ended(ctx)}
	}
	if s.quick != nil {
		return s.quick.row(query, args)
	}
	return row{row: &lookUp{s, ctx, query, args}}
}

// listing returns the context of a list or a large document, which ends with ctx and, as lookUp says, also by itself.
func (s *Store) listing(ctx context.Context) context.Context {
	if s.cfg.URL == "" {
		return ctx
	}
	ctx, done := context.WithTimeout(ctx, listTimeout)
	context.AfterFunc(ctx, done) // it ends with ctx, which is not kept for long
	return ctx
}

// listTimeout is how long a database may take for what takes a second.
const listTimeout = 15 * time.Second

// row is a row of whichever driver, or an error from before the query.
type row struct {
	row scanner
	err error
}

func (r row) Scan(dest ...any) error {
	if r.err != nil {
		return r.err
	}
	return r.row.Scan(dest...)
}

// scanner is a row to read columns from: *sql.Rows, *sql.Row or row.
type scanner interface{ Scan(dest ...any) error }

// rows are rows of whichever driver, as *sql.Rows are.
type rows interface {
	scanner
	Next() bool
	Err() error
	Close() error
}

// found turns the outcome of a look-up into the error its caller is told: CodeNotFound with the given sentence when there was no
// row, CodeStoreUnavailable when the database failed.
func found(err error, what string) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, sql.ErrNoRows), notText(err):
		return core.Errorf(core.CodeNotFound, "there is no such %s", what)
	}
	return unavailable("read "+what, err)
}

// ended is the error for a context that has ended: errors.Is finds both that it has, and its cause.
func ended(ctx context.Context) error {
	if cause := context.Cause(ctx); !errors.Is(cause, ctx.Err()) {
		return fmt.Errorf("%w: %w", ctx.Err(), cause)
	}
	return ctx.Err()
}

// unavailable is the error for a database that could not do what it was asked, or not in time. A caller that went away is none of its doing and
// passes as it is; so does an error that is classified already.
func unavailable(doing string, err error) error {
	var classified *core.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &classified):
		return err
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("%s: %w", doing, err)
	}
	return &core.Error{
		Code:       core.CodeStoreUnavailable,
		Message:    "the server cannot reach its data right now; try again",
		RetryAfter: time.Second,
		Err:        fmt.Errorf("%s: %w", doing, withoutSecrets(err)),
	}
}

// micros is how times are stored. The zero time is 0.
func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

func fromMicros(us int64) time.Time {
	if us == 0 {
		return time.Time{}
	}
	return time.UnixMicro(us).UTC()
}

// encode returns the JSON of v as it is stored. Unlike json.Marshal it leaves documents within v as they were sent, where
// that would escape what HTML might misread.
func encode(v any) (string, error) {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return "", err
	}
	return strings.TrimSuffix(b.String(), "\n"), nil
}
