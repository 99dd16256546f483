package store_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/store"
	"github.com/keyfire/keyfire/core/internal/store/storetest"
)

// TestPooler checks that a server works behind pgbouncer where each of its sessions is one of the database, and is refused where they are not, before it has taken or changed anything.
func TestPooler(t *testing.T) {
	t.Parallel()
	const shared = "pool_mode=session"
	for name, c := range map[string]struct{ settings, refused string }{
		"session":                   {"pool_mode = session", ""},
		"session, too few":          {"pool_mode = session\ndefault_pool_size = 3", "too few sessions"},
		"transaction":               {"pool_mode = transaction", shared},
		"transaction, in turns":     {"pool_mode = transaction\nserver_round_robin = 1\nmin_pool_size = 2", shared},
		"transaction, for a few":    {"pool_mode = transaction\nmin_pool_size = 5", shared},
		"transaction, for one":      {"pool_mode = transaction\ndefault_pool_size = 1", shared},
		"statement":                 {"pool_mode = statement", shared},
		"statement, each in a turn": {"pool_mode = statement\nserver_round_robin = 1\nmin_pool_size = 3", shared},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			direct := storetest.Postgres(t)
			cfg := store.Config{URL: storetest.Pooler(t, direct, c.settings) + "&connect_timeout=2"}
			if c.refused != "" {
				cfg.Path = t.TempDir() + "/keyfire.db"
				s, err := store.Open(t.Context(), cfg)
				if err == nil {
					t.Fatal("it serves", s.Close())
				}
				if !strings.Contains(err.Error(), c.refused) {
					t.Errorf("error = %v, want one with %q", err, c.refused)
				}
				if c.refused != shared {
					return
				}
				conn, err := pgx.Connect(t.Context(), direct)
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close(t.Context())
				var tables int
				if err := conn.QueryRow(t.Context(), "select count(*) from pg_tables where schemaname = current_schema()").Scan(&tables); err != nil || tables != 0 {
					t.Errorf("it has made %d tables, %v", tables, err)
				}
				return
			}
			// Whoever comes after it finds what it stored, and no lock of it.
			for i := range 3 {
				s := openPostgres(t, cfg)
				account := core.Account{ID: fmt.Sprintf("acc_%d", i), Name: fmt.Sprintf("pooled-%d", i)}
				if err := s.CreateAccount(t.Context(), account, core.AuditEvent{}); err != nil {
					t.Fatal(err)
				}
				if l, err := s.Accounts(t.Context(), core.Page{}); err != nil || len(l.Items) != i+2 {
					t.Errorf("%d accounts, want %d (%v)", len(l.Items), i+2, err)
				}
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// TestPoolerAndOptions checks that whoever has settings in options=, which a pooler refuses, is told where they belong, and that they are set there.
func TestPoolerAndOptions(t *testing.T) {
	t.Parallel()
	pooled := storetest.Pooler(t, storetest.Postgres(t), "pool_mode = session")
	cfg := store.Config{URL: pooled + "&options=-c%20work_mem%3D8MB", Path: t.TempDir() + "/keyfire.db"}
	if _, err := store.Open(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "work_mem=8MB") {
		t.Errorf("error = %v, want one that says where settings belong", err)
	}
	cfg.URL = pooled + "&work_mem=8MB"
	if err := openPostgres(t, cfg).Close(); err != nil {
		t.Error(err)
	}
}
