package cli

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keyfire/keyfire/sdk/client"
)

// pseudoTerminal returns the two ends of one: what a person types into and reads from, and what a program has as its input.
func pseudoTerminal(t *testing.T) (person, program *os.File) {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { person.Close() })
	if err := unix.IoctlSetPointerInt(int(person.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(person.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { program.Close() })
	return person, program
}

// On a terminal the password is asked for, and not echoed; afterwards the terminal is as it was.
func TestLoginOnATerminal(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	const password = "lamp-orchid-9-violet"
	if _, err := s.admin.CreateUser(t.Context(), "ada", "viewer", password); err != nil {
		t.Fatal(err)
	}
	person, program := pseudoTerminal(t)
	home := t.TempDir()
	var stdout bytes.Buffer
	stderr := &syncBuffer{}
	cmd := exec.Command("keyfire", "login", "--url", s.url)
	cmd.Env = cleanEnv("HOME="+home, "XDG_CONFIG_HOME=")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = program, &stdout, stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	echoes := func() bool {
		state, err := unix.IoctlGetTermios(int(program.Fd()), unix.TCGETS)
		if err != nil {
			t.Fatal(err)
		}
		return state.Lflag&unix.ECHO != 0
	}
	until := func(what string, ready func() bool) {
		t.Helper()
		for deadline := time.Now().Add(startTimeout); !ready(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s; it said %q", what, stderr)
			}
		}
	}
	until("no question for the user", func() bool { return strings.Contains(stderr.String(), "User: ") })
	if _, err := person.WriteString("ada\n"); err != nil {
		t.Fatal(err)
	}
	until("no question for the password, or its answer would be shown", func() bool { return strings.Contains(stderr.String(), "Password: ") && !echoes() })
	if _, err := person.WriteString(password + "\n"); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v: %s", err, stderr)
	}
	if !echoes() {
		t.Error("the terminal does not echo any more")
	}
	shown := make([]byte, 4096)
	n, err := person.Read(shown)
	if err != nil {
		t.Fatal(err)
	}
	if got := string(shown[:n]); !strings.Contains(got, "ada") || strings.Contains(got, "lamp") {
		t.Errorf("the terminal shows %q", got)
	}
	if !strings.HasPrefix(stdout.String(), "logged in to "+s.url+" as ada (viewer)") {
		t.Errorf("it said %q", stdout.String())
	}
	if _, err := os.Stat(filepath.Join(home, ".config/keyfire/credentials.json")); err != nil {
		t.Error(err)
	}
}

// L9: a superuser that the environment names is made at the start, once; its password comes from a file or the environment and is nowhere in what the server writes.
func TestSuperuserFromEnvironmentL9(t *testing.T) {
	t.Parallel()
	data := filepath.Join(t.TempDir(), "data")
	copyData(t, data)
	file := filepath.Join(t.TempDir(), "password")
	const first, second = "lamp-orchid-9-violet", "violet-9-orchid-lamp"
	if err := os.WriteFile(file, []byte(first+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var log syncBuffer
	run := func(try func(c *client.Client), env ...string) {
		t.Helper()
		cmd := exec.Command("keyfire", "serve", "--json", "--data", data, "--listen", "127.0.0.1:0", "--log-level", "debug")
		cmd.Env = cleanEnv(env...)
		p, err := launchCommand(cmd, data, &log)
		if err != nil {
			t.Fatalf("%v\n%s", err, &log)
		}
		s := &testServer{process: p}
		try(s.client(t, ""))
		if err := p.stop(); err != nil {
			t.Error(err)
		}
	}
	login := func(password string, want bool) func(*client.Client) {
		return func(c *client.Client) {
			t.Helper()
			ses, err := c.Login(t.Context(), "", "Root", password)
			if (err == nil) != want || want && ses.User.Role != "superuser" {
				t.Errorf("login with %q: %+v, %v", password, ses, err)
			}
		}
	}
	run(login(first, true), "KEYFIRE_SUPERUSER=root", "KEYFIRE_SUPERUSER_PASSWORD_FILE="+file)
	run(login(first, true), "KEYFIRE_SUPERUSER=root", "KEYFIRE_SUPERUSER_PASSWORD="+second)
	run(login(second, false), "KEYFIRE_SUPERUSER=root", "KEYFIRE_SUPERUSER_PASSWORD="+second)
	if text := log.String(); strings.Contains(text, "lamp") || strings.Contains(text, "kfs_") || strings.Count(text, "superuser made") != 1 {
		t.Errorf("the log: %s", tail(text, 4000))
	}
}
