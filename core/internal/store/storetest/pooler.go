package storetest

import (
	"bytes"
	"cmp"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// poolerPort is a part of the name of a pooler's socket, in a directory of its own.
const poolerPort = "6432"

// Pooler starts pgbouncer with the given settings before a server that takes everybody at their word, and returns the address of the same schema through it. It ends with the test.
func Pooler(t testing.TB, server, settings string) string {
	t.Helper()
	program, err := exec.LookPath("pgbouncer")
	if err != nil {
		missing(t, "pgbouncer", err)
	}
	u, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	at := func(name, inURL string) string { return cmp.Or(q.Get(name), inURL) }
	// Not in the test's directory: the path of a socket has room for 107 bytes.
	dir, err := os.MkdirTemp("", "kfpb")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	ini := filepath.Join(dir, "pgbouncer.ini")
	text := fmt.Sprintf("[databases]\n* = host=%s port=%s user=%s\n[pgbouncer]\nlisten_port = %s\nunix_socket_dir = %s\nauth_type = any\n%s\n", at("host", u.Hostname()), at("port", cmp.Or(u.Port(), "5432")), at("user", u.User.Username()), poolerPort, dir, settings)
	if err := os.WriteFile(ini, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	account, err := unprivileged()
	if err != nil {
		missing(t, "a user for pgbouncer", err)
	}
	if account != nil {
		for _, name := range []string{dir, ini} {
			if err := os.Chown(name, int(account.Uid), int(account.Gid)); err != nil {
				t.Fatal(err)
			}
		}
	}
	var said bytes.Buffer
	cmd := exec.Command(program, ini) //nolint:noctx // ends with the test
	cmd.Dir, cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = dir, &said, &said, &syscall.SysProcAttr{Credential: account}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
		if t.Failed() {
			t.Log(said.String())
		}
	})
	for socket, end := filepath.Join(dir, ".s.PGSQL."+poolerPort), time.Now().Add(30*time.Second); ; time.Sleep(5 * time.Millisecond) {
		if c, err := net.Dial("unix", socket); err == nil { //nolint:noctx // that it is there is not enough: it is bound before it listens
			_ = c.Close()
			break
		} else if time.Now().After(end) {
			t.Fatalf("pgbouncer does not start: %v", err)
		}
	}
	q.Set("host", dir)
	q.Set("port", poolerPort)
	u.RawQuery = q.Encode()
	return u.String()
}
