package store_test

import (
	"net/url"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/store"
	"github.com/keyfire/keyfire/core/internal/store/storetest"
)

// O1: sessions that hang, while the database takes others and answers in them, are given up: whoever asked in one is answered all the same.
func TestHungSessionsO1(t *testing.T) {
	t.Parallel()
	r, address := newRelay(t, storetest.NewPostgres(t).URL)
	s := open(t, store.Config{Path: filepath.Join(t.TempDir(), "keyfire.db"), URL: address, Shared: true, Readers: 2})
	prepare(t, s, key("key_1", 0))
	if _, err := s.Admit(t.Context(), admission("run_1", "key_1")); err != nil {
		t.Fatal(err)
	}
	askBoth(t, s)
	r.freeze()
	r.thaw() // of which the sessions that there are hear nothing
	begun := time.Now()
	askBoth(t, s)
	if took := time.Since(begun); took > 9*time.Second {
		t.Errorf("that took %v", took)
	}
}

// O1: where the database has no room for as many sessions as a server asks for, look-ups wait for one that it has.
func TestLookUpsWaitForASessionO1(t *testing.T) {
	t.Parallel()
	u, err := url.Parse(storetest.Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(t.Context(), u.String())
	if err != nil {
		t.Fatal(err)
	}
	s := openPostgres(t, store.Config{URL: u.String(), Shared: true})
	prepare(t, s, key("key_1", 0))
	if _, err := s.Admit(t.Context(), admission("run_1", "key_1")); err != nil {
		t.Fatal(err)
	}

	schema := u.Query().Get("search_path")
	role := "few_of_" + schema
	// Of this server's sessions, those for lists have two, and one writes.
	if _, err := conn.Exec(t.Context(), "create role "+role+" login connection limit 4; grant usage on schema "+schema+" to "+role+
		"; grant all on all tables in schema "+schema+" to "+role); err != nil {
		t.Fatal(err)
	}
	become(t, u, conn, role)
	few := open(t, store.Config{URL: u.String(), Path: filepath.Join(t.TempDir(), "keyfire.db"), Shared: true, Readers: 8})
	for range 20 {
		askBoth(t, few)
	}
}

// askBoth looks a key and a run up, several times at once.
func askBoth(t *testing.T, s *store.Store) {
	t.Helper()
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if _, err := s.Key(t.Context(), core.DefaultAccount, "key_1"); err != nil {
				t.Errorf("key: %v", err)
			}
			if _, err := s.Run(t.Context(), core.DefaultAccount, "run_1"); err != nil {
				t.Errorf("run: %v", err)
			}
		})
	}
	all.Wait()
}
