package cli

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/store"
	"github.com/keyfire/keyfire/core/internal/store/storetest"
	"github.com/keyfire/keyfire/sdk/client"
)

func postgresCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: postgres NAME")
	}
	ts.Setenv(args[0], storetest.Postgres(ts.Value(testValue{}).(testing.TB)))
}

// testValue is where a script keeps its testing.TB.
type testValue struct{}

// commandsOn returns how to run a command on a data directory, which ends with a status and says a text.
func commandsOn(t *testing.T, data string) func(want int, text string, args ...string) {
	return func(want int, text string, args ...string) {
		t.Helper()
		stdout, stderr, code := runKeyfire(t, "", []string{"KEYFIRE_DATA=" + data}, args...)
		if code != want || !strings.Contains(stdout+stderr, text) {
			t.Fatalf("keyfire %s: exit status %d, want %d with %q:\n%s%s", strings.Join(args, " "), code, want, text, stdout, stderr)
		}
	}
}

// A move that was killed leaves a file that no server goes on with, and the same command finishes it, however far it came.
func TestMigrateThatWasKilled(t *testing.T) {
	t.Parallel()
	for name, far := range map[string]bool{"before the commit": false, "after the commit": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			data, to := filepath.Join(t.TempDir(), "data"), storetest.Postgres(t)
			copyData(t, data)
			file := filepath.Join(data, databaseFile)
			run := commandsOn(t, data)
			kept := func(suffix string) string {
				t.Helper()
				found, err := renamed(data, suffix)
				if err != nil || found == "" {
					t.Fatalf("there is no file renamed to %s: %v", suffix, err)
				}
				return found
			}
			run(2, "the database is in", "admin", "migrate", "--to", data)
			from := file
			if far {
				run(0, "moved ", "admin", "migrate", "--to", to)
				from = kept(movedSuffix)
			}
			moving := file + movingSuffix + time.Now().UTC().Format("20060102T150405Z")
			if err := os.Rename(from, moving); err != nil {
				t.Fatal(err)
			}
			const told = "a move of the database of "
			run(1, told, "serve", "--listen", "127.0.0.1:0")
			run(1, told, "admin", "backup", filepath.Join(t.TempDir(), "x"))
			run(1, told, "admin", "migrate")
			// An address that nothing answers at says nothing about how far it came.
			run(1, "migrate", "admin", "migrate", "--to", "postgres://127.0.0.1:1/none?connect_timeout=5")
			kept(movingSuffix)
			text := "moved "
			if far {
				text = "the move is finished"
			}
			run(0, text, "admin", "migrate", "--to", to)
			kept(movedSuffix)
			run(1, "was moved to PostgreSQL", "serve", "--listen", "127.0.0.1:0")
			p := startServerOn(t, data, "--store", to)
			l, err := p.admin.AuditEvents(t.Context(), client.AuditQuery{Action: core.ActionStoreMigrate})
			if err != nil || len(l.Data) == 0 {
				t.Errorf("the audit log has no move: %v", err)
			}
		})
	}
}

// A restore that was killed leaves no server that begins with nothing, and the same command restores.
func TestRestoreThatWasKilled(t *testing.T) {
	t.Parallel()
	data, backup := filepath.Join(t.TempDir(), "data"), filepath.Join(t.TempDir(), "backup")
	copyData(t, data)
	file := filepath.Join(data, databaseFile)
	run := commandsOn(t, data)
	run(0, "", "admin", "backup", backup)
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if err := os.Remove(file + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
	part, err := os.ReadFile(backup)
	if err == nil {
		err = os.WriteFile(file+store.PartSuffix, part[:len(part)/2], 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	run(1, "not seen to end", "serve", "--listen", "127.0.0.1:0")
	run(1, "not seen to end", "admin", "export", backup+".export")
	run(0, "restored ", "admin", "restore", backup)
	startServerOn(t, data)
}
