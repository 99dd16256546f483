package storetest

import (
	"context"
	"database/sql"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// PostgresVar names a PostgreSQL server that the tests may fill, such as postgres://localhost/postgres. Without it they start their own.
const PostgresVar = "KEYFIRE_TEST_POSTGRES"

// one is the server that the tests of this process share.
var one struct {
	sync.Once
	server *PostgresServer // kept, for it lives as long as its pipe is open
	url    string
	err    error
	n      atomic.Int64
}

// Postgres returns the address of an empty schema in a PostgreSQL server that all tests of the process share. Without a server to be had the
// test is skipped, on CI it fails.
func Postgres(t testing.TB) string {
	t.Helper()
	one.Do(func() {
		if one.url = os.Getenv(PostgresVar); one.url == "" {
			if one.server, one.err = startPostgres(); one.err == nil {
				one.url = one.server.URL
			}
		}
	})
	if one.err != nil {
		missing(t, "PostgreSQL", one.err)
	}
	return newSchema(t, one.url)
}

// missing skips a test for the lack of a program, or fails it where none may be lacking.
func missing(t testing.TB, what string, err error) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s cannot be had, and CI must have it: %v", what, err)
	}
	t.Skipf("NOT TESTED: %s cannot be had here: %v", what, err)
}

// newSchema makes an empty schema, dropped when the test ends, and returns the address of it.
func newSchema(t testing.TB, server string) string {
	t.Helper()
	db, err := sql.Open("pgx", server)
	if err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("kf_%d_%d_%d", os.Getpid(), time.Now().UnixNano(), one.n.Add(1))
	if _, err := db.ExecContext(t.Context(), "create schema "+name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := db.ExecContext(context.Background(), "drop schema "+name+" cascade"); err != nil {
			t.Logf("drop schema %s: %v", name, err)
		}
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	u, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	q.Set("search_path", name)
	u.RawQuery = q.Encode()
	return u.String()
}

// PostgresServer is a PostgreSQL server of a test's own, to be stopped and started in the middle of it.
type PostgresServer struct {
	URL string // of the database postgres, over a socket

	dir, bin string
	port     int
	process  *exec.Cmd
	life     *os.File // the server ends when this is closed, by whatever end of this process
}

// NewPostgres starts a server that ends with the test.
func NewPostgres(t testing.TB) *PostgresServer {
	t.Helper()
	s, err := startPostgres()
	if err != nil {
		missing(t, "PostgreSQL", err)
	}
	t.Cleanup(s.Stop)
	return s
}

// Stop ends the server at once, as a power failure would, and removes its data.
func (s *PostgresServer) Stop() {
	_ = s.life.Close()
	_ = s.process.Wait() // it was killed
}

// Kill ends the server at once and keeps its data for Start.
func (s *PostgresServer) Kill() {
	_, _ = s.life.WriteString("keep\n") // when it fails, the server is gone already
	_ = s.life.Close()
	_ = s.process.Wait() // it was killed
}

// keeper runs a server until its standard input ends, and removes its directory unless it was told to keep it.
const keeper = `dir=$1; shift; "$@" >/dev/null 2>&1 & pid=$!; read -r word; kill -QUIT $pid; wait $pid; [ "$word" = keep ] || rm -rf "$dir"`

// Standby starts a standby of the server, which follows it and ends with the test.
func (s *PostgresServer) Standby(t testing.TB) *PostgresServer {
	t.Helper()
	standby, err := makePostgres("pg_basebackup", "-d", s.URL, "--checkpoint=fast", "--write-recovery-conf")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(standby.Stop)
	return standby
}

// startPostgres makes a database cluster in a directory of its own and starts a server on it.
func startPostgres() (*PostgresServer, error) {
	return makePostgres("initdb", "-U", "keyfire", "-A", "trust", "-E", "UTF8", "-k")
}

// makePostgres has a program of PostgreSQL make a cluster and starts a server on it.
func makePostgres(program string, args ...string) (_ *PostgresServer, err error) {
	bin, err := findPostgres()
	if err != nil {
		return nil, err
	}
	// Not in the test's directory: the path of a socket has room for 107 bytes.
	dir, err := os.MkdirTemp("", "kfpg")
	if err != nil {
		return nil, err
	}
	s := &PostgresServer{dir: dir, bin: bin, port: 5432}
	defer func() {
		if err != nil {
			_ = os.RemoveAll(dir)
		}
	}()
	account, err := unprivileged()
	if err != nil {
		return nil, err
	}
	if account != nil {
		if err := os.Chown(dir, int(account.Uid), int(account.Gid)); err != nil {
			return nil, err
		}
	}
	maker := exec.Command(filepath.Join(bin, program), append(args, "-D", filepath.Join(dir, "data"), "--no-sync")...) //nolint:noctx // ends by itself
	s.as(maker, account)
	if out, err := maker.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%s: %w: %s", program, err, out)
	}
	s.URL = (&url.URL{
		Scheme: "postgres", Path: "/postgres",
		RawQuery: url.Values{"host": {dir}, "port": {strconv.Itoa(s.port)}, "user": {"keyfire"}}.Encode(),
	}).String()
	return s, s.Start()
}

// Start starts a server that was killed.
func (s *PostgresServer) Start() error {
	account, err := unprivileged()
	if err != nil {
		return err
	}
	s.process = exec.Command("sh", "-c", keeper, "keeper", s.dir, filepath.Join(s.bin, "postgres"), "-D", filepath.Join(s.dir, "data"), "-k", s.dir, "-p", strconv.Itoa(s.port), //nolint:noctx // outlives the call; Close ends it
		"-c", "listen_addresses=", "-c", "max_connections=300", "-c", "shared_buffers=64MB", "-c", "autovacuum_naptime=5s", "-c", "lc_messages=C")
	s.as(s.process, account)
	in, life, err := os.Pipe()
	if err != nil {
		return err
	}
	s.process.Stdin, s.life = in, life
	err = s.process.Start()
	_ = in.Close()
	if err != nil {
		return err
	}
	return s.wait()
}

// wait returns once the server answers.
func (s *PostgresServer) wait() error {
	db, err := sql.Open("pgx", s.URL)
	if err != nil {
		return err
	}
	defer db.Close() //nolint:errcheck // only asked
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for {
		if err = db.PingContext(ctx); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("PostgreSQL does not start: %w", err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (s *PostgresServer) as(cmd *exec.Cmd, account *syscall.Credential) {
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "TZ=UTC"}
	// A signal for the test's process group is not for the server, which ends with the keeper.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: account}
}

// findPostgres returns the directory of the newest PostgreSQL on this machine.
func findPostgres() (string, error) {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb") // Debian
	if len(found) > 0 {
		return filepath.Dir(found[len(found)-1]), nil
	}
	path, err := exec.LookPath("initdb")
	if err != nil {
		return "", err
	}
	return filepath.Dir(path), nil
}

// unprivileged returns who the server runs as: PostgreSQL refuses root. nil is whoever runs the test.
func unprivileged() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, uerr := strconv.ParseUint(u.Uid, 10, 32)
		gid, gerr := strconv.ParseUint(u.Gid, 10, 32)
		if uerr == nil && gerr == nil {
			return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
		}
	}
	return nil, fmt.Errorf("this is root, and there is no user postgres or nobody to run the server as")
}
