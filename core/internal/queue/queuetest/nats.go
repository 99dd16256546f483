package queuetest

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// Nats is a NATS server of a test's own.
type Nats struct {
	URL string

	dir, bin string
	port     string
	process  *exec.Cmd
	life     *os.File
}

// NewNats starts a nats-server with JetStream, and what is more in its configuration, that ends with the test. Without the program the test is skipped, on CI it fails.
func NewNats(t testing.TB, configuration ...string) *Nats {
	t.Helper()
	bin, err := exec.LookPath("nats-server")
	if err != nil && os.Getenv("CI") == "true" {
		t.Fatalf("nats-server cannot be had, and CI must have it: %v", err)
	} else if err != nil {
		t.Skipf("NOT TESTED: nats-server cannot be had here: %v", err)
	}
	s := &Nats{dir: t.TempDir(), bin: bin, port: "-1"}
	if err := s.Configure(strings.Join(configuration, "\n")); err != nil {
		t.Fatal(err)
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Kill)
	return s
}

// NewNatsCluster starts a NATS cluster of three, whose JetStream may need seconds more to find a leader.
func NewNatsCluster(t testing.TB) [3]*Nats {
	t.Helper()
	var cluster [3]*Nats
	var routes [3]string
	for i := range routes { // each must know those of the others before it starts
		l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		routes[i] = l.Addr().String()
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for i, route := range routes {
		cluster[i] = NewNats(t, fmt.Sprintf("server_name: n%d\ncluster { name: test, listen: %q, routes: [ %s ] }", i, route, "nats://"+strings.Join(routes[:], ", nats://")))
	}
	return cluster
}

// Kill ends the server at once and keeps its data for Start, which starts it on the same port.
func (s *Nats) Kill() {
	_ = s.life.Close()
	_ = s.process.Wait() // it was killed
}

// Stop ends the server as its operator does, with everything on the disk, and keeps its data as Kill does.
func (s *Nats) Stop() {
	_, _ = s.life.WriteString("TERM\n")
	_ = s.process.Wait() // with the status of a process that was told to end
	_ = s.life.Close()
}

// Keep copies the messages that a server which does not run has on its disk. Back puts them there again, as a file system does that has lost what was written since, and leaves what the
// server knows of its consumers.
func (s *Nats) Keep() (back func() error, err error) {
	streams, err := filepath.Glob(filepath.Join(s.dir, "jetstream", "*", "streams", "*", "msgs"))
	if err != nil {
		return nil, err
	}
	kept := filepath.Join(s.dir, "kept")
	for i, stream := range streams {
		if err := os.CopyFS(filepath.Join(kept, fmt.Sprint(i)), os.DirFS(stream)); err != nil {
			return nil, err
		}
	}
	return func() error {
		for i, stream := range streams {
			if err := os.RemoveAll(stream); err != nil {
				return err
			}
			if err := os.CopyFS(stream, os.DirFS(filepath.Join(kept, fmt.Sprint(i)))); err != nil {
				return err
			}
		}
		return nil
	}, nil
}

// Freeze makes the server stand still, as a machine does that hangs: it takes connections and answers nothing. Thaw it before it is killed.
func (s *Nats) Freeze() error { return syscall.Kill(-s.process.Process.Pid, syscall.SIGSTOP) }

// Thaw lets a server go on that was frozen.
func (s *Nats) Thaw() error { return syscall.Kill(-s.process.Process.Pid, syscall.SIGCONT) }

// Configure writes what the server is configured with from its next start on, beside where it listens and keeps its data.
func (s *Nats) Configure(text string) error {
	return os.WriteFile(s.config(), []byte(text), 0o600)
}

func (s *Nats) config() string { return filepath.Join(s.dir, "nats.conf") }

// Forget removes the data of a server that was killed, as an operator does who starts a new one in its place.
func (s *Nats) Forget() error {
	return os.RemoveAll(filepath.Join(s.dir, "jetstream"))
}

// Start starts a server that was killed.
func (s *Nats) Start() error {
	s.process = exec.Command("sh", "-c", `"$@" & pid=$!; read -r how; kill -${how:-KILL} $pid; wait $pid`, "keeper", s.bin, "-c", s.config(), "-a", "127.0.0.1", "-p", s.port, "-js", "-sd", s.dir) //nolint:gosec,noctx // the server under test; Close ends it
	s.process.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	in, life, err := os.Pipe()
	if err != nil {
		return err
	}
	s.process.Stdin, s.life = in, life
	log, err := s.process.StderrPipe()
	if err == nil {
		err = s.process.Start()
	}
	_ = in.Close()
	if err != nil {
		return err
	}
	var said bytes.Buffer
	lines := bufio.NewScanner(log)
	for lines.Scan() {
		fmt.Fprintln(&said, lines.Text())
		if _, address, ok := strings.Cut(lines.Text(), "Listening for client connections on "); ok {
			s.URL = "nats://" + address
			_, s.port, _ = strings.Cut(address, ":")
		}
		if strings.Contains(lines.Text(), "Server is ready") {
			go func() { // what it logs further must be read, or it stops
				for lines.Scan() {
					continue
				}
			}()
			return nil
		}
	}
	s.Kill()
	return fmt.Errorf("nats-server does not start: %s", said.String())
}
