package store_test

import (
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
