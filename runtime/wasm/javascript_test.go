package wasm

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keyfire/keyfire/core"
)

const testScript = `
const start = Math.random();
let calls = 0;
export default async function (input, ctx) {
  calls++;
  switch (input.op) {
    case 'echo': return input.value;
    case 'sum': return input.items.map((i) => i.qty * i.price).reduce((a, b) => a + b, 0);
    case 'nothing': return;
    case 'calls': return calls;
    case 'random': return [Math.random(), Math.random(), start];
    case 'now': return Date.now();
    case 'config': return ctx.config;
    case 'log': ctx.log.debug('a', {b: 1}); console.log('c'); ctx.log.error(new Error('d').message); return true;
    case 'later': return await Promise.resolve(input).then((i) => i.value);
    case 'never': return await new Promise(() => {});
    case 'fail': ctx.fail(409, 'taken', 'it is taken'); break;
    case 'unavailable': ctx.unavailable('closed'); break;
    case 'throw': throw new TypeError('no way');
    case 'text': throw 'plain';
    case 'loop': for (;;) {}
    case 'deep': return (function f() { return 1 + f(); })();
    case 'eat': { const a = []; for (;;) a.push(new Uint8Array(1 << 20)); }
    case 'secret': return ctx.secret('TOKEN').length;
    case 'count': {
      for (;;) {
        const old = ctx.kv.get('n');
        const n = Number(old ?? 0) + 1;
        if (ctx.kv.compareAndSwap('n', old, String(n))) return n;
      }
    }
    case 'http': {
      const r = ctx.http({method: 'POST', url: input.url, headers: {'X-Sent': '1'}, body: {a: 'ü'}});
      return {status: r.status, type: r.header('x-got'), body: r.json()};
    }
    case 'globals': return [typeof std, typeof os, typeof require, typeof process, typeof Deno];
    case 'import': return await import('./other.js');
    case 'eval': return [eval('1 + 1'), new Function('return this === globalThis')()];
    case 'fetch': {
      const r = await fetch(input.url, {method: 'POST', headers: {'X-Sent': '2'}, body: new TextEncoder().encode('"ä"')});
      return [r.ok, r.headers.get('X-Got'), await r.json()];
    }
    case 'timers': {
      const order = [];
      const wait = (ms) => new Promise((done) => setTimeout(() => { order.push(ms); done(); }, ms));
      const never = setTimeout(() => order.push('never'), 1);
      clearTimeout(never);
      await Promise.all([wait(500), wait(0), wait(10)]);
      return order;
    }
    case 'bytes': {
      const text = 'aé€😀\u0000';
      const bytes = new TextEncoder().encode(text);
      return [bytes.length, new TextDecoder().decode(bytes) === text, new TextDecoder().decode(new Uint8Array([255])), ctx.random(5).length, crypto.randomUUID().length];
    }
    case 'caught': try { ctx.secret('OTHER'); } catch (e) { return [e instanceof NodeError, e.kind, e.message]; }
    case 'modern': {
      class A { #x = 1; static y = 2; get x() { return this.#x; } }
      const {a, ...rest} = {a: 1, b: 2, c: 3};
      async function* three() { for (let i = 0; i < 3; i++) yield i; }
      const list = [];
      for await (const i of three()) list.push(i);
      return [new A().x + A.y, rest, list, 2n ** 64n + '', 'a-b'.replaceAll('-', '+'), [3, 1].toSorted(), /(?<w>\p{Lu})/u.exec('xÄ').groups.w, Object.groupBy([1, 2], (n) => n % 2 ? 'odd' : 'even').odd];
    }
    case 'function': return () => 1;
    case 'circle': { const o = {}; o.o = o; return o; }
    case 'pollute': Array.prototype.map = null; JSON.parse = null; return 'done';
    case 'failBadly': ctx.fail(200, 'taken', 'it is taken'); break;
    case 'throwOdd': throw {get stack() { throw new Error('no stack'); }, a: 1};
    case 'throwProxy': throw new Proxy({}, {get() { throw 1; }});
    case 'logOdd': console.log(new Proxy({}, {get() { throw 1; }})); return 1;
  }
}
`

func TestJavaScript(t *testing.T) {
	t.Parallel()
	s, e := allowedServer(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		w.Header().Set("X-Got", r.Method+" "+r.Header.Get("X-Sent"))
		fmt.Fprintf(w, `{"sent":%s}`, b)
	})
	b := setup(t, withHost, withScripts(t), func(c *Config) { c.Egress = e.config })
	d := b.publish(t, []byte(testScript))
	origin := at(t, s, "example.com")
	do := func(input string, change ...func(*Call)) (Result, error) {
		c := Call{
			Account: core.DefaultAccount, Module: d, Input: []byte(input), Config: json.RawMessage(`{"region":"eu"}`), Workflow: "wf",
			Grants: core.Grants{HTTP: []string{"POST " + origin}, Secrets: []string{"TOKEN"}, KV: core.KVWrite},
		}
		for _, f := range change {
			f(&c)
		}
		return b.Invoke(t.Context(), c)
	}
	for _, tt := range [][2]string{
		{`{"op":"echo","value":{"ü":[1,2.5,null,"\u0000"]}}`, `{"ü":[1,2.5,null,"\u0000"]}`},
		{`{"op":"sum","items":[{"qty":2,"price":1.5},{"qty":1,"price":4}]}`, `7`},
		{`{"op":"nothing"}`, `null`},
		{`{"op":"calls"}`, `1`},
		{`{"op":"calls"}`, `1`},
		{`{"op":"config"}`, `{"region":"eu"}`},
		{`{"op":"later","value":3}`, `3`},
		{`{"op":"secret"}`, fmt.Sprint(len([]rune(secretValue)))},
		{`{"op":"logOdd"}`, `1`},
		{`{"op":"count"}`, `1`},
		{`{"op":"count"}`, `2`},
		{`{"op":"http","url":"` + origin + `/x"}`, `{"status":200,"type":"POST 1","body":{"sent":{"a":"ü"}}}`},
		{`{"op":"globals"}`, `["undefined","undefined","undefined","undefined","undefined"]`},
		{`{"op":"eval"}`, `[2,true]`},
		{`{"op":"fetch","url":"` + origin + `/y"}`, `[true,"POST 2",{"sent":"ä"}]`},
		{`{"op":"timers"}`, `[0,10,500]`}, // a busy machine lets some time pass between the first and the last
		{`{"op":"bytes"}`, "[11,true,\"\ufffd\",5,36]"},
		{`{"op":"caught"}`, `[true,"denied","the secret is not granted; the node would need grants: {secrets: [OTHER]}"]`},
		{`{"op":"modern"}`, `[3,{"b":2,"c":3},[0,1,2],"18446744073709551616","a+b",[1,3],"Ä",[1]]`},
		{`{"op":"pollute"}`, `"done"`},
		{`{"op":"calls"}`, `1`},
	} {
		if res, err := do(tt[0]); err != nil || string(res.Output) != tt[1] {
			t.Errorf("%s: %s, %v, want %s", tt[0], res.Output, err, tt[1])
		}
	}
	large := strings.Repeat("äöü ", 100_000)
	if res, err := do(`{"op":"echo","value":"` + large + `"}`); err != nil || string(res.Output) != `"`+large+`"` {
		t.Errorf("large input: %d bytes, %v", len(res.Output), err)
	}

	seen := map[float64]bool{}
	for range 4 {
		var numbers []float64
		res, err := do(`{"op":"random"}`)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(res.Output, &numbers); err != nil {
			t.Fatal(err)
		}
		for _, n := range numbers[:2] {
			if n < 0 || n >= 1 || seen[n] {
				t.Errorf("Math.random gives %v, again or out of range", n)
			}
			seen[n] = true
		}
	}
	for range 2 {
		var now int64
		res, err := do(`{"op":"now"}`)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(res.Output, &now); err != nil || time.Since(time.UnixMilli(now)).Abs() > 10*time.Second {
			t.Errorf("Date.now gives %d, %v", now, err)
		}
	}

	res, err := do(`{"op":"log"}`)
	var lines []string
	for _, l := range res.Log {
		lines = append(lines, l.Level+" "+l.Message)
	}
	if diff := cmp.Diff([]string{`debug a {"b":1}`, "info c", "error d"}, lines); diff != "" || err != nil {
		t.Errorf("log, %v (-want +got):\n%s", err, diff)
	}

	for in, want := range map[string]Error{
		`{"op":"fail"}`:        {Class: core.ClassFailed, ExitCode: 1, Status: 409, Code: "taken", Message: "it is taken"},
		`{"op":"unavailable"}`: {Class: core.ClassUnavailable, ExitCode: 1, Message: "closed"},
		`{"op":"throw"}`:       {Class: core.ClassFailed, ExitCode: 1, Message: "TypeError: no way (node.js:19:29)"},
		`{"op":"text"}`:        {Class: core.ClassFailed, ExitCode: 1, Message: "plain"},
		`{"op":"function"}`:    {Class: core.ClassFailed, ExitCode: 1, Message: "TypeError: the output is a function, which is not JSON"},
		`{"op":"circle"}`:      {Class: core.ClassFailed, ExitCode: 1, Message: "TypeError: circular reference"},
		`{"op":"import"}`:      {Class: core.ClassFailed, ExitCode: 1, Message: "ReferenceError: could not load module 'other.js'"},
		`{"op":"failBadly"}`: {
			Class: core.ClassFailed, ExitCode: 1,
			Message: "RangeError: ctx.fail(200, taken): a status is 400 to 599, and a code 1 to 64 characters of a-z, 0-9 and _: it is taken (node.js:68:27)",
		},
		`{"op":"throwOdd"}`:   {Class: core.ClassFailed, ExitCode: 1, Message: "the script threw what cannot be described: [object Object]"},
		`{"op":"throwProxy"}`: {Class: core.ClassFailed, ExitCode: 1, Message: "the script threw what cannot be described: (object)"},
		`{"op":"never"}`:      {Class: core.ClassFailed, ExitCode: 1, Message: "the script waits for a promise that nothing will settle"},
		`{"op":"http","url":"https://other.example/"}`: {
			Class: core.ClassDenied, ExitCode: 1,
			Message: `POST https://other.example is not granted; the node would need grants: {http: ["POST https://other.example"]} (node.js:33:48)`,
		},
	} {
		_, err := do(in)
		got := wantError(t, err, want.Class)
		if diff := cmp.Diff(want, *got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", in, diff)
		}
	}
	for _, op := range []string{"secret", "count", "http"} {
		_, err := do(`{"op":"`+op+`","url":"`+origin+`"}`, func(c *Call) { c.Grants = core.Grants{} })
		wantError(t, err, core.ClassDenied)
	}
	short := func(c *Call) { c.Limits.Timeout = core.Duration(200 * time.Millisecond) }
	_, err = do(`{"op":"loop"}`, short)
	wantError(t, err, core.ClassTimeout)
	_, err = do(`{"op":"deep"}`)
	wantError(t, err, core.ClassLimit)
	_, err = do(`{"op":"eat"}`, short)
	if err == nil {
		t.Error("a script that takes all memory succeeds")
	}
}

// TestJavaScriptRefused: what is no script that could run is refused when it is published, with where.
func TestJavaScriptRefused(t *testing.T) {
	t.Parallel()
	b := setup(t, withScripts(t))
	for script, want := range map[string]string{
		"export default function (input { }":                    "SyntaxError",
		"<html>not found</html>":                                "SyntaxError",
		"const x = 1;":                                          "export default function",
		"export default 7;":                                     "export default function",
		"throw new Error('at the top');":                        "at the top",
		"import x from './other.js'; export default () => x;":   "other.js",
		"export default () => 1; " + strings.Repeat(" ", 600e3): "512 KiB",
	} {
		_, err := b.Compile(t.Context(), []byte(script))
		if core.CodeOf(err) != core.CodeInvalidModule || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v, want a refusal with %q", script, err, want)
		}
	}
	info, err := b.Compile(t.Context(), []byte("export default () => 1"))
	if err != nil {
		t.Fatal(err)
	}
	if info.Door != DoorJavaScript || info.Size != 22 || info.Digest != digest([]byte("export default () => 1")) {
		t.Errorf("info %+v", info)
	}
	if fields := info.Check(&core.Node{}); len(fields) > 0 {
		t.Errorf("fields %+v", fields)
	}
}

// TestJavaScriptImage: a script is evaluated once and called from that state, which no call can change for the next.
func TestJavaScriptImage(t *testing.T) {
	t.Parallel()
	b := setup(t, withScripts(t), verified(t))
	d := b.publish(t, []byte(`
		let calls = 0;
		const kept = [];
		export default (input) => {
			kept.push(input.text);
			return {calls: ++calls, kept, random: Math.random(), now: Date.now()};
		};`))
	b.warm(t, d, StartShared)
	seen := map[float64]bool{}
	for n := range 20 {
		text := strings.Repeat("x", n*1000)
		res, err := b.call(t, d, `{"text":"`+text+`"}`, core.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		var out struct {
			Calls  int
			Kept   []string
			Random float64
			Now    int64
		}
		if err := json.Unmarshal(res.Output, &out); err != nil {
			t.Fatal(err)
		}
		if out.Calls != 1 || len(out.Kept) != 1 || out.Kept[0] != text || seen[out.Random] || time.Since(time.UnixMilli(out.Now)).Abs() > time.Minute {
			t.Fatalf("call %d: %.200s", n, res.Output)
		}
		seen[out.Random] = true
	}
	// The first state of this one has a random number in it, so no two calls may begin from the same.
	d = b.publish(t, []byte(testScript))
	b.warm(t, d, StartAhead)
	for range 4 {
		res, err := b.call(t, d, `{"op":"random"}`, core.Limits{})
		var numbers []float64
		if err != nil || json.Unmarshal(res.Output, &numbers) != nil {
			t.Fatalf("%s, %v", res.Output, err)
		}
		for _, n := range numbers {
			if seen[n] {
				t.Errorf("%v is given twice", n)
			}
			seen[n] = true
		}
	}
}

func BenchmarkJavaScript(b *testing.B) {
	for _, plain := range []bool{false, true} {
		b.Run(map[bool]string{false: "image", true: "plain"}[plain], func(b *testing.B) {
			rt := setup(b, withScripts(b), func(c *Config) {
				if plain {
					c.Engine = EnginePlain
				}
			})
			d := rt.publish(b, []byte("export default (input) => input.items.reduce((s, i) => s + i.qty * i.price, 0)"))
			if _, err := rt.Warm(b.Context(), core.DefaultAccount, d); err != nil {
				b.Fatal(err)
			}
			input := `{"items":[` + strings.Repeat(`{"sku":"A-1234567","qty":3,"price":12.5},`, 15) + `{"sku":"B","qty":1,"price":2}]}`
			b.ResetTimer()
			for range b.N {
				if _, err := rt.call(b, d, input, core.Limits{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// scriptEngine finds the engine: where npm install put it for the gallery.
func scriptEngine(t testing.TB) string {
	t.Helper()
	file, err := filepath.Abs(filepath.FromSlash("../../examples/nodes/gallery/javascript/node_modules/" + ScriptEnginePackage + "/" + ScriptEngineFile))
	if err == nil {
		_, err = os.Stat(file)
	}
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skipf("SKIPPED: run npm install in examples/nodes/gallery/javascript: %v", err)
	}
	return file
}

// withScripts is for setup.
func withScripts(t testing.TB) func(*Config) {
	file := scriptEngine(t)
	return func(c *Config) { c.ScriptEngine = file }
}

// TestJavaScriptLongText: a text that no function takes is not copied to the host's side, where no budget would count it; the script is ended with the reason.
func TestJavaScriptLongText(t *testing.T) {
	t.Parallel()
	b := setup(t, withScripts(t))
	for what, script := range map[string]string{
		"a secret's name": `export default (input, ctx) => ctx.secret("a".repeat(9 << 20))`,
		"an output":       `export default () => "a".repeat(9 << 20)`,
	} {
		d := b.publish(t, []byte(script))
		_, err := b.call(t, d, `1`, core.Limits{Timeout: core.Duration(time.Minute)})
		if e := wantError(t, err, core.ClassLimit); !strings.Contains(e.Message, "8 MiB") {
			t.Errorf("%s: %q", what, e.Message)
		}
		if _, err := b.call(t, d, `1`, core.Limits{Timeout: core.Duration(time.Minute)}); err == nil {
			t.Errorf("%s: it is taken the second time", what)
		}
	}
}

// TestJavaScriptLittleMemory: where the engine has no memory left for what the host hands in, the node fails by its limit. Nothing of it reaches the caller as a panic.
func TestJavaScriptLittleMemory(t *testing.T) {
	t.Parallel()
	b := setup(t, withScripts(t))
	d := b.publish(t, []byte(`export default () => 1`))
	input := `"` + strings.Repeat("a", MaxInput-2) + `"`
	for memory := int64(1280 << 10); memory <= 4<<20; memory += 256 << 10 {
		_, err := b.call(t, d, input, core.Limits{Memory: memory, Timeout: core.Duration(time.Minute)})
		if e := wantError(t, err, core.ClassLimit); !strings.Contains(e.Message, "memory") {
			t.Errorf("%d KiB: %q", memory>>10, e.Message)
		}
	}
}
