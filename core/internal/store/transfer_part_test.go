package store_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/store"
	"github.com/keyfire/keyfire/core/internal/store/storetest"
)

// dump exports a database that has something of everything.
func dump(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := store.Export(t.Context(), filled(t, sqliteAt(t)), &b, nil); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func written(t *testing.T, b []byte) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "dump")
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// What others keep in a database that Keyfire was given too is neither in its dumps nor removed when a restore fails, nor when the restore is tried again.
func TestTransferLeavesWhatOthersKeep(t *testing.T) {
	t.Parallel()
	cfg := postgresAt(t)
	db, err := sql.Open("pgx", cfg.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.ExecContext(t.Context(), `create table aa_invoices (id uuid, note jsonb); insert into aa_invoices values (gen_random_uuid(), '{"paid": true}')`); err != nil {
		t.Fatal(err)
	}
	kept := func(when string) {
		t.Helper()
		var n int
		if err := db.QueryRowContext(t.Context(), `select count(*) from aa_invoices`).Scan(&n); err != nil || n != 1 {
			t.Fatalf("%s: %d rows of the others are there, %v", when, n, err)
		}
	}
	whole := dump(t)
	if err := store.Restore(t.Context(), cfg, written(t, whole[:len(whole)/2]), nil); err == nil || !strings.Contains(err.Error(), "cut off") {
		t.Errorf("half a dump: error = %v, want a refusal", err)
	}
	kept("after half a dump")
	if err := store.Restore(t.Context(), cfg, written(t, whole), nil); err != nil {
		t.Fatal(err)
	}
	kept("after a dump")
	var b bytes.Buffer
	if err := store.Export(t.Context(), cfg, &b, nil); err != nil || strings.Contains(b.String(), "aa_invoices") {
		t.Errorf("the export holds what is not Keyfire's: %v", err)
	}
	foreign := bytes.Replace(whole, []byte(`{"table":"settings"`), []byte(`{"table":"aa_invoices"`), 1)
	if err := store.Restore(t.Context(), postgresAt(t), written(t, foreign), nil); err == nil || !strings.Contains(err.Error(), "no table of a dump") {
		t.Errorf("a dump of another table: error = %v, want a refusal", err)
	}
}

// What a restore leaves that was killed is no data: it can be made again.
func TestRestoreAfterKill(t *testing.T) {
	t.Parallel()
	whole := written(t, dump(t))
	t.Run("postgres", func(t *testing.T) {
		t.Parallel()
		cfg := postgresAt(t)
		s := open(t, cfg) // makes the schema, as the restore did before it was killed
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if err := store.Restore(t.Context(), cfg, whole, nil); err != nil {
			t.Fatal(err)
		}
		if err := store.Restore(t.Context(), cfg, whole, nil); err == nil || !strings.Contains(err.Error(), "left as it is") {
			t.Errorf("onto data: error = %v, want a refusal", err)
		}
		// A server that was started and did nothing else is a server.
		used := postgresAt(t)
		s = open(t, used)
		if err := errors.Join(s.Audit(t.Context(), accepted("server")), s.Close()); err != nil {
			t.Fatal(err)
		}
		if err := store.Restore(t.Context(), used, whole, nil); err == nil || !strings.Contains(err.Error(), "left as it is") {
			t.Errorf("onto a server's: error = %v, want a refusal", err)
		}
	})
	t.Run("sqlite", func(t *testing.T) {
		t.Parallel()
		cfg := sqliteAt(t)
		killed := cfg
		killed.Path += ".part"
		s := open(t, killed)
		storetest.Fill(t, s)
		for _, end := range []string{"", "-wal"} { // as they are while it is open
			b, err := os.ReadFile(killed.Path + end)
			if err == nil {
				err = os.WriteFile(cfg.Path+end+".copy", b, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		for _, end := range []string{"", "-wal"} {
			if err := os.Rename(cfg.Path+end+".copy", killed.Path+end); err != nil {
				t.Fatal(err)
			}
		}
		if err := store.Restore(t.Context(), cfg, whole, nil); err != nil {
			t.Fatal(err)
		}
		left, err := filepath.Glob(killed.Path + "*")
		if err != nil || len(left) > 0 {
			t.Errorf("left are %v, %v", left, err)
		}
		s = open(t, cfg)
		storetest.Filled(t, s)
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

// Two backups to one name do not mix, and neither follows a link that somebody has put in the way.
func TestBackupHasItsFileAlone(t *testing.T) {
	t.Parallel()
	cfg := filled(t, sqliteAt(t))
	to := filepath.Join(t.TempDir(), "backup")
	other, err := os.OpenFile(to+".part", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := syscall.Flock(int(other.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if err := store.Backup(t.Context(), cfg, to, nil); err == nil || !strings.Contains(err.Error(), "another process is writing") {
		t.Errorf("beside another one: error = %v, want a refusal", err)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	victim := filepath.Join(t.TempDir(), "victim")
	if err := os.WriteFile(victim, []byte("precious"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(victim, to+"2.part"); err != nil {
		t.Fatal(err)
	}
	err = store.Backup(t.Context(), cfg, to+"2", nil)
	if b, _ := os.ReadFile(victim); string(b) != "precious" || err == nil {
		t.Errorf("a link was followed: %q, %v", b, err)
	}
	if err := store.Backup(t.Context(), cfg, to, nil); err != nil {
		t.Errorf("in place of what was left: %v", err)
	}
}

// The tables that are taken for Keyfire's own are those that its migrations make.
func TestOwnTables(t *testing.T) {
	t.Parallel()
	cfg := sqliteAt(t)
	if err := open(t, cfg).Close(); err != nil {
		t.Fatal(err)
	}
	names, err := store.Tables(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	own, err := store.OwnTables()
	if err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Join(sorted(own), " "), strings.Join(sorted(names), " "); got != want {
		t.Errorf("own tables are %s, the schema has %s", got, want)
	}
}

// An export that is stopped leaves no file, least of all one that looks whole; one that is not is what goes to a stream.
func TestExportFileIsWholeOrNot(t *testing.T) {
	t.Parallel()
	cfg, dir := filled(t, sqliteAt(t)), t.TempDir()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	err := store.ExportFile(ctx, cfg, filepath.Join(dir, "stopped"), func(done, _ int64) {
		if done > 0 {
			stop()
		}
	})
	if left, rerr := os.ReadDir(dir); err == nil || rerr != nil || len(left) > 0 {
		t.Errorf("a stopped export: %v, and it leaves %v, %v", err, left, rerr)
	}
	whole := filepath.Join(dir, "whole")
	if err := store.ExportFile(t.Context(), cfg, whole, nil); err != nil {
		t.Fatal(err)
	}
	if err := store.Restore(t.Context(), sqliteAt(t), whole, nil); err != nil {
		t.Error(err)
	}
	if err := store.ExportFile(t.Context(), cfg, whole, nil); err == nil || !strings.Contains(err.Error(), "left as it is") {
		t.Errorf("over another file: %v", err)
	}
}

// A move of PostgreSQL that was killed is found out about: no server goes on with the database meanwhile, and moving again finishes what was begun, however far it came.
func TestMoveThatWasKilled(t *testing.T) {
	t.Parallel()
	for name, far := range map[string]bool{"before the commit": false, "after the commit": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			src, to := filled(t, postgresAt(t)), sqliteAt(t)
			want := exported(t, src)
			db, err := sql.Open("pgx", src.URL)
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			mark := func(text string) {
				t.Helper()
				if _, err := db.ExecContext(t.Context(), text); err != nil {
					t.Fatal(err)
				}
			}
			if far {
				if rows, before, err := store.Move(t.Context(), src, to, false, nil); err != nil || before || rows != int64(len(want)) {
					t.Fatal(rows, before, err)
				}
				mark(`delete from settings where name = 'moved_to'`)
			}
			mark(`insert into settings (name, value) values ('moving_to', 'elsewhere')`)
			if s, err := store.Open(t.Context(), src); err == nil || !strings.Contains(err.Error(), "a move to elsewhere was begun and not seen to end") {
				if err == nil {
					_ = s.Close()
				}
				t.Fatalf("a server goes on with it: %v", err)
			}
			leaving := src
			leaving.Leaving = true
			if s, err := store.Open(t.Context(), leaving); err != nil {
				t.Fatalf("it cannot be looked at: %v", err)
			} else if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			other := sqliteAt(t)
			s := open(t, other)
			for i := range want { // more events than there can be in the other's log
				if err := s.Audit(t.Context(), core.NewEvent(fmt.Sprintf("evt_other%d", i), time.Now(), core.Origin{}, core.ActionStoreRestore, "x")); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if _, before, err := store.Move(t.Context(), src, other, false, nil); err == nil || before || !strings.Contains(err.Error(), "left as it is") {
				t.Errorf("somebody else's database is taken for the copy: %v, %v", before, err)
			}
			if s, err := store.Open(t.Context(), src); err == nil {
				_ = s.Close()
				t.Error("the mark is gone, and how far the move came is as unknown as before")
			}
			_, before, err := store.Move(t.Context(), src, to, false, nil)
			if err != nil || before != far {
				t.Fatalf("the copy was there: %v, want %v; %v", before, far, err)
			}
			if got := exported(t, to); !slices.Equal(sorted(got), sorted(want)) {
				t.Errorf("%d rows have arrived, want %d", len(got), len(want))
			}
			if _, err := store.Open(t.Context(), src); err == nil || !strings.Contains(err.Error(), "everything was moved to") {
				t.Errorf("a server goes on with what was left: %v", err)
			}
		})
	}
}
