package store

import (
	"context"
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
	session session
	connect func(context.Context) (session, error)
	reserve *reserve
	suspect error         // the connection failed; it is replaced and proved before the next change
	retryAt time.Time     // not before this time
	damaged error         // the database is damaged; nothing is written any more
	each    time.Duration // what a change takes to be applied, of late
	syncing time.Duration // what a commit takes, of late

	ok atomic.Bool // the last attempt to write something succeeded

	controlled atomic.Int64 // batches with changes of the control plane, each counted before anyone is told what became of it
}

// session is the connection that writes. Only the writer's goroutine uses it.
type session interface {
	// begin starts a transaction, in which no other writes, on this server or another.
	begin() (transaction, error)
	// probe commits something of no meaning, to see whether that works.
	probe(ctx context.Context, now time.Time) error
	// committed reports whether the commit that failed with err took place after all. Only an error in doubt is asked about, on
	// the session that took the place of the failed one.
	committed(ctx context.Context, err error) (bool, error)
	close() error
}

// transaction is what a session has begun. Its statements are not bound to the context of any caller: one caller's hanging up must
// not undo what its neighbours in the batch have done.
type transaction interface {
	exec(query string, args []any) (int64, error)
	// put is an exec whose count nobody needs. Its error may come later, from any call that follows, commit at the latest.
	put(query string, args []any) error
	row(query string, args []any) row
	query(query string, args []any) (rows, error)
	// now returns the time that all servers on the database agree on, which does not go back from one change to the next: own, which is this server's, where there is only one of them.
	now(own time.Time) (time.Time, error)
	// watched reports whether this server has seen for as long, without a gap, what the others on the database write, so that one that was silent meanwhile
	// has itself to blame, and not the database that was away or this server that stood still. A server that is alone has nobody to watch.
	watched(d time.Duration) (bool, error)
	commit() error
	// ahead runs the statements that changes begin with, as far as that saves something, and returns the answers of those that it ran.
	ahead(first []*statement) ([]*answer, error)
	// rollback ends what cannot be committed. What it fails with is not news: the transaction failed before.
	rollback()
}

// turnsApart is by how much changes may be asked for in another order than they are made in. What is further back is a clock that was set back.
const turnsApart = 10 * time.Second

// turns is the time of the last change of a server that is alone. Whoever asked earlier than it and has its turn later is judged as if it had asked then: a rate limit that has
// given a run for a later time would take it that this one comes before its bucket was as full as that.
type turns struct{ last time.Time }

func (t *turns) now(own time.Time) time.Time {
	if ahead := t.last.Sub(own); ahead <= 0 || ahead > turnsApart {
		t.last = own
	}
	return t.last
}

// startWriter starts the goroutine. drain ends it. connect makes a session in place of one that failed.
func startWriter(cfg *Config, s session, connect func(context.Context) (session, error)) *writer {
	w := &writer{
		cfg:     cfg,
		queue:   newQueue(cfg.MaxQueue, cfg.MaxQueueBytes),
		stopped: make(chan struct{}),
		session: s,
		connect: connect,
		reserve: newReserve(cfg),
	}
	w.ok.Store(true)
	go w.run()
	return w
}

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
	late := time.NewTimer(maxWaiting)
	defer late.Stop()
	select {
	case err := <-c.done:
		return err
	case <-ctx.Done():
		if c.abandon() {
			return fmt.Errorf("%s: not written: %w", c.name, ended(ctx))
		}
	case <-late.C:
		if c.abandon() {
			return unavailable(c.name, errTooLate)
		}
	}
	return <-c.done
}

// maxWaiting is how long a change waits for its turn. Those before it take milliseconds, or a database does not answer.
const maxWaiting = 15 * time.Second

var errTooLate = errors.New("not written: its turn did not come in time")

func (w *writer) run() {
	defer close(w.stopped)
	var taken, batch []*change
	for {
		taken = w.queue.take(taken[:0], w.room(), w.cfg.MaxBatchBytes)
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

// smallBatch is how many changes share a commit whatever that costs.
const smallBatch = 32

// room returns how many changes the next batch may have. Whoever comes waits for the batch under way and for its own, so a batch is as large as it takes to spend
// no more than two thirds of the time on syncing, and no larger: more would save little, and make a caller with one run wait for hundreds of another's. In a
// database over the network a batch saves round trips too, and is as large as it can be.
func (w *writer) room() int {
	if w.cfg.URL != "" || w.each <= 0 {
		return w.cfg.MaxBatch
	}
	return min(w.cfg.MaxBatch, max(smallBatch, int(w.syncing/(2*w.each))))
}

// took notes what a batch has cost, in the mean of the last few.
func (w *writer) took(changes int, applying, syncing time.Duration) {
	const weight = 8
	each := applying / time.Duration(changes)
	if w.each == 0 {
		w.each, w.syncing = each, syncing
	}
	w.each += (each - w.each) / weight
	w.syncing += (syncing - w.syncing) / weight
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
	if inDoubt(err) {
		err = w.resolve(err)
	}
	if slices.ContainsFunc(batch, func(c *change) bool { return c.lane == control }) {
		w.controlled.Add(1)
	}
	if err == nil {
		for i, c := range batch {
			c.done <- answers[i]
		}
		return
	}
	var refusal *core.Error
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
		w.cfg.Logger.Warn("disk full: an essential change uses the space set aside for it", slog.String("path", w.cfg.name()), slog.String("change", batch[0].name))
		w.commit(batch)
	case errors.As(err, &refusal):
		batch[0].done <- refusal // found out after something was written, and taken back
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
	db, err := w.session.begin()
	if err != nil {
		return nil, fmt.Errorf("begin: %w", err)
	}
	began := time.Now()
	t := &tx{db: db}
	answers := make([]error, len(batch))
	together := 0 // changes from here on whose first statements have run
	for i, c := range batch {
		if together == 0 {
			if together, err = t.runAhead(batch[i:]); err != nil {
				db.rollback()
				return nil, err
			}
		}
		together--
		wrote := t.writes
		err := t.apply(c)
		var refusal *core.Error
		if errors.As(err, &refusal) && t.writes == wrote {
			answers[i] = err
			continue
		}
		if err != nil {
			db.rollback()
			return nil, err
		}
	}
	applied := time.Now()
	if err := db.commit(); err != nil {
		return answers, fmt.Errorf("commit: %w", err)
	}
	w.took(len(batch), applied.Sub(began), time.Since(applied))
	if t.writes > 0 && !w.reserve.used {
		w.ok.Store(true)
	}
	return answers, nil
}

// resolve finds out what became of a commit whose answer was lost with the connection: nobody may be told that nothing was written when
// it was. It returns nil when the commit took place.
func (w *writer) resolve(doubt error) error {
	w.ok.Store(false)
	ctx, cancel := context.WithTimeout(context.Background(), resolveTimeout)
	defer cancel()
	for {
		if s, err := w.connect(ctx); err == nil {
			done, err := s.committed(ctx, doubt)
			w.replace(s)
			switch {
			case err == nil && done:
				return nil
			case err == nil:
				return fmt.Errorf("the transaction was rolled back: %w", doubt)
			}
		}
		select {
		case <-ctx.Done():
			w.cfg.Logger.Error("the database went away during a commit, and it is not known whether that took place", slog.Any("error", doubt))
			return doubt
		case <-time.After(retryEvery / 5):
		}
	}
}

// replace puts a session in the place of one that failed.
func (w *writer) replace(s session) {
	failed := w.session
	w.session = s
	// What closing the failed connection reports was known before.
	_ = failed.close()
}

// resolveTimeout bounds how long those who wait for a commit in doubt are kept waiting.
const resolveTimeout = 15 * time.Second

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
		w.cfg.Logger.Error("the database is damaged and not written any more: restore it from a backup", slog.String("path", w.cfg.name()), slog.Any("error", err))
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
	ctx, cancel := context.WithTimeout(context.Background(), max(retryTimeout, w.cfg.reconnect))
	defer cancel()
	if err := w.reconnect(ctx); err != nil {
		if faultOf(err) == faultDamage {
			w.settle(err)
		}
		return fmt.Errorf("after %w: %w", w.suspect, err)
	}
	w.cfg.Logger.Warn("the database was reopened after an error", slog.String("path", w.cfg.name()), slog.Any("error", w.suspect))
	w.suspect = nil
	return nil
}

// How often, and for how long, the writer tries to get a failed database back.
const (
	retryEvery   = time.Second
	retryTimeout = 5 * time.Second
)

func (w *writer) reconnect(ctx context.Context) error {
	proved, err := w.connect(ctx)
	if err != nil {
		return fmt.Errorf("reopen: %w", err)
	}
	if err := proved.probe(ctx, w.cfg.Now()); err != nil {
		return fmt.Errorf("probe: %w", errors.Join(err, proved.close()))
	}
	w.replace(proved)
	return nil
}

// tx is the transaction of a batch, as an operation in it sees it.
type tx struct {
	db     transaction
	writes int   // statements that wrote
	seq    int64 // of the last audit event; 0 is not read yet

	ran  []*answer // of the first statements that have run, for the changes to come
	next *answer   // for the first statement of the change that is being applied, nil when it has not run
}

// exec runs a statement that writes and returns how many rows it changed.
func (t *tx) exec(query string, args ...any) (int64, error) {
	var n int64
	var err error
	if known := t.known(query); known != nil {
		n = known.changed
	} else {
		n, err = t.db.exec(query, args)
	}
	if n > 0 {
		t.writes++
	}
	return n, err
}

// put runs a statement that writes and whose count says nothing, such as an insert. Its error may come from a later call, so it serves
// only where an error means that the whole change cannot be written. Where the database is reached over a network it saves waiting for it.
func (t *tx) put(query string, args ...any) error {
	t.writes++
	return t.db.put(query, args)
}

// row runs a query for one row.
func (t *tx) row(query string, args ...any) row {
	if known := t.known(query); known != nil {
		return known.row()
	}
	return t.db.row(query, args)
}

// query runs a query for several rows, which the caller closes.
func (t *tx) query(query string, args ...any) (rows, error) { return t.db.query(query, args) }
