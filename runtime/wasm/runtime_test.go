package wasm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/keyfire/keyfire/core"
)

// sharedDir holds the guests that the tests compile, and compiledDir the compile cache that they share, with those of other processes to which KEYFIRE_TEST_CACHE names
// the same directory.
var sharedDir, compiledDir string

// childArgument makes the test binary the process that modules are compiled in, as a hidden command does for the server.
const childArgument = "compile-module"

func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == childArgument {
		os.Exit(CompileChild(os.Stdin, os.Stdout))
	}
	if len(os.Args) == 2 && os.Args[1] == pulseArgument {
		pulse()
		os.Exit(0)
	}
	var err error
	if sharedDir, err = os.MkdirTemp("", "keyfire-wasm-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	defer os.RemoveAll(sharedDir)
	compiledDir = filepath.Join(sharedDir, "cache")
	if dir := os.Getenv("KEYFIRE_TEST_CACHE"); dir != "" {
		compiledDir = filepath.Join(dir, "wasm")
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		os.RemoveAll(sharedDir)
		os.Exit(code)
	}))
}

// goGuest compiles testdata/guest once for all tests.
var goGuest = sync.OnceValues(func() ([]byte, error) {
	out := filepath.Join(sharedDir, "guest.wasm")
	cmd := exec.Command("go", "build", "-o", out, "./testdata/guest")
	cmd.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm")
	if b, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w\n%s", err, b)
	}
	return os.ReadFile(out)
})

func guestModule(t testing.TB) []byte {
	t.Helper()
	b, err := goGuest()
	if err != nil {
		t.Fatalf("compile the guest: %v", err)
	}
	return b
}

// library is a set of published modules.
type library struct {
	mu      sync.Mutex
	modules map[string][]byte
	loads   int
}

func (l *library) load(_ context.Context, _, digest string) ([]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.loads++
	b, ok := l.modules[digest]
	if !ok {
		return nil, core.Errorf(core.CodeNotFound, "no such module")
	}
	return b, nil
}

// compileCommand is this test binary as a compiler, or one built without the race detector: with it, a Go module would run into the limit of CPU.
func compileCommand(t testing.TB) []string {
	t.Helper()
	if raceEnabled {
		path, err := plainCompiler()
		if err != nil {
			t.Fatalf("build the compiler: %v", err)
		}
		return []string{path, childArgument}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return []string{self, childArgument}
}

var plainCompiler = sync.OnceValues(func() (string, error) {
	out := filepath.Join(sharedDir, "compiler")
	// A test binary like this one: the engine keeps what it compiles under the version it finds in the binary, which tests do not have.
	cmd := exec.Command("go", "test", "-c", "-o", out, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-trimpath")
	if b, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w\n%s", err, b)
	}
	return out, nil
})

type bundle struct {
	*Runtime
	library *library
}

func setup(t testing.TB, change ...func(*Config)) bundle {
	t.Helper()
	lib := &library{modules: make(map[string][]byte)}
	c := Config{CacheDir: compiledDir, Load: lib.load, CompileCommand: compileCommand(t)}
	for _, f := range change {
		f(&c)
	}
	r, err := New(t.Context(), c)
	if err != nil {
		t.Fatalf("New: %v", err)
	}
	r.childWall, r.bootTime = 8*childWall, 8*bootTime // what the machine does beside the tests is no failure of theirs
	t.Cleanup(func() {
		if err := r.Close(context.Background()); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return bundle{r, lib}
}

// publish compiles a module and returns its digest.
func (b bundle) publish(t testing.TB, binary []byte) string {
	t.Helper()
	info, err := b.Compile(t.Context(), binary)
	if err != nil {
		t.Fatalf("Compile: %v", err)
	}
	b.library.mu.Lock()
	defer b.library.mu.Unlock()
	b.library.modules[info.Digest] = binary
	return info.Digest
}

// Invoke gives a call that sets no timeout a minute: what the machine does beside the tests is no failure of theirs.
func (b bundle) Invoke(ctx context.Context, c Call) (Result, error) {
	if c.Limits.Timeout == 0 {
		c.Limits.Timeout = core.Duration(time.Minute)
	}
	return b.Runtime.Invoke(ctx, c)
}

func (b bundle) call(t testing.TB, digest, input string, l core.Limits) (Result, error) {
	t.Helper()
	return b.Invoke(t.Context(), Call{Account: core.DefaultAccount, Module: digest, Input: []byte(input), Limits: l})
}

// wantError checks that err is the node's, of the given class.
func wantError(t *testing.T, err error, class core.ErrorClass) *Error {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("got error %v, want an *Error of class %s", err, class)
	}
	if e.Class != class {
		t.Fatalf("got class %s (%v), want %s", e.Class, err, class)
	}
	return e
}

func TestInvokeEcho(t *testing.T) {
	t.Parallel()
	b := setup(t)
	d := b.publish(t, guestModule(t))
	in := `{"op":"echo","text":"ünï","n":[1,2.50,12345678901234567890]}`
	res, err := b.call(t, d, in, core.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if string(res.Output) != in {
		t.Errorf("output %s, want %s", res.Output, in)
	}
	if res.PeakMemory < 1<<20 || res.PeakMemory > DefaultMemoryLimit {
		t.Errorf("peak memory %d is not that of a Go program", res.PeakMemory)
	}
	if res.Wall <= 0 {
		t.Error("no wall time")
	}
}

func TestInvokeExit(t *testing.T) {
	t.Parallel()
	b := setup(t)
	d := b.publish(t, guestModule(t))
	tests := []struct {
		name, stdout string
		code         int
		want         Error
	}{
		{"silent", "", 7, Error{Class: core.ClassExit, ExitCode: 7, Message: "the node exited with code 7"}},
		{"chatty", "oops", 3, Error{Class: core.ClassExit, ExitCode: 3, Message: "the node exited with code 3"}},
		{"error", `{"error":{"class":"unavailable","message":"try\u0007 later\n"}}`, 1, Error{Class: core.ClassUnavailable, ExitCode: 1, Message: "try later"}},
		{
			"fail", `{"fail":{"status":409,"code":"duplicate_invoice","message":"it exists"}}`, 1,
			Error{Class: core.ClassFailed, ExitCode: 1, Message: "it exists", Status: 409, Code: "duplicate_invoice"},
		},
		{"class of the host's", `{"error":{"class":"timeout","message":"x"}}`, 1, Error{Class: core.ClassExit, ExitCode: 1, Message: "the node exited with code 1; its error.class is not unavailable, failed or denied"}},
		{"status out of range", `{"fail":{"status":200,"code":"x","message":"x"}}`, 1, Error{Class: core.ClassExit, ExitCode: 1, Message: "the node exited with code 1; its fail.status is not from 400 to 599"}},
		{"code of other characters", `{"fail":{"status":409,"code":"Not Here"}}`, 1, Error{Class: core.ClassExit, ExitCode: 1, Message: "the node exited with code 1; its fail.code is not 1 to 64 of a-z, 0-9 and _"}},
		{"status as a text", `{"fail":{"status":"409"}}`, 1, Error{Class: core.ClassExit, ExitCode: 1, Message: `the node exited with code 1; its fail is not of the form {"status": 409, "code": "...", "message": "..."}`}},
		{"class of no kind", `{"error":{"class":"retry","message":"x"}}`, 1, Error{Class: core.ClassExit, ExitCode: 1, Message: "the node exited with code 1; its error.class is not unavailable, failed or denied"}},
		{"error as a text", `{"error":"x"}`, 1, Error{Class: core.ClassExit, ExitCode: 1, Message: `the node exited with code 1; its error is not of the form {"class": "failed", "message": "..."}`}},
		{"an output that has an error", `{"error":"x","rows":3}`, 1, Error{Class: core.ClassExit, ExitCode: 1, Message: "the node exited with code 1"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			in, err := json.Marshal(map[string]any{"op": "exit", "size": tt.code, "text": tt.stdout})
			if err != nil {
				t.Fatal(err)
			}
			res, err := b.call(t, d, string(in), core.Limits{})
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("got %v, want an *Error", err)
			}
			if diff := cmp.Diff(tt.want, *e); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
			if res.Output != nil {
				t.Errorf("output %q beside an error", res.Output)
			}
		})
	}
}

func TestInvokeOutput(t *testing.T) {
	t.Parallel()
	b := setup(t)
	d := b.publish(t, guestModule(t))
	for _, tt := range []struct{ name, stdout string }{{"empty", ""}, {"two values", "1 2"}, {"text", "hello"}, {"bad UTF-8", "\"\xff\""}} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			// JSON cannot carry bad UTF-8 through the guest's decoder, so a module of a few bytes writes it.
			_, err := b.call(t, b.publish(t, writer(tt.stdout, 1)), "", core.Limits{})
			wantError(t, err, core.ClassInvalidOutput)
		})
	}
	t.Run("too much (S2)", func(t *testing.T) {
		t.Parallel()
		_, err := b.call(t, d, `{"op":"flood"}`, core.Limits{})
		if e := wantError(t, err, core.ClassLimit); !strings.Contains(e.Message, "1 MiB") {
			t.Errorf("message %q does not name the limit", e.Message)
		}
	})
	t.Run("more than the call allows", func(t *testing.T) {
		t.Parallel()
		_, err := b.call(t, d, `{"op":"echo","text":"0123456789"}`, core.Limits{Output: 10})
		wantError(t, err, core.ClassLimit)
	})
}

// writer is a module that writes text to a file descriptor and returns.
func writer(text string, fd int32) []byte {
	m := command([]string{"fd_write"}, 2, concat(i32c(fd), i32c(0), i32c(1), i32c(8), []byte{opCall, 0, 0x1a})...)
	iov := []byte{16, 0, 0, 0, byte(len(text)), 0, 0, 0}
	data := concat([]byte{0}, i32c(0), []byte{opEnd}, sized(concat(iov, make([]byte, 8), []byte(text))))
	return (&builder{m}).section(secData, vec(data)...).b
}

func TestInvokeLog(t *testing.T) {
	t.Parallel()
	b := setup(t)
	d := b.publish(t, guestModule(t))
	t.Run("lines", func(t *testing.T) {
		t.Parallel()
		res, err := b.call(t, d, `{"op":"log","size":1,"text":"one\u001b[31m\ttwo\r\n\nthree\u2028x"}`, core.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, l := range res.Log {
			got = append(got, l.Level+": "+l.Message)
		}
		if diff := cmp.Diff([]string{"info: one[31m two", "info: threex"}, got); diff != "" {
			t.Errorf("log (-want +got):\n%s", diff)
		}
	})
	t.Run("without a last newline", func(t *testing.T) {
		t.Parallel()
		res, err := b.call(t, b.publish(t, writer("bye", 2)), "", core.Limits{})
		wantError(t, err, core.ClassInvalidOutput)
		if len(res.Log) != 1 || res.Log[0].Message != "bye" {
			t.Errorf("log %v", res.Log)
		}
	})
	t.Run("flood (S2)", func(t *testing.T) {
		t.Parallel()
		line := strings.Repeat("a", 99)
		res, err := b.call(t, d, `{"op":"log","size":5000,"text":"`+line+`"}`, core.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		var kept int64
		for _, l := range res.Log {
			kept += int64(len(l.Message))
		}
		if kept != MaxLog || kept+res.LogDropped != 5000*99 {
			t.Errorf("kept %d, dropped %d", kept, res.LogDropped)
		}
	})
	t.Run("many lines", func(t *testing.T) {
		t.Parallel()
		res, err := b.call(t, d, `{"op":"log","size":1500,"text":"x"}`, core.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		if len(res.Log) != MaxLogLines || res.LogDropped != 500 {
			t.Errorf("%d lines, %d dropped", len(res.Log), res.LogDropped)
		}
	})
}

func TestInvokeDeadline(t *testing.T) {
	t.Parallel()
	b := setup(t)
	d := b.publish(t, guestModule(t))
	for _, op := range []string{`{"op":"spin"}`, `{"op":"sleep","size":60000}`} {
		t.Run(op, func(t *testing.T) {
			t.Parallel()
			res, err := b.call(t, d, op, core.Limits{Timeout: core.Duration(100 * time.Millisecond)})
			e := wantError(t, err, core.ClassTimeout)
			if !strings.Contains(e.Message, "100ms") {
				t.Errorf("message %q does not name the limit", e.Message)
			}
			if res.Wall < 100*time.Millisecond {
				t.Errorf("stopped after %s, before its time", res.Wall)
			}
		})
	}
	t.Run("the caller's", func(t *testing.T) {
		t.Parallel()
		reason := errors.New("the run was cancelled")
		ctx, cancel := context.WithCancelCause(t.Context())
		go cancel(reason)
		_, err := b.Invoke(ctx, Call{Module: d, Input: []byte(`{"op":"spin"}`)})
		var e *Error
		if !errors.Is(err, reason) || errors.As(err, &e) {
			t.Errorf("got %v, want the cause of the context", err)
		}
	})
}

func TestInvokeMemory(t *testing.T) {
	t.Parallel()
	b := setup(t)
	d := b.publish(t, guestModule(t))
	t.Run("hog (S2)", func(t *testing.T) {
		t.Parallel()
		res, err := b.call(t, d, `{"op":"hog"}`, core.Limits{Memory: 20 << 20})
		if e := wantError(t, err, core.ClassLimit); !strings.Contains(e.Message, "20 MiB") {
			t.Errorf("message %q does not name the limit", e.Message)
		}
		if res.PeakMemory > 20<<20 {
			t.Errorf("peak %d is over the limit", res.PeakMemory)
		}
	})
	t.Run("within the limit", func(t *testing.T) {
		t.Parallel()
		if _, err := b.call(t, d, `{"op":"allocate","size":30000000}`, core.Limits{}); err != nil {
			t.Error(err)
		}
	})
	t.Run("too small to start", func(t *testing.T) {
		t.Parallel()
		_, err := b.call(t, d, `{"op":"echo"}`, core.Limits{Memory: pageSize})
		wantError(t, err, core.ClassLimit)
	})
}

func TestInvokeTrap(t *testing.T) {
	t.Parallel()
	b := setup(t)
	tests := []struct {
		name, want string
		code       []byte
	}{
		{"unreachable", "the node trapped: unreachable", []byte{opUnreachable}},
		{"division", "the node trapped: integer divide by zero", concat(i32c(1), i32c(0), []byte{0x6d, 0x1a})},
		{"bounds", "the node trapped: out of bounds memory access", concat(i32c(-1), []byte{0x28, 0, 0, 0x1a})},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			res, err := b.call(t, b.publish(t, command(nil, 0, tt.code...)), "", core.Limits{})
			if e := wantError(t, err, core.ClassTrap); e.Message != tt.want {
				t.Errorf("message %q, want %q", e.Message, tt.want)
			}
			if len(res.Log) == 0 || res.Log[0].Level != "error" {
				t.Errorf("no trace in the log: %v", res.Log)
			}
		})
	}
}

// TestNoAmbientAuthority is promise S3: a guest finds no files, arguments, environment, or fine clock.
func TestNoAmbientAuthority(t *testing.T) {
	t.Parallel()
	b := setup(t)
	res, err := b.call(t, b.publish(t, guestModule(t)), `{"op":"probe"}`, core.Limits{})
	if err != nil {
		t.Fatalf("%v, log %v", err, res.Log)
	}
	if got := strings.TrimSpace(string(res.Output)); got != `{"args":0,"env":0}` {
		t.Errorf("found %s", got)
	}
}

// TestFresh is promise S5: nothing of one invocation is seen by another, and random values differ.
func TestFresh(t *testing.T) {
	t.Parallel()
	b := setup(t)
	d := b.publish(t, guestModule(t))
	type answer struct {
		Rand    string
		Order   string
		Counter int
	}
	rands, orders := map[string]bool{}, map[string]bool{}
	const calls = 8
	for range calls {
		res, err := b.call(t, d, `{"op":"random"}`, core.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		var a answer
		if err := json.Unmarshal(res.Output, &a); err != nil {
			t.Fatal(err)
		}
		if a.Counter != 1 {
			t.Errorf("counter is %d: an instance was used before", a.Counter)
		}
		rands[a.Rand], orders[a.Order] = true, true
	}
	if len(rands) != calls || len(orders) < 2 {
		t.Errorf("%d of %d random values and %d map orders differ", len(rands), calls, len(orders))
	}
}

func TestConcurrent(t *testing.T) {
	t.Parallel()
	// A budget of two calls, so that most wait.
	b := setup(t, func(c *Config) { c.MemoryBudget = 9 * callCost(DefaultMemoryLimit) / 8 })
	d := b.publish(t, guestModule(t))
	b.warm(t, d, StartReseeded)
	free := b.memory.free
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			in := fmt.Sprintf(`{"op":"echo","size":%d}`, i)
			res, err := b.call(t, d, in, core.Limits{})
			if err != nil || string(res.Output) != in {
				t.Errorf("call %d: %s, %v", i, res.Output, err)
			}
		})
	}
	wg.Wait()
	if b.library.loads > 1 { // 0 when another test has loaded it: what is kept of it is in the cache
		t.Errorf("the module was loaded %d times, want once", b.library.loads)
	}
	// The last instances are being reset.
	waitFor(t, func() bool { taken, _ := b.memory.usage(); return b.memory.size-taken == free })
}

func TestInvokeServerErrors(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var e *Error
	if _, err := b.call(t, "sha256:00", "", core.Limits{}); core.CodeOf(err) != core.CodeNotFound || errors.As(err, &e) {
		t.Errorf("unknown module: %v", err)
	}
	d := b.publish(t, writer("1", 1))
	b.library.modules["sha256:11"] = b.library.modules[d]
	if _, err := b.call(t, "sha256:11", "", core.Limits{}); err == nil || errors.As(err, &e) {
		t.Errorf("wrong bytes: %v", err)
	}
	_, err := b.call(t, d, strings.Repeat("x", MaxInput+1), core.Limits{})
	wantError(t, err, core.ClassLimit)
	if err := b.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := b.call(t, d, "", core.Limits{}); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// TestModuleCache checks that modules are closed when they no longer fit, but never while they are used.
func TestModuleCache(t *testing.T) {
	t.Parallel()
	b := setup(t, func(c *Config) {
		c.ModuleBudget, c.Engine, c.CacheDir = 1, EnginePlain, filepath.Join(t.TempDir(), "cache")
	})
	one, two := b.publish(t, writer("1", 1)), b.publish(t, writer("2", 1))
	for range 3 {
		for _, d := range []string{one, two} {
			if res, err := b.call(t, d, "", core.Limits{}); err != nil || len(res.Output) != 1 {
				t.Fatalf("%s: %s, %v", d, res.Output, err)
			}
		}
	}
	if b.library.loads != 2 || // once each; then what is kept of them is loaded
		len(b.modules.entries) != 0 || b.modules.used != 0 {
		t.Errorf("%d loads, %d modules kept, %d bytes", b.library.loads, len(b.modules.entries), b.modules.used)
	}
}

func TestCompile(t *testing.T) {
	t.Parallel()
	b := setup(t)
	info, err := b.Compile(t.Context(), writer("1", 1))
	if err != nil {
		t.Fatal(err)
	}
	want := Info{
		Door: DoorCommand, Digest: digest(writer("1", 1)), Size: int64(len(writer("1", 1))), MinMemory: pageSize,
		Imports: []string{"wasi_snapshot_preview1.fd_write"}, Exports: []string{"_start"}, Callable: []string{"_start"},
	}
	if diff := cmp.Diff(want, info); diff != "" {
		t.Errorf("info (-want +got):\n%s", diff)
	}
	if st, err := os.Stat(b.config.CacheDir); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("cache directory: %v, %v", st.Mode(), err)
	}
	tests := []struct {
		name, want string
		binary     []byte
	}{
		{"empty", "not a WebAssembly binary", nil},
		{"another format", "not a WebAssembly binary", []byte("\x7fELF\x02\x01\x01\x00")},
		{"component", "components are not supported", []byte("\x00asm\x0d\x00\x01\x00")},
		{"too large", "at most 16 MiB", make([]byte, core.MaxModule+1)},
		{"no memory", "no memory", newModule().b},
		{"no _start", "does not export _start", newModule().section(secMemory, 1, 0, 1).b},
		{"unknown import", `"env" "abort", which Keyfire does not offer; with AssemblyScript, compile with --use abort=node/abort`, newModule().section(secType, vec([]byte{0x60, 0, 0})...).
			section(secImport, vec(concat(name("env"), name("abort"), []byte{kindFunc, 0}))...).b},
		{"import of another type", "another signature", command([]string{"fd_write"}, 1)},
		{"type error", "not valid WebAssembly", command(nil, 0, 0x1a)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := b.Compile(t.Context(), tt.binary)
			if core.CodeOf(err) != core.CodeInvalidModule || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want invalid_module with %q", err, tt.want)
			}
		})
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	load := (&library{}).load
	for _, c := range []Config{
		{},
		{CacheDir: t.TempDir()},
		{CacheDir: t.TempDir(), Load: load, MemoryLimit: -1 << 20},
		{CacheDir: t.TempDir(), Load: load, MemoryLimit: 5 << 30},
		{CacheDir: t.TempDir(), Load: load, MemoryBudget: 1 << 20},
	} {
		if r, err := New(t.Context(), c); err == nil {
			r.Close(t.Context())
			t.Errorf("New(%+v) succeeded", c)
		}
	}
}

func TestBudgetOrder(t *testing.T) {
	t.Parallel()
	b := newBudget(10)
	six, err := b.start(t.Context(), holder{}, 6, 6)
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan int64)
	for i, n := range []int64{8, 1} {
		go func() {
			if _, err := b.start(t.Context(), holder{}, n, n); err == nil {
				got <- n
			}
		}()
		waitFor(t, func() bool { b.mu.Lock(); defer b.mu.Unlock(); return len(b.starting) == i+1 })
	}
	// The small one fits but must not overtake.
	b.end(six)
	sum := <-got + <-got
	if sum != 9 || b.free != 1 {
		t.Errorf("granted %d, %d left", sum, b.free)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.start(ctx, holder{}, 10, 10); !errors.Is(err, context.Canceled) || len(b.starting) != 0 {
		t.Errorf("cancelled wait: %v, %d waiting", err, len(b.starting))
	}
}

// waitFor returns once ok does; the test's own timeout ends a wait in vain.
func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	for !ok() {
		select {
		case <-t.Context().Done():
			t.Fatal("the test ended first")
		case <-time.After(time.Millisecond):
		}
	}
}

func BenchmarkInvoke(b *testing.B) {
	r := setup(b)
	guests := []struct {
		name, input string
		binary      []byte
	}{
		{"tiny", "", writer("1", 1)},
		{"go", `{"op":"echo","text":"` + strings.Repeat("a", 700) + `"}`, guestModule(b)},
	}
	for _, g := range guests {
		b.Run(g.name, func(b *testing.B) {
			d := r.publish(b, g.binary)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := r.Invoke(b.Context(), Call{Module: d, Input: []byte(g.input)}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func TestNumbersRoundTrip(t *testing.T) {
	t.Parallel()
	for _, v := range []int64{0, 1, -1, 63, 64, -64, -65, 1 << 31, -1 << 31, 1<<63 - 1, -1 << 63} {
		r := &reader{b: appendSigned(nil, v)}
		if got := r.signed(64); got != v || r.err != nil || r.left() != 0 {
			t.Errorf("signed %d: got %d, %v", v, got, r.err)
		}
		r = &reader{b: appendU32(nil, uint32(v))}
		if got := r.u32(); got != uint32(v) || r.err != nil || r.left() != 0 {
			t.Errorf("unsigned %d: got %d, %v", uint32(v), got, r.err)
		}
	}
	for _, bad := range [][]byte{{0x80}, {0xff, 0xff, 0xff, 0xff, 0x1f}, bytes.Repeat([]byte{0x80}, 6)} {
		if r := (&reader{b: bad}); r.u32() != 0 || r.err == nil {
			t.Errorf("% x was read as a number", bad)
		}
		if r := (&reader{b: bad}); r.signed(32) != 0 || r.err == nil {
			t.Errorf("% x was read as a signed number", bad)
		}
	}
}
