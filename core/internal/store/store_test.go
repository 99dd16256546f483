package store_test

import (
	"path/filepath"
	"testing"

	"go.uber.org/goleak"

	"github.com/keyfire/keyfire/core/internal/store"
	"github.com/keyfire/keyfire/core/internal/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestSQLite(t *testing.T) {
	t.Parallel()
	storetest.Exercise(t, func(t *testing.T) *store.Store { return open(t, store.Config{}) })
}

// open opens the store at cfg.Path, or an empty one in a directory of its own, and closes it when the test ends.
func open(t testing.TB, cfg store.Config) *store.Store {
	t.Helper()
	if cfg.Path == "" {
		cfg.Path = filepath.Join(t.TempDir(), "keyfire.db")
	}
	if cfg.Reserve == 0 {
		cfg.Reserve = -1 // 16 MiB for each of hundreds of small stores would only cost time
	}
	s, err := store.Open(t.Context(), cfg)
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
