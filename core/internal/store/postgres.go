package store

import (
	"context"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pressly/goose/v3"

	"github.com/keyfire/keyfire/core"
)

// This file is what the store does differently because its database is PostgreSQL. The SQL itself is the same everywhere.
//
// Every transaction that writes takes one lock first and holds it to its end, so the transactions of all servers happen one after the
// other, as those of one server do. What was reasoned about the one writer of SQLite holds for all of them together: a counter is exact, an
// audit number is the next one, a look that is followed by a write saw the last state. It costs that servers wait for each other's
// commits, each of which serves all that waited on its server.

const (
	// lockClass is the first half of the advisory locks; the second is the schema, so that two schemas of one database do not meet.
	lockClass = 0x4b66_0000
	lockWrite = lockClass + 1 // held by the transaction that writes
	lockServe = lockClass + 2 // held by sessions: shared by servers that have a queue in common, or by one that is alone
)

const (
	sqlPGSession = `select pg_backend_pid()`
	// sqlPGRoom is how many sessions more there can be. Limits of the user or the database may be lower.
	sqlPGRoom = `current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
		- (select count(*)::int from pg_stat_activity where datid is not null and usesysid is not null)`
	sqlPGSchema = `select oid::bigint::int from pg_namespace where nspname = current_schema()`
	sqlPGBegin  = `begin isolation level read committed`
	sqlPGLock   = `select pg_advisory_xact_lock($1::int, $2::int)`
	// sqlPGMark says that the server lives, and names the transaction, so that its outcome can be asked for later. It answers with the database's time,
	// which is later than that of every transaction before, for it is read under the lock.
	sqlPGMark = `insert into servers (id, process, started_at, seen_at, batch) values ($1, $2, $3, ` + sqlPGNow + `, $4)
		on conflict (id) do update set seen_at = excluded.seen_at, batch = excluded.batch returning seen_at`
	sqlPGNow    = `(extract(epoch from clock_timestamp()) * 1000000)::bigint`
	sqlPGClock  = `select ` + sqlPGNow
	sqlPGMarked = `select batch from servers where id = $1`
	sqlPGOthers = `select id, process, ` + sqlPGNow + ` - seen_at from servers where id <> $1 order by seen_at desc limit 1`

	sqlPGServeAlone  = `select pg_try_advisory_lock($1::int, $2::int)`
	sqlPGServeShared = `select pg_try_advisory_lock_shared($1::int, $2::int)`
)

// Bounds of what the database may keep us waiting for. A server that stops in the middle of a transaction, by a debugger or a hypervisor, holds
// everyone up until the database ends it.
const (
	pgStatementTimeout = 6 * time.Second
	pgIdleTimeout      = 3 * time.Second
	pgCallTimeout      = pgStatementTimeout + 2*time.Second // for a database that does not even say that it ended us
)

// Redact returns a database's or queue's URL without the password, for messages and `config print`. What cannot be parsed is not shown at all.
func Redact(text string) string {
	if u, err := ParseURL(text); err == nil && u.Scheme != "" {
		q := u.Query()
		for _, secret := range []string{"password", "sslpassword", "passfile"} {
			if q.Has(secret) {
				q.Set(secret, "xxxxx")
			}
		}
		if u.RawQuery != "" {
			u.RawQuery = q.Encode()
		}
		return u.Redacted()
	}
	return "(an address that cannot be parsed)"
}

// ErrUnescaped is what ParseURL says of an address that has an @ behind its hosts. A password with one of /?# that is not escaped makes it so: what is taken for the host is
// a part of the password then, and whatever tries or shows that host gives it away.
var ErrUnescaped = errors.New("an @ comes after the host; in a password write @ / ? # and , as %40 %2F %3F %23 and %2C")

// ParseURL is url.Parse for addresses with several hosts too, each with a port or without, as libpq takes them. The list is the URL's Host.
func ParseURL(text string) (*url.URL, error) {
	scheme, rest, _ := strings.Cut(text, "://")
	end := strings.IndexAny(rest+"/", "/?#")
	if strings.Contains(rest[end:], "@") {
		return nil, ErrUnescaped
	}
	u, err := url.Parse(text)
	if err == nil {
		return u, nil
	}
	begin := strings.LastIndex(rest[:end], "@") + 1
	hosts := rest[begin:end]
	for host := range strings.SplitSeq(hosts, ",") {
		if _, bad := url.Parse(scheme + "://" + host); bad != nil {
			return nil, err
		}
	}
	if u, err = url.Parse(scheme + "://" + rest[:begin] + rest[end:]); err == nil {
		u.Host = hosts
	}
	return u, err
}

// postgres makes connections to one database for one server.
type postgres struct {
	cfg     *Config
	base    *pgx.ConnConfig
	several bool  // there are several addresses, of which one is the primary
	reads   bool  // nothing is written
	standby bool  // and a standby is recent enough
	schema  int32 // second half of the locks
	process string
	started time.Time

	// Only the writer uses these.
	batch  int64 // number of the last transaction begun
	marked int64 // when the last one was that committed, in microseconds of the database's clock; 0 is none
	steady int64 // since when there was never a gap of watchGap between two of them
}

func openPostgres(ctx context.Context, cfg *Config) (_ *database, err error) {
	p, err := newPostgres(cfg)
	if err != nil {
		return nil, err
	}
	d := &database{
		connect: func(ctx context.Context) (session, error) { return p.connect(ctx) },
		// PostgreSQL's default sees what others commit between two statements.
		snapshot: &sql.TxOptions{ReadOnly: true, Isolation: sql.LevelRepeatableRead},
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Close())
		}
	}()
	d.bulk = p.pool(bulkReaders)
	if err := p.check(ctx, d.bulk); err != nil {
		return nil, err
	}
	if err := p.migrate(ctx, d.bulk); err != nil {
		return nil, err
	}
	// The place of a server that was just killed is free once the database has noticed, which takes a moment.
	for wait := 20 * time.Millisecond; ; wait *= 2 {
		var taken *takenError
		var write *pgSession
		if write, err = p.connect(ctx); err == nil {
			d.write = write
			break
		}
		if !errors.As(err, &taken) || wait > time.Second {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, ended(ctx)
		case <-time.After(wait):
		}
	}
	d.points = p.pool(cfg.Readers)
	return d, withoutSecrets(d.points.PingContext(ctx))
}

func newPostgres(cfg *Config) (*postgres, error) {
	if _, err := ParseURL(cfg.URL); errors.Is(err, ErrUnescaped) {
		return nil, err
	}
	base, err := pgx.ParseConfig(cfg.URL)
	if err != nil {
		return nil, fmt.Errorf("not an address of PostgreSQL, such as postgres://keyfire@db.example.com/keyfire: %w", withoutSecrets(err))
	}
	addresses := map[string]bool{net.JoinHostPort(base.Host, strconv.Itoa(int(base.Port))): true}
	for _, f := range base.Fallbacks { // the same one without TLS, too
		addresses[net.JoinHostPort(f.Host, strconv.Itoa(int(f.Port)))] = true
	}
	if base.ConnectTimeout == 0 {
		base.ConnectTimeout = 5 * time.Second
		if len(addresses) > 1 {
			base.ConnectTimeout = 2 * time.Second // whoever waits, waits for those before it as well
		}
	}
	cfg.reconnect = time.Duration(len(addresses))*base.ConnectTimeout + time.Second
	if cfg.oneTry = lookUpTry; len(addresses) > 1 {
		cfg.oneTry = max(lookUpTry, cfg.reconnect) // or the last address would never be tried
	}
	set := func(name, value string) {
		if _, ok := base.RuntimeParams[name]; !ok {
			base.RuntimeParams[name] = value
		}
	}
	set("application_name", "keyfire")
	base.RuntimeParams["client_encoding"] = "UTF8"
	base.RuntimeParams["standard_conforming_strings"] = "on"
	if cfg.Server == "" {
		id := make([]byte, 16)
		if _, err := io.ReadFull(cfg.Random, id); err != nil {
			return nil, fmt.Errorf("make an id for this server: %w", err)
		}
		cfg.Server = core.PrefixServer + hex.EncodeToString(id)
	}
	host, _ := os.Hostname() // only people read it
	return &postgres{cfg: cfg, base: base, several: len(addresses) > 1, process: host + ":" + strconv.Itoa(os.Getpid()), started: cfg.Now()}, nil
}

// connect opens the session that writes. Whoever has it serves: it holds the lock that keeps servers apart which do not know of each other.
func (p *postgres) connect(ctx context.Context) (*pgSession, error) {
	s, err := p.session(ctx)
	if err != nil {
		return nil, err
	}
	ask := sqlPGServeAlone
	if p.cfg.Shared {
		ask = sqlPGServeShared
	}
	var got bool
	if err = s.conn.QueryRow(ctx, ask, lockServe, p.schema).Scan(&got); err == nil && !got {
		err = p.taken(ctx, s.conn)
	}
	if err != nil {
		return nil, errors.Join(withoutSecrets(err), s.close())
	}
	return s, nil
}

// session opens a session without a claim to serve.
func (p *postgres) session(ctx context.Context) (*pgSession, error) {
	conn, err := pgx.ConnectConfig(ctx, p.config(map[string]string{
		"statement_timeout":                   strconv.FormatInt(pgStatementTimeout.Milliseconds(), 10),
		"idle_in_transaction_session_timeout": strconv.FormatInt(pgIdleTimeout.Milliseconds(), 10),
	}))
	if err != nil {
		return nil, withoutSecrets(err)
	}
	return &pgSession{pg: p, conn: conn}, nil
}

// takenError is why a server may not use a database that others use.
type takenError struct{ text string }

func (e *takenError) Error() string { return e.text }

func (p *postgres) taken(ctx context.Context, conn *pgx.Conn) error {
	var (
		id, process string
		ago         int64
		who         = "another server"
	)
	if p.cfg.Tool {
		who = "a server"
	}
	// Who it is helps; that it cannot be told changes nothing.
	if conn.QueryRow(ctx, sqlPGOthers, p.cfg.Server).Scan(&id, &process, &ago) == nil {
		who += fmt.Sprintf(" (%s, process %s, last seen %s ago)", id, process, (time.Duration(ago) * time.Microsecond).Round(time.Millisecond))
	}
	if p.cfg.Tool {
		return &takenError{who + " uses this database; stop all servers on it first"}
	}
	if p.cfg.Shared {
		return &takenError{who + " uses this database alone, without a queue; stop it, or start it with the same --queue as this one"}
	}
	return &takenError{who + " uses this database, and without a queue in common two servers would not know of each other's runs; " +
		"start all of them with the same --queue nats://..., or stop the other one"}
}

// migrate brings the schema up to date. That needs the database for itself: a server that runs would write rows of a schema that is gone.
func (p *postgres) migrate(ctx context.Context, db *sql.DB) error {
	files := migrations()
	need, err := needsMigration(ctx, goose.DialectPostgres, db, files)
	if err != nil || !need {
		return err
	}
	s, err := p.session(ctx)
	if err != nil {
		return err
	}
	defer s.close() //nolint:errcheck // the lock goes with it
	for end := time.Now().Add(migrateWait); ; {
		var got bool
		if err := s.conn.QueryRow(ctx, sqlPGServeAlone, lockServe, p.schema).Scan(&got); err != nil {
			return withoutSecrets(err)
		}
		if got {
			break
		}
		// Servers that start together wait here for the one that migrates.
		if need, err := needsMigration(ctx, goose.DialectPostgres, db, files); err != nil || !need {
			return err
		}
		if time.Now().After(end) {
			return &takenError{"the schema must be brought up to date, which no server may do while another one uses the database; stop all of them first"}
		}
		select {
		case <-ctx.Done():
			return ended(ctx)
		case <-time.After(100 * time.Millisecond):
		}
	}
	return migrate(ctx, goose.DialectPostgres, db, files, func(schema int64) error { return p.backup(ctx, db, schema) })
}

// migrateWait is how long a server that finds an old schema waits for the others to go, or for one of them to migrate it.
const migrateWait = 20 * time.Second

// pgSession is the connection that writes.
type pgSession struct {
	pg    *postgres
	conn  *pgx.Conn
	turns turns
}

// doubtError is a commit whose answer did not arrive.
type doubtError struct {
	batch int64
	err   error
}

func (e *doubtError) Error() string { return e.err.Error() }
func (e *doubtError) Unwrap() error { return e.err }

// inDoubt reports whether err leaves open whether a commit took place.
func inDoubt(err error) bool {
	var doubt *doubtError
	return errors.As(err, &doubt)
}

// begin sends nothing yet: the beginning travels with the first statement.
func (s *pgSession) begin() (transaction, error) {
	s.pg.batch++
	t := &pgTx{s: s, ctx: context.Background()}
	t.queued.Queue(sqlPGBegin)
	t.queued.Queue(sqlPGLock, lockWrite, s.pg.schema)
	t.queued.Queue(sqlPGMark, s.pg.cfg.Server, s.pg.process, micros(s.pg.started), s.pg.batch)
	t.mark = t.queued.Len()
	return t, nil
}

func (s *pgSession) probe(context.Context, time.Time) error {
	t, err := s.begin()
	if err != nil {
		return err
	}
	if err := t.commit(); err != nil {
		t.rollback()
		return err
	}
	return nil
}

// committed asks which transaction of this server was the last. It takes the lock that the one in doubt held, so that has ended by
// then, one way or the other.
func (s *pgSession) committed(ctx context.Context, err error) (bool, error) {
	var doubt *doubtError
	if !errors.As(err, &doubt) {
		return false, err
	}
	t := &pgTx{s: s, ctx: ctx}
	t.queued.Queue(sqlPGBegin)
	t.queued.Queue(sqlPGLock, lockWrite, s.pg.schema)
	defer t.rollback()
	var last int64
	if err := t.row(sqlPGMarked, []any{s.pg.cfg.Server}).Scan(&last); err != nil && !errors.Is(err, sql.ErrNoRows) {
		return false, err
	}
	return last == doubt.batch, nil
}

// Close is close, as an io.Closer.
func (s *pgSession) Close() error { return s.close() }

func (s *pgSession) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	err := s.conn.Close(ctx)
	if s.conn.IsClosed() {
		return nil // a connection that was lost has nothing to say goodbye to
	}
	return err
}

// postgresCatalog is how PostgreSQL describes itself.
var postgresCatalog = catalog{
	tables: `select tablename::text from pg_tables where schemaname = current_schema() order by tablename`,
	columns: `select column_name::text, data_type::text from information_schema.columns where table_schema = current_schema() and table_name = $1
		order by ordinal_position`,
	refers: `select distinct r.relname::text from pg_constraint c join pg_class r on r.oid = c.confrelid join pg_class t on t.oid = c.conrelid
		join pg_namespace n on n.oid = t.relnamespace where c.contype = 'f' and n.nspname = current_schema() and t.relname = $1`,
}

// place returns the database as a whole.
func (p *postgres) place(db *sql.DB) *place {
	return &place{
		cfg: *p.cfg, db: db, catalog: postgresCatalog, opts: &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true},
		dialect: goose.DialectPostgres,
	}
}

// alone keeps servers away from the database until what it returns is closed, and refuses when one is there.
func (p *postgres) alone(ctx context.Context) (io.Closer, error) {
	s, err := p.session(ctx)
	if err != nil {
		return nil, err
	}
	// The place of whoever has just ended is free once the database has noticed, which takes a moment.
	for wait := 20 * time.Millisecond; ; wait *= 2 {
		var got bool
		if err = s.conn.QueryRow(ctx, sqlPGServeAlone, lockServe, p.schema).Scan(&got); err == nil && got {
			return s, nil
		}
		if err == nil && wait > time.Second {
			err = &takenError{"a server uses this database; stop all servers on it first"}
		}
		if err != nil {
			return nil, errors.Join(withoutSecrets(err), s.close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(ended(ctx), s.close())
		case <-time.After(wait):
		}
	}
}

// backup dumps the database to a file before its schema is changed.
func (p *postgres) backup(ctx context.Context, db *sql.DB, schema int64) error {
	to := backupName(p.cfg, schema)
	if err := p.place(db).backup(ctx, to, nil); err != nil {
		return fmt.Errorf("back up before the migration to %s: %w", to, err)
	}
	return nil
}
