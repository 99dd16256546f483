package store_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/store"
	"github.com/keyfire/keyfire/core/internal/store/storetest"
)

// filled returns the config of a database with something of everything in it, closed.
func filled(t *testing.T, cfg store.Config) store.Config {
	t.Helper()
	s := open(t, cfg)
	storetest.Fill(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return cfg
}

func sqliteAt(t *testing.T) store.Config {
	t.Helper()
	return store.Config{Path: filepath.Join(t.TempDir(), "keyfire.db"), Reserve: -1}
}

func postgresAt(t *testing.T) store.Config {
	t.Helper()
	return store.Config{Path: filepath.Join(t.TempDir(), "keyfire.db"), URL: storetest.Postgres(t)}
}

// exported returns the rows of a database, sorted, without the header.
func exported(t *testing.T, cfg store.Config) []string {
	t.Helper()
	var b bytes.Buffer
	if err := store.Export(t.Context(), cfg, &b, nil); err != nil {
		t.Fatal(err)
	}
	var rows []string
	table := ""
	for line := range strings.Lines(b.String()) {
		if strings.HasPrefix(line, `{"table"`) {
			table = line
		} else if strings.HasPrefix(line, "[") {
			rows = append(rows, table+line)
		}
	}
	return rows
}

// TestTransfer takes a database through every way it can travel and finds the same rows at the end of each.
func TestTransfer(t *testing.T) {
	t.Parallel()
	kinds := map[string]func(*testing.T) store.Config{"sqlite": sqliteAt, "postgres": postgresAt}
	for from, source := range kinds {
		for to, target := range kinds {
			t.Run(from+" to "+to, func(t *testing.T) {
				t.Parallel()
				src := filled(t, source(t))
				want := exported(t, src)
				if len(want) < 20 {
					t.Fatalf("only %d rows to travel", len(want))
				}
				same := func(what string, cfg store.Config) {
					t.Helper()
					if diff := cmp.Diff(sorted(want), sorted(exported(t, cfg))); diff != "" {
						t.Errorf("%s: rows differ (-want +got):\n%s", what, diff)
					}
					// A store opens on it and goes on where the other left off.
					s := open(t, cfg)
					storetest.Filled(t, s)
					if err := s.Close(); err != nil {
						t.Fatal(err)
					}
				}

				moved := target(t)
				var seen, total int64
				rows, _, err := store.Move(t.Context(), src, moved, false, func(done, all int64) { seen, total = done, all })
				if err != nil {
					t.Fatal(err)
				}
				if rows != int64(len(want)) || seen != rows || total != rows {
					t.Errorf("moved %d rows, heard of %d of %d, want %d", rows, seen, total, len(want))
				}
				if _, _, err := store.Move(t.Context(), src, moved, false, nil); err == nil || !strings.Contains(err.Error(), "left as it is") {
					t.Errorf("move onto data: error = %v, want a refusal", err)
				}
				same("moved", moved)

				backup := filepath.Join(t.TempDir(), "backup")
				if err := store.Backup(t.Context(), src, backup, nil); err != nil {
					t.Fatal(err)
				}
				if info, err := os.Stat(backup); err != nil || info.Mode().Perm() != 0o600 {
					t.Errorf("the backup has mode %v (%v), want 0600", info.Mode(), err)
				}
				if err := store.Backup(t.Context(), src, backup, nil); err == nil || !strings.Contains(err.Error(), "left as it is") {
					t.Errorf("backup onto a file: error = %v, want a refusal", err)
				}
				restored := target(t)
				if err := store.Restore(t.Context(), restored, backup, nil); err != nil {
					t.Fatal(err)
				}
				if err := store.Restore(t.Context(), restored, backup, nil); err == nil || !strings.Contains(err.Error(), "left as it is") {
					t.Errorf("restore onto data: error = %v, want a refusal", err)
				}
				same("restored", restored)
			})
		}
	}
}

// TestMoveThatIsStopped stops a move into PostgreSQL while rows are copied: it says so in one line, and leaves nothing.
func TestMoveThatIsStopped(t *testing.T) {
	t.Parallel()
	src, to := filled(t, sqliteAt(t)), store.Config{Path: filepath.Join(t.TempDir(), "keyfire.db"), URL: storetest.Postgres(t)}
	ctx, stop := context.WithCancel(t.Context())
	_, _, err := store.Move(ctx, src, to, false, func(done, total int64) {
		if done == total { // the last row is to be copied
			stop()
		}
	})
	if !errors.Is(err, context.Canceled) || strings.Contains(err.Error(), "\n") || strings.Count(err.Error(), "table") > 1 {
		t.Errorf("error = %v", err)
	}
	if left, err := store.Tables(t.Context(), to); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v (%v)", left, err)
	}
}

// TestRestoreRefuses gives damaged backups to Restore, which must leave nothing behind.
func TestRestoreRefuses(t *testing.T) {
	t.Parallel()
	src := filled(t, sqliteAt(t))
	var dump bytes.Buffer
	if err := store.Export(t.Context(), src, &dump, nil); err != nil {
		t.Fatal(err)
	}
	whole := dump.String()
	file, err := os.ReadFile(src.Path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(whole, "\n")
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if _, err := z.Write(dump.Bytes()); err != nil || z.Close() != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ body, want string }{
		"cut off":           {whole[:len(whole)/2], "cut off"},
		"archive cut off":   {packed.String()[:packed.Len()/2], "cut off"},
		"without its end":   {strings.Join(lines[:len(lines)-2], ""), "cut off"},
		"a row missing":     {strings.Join(append(append([]string{}, lines[:5]...), lines[6:]...), ""), "damaged"},
		"a value changed":   {strings.Replace(whole, `"CI"`, `"CD"`, 1), "damaged"},
		"newer":             {strings.Replace(whole, `"schema":`, `"schema":9`, 1), "newer Keyfire"},
		"newer format":      {strings.Replace(whole, `"format":1`, `"format":2`, 1), "newer Keyfire"},
		"a letter":          {"Dear Ada,\n", "not a dump"},
		"empty":             {"", "not a dump"},
		"file cut off":      {string(file[:len(file)/2]), "damage"},
		"another table":     {strings.Replace(whole, `"table":"keys"`, `"table":"keys; drop table runs"`, 1), "no table of a dump"},
		"a damaged archive": {"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff\x00\x00\x00", "not a dump"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			from := filepath.Join(t.TempDir(), "backup")
			if err := os.WriteFile(from, []byte(c.body), 0o600); err != nil {
				t.Fatal(err)
			}
			to := sqliteAt(t)
			if err := store.Restore(t.Context(), to, from, nil); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error = %v, want one with %q", err, c.want)
			}
			left, err := os.ReadDir(filepath.Dir(to.Path))
			if err != nil || len(left) > 0 {
				t.Errorf("left behind: %v (%v)", left, err)
			}
			if strings.HasPrefix(name, "file") || !strings.Contains(name, "a ") {
				return
			}
			pg := postgresAt(t)
			if err := store.Restore(t.Context(), pg, from, nil); err == nil {
				t.Fatal("PostgreSQL took it")
			}
			s := open(t, pg) // as empty as it was
			if runs, err := s.Runs(t.Context(), core.DefaultAccount, core.RunFilter{}, core.Page{}); err != nil || len(runs.Items) > 0 {
				t.Errorf("left behind in PostgreSQL: %v (%v)", runs.Items, err)
			}
		})
	}
}

// TestBackupWhileServing copies a database under load and finds a state in the copy that the database was in.
func TestBackupWhileServing(t *testing.T) {
	t.Parallel()
	for name, at := range map[string]func(*testing.T) store.Config{"sqlite": sqliteAt, "postgres": postgresAt} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := at(t)
			s := open(t, cfg)
			prepare(t, s, key("key_1", 0))
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			admitted := make(chan int)
			begun := make(chan struct{})
			go func() {
				n := 0
				for ; ctx.Err() == nil; n++ {
					if _, err := s.Admit(context.Background(), admission("run_"+strings.Repeat("0", 20)+string(rune('a'+n%26))+strings.Repeat("x", n/26), "key_1")); err != nil {
						t.Error(err)
						break
					}
					if n == 20 {
						close(begun)
					}
				}
				admitted <- n
			}()
			<-begun
			backup := filepath.Join(t.TempDir(), "backup")
			err := store.Backup(t.Context(), cfg, backup, nil)
			cancel()
			total := <-admitted
			if err != nil {
				t.Fatal(err)
			}
			restored := at(t)
			if err := store.Restore(t.Context(), restored, backup, nil); err != nil {
				t.Fatal(err)
			}
			r := open(t, restored)
			runs, used := runsOf(t, r, "key_1")
			if int64(len(runs)) != used || used < 20 || used > int64(total) {
				t.Errorf("the copy has %d runs and the counter %d; while it was made there were 20 to %d", len(runs), used, total)
			}
		})
	}
}

func sorted(lines []string) []string {
	lines = slices.Clone(lines)
	slices.Sort(lines)
	return lines
}
