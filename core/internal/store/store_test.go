package store_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/store"
	"github.com/keyfire/keyfire/core/internal/store/storetest"
)

func TestMain(m *testing.M) {
	// Sequences of the model, unless the command line says: enough for every change, `make chaos` tries many more.
	if err := flag.Set("rapid.checks", "25"); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

func TestSQLite(t *testing.T) {
	t.Parallel()
	// The suite has a clock of its own, in the past: what has expired by the clock on the wall must not be swept away under it.
	storetest.Exercise(t, func(t *testing.T) *store.Store { return open(t, store.Config{SweepEvery: -1}) })
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

func TestConfig(t *testing.T) {
	t.Parallel()
	for name, cfg := range map[string]store.Config{
		"no path":        {},
		"negative queue": {Path: "x", MaxQueue: -1},
		"negative bytes": {Path: "x", MaxBatchBytes: -1},
	} {
		if s, err := store.Open(t.Context(), cfg); err == nil {
			t.Errorf("%s: no error", name)
			_ = s.Close()
		}
	}
}

func TestReopen(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "keyfire.db")
	first := open(t, store.Config{Path: path})
	var want []string
	for i := range 3 {
		k := key(fmt.Sprintf("key_%d", i), 0)
		if err := first.CreateKey(t.Context(), k, accepted(k.ID)); err != nil {
			t.Fatal(err)
		}
		want = append(want, k.ID)
	}
	page, err := first.Keys(t.Context(), core.DefaultAccount, core.Page{Limit: 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{path, path + "-wal", path + "-shm"} {
		info, err := os.Stat(file)
		if (file == path) != (err == nil) {
			t.Errorf("after Close, %s: %v; want only the database file", filepath.Base(file), err)
		}
		if err == nil && info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, want 0600", filepath.Base(file), info.Mode())
		}
	}

	second := open(t, store.Config{Path: path})
	rest, err := second.Keys(t.Context(), core.DefaultAccount, core.Page{Cursor: page.Next})
	if err != nil {
		t.Fatalf("a cursor from before the restart: %v", err)
	}
	if len(rest.Items) != 2 || rest.Items[0].ID != want[1] || rest.Items[1].ID != want[0] {
		t.Errorf("keys after the restart: %+v, want the other two", rest.Items)
	}
	for _, file := range []string{path + "-wal", path + "-shm"} {
		if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s while open: %v, %v; want mode 0600", filepath.Base(file), info, err)
		}
	}
}

// TestOpenRefuses checks promise D4 at the door: what is not a sound database is refused, named and left alone.
func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	sound := filepath.Join(t.TempDir(), "keyfire.db")
	s := open(t, store.Config{Path: sound})
	for i := range 200 {
		k := key(fmt.Sprintf("key_%04d", i), 0)
		if err := s.CreateKey(t.Context(), k, accepted(k.ID)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(sound)
	if err != nil {
		t.Fatal(err)
	}
	const page = 4096
	for name, damage := range map[string]func([]byte) []byte{
		"not a database":     func([]byte) []byte { return []byte(strings.Repeat("This is a letter. ", 1000)) },
		"header overwritten": func(b []byte) []byte { copy(b, make([]byte, 100)); return b },
		"pages overwritten":  func(b []byte) []byte { copy(b[10*page:], make([]byte, 4*page)); return b },
		"cut off":            func(b []byte) []byte { return b[:len(b)/2] },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "keyfire.db")
			damaged := damage(append([]byte(nil), content...))
			for file, b := range map[string][]byte{path: damaged, path + ".20260301T120000Z-v1.bak": content} {
				if err := os.WriteFile(file, b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			s, err := store.Open(t.Context(), store.Config{Path: path, Reserve: -1})
			if err == nil {
				_ = s.Close()
				t.Fatal("a damaged database was opened")
			}
			for _, want := range []string{"keyfire.db is damaged", "keyfire.db.20260301T120000Z-v1.bak"} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error = %v, want %q in it", err, want)
				}
			}
			if left, err := os.ReadFile(path); err != nil || string(left) != string(damaged) {
				t.Errorf("the damaged file was changed (%v)", err)
			}
		})
	}
	t.Run("no directory", func(t *testing.T) {
		t.Parallel()
		path := filepath.Join(t.TempDir(), "missing", "keyfire.db")
		if _, err := store.Open(t.Context(), store.Config{Path: path}); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("error = %v, want one that names the path", err)
		}
	})
}

// key returns an active key of the default account.
func key(id string, maxRuns int64) auth.Key {
	return auth.Key{
		ID: id, Account: core.DefaultAccount, Type: auth.TriggerKey, PublicID: id, Hash: []byte{1}, Name: "CI",
		Scopes: []string{auth.ScopeRunAll}, MaxRuns: maxRuns, CreatedAt: time.Unix(1, 0),
	}
}

func accepted(object string) core.AuditEvent {
	return core.AuditEvent{ID: "evt_" + object, Account: core.DefaultAccount, Time: time.Unix(1, 0), Action: core.ActionRunAccept, Object: object}
}

// admission returns a run with the key of the workflow that prepare publishes.
func admission(runID, keyID string) core.Admission {
	return core.Admission{
		Run: core.Run{
			ID: runID, Account: core.DefaultAccount, Status: core.RunRunning, Workflow: core.WorkflowRef{ID: "wf_1", Slug: "greet", Version: 1},
			Trigger: core.TriggerInfo{KeyID: keyID}, Input: []byte(`{"name":"Ada"}`), CreatedAt: time.Now(), Attempt: 1,
		},
		KeyID: keyID,
		Audit: accepted(runID),
	}
}

// prepare publishes a workflow and creates a key.
func prepare(t testing.TB, s *store.Store, k auth.Key) {
	t.Helper()
	_, _, err := s.PublishWorkflow(t.Context(), core.Publication{
		Account: core.DefaultAccount, Workflow: core.Workflow{ID: "wf_1", Slug: "greet", Enabled: true}, Version: core.Version{Digest: "sha256:1"},
	}, accepted("wf_1"))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.CreateKey(t.Context(), k, accepted(k.ID)); err != nil {
		t.Fatal(err)
	}
}

// runsOf returns the ids of a key's runs and its counter.
func runsOf(t testing.TB, s *store.Store, keyID string) (map[string]bool, int64) {
	t.Helper()
	ids := map[string]bool{}
	var p core.Page
	for p.Limit = core.MaxPage; ; {
		l, err := s.Runs(t.Context(), core.DefaultAccount, core.RunFilter{KeyID: keyID}, p)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range l.Items {
			ids[r.ID] = true
		}
		if p.Cursor = l.Next; p.Cursor == "" {
			break
		}
	}
	k, err := s.Key(t.Context(), core.DefaultAccount, keyID)
	if err != nil {
		t.Fatal(err)
	}
	return ids, k.RunsUsed
}
