package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"

	"github.com/keyfire/keyfire/sdk/authplugin"
	"github.com/keyfire/keyfire/sdk/client"
)

// TestMain makes the test binary double as keyfire: tests run real server processes without a build step of their own.
func TestMain(m *testing.M) {
	testscript.Main(leakChecker{m}, map[string]func(){
		"keyfire": func() {
			os.Exit(Main(context.Background(), Env{
				Args: os.Args[1:], Environ: os.Environ(), Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Version: "test", CompileHere: raceEnabled,
			}))
		},
		"keyfire-auth-test": func() { authplugin.Serve(testBackend{}) },
	})
}

type leakChecker struct{ m *testing.M }

func (l leakChecker) Run() int {
	var err error
	if nodeCache, err = os.MkdirTemp("", "keyfire-test-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := l.m.Run()
	os.RemoveAll(shared.dir)
	os.RemoveAll(nodeCache)
	http.DefaultClient.CloseIdleConnections()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return code
}

// startTimeout bounds the waits of tests for things that take milliseconds on an idle machine.
const startTimeout = 60 * time.Second

// shared is what is made once for all tests: the workflows of testdata with their compiled node, and a data directory in which
// they are published. Tests start from a copy of it, so that none pays for compiling.
var shared struct {
	once sync.Once
	dir  string
	err  error
}

// nodeCache is where keyfire node keeps what it compiled in tests, so that each module is compiled once.
var nodeCache string

// workflowsDir returns a directory with the test workflows, ready to apply.
func workflowsDir(t testing.TB) string { return filepath.Join(sharedDir(t), "workflows") }

func sharedDir(t testing.TB) string {
	t.Helper()
	shared.once.Do(func() { shared.err = makeShared() })
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.dir
}

func makeShared() (err error) {
	if shared.dir, err = os.MkdirTemp("", "keyfire-test-"); err != nil {
		return err
	}
	workflows := filepath.Join(shared.dir, "workflows")
	if err := os.CopyFS(workflows, os.DirFS("testdata/workflows")); err != nil {
		return err
	}
	build := exec.Command("go", "build", "-trimpath", "-o", filepath.Join(workflows, "node.wasm"), "./testdata/node")
	build.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "CGO_ENABLED=0", "GOFLAGS=-trimpath")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("compile the test node: %w\n%s", err, out)
	}
	return publishTo(filepath.Join(shared.dir, "data"), workflows)
}

// publishTo makes a data directory with published workflows.
func publishTo(data, workflows string) error {
	s, err := launch(data, io.Discard)
	if err != nil {
		return err
	}
	apply := exec.Command("keyfire", "apply", workflows)
	apply.Env = cleanEnv("KEYFIRE_DATA=" + data)
	if out, err := apply.CombinedOutput(); err != nil {
		return errors.Join(fmt.Errorf("apply %s: %w\n%s", workflows, err, out), s.kill())
	}
	return s.stop()
}

// cleanEnv is the environment of this process without Keyfire's own variables, and with more.
func cleanEnv(more ...string) []string {
	var env []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, envPrefix) && !strings.HasPrefix(kv, "OTEL_") {
			env = append(env, kv)
		}
	}
	return append(append(env, envNodeCache+"="+nodeCache), more...)
}

// process is a running `keyfire serve`.
type process struct {
	url  string
	data string
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // how, once done is closed

	killed atomic.Bool // on purpose
}

// launch starts a server on a free port and waits until it says that it listens.
func launch(data string, log io.Writer, args ...string) (*process, error) {
	return launchCommand(exec.Command("keyfire", append([]string{"serve", "--json", "--data", data, "--listen", "127.0.0.1:0"}, args...)...), data, log)
}

func launchCommand(cmd *exec.Cmd, data string, log io.Writer) (*process, error) {
	s := &process{data: data, cmd: cmd, done: make(chan struct{})}
	if cmd.Env == nil {
		cmd.Env = cleanEnv()
	}
	cmd.Stderr = log
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	lines := make(chan string, 1)
	go func() {
		r := bufio.NewReader(stdout)
		line, _ := r.ReadString('\n')
		lines <- line
		_, _ = io.Copy(io.Discard, r)
		s.err = cmd.Wait()
		close(s.done)
	}()
	select {
	case line := <-lines:
		var hello struct{ URL string }
		if err := json.Unmarshal([]byte(line), &hello); err != nil || hello.URL == "" {
			<-s.done
			return nil, fmt.Errorf("the server did not start: %w (it said %q)", s.err, line)
		}
		s.url = hello.URL
		return s, nil
	case <-time.After(startTimeout):
		return nil, errors.Join(errors.New("the server does not say that it listens"), s.kill())
	}
}

func (s *process) signal(sig os.Signal) error {
	if err := s.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-s.done:
		return nil
	case <-time.After(startTimeout):
		return fmt.Errorf("the server does not end on %v", sig)
	}
}

// stop ends the server as an operator does. It must exit with status 0.
func (s *process) stop() error {
	if err := s.signal(syscall.SIGTERM); err != nil {
		return err
	}
	return s.err
}

// kill ends the server as a power failure does.
func (s *process) kill() error {
	s.killed.Store(true)
	return s.signal(syscall.SIGKILL)
}

// testServer is a server of one test with its client and its log.
type testServer struct {
	*process
	admin *client.Client // over the socket, so it needs no key
	log   *syncBuffer
}

// startServer starts a server on a fresh copy of the shared data directory. It is stopped, and must stop well, when the test ends.
func startServer(t testing.TB, args ...string) *testServer {
	t.Helper()
	data := filepath.Join(t.TempDir(), "data")
	copyData(t, data)
	return startServerOn(t, data, args...)
}

func copyData(t testing.TB, data string) {
	t.Helper()
	if err := copyDir(data, filepath.Join(sharedDir(t), "data")); err != nil {
		t.Fatal(err)
	}
}

// copyCompiled makes a data directory with no more in it than the compiled modules of another.
func copyCompiled(dst, src string) error {
	if err := os.Mkdir(dst, 0o700); err != nil {
		return err
	}
	key, err := os.ReadFile(filepath.Join(src, cacheDir+".key"))
	if err != nil {
		return err
	}
	return errors.Join(os.WriteFile(filepath.Join(dst, cacheDir+".key"), key, 0o600), copyDir(filepath.Join(dst, cacheDir), filepath.Join(src, cacheDir)))
}

// copyDir copies a directory with its modes, which os.CopyFS would widen.
func copyDir(dst, src string) error {
	return filepath.WalkDir(src, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(src, path)
		if err != nil {
			return err
		}
		target := filepath.Join(dst, rel)
		info, err := d.Info()
		switch {
		case err != nil:
			return err
		case d.IsDir():
			return os.MkdirAll(target, 0o700)
		case !info.Mode().IsRegular():
			return nil
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(target, content, info.Mode().Perm())
	})
}

func startServerOn(t testing.TB, data string, args ...string) *testServer {
	t.Helper()
	log := &syncBuffer{}
	p, err := launch(data, log, args...)
	if err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	s := &testServer{process: p, log: log}
	t.Cleanup(func() {
		if err := p.stop(); err != nil && !p.killed.Load() {
			t.Errorf("stop: %v", err)
		}
		if t.Failed() {
			t.Logf("server log:\n%s", tail(log.String(), 8<<10))
		}
	})
	s.admin = socketClient(t, data)
	return s
}

// socketClient returns a client over the socket of a data directory.
func socketClient(t testing.TB, data string) *client.Client {
	t.Helper()
	a := &app{Env: Env{Environ: []string{"HOME=" + t.TempDir()}}}
	transport := &http.Transport{
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return a.dialSocket(ctx, data) },
		DisableKeepAlives: true,
	}
	c, err := client.New(client.Config{URL: "http://localhost", HTTPClient: &http.Client{Transport: transport}})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// createKey makes a key and returns it with its secret.
func (s *testServer) createKey(t testing.TB, k client.NewKey) *client.Key {
	t.Helper()
	if k.Name == "" {
		k.Name = "test"
	}
	key, err := s.admin.CreateKey(t.Context(), k)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// client returns a client over TCP that sends the given key.
func (s *testServer) client(t testing.TB, secret string) *client.Client {
	t.Helper()
	transport := &http.Transport{MaxIdleConnsPerHost: 64}
	t.Cleanup(transport.CloseIdleConnections)
	c, err := client.New(client.Config{URL: s.url, Key: secret, HTTPClient: &http.Client{Transport: transport}})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// syncBuffer is a buffer that one goroutine may read while another writes.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func tail(text string, n int) string {
	if len(text) > n {
		return "..." + text[len(text)-n:]
	}
	return text
}
