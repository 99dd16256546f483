package cli

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyfire/keyfire/sdk/client"
)

// grantsWorkflow uses each grant once. ORIGIN stands for the service that the node calls.
const grantsWorkflow = `keyfire: v1
name: grants
trigger: {enabled: true}
nodes:
  - id: count
    uses: ./typed.wasm
    with: {op: count}
    grants: {http: ["GET ORIGIN"], secrets: [TOKEN], kv: write}
  - id: secret
    uses: ./typed.wasm
    with: {op: secret}
    grants: {http: ["GET ORIGIN"], secrets: [TOKEN], kv: write}
  - id: fetch
    uses: ./typed.wasm
    with: {op: http, url: "ORIGIN/path"}
    grants: {http: ["GET ORIGIN"], secrets: [TOKEN], kv: write}
`

// TestGrants runs nodes that use what a workflow grants, from the file to the service that is called, and looks for the secret everywhere.
func TestGrants(t *testing.T) {
	t.Parallel()
	type seen struct{ idempotency, traceparent string }
	requests := make(chan seen, 10)
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests <- seen{r.Header.Get("Idempotency-Key"), r.Header.Get("Traceparent")}
		w.Write([]byte("hello " + r.URL.Path))
	}))
	defer service.Close()

	dir := t.TempDir()
	buildTypedNode(t, filepath.Join(dir, "typed.wasm"))
	file := filepath.Join(dir, "workflow.yaml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(strings.ReplaceAll(text, "ORIGIN", service.URL)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := startServer(t, "--egress-allow", "127.0.0.0/8", "--log-level", "debug")
	keyfire := func(stdin string, args ...string) (string, error) {
		cmd := exec.Command("keyfire", args...)
		cmd.Env = cleanEnv("KEYFIRE_DATA=" + s.data)
		cmd.Stdin = strings.NewReader(stdin)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}

	// Without a grant the file is refused, at the line of the node, with what to write.
	write(strings.Replace(grantsWorkflow, ", kv: write}", "}", 1))
	out, err := keyfire("", "apply", file)
	if err == nil || !strings.Contains(out, "workflow.yaml:6:") || !strings.Contains(out, "keyfire_v1.kv_") || !strings.Contains(out, "grants: {kv: ") {
		t.Errorf("apply without a grant: %v\n%s", err, out)
	}
	write(grantsWorkflow)
	if out, err := keyfire("", "apply", file); err != nil {
		t.Fatalf("apply: %v\n%s", err, out)
	}

	trigger := func() *client.Run {
		t.Helper()
		key := s.createKey(t, client.NewKey{Global: true})
		run, err := s.client(t, key.Secret).Trigger(t.Context(), "grants", client.TriggerRequest{Input: json.RawMessage("{}")})
		if err != nil {
			t.Fatalf("trigger: %v", err)
		}
		return run
	}
	if _, err := s.client(t, s.createKey(t, client.NewKey{Global: true}).Secret).Trigger(t.Context(), "grants", client.TriggerRequest{}); err == nil ||
		!strings.Contains(err.Error(), "keyfire secrets set TOKEN") {
		t.Errorf("a run without the secret: %v", err)
	}

	const secret = "sk_live_51HqLyjWDarjtT1zd"
	if out, err := keyfire("short\n", "secrets", "set", "TOKEN"); err == nil || !strings.Contains(out, "8 bytes") {
		t.Errorf("set of a short secret: %v\n%s", err, out)
	}
	if out, err := keyfire(secret+"\n", "secrets", "set", "TOKEN"); err != nil || !strings.Contains(out, "set TOKEN") || strings.Contains(out, secret) {
		t.Fatalf("set: %v\n%s", err, out)
	}
	if out, err := keyfire("", "secrets", "list"); err != nil || !strings.Contains(out, "TOKEN") || strings.Contains(out, secret) {
		t.Errorf("list: %v\n%s", err, out)
	}
	for len(requests) > 0 {
		<-requests // of the run that failed
	}

	run := trigger()
	var output struct {
		Count  struct{ Status int }
		Secret struct{ Body, Config string }
		Fetch  struct {
			Status int
			Body   string
		}
	}
	if err := json.Unmarshal(run.Output, &output); err != nil {
		t.Fatalf("output %s: %v", run.Output, err)
	}
	if output.Fetch.Status != 200 || output.Fetch.Body != "hello /path" || output.Secret.Config != "25" || output.Count.Status < 1 {
		t.Errorf("output %s", run.Output)
	}
	got := <-requests
	if got.idempotency != run.ID+"/fetch" || !strings.Contains(got.traceparent, run.TraceID) {
		t.Errorf("the service saw %+v of run %s, trace %s", got, run.ID, run.TraceID)
	}
	before := output.Count.Status
	if err := json.Unmarshal(trigger().Output, &output); err != nil || output.Count.Status != before+1 {
		t.Errorf("the second run counts to %d after %d, %v", output.Count.Status, before, err)
	}

	// The secret is nowhere: not in the run, its logs, the server's log, or the database (S5).
	whole, err := s.admin.Run(context.Background(), run.ID)
	if err != nil {
		t.Fatal(err)
	}
	logs, err := keyfire("", "runs", "logs", run.ID)
	if err != nil || !strings.Contains(logs, "[redacted]") {
		t.Errorf("logs: %v\n%s", err, logs)
	}
	places := map[string]string{"run": string(whole.Raw()), "logs": logs, "server log": s.log.String(), "output": string(run.Output)}
	files, err := filepath.Glob(filepath.Join(s.data, "keyfire.db*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("database files %v, %v", files, err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		places[filepath.Base(f)] = string(b)
	}
	for place, text := range places {
		for _, form := range []string{secret, "c2tfbGl2ZV81MUhxTHlqV0Rhcmp0VDF6", "51HqLyjWDarj"} {
			if strings.Contains(text, form) {
				t.Errorf("%s holds the secret as %s", place, form)
			}
		}
	}

	if out, err := keyfire("", "secrets", "rm", "TOKEN"); err != nil {
		t.Errorf("rm: %v\n%s", err, out)
	}
	if out, err := keyfire("", "secrets", "rm", "TOKEN"); err == nil {
		t.Errorf("rm of nothing:\n%s", out)
	}
	audit, err := keyfire("", "audit", "list")
	if err != nil || !strings.Contains(audit, "secret.set") || !strings.Contains(audit, "secret.delete") {
		t.Errorf("audit: %v\n%s", err, audit)
	}
}

// buildTypedNode compiles the SDK's conformance node, which does what its input says.
func buildTypedNode(t *testing.T, file string) {
	t.Helper()
	build := exec.Command("go", "build", "-buildmode=c-shared", "-o", file, "./conformance/typed")
	build.Dir = filepath.FromSlash("../../../sdk/node")
	build.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("compile the node: %v\n%s", err, out)
	}
}
