package cli

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/runtime/wasm"
	"github.com/keyfire/keyfire/sdk/client"
)

const replayWorkflow = `keyfire: v1
name: taped
trigger: {enabled: true, mode: MODE}
nodes:
  - id: secret
    uses: ./typed.wasm
    with: {op: secret}
    grants: {http: ["GET ORIGIN"], secrets: [TOKEN], kv: write}
    record: all
  - id: fetch
    uses: ./typed.wasm
    needs: [secret]
    with: {op: http, url: "ORIGIN/typed"}
    grants: {http: ["GET ORIGIN"], secrets: [TOKEN], kv: write}
    record: all
  - id: count
    uses: ./typed.wasm
    needs: [fetch]
    with: {op: count}
    grants: {http: ["GET ORIGIN"], secrets: [TOKEN], kv: write}
    record: all
  - id: script
    uses: ./node.js
    needs: [count]
    with: {url: "ORIGIN/script"}
    grants: {http: ["POST ORIGIN"], secrets: [TOKEN], kv: write}
    record: failures
`

// replayScript fails, and how depends on everything that is never the same.
const replayScript = `
const started = Math.random();
export default async function (input, ctx) {
  console.log('drew', started, Math.random(), crypto.randomUUID(), 'at', Date.now());
  await new Promise((done) => setTimeout(done, 20));
  const token = ctx.secret('TOKEN');
  const r = await fetch(input.url, {method: 'POST', headers: {Authorization: 'Bearer ' + token}, body: JSON.stringify({token, at: Date.now()})});
  const said = await r.text();
  ctx.kv.put('last', 'x'.repeat(said.length));
  ctx.log.warn('kept', ctx.kv.get('last').length, ctx.random(8).join());
  throw new Error('served as ' + r.headers.get('x-served') + ' at ' + new Date().toISOString() + ' with ' + Math.random());
}
`

// TestReplayOffline records nodes on a server, inline and durable, takes the tapes home and replays them where neither the server nor anything it talked to is there. The
// secret is in none of it.
func TestReplayOffline(t *testing.T) {
	t.Parallel()
	const secret = "sk_live_51HqLyjWDarjtT1zd/+="
	engine := filepath.FromSlash("../../../examples/nodes/gallery/javascript/node_modules/" + wasm.ScriptEnginePackage + "/" + wasm.ScriptEngineFile)
	if _, err := os.Stat(engine); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skipf("SKIPPED: run npm install in examples/nodes/gallery/javascript: %v", err)
	}
	served := 0
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		served++
		w.Header().Set("X-Served", fmt.Sprint(served))
		fmt.Fprintf(w, `{"path":%q,"authorization":%q,"served":%d}`, r.URL.Path, r.Header.Get("Authorization"), served)
	}))
	defer service.Close()

	s := startWatched(t, "KEYFIRE_EGRESS_ALLOW=127.0.0.0/8")
	dir := t.TempDir()
	buildTypedNode(t, filepath.Join(dir, "typed.wasm"))
	for name, content := range map[string]string{
		"inline.yaml": strings.NewReplacer("ORIGIN", service.URL, "MODE", "sync").Replace(replayWorkflow), "node.js": replayScript,
		"durable.yaml": strings.NewReplacer("ORIGIN", service.URL, "MODE", "async", "taped", "durable").Replace(replayWorkflow),
		"mended.js":    strings.Replace(replayScript, "throw new Error(", "return (", 1),
		"curious.js":   strings.Replace(replayScript, "ctx.kv.get('last')", "ctx.kv.get('first')", 1),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	abroad := []string{"KEYFIRE_DATA=" + s.data}
	var answers bytes.Buffer
	keyfire := func(env []string, stdin string, code int, args ...string) string {
		t.Helper()
		out, errs, got := runKeyfireInput(t, dir, env, stdin, args...)
		answers.WriteString(out + errs)
		if got != code {
			t.Fatalf("keyfire %s: exit %d, want %d\n%s%s", strings.Join(args, " "), got, code, out, errs)
		}
		return out + errs
	}
	keyfire(abroad, "", 0, "engine", "install", absolute(t, engine))
	keyfire(abroad, secret+"\n", 0, "secrets", "set", "TOKEN")
	keyfire(abroad, "", 0, "apply", "inline.yaml")
	keyfire(abroad, "", 0, "apply", "durable.yaml")

	var failed *client.Error
	if _, err := s.admin.Trigger(t.Context(), "taped", client.TriggerRequest{Input: json.RawMessage("{}")}); !errors.As(err, &failed) || failed.RunID == "" {
		t.Fatalf("trigger: %v", err)
	}
	runs := map[string]string{"inline": failed.RunID}
	accepted, err := s.admin.Trigger(t.Context(), "durable", client.TriggerRequest{Input: json.RawMessage("{}"), Async: true})
	if err != nil {
		t.Fatal(err)
	}
	runs["durable"] = accepted.ID
	for deadline := time.Now().Add(startTimeout); ; time.Sleep(10 * time.Millisecond) {
		if run, err := s.admin.Run(t.Context(), accepted.ID); err != nil || time.Now().After(deadline) {
			t.Fatalf("the durable run does not end: %+v, %v", run, err)
		} else if run.Status == string(core.RunFailed) {
			break
		}
	}
	for mode, run := range runs {
		for _, step := range []string{"secret", "fetch", "count", "script"} {
			tape, err := s.admin.Tape(t.Context(), run, step, 0)
			if err != nil {
				t.Fatalf("%s %s: %v", mode, step, err)
			}
			answers.Write(tape)
			keyfire(abroad, "", 0, "replay", run, "--step", step, "-o", mode+"-"+step+".tape")
		}
	}
	windows := map[string]string{}
	addWindows(windows, "the secret", secret)
	service.Close()
	s.search(windows, answers.Bytes()) // which stops the server

	home := []string{"KEYFIRE_DATA=" + s.data, "KEYFIRE_URL=", "TOKEN=" + secret}
	asked := served
	for mode := range runs {
		for _, step := range []string{"secret", "fetch", "count", "script"} {
			for range map[string]int{"script": 20}[step] + 1 {
				var got replayed
				out, errs, code := runKeyfireInput(t, dir, home, "", "replay", "--tape", mode+"-"+step+".tape", "--json")
				if err := json.Unmarshal([]byte(out), &got); err != nil || code != 0 || !got.Identical || got.Step != step || got.Then != got.Now {
					t.Fatalf("%s %s: exit %d, %v\n%s%s", mode, step, code, err, out, errs)
				}
			}
		}
	}
	if served != asked {
		t.Errorf("a replay asked the service")
	}
	// Without the secret it is said which is missing; with another one, that it is another.
	if out := keyfire(home[:2], "", exitUsage, "replay", "--tape", "inline-script.tape"); !strings.Contains(out, "environment variables to them: TOKEN") {
		t.Error(out)
	}
	out, errs, _ := runKeyfireInput(t, dir, append(home[:2:2], "TOKEN=some other value"), "", "replay", "--tape", "inline-script.tape")
	if !strings.Contains(out+errs, "TOKEN is another value than the one that was used") {
		t.Error(out + errs)
	}
	// A mended module goes on with the same answers, to its end; one that asks for something else ends there.
	if out := keyfire(home, "", 0, "replay", "--tape", "inline-script.tape", "--module", "mended.js"); !strings.Contains(out, "served as") || !strings.Contains(out, "with another module") {
		t.Error(out)
	}
	if out := keyfire(home, "", exitConflict, "replay", "--tape", "inline-script.tape", "--module", "curious.js"); !strings.Contains(out, "kv get first, is not on the tape; its next call is 4, kv get last") {
		t.Error(out)
	}
}

// A tape that somebody else hands over moves no cursor and retitles no window, whatever is on it.
func TestReplayShowsNoControls(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	module := sha256.Sum256(answering)
	body := fmt.Sprintf(`{"workflow":"E","run":"E","step":"E","attempt":1,"recorded":"2026-01-01T00:00:00Z","machine":"E","module":"sha256:%x","door":"E","limits":{"timeout":"5s","memory":1048576,"output":100},`+
		`"input":"{}","seed":%q,"start_ms":1,"clock":[0],"outcome":{"error":{"class":"E","message":"E"},"fuel":1,"peak_memory_bytes":1,"random_bytes":0}}`, module, strings.Repeat("A", 43)+"=")
	body = strings.ReplaceAll(body, `"E"`, `"\u001b[31m"`)
	file := fmt.Appendf(nil, `{"keyfire_tape":1,"sha256":"%x","tape":%s}`, sha256.Sum256([]byte(body)), body)
	for name, content := range map[string][]byte{"a.tape": file, moduleBeside("a.tape"): answering} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	out, errs, code := runKeyfire(t, dir, []string{"HOME=" + dir}, "replay", "--tape", "a.tape", "--cache", "off")
	if code != 1 || !strings.Contains(errs, "not identical") || strings.Contains(out+errs, "\x1b") {
		t.Errorf("exit %d\n%q\n%q", code, out, errs)
	}
}

func absolute(t *testing.T, path string) string {
	t.Helper()
	abs, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return abs
}
