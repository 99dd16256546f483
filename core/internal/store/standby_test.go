package store_test

import (
	"context"
	"maps"
	"net"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/store"
	"github.com/keyfire/keyfire/core/internal/store/storetest"
)

// TestStandby checks that a server writes to the primary and reads from it, whichever of the addresses comes first and however that is away, and that copies may be made of a standby.
func TestStandby(t *testing.T) {
	t.Parallel()
	primary := storetest.NewPostgres(t)
	standby := primary.Standby(t)

	if _, err := store.Open(t.Context(), store.Config{URL: standby.URL, Path: t.TempDir() + "/keyfire.db"}); err == nil || !strings.Contains(err.Error(), "this is a standby") {
		t.Errorf("a server on a standby: %v", err)
	}

	u, err := url.Parse(primary.URL)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	away := t.TempDir()
	q.Set("host", strings.Join([]string{away, host(t, standby), host(t, primary)}, ","))
	q.Set("port", "5432,5432,5432")
	u.RawQuery = q.Encode()
	s := openPostgres(t, store.Config{URL: u.String()})
	account := core.Account{ID: "acc_1", Name: "one"}
	if err := s.CreateAccount(t.Context(), account, core.AuditEvent{}); err != nil {
		t.Fatal(err)
	}

	// Now the first machine takes connections and says nothing, as one does that hangs. The server's sessions are lost, and found again.
	var unheard net.ListenConfig
	l, err := unheard.Listen(t.Context(), "unix", filepath.Join(away, ".s.PGSQL.5432"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := pgx.Connect(t.Context(), primary.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	if _, err := conn.Exec(t.Context(), "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'keyfire'"); err != nil {
		t.Fatal(err)
	}
	account = core.Account{ID: "acc_2", Name: "two"}
	for end := time.Now().Add(30 * time.Second); ; {
		err := s.CreateAccount(t.Context(), account, core.AuditEvent{})
		if err == nil {
			break
		}
		if core.CodeOf(err) != core.CodeStoreUnavailable || time.Now().After(end) {
			t.Fatal(err)
		}
		select {
		case <-t.Context().Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
	if l, err := s.Accounts(t.Context(), core.Page{}); err != nil || len(l.Items) != 3 {
		t.Errorf("%d accounts, want 3 (%v)", len(l.Items), err)
	}

	// The standby knows what the primary had when it was asked how far it is.
	var at string
	if err := conn.QueryRow(t.Context(), "select pg_current_wal_lsn()::text").Scan(&at); err != nil {
		t.Fatal(err)
	}
	behind, err := pgx.Connect(t.Context(), standby.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer behind.Close(context.WithoutCancel(t.Context()))
	for caughtUp := false; !caughtUp; time.Sleep(5 * time.Millisecond) {
		if err := behind.QueryRow(t.Context(), "select pg_last_wal_replay_lsn() >= $1::text::pg_lsn", at).Scan(&caughtUp); err != nil {
			t.Fatal(err)
		}
	}
	of := store.Config{URL: standby.URL, Path: t.TempDir() + "/keyfire.db"}
	dump := filepath.Join(t.TempDir(), "dump.gz")
	if err := store.Backup(t.Context(), of, dump, nil); err != nil {
		t.Error(err)
	}
	var text strings.Builder
	if err := store.Export(t.Context(), of, &text, nil); err != nil || !strings.Contains(text.String(), "acc_2") {
		t.Errorf("exported from the standby: %v, %d bytes", err, text.Len())
	}
}

// TestReadOnlyDatabase checks that nobody has to guess why nothing can be written.
func TestReadOnlyDatabase(t *testing.T) {
	t.Parallel()
	for setting, want := range map[string]string{
		"default_transaction_read_only=on":                                 "default_transaction_read_only is on",
		"default_transaction_read_only=on&target_session_attrs=read-write": "not what target_session_attrs asks for",
		"search_path=nowhere":                                              "search_path names no schema that exists",
	} {
		t.Run(setting, func(t *testing.T) {
			t.Parallel()
			u, err := url.Parse(storetest.Postgres(t))
			if err != nil {
				t.Fatal(err)
			}
			set, err := url.ParseQuery(setting)
			if err != nil {
				t.Fatal(err)
			}
			q := u.Query()
			maps.Copy(q, set)
			u.RawQuery = q.Encode()
			_, err = store.Open(t.Context(), store.Config{URL: u.String(), Path: t.TempDir() + "/keyfire.db"})
			if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "ValidateConnect") {
				t.Errorf("error = %v, want one with %q", err, want)
			}
		})
	}
}

// TestTooFewSessions checks that whoever sees a server fail for the lack of sessions learns how many it takes.
func TestTooFewSessions(t *testing.T) {
	t.Parallel()
	u, err := url.Parse(storetest.Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(t.Context(), u.String())
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	role := "user_of_" + q.Get("search_path")
	if _, err := conn.Exec(t.Context(), "create role "+role+" login connection limit 2; grant all on schema "+q.Get("search_path")+" to "+role); err != nil {
		t.Fatal(err)
	}
	become(t, u, conn, role)
	_, err = store.Open(t.Context(), store.Config{URL: u.String(), Path: t.TempDir() + "/keyfire.db"})
	if err == nil || !strings.Contains(err.Error(), "raise max_connections") || strings.Contains(err.Error(), "\n") {
		t.Errorf("error = %v, want one in one line that says what to raise", err)
	}
}

// become makes an address that of a role, which goes with the test.
func become(t *testing.T, u *url.URL, conn *pgx.Conn, role string) {
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		if _, err := conn.Exec(ctx, "drop owned by "+role+"; drop role "+role); err != nil {
			t.Error(err)
		}
		_ = conn.Close(ctx)
	})
	q := u.Query()
	q.Set("user", role)
	u.User, u.RawQuery = nil, q.Encode()
}

func host(t *testing.T, s *storetest.PostgresServer) string {
	t.Helper()
	u, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	return u.Query().Get("host")
}
