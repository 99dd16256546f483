package cli

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/plugins"
	"github.com/keyfire/keyfire/sdk/client"
)

const hookKey = "a signing secret of 32 bytes, no" // #nosec G101 -- of the test

func hookMAC(message string) []byte {
	m := hmac.New(sha256.New, []byte(hookKey))
	m.Write([]byte(message))
	return m.Sum(nil)
}

// standardHeaders signs a message as senders of Standard Webhooks do.
func standardHeaders(id string, at time.Time, body string) []string {
	ts := strconv.FormatInt(at.Unix(), 10)
	return []string{
		"Webhook-Id", id, "Webhook-Timestamp", ts, "Webhook-Signature", "v1," + base64.StdEncoding.EncodeToString(hookMAC(id+"."+ts+"."+body)),
	}
}

// hookAnswer is what a webhook was answered.
type hookAnswer struct {
	status    int
	body      string
	RunID     string `json:"run_id"`
	Status    string `json:"status"`
	Duplicate bool   `json:"duplicate"`
}

func postHook(t testing.TB, url, body string, header ...string) hookAnswer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	a := hookAnswer{status: res.StatusCode, body: string(text)}
	_ = json.Unmarshal(text, &a)
	return a
}

// outputOf waits for the end of a run and returns what it put out.
func (s *testServer) outputOf(t testing.TB, id string) string {
	t.Helper()
	for deadline := time.Now().Add(startTimeout); ; time.Sleep(10 * time.Millisecond) {
		run, err := s.admin.Run(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if run.Status == string(core.RunSucceeded) {
			return string(run.Output)
		}
		if time.Now().After(deadline) || run.Status == string(core.RunFailed) {
			t.Fatalf("run %s is %s", id, run.Status)
		}
	}
}

// TestWebhooks has senders start runs by messages they sign: those the workflow verifies itself (A4), and those of the hmac plugin. That a message
// was taken holds when the server has been killed in between.
func TestWebhooks(t *testing.T) {
	t.Parallel()
	plugin := builtPlugin(t, "hmac")
	digest, err := plugins.Digest(plugin)
	if err != nil {
		t.Fatal(err)
	}
	config := writeFile(t, "keyfire.yaml", fmt.Sprintf(`auth:
  - key: {}
  - plugin:
      name: hooks
      path: %q
      sha256: %s
      required: true
      headers: [X-Hub-Signature-256, X-Slack-Signature, Webhook-Signature]
      show_headers: [X-Slack-Request-Timestamp, Webhook-Id, Webhook-Timestamp]
      body: true
      timeout: 5s
      accounts: [acct_default]
      scopes: ["run:workflow/*"]
      config:
        senders:
          - {name: github, preset: github, secrets: [%[3]q], scopes: ["run:workflow/echo"]}
          - {name: slack, preset: slack, secrets: [%[3]q], scopes: ["run:workflow/echo"]}
          - {name: svix, preset: standard-webhooks, secrets: [%[4]q], scopes: ["run:workflow/echo"]}
`, plugin, digest, hookKey, "whsec_"+base64.StdEncoding.EncodeToString([]byte(hookKey))))
	data := filepath.Join(t.TempDir(), "data")
	copyData(t, data)
	s := startServerOn(t, data, "--config", config)
	if _, err := s.admin.SetSecret(t.Context(), "CRM_WEBHOOK_SECRET", "whsec_"+base64.StdEncoding.EncodeToString([]byte(hookKey))); err != nil {
		t.Fatal(err)
	}
	file, err := os.ReadFile("testdata/workflows/echo/workflow.yaml")
	if err != nil {
		t.Fatal(err)
	}
	node, err := os.ReadFile(filepath.Join(workflowsDir(t), "node.wasm"))
	if err != nil {
		t.Fatal(err)
	}
	const signed = "trigger: {enabled: true, webhook: {verify: standard-webhooks, secret: CRM_WEBHOOK_SECRET}}"
	text := strings.Replace(strings.Replace(string(file), "name: echo", "name: crm", 1), "trigger: {enabled: true}", signed, 1)
	published, err := s.admin.PublishWorkflow(t.Context(), "crm", client.Publication{Source: []byte(text), Modules: map[string][]byte{"../node.wasm": node}})
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}

	const body = `{"customer": "acme"}`
	var captured []string
	var first hookAnswer
	for name, path := range map[string]string{"by slug": "crm", "by id": published.ID} {
		headers := standardHeaders("msg_"+published.ID+path, time.Now(), body)
		a := postHook(t, s.url+"/v1/hooks/"+path, body, headers...)
		if a.status != http.StatusAccepted || a.Duplicate || s.outputOf(t, a.RunID) != `{"customer":"acme"}` {
			t.Fatalf("%s: %d %s", name, a.status, a.body)
		}
		captured, first = headers, a
	}
	run, err := s.admin.Run(t.Context(), first.RunID)
	if err != nil || run.Trigger.Principal != "webhook:CRM_WEBHOOK_SECRET" || run.Trigger.Type != "webhook" || run.Trigger.Backend != "webhook" {
		t.Errorf("%+v, %v", run, err)
	}
	replays := func(when string) {
		t.Helper()
		if a := postHook(t, s.url+"/v1/hooks/crm", body, captured...); a.status != http.StatusOK || !a.Duplicate || a.RunID != first.RunID {
			t.Errorf("a replay %s: %d %s, want 200 with %s", when, a.status, a.body, first.RunID)
		}
		redelivered := standardHeaders(captured[1], time.Now().Add(time.Second), body)
		if a := postHook(t, s.url+"/v1/hooks/crm", body, redelivered...); a.status != http.StatusOK || a.RunID != first.RunID {
			t.Errorf("a redelivery %s: %d %s", when, a.status, a.body)
		}
		for what, headers := range map[string][]string{
			"another id":     append([]string{"Webhook-Id", "msg_other"}, captured[2:]...),
			"another time":   {captured[0], captured[1], "Webhook-Timestamp", "1", captured[4], captured[5]},
			"old":            standardHeaders("msg_old", time.Now().Add(-6*time.Minute), body),
			"no signature":   captured[:4],
			"another secret": {captured[0], captured[1], captured[2], captured[3], captured[4], "v1," + base64.StdEncoding.EncodeToString(make([]byte, 32))},
		} {
			if a := postHook(t, s.url+"/v1/hooks/crm", body, headers...); a.status != http.StatusUnauthorized {
				t.Errorf("a forgery %s, %s: %d %s", when, what, a.status, a.body)
			}
		}
		if a := postHook(t, s.url+"/v1/hooks/crm", body+" ", captured...); a.status != http.StatusUnauthorized {
			t.Errorf("another body %s: %d %s", when, a.status, a.body)
		}
	}
	replays("at once")

	// The plugin's senders, on a workflow that says nothing about webhooks itself.
	hook := s.url + "/v1/hooks/echo"
	a := postHook(t, hook, body, "X-Hub-Signature-256", "sha256="+hex.EncodeToString(hookMAC(body)))
	if a.status != http.StatusAccepted || s.outputOf(t, a.RunID) != `{"customer":"acme"}` {
		t.Errorf("github: %d %s", a.status, a.body)
	}
	ts := strconv.FormatInt(time.Now().Unix(), 10)
	form := "command=%2Fdeploy&text=now"
	slack := []string{"X-Slack-Signature", "v0=" + hex.EncodeToString(hookMAC("v0:"+ts+":"+form)), "X-Slack-Request-Timestamp", ts, "Content-Type", "application/x-www-form-urlencoded"}
	if a := postHook(t, hook, form, slack...); a.status != http.StatusAccepted || s.outputOf(t, a.RunID) != `"command=%2Fdeploy&text=now"` {
		t.Errorf("slack: %d %s", a.status, a.body)
	}
	if a := postHook(t, hook, form, slack...); a.status != http.StatusUnauthorized {
		t.Errorf("slack, replayed: %d %s", a.status, a.body)
	}
	svix := standardHeaders("msg_9", time.Now(), body)
	one := postHook(t, hook, body, svix...)
	if again := postHook(t, hook, body, svix...); one.status != http.StatusAccepted || again.status != http.StatusOK || again.RunID != one.RunID || !again.Duplicate {
		t.Errorf("standard webhooks by the plugin: %d %s, then %d %s", one.status, one.body, again.status, again.body)
	}
	if a := postHook(t, s.url+"/v1/workflows/echo/runs", `{"input":1}`, "X-Hub-Signature-256", "sha256="+strings.Repeat("0", 64)); a.status != http.StatusUnauthorized {
		t.Errorf("github, forged: %d %s", a.status, a.body)
	}

	if err := s.kill(); err != nil {
		t.Fatal(err)
	}
	s = startServerOn(t, data, "--config", config)
	replays("after the server was killed")
	if a := postHook(t, s.url+"/v1/hooks/echo", body, svix...); a.status != http.StatusOK || a.RunID != one.RunID {
		t.Errorf("a replay to the plugin after the server was killed: %d %s", a.status, a.body)
	}
	if _, err := s.admin.DeleteSecret(t.Context(), "CRM_WEBHOOK_SECRET"); err != nil {
		t.Fatal(err)
	}
	if a := postHook(t, s.url+"/v1/hooks/crm", body, standardHeaders("msg_10", time.Now(), body)...); a.status != http.StatusServiceUnavailable {
		t.Errorf("without the secret: %d %s", a.status, a.body)
	}
}

// built are the shipped plugins that tests have built, by name.
var built struct {
	mu    sync.Mutex
	paths map[string]string
}

// builtPlugin returns the executable of a plugin that we ship.
func builtPlugin(t testing.TB, name string) string {
	t.Helper()
	dir := sharedDir(t)
	built.mu.Lock()
	defer built.mu.Unlock()
	if path := built.paths[name]; path != "" {
		return path
	}
	path := filepath.Join(dir, "keyfire-auth-"+name)
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), "go", "build", "-trimpath", "-o", path, "../../../plugins/"+name) // #nosec G204 -- names are the tests'
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-trimpath")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", name, err, out)
	}
	if built.paths == nil {
		built.paths = make(map[string]string)
	}
	built.paths[name] = path
	return path
}
