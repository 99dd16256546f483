package wasm

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keyfire/keyfire/core"
)

// extismSDK finds the plugins that Extism's Go SDK is tested with: real ones, made by others with several development kits. They are read from
// the module cache; the SDK is no dependency of ours.
var extismSDK = sync.OnceValues(func() (string, error) {
	cmd := exec.Command("go", "mod", "download", "-json", "github.com/extism/go-sdk@v1.7.1")
	cmd.Dir = sharedDir // outside of this module
	b, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("download extism/go-sdk: %w", err)
	}
	var m struct{ Dir string }
	if err := json.Unmarshal(b, &m); err != nil {
		return "", err
	}
	return filepath.Join(m.Dir, "wasm"), nil
})

func extismPlugin(t testing.TB, name string) []byte {
	t.Helper()
	dir, err := extismSDK()
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skipf("SKIPPED, the published Extism plugins cannot be had here: %v", err)
	}
	b, err := os.ReadFile(filepath.Join(dir, name+".wasm"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestExtismPublished runs published plugins unchanged.
func TestExtismPublished(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, tt := range []struct {
		plugin, call, input, config string
		want                        string
		wantErr                     *Error
		log                         []string
	}{
		{plugin: "count_vowels", call: "count_vowels", input: `"hello world"`, want: `{"count":3,"total":3,"vowels":"aeiouAEIOU"}`},
		{plugin: "count_vowels", call: "count_vowels", input: `"hello world"`, config: `{"vowels":"l"}`, want: `{"count":3,"total":3,"vowels":"l"}`},
		{plugin: "count_vowels", call: "count_vowels", input: `{"a":"e"}`, want: `{"count":2,"total":2,"vowels":"aeiouAEIOU"}`},
		{plugin: "count_vowels_std", call: "_start", input: `"hello world"`, want: `{"count": 3, "config": "<unset by host>", "a": "this is var a"}`},
		{plugin: "alloc", call: "run_test", input: `""`, want: `""`},
		{plugin: "hello", call: "run_test", input: `""`, want: `"Hello, world!"`},
		{plugin: "hello_haskell", call: "testing", input: `"x"`, config: `{"greeting":"Howdy"}`, want: `"Howdy, x"`},
		{plugin: "config", call: "run_test", input: `""`, config: `{"thing":"hello"}`, want: `{"config": "hello"}`},
		{plugin: "replace", call: "run_test", input: `"abc"`, want: `"abc"`},
		{plugin: "input_offset", call: "input_offset_length", input: `"hello world"`, want: `"\u000b\u0000\u0000\u0000\u0000\u0000\u0000\u0000"`},
		{plugin: "log", call: "run_test", input: `""`, want: `""`, log: []string{"info this is an info log", "warn this is a warning log", "error this is an error log"}},
		{plugin: "println", call: "run_test", input: `""`, want: `""`, log: []string{"info this was printed from the plugin"}},
		{plugin: "noop", call: "run_test", input: `""`, want: `""`},
		{plugin: "var", call: "run_test", input: `""`, want: `"a: 0"`},
		{plugin: "fail", call: "run_test", input: `""`, wantErr: &Error{Class: core.ClassFailed, ExitCode: 1, Message: "Some error message"}},
		{plugin: "exit", call: "_start", input: `""`, config: `{"code":"2"}`, wantErr: &Error{Class: core.ClassExit, ExitCode: 2, Message: "the node exited with code 2"}},
		{plugin: "exit", call: "_start", input: `""`, config: `{"code":"0"}`, want: `""`},
		{plugin: "sleep", call: "run_test", input: `""`, config: `{"duration":"1"}`, want: `"slept for 1 seconds"`},
		{plugin: "std_command", call: "_start", input: `"x"`, want: `"hello x"`},
	} {
		t.Run(tt.plugin+" "+tt.config, func(t *testing.T) {
			t.Parallel()
			d := b.publish(t, extismPlugin(t, tt.plugin))
			res, err := b.Invoke(t.Context(), Call{
				Account: core.DefaultAccount, Module: d, Export: tt.call, Input: []byte(tt.input), Config: json.RawMessage(tt.config),
			})
			var lines []string
			for _, l := range res.Log {
				lines = append(lines, l.Level+" "+l.Message)
			}
			t.Logf("output %s, error %v, log %q", res.Output, err, lines)
			if tt.wantErr != nil {
				e := wantError(t, err, tt.wantErr.Class)
				if e.Message != tt.wantErr.Message || e.ExitCode != tt.wantErr.ExitCode {
					t.Errorf("error %+v, want %+v", e, tt.wantErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if string(res.Output) != tt.want {
				t.Errorf("output %s, want %s", res.Output, tt.want)
			}
			for _, want := range tt.log {
				if !slices.Contains(lines, want) {
					t.Errorf("the log lacks %q: %q", want, lines)
				}
			}
		})
	}
}

// TestExtismHTTP: a published plugin sends a request under a grant, and is ended without one.
func TestExtismHTTP(t *testing.T) {
	t.Parallel()
	var seen http.Header
	s, e := allowedServer(t, func(w http.ResponseWriter, r *http.Request) {
		seen = r.Header
		w.Header().Add("X-Two", "1")
		w.Header().Add("X-Two", "2")
		io.WriteString(w, "body")
	})
	b := setup(t, func(c *Config) { c.Egress = e.config })
	d := b.publish(t, extismPlugin(t, "http_headers"))
	url := at(t, s, "example.com")
	call := Call{
		Account: core.DefaultAccount, Module: d, Export: "http_get", Input: []byte(`{"url":"` + url + `"}`), Run: "run_1", Step: "get",
		Grants: core.Grants{HTTP: []string{"GET " + url}},
	}
	res, err := b.Invoke(t.Context(), call)
	if err != nil {
		t.Fatal(err)
	}
	var headers map[string]string
	if err := json.Unmarshal(res.Output, &headers); err != nil || headers["x-two"] != "1,2" {
		t.Errorf("output %s", res.Output)
	}
	if got := seen.Get("Idempotency-Key"); got != "run_1/get" {
		t.Errorf("Idempotency-Key %q", got)
	}
	call.Grants.HTTP = []string{"POST " + url}
	_, err = b.Invoke(t.Context(), call)
	if e := wantError(t, err, core.ClassDenied); !strings.Contains(e.Message, "GET "+url) {
		t.Errorf("message %q", e.Message)
	}
	call.Grants = core.Grants{}
	_, err = b.Invoke(t.Context(), call)
	wantError(t, err, core.ClassDenied)
}

// TestExtismRefused: what a plugin cannot have is refused when it is published, by name.
func TestExtismRefused(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for plugin, want := range map[string]string{"host": `"extism:host/user" "mult"`, "host_memory": `"host" "to_upper"`} {
		_, err := b.Compile(t.Context(), extismPlugin(t, plugin))
		if core.CodeOf(err) != core.CodeInvalidModule || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want a refusal that names %s", plugin, err, want)
		}
	}
	info, err := inspect(extismPlugin(t, "count_vowels"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"count_vowels"}, info.Callable); diff != "" || info.Door != DoorExtism {
		t.Errorf("door %s, callable (-want +got):\n%s", info.Door, diff)
	}
	for call, want := range map[string]string{"": "must say which", "count": `has no function "count"`, "count_vowels": ""} {
		fields := info.Check(&core.Node{Call: call})
		switch {
		case want == "" && len(fields) > 0:
			t.Errorf("call %q: %+v", call, fields)
		case want != "" && (len(fields) != 1 || fields[0].Pointer != "/call" || !strings.Contains(fields[0].Detail, want) || !strings.Contains(fields[0].Detail, "it has count_vowels")):
			t.Errorf("call %q: %+v", call, fields)
		}
	}
	command := Info{Door: DoorCommand}
	if fields := command.Check(&core.Node{Call: "x"}); len(fields) != 1 {
		t.Errorf("call on a command: %+v", fields)
	}
}

// TestExtismOutputByABI: what a function that a node names with call gives to output_write is its output, in both engines.
func TestExtismOutputByABI(t *testing.T) {
	t.Parallel()
	b := setup(t)
	d := b.publish(t, newModule().
		section(secType, vec([]byte{0x60, 0, 0}, []byte{0x60, 2, typeI32, typeI32, 1, typeI32})...).
		section(secImport, vec(concat(name(keyfireModule), name("output_write"), []byte{kindFunc, 1}))...).
		section(secFunction, 1, 0).section(secMemory, 1, 0, 1).
		section(secExport, vec(concat(name("answer"), []byte{kindFunc, 1}))...).
		section(secCode, vec(fn(nil, concat(i32c(0), i32c(7), []byte{opCall, 0, 0x1a})...))...).
		section(secData, vec(concat([]byte{0}, i32c(0), []byte{opEnd}, sized([]byte(`{"a":1}`))))...).b)
	b.warm(t, d, StartShared)
	for _, engine := range []Engine{EngineSnapshot, EnginePlain} {
		res, err := b.Invoke(t.Context(), Call{Account: core.DefaultAccount, Module: d, Export: "answer", Input: []byte("{}"), Engine: engine})
		if err != nil || string(res.Output) != `{"a":1}` {
			t.Errorf("%s: %s, %v", engine, res.Output, err)
		}
	}
}

// TestExtismFiles: a plugin that wants files finds none, and ends by its own error.
func TestExtismFiles(t *testing.T) {
	t.Parallel()
	b := setup(t)
	d := b.publish(t, extismPlugin(t, "fs"))
	res, err := b.Invoke(t.Context(), Call{Account: core.DefaultAccount, Module: d, Export: "run_test", Input: []byte(`""`)})
	if err == nil && strings.Contains(string(res.Output), "hello") {
		t.Errorf("a plugin read a file: %s", res.Output)
	}
	if err != nil {
		wantError(t, err, core.ClassExit)
	}
}

// TestExtismMemory drives the memory that a plugin has on the host's side with whatever a plugin could ask for.
func TestExtismMemory(t *testing.T) {
	t.Parallel()
	var e extismState
	a := e.alloc(5)
	if a == 0 || e.length(a) != 5 || e.length(a+1) != 0 || e.length(0) != 0 {
		t.Fatalf("block at %d of length %d", a, e.length(a))
	}
	e.store64(a, 0x1122334455667788)
	if e.load64(a) != 0x1122334455667788 || e.load8(a) != 0x88 {
		t.Errorf("load64 %x", e.load64(a))
	}
	e.free(a)
	e.free(a)
	if again := e.alloc(8); again != a || e.load64(again) != 0 {
		t.Errorf("freed memory at %d holds %x at %d", a, e.load64(again), again)
	}
	for _, at := range []uint64{1 << 63, ^uint64(0), ^uint64(0) - 7, uint64(len(e.buf)), uint64(len(e.buf)) - 7} {
		e.store8(at, 1)
		e.store64(at, 1)
		e.free(at)
		if at > uint64(len(e.buf)) && (e.load8(at) != 0 || e.load64(at) != 0 || e.length(at) != 0) {
			t.Errorf("something at %d", at)
		}
	}
	if e.alloc(0) != 0 || e.alloc(extismMemory) != 0 || e.alloc(^uint64(0)) != 0 {
		t.Error("an allocation that cannot be is given")
	}
	e.input = extent{^uint64(0), ^uint64(0)}
	if e.inputLoad(^uint64(0)-1, 1) != 0 || e.inputLoad(1<<40, 8) != 0 {
		t.Error("something beyond the input")
	}
	for e.alloc(1<<20) != 0 {
	}
	if len(e.buf) > extismMemory {
		t.Errorf("%d bytes were handed out", len(e.buf))
	}
}

// TestExtismManyHeaders: a plugin may ask for the header of a response thousands of times, so each time takes work that is proportional to it, and is counted.
func TestExtismManyHeaders(t *testing.T) {
	t.Parallel()
	g := &guest{Context: t.Context(), limit: time.Now().Add(time.Minute)}
	for range 13_000 { // of five bytes each, which is what a response may have
		g.extism.headers = append(g.extism.headers, [2]string{"A", "b"})
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	at := extismHTTPHeaders(g, nil)
	runtime.ReadMemStats(&after)
	if got, want := string(g.extism.text(at, extismMemory)), `{"a":"`+strings.Repeat("b,", 12_999)+`b"}`; got != want {
		t.Errorf("%d bytes, want %d", len(got), len(want))
	}
	// Other tests allocate beside this one, but not the gigabytes that joining them one by one would.
	if took := after.TotalAlloc - before.TotalAlloc; took > 64<<20 {
		t.Errorf("it takes %d bytes of memory", took)
	}
	if g.work == 0 {
		t.Error("the work is not counted")
	}
}
