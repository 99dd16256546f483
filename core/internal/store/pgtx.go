package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/keyfire/keyfire/core"
)

// pgTx is a transaction on PostgreSQL. What needs no answer waits in queued and travels with the next statement that does, so that an
// admission costs one round trip and not five.
type pgTx struct {
	s      *pgSession
	ctx    context.Context //nolint:containedctx // the transaction's own, not that of a caller
	queued pgx.Batch
	sent   bool  // something reached the database
	mark   int   // which of the queued statements is sqlPGMark, counted from 1; 0 is none
	clock  int64 // what that answered, in microseconds
}

// maxQueued bounds what travels at once: both sides hold it in memory.
const maxQueued = 256

func (t *pgTx) put(query string, args []any) error {
	if err := storable(args); err != nil {
		return err
	}
	t.queued.Queue(query, args...)
	if t.queued.Len() < maxQueued {
		return nil
	}
	results, done, err := t.send(1)
	if err != nil {
		return err
	}
	_, err = results.Exec()
	return done(err)
}

func (t *pgTx) exec(query string, args []any) (int64, error) {
	if err := storable(args); err != nil {
		return 0, err
	}
	t.queued.Queue(query, args...)
	results, done, err := t.send(1)
	if err != nil {
		return 0, err
	}
	tag, err := results.Exec()
	return tag.RowsAffected(), done(err)
}

func (t *pgTx) row(query string, args []any) row {
	all, err := t.read(query, args)
	switch {
	case err != nil:
		return row{err: err}
	case !all.Next():
		return row{err: sql.ErrNoRows}
	}
	return row{row: all}
}

func (t *pgTx) query(query string, args []any) (rows, error) { return t.read(query, args) }

// read runs a query and takes all rows at once, so that the caller may run another statement while going through them, as SQLite lets it.
func (t *pgTx) read(query string, args []any) (*pgRows, error) {
	if !findable(args) {
		return &pgRows{at: -1}, nil // nothing that is kept can match; to ask would end the transaction, and what its neighbours have done in it
	}
	t.queued.Queue(query, args...)
	results, done, err := t.send(1)
	if err != nil {
		return nil, err
	}
	all, err := t.rows(results)
	return all, done(err)
}

// rows reads all rows of the next answer.
func (t *pgTx) rows(results pgx.BatchResults) (*pgRows, error) {
	from, err := results.Query()
	if err != nil {
		return nil, err
	}
	all := &pgRows{conn: t.s.conn, fields: from.FieldDescriptions(), at: -1}
	for from.Next() {
		values := from.RawValues()
		kept := make([][]byte, len(values))
		for i, v := range values {
			if v != nil {
				kept[i] = append([]byte{}, v...)
			}
		}
		all.values = append(all.values, kept)
	}
	from.Close()
	return all, from.Err()
}

// ahead sends the statements together with what is queued.
func (t *pgTx) ahead(first []*statement) ([]*answer, error) {
	answers := make([]*answer, len(first))
	for i, s := range first {
		if findable(s.args) { // otherwise the change itself finds out, without asking
			t.queued.Queue(s.query, s.args...)
			answers[i] = &answer{query: s.query}
		}
	}
	asked := 0
	for _, a := range answers {
		if a != nil {
			asked++
		}
	}
	if asked == 0 {
		return answers, nil
	}
	results, done, err := t.send(asked)
	if err != nil {
		return nil, err
	}
	for i, a := range answers {
		switch {
		case a == nil || err != nil:
		case first[i].rows:
			a.rows, err = t.rows(results)
		default:
			var tag pgconn.CommandTag
			tag, err = results.Exec()
			a.changed = tag.RowsAffected()
		}
	}
	return answers, done(err)
}

// send sends what is queued and reads the answers up to the last ones, of which that many are left to the caller, who then calls done with what
// became of them.
func (t *pgTx) send(last int) (pgx.BatchResults, func(error) error, error) {
	ctx, cancel := context.WithTimeout(t.ctx, pgCallTimeout)
	batch := t.queued
	t.queued, t.sent = pgx.Batch{}, true
	results := t.s.conn.SendBatch(ctx, &batch)
	done := func(err error) error {
		if closing := results.Close(); err == nil { // otherwise it says the same again
			err = closing
		}
		cancel()
		return t.s.lost(err)
	}
	mark := t.mark
	t.mark = 0
	for i := range batch.Len() - last {
		var err error
		if i+1 == mark {
			err = results.QueryRow().Scan(&t.clock)
		} else {
			_, err = results.Exec()
		}
		if err != nil {
			return nil, nil, done(err)
		}
	}
	return results, done, nil
}

// now is the database's clock for servers that share it: limits of a rate are for all of them together, and their own clocks may differ.
func (t *pgTx) now(own time.Time) (time.Time, error) {
	if !t.s.pg.cfg.Shared {
		return t.s.turns.now(own), nil
	}
	if err := t.begun(); err != nil {
		return own, err
	}
	return fromMicros(t.clock), nil
}

// begun sees to it that the transaction has begun and its time is known.
func (t *pgTx) begun() error {
	if t.clock != 0 {
		return nil
	}
	_, err := t.exec(sqlPing, nil)
	return err
}

// watched goes by the transactions of this server: all servers write at least every beatEvery, so when this one could not, neither could they.
func (t *pgTx) watched(d time.Duration) (bool, error) {
	if !t.s.pg.cfg.Shared {
		return true, nil
	}
	if err := t.begun(); err != nil {
		return false, err
	}
	p := t.s.pg
	return t.clock-p.marked <= watchGap.Microseconds() && t.clock-p.steady >= d.Microseconds(), nil
}

// heard notes that a transaction of that time has committed.
func (p *postgres) heard(at int64) {
	if at-p.marked > watchGap.Microseconds() {
		p.steady = at
	}
	p.marked = at
}

func (t *pgTx) commit() error {
	t.queued.Queue("commit")
	results, done, err := t.send(1)
	if err == nil {
		var tag pgconn.CommandTag
		tag, err = results.Exec()
		if err = done(err); err == nil && tag.String() != "COMMIT" {
			err = fmt.Errorf("the database answered the commit with %s", tag)
		}
	}
	if err == nil {
		t.s.pg.heard(t.clock)
	}
	var said *pgconn.PgError
	switch {
	case err == nil:
	case !errors.As(err, &said) || said.Severity != "ERROR":
		// It was sent, and what became of it was not heard.
		return &doubtError{t.s.pg.batch, err}
	default:
		t.rollback() // what was sent before it has failed; the lock would be held until the next one
	}
	return err
}

func (t *pgTx) rollback() {
	if !t.sent || t.s.conn.IsClosed() {
		return
	}
	ctx, cancel := context.WithTimeout(t.ctx, pgCallTimeout)
	defer cancel()
	if _, err := t.s.conn.Exec(ctx, "rollback"); err != nil {
		// A transaction of unknown state would swallow the next one.
		_ = t.s.close()
	}
}

// lost marks an error after which the connection is gone.
func (s *pgSession) lost(err error) error {
	if err == nil {
		return nil
	}
	if s.conn.IsClosed() {
		return fmt.Errorf("%w: %w", driver.ErrBadConn, err)
	}
	return err
}

// pgRows are rows that were read already.
type pgRows struct {
	conn   *pgx.Conn
	fields []pgconn.FieldDescription
	values [][][]byte
	at     int
}

func (r *pgRows) Next() bool {
	r.at++
	return r.at < len(r.values)
}

func (r *pgRows) Scan(dest ...any) error {
	values := r.values[r.at]
	if len(dest) != len(values) {
		return fmt.Errorf("%d columns are read into %d variables", len(values), len(dest))
	}
	for i, d := range dest {
		if err := r.conn.TypeMap().Scan(r.fields[i].DataTypeOID, r.fields[i].Format, values[i], d); err != nil {
			return fmt.Errorf("column %s: %w", r.fields[i].Name, err)
		}
	}
	return nil
}

func (r *pgRows) Err() error   { return nil }
func (r *pgRows) Close() error { return nil }

// storable refuses text that PostgreSQL cannot hold, for SQLite too: what that keeps must be able to move. JSON is never such text: it writes U+0000 as an escape, and
// is checked for UTF-8 when it comes in.
func storable(args []any) error {
	for _, arg := range args {
		text, ok := arg.(string)
		switch {
		case !ok:
		case strings.IndexByte(text, 0) >= 0:
			return core.Errorf(core.CodeInvalidRequest, "text with the character U+0000 cannot be kept; leave it out")
		case !utf8.ValidString(text):
			return core.Errorf(core.CodeInvalidRequest, "text that is not UTF-8 cannot be kept")
		}
	}
	return nil
}

// findable reports whether something that is kept can match the arguments.
func findable(args []any) bool { return storable(args) == nil }

// notText reports whether err says that an argument is no text that PostgreSQL could hold. What is looked for with one is not there.
func notText(err error) bool {
	var said *pgconn.PgError
	return errors.As(err, &said) && said.Code == "22021"
}

// notAllowed reports whether err says that the user lacks a right.
func notAllowed(err error) bool {
	var said *pgconn.PgError
	return errors.As(err, &said) && said.Code == "42501"
}

// postgresFault classifies an error of PostgreSQL by its class of SQLSTATE.
func postgresFault(err error) fault {
	var said *pgconn.PgError
	if errors.As(err, &said) {
		switch code := said.Code; {
		case strings.HasPrefix(code, "23"), strings.HasPrefix(code, "22"), strings.HasPrefix(code, "42"):
			return faultBug // a constraint, a value or a statement
		case code == "53100":
			return faultFull
		case code == "40001", code == "40P01", code == "55P03", code == "57014":
			return faultBusy // 57014 is a statement that was given up, by its timeout or by a person: each change alone would wait as long once more
		case code == "XX001", code == "XX002":
			return faultDamage
		case strings.HasPrefix(code, "08"), strings.HasPrefix(code, "57P"), strings.HasPrefix(code, "25P"), strings.HasPrefix(code, "25006"), strings.HasPrefix(code, "58"):
			return faultIO
		}
		return faultOther
	}
	var taken *takenError
	var network net.Error
	if errors.As(err, &taken) || errors.As(err, &network) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) || inDoubt(err) {
		return faultIO
	}
	return faultOther
}

// withoutSecrets makes an error of a connection fit for a log: those of the driver hold the user and the host, and never the password, but
// the one of a URL that cannot be parsed may hold all of it.
func withoutSecrets(err error) error {
	var parse *pgconn.ParseConfigError
	if errors.As(err, &parse) {
		// What is wrong with TLS, such as a file that is not there, holds nothing of the address. Of the other reasons that cannot be said.
		if strings.Contains(parse.Error(), ": failed to configure TLS (") {
			return fmt.Errorf("TLS cannot be used: %w", parse.Unwrap())
		}
		return errors.New("the address cannot be parsed")
	}
	var (
		connect *pgconn.ConnectError
		told    *connectError
	)
	if errors.As(err, &connect) && !errors.As(err, &told) {
		return &connectError{err}
	}
	return err
}

// pgTooMany is what PostgreSQL says when it has no session to give: too_many_connections.
const pgTooMany = "53300"

// connectError tells in one line why there is no connection. The driver tells of every try, of which the one before may have been the same without TLS.
type connectError struct{ err error }

func (e *connectError) Unwrap() error { return e.err }

func (e *connectError) Error() string {
	text := e.told(func(line string) bool { return !strings.Contains(line, "server refused TLS connection") })
	if text == "" || strings.HasSuffix(text, ":") { // where nothing but TLS will do, that is the reason
		text = e.told(func(string) bool { return true })
	}
	var said *pgconn.PgError
	switch {
	case !errors.As(e.err, &said):
	case strings.Contains(said.Message, "unsupported startup parameter"):
		text += "; write what options= sets as parameters of the address, such as work_mem=8MB, which a pooler takes"
	case said.Code == pgTooMany:
		text += "; a server takes as many sessions as its machine has processors, four at least, and up to four more: raise max_connections, or the limit of the user or database, to what all servers take"
	}
	return text
}

func (e *connectError) told(which func(line string) bool) string {
	var told []string
	for line := range strings.Lines(e.err.Error()) {
		line = strings.Replace(strings.TrimSpace(line), "ValidateConnect failed: ", "", 1)
		// No time was left to try it once more.
		at, late := strings.CutSuffix(line, "dial error: timeout: context deadline exceeded")
		late = late && slices.ContainsFunc(told, func(t string) bool { return strings.HasPrefix(t, at) })
		if !late && !slices.Contains(told, line) && which(line) {
			told = append(told, line)
		}
	}
	return strings.Replace(strings.Join(told, "; "), ":;", ":", 1)
}

// beatEvery is how often a server says that it lives when it has nothing else to write, and Silent how long one may be silent before the
// others take it for dead. A server that could write nothing for watchGap begins to watch them anew.
const (
	beatEvery = 2 * time.Second
	watchGap  = 6 * time.Second
	Silent    = 15 * time.Second
)

// beat says from time to time that this server lives. Every transaction does, so an empty one will do.
func (s *Store) beat(ctx context.Context) {
	tick := time.NewTicker(beatEvery)
	defer tick.Stop()
	var clock clock
	for {
		clock.compare(ctx, s)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := s.write(ctx, &change{name: "heartbeat", lane: control}, func(*tx) error { return nil })
		if err != nil && ctx.Err() == nil {
			s.cfg.Logger.Warn("this server cannot tell the others that it lives", slog.Any("error", err))
		}
	}
}
