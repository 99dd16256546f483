package store_test

import (
	"context"
	"database/sql"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/store"
	"github.com/keyfire/keyfire/core/internal/store/storetest"
)

// servers opens several stores on one empty schema, all at once, as servers that are started together do.
func servers(t *testing.T, n int) []*store.Store {
	t.Helper()
	url := storetest.Postgres(t)
	all := make([]*store.Store, n)
	var opening sync.WaitGroup
	for i := range all {
		opening.Go(func() {
			s, err := store.Open(t.Context(), store.Config{Path: filepath.Join(t.TempDir(), "keyfire.db"), URL: url, Shared: true, Readers: 2})
			if err != nil {
				t.Error(err)
				return
			}
			all[i] = s
		})
	}
	opening.Wait()
	t.Cleanup(func() {
		for _, s := range all {
			if s != nil {
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			}
		}
	})
	if t.Failed() {
		t.FailNow()
	}
	return all
}

// TestServersQ1 lets three servers admit runs with one key as fast as they can: exactly as many are admitted as the key may start, the
// counter is their number, and the audit log has no gap.
func TestServersQ1(t *testing.T) {
	t.Parallel()
	const limit, attempts = 200, 3000
	all := servers(t, 3)
	prepare(t, all[0], key("key_1", limit))
	var admitted, refused atomic.Int64
	var wg sync.WaitGroup
	for i, s := range all {
		for c := range 16 {
			wg.Go(func() {
				for n := range attempts / 3 / 16 {
					_, err := s.Admit(context.Background(), admission(fmt.Sprintf("run_%d_%d_%d", i, c, n), "key_1"))
					switch {
					case err == nil:
						admitted.Add(1)
					case core.CodeOf(err) == core.CodeQuotaExhausted:
						refused.Add(1)
					default:
						t.Error(err)
						return
					}
				}
			})
		}
	}
	wg.Wait()
	for i, s := range all {
		if runs, used := runsOf(t, s, "key_1"); len(runs) != limit || used != limit || admitted.Load() != limit {
			t.Errorf("server %d: %d runs, counter %d, %d acknowledged, %d refused; want exactly %d", i, len(runs), used, admitted.Load(), refused.Load(), limit)
		}
	}
	acked := map[string]bool{}
	runs, _ := runsOf(t, all[1], "key_1")
	for id := range runs {
		acked[id] = true
	}
	// prepare's two events are acceptances too, for this purpose.
	acked["wf_1"], acked["key_1"] = true, true
	if err := wantEvents(all[2], acked); err != nil {
		t.Error(err)
	}
}

// TestServersK2 revokes keys on one server while the others admit with them. An admission that begins after the revocation has
// answered is refused, on whichever server.
func TestServersK2(t *testing.T) {
	t.Parallel()
	all := servers(t, 2)
	prepare(t, all[0], key("key_0", 0))
	for round := range 12 {
		id := fmt.Sprintf("key_%d", round+1)
		k := key(id, 0)
		if err := all[0].CreateKey(t.Context(), k, accepted(id)); err != nil {
			t.Fatal(err)
		}
		var revoked atomic.Bool
		var wg sync.WaitGroup
		begun := make(chan struct{}, 64)
		for i, s := range all {
			for c := range 4 {
				wg.Go(func() {
					for n := 0; ; n++ {
						late := revoked.Load()
						_, err := s.Admit(context.Background(), admission(fmt.Sprintf("run_%s_%d_%d_%d", id, i, c, n), id))
						switch {
						case err == nil && late:
							t.Errorf("server %d admitted a run after the key was revoked", i)
							return
						case err != nil && core.CodeOf(err) != core.CodeKeyRevoked:
							t.Error(err)
							return
						case err != nil:
							return
						}
						select {
						case begun <- struct{}{}:
						default:
						}
					}
				})
			}
		}
		for range 16 {
			<-begun
		}
		if _, err := all[round%2].RevokeKey(t.Context(), core.DefaultAccount, id, "", accepted(id)); err != nil {
			t.Fatal(err)
		}
		revoked.Store(true)
		wg.Wait()
	}
}

// TestAloneOrShared checks who may open a database that another server has.
func TestAloneOrShared(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		first, second bool
		want          string
	}{
		"two with a queue":            {true, true, ""},
		"second without a queue":      {true, false, "--queue"},
		"first without a queue":       {false, true, "without a queue"},
		"neither has a queue":         {false, false, "--queue"},
		"neither, first one has gone": {false, false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := store.Config{Path: filepath.Join(t.TempDir(), "keyfire.db"), URL: storetest.Postgres(t), Shared: c.first}
			first := open(t, cfg)
			if strings.Contains(name, "gone") {
				if err := first.Close(); err != nil {
					t.Fatal(err)
				}
			}
			cfg.Shared = c.second
			second, err := store.Open(t.Context(), cfg)
			if err == nil {
				defer second.Close()
			}
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("second server: error = %v, want one with %q", err, c.want)
			}
			if err != nil && !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
				t.Errorf("error = %v, want the other server's process in it", err)
			}
		})
	}
}

// TestPostgresRestartD4 ends the database at any moment, again and again, while two servers admit. What was acknowledged is there, what was
// refused is not, and the servers come back by themselves.
func TestPostgresRestartD4(t *testing.T) {
	t.Parallel()
	rounds := 6
	if testing.Short() {
		rounds = 2
	}
	pg := storetest.NewPostgres(t)
	var all []*store.Store
	for range 2 {
		all = append(all, open(t, store.Config{Path: filepath.Join(t.TempDir(), "keyfire.db"), URL: pg.URL, Shared: true}))
	}
	prepare(t, all[0], key("key_1", 0))
	var (
		mu             sync.Mutex
		acked, refused = map[string]bool{}, map[string]bool{}
		wg             sync.WaitGroup
		admitted       atomic.Int64
	)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for i, s := range all {
		for c := range 4 {
			wg.Go(func() {
				for n := 0; ctx.Err() == nil; n++ {
					id := fmt.Sprintf("run_%d_%d_%d", i, c, n)
					_, err := s.Admit(context.Background(), admission(id, "key_1"))
					mu.Lock()
					if err == nil {
						acked[id] = true
						admitted.Add(1)
					} else {
						refused[id] = true
					}
					mu.Unlock()
					if err != nil && core.CodeOf(err) != core.CodeStoreUnavailable && core.CodeOf(err) != core.CodeOverloaded {
						t.Error(err)
						return
					}
					if err != nil {
						time.Sleep(time.Millisecond) // not to count a million refusals
					}
				}
			})
		}
	}
	more := func(n int64) {
		for want := admitted.Load() + n; admitted.Load() < want && !t.Failed(); {
			time.Sleep(5 * time.Millisecond)
		}
	}
	for round := range rounds {
		more(int64(50 + 37*round))
		pg.Kill()
		if err := pg.Start(); err != nil {
			t.Fatal(err)
		}
	}
	more(50)
	cancel()
	wg.Wait()
	runs, used := runsOf(t, all[0], "key_1")
	for id := range acked {
		if !runs[id] {
			t.Errorf("run %s was acknowledged and is gone", id)
		}
	}
	for id := range refused {
		if runs[id] {
			t.Errorf("run %s was refused and is there", id)
		}
	}
	if int64(len(runs)) != used {
		t.Errorf("%d runs and the counter is %d", len(runs), used)
	}
	t.Logf("%d restarts, %d acknowledged, %d refused", rounds, len(acked), len(refused))
}

// TestStoppedServer stops a server in the middle of its transactions. The others go on once the database has ended what it held, and
// what it says when it wakes up does not count.
func TestStoppedServer(t *testing.T) {
	inChild(admitOnPostgres)
	t.Parallel()
	url := storetest.Postgres(t)
	s := open(t, store.Config{Path: filepath.Join(t.TempDir(), "keyfire.db"), URL: url, Shared: true})
	prepare(t, s, key("key_1", 0))
	cmd := child(t, url)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	one := make([]byte, 1)
	for i := range 3 {
		if _, err := out.Read(one); err != nil { // it admits
			t.Fatal(err)
		}
		if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		if _, err := s.Admit(t.Context(), admission(fmt.Sprintf("run_mine_%d", i), "key_1")); err != nil {
			t.Fatalf("while another server is stopped: %v", err)
		}
		if took := time.Since(begun); took > 10*time.Second {
			t.Errorf("waited %v for a server that is stopped", took)
		}
		if err := cmd.Process.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
	}
	runs, used := runsOf(t, s, "key_1")
	if int64(len(runs)) > used {
		t.Errorf("%d runs and the counter was %d a moment later", len(runs), used)
	}
}

func admitOnPostgres(url string) error {
	dir, err := os.MkdirTemp("", "kf")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	s, err := store.Open(context.Background(), store.Config{Path: filepath.Join(dir, "keyfire.db"), URL: url, Shared: true})
	if err != nil {
		return err
	}
	for i := 0; ; i++ {
		if _, err := s.Admit(context.Background(), admission(fmt.Sprintf("run_child_%d", i), "key_1")); err != nil && core.CodeOf(err) != core.CodeStoreUnavailable {
			return err
		}
		if i%20 == 0 {
			fmt.Print(".")
		}
	}
}

// TestAgree checks that servers with other keys than the database was used with are told so.
func TestAgree(t *testing.T) {
	t.Parallel()
	for name, s := range map[string]*store.Store{"sqlite": open(t, store.Config{}), "postgres": openPostgres(t, store.Config{})} {
		ctx := t.Context()
		if err := s.Agree(ctx, map[string][]byte{"pepper 1": []byte("a"), "secrets": []byte("b")}); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := s.Agree(ctx, map[string][]byte{"pepper 1": []byte("a"), "pepper 2": []byte("c")}); err != nil {
			t.Errorf("%s: one more: %v", name, err)
		}
		err := s.Agree(ctx, map[string][]byte{"pepper 1": []byte("x"), "pepper 3": []byte("d")})
		if core.CodeOf(err) != core.CodeConflict {
			t.Errorf("%s: another pepper: error = %v, want conflict", name, err)
		}
		names, err := s.Agreed(ctx)
		if err != nil || strings.Join(names, ",") != "pepper 1,pepper 2,secrets" {
			t.Errorf("%s: recorded are %q (%v)", name, names, err)
		}
	}
}

// TestSigningKeys checks that keys of two servers are kept side by side, that one that is there stays as it is, and that a copy of the database has them.
func TestSigningKeys(t *testing.T) {
	t.Parallel()
	for name, s := range map[string]*store.Store{"sqlite": open(t, store.Config{}), "postgres": openPostgres(t, store.Config{})} {
		ctx := t.Context()
		want := func(when, want string) {
			t.Helper()
			keys, err := s.SigningKeys(ctx)
			if got := fmt.Sprintf("%s", keys); err != nil || got != want {
				t.Errorf("%s, %s: %s (%v), want %s", name, when, got, err, want)
			}
		}
		puts := 0
		put := func(keys map[string][]byte, remove ...string) {
			t.Helper()
			puts++
			if err := s.PutSigningKeys(ctx, keys, remove, accepted(fmt.Sprint("put_", puts))); err != nil {
				t.Fatal(err)
			}
		}
		want("at first", "map[]")
		put(map[string][]byte{"a": []byte("sealed a")})
		put(map[string][]byte{"a": []byte("sealed again"), "b": []byte("sealed b")})
		want("of two servers", "map[a:sealed a b:sealed b]")
		put(map[string][]byte{"c": []byte("sealed c")}, "a", "none")
		want("after a rotation", "map[b:sealed b c:sealed c]")
		put(map[string][]byte{"b": []byte("sealed again")}, "a")
		want("when nothing is new", "map[b:sealed b c:sealed c]")
		l, err := s.AuditEvents(ctx, core.DefaultAccount, core.AuditFilter{}, core.Page{})
		if err != nil || len(l.Items) != puts-1 || l.Items[0].Object != "put_3" {
			t.Errorf("%s: %d changes have the events %+v (%v)", name, puts-1, l.Items, err)
		}
	}
}

// TestPostgresRefuses checks what is said about a database that cannot serve.
func TestPostgresRefuses(t *testing.T) {
	t.Parallel()
	good := storetest.Postgres(t)
	refuser, weak := refusing(t), userWithoutRights(t, good)
	for name, c := range map[string]struct{ url, want string }{
		"not a URL":     {"postgres://%zz:hidden@x/", "cannot be parsed"},
		"not escaped":   {"postgres://keyfire:p@x/hidden@127.0.0.1:1/keyfire", "write @ / ? # and , as %40 %2F %3F %23 and %2C"},
		"nobody there":  {"postgres://keyfire:hidden@127.0.0.1:1/keyfire?connect_timeout=2", "127.0.0.1"},
		"no schema":     {strings.Replace(good, "search_path=", "search_path=none_", 1), "search_path"},
		"other dialect": {"mysql://keyfire:hidden@127.0.0.1/keyfire", "postgres://"},
		"no TLS":        {"postgres://keyfire:hidden@" + refuser + "/keyfire?sslmode=require", refuser + " (127.0.0.1): tls error: server refused TLS connection"},
		"no TLS twice":  {"postgres://keyfire:hidden@" + refuser + "," + refuser + "/keyfire?sslmode=require", "server refused TLS connection"},
		"no such file":  {"postgres://keyfire:hidden@" + refuser + "/keyfire?sslmode=verify-ca&sslrootcert=/none/ca.pem", "TLS cannot be used: unable to read CA file: open /none/ca.pem"},
		"no such mode":  {"postgres://keyfire:hidden@" + refuser + "/keyfire?sslmode=full", "sslmode is invalid"},
		"wrong":         {"postgres://keyfire:hidden@" + refuser + "/keyfire", `password authentication failed for user "keyfire" (SQLSTATE 28P01)`},
		"no password":   {"postgres://keyfire@" + refuser + "/keyfire?passfile=/none", "no password was found for it, which belongs into the password file"},
		"no rights":     {weak, "permission denied for schema"},
		"no owner":      {weak, "let it own the database"},
	} {
		_, err := store.Open(t.Context(), store.Config{Path: "x", URL: c.url})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error = %v, want one with %q", name, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), "hidden") {
			t.Errorf("%s: the password is in the error: %v", name, err)
		}
	}
}

// refusing listens as a PostgreSQL without TLS that takes no password, and returns its address.
func refusing(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer conn.Close()
				for {
					var head [8]byte // length and what is asked for, in four bytes each
					if _, err := io.ReadFull(conn, head[:]); err != nil {
						return
					}
					if n := binary.BigEndian.Uint32(head[:4]); n > 8 { // a user begins a session
						_, _ = io.CopyN(io.Discard, conn, int64(n)-8)
						said := "SFATAL\x00C28P01\x00Mpassword authentication failed for user \"keyfire\"\x00\x00"
						_, _ = conn.Write(append(binary.BigEndian.AppendUint32([]byte{'E'}, uint32(len(said))+4), said...))
						return
					}
					_, _ = conn.Write([]byte{'N'})
				}
			})
		}
	})
	t.Cleanup(func() { _ = l.Close(); serving.Wait() })
	return l.Addr().String()
}

// userWithoutRights returns the address of a schema in the name of a user who may look at it only.
func userWithoutRights(t *testing.T, server string) string {
	t.Helper()
	db, err := sql.Open("pgx", server)
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	name := "weak_" + q.Get("search_path")
	if _, err := db.ExecContext(t.Context(), "create user "+name+"; grant usage on schema "+q.Get("search_path")+" to "+name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := db.ExecContext(context.Background(), "drop owned by "+name+"; drop user "+name); err != nil {
			t.Error(err)
		}
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	q.Set("user", name)
	u.RawQuery = q.Encode()
	return u.String()
}

// TestTimeoutIsForAll has PostgreSQL give up what a server waits for, as its timeout does: all that were to be written together are refused at once. Tried one by one, the last
// of them would wait for as many timeouts as there are.
func TestTimeoutIsForAll(t *testing.T) {
	t.Parallel()
	const callers = 24
	address := storetest.Postgres(t)
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	q.Set("application_name", "given_up")
	u.RawQuery = q.Encode()
	s := open(t, store.Config{Path: filepath.Join(t.TempDir(), "keyfire.db"), URL: u.String(), Shared: true})
	prepare(t, s, key("key_1", 0))
	db, err := sql.Open("pgx", address)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	lock, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Rollback()
	if _, err := lock.ExecContext(t.Context(), "lock table runs"); err != nil {
		t.Fatal(err)
	}
	answers := make(chan error, callers)
	for i := range callers {
		go func() {
			_, err := s.Admit(context.Background(), admission(fmt.Sprintf("run_%d", i), "key_1"))
			answers <- err
		}()
	}
	answered, cancelled := 0, 0
	for answered < callers {
		// Only what waits for the table is given up: the transaction is under way then.
		var n int
		if err := db.QueryRowContext(t.Context(), `select count(pg_cancel_backend(pid)) from pg_stat_activity where application_name = 'given_up' and wait_event_type = 'Lock' and wait_event = 'relation'`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		cancelled += n
		for more := true; more; {
			select {
			case err := <-answers:
				answered++
				if core.CodeOf(err) != core.CodeStoreUnavailable {
					t.Errorf("admitted while the table is locked: %v", err)
				}
			case <-time.After(20 * time.Millisecond):
				more = false
			}
		}
	}
	// One for each batch; a first one may hold a single change, and a beat can come between.
	if cancelled > callers/3 {
		t.Errorf("%d callers are told after %d timeouts", callers, cancelled)
	}

	// What is given up with the commit, because nothing before it needed an answer, does not keep the lock that all servers write under.
	if err := lock.Rollback(); err != nil {
		t.Fatal(err)
	}
	touch := func() error { return s.TouchKeys(context.Background(), map[string]time.Time{"key_1": time.Now()}) }
	if err := touch(); err != nil { // the statement is prepared from now on, which would wait before the transaction begins
		t.Fatal(err)
	}
	if lock, err = db.BeginTx(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	defer lock.Rollback()
	if _, err := lock.ExecContext(t.Context(), "lock table keys"); err != nil {
		t.Fatal(err)
	}
	touched := make(chan error, 1)
	go func() { touched <- touch() }()
	var refused error
	for refused == nil {
		if _, err := db.ExecContext(t.Context(), `select pg_cancel_backend(pid) from pg_stat_activity where application_name = 'given_up' and wait_event_type = 'Lock' and wait_event = 'relation'`); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-touched:
			if refused = err; err == nil {
				t.Fatal("a key was touched while the table is locked")
			}
		case <-time.After(20 * time.Millisecond):
		}
	}
	var open int
	if err := db.QueryRowContext(t.Context(), `select count(*) from pg_stat_activity where application_name = 'given_up' and state like 'idle in transaction%'`).Scan(&open); err != nil || open != 0 {
		t.Errorf("%d transactions are still open (%v) after %v", open, err, refused)
	}
	if err := lock.Rollback(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Admit(t.Context(), admission("run_last", "key_1")); err != nil {
		t.Errorf("once the table is free: %v", err)
	}
}
