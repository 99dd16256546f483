package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/keyfire/keyfire/core"
)

// writer is the one goroutine that changes the database. While one commit is being synced, the changes that arrive wait
// together and share the next one.
type writer struct {
	cfg     *Config
	queue   *queue
	stopped chan struct{}

	// Owned by the goroutine, and by close once it has ended.
	session *session
	reserve *reserve
	suspect error     // the connection failed; it is replaced and proved before the next change
	retryAt time.Time // not before this time
	damaged error     // the database is damaged; nothing is written any more

	ok atomic.Bool // the last attempt to write something succeeded
}

// startWriter starts the goroutine. drain ends it.
func startWriter(ctx context.Context, cfg *Config, db *sql.DB) (*writer, error) {
	w := &writer{
		cfg:     cfg,
		queue:   newQueue(cfg.MaxQueue, cfg.MaxQueueBytes),
		stopped: make(chan struct{}),
	}
	var err error
	if w.session, err = newSession(ctx, db); err != nil {
		return nil, err
	}
	w.reserve = newReserve(cfg)
	w.ok.Store(true)
	go w.run()
	return w, nil
}

// session is the connection that writes, with what was prepared on it.
type session struct {
	db    *sql.DB
	conn  *sql.Conn // the only one of db: what was prepared on it runs in the transaction that is open on it
	stmts *statements
}

func newSession(ctx context.Context, db *sql.DB) (*session, error) {
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	return &session{db, conn, newStatements(conn)}, nil
}

// close closes the connection and its database. Statements go first: with one left open SQLite would keep the file open, and its
// WAL with it.
func (s *session) close() error { return errors.Join(s.stmts.close(), s.conn.Close(), s.db.Close()) }

// drain refuses new changes, writes those that wait, and ends the goroutine.
func (w *writer) drain() {
	w.queue.close()
	<-w.stopped
}

func (w *writer) healthy() bool { return w.ok.Load() }

// do queues c and waits for its outcome.
func (w *writer) do(ctx context.Context, c *change) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%s: not written: %w", c.name, ended(ctx))
	}
	c.done = make(chan error, 1)
	if err := w.queue.put(c); err != nil {
		return err
	}
	select {
	case err := <-c.done:
		return err
	case <-ctx.Done():
		if c.abandon() {
			return fmt.Errorf("%s: not written: %w", c.name, ended(ctx))
		}
		return <-c.done
	}
}

func (w *writer) run() {
	defer close(w.stopped)
	var taken, batch []*change
	for {
		taken = w.queue.take(taken[:0], w.cfg.MaxBatch, w.cfg.MaxBatchBytes)
		if len(taken) == 0 {
			return
		}
		batch = batch[:0]
		for _, c := range taken {
			if c.claim() {
				batch = append(batch, c)
			}
		}
		if len(batch) > 0 {
			w.commit(batch)
		}
		clear(taken)
		clear(batch)
	}
}

// commit applies a batch and answers every change in it.
func (w *writer) commit(batch []*change) {
	if err := w.ready(); err != nil {
		w.refuse(batch, err)
		return
	}
	if !w.reserve.whole(w.cfg.Now()) {
		// What is left of the disk belongs to essential changes.
		batch = slices.DeleteFunc(batch, func(c *change) bool {
			if !c.essential {
				c.done <- unavailable(c.name, errDiskFull)
			}
			return !c.essential
		})
		if len(batch) == 0 {
			return
		}
	}
	answers, err := w.transact(batch)
	if err == nil {
		for i, c := range batch {
			c.done <- answers[i]
		}
		return
	}
	switch kind := faultOf(err); {
	case kind == faultIO || kind == faultDamage || kind == faultBusy:
		w.settle(err)
		w.refuse(batch, err)
	case len(batch) > 1:
		// Some change in the batch cannot be written. Which one shows when each is tried alone, and the others do not suffer.
		for _, c := range batch {
			w.commit([]*change{c})
		}
	case kind == faultFull && batch[0].essential && w.reserve.release(w.cfg.Now()):
		w.ok.Store(false)
		w.cfg.Logger.Warn("disk full: an essential change uses the space set aside for it", slog.String("path", w.cfg.Path), slog.String("change", batch[0].name))
		w.commit(batch)
	case kind == faultBug:
		batch[0].done <- fmt.Errorf("%s: %w", batch[0].name, err)
	default:
		w.refuse(batch, err)
	}
}

var errDiskFull = errors.New("the disk is full; only essential changes are written until there is space again")

// refuse answers a batch that was not written.
func (w *writer) refuse(batch []*change, err error) {
	w.ok.Store(false)
	for _, c := range batch {
		c.done <- unavailable(c.name, err)
	}
}

// transact applies batch in one transaction. A refused change does not end it, because it wrote nothing. When the
// transaction cannot be completed it is rolled back and the error returned: then no answer counts, not even a refusal, since it
// may have been decided by a neighbour's change that never happened.
func (w *writer) transact(batch []*change) ([]error, error) {
	ctx := context.Background()
	sqlTx, err := w.session.conn.BeginTx(ctx, nil)
	if err != nil {
		return nil, fmt.Errorf("begin: %w", err)
	}
	t := &tx{stmts: w.session.stmts}
	answers := make([]error, len(batch))
	for i, c := range batch {
		wrote := t.writes
		err := c.apply(t)
		var refusal *core.Error
		if errors.As(err, &refusal) && t.writes == wrote {
			answers[i] = err
			continue
		}
		if err != nil {
			// The driver may have rolled back already; then this one reports that, which is not news.
			_ = sqlTx.Rollback()
			return nil, err
		}
	}
	if err := sqlTx.Commit(); err != nil {
		return nil, fmt.Errorf("commit: %w", err)
	}
	if t.writes > 0 && !w.reserve.used {
		w.ok.Store(true)
	}
	return answers, nil
}

// settle decides what a failed transaction means for the ones to come, before anyone is told that it failed. After a failed write
// or sync nobody knows what reached the disk: SQLite has forgotten the transaction, but its frames may lie in the WAL as if
// committed, and a crash would bring back what was refused. So a new connection at once commits something else over them.
func (w *writer) settle(err error) {
	switch faultOf(err) {
	case faultIO:
		w.suspect = err
		// When this does not succeed, the next change tries again.
		_ = w.ready()
	case faultDamage:
		w.damaged = err
		w.cfg.Logger.Error("the database is damaged and not written any more: restore it from a backup", slog.String("path", w.cfg.Path), slog.Any("error", err))
	default: // the database is as it was
	}
}

// ready replaces a connection that failed and proves the new one by a commit. It returns why nothing can be written, if so.
func (w *writer) ready() error {
	switch {
	case w.damaged != nil:
		return w.damaged
	case w.suspect == nil:
		return nil
	case w.cfg.Now().Before(w.retryAt):
		return w.suspect
	}
	w.retryAt = w.cfg.Now().Add(retryEvery)
	ctx, cancel := context.WithTimeout(context.Background(), retryTimeout)
	defer cancel()
	if err := w.reconnect(ctx); err != nil {
		if faultOf(err) == faultDamage {
			w.settle(err)
		}
		return fmt.Errorf("after %w: %w", w.suspect, err)
	}
	w.cfg.Logger.Warn("the database was reopened after an error", slog.String("path", w.cfg.Path), slog.Any("error", w.suspect))
	w.suspect = nil
	return nil
}

// How often, and for how long, the writer tries to get a failed database back.
const (
	retryEvery   = time.Second
	retryTimeout = 10 * time.Second
)

func (w *writer) reconnect(ctx context.Context) error {
	db, err := openWriter(ctx, w.cfg)
	if err != nil {
		return fmt.Errorf("reopen: %w", err)
	}
	proved, err := newSession(ctx, db)
	if err != nil {
		return fmt.Errorf("reconnect: %w", errors.Join(err, db.Close()))
	}
	if _, err := proved.conn.ExecContext(ctx, sqlProbe, micros(w.cfg.Now())); err != nil {
		return fmt.Errorf("probe: %w", errors.Join(err, proved.close()))
	}
	failed := w.session
	w.session = proved
	// What closing the failed connection reports was known before.
	_ = failed.close()
	return nil
}

// sqlProbe writes something of no meaning, to see whether it can be committed.
const sqlProbe = `insert into settings (name, value) values ('probe', $1) on conflict (name) do update set value = excluded.value`

// tx is the transaction of a batch, as an operation in it sees it. Its statements are not bound to the context of any caller: one
// caller's hanging up must not undo what its neighbours in the batch have done.
type tx struct {
	stmts  *statements
	writes int   // statements that wrote
	seq    int64 // of the last audit event; 0 is not read yet
}

// exec runs a statement that writes and returns how many rows it changed.
func (t *tx) exec(query string, args ...any) (int64, error) {
	ctx := context.Background()
	s, err := t.stmts.get(ctx, query)
	if err != nil {
		return 0, err
	}
	res, err := s.ExecContext(ctx, args...)
	if err != nil {
		return 0, err
	}
	n, err := res.RowsAffected()
	if n > 0 {
		t.writes++
	}
	return n, err
}

// row runs a query for one row.
func (t *tx) row(query string, args ...any) row {
	ctx := context.Background()
	s, err := t.stmts.get(ctx, query)
	if err != nil {
		return row{err: err}
	}
	return row{row: s.QueryRowContext(ctx, args...)}
}

// query runs a query for several rows, which the caller closes.
func (t *tx) query(query string, args ...any) (*sql.Rows, error) {
	ctx := context.Background()
	s, err := t.stmts.get(ctx, query)
	if err != nil {
		return nil, err
	}
	return s.QueryContext(ctx, args...)
}
