package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/keyfire/keyfire/sdk/client"
)

// exampleTree is what `make run` works on: examples with compiled nodes, and bin/keyfire. It is made once, and only by tests that need it.
var exampleTree struct {
	once sync.Once
	dir  string
	err  error
}

func examples(t testing.TB) string {
	t.Helper()
	shared := sharedDir(t)
	exampleTree.once.Do(func() {
		exampleTree.dir = filepath.Join(shared, "examples-tree")
		exampleTree.err = makeExamples(exampleTree.dir)
	})
	if exampleTree.err != nil {
		t.Fatal(exampleTree.err)
	}
	return exampleTree.dir
}

func makeExamples(dir string) error {
	source, err := filepath.Abs("../../../examples")
	if err != nil {
		return err
	}
	if err := os.CopyFS(filepath.Join(dir, "examples/workflows"), os.DirFS(filepath.Join(source, "workflows"))); err != nil {
		return err
	}
	script, err := os.ReadFile(filepath.Join(source, "run.sh"))
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "examples/run.sh"), script, 0o700); err != nil {
		return err
	}
	nodes, err := filepath.Glob(filepath.Join(source, "nodes/*/*/main.go"))
	if err != nil {
		return err
	}
	for _, main := range nodes {
		node := filepath.Dir(main)
		source, err := os.ReadFile(main)
		if err != nil {
			return err
		}
		mode := "default"
		if strings.Contains(string(source), "keyfire/sdk/node") {
			mode = "c-shared" // a reactor
		}
		build := exec.Command("go", "build", "-buildmode="+mode, "-trimpath", "-ldflags", "-s -w",
			"-o", filepath.Join(dir, "examples/workflows", filepath.Base(filepath.Dir(node)), "nodes", filepath.Base(node)+".wasm"), ".")
		build.Dir = node
		build.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "CGO_ENABLED=0", "GOFLAGS=-trimpath")
		if out, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("compile %s: %w\n%s", node, err, out)
		}
	}
	keyfire, err := exec.LookPath("keyfire")
	if err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(dir, "bin"), 0o700); err != nil {
		return err
	}
	if err := os.Symlink(keyfire, filepath.Join(dir, "bin/keyfire")); err != nil {
		return err
	}
	return publishTo(filepath.Join(dir, "data"), filepath.Join(dir, "examples/workflows"))
}

// running is a server that examples/run.sh started, on a copy of nothing: what a stranger gets.
type running struct {
	url  string
	data string
	said string // what the script printed
}

// makeRun does what `make run` does after building, on a free port, and returns when the script has printed its requests. A stranger has no data;
// compiled there are only the compiled modules of an earlier server.
func makeRun(t *testing.T, compiled bool) *running {
	t.Helper()
	dir := examples(t)
	r := &running{data: filepath.Join(t.TempDir(), "data")}
	if compiled {
		if err := copyCompiled(r.data, cacheDir, filepath.Join(dir, "data"), cacheDir); err != nil {
			t.Fatal(err)
		}
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := free.Addr().String()
	free.Close()
	r.url = "http://" + address
	out := &syncBuffer{}
	cmd := exec.Command(filepath.Join(dir, "examples/run.sh"))
	cmd.Env = cleanEnv("KEYFIRE_DATA="+r.data, "KEYFIRE_LISTEN="+address)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	t.Cleanup(func() {
		// The script has become the server.
		if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Errorf("make run ended with %v", err)
		}
	})
	for deadline := time.Now().Add(3 * startTimeout); !strings.Contains(out.String(), "Ctrl-C"); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("make run does not get ready:\n%s", out)
		}
	}
	r.said = out.String()
	return r
}

// shell runs a script as a reader of the documentation would, and returns what it printed.
func (r *running) shell(t *testing.T, script string) string {
	t.Helper()
	if _, err := exec.LookPath("curl"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("the printed requests cannot be sent: curl is not installed")
		}
		t.Skip("SKIPPED: curl is not installed")
	}
	cmd := exec.Command("sh", "-euc", script)
	cmd.Dir = examples(t)
	cmd.Env = cleanEnv("KEYFIRE_DATA=" + r.data)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, script, out)
	}
	return string(out)
}

// A stranger types make run and pastes what it prints.
func TestMakeRun(t *testing.T) {
	t.Parallel()
	r := makeRun(t, false)
	requests := regexp.MustCompile(`(?m)^curl (?:.*\\\n)*.*$`).FindAllString(r.said, -1)
	if len(requests) != 3 {
		t.Fatalf("%d requests were printed:\n%s", len(requests), r.said)
	}
	for i, want := range []string{`"output":{"greeting":"Hello, Ada"}`, `"report":"# Sales report`, `"notify":true`} {
		if got := r.shell(t, requests[i]); !strings.Contains(got, want) {
			t.Errorf("want %s in the answer to\n%s\ngot %s", want, requests[i], tail(got, 2000))
		}
	}
}

// Every command of the README works in the order in which it stands there, on the server of make run.
func TestReadme(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("../../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	var script strings.Builder
	commands := 0
	for _, block := range regexp.MustCompile("(?ms)^```sh\n(.*?)^```$").FindAllStringSubmatch(string(readme), -1) {
		for line := range strings.Lines(block[1]) {
			command, ok := strings.CutPrefix(line, "$ ")
			if !ok {
				script.WriteString(line) // the rest of a command
				continue
			}
			if strings.HasPrefix(command, "make ") || strings.HasPrefix(command, "git ") || strings.HasPrefix(command, "export KEYFIRE_DATA") {
				continue // has been done for the test, elsewhere
			}
			commands++
			script.WriteString(command)
		}
	}
	if commands < 8 {
		t.Fatalf("the README has only %d commands; is it written as this test reads it?", commands)
	}
	r := makeRun(t, true)
	got := r.shell(t, strings.ReplaceAll(script.String(), "http://127.0.0.1:8080", r.url))
	got = regexp.MustCompile(` +`).ReplaceAllString(got, " ") // columns
	last := 0
	for _, want := range []string{
		`"output":{"greeting":"Hello, Ada"}`, `"code":"invalid_input"`, `"net_cents": 41940100`, `"notify": false`, "csv-report@1 succeeded", "render succeeded", "run.accept", "revoked key_", `"code":"key_revoked"`,
	} {
		at := strings.Index(got[last:], want)
		if at < 0 {
			t.Fatalf("%s is not in the rest of what was printed: %s", want, tail(got[last:], 4000))
		}
		last += at
	}
}

// The report counts what an independent program, in awk, counts in the same file.
func TestCSVReportTotals(t *testing.T) {
	t.Parallel()
	awk, err := exec.LookPath("awk")
	if err != nil {
		t.Skip("SKIPPED: awk is not installed")
	}
	dir := filepath.Join(examples(t), "examples/workflows/csv-report")
	orders, err := os.ReadFile(filepath.Join(dir, "orders.csv"))
	if err != nil {
		t.Fatal(err)
	}
	counted, err := exec.Command(awk, "-f", filepath.Join(dir, "totals.awk"), filepath.Join(dir, "orders.csv")).Output()
	if err != nil {
		t.Fatal(err)
	}
	var output struct {
		Orders, Rejected int
		NetCents         int64 `json:"net_cents"`
		Report           string
	}
	run, err := exampleServer(t).admin.Trigger(t.Context(), "csv-report", client.TriggerRequest{Input: map[string]string{"csv": string(orders)}})
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(run.Output, &output); err != nil {
		t.Fatal(err)
	}
	lines := 0
	for line := range strings.Lines(string(counted)) {
		f := strings.Fields(line)
		switch f[0] {
		case "accepted":
			if f[1] != strconv.Itoa(output.Orders) || f[3] != strconv.Itoa(output.Rejected) {
				t.Errorf("the report says %d orders, %d rejected; awk says %s", output.Orders, output.Rejected, line)
			}
			continue
		case "total":
			if f[13] != strconv.FormatInt(output.NetCents, 10) {
				t.Errorf("the report says net %d; awk says %s", output.NetCents, line)
			}
			if want := fmt.Sprintf("| %s | %s | %s | %s | %s | **%s** |", f[3], f[5], f[7], amount(f[9]), amount(f[11]), amount(f[13])); !strings.Contains(output.Report, want) {
				t.Errorf("the report lacks the line %s", want)
			}
		default:
			if want := fmt.Sprintf("\n| %s | %s | %s | %s | %s | ", f[1], f[3], amount(f[9]), amount(f[11]), amount(f[13])); !strings.Contains(output.Report, want) {
				t.Errorf("the report lacks the line %s", strings.TrimSpace(want))
			}
		}
		lines++
	}
	if lines < 20 {
		t.Errorf("awk counted only %d groups", lines)
	}
	t.Logf("%d orders, %d rejected, net %d cents; %d lines equal", output.Orders, output.Rejected, output.NetCents, lines)
	parallel := map[string]client.Step{}
	for _, step := range run.Steps {
		parallel[step.ID] = step
	}
	if len(parallel) != 4 {
		t.Errorf("steps: %+v", run.Steps)
	}
}

// amount writes cents as the report does: 44457700 is 444,577.00.
func amount(cents string) string {
	for len(cents) < 3 {
		cents = "0" + cents
	}
	whole, fraction := cents[:len(cents)-2], cents[len(cents)-2:]
	for i := len(whole) - 3; i > 0; i -= 3 {
		whole = whole[:i] + "," + whole[i:]
	}
	return whole + "." + fraction
}

// Real payloads of GitHub's become a message, or a reason why not.
func TestGitHubPush(t *testing.T) {
	t.Parallel()
	s := exampleServer(t)
	events := filepath.Join(examples(t), "examples/workflows/github-push/events")
	for file, notify := range map[string]bool{"branch-push.json": true, "force-push.json": true, "tag-push.json": true, "ignored-branch.json": false} {
		payload, err := os.ReadFile(filepath.Join(events, file))
		if err != nil {
			t.Fatal(err)
		}
		run, err := s.admin.Trigger(t.Context(), "github-push", client.TriggerRequest{Input: json.RawMessage(payload)})
		if err != nil {
			t.Fatal(file, err)
		}
		var output struct {
			Notify  bool
			Reason  string
			Message json.RawMessage
		}
		if err := json.Unmarshal(run.Output, &output); err != nil {
			t.Fatal(err)
		}
		var push struct {
			Repository struct {
				FullName string `json:"full_name"`
			}
		}
		if err := json.Unmarshal(payload, &push); err != nil {
			t.Fatal(err)
		}
		status := map[string]string{}
		for _, step := range run.Steps {
			status[step.ID] = step.Status
		}
		if notify {
			if !output.Notify || !bytes.Contains(output.Message, []byte(push.Repository.FullName)) || status["message"] != "succeeded" {
				t.Errorf("%s: %s, steps %v", file, run.Output, status)
			}
		} else if output.Notify || output.Reason == "" || string(output.Message) != "null" || status["message"] != "skipped" {
			t.Errorf("%s: %s, steps %v", file, run.Output, status)
		}
	}
}

// The smallest example, over HTTP with a key, as its README says.
func TestGreet(t *testing.T) {
	t.Parallel()
	s := exampleServer(t)
	key := s.createKey(t, client.NewKey{Workflow: "greet"})
	run, err := s.client(t, key.Secret).Trigger(t.Context(), "greet", client.TriggerRequest{Input: json.RawMessage(`{"name":"Ada"}`)})
	if err != nil || string(run.Output) != `{"greeting":"Hello, Ada"}` || run.Response.Status != http.StatusOK {
		t.Errorf("%+v, %v", run, err)
	}
}

// exampleServer returns a server with the examples published.
func exampleServer(t testing.TB) *testServer {
	t.Helper()
	return startServerOn(t, exampleData(t))
}

// exampleData returns a data directory in which the examples are published.
func exampleData(t testing.TB) string {
	t.Helper()
	data := filepath.Join(t.TempDir(), "data")
	if err := copyDir(data, filepath.Join(examples(t), "data")); err != nil {
		t.Fatal(err)
	}
	return data
}
