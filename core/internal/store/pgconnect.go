package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
)

// atBeginning are the settings that are sent as a session begins. All poolers take the first three; for most others, and some for options, they refuse the session.
var atBeginning = []string{"application_name", "client_encoding", "standard_conforming_strings", "options"}

// errStandby is what a server is told that comes to a database in recovery.
var errStandby = errors.New("this is a standby that takes no changes; give the address of the primary, or all addresses, of which the primary is taken")

// config returns how to begin a session with the given settings beside those of the URL. Of several addresses it takes the one of the primary, whatever comes first: what a
// standby says of a key may be older than the answer that the key was revoked.
func (p *postgres) config(settings map[string]string) *pgx.ConnConfig {
	c := p.base.Copy()
	maps.Copy(c.RuntimeParams, settings)
	// Not for the URL to decide: it is what "committed" means.
	c.RuntimeParams["synchronous_commit"] = "on"
	later := make(map[string]string)
	for name, value := range c.RuntimeParams {
		if !slices.Contains(atBeginning, name) {
			later[name] = value
			delete(c.RuntimeParams, name)
		}
	}
	wanted := c.ValidateConnect // target_session_attrs
	c.ValidateConnect = func(ctx context.Context, conn *pgconn.PgConn) error {
		calls := []string{"pg_is_in_recovery()"}
		for _, name := range slices.Sorted(maps.Keys(later)) {
			n, err := conn.EscapeString(name)
			if err != nil {
				return err
			}
			v, err := conn.EscapeString(later[name])
			if err != nil {
				return err
			}
			calls = append(calls, "set_config('"+n+"', '"+v+"', false)")
		}
		answers, err := conn.Exec(ctx, "select "+strings.Join(calls, ", ")).ReadAll()
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("it takes the session, and does not answer in it within %s; a pooler does so that has too few sessions for all who ask", c.ConnectTimeout)
		case err != nil:
			return err
		case string(answers[0].Rows[0][0]) == "t" && !p.standby:
			return errStandby
		case wanted == nil:
			return nil
		}
		err = wanted(ctx, conn)
		if _, second := err.(*pgconn.NotPreferredError); err == nil || second { //nolint:errorlint // the driver looks for it like that
			return err
		}
		return fmt.Errorf("not what target_session_attrs asks for: %w", err)
	}
	return c
}

// pool returns connections to read with.
func (p *postgres) pool(n int) *sql.DB {
	db := stdlib.OpenDB(*p.config(map[string]string{"idle_in_transaction_session_timeout": "60000"}))
	db.SetMaxOpenConns(n)
	db.SetMaxIdleConns(n)
	return db
}

// apart refuses a pooler that has clients take turns with the sessions of the database. What one of them sets, prepares or locks would be another's then, and the lock that keeps servers
// apart would outlive its server. db must have room for two connections.
func apart(ctx context.Context, db *sql.DB) error {
	var conns [2]*sql.Conn
	for i := range conns {
		conn, err := db.Conn(ctx)
		if err != nil {
			return err
		}
		defer conn.Close() //nolint:errcheck // only asked
		conns[i] = conn
	}
	// A pooler hands out the session that was given back last, or one after the other: either two clients meet in one session, or one is sent from one to another.
	var pids [4]int
	for i, of := range []int{0, 1, 0, 0} {
		// Not prepared: the next statement may come to a session that does not know it.
		if err := conns[of].QueryRowContext(ctx, sqlPGSession, pgx.QueryExecModeSimpleProtocol).Scan(&pids[i]); err != nil {
			return err
		}
	}
	if pids[0] == pids[1] || pids[0] != pids[2] || pids[0] != pids[3] {
		return errors.New("a pooler is between that has clients share sessions, whose locks and settings Keyfire relies on; give the address of PostgreSQL itself, or have the pooler use pool_mode=session for this database")
	}
	return nil
}

// check refuses a database that cannot keep what the store promises.
func (p *postgres) check(ctx context.Context, db *sql.DB) error {
	var (
		version           int
		commit, fsync     string
		readOnly          bool
		schema            sql.NullInt32
		encoding, pageSum string
		room              int
	)
	err := apart(ctx, db)
	if err == nil {
		err = db.QueryRowContext(ctx, `select current_setting('server_version_num')::int, current_setting('synchronous_commit'), current_setting('fsync'),
			current_setting('transaction_read_only')::bool, (`+sqlPGSchema+`), current_setting('server_encoding'), current_setting('data_checksums'), `+sqlPGRoom).
			Scan(&version, &commit, &fsync, &readOnly, &schema, &encoding, &pageSum, &room)
	}
	var said *pgconn.PgError
	switch {
	case p.base.Password == "" && errors.As(err, &said) && said.Code == "28P01":
		return fmt.Errorf("%w; no password was found for it, which belongs into the password file (~/.pgpass, or where PGPASSFILE says)", withoutSecrets(err))
	case err != nil:
		return withoutSecrets(err)
	case version < 130000:
		return fmt.Errorf("PostgreSQL %d is too old: 13 is the oldest that serves", version/10000)
	case commit != "on" && commit != "remote_apply":
		return fmt.Errorf("synchronous_commit is %q: a commit must be on disk when it is answered, so it must be on", commit)
	case readOnly && !p.reads:
		return errors.New("default_transaction_read_only is on, here or for this user or database, so nothing can be written; switch it off, which some hosters do not before the disk has space again")
	case !schema.Valid:
		return errors.New("search_path names no schema that exists and that the user may use; create it, or name another one with search_path=... in the address")
	case encoding != "UTF8":
		return fmt.Errorf("the database has encoding %s and must have UTF8: create it with ENCODING 'UTF8' TEMPLATE template0", encoding)
	}
	p.schema = schema.Int32
	if fsync != "on" {
		p.cfg.Logger.Warn("PostgreSQL runs with fsync off: what is answered as accepted may be lost when its machine fails")
	}
	if pageSum != "on" {
		p.cfg.Logger.Info("PostgreSQL runs without data checksums: damage on its disk may go unnoticed (initdb --data-checksums, or pg_checksums)")
	}
	if want := p.cfg.Readers + 1; room < want { // those of bulkReaders there are
		p.cfg.Logger.Warn("PostgreSQL has too little room for the sessions of this server, which will answer 503 when it is busy; raise max_connections", "room", max(room, 0), "want", want)
	}
	return nil
}
