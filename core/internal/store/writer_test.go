package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
)

// openInternal opens an empty store for a test that looks inside.
func openInternal(t *testing.T, cfg Config) *Store {
	t.Helper()
	cfg.Path = filepath.Join(t.TempDir(), "keyfire.db")
	cfg.Reserve = -1
	s, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// block occupies the writer until release is called, so that a test decides what waits and what shares a batch.
func block(t *testing.T, s *Store) (release func()) {
	t.Helper()
	begun, gate, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- s.write(context.Background(), &change{name: "block", lane: control}, func(*tx) error {
			close(begun)
			<-gate
			return nil
		})
	}()
	<-begun
	return sync.OnceFunc(func() {
		close(gate)
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// later starts a change and returns once it waits in the queue. wait returns its outcome.
func later(do func() error) (wait func() error) {
	ended := make(chan error, 1)
	go func() { ended <- do() }()
	synctest.Wait()
	return func() error { return <-ended }
}

func event(action string) core.AuditEvent {
	return core.AuditEvent{ID: "evt_1", Account: "acct", Action: action, Time: time.Unix(1, 0)}
}

func seqs(t *testing.T, s *Store) []string {
	t.Helper()
	l, err := s.AuditEvents(t.Context(), "acct", core.AuditFilter{}, core.Page{Limit: core.MaxPage})
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for i, ev := range l.Items {
		if want := int64(len(l.Items) - i); ev.Seq != want {
			t.Errorf("event %q has seq %d, want %d", ev.Action, ev.Seq, want)
		}
		all = append(all, ev.Action)
	}
	return all
}

func TestCancelledWhileWaiting(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := openInternal(t, Config{})
		release := block(t, s)
		defer release()
		ctx, cancel := context.WithCancelCause(t.Context())
		wait := later(func() error { return s.Audit(ctx, event("cancelled")) })
		cause := errors.New("the caller hung up")
		cancel(cause)
		if err := wait(); !errors.Is(err, cause) || !errors.Is(err, context.Canceled) {
			t.Errorf("error = %v, want that it was cancelled, and the cause", err)
		}
		release()
		if err := s.Audit(t.Context(), event("next")); err != nil {
			t.Fatal(err)
		}
		if got := seqs(t, s); len(got) != 1 || got[0] != "next" {
			t.Errorf("audit log = %q, want only the change that was not cancelled", got)
		}
		if err := s.Audit(ctx, event("too late")); !errors.Is(err, cause) {
			t.Errorf("with a context that has ended: error = %v, want its cause", err)
		}
		if _, err := s.Key(ctx, "acct", "key_1"); !errors.Is(err, cause) || core.CodeOf(err) == core.CodeStoreUnavailable {
			t.Errorf("reading with a context that has ended: error = %v, want its cause, and no blame on the store", err)
		}
	})
}

func TestCancelledOnceBegun(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := openInternal(t, Config{})
		ctx, cancel := context.WithCancel(t.Context())
		err := s.write(ctx, &change{name: "begun", lane: intake}, func(t *tx) error {
			cancel()
			return t.audit(event("begun"))
		})
		if err != nil {
			t.Errorf("error = %v, want the real outcome", err)
		}
		if got := seqs(t, s); len(got) != 1 {
			t.Errorf("audit log = %q, want the change", got)
		}
	})
}

func TestOverload(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := openInternal(t, Config{MaxQueue: 2, MaxQueueBytes: 10_000})
		release := block(t, s)
		defer release()
		waits := []func() error{
			later(func() error { return s.Audit(t.Context(), event("1")) }),
			later(func() error { return s.Audit(t.Context(), event("2")) }),
		}
		wantOverloaded := func(what string, err error) {
			t.Helper()
			var e *core.Error
			if !errors.As(err, &e) || e.Code != core.CodeOverloaded || e.RetryAfter <= 0 {
				t.Errorf("%s: error = %v, want overloaded, with a time to come back", what, err)
			}
		}
		wantOverloaded("third in a lane of two", s.Audit(t.Context(), event("3")))

		// Operators and finished runs have lanes of their own.
		key := auth.Key{ID: "key_1", Account: "acct", PublicID: "1", Hash: []byte{1}}
		waits = append(waits, later(func() error { return s.CreateKey(t.Context(), key, event("4")) }))
		big := func(l lane) error {
			return s.write(t.Context(), &change{name: "big", lane: l, size: 9_000}, func(*tx) error { return nil })
		}
		wantOverloaded("more bytes than the queue may hold", big(control))
		for range 3 {
			waits = append(waits, later(func() error { return big(results) }))
		}
		release()
		for _, wait := range waits {
			if err := wait(); err != nil {
				t.Error(err)
			}
		}
		if got := seqs(t, s); len(got) != 3 {
			t.Errorf("audit log = %q, want what was accepted and nothing else", got)
		}
		if err := big(control); err != nil {
			t.Errorf("a large change on an idle store: %v", err)
		}
	})
}

// TestNeighbours puts changes of every kind into one batch and checks that each gets the outcome it would have had alone.
func TestNeighbours(t *testing.T) {
	t.Parallel()
	for name, bad := range map[string]func(*tx) error{
		"breaks a constraint": func(tx *tx) error {
			if err := tx.audit(event("bad")); err != nil {
				return err
			}
			_, err := tx.exec(sqlNameInsert, "acct", "name", "wf_none")
			return err
		},
		"fails at commit": func(tx *tx) error {
			if err := tx.audit(event("bad")); err != nil {
				return err
			}
			if _, err := tx.exec(`pragma defer_foreign_keys = 1`); err != nil {
				return err
			}
			_, err := tx.exec(sqlNameInsert, "acct", "name", "wf_none")
			return err
		},
		"no such table": func(tx *tx) error {
			if err := tx.audit(event("bad")); err != nil {
				return err
			}
			_, err := tx.exec(`insert into nothing (a) values (1)`)
			return err
		},
		"refuses after it wrote": func(tx *tx) error {
			if err := tx.audit(event("bad")); err != nil {
				return err
			}
			return core.Errorf(core.CodeConflict, "too late")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := openInternal(t, Config{})
				release := block(t, s)
				var good []func() error
				for i := range 3 {
					good = append(good, later(func() error { return s.Audit(t.Context(), event(fmt.Sprintf("good %d", i))) }))
				}
				failing := later(func() error { return s.write(t.Context(), &change{name: "bad", lane: intake}, bad) })
				refusing := later(func() error {
					return s.write(t.Context(), &change{name: "refuse", lane: intake}, func(*tx) error { return core.Errorf(core.CodeQuotaExhausted, "no") })
				})
				good = append(good, later(func() error { return s.Audit(t.Context(), event("good 3")) }))
				release()
				for i, wait := range good {
					if err := wait(); err != nil {
						t.Errorf("good %d: %v", i, err)
					}
				}
				if err := failing(); err == nil {
					t.Error("the bad change was reported as written")
				}
				if err := refusing(); core.CodeOf(err) != core.CodeQuotaExhausted {
					t.Errorf("the refusal became %v", err)
				}
				got := seqs(t, s)
				want := []string{"good 3", "good 2", "good 1", "good 0"}
				if fmt.Sprint(got) != fmt.Sprint(want) {
					t.Errorf("audit log = %q, want %q", got, want)
				}
				if err := s.Ping(t.Context()); err != nil {
					t.Errorf("afterwards: %v", err)
				}
			})
		})
	}
}

// TestRefusalDependsOnNeighbour checks that a refusal caused by a change in the same batch does not outlive that change: the second
// admission is refused because the first took the last run, then the batch fails, and the first is not written after all.
func TestRefusalDependsOnNeighbour(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := openInternal(t, Config{})
		release := block(t, s)
		taken := `insert into settings (name, value) values ('taken', 1)`
		first := later(func() error {
			return s.write(t.Context(), &change{name: "first", lane: intake}, func(tx *tx) error {
				if _, err := tx.exec(taken); err != nil {
					return err
				}
				// Fails at commit, in a batch and alone.
				if _, err := tx.exec(`pragma defer_foreign_keys = 1`); err != nil {
					return err
				}
				_, err := tx.exec(sqlNameInsert, "acct", "name", "wf_none")
				return err
			})
		})
		second := later(func() error {
			return s.write(t.Context(), &change{name: "second", lane: intake}, func(tx *tx) error {
				var n int
				if err := tx.row(`select count(*) from settings where name = 'taken'`).Scan(&n); err != nil {
					return err
				}
				if n > 0 {
					return core.Errorf(core.CodeQuotaExhausted, "taken")
				}
				_, err := tx.exec(taken)
				return err
			})
		})
		release()
		if err := first(); err == nil {
			t.Error("the first change was reported as written")
		}
		if err := second(); err != nil {
			t.Errorf("the second change: %v", err)
		}
	})
}

// TestAuditFailureRefusesChange is promise U1: what cannot be audited does not happen.
func TestAuditFailureRefusesChange(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := openInternal(t, Config{})
		err := s.write(t.Context(), &change{name: "break the audit log", lane: control}, func(tx *tx) error {
			_, err := tx.exec(`create trigger no_audit before insert on audit begin select raise(abort, 'audit sink is gone'); end`)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		key := auth.Key{ID: "key_1", Account: "acct", PublicID: "1", Hash: []byte{1}}
		if err := s.CreateKey(t.Context(), key, event(core.ActionKeyCreate)); core.CodeOf(err) != core.CodeStoreUnavailable {
			t.Errorf("error = %v, want store_unavailable", err)
		}
		if _, err := s.Key(t.Context(), "acct", "key_1"); core.CodeOf(err) != core.CodeNotFound {
			t.Errorf("the key that could not be audited: %v, want not_found", err)
		}
		if s.writer.healthy() {
			t.Error("the store says it is healthy while nothing can be written")
		}
	})
}

func TestClose(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := openInternal(t, Config{})
		release := block(t, s)
		waiting := later(func() error { return s.Audit(context.Background(), event("waiting")) })
		closed := later(s.Close)
		if err := s.Audit(t.Context(), event("late")); core.CodeOf(err) != core.CodeStoreUnavailable {
			t.Errorf("a change after Close: %v, want store_unavailable", err)
		}
		release()
		if err := waiting(); err != nil {
			t.Errorf("a change that waited when the store was closed: %v", err)
		}
		for _, err := range []error{closed(), s.Close()} {
			if err != nil {
				t.Error(err)
			}
		}
		if _, err := s.Key(t.Context(), "acct", "key_1"); core.CodeOf(err) != core.CodeStoreUnavailable {
			t.Errorf("a read after Close: %v, want store_unavailable", err)
		}
		if err := s.Ping(t.Context()); core.CodeOf(err) != core.CodeStoreUnavailable {
			t.Errorf("Ping after Close: %v, want store_unavailable", err)
		}

		db, err := sql.Open("sqlite", s.cfg.Path)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		var n int
		if err := db.QueryRow(`select count(*) from audit`).Scan(&n); err != nil || n != 1 {
			t.Errorf("the file holds %d events (%v), want 1", n, err)
		}
	})
}

func TestQueueOrder(t *testing.T) {
	t.Parallel()
	q := newQueue(100, 1<<20)
	put := func(l lane, n int, size int64) {
		for i := range n {
			if err := q.put(&change{name: fmt.Sprintf("%c%d", "icr"[l], i), lane: l, size: size}); err != nil {
				t.Fatal(err)
			}
		}
	}
	take := func(n int, bytes int64) string {
		names := ""
		for _, c := range q.take(nil, n, bytes) {
			names += c.name + " "
		}
		return names
	}
	put(intake, 5, 0)
	put(results, 8, 0)
	put(control, 2, 0)
	for i, want := range []string{
		"c0 c1 r0 r1 r2 r3 i0 i1 ", // a quarter is kept for intake
		"r4 r5 r6 r7 i2 i3 i4 ",    // what a lane does not use, others do
	} {
		if got := take(8, 1); got != want {
			t.Errorf("batch %d = %q, want %q", i, got, want)
		}
	}
	put(intake, 4, 100)
	for i, want := range []string{"i0 i1 ", "i2 ", "i3 "} {
		if got := take(8, []int64{250, 50, 0}[i]); got != want {
			t.Errorf("batch %d within bytes = %q, want %q", i, got, want)
		}
	}
	if q.bytes != 0 {
		t.Errorf("an empty queue holds %d bytes", q.bytes)
	}
	put(intake, 1, 0)
	q.close()
	if got := take(8, 1); got != "i0 " {
		t.Errorf("batch of a closed queue = %q, want what waits", got)
	}
	if got := take(8, 1); got != "" {
		t.Errorf("batch of a closed and empty queue = %q, want none", got)
	}
}

// O2: a caller who has put a hundred changes makes another one wait for one of them, in every lane.
func TestQueueTurns(t *testing.T) {
	t.Parallel()
	for _, l := range []lane{intake, results} {
		q := newQueue(1000, 1<<20)
		for range 100 {
			if err := q.put(&change{name: "elephant", lane: l, account: "a", caller: "elephant"}); err != nil {
				t.Fatal(err)
			}
		}
		if err := q.put(&change{name: "mouse", lane: l, account: "a", caller: "mouse"}); err != nil {
			t.Fatal(err)
		}
		if got := q.take(nil, 4, 1); len(got) != 4 || got[1].name != "mouse" {
			t.Errorf("lane %d: the mouse waits for more than one change", l)
		}
	}
}

// O2: a batch grows with what a sync costs, and only so far: who comes next waits for the whole of it.
func TestBatchIsAsLargeAsASyncIsDear(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		applying, syncing time.Duration // of 10 changes
		url               string
		want              int
	}{
		{0, 0, "", 256},
		{time.Millisecond, 100 * time.Microsecond, "", smallBatch},
		{time.Millisecond, 20 * time.Millisecond, "", 100},
		{time.Millisecond, time.Second, "", 256},
		{time.Millisecond, 100 * time.Microsecond, "postgres://x", 256},
	} {
		w := &writer{cfg: &Config{MaxBatch: 256, URL: c.url}}
		for range 100 {
			w.took(10, c.applying, c.syncing)
		}
		if got := w.room(); got != c.want {
			t.Errorf("a batch has %d changes when 10 take %v and a sync %v, want %d", got, c.applying, c.syncing, c.want)
		}
	}
}
