package wasm

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/keyfire/keyfire/core"
)

// recorded is an invocation as its tape has it, and where it may be replayed: a runtime that knows the modules and nothing else.
type recorded struct {
	tape   *Tape
	file   []byte
	player bundle
}

// newPlayback returns a runtime in which nothing can be reached.
func newPlayback(t *testing.T, from bundle) bundle {
	t.Helper()
	p := setup(t, func(c *Config) { c.Load, c.ScriptEngine = from.library.load, from.config.ScriptEngine })
	p.library = from.library
	return p
}

// recordCall invokes a node that is recorded.
func recordCall(t *testing.T, b bundle, call Call) (recorded, Result, error) {
	t.Helper()
	call.Account, call.Record = core.DefaultAccount, true
	res, err := b.Invoke(t.Context(), call)
	if res.Tape == nil {
		t.Fatalf("there is no tape; it ended with %v", err)
	}
	file, encodeErr := res.Tape.Encode()
	if encodeErr != nil {
		t.Fatal(encodeErr)
	}
	tape, decodeErr := DecodeTape(file)
	if decodeErr != nil {
		t.Fatal(decodeErr)
	}
	again, encodeErr := tape.Encode()
	if encodeErr != nil || !bytes.Equal(again, file) {
		t.Fatalf("the tape reads differently: %v\n%s\n%s", encodeErr, again, file)
	}
	return recorded{tape, file, newPlayback(t, b)}, res, err
}

func theSecret(name string) (string, bool) { return secretValue, name == "TOKEN" }

// identical replays a tape some times, each of which must be the same as the first.
func (r recorded) identical(t *testing.T, times int, res Result, err error) {
	t.Helper()
	for range times {
		got, replayErr := r.player.Replay(t.Context(), Replay{Tape: r.tape, Secret: theSecret})
		if replayErr != nil {
			t.Fatal(replayErr)
		}
		if got.Difference != "" || got.Ended || len(got.Other) > 0 || got.Machine != "" {
			t.Fatalf("replayed: %+v\n%s", got, r.file)
		}
		if !bytes.Equal(got.Result.Output, res.Output) || got.Result.Fuel != res.Fuel || got.Result.PeakMemory != res.PeakMemory || len(got.Result.Log) != len(res.Log) {
			t.Fatalf("result %+v, want %+v", got.Result, res)
		}
		for i, l := range res.Log {
			if g := got.Result.Log[i]; g.Level != l.Level || g.Message != l.Message || !g.Time.Equal(l.Time) {
				t.Fatalf("line %d of the log is %+v, want %+v", i, g, l)
			}
		}
		if fmt.Sprint(got.Err) != fmt.Sprint(err) && got.Result.Tape.Outcome.Error.Class != "" {
			t.Fatalf("error %v, want %v", got.Err, err)
		}
	}
}

// TestReplayCommand: a Go program that uses what differs each time gives the same bytes again, and so does one that fails in any way.
func TestReplayCommand(t *testing.T) {
	t.Parallel()
	b := setup(t)
	d := b.publish(t, guestModule(t))
	outputs := map[string]bool{}
	for range 3 {
		r, res, err := recordCall(t, b, Call{Module: d, Input: []byte(`{"op":"random"}`)})
		if err != nil {
			t.Fatal(err)
		}
		outputs[string(res.Output)] = true
		r.identical(t, 20, res, err)
	}
	if len(outputs) != 3 {
		t.Errorf("recorded invocations draw the same random numbers: %v", outputs)
	}
	for input, class := range map[string]core.ErrorClass{
		`{"op":"panic","text":"no way"}`:          core.ClassExit,
		`{"op":"exit","size":3,"text":"because"}`: core.ClassExit,
		`{"op":"recurse","size":100000000}`:       core.ClassLimit,
		`{"op":"flood"}`:                          core.ClassLimit,
		`{"op":"hog"}`:                            core.ClassLimit,
		`{"op":"exit","text":"not json"}`:         core.ClassInvalidOutput,
		`{"op":"exit","size":1,"text":"{\"fail\":{\"status\":409,\"code\":\"taken\",\"message\":\"it is\"}}"}`: core.ClassFailed,
		`{"op":"log","size":2000,"text":"a line of a log"}`:                                                    "",
	} {
		r, res, err := recordCall(t, b, Call{Module: d, Input: []byte(input), Limits: core.Limits{Memory: 24 << 20}})
		if class == "" && err == nil {
			r.identical(t, 2, res, err)
			continue
		}
		wantError(t, err, class)
		r.identical(t, 2, res, err)
	}
}

// TestReplayStopped: what was stopped at a moment of time is stopped at the same instruction, without waiting.
func TestReplayStopped(t *testing.T) {
	t.Parallel()
	b := setup(t)
	d := b.publish(t, guestModule(t))
	for _, input := range []string{`{"op":"spin"}`, `{"op":"sleep","size":100000}`, `{"op":"work","size":1000000000}`} {
		r, res, err := recordCall(t, b, Call{Module: d, Input: []byte(input), Limits: core.Limits{Timeout: core.Duration(200 * time.Millisecond)}})
		wantError(t, err, core.ClassTimeout)
		r.identical(t, 3, res, err)
	}
	// A plain call of the same digest tells that the fuel at which it was stopped is not one that always comes out.
	_, one, _ := recordCall(t, b, Call{Module: d, Input: []byte(`{"op":"spin"}`), Limits: core.Limits{Timeout: core.Duration(50 * time.Millisecond)}})
	_, two, _ := recordCall(t, b, Call{Module: d, Input: []byte(`{"op":"spin"}`), Limits: core.Limits{Timeout: core.Duration(150 * time.Millisecond)}})
	if one.Fuel == two.Fuel { // which of them is more is up to a busy machine
		t.Errorf("fuel %d in 50 ms and in 150 ms", one.Fuel)
	}
}

// outside is a server whose answers are never the same, and which repeats the secret.
func outside(t *testing.T) (*httptest.Server, *egress, *int) {
	served := new(int)
	s, e := allowedServer(t, func(w http.ResponseWriter, r *http.Request) {
		*served++
		w.Header().Set("X-Served", fmt.Sprint(*served))
		w.Header().Set("X-Echo", r.Header.Get("X-Token"))
		io.WriteString(w, `{"served":`+fmt.Sprint(*served)+`,"echo":`+fmt.Sprintf("%q", secretValue)+`,"basic":"`+base64.StdEncoding.EncodeToString([]byte("user:"+secretValue))+`","bytes":"`+"\xff"+`"}`)
	})
	return s, e, served
}

func noSecret(t *testing.T, what string, b []byte) {
	t.Helper()
	quoted, _ := json.Marshal(secretValue)
	for _, form := range []string{secretValue, string(quoted[1 : len(quoted)-1]), base64.RawStdEncoding.EncodeToString([]byte(secretValue))[:12], url.QueryEscape(secretValue)} {
		twice, _ := json.Marshal(form)
		if bytes.Contains(b, []byte(form)) || bytes.Contains(b, twice[1:len(twice)-1]) {
			t.Errorf("%s holds the secret as %q:\n%s", what, form, b)
		}
	}
}

// TestReplayReactor: calls of a reactor get their answers from the tape, and the secret is not on it.
func TestReplayReactor(t *testing.T) {
	t.Parallel()
	s, e, served := outside(t)
	b, d := setupABI(t, withHost, func(c *Config) { c.Egress = e.config })
	origin := at(t, s, "example.com")
	head, _ := json.Marshal(requestHead{Method: "GET", URL: origin + "/x", Headers: [][2]string{{"X-Token", secretValue}}})
	calls := []abiCall{
		{Fn: "random", Args: []any{room(16)}},
		{Fn: "clock"},
		{Fn: "secret_get", Args: []any{text("TOKEN"), room(64)}},
		{Fn: "secret_get", Args: []any{text("UNSET"), room(64)}},
		{Fn: "secret_get", Args: []any{text("OTHER"), room(64)}},
		{Fn: "kv_cas", Args: []any{text("k"), 0, uint32(none), text(secretValue)}},
		{Fn: "kv_cas", Args: []any{text("k"), 0, uint32(none), text("13")}},
		{Fn: "kv_get", Args: []any{text("k"), room(64)}},
		{Fn: "kv_get", Args: []any{text("missing"), room(64)}},
		{Fn: "kv_put", Args: []any{text("e"), text("")}},
		{Fn: "kv_get", Args: []any{text("e"), room(64)}},
		{Fn: "http_request", Args: []any{text(string(head)), text("body")}},
		{Fn: "http_head", Args: []any{room(1000)}},
		{Fn: "http_body", Args: []any{0, room(1000)}},
		{Fn: "http_request", Args: []any{text(`{"method":"GET","url":"https://down.example:1"}`), text("")}},
		{Fn: "error_text", Args: []any{room(200)}},
		{Fn: "http_request", Args: []any{text(`{"method":"GET","url":"https://other.example"}`), text("")}},
		{Fn: "clock"},
	}
	input, err := json.Marshal(calls)
	if err != nil {
		t.Fatal(err)
	}
	grants := everything()
	grants.HTTP = []string{"GET " + origin, "GET https://down.example:1"}
	call := Call{Module: d, Input: input, Grants: grants, Workflow: "wf_1", Run: "run_1", Step: "charge", Attempt: 2}
	r, res, err := recordCall(t, b, call)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	r.identical(t, 20, res, err)
	if *served != 1 {
		t.Errorf("the server was asked %d times", *served)
	}
	noSecret(t, "the tape", r.file)
	if got := r.tape.NeedsSecrets(); len(got) != 1 || got[0] != "TOKEN" {
		t.Errorf("secrets %v", got)
	}
	if r.tape.Run != "run_1" || r.tape.Step != "charge" || r.tape.Attempt != 2 || r.tape.Workflow != "wf_1" || len(r.tape.Calls) != 11 {
		t.Errorf("tape %+v", r.tape)
	}

	// Another value is said to be one; none, or one that cannot be, is refused.
	other, err := r.player.Replay(t.Context(), Replay{Tape: r.tape, Secret: func(string) (string, bool) { return "another-secret", true }})
	if err != nil || len(other.Other) != 1 || other.Other[0] != "TOKEN" {
		t.Errorf("with another secret: %+v, %v", other, err)
	}
	for name, secret := range map[string]func(string) (string, bool){
		"TOKEN":   func(string) (string, bool) { return "", false },
		"8 bytes": func(string) (string, bool) { return "short", true },
	} {
		if _, err := r.player.Replay(t.Context(), Replay{Tape: r.tape, Secret: secret}); core.CodeOf(err) != core.CodeInvalidRequest || !strings.Contains(err.Error(), name) {
			t.Errorf("error %v", err)
		}
	}

	// A limit of host calls is reached again.
	call.Limits.HostCalls = 7
	r, res, err = recordCall(t, b, call)
	wantError(t, err, core.ClassLimit)
	r.identical(t, 3, res, err)
	if len(r.tape.Outcome.Output) > 0 || len(r.tape.Calls) > 6 {
		t.Errorf("tape %s", r.file)
	}
}

// TestReplayOtherModule: a module that was changed is told from the recorded one, and ended at the first call that the tape does not have.
func TestReplayOtherModule(t *testing.T) {
	t.Parallel()
	script := func(body string) []byte {
		return []byte("export default async function (input, ctx) {\n" + body + "\n}\n")
	}
	b := setup(t, withHost, withScripts(t))
	before := b.publish(t, script(`const n = ctx.kv.get('n'); console.log('n is', n, Math.random()); ctx.kv.put('n', '1'); return n.length;`))
	r, res, err := recordCall(t, b, Call{Module: before, Input: []byte("{}"), Grants: core.Grants{KV: core.KVWrite}})
	wantError(t, err, core.ClassFailed)
	r.identical(t, 3, res, err)
	for body, want := range map[string]string{
		`const n = ctx.kv.get('n'); console.log('n is', n, Math.random()); ctx.kv.put('n', '1'); return n == null ? 0 : n.length;`: "it ended with failed (exit code 1): TypeError: cannot read property 'length' of undefined (node.js:2:96), and now with an output",
		`const n = ctx.kv.get('n'); console.log('N is', n, Math.random()); ctx.kv.put('n', '1'); return n.length;`:                 "line 1 of the log",
		`console.log('n is', null, Math.random()); ctx.kv.put('n', '1'); return 1;`:                                                "call 1 was kv get n, and is now kv set n",
		`return 1;`:                                                         "call 1, kv get n, was made then and not now",
		`ctx.kv.get('m'); return 1;`:                                        "call 1, kv get m, is not on the tape; its next call is 1, kv get n",
		`ctx.kv.put('n', '2'); return 1;`:                                   "call 1, kv set n, is not on the tape; its next call is 1, kv get n",
		`ctx.kv.get('n'); ctx.kv.put('n', '2'); return 1;`:                  "call 2, kv set n, is not on the tape; its call 2 is to the same, with other arguments",
		`ctx.kv.get('n'); ctx.kv.get('n'); return 1;`:                       "call 2, kv get n, is not on the tape; its next call is 2, kv set n",
		`ctx.kv.get('n'); ctx.kv.put('n', '1'); ctx.kv.get('n'); return 1;`: "call 3, kv get n, is not on the tape, which has no further calls",
		`const end = Date.now() + 1e6; while (Date.now() < end) await new Promise((r) => setTimeout(r, 1e5)); ctx.kv.get('n'); ctx.kv.put('n', '1'); return 1;`: "it ended with failed",
		`}`: "call 1, kv get n, was made then and not now",
	} {
		binary := script(body)
		d := digest(binary)
		b.library.mu.Lock()
		b.library.modules[d] = binary
		b.library.mu.Unlock()
		got, err := r.player.Replay(t.Context(), Replay{Tape: r.tape, Module: d, Secret: theSecret})
		if err != nil || !strings.HasPrefix(got.Difference, want) || got.Ended != strings.Contains(want, "not on the tape") {
			t.Errorf("%s\n%+v, %v; want %q", body, got, err, want)
		}
	}
}

// TestReplayScript: a script that asks for the time, draws random numbers, waits, asks a server and keeps values fails in the same way again.
func TestReplayScript(t *testing.T) {
	t.Parallel()
	s, e, _ := outside(t)
	b := setup(t, withHost, withScripts(t), func(c *Config) { c.Egress = e.config })
	origin := at(t, s, "example.com")
	d := b.publish(t, []byte(`
const started = Math.random();
export default async function (input, ctx) {
  console.log(started, Math.random(), Date.now(), new Date().toISOString(), crypto.randomUUID());
  await new Promise((done) => setTimeout(done, 30));
  const token = ctx.secret('TOKEN');
  const r = ctx.http({method: 'POST', url: input.url, headers: {'X-Token': token}, body: {at: Date.now(), token}});
  ctx.kv.put('last', r.body.slice(0, 20) + token);
  console.log(r.status, r.header('x-served'), ctx.random(4), ctx.kv.get('last').length, Date.now());
  throw new Error('it was served ' + r.header('x-served') + ' ' + Math.random());
}`))
	call := Call{
		Module: d, Input: []byte(`{"url":"` + origin + `/y"}`), Config: json.RawMessage(`{"region":"eu"}`),
		Grants: core.Grants{HTTP: []string{"POST " + origin}, Secrets: []string{"TOKEN"}, KV: core.KVWrite},
	}
	r, res, err := recordCall(t, b, call)
	if e := wantError(t, err, core.ClassFailed); !strings.Contains(e.Message, "it was served 1 ") {
		t.Fatal(e)
	}
	s.Close()
	r.identical(t, 20, res, err)
	noSecret(t, "the tape", r.file)
}

// TestReplayExtism: a published plugin hears the same answer again, and the same refusal.
func TestReplayExtism(t *testing.T) {
	t.Parallel()
	s, e, _ := outside(t)
	b := setup(t, func(c *Config) { c.Egress = e.config })
	origin := at(t, s, "example.com")
	d := b.publish(t, extismPlugin(t, "http_headers"))
	call := Call{Module: d, Export: "http_get", Input: []byte(`{"url":"` + origin + `"}`), Grants: core.Grants{HTTP: []string{"GET " + origin}}}
	r, res, err := recordCall(t, b, call)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	r.identical(t, 20, res, err)
	call.Grants.HTTP = []string{"POST " + origin}
	r, res, err = recordCall(t, b, call)
	wantError(t, err, core.ClassDenied)
	r.identical(t, 3, res, err)
}

// TestTapePrivate: what a caller hands to a node in confidence is not on its tape either.
func TestTapePrivate(t *testing.T) {
	t.Parallel()
	b := setup(t)
	d := b.publish(t, guestModule(t))
	quoted, err := json.Marshal(secretValue)
	if err != nil {
		t.Fatal(err)
	}
	call := Call{
		Module: d, Input: []byte(`{"op":"echo","text":` + string(quoted) + `}`), Config: json.RawMessage(`{"token":` + string(quoted) + `}`),
		Private: map[string]string{"variables.token": secretValue, "variables.short": "op"},
	}
	r, res, err := recordCall(t, b, call)
	if err != nil || !bytes.Contains(res.Output, quoted[1:len(quoted)-1]) {
		t.Fatalf("%s, %v", res.Output, err)
	}
	noSecret(t, "the tape", r.file)
	got, err := r.player.Replay(t.Context(), Replay{Tape: r.tape, Secret: func(name string) (string, bool) { return secretValue, name == "variables.token" }})
	if err != nil || got.Difference != "" || !bytes.Equal(got.Result.Output, res.Output) {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestTapeTooLarge: a call that would need more than MaxTape leaves none, and is otherwise as any.
func TestTapeTooLarge(t *testing.T) {
	t.Parallel()
	s, e := allowedServer(t, func(w http.ResponseWriter, _ *http.Request) { w.Write(bytes.Repeat([]byte("x"), MaxResponseBody)) })
	b := setup(t, withScripts(t), func(c *Config) { c.Egress = e.config })
	origin := at(t, s, "example.com")
	d := b.publish(t, []byte(`export default (input, ctx) => { let n = 0; for (let i = 0; i < input.times; i++) n += ctx.http({method: 'GET', url: input.url + '/' + i}).body.length; return n; }`))
	call := Call{Account: core.DefaultAccount, Module: d, Record: true, Grants: core.Grants{HTTP: []string{"GET " + origin}}}
	for times, kept := range map[int]bool{3: true, 4: false, 5: false} {
		call.Input = fmt.Appendf(nil, `{"times":%d,"url":%q}`, times, origin)
		res, err := b.Invoke(t.Context(), call)
		if err != nil || string(res.Output) != fmt.Sprint(times*MaxResponseBody) {
			t.Fatalf("%s, %v", res.Output, err)
		}
		if (res.Tape != nil) != kept {
			t.Errorf("after %d responses there is a tape: %v", times, res.Tape != nil)
		}
	}
}

// TestTapeOfServer: a failure of the server leaves no tape, because the node did not fail.
func TestTapeOfServer(t *testing.T) {
	t.Parallel()
	b := setup(t, withScripts(t), func(c *Config) { c.KV = nil })
	d := b.publish(t, []byte(`export default (input, ctx) => ctx.kv.get('n')`))
	res, err := b.Invoke(t.Context(), Call{Account: core.DefaultAccount, Module: d, Input: []byte("{}"), Record: true, Grants: core.Grants{KV: core.KVRead}})
	if err == nil || res.Tape != nil {
		t.Errorf("tape %v, error %v", res.Tape, err)
	}
}

// TestTapeDamaged: a file that is not as it was written is refused, and the error says so.
func TestTapeDamaged(t *testing.T) {
	t.Parallel()
	b := setup(t)
	r, _, err := recordCall(t, b, Call{Module: b.publish(t, guestModule(t)), Input: []byte(`{"op":"echo"}`)})
	if err != nil {
		t.Fatal(err)
	}
	var spaced bytes.Buffer
	if err := json.Indent(&spaced, r.file, "", "  "); err != nil {
		t.Fatal(err)
	}
	if _, err := DecodeTape(spaced.Bytes()); err != nil {
		t.Errorf("with white space: %v", err)
	}
	for name, file := range map[string][]byte{
		"cut off":    r.file[:len(r.file)-10],
		"not JSON":   []byte("tape"),
		"no keyfire": []byte("{}"),
		"format 2":   bytes.Replace(r.file, []byte(`"keyfire_tape":1`), []byte(`"keyfire_tape":2`), 1),
		"damaged":    bytes.Replace(r.file, []byte(`echo`), []byte(`ecco`), 1),
		"bytes":      bytes.Repeat([]byte(" "), 2*MaxTape+1),
	} {
		if _, err := DecodeTape(file); core.CodeOf(err) != core.CodeInvalidRequest || !strings.Contains(err.Error(), strings.TrimPrefix(name, "no ")) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for want, damage := range map[string]func(*Tape){
		"no digest":  func(t *Tape) { t.Module = "sha256:x" },
		"seed":       func(t *Tape) { t.Seed = nil },
		"time":       func(t *Tape) { t.Limits.Timeout = 0 },
		"memory":     func(t *Tape) { t.Limits.Memory = 1 << 40 },
		"its limits": func(t *Tape) { t.Limits.Output = 0 },
		"incomplete": func(t *Tape) { t.Clock = nil },
		"backwards":  func(t *Tape) { t.Clock = []int64{1, -1, 1} },
		"result":     func(t *Tape) { t.Calls = []tapeCall{{Call: "http", Value: &tapeValue{Headers: make([]blob, 1)}}} },
	} {
		tape := *r.tape
		damage(&tape)
		file, err := tape.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := DecodeTape(file); core.CodeOf(err) != core.CodeInvalidRequest || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

// FuzzDecodeTape: whatever a file holds, it is refused or reads the same when it is written again.
func FuzzDecodeTape(f *testing.F) {
	tape := &Tape{
		Module: "sha256:" + strings.Repeat("0", 64), Door: DoorCommand, Seed: make([]byte, seedSize), Clock: []int64{0}, Limits: core.Limits{Timeout: 1, Memory: 1, Output: 1},
		Input: blob{{Bytes: []byte("a\xff")}, {Hole: core.Hole{Secret: "A", Form: 1}}}, Calls: []tapeCall{{Call: "http", Value: &tapeValue{Status: 200, Headers: []blob{nil, nil}}}},
	}
	file, err := tape.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(file)
	f.Add(file[30:])
	f.Fuzz(func(t *testing.T, file []byte) {
		tape, err := DecodeTape(file)
		if err != nil {
			if core.CodeOf(err) != core.CodeInvalidRequest {
				t.Fatalf("refused with %v", err)
			}
			// With its checksum mended, what is behind it is read too.
			var parts tapeFile
			if json.Unmarshal(file, &parts) != nil || len(parts.Tape) == 0 {
				return
			}
			file = reseal(t, parts.Tape)
			if tape, err = DecodeTape(file); err != nil {
				return
			}
		}
		again, err := tape.Encode()
		if err != nil {
			return
		}
		if back, err := DecodeTape(again); err != nil || fmt.Sprint(back) != fmt.Sprint(tape) {
			t.Fatalf("reads as %v, %v; want %v", back, err, tape)
		}
		p := newPlayer(tape, true, nil)
		p.rec = &recorder{tape: &Tape{Clock: []int64{0}}, most: 1 << 40}
		for range min(len(tape.Clock), 100) {
			p.now()
		}
	})
}

// reseal returns the file of a tape's JSON.
func reseal(t *testing.T, tape json.RawMessage) []byte {
	var body bytes.Buffer
	if err := json.Compact(&body, tape); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(body.Bytes())
	file, err := json.Marshal(tapeFile{Format: tapeFormat, Sum: hex.EncodeToString(sum[:]), Tape: body.Bytes()})
	if err != nil {
		t.Fatal(err)
	}
	return file
}
