package cli

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keyfire/keyfire/auth"
)

func openTestDir(t *testing.T, path string) *dataDir {
	t.Helper()
	d, err := openDataDir(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func TestDataDirIsPrivate(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "a", "b")
	openTestDir(t, path)
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("new directory: mode %v, %v; want 0700", info.Mode(), err)
	}
	open := filepath.Join(t.TempDir(), "it's open")
	if err := os.Mkdir(open, 0o750); err != nil {
		t.Fatal(err)
	}
	_, err = openDataDir(open)
	if err == nil || !strings.Contains(err.Error(), `chmod 0700 '`+strings.ReplaceAll(open, "'", `'\''`)+`'`) {
		t.Errorf("directory with mode 0750: %v; want a refusal with the chmod to run", err)
	}
}

func TestDataDirHasOneHolder(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "data")
	d := openTestDir(t, path)
	if _, err := openDataDir(path); err == nil || !strings.Contains(err.Error(), "in use by the server with pid ") {
		t.Errorf("second holder: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	openTestDir(t, path)
}

func TestPepper(t *testing.T) {
	t.Parallel()
	hash := func(t *testing.T, d *dataDir) [sha256.Size]byte {
		t.Helper()
		p, err := d.pepper()
		if err != nil {
			t.Fatal(err)
		}
		sum, ok := p.Hash(p.Newest(), auth.NewSecret("x"))
		if !ok {
			t.Fatal("the newest version is unknown")
		}
		return sum
	}
	t.Run("is made once and kept", func(t *testing.T) {
		t.Parallel()
		d := openTestDir(t, filepath.Join(t.TempDir(), "data"))
		if err := os.WriteFile(d.file(pepperFile)+".new", []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
		first := hash(t, d)
		if again := hash(t, d); again != first {
			t.Error("the second read gave another pepper")
		}
		info, err := os.Stat(d.file(pepperFile))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("mode %v, %v; want 0600", info.Mode(), err)
		}
		if _, err := os.Stat(d.file(pepperFile) + ".new"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a temporary file is left: %v", err)
		}
		other := openTestDir(t, filepath.Join(t.TempDir(), "data"))
		if hash(t, other) == first {
			t.Error("two directories have the same pepper")
		}
	})
	for _, tc := range []struct {
		name    string
		prepare func(d *dataDir) error
		want    string
	}{
		{"lost", func(d *dataDir) error { return os.WriteFile(d.file(databaseFile), nil, 0o600) }, "put back the copy of it that goes with keyfire.db"},
		{"readable", func(d *dataDir) error { return os.WriteFile(d.file(pepperFile), []byte("{}"), 0o640) }, "chmod 0600"},
		{"damaged", func(d *dataDir) error {
			return os.WriteFile(d.file(pepperFile), []byte(`{"versions":{"1":"hunter2"`), 0o600)
		}, "is damaged"},
		{"short", func(d *dataDir) error {
			return os.WriteFile(d.file(pepperFile), []byte(`{"versions":{"1":"AAAA"}}`), 0o600)
		}, "version 1 has 3 bytes, want 32"},
		{"empty", func(d *dataDir) error { return os.WriteFile(d.file(pepperFile), []byte("{}"), 0o600) }, "no version given"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			d := openTestDir(t, filepath.Join(t.TempDir(), "data"))
			if err := tc.prepare(d); err != nil {
				t.Fatal(err)
			}
			_, err := d.pepper()
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
			if err != nil && bytes.Contains([]byte(err.Error()), []byte("hunter2")) {
				t.Error("the error quotes the file")
			}
		})
	}
}

func TestSocketInALongPath(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), strings.Repeat("long/", 40))
	d := openTestDir(t, path)
	for range 2 { // the second time over the file that a killed server leaves behind
		l, err := d.listen()
		if err != nil {
			t.Fatal(err)
		}
		accepted := make(chan error, 1)
		go func() {
			conn, err := l.Accept()
			if err == nil {
				err = conn.Close()
			}
			accepted <- err
		}()
		info, err := os.Stat(d.file(socketFile))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("mode %v, %v; want 0600", info.Mode(), err)
		}
		conn, err := dialUnix(t.Context(), path, socketFile)
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		if err := <-accepted; err != nil {
			t.Error(err)
		}
		l.(*socketListener).Listener.Close() // as kill -9 does: the file stays
		if _, err := os.Stat(d.file(socketFile)); err != nil {
			t.Fatal(err)
		}
	}
	l, err := d.listen()
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(d.file(socketFile)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket's file is left: %v", err)
	}
}

// TestListensEverywhere: 0.0.0.0 and [::] are no addresses to call, so what is printed for a user to paste names one that is.
func TestListensEverywhere(t *testing.T) {
	t.Parallel()
	s := startServer(t, "--listen", "0.0.0.0:0")
	if !strings.HasPrefix(s.url, "http://localhost:") {
		t.Fatalf("the server says it is at %s", s.url)
	}
	resp, err := http.Get(s.url + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("/healthz: %s", resp.Status)
	}
}

// TestTellsItsManager: systemd hears when the server listens and when it begins to stop, so that "systemctl restart" returns when the next one can be restarted.
func TestTellsItsManager(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "keyfire-") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	hear := func(want string) {
		t.Helper()
		b := make([]byte, 100)
		if err := manager.SetReadDeadline(time.Now().Add(startTimeout)); err != nil {
			t.Fatal(err)
		}
		if n, err := manager.Read(b); err != nil || string(b[:n]) != want {
			t.Fatalf("the manager hears %q, %v", b[:n], err)
		}
	}
	data := filepath.Join(t.TempDir(), "data")
	cmd := exec.Command("keyfire", "serve", "--json", "--data", data, "--listen", "127.0.0.1:0")
	cmd.Env = cleanEnv("NOTIFY_SOCKET=" + filepath.Join(dir, "notify"))
	p, err := launchCommand(cmd, data, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	hear("READY=1")
	if err := p.stop(); err != nil {
		t.Error(err)
	}
	hear("STOPPING=1")
}
