package cli

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
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
	own := ""
	if dir := os.Getenv("KEYFIRE_TEST_CACHE"); dir != "" {
		nodeCache = filepath.Join(dir, "cli")
		err = os.MkdirAll(nodeCache, 0o700)
	} else {
		own, err = os.MkdirTemp("", "keyfire-test-")
		nodeCache = own
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := l.m.Run()
	os.RemoveAll(shared.dir)
	os.RemoveAll(own)
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

// nodeCache is where keyfire node keeps what it compiled in tests, and where servers find it, so that each module is compiled once, by all processes to which
// KEYFIRE_TEST_CACHE names the same directory.
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
	if err := copyCompiled(data, cacheDir, nodeCache, "modules"); err != nil {
		return err
	}
	s, err := launch(data, io.Discard)
	if err != nil {
		return err
	}
	apply := exec.Command("keyfire", "apply", workflows)
	apply.Env = cleanEnv("KEYFIRE_DATA=" + data)
	if out, err := apply.CombinedOutput(); err != nil {
		return errors.Join(fmt.Errorf("apply %s: %w\n%s", workflows, err, out), s.kill())
	}
	return errors.Join(s.stop(), copyCompiled(nodeCache, "modules", data, cacheDir))
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

// copyCompiled gives a directory the compiled modules of another, each with the name of its cache there. It does nothing when there are none, or when what is there
// already has another key.
func copyCompiled(dst, as, src, from string) error {
	key, err := os.ReadFile(filepath.Join(src, from+".key"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = os.MkdirAll(dst, 0o700)
	}
	if err != nil {
		return err
	}
	// Other processes may be at it. A link makes the key appear with all its bytes.
	whole := filepath.Join(dst, as+".key."+rand.Text())
	if err := os.WriteFile(whole, key, 0o600); err != nil {
		return err
	}
	defer os.Remove(whole)
	if err := os.Link(whole, filepath.Join(dst, as+".key")); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if have, err := os.ReadFile(filepath.Join(dst, as+".key")); err != nil || !bytes.Equal(have, key) {
		return err
	}
	return linkDir(filepath.Join(dst, as), filepath.Join(src, from))
}

// linkDir makes the files of a compile cache those of another cache too, which saves copying them: they are replaced and never changed.
func linkDir(dst, src string) error {
	return filepath.WalkDir(src, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return gone(err)
		}
		rel, err := filepath.Rel(src, path)
		switch {
		case err != nil:
			return err
		case d.IsDir() && strings.HasPrefix(d.Name(), "tmp-"):
			return fs.SkipDir
		case d.IsDir():
			return os.MkdirAll(filepath.Join(dst, rel), 0o700)
		}
		if err := gone(os.Link(path, filepath.Join(dst, rel))); !errors.Is(err, fs.ErrExist) {
			return err
		}
		return nil
	})
}

// gone takes it for success that another process has taken a file away.
func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// copyDir copies a directory with its modes, which os.CopyFS would widen. A compile cache in it is linked.
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
		case d.IsDir() && rel == cacheDir:
			if err := linkDir(target, path); err != nil {
				return err
			}
			return fs.SkipDir
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

// waitUntil waits for what happens in the background of another process.
func waitUntil(t *testing.T, done func() bool) {
	t.Helper()
	for end := time.Now().Add(startTimeout); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not happen")
		}
	}
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
