//go:build unix

package store_test

import (
	"bufio"
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core/internal/store"
	"github.com/keyfire/keyfire/core/internal/store/storetest"
)

const (
	columnsSQLite   = `select m.name || '.' || i.name || ' ' || i.type from sqlite_master m, pragma_table_info(m.name) i where m.type = 'table' and m.name not like 'sqlite%' order by 1`
	columnsPostgres = `select table_name || '.' || column_name || ' ' || data_type from information_schema.columns where table_schema = current_schema() order by 1`
)

// TestKillMigrationL2 kills a server at any moment of bringing an old schema up to date, and the next one that goes on with it. What the database has after
// each death is the schema of one version, whole, and the last server finds what was in it.
func TestKillMigrationL2(t *testing.T) {
	inChild(openAndSay)
	t.Parallel()
	rounds := 4
	if d, err := time.ParseDuration(os.Getenv("KEYFIRE_CHAOS")); err == nil {
		rounds = max(rounds, int(d.Seconds()/2))
	}
	for name, driver := range map[string]string{"sqlite": "sqlite", "postgres": "pgx"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fresh := func() (where string, db *sql.DB) {
				t.Helper()
				where = filepath.Join(t.TempDir(), "keyfire.db")
				if driver == "pgx" {
					where = storetest.Postgres(t)
				}
				db, err := sql.Open(driver, where)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = db.Close() })
				return where, db
			}
			// The schema of each version, as it is when nothing dies.
			var want []string
			_, db := fresh()
			newest, err := store.MigrateTo(t.Context(), db, driver == "pgx", 1)
			if err != nil {
				t.Fatal(err)
			}
			for version := int64(1); version <= newest; version++ {
				if _, err := store.MigrateTo(t.Context(), db, driver == "pgx", version); err != nil {
					t.Fatal(err)
				}
				want = append(want, schemaOf(t, db, driver))
			}
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			random := rand.New(rand.NewPCG(seed, 0))
			between := 0
			whole := time.Minute // how long it takes; measured where nothing was killed
			for round := range rounds {
				where, db := fresh()
				from := 1 + random.Int64N(int64(len(want)))
				if round == 0 {
					from = 1
				}
				if _, err := store.MigrateTo(t.Context(), db, driver == "pgx", from); err != nil {
					t.Fatal(err)
				}
				for range 3 {
					after := whole
					if round > 0 {
						after = time.Duration(random.Int64N(int64(whole)))
					}
					if took := openAndDie(t, where, after); took > 0 && whole == time.Minute {
						whole = took
					}
					got, version := schemaOf(t, db, driver), versionOf(t, db)
					// A server of PostgreSQL goes on for a moment with what the dead process had asked for.
					for before := int64(0); version != before; {
						before = version
						got, version = schemaOf(t, db, driver), versionOf(t, db)
					}
					if version < from || version > int64(len(want)) || got != want[version-1] {
						t.Fatalf("after a death in the migration from version %d, the database says it has %d, and has\n%s", from, version, got)
					}
					if version > from && version < int64(len(want)) {
						between++
					}
					from = version
				}
				cfg := store.Config{Path: where}
				if driver == "pgx" {
					cfg = store.Config{Path: filepath.Join(t.TempDir(), "keyfire.db"), URL: where}
				}
				s := open(t, cfg)
				prepare(t, s, key("key_1", 0))
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			}
			t.Logf("%d migrations, killed up to 3 times each, %d times between two versions; whole it takes %v", rounds, between, whole)
		})
	}
}

// openAndSay opens a database, with a word before and one after.
func openAndSay(where string) error {
	fmt.Println("opening")
	cfg := store.Config{Path: where}
	if strings.HasPrefix(where, "postgres:") {
		dir, err := os.MkdirTemp("", "kf")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		cfg = store.Config{Path: filepath.Join(dir, "keyfire.db"), URL: where}
	}
	s, err := store.Open(context.Background(), cfg)
	if err != nil {
		return err
	}
	fmt.Println("open")
	return s.Close()
}

// openAndDie has a process open a database, and kills it after a while. It returns how long the opening took if it was faster.
func openAndDie(t *testing.T, where string, after time.Duration) time.Duration {
	t.Helper()
	cmd := child(t, where)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	lines.Scan()
	begun, took := time.Now(), time.Duration(0)
	killed := time.AfterFunc(after, func() { _ = cmd.Process.Kill() }) // it may have ended already
	for lines.Scan() {
		took = time.Since(begun)
	}
	killed.Stop()
	if err := cmd.Wait(); err != nil && cmd.ProcessState.Exited() {
		t.Fatalf("the process failed by itself: %v", err)
	}
	return took
}

// schemaOf returns every column of every table, a line each.
func schemaOf(t *testing.T, db *sql.DB, driver string) string {
	t.Helper()
	query := columnsSQLite
	if driver == "pgx" {
		query = columnsPostgres
	}
	rows, err := db.QueryContext(t.Context(), query)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var all []string
	for rows.Next() {
		var line string
		if err := rows.Scan(&line); err != nil {
			t.Fatal(err)
		}
		all = append(all, line)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return strings.Join(all, "\n")
}

func versionOf(t *testing.T, db *sql.DB) (version int64) {
	t.Helper()
	if err := db.QueryRowContext(t.Context(), `select max(version_id) from schema_version`).Scan(&version); err != nil {
		t.Fatal(err)
	}
	return version
}

// olderDatabase makes a database as a version of the schema had it.
func olderDatabase(t *testing.T, driver string, version int64) (store.Config, *sql.DB) {
	t.Helper()
	cfg := store.Config{Path: filepath.Join(t.TempDir(), "keyfire.db")}
	where := cfg.Path
	if driver == "pgx" {
		where = storetest.Postgres(t)
		cfg.URL = where
	}
	db, err := sql.Open(driver, where)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.MigrateTo(t.Context(), db, driver == "pgx", version); err != nil {
		t.Fatal(err)
	}
	return cfg, db
}

// Keys that were rotated before the present secret was looked up in the key's row: every text of theirs goes on working, until when it did.
func TestRotatedKeysSurviveMigrationK3(t *testing.T) {
	t.Parallel()
	for name, driver := range map[string]string{"sqlite": "sqlite", "postgres": "pgx"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg, db := olderDatabase(t, driver, 8)
			const hash = "hhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhh"
			if _, err := db.ExecContext(t.Context(), `
insert into keys (id, account, type, public_id, hash, pepper, last4, name, description, scopes, allow_query, max_runs, runs_used, created_at, created_by,
        expires_at, revoked_at, revoked_by, revoked_why, last_used_at)
    values ('key_1', 'acct_default', 't', 'newnewnewnew', '`+hash+`', 1, 'last', 'CI', '', '["run:*"]', false, 0, 0, 1, '', 0, 0, '', '', 0);
insert into key_secrets (public_id, key_id, hash, pepper, last4, imported, created_at, created_by, expires_at, last_used_at, last_source, last_agent)
    values ('newnewnewnew', 'key_1', '`+hash+`', 1, 'last', false, 2, '', 0, 0, '', ''), ('oldoldoldold', 'key_1', '`+hash+`', 1, 'last', false, 1, '', 1000000, 0, '', '')`); err != nil {
				t.Fatal(err)
			}
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			s := open(t, cfg)
			for id, until := range map[string]time.Time{"newnewnewnew": {}, "oldoldoldold": time.Unix(1, 0)} {
				found, k, err := bySecret(t, s, id)
				if err != nil || k == nil || k.ID != "key_1" || k.Name != "CI" || found.PublicID != id || found.KeyID != "key_1" || found.Account != "acct_default" ||
					string(found.Hash) != hash || !found.ExpiresAt.Equal(until) {
					t.Errorf("%s: found %+v, %+v, %v", id, found, k, err)
				}
			}
			if found, k, err := bySecret(t, s, "aaaaaaaaaaaa"); err != nil || found.KeyID != "" || k != nil {
				t.Errorf("where there is nothing: %+v, %+v, %v", found, k, err)
			}
		})
	}
}

// More keys than a migration numbers at a time are all found after it, with what refers to them.
func TestManyKeysSurviveMigrationL2(t *testing.T) {
	t.Parallel()
	for name, driver := range map[string]string{"sqlite": "sqlite", "postgres": "pgx"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg, db := olderDatabase(t, driver, 10)
			defer db.Close()
			const keys, hash = 1200, "hhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhh"
			for _, insert := range []string{
				`insert into keys (id, account, type, public_id, hash, pepper, last4, name, description, scopes, allow_query, max_runs, runs_used, created_at, created_by,
				expires_at, revoked_at, revoked_by, revoked_why, last_used_at)
				select 'key_' || i, 'acct_default', 't', 'many' || i, '` + hash + `', 1, 'last', 'CI', '', '["run:*"]', false, 0, 0, 1, '', 0, 0, '', '', 0 from n`,
				`insert into key_secrets (public_id, key_id, hash, pepper, last4, imported, created_at, created_by, expires_at, last_used_at, last_source, last_agent)
				select 'many' || i, 'key_' || i, '` + hash + `', 1, 'last', false, 2, '', 0, 0, '', '' from n`,
				`insert into key_secrets (public_id, key_id, hash, pepper, last4, imported, created_at, created_by, expires_at, last_used_at, last_source, last_agent, replaced, account)
				select 'once' || i, 'key_' || i, '` + hash + `', 1, 'last', false, 1, '', 1000000, 0, '', '', true, 'acct_default' from n`,
			} {
				if _, err := db.ExecContext(t.Context(), fmt.Sprintf(`with recursive n (i) as (select 1 union all select i + 1 from n where i < %d) %s`, keys, insert)); err != nil {
					t.Fatal(err)
				}
			}
			s := open(t, cfg)
			for i := range keys {
				for _, id := range []string{"many", "once"} {
					if _, k, err := bySecret(t, s, fmt.Sprint(id, i+1)); err != nil || k == nil || k.ID != fmt.Sprint("key_", i+1) {
						t.Fatalf("%s%d: %+v, %v", id, i+1, k, err)
					}
				}
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			// What refers to a key goes with it, as before.
			if driver == "sqlite" {
				if _, err := db.ExecContext(t.Context(), `pragma foreign_keys = 1`); err != nil {
					t.Fatal(err)
				}
			}
			var left int
			if _, err := db.ExecContext(t.Context(), `delete from keys where id <> 'key_7'`); err != nil {
				t.Fatal(err)
			}
			if err := db.QueryRowContext(t.Context(), `select count(*) from key_secrets`).Scan(&left); err != nil || left != 2 {
				t.Errorf("%d secrets of one key are left, %v", left, err)
			}
		})
	}
}

// bySecret looks for a secret and returns what is found for its id, and the key when that has the id.
func bySecret(t *testing.T, s *store.Store, id string) (found auth.FoundSecret, key *auth.Key, err error) {
	key, err = s.KeyBySecret(t.Context(), id, func(f *auth.FoundSecret) bool {
		found = *f
		return f.PublicID == id
	})
	return found, key, err
}
