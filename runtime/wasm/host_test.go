package wasm

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keyfire/keyfire/core"
)

// sdkGuest compiles a package of sdk/node, once for all tests, as a reactor or as a command.
func sdkGuest(t testing.TB, pkg string, reactor bool) []byte {
	t.Helper()
	key := fmt.Sprintf("%s-%v.wasm", filepath.Base(pkg), reactor)
	build, _ := sdkBuilds.LoadOrStore(key, sync.OnceValues(func() ([]byte, error) {
		out := filepath.Join(sharedDir, key)
		args := []string{"build", "-o", out}
		if reactor {
			args = append(args, "-buildmode=c-shared")
		}
		cmd := exec.Command("go", append(args, pkg)...)
		cmd.Dir = filepath.FromSlash("../../sdk/node")
		cmd.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm")
		if b, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("%w\n%s", err, b)
		}
		return os.ReadFile(out)
	}))
	b, err := build.(func() ([]byte, error))()
	if err != nil {
		t.Fatalf("compile %s: %v", pkg, err)
	}
	return b
}

var sdkBuilds sync.Map // of func() ([]byte, error), by file name

// abiCall is one call of the conformance guest.
type abiCall struct {
	Fn    string `json:"fn"`
	Args  []any  `json:"args"`
	Times int    `json:"times,omitempty"`
}

type abiAnswer struct {
	Result int64    `json:"result"`
	Rooms  []string `json:"rooms"`
}

func text(s string) map[string]any { return map[string]any{"text": s} }
func room(n int) map[string]any    { return map[string]any{"room": n} }

// beyond is a pointer and length outside any memory; wraps overflows 32 bits when added.
var (
	beyond = []any{uint32(0xffff0000), uint32(100)}
	wraps  = []any{uint32(64), uint32(0xfffffff0)}
)

func setupABI(t testing.TB, change ...func(*Config)) (bundle, string) {
	t.Helper()
	b := setup(t, change...)
	return b, b.publish(t, sdkGuest(t, "./conformance", true))
}

// everything grants all there is, so that the conformance guest, which imports all there is, can be linked.
func everything() core.Grants {
	return core.Grants{HTTP: []string{"GET https://unused.example"}, Secrets: []string{"TOKEN", "UNSET"}, KV: core.KVWrite}
}

// kept is a KV in memory.
type kept struct {
	mu     sync.Mutex
	values map[string][]byte
	full   bool
}

func (k *kept) Get(_ context.Context, account, workflow, key string) ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if v, ok := k.values[account+"/"+workflow+"/"+key]; ok {
		return v, nil
	}
	return nil, core.Errorf(core.CodeNotFound, "no value")
}

func (k *kept) Swap(_ context.Context, account, workflow, key string, value []byte, check bool, old []byte) (bool, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	at := account + "/" + workflow + "/" + key
	now, ok := k.values[at]
	switch {
	case k.full:
		return false, core.Errorf(core.CodeQuotaExhausted, "full")
	case check && (ok != (old != nil) || !bytes.Equal(now, old)):
		return false, nil
	case value == nil:
		delete(k.values, at)
	default:
		k.values[at] = value
	}
	return true, nil
}

const secretValue = `t0p"s3cret/ü`

func withHost(c *Config) {
	c.KV = &kept{values: make(map[string][]byte)}
	c.Secret = func(_ context.Context, account, name string) (string, error) {
		if account != core.DefaultAccount || name != "TOKEN" {
			return "", core.Errorf(core.CodeNotFound, "no secret")
		}
		return secretValue, nil
	}
}

func (b bundle) abi(t testing.TB, call Call, calls ...abiCall) ([]abiAnswer, Result, error) {
	t.Helper()
	in, err := json.Marshal(calls)
	if err != nil {
		t.Fatal(err)
	}
	call.Account, call.Input = core.DefaultAccount, in
	if grantsOf(call.Grants) != grantsOf(everything()) {
		call.Grants = everything()
	}
	res, err := b.Invoke(t.Context(), call)
	if err != nil {
		return nil, res, err
	}
	var answers []abiAnswer
	if err := json.Unmarshal(res.Output, &answers); err != nil {
		t.Fatalf("output %s: %v", res.Output, err)
	}
	return answers, res, nil
}

// TestABI checks every host function as sdk/node/ABI.md describes it.
func TestABI(t *testing.T) {
	t.Parallel()
	b, d := setupABI(t, withHost)
	call := Call{Module: d, Config: json.RawMessage(`{"n":12,"region":"eu"}`)}
	calls := []abiCall{
		{Fn: "input_read", Args: []any{0, room(2)}},
		{Fn: "input_read", Args: []any{1, room(4)}},
		{Fn: "input_read", Args: []any{1 << 30, room(4)}},
		{Fn: "config_get", Args: []any{text("region"), room(4)}},
		{Fn: "config_get", Args: []any{text("region"), room(3)}},
		{Fn: "config_get", Args: []any{text("region"), 0, 0}},
		{Fn: "config_get", Args: []any{text(""), room(100)}},
		{Fn: "config_get", Args: []any{text("missing"), room(10)}},
		{Fn: "error_text", Args: []any{room(100)}},
		{Fn: "random", Args: []any{room(16)}},
		{Fn: "log", Args: []any{4, text("x")}},
		{Fn: "error_text", Args: []any{room(100)}},
		{Fn: "error_set", Args: []any{text("not json")}},
		{Fn: "error_set", Args: []any{text(`{"error":{"class":"timeout","message":"x"}}`)}},
		{Fn: "error_set", Args: []any{text(strings.Repeat(" ", 16<<10+1))}},
		{Fn: "secret_get", Args: []any{text("OTHER"), room(20)}},
		{Fn: "secret_get", Args: []any{text("UNSET"), room(20)}},
		{Fn: "secret_get", Args: []any{text("TOKEN"), room(2)}},
		{Fn: "kv_get", Args: []any{text("k"), room(2)}},
		{Fn: "kv_cas", Args: []any{text("k"), 0, uint32(none), text("12")}},
		{Fn: "kv_cas", Args: []any{text("k"), 0, uint32(none), text("13")}},
		{Fn: "kv_cas", Args: []any{text("k"), text("11"), text("13")}},
		{Fn: "kv_cas", Args: []any{text("k"), text("12"), text("14")}},
		{Fn: "kv_get", Args: []any{text("k"), room(2)}},
		{Fn: "kv_put", Args: []any{text("k"), 0, uint32(none)}},
		{Fn: "kv_get", Args: []any{text("k"), room(2)}},
		{Fn: "kv_put", Args: []any{text(""), text("x")}},
		{Fn: "kv_put", Args: []any{text(strings.Repeat("k", MaxKVKey+1)), text("x")}},
		{Fn: "kv_put", Args: []any{text("a\x00b"), text("x")}},
		{Fn: "kv_get", Args: []any{text("a\x00b"), room(2)}},
		{Fn: "kv_put", Args: []any{text("k"), text(strings.Repeat("v", MaxKVValue+1))}},
		{Fn: "kv_put", Args: []any{text("k"), text(strings.Repeat("v", MaxKVValue))}},
		{Fn: "http_head", Args: []any{room(1)}},
		{Fn: "http_body", Args: []any{0, room(1)}},
		{Fn: "http_request", Args: []any{text("{"), text("")}},
		{Fn: "http_request", Args: []any{text(`{"method":"GET","url":"https://other.example"}`), text("")}},
		{Fn: "http_request", Args: []any{text(`{"method":"GET","url":"https://a@other.example"}`), text("")}},
	}
	got, _, err := b.abi(t, call, calls...)
	if err != nil {
		t.Fatal(err)
	}
	want := []abiAnswer{
		{2, []string{"[{"}},
		{4, []string{`{"fn`}},
		{0, []string{""}},
		{4, []string{`"eu"`}},
		{4, []string{"\x00\x00\x00"}},
		{4, nil},
		{22, []string{`{"n":12,"region":"eu"}`}},
		{-1, []string{""}},
		{37, []string{"the node's config has no such name"}},
		{0, []string{""}},
		{-2, nil},
		{66, []string{"a log level is 0 (debug), 1 (info), 2 (warn) or 3 (error)"}},
		{-2, nil},
		{-2, nil},
		{-4, nil},
		{-3, []string{""}},
		{-1, []string{""}},
		{int64(len(secretValue)), []string{"\x00\x00"}},
		{-1, []string{""}},
		{0, nil},
		{-5, nil},
		{-5, nil},
		{0, nil},
		{2, []string{"14"}},
		{0, nil},
		{-1, []string{""}},
		{-2, nil},
		{-2, nil},
		{-2, nil},
		{-2, []string{""}},
		{-4, nil},
		{0, nil},
		{-1, []string{""}},
		{-1, []string{""}},
		{-2, nil},
		{-3, nil},
		{-2, nil},
	}
	for i := range want {
		if n := len(want[i].Rooms); n > 0 && calls[i].Fn == "error_text" {
			want[i].Result = int64(len(want[i].Rooms[0]))
		}
		if diff := cmp.Diff(want[i], got[i]); diff != "" {
			t.Errorf("%d: %s%v (-want +got):\n%s", i, calls[i].Fn, calls[i].Args, diff)
		}
	}
}

// TestABIPointers: a pointer and length beyond the memory give an error, from every function and in every place.
func TestABIPointers(t *testing.T) {
	t.Parallel()
	b, d := setupABI(t, withHost)
	calls := []abiCall{{Fn: "kv_put", Args: []any{text("there"), text("1")}}}
	for _, bad := range [][]any{beyond, wraps} {
		for fn, places := range map[string][][]any{
			"input_read":   {{0, bad}},
			"output_write": {{bad}},
			"error_set":    {{bad}},
			"error_text":   {{bad}},
			"log":          {{1, bad}},
			"config_get":   {{bad, room(1)}, {text(""), bad}},
			"random":       {{bad}},
			"secret_get":   {{bad, room(1)}, {text("TOKEN"), bad}},
			"kv_get":       {{bad, room(1)}, {text("there"), bad}},
			"kv_put":       {{bad, text("x")}, {text("k"), bad}},
			"kv_cas":       {{bad, text("x"), text("y")}, {text("k"), bad, text("y")}, {text("k"), text("x"), bad}},
			"http_request": {{bad, text("")}, {text("{}"), bad}},
		} {
			for _, args := range places {
				var flat []any
				for _, a := range args {
					if pair, ok := a.([]any); ok {
						flat = append(flat, pair...)
						continue
					}
					flat = append(flat, a)
				}
				calls = append(calls, abiCall{Fn: fn, Args: flat})
			}
		}
	}
	got, _, err := b.abi(t, Call{Module: d}, calls...)
	if err != nil {
		t.Fatal(err)
	}
	for i, a := range got[1:] {
		i++
		if a.Result != int64(abiInvalid) {
			t.Errorf("%s%v: %d, want %d", calls[i].Fn, calls[i].Args, a.Result, abiInvalid)
		}
	}
}

func TestABIOutput(t *testing.T) {
	t.Parallel()
	b, d := setupABI(t)
	in := func(calls ...abiCall) Call {
		raw, err := json.Marshal(calls)
		if err != nil {
			t.Fatal(err)
		}
		return Call{Account: core.DefaultAccount, Module: d, Input: raw, Grants: everything()}
	}
	t.Run("in pieces", func(t *testing.T) {
		res, err := b.Invoke(t.Context(), in(abiCall{Fn: "output_write", Args: []any{text(`{"a":`)}}, abiCall{Fn: "output_write", Args: []any{text("1}")}}))
		if err != nil || string(res.Output) != `{"a":1}` {
			t.Errorf("%s, %v", res.Output, err)
		}
	})
	t.Run("too much", func(t *testing.T) {
		_, err := b.Invoke(t.Context(), in(abiCall{Fn: "output_write", Args: []any{text(strings.Repeat("x", 600_000))}, Times: 2}))
		wantError(t, err, core.ClassLimit)
	})
	t.Run("an error", func(t *testing.T) {
		_, err := b.Invoke(t.Context(), in(abiCall{Fn: "error_set", Args: []any{text(`{"fail":{"status":409,"code":"taken","message":"it is taken"}}`)}}))
		e := wantError(t, err, core.ClassFailed)
		if e.Status != 409 || e.Code != "taken" || e.Message != "it is taken" {
			t.Errorf("%+v", e)
		}
	})
	t.Run("denied without a denial", func(t *testing.T) {
		_, err := b.Invoke(t.Context(), in(abiCall{Fn: "error_set", Args: []any{text(`{"error":{"class":"denied","message":"x"}}`)}}))
		wantError(t, err, core.ClassFailed)
	})
	t.Run("denied", func(t *testing.T) {
		_, err := b.Invoke(t.Context(), in(
			abiCall{Fn: "http_request", Args: []any{text(`{"method":"GET","url":"https://other.example"}`), text("")}},
			abiCall{Fn: "error_set", Args: []any{text(`{"error":{"class":"denied","message":"x"}}`)}}))
		wantError(t, err, core.ClassDenied)
	})
	t.Run("host calls (S2)", func(t *testing.T) {
		flood := in(abiCall{Fn: "clock", Times: DefaultHostCalls + 1})
		_, err := b.Invoke(t.Context(), flood)
		if e := wantError(t, err, core.ClassLimit); !strings.Contains(e.Message, "host_calls") {
			t.Errorf("message %q does not name the limit", e.Message)
		}
		flood.Limits.HostCalls = 2 * DefaultHostCalls
		if _, err := b.Invoke(t.Context(), flood); err != nil {
			t.Errorf("with a higher limit: %v", err)
		}
	})
	t.Run("log levels", func(t *testing.T) {
		res, err := b.Invoke(t.Context(), in(
			abiCall{Fn: "log", Args: []any{0, text("one")}}, abiCall{Fn: "log", Args: []any{2, text("two\nthree\x1b[0m")}}, abiCall{Fn: "log", Args: []any{3, text("")}}))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, l := range res.Log {
			got = append(got, l.Level+" "+l.Message)
		}
		if diff := cmp.Diff([]string{"debug one", "warn two", "warn three[0m"}, got); diff != "" {
			t.Errorf("log (-want +got):\n%s", diff)
		}
	})
}

// TestGrantsLink: without its grant, a module that imports a host function is refused at publish, with what to write, and does not start.
func TestGrantsLink(t *testing.T) {
	t.Parallel()
	b := setup(t)
	d := b.publish(t, sdkGuest(t, "./conformance/typed", true))
	info, err := inspect(sdkGuest(t, "./conformance/typed", true))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"http", "secrets", "kv", "kv: write"}, info.Grants); diff != "" {
		t.Errorf("grants (-want +got):\n%s", diff)
	}
	if fields := info.Check(&core.Node{}); len(fields) != 4 {
		t.Errorf("fields %+v", fields)
	}
	fields := info.Check(&core.Node{Grants: core.Grants{Secrets: []string{"TOKEN"}, KV: core.KVWrite}})
	if len(fields) != 1 || fields[0].Pointer != "/uses" || !strings.Contains(fields[0].Detail, "keyfire_v1.http_") || !strings.Contains(fields[0].Detail, `grants: {http: ["GET https://api.example.com"]}`) {
		t.Errorf("fields %+v", fields)
	}
	fields = info.Check(&core.Node{Grants: core.Grants{HTTP: []string{"GET https://a.example"}, Secrets: []string{"TOKEN"}, KV: core.KVRead}})
	if len(fields) != 1 || !strings.Contains(fields[0].Detail, "keyfire_v1.kv_cas") || !strings.Contains(fields[0].Detail, "grants: {kv: write}") {
		t.Errorf("fields %+v", fields)
	}
	if fields := info.Check(&core.Node{Grants: everything()}); len(fields) > 0 {
		t.Errorf("fields %+v beside the grants", fields)
	}
	_, err = b.call(t, d, `{"op":"echo"}`, core.Limits{})
	wantError(t, err, core.ClassDenied)
}

// TestSDK runs a node on the Go SDK through both doors.
func TestSDK(t *testing.T) {
	t.Parallel()
	for _, reactor := range []bool{true, false} {
		t.Run(map[bool]string{true: "reactor", false: "command"}[reactor], func(t *testing.T) {
			t.Parallel()
			var seen http.Header
			s, e := allowedServer(t, func(w http.ResponseWriter, r *http.Request) {
				seen = r.Header
				w.WriteHeader(http.StatusAccepted)
				fmt.Fprint(w, "hello")
			})
			b := setup(t, withHost, func(c *Config) { c.Egress = e.config })
			d := b.publish(t, sdkGuest(t, "./conformance/typed", reactor))
			origin := at(t, s, "example.com")
			do := func(input string) (Result, error) {
				return b.Invoke(t.Context(), Call{
					Account: core.DefaultAccount, Module: d, Input: []byte(input), Run: "run_1", Step: "fetch",
					Config: json.RawMessage(`{"region":"eu"}`), Workflow: "wf_a", Grants: core.Grants{HTTP: []string{"GET " + origin}, Secrets: []string{"TOKEN"}, KV: core.KVWrite},
				})
			}
			for in, want := range map[string]string{
				`{"op":"echo","any":[1,"ü"]}`:               `{"any":[1,"ü"]}`,
				`{"op":"config"}`:                           `{"config":"eu"}`,
				`{"op":"http","url":"` + origin + `/path"}`: `{"status":202,"body":"hello"}`,
			} {
				res, err := do(in)
				if err != nil || strings.TrimSpace(string(res.Output)) != want {
					t.Errorf("%s: %s, %v, want %s", in, res.Output, err, want)
				}
			}
			if got := seen.Get("Idempotency-Key"); got != "run_1/fetch" {
				t.Errorf("Idempotency-Key %q", got)
			}
			for n := 1; n <= 3; n++ {
				res, err := do(`{"op":"count"}`)
				if want := fmt.Sprintf(`{"status":%d}`, n); err != nil || strings.TrimSpace(string(res.Output)) != want {
					t.Errorf("count: %s, %v, want %s", res.Output, err, want)
				}
			}
			// The node puts the secret into its output and log; what comes out has its length and not the secret (S5).
			out, err := do(`{"op":"secret"}`)
			all := fmt.Sprintf("%s %v", out.Output, out.Log)
			if err != nil || !strings.Contains(all, fmt.Sprintf(`"config":"%d"`, len(secretValue))) {
				t.Errorf("secret: %s, %v", all, err)
			}
			if strings.Count(all, core.Redacted) != 5 || strings.Contains(all, "s3cret") || strings.Contains(all, "dDBw") {
				t.Errorf("not redacted: %s", all)
			}
			large := base64.StdEncoding.EncodeToString(make([]byte, 600_000))
			res, err := do(`{"op":"echo","any":"` + large + `"}`)
			if err != nil || len(res.Output) < len(large) {
				t.Errorf("large input: %d bytes, %v", len(res.Output), err)
			}
			res, err = do(`{"op":"log"}`)
			if err != nil || len(res.Log) != 1 || res.Log[0].Level != "warn" || res.Log[0].Message != `careful a=1 g.b="x y"` {
				t.Errorf("log %v, %v", res.Log, err)
			}
			for in, want := range map[string]Error{
				`{"op":"fail"}`: {Class: core.ClassFailed, Status: 409, Code: "duplicate_invoice", Message: "this invoice exists"},
				`{"op":"fail_wrongly"}`: {
					Class:   core.ClassFailed,
					Message: `node.Fail(200, "Not-Found"): a status is 400 to 599, and a code 1 to 64 characters of a-z, 0-9 and _: there is no such invoice`,
				},
				`{"op":"long"}`:         {Class: core.ClassFailed, Message: strings.Repeat("<", 1_000)},
				`{"op":"secret_error"}`: {Class: core.ClassFailed, Message: strings.Repeat("x", 995) + core.Redacted[:5]},
				`{"op":"unavailable"}`:  {Class: core.ClassUnavailable, Message: "ask the rates service: closed on Sundays"},
				`{"op":"error"}`:        {Class: core.ClassFailed, Message: "this cannot work"},
				`{"typo":1}`:            {Class: core.ClassFailed, Message: `read the input: json: unknown field "typo"`},
				`{"op":1}`:              {Class: core.ClassFailed, Message: "read the input: op cannot be a JSON number"},
				`{"op":"http","url":"https://other.example/"}`: {
					Class:   core.ClassDenied,
					Message: `fetch: GET https://other.example is not granted; the node would need grants: {http: ["GET https://other.example"]}`,
				},
			} {
				_, err := do(in)
				got := wantError(t, err, want.Class)
				want.ExitCode = 1
				if diff := cmp.Diff(want, *got); diff != "" {
					t.Errorf("%s (-want +got):\n%s", in, diff)
				}
			}
			res, err = do(`{"op":"panic"}`)
			wantError(t, err, map[bool]core.ErrorClass{true: core.ClassTrap, false: core.ClassExit}[reactor])
			if !slices.ContainsFunc(res.Log, func(l core.LogLine) bool { return strings.Contains(l.Message, "out of ideas") }) {
				t.Errorf("the log does not tell of the panic: %v", res.Log)
			}
		})
	}
}

// TestRedactFailureS5: neither the code of a failure nor what is left of a long message gives a secret away.
func TestRedactFailureS5(t *testing.T) {
	t.Parallel()
	g := guest{hostState: hostState{secrets: map[string]string{"TOKEN": "hunter2_hunter2"}}}
	e := &Error{Code: "got_hunter2_hunter2", Message: strings.Repeat("x", 990) + "hunter2_hunter2"}
	g.redact(&Result{}, fmt.Errorf("invoke: %w", e))
	if e.Code != "redacted" || e.Message != strings.Repeat("x", 990)+core.Redacted {
		t.Errorf("%s: %s", e.Code, e.Message[980:])
	}
}
