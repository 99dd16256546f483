package store_test

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"github.com/keyfire/keyfire/core/internal/store"
	"github.com/keyfire/keyfire/core/internal/store/storetest"
)

// openPostgres opens an empty schema.
func openPostgres(t testing.TB, cfg store.Config) *store.Store {
	t.Helper()
	if cfg.URL == "" {
		cfg.URL = storetest.Postgres(t)
	}
	cfg.Path = t.TempDir() + "/keyfire.db"
	return open(t, cfg)
}

func TestPostgres(t *testing.T) {
	t.Parallel()
	storetest.Exercise(t, func(t *testing.T) *store.Store { return openPostgres(t, store.Config{Readers: 1}) })
}

// TestSeveralHosts checks that addresses are taken, and shown, as libpq takes them: each host with a port or without.
func TestSeveralHosts(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"postgres://keyfire:hidden@h1:5432,h2/db":                   "postgres://keyfire:xxxxx@h1:5432,h2/db",
		"postgres://keyfire@h1,h2:5433?password=hidden":             "postgres://keyfire@h1,h2:5433?password=xxxxx",
		"postgres://keyfire:hidden@[::1]:5432,h2,[fe80::1]/db":      "postgres://keyfire:xxxxx@[::1]:5432,h2,[fe80::1]/db",
		"postgres://h1:1,h2,h3:3":                                   "postgres://h1:1,h2,h3:3",
		"postgres://keyfire:hidden@h1:hidden,h2/db":                 "(an address that cannot be parsed)",
		"postgres://%zz:hidden@h1:5432,h2/db":                       "(an address that cannot be parsed)",
		"postgres://keyfire:p@hidden/word@h1:5432/db":               "(an address that cannot be parsed)",
		"postgres://keyfire:12#hidden@h1:5432/db":                   "(an address that cannot be parsed)",
		"postgres://keyfire:12?hidden@h1:5432/db":                   "(an address that cannot be parsed)",
		"postgres://keyfire:p@hidden@h1/db":                         "postgres://keyfire:xxxxx@h1/db",
		"postgres://keyfire:%40hidden%2F@h1/db":                     "postgres://keyfire:xxxxx@h1/db",
		"postgres://keyfire@[::1:5432,h2/db?sslmode=verify-full#it": "(an address that cannot be parsed)",
	} {
		if got := store.Redact(text); got != want {
			t.Errorf("%s is shown as %s, want %s", text, got, want)
		}
	}
}

// A server that needs more sessions than PostgreSQL has room for says so when it starts, and not only when they are missed.
func TestRoomForSessions(t *testing.T) {
	t.Parallel()
	for readers, warned := range map[int]bool{1: false, 10_000: true} {
		var log bytes.Buffer
		s := openPostgres(t, store.Config{Readers: readers, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(log.String(), "too little room for the sessions"); got != warned {
			t.Errorf("with %d sessions to read with, warned = %v, want %v:\n%s", readers, got, warned, log.String())
		}
	}
}
