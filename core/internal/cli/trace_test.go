package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spf13/cobra"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/keyfire/keyfire/core/internal/telemetry"
	"github.com/keyfire/keyfire/sdk/client"
)

// One trigger is one trace, from the request to the nodes, and the run names it. The caller's own trace is linked and not joined (T1).
func TestTraceOfTheWholePath(t *testing.T) {
	t.Parallel()
	data := filepath.Join(t.TempDir(), "data")
	copyData(t, data)
	exported := &keptSpans{}
	url, stop := serveInProcess(t, data, telemetry.Config{SpanExporter: exported})
	key, err := socketClient(t, data).CreateKey(t.Context(), client.NewKey{Name: "traced", Workflow: "echo"})
	if err != nil {
		t.Fatal(err)
	}
	const callersTrace, callersSpan = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+"/v1/trigger", strings.NewReader(`{"input":{"name":"Ada"}}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+key.Secret)
	req.Header.Set("Traceparent", "00-"+callersTrace+"-"+callersSpan+"-01")
	transport := &http.Transport{DisableKeepAlives: true}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	var run client.Run
	err = json.NewDecoder(resp.Body).Decode(&run)
	resp.Body.Close()
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%d %v", resp.StatusCode, err)
	}
	if code := stop(); code != exitOK {
		t.Fatalf("the server ended with status %d", code)
	}

	spans := map[string]tracetest.SpanStub{}
	for _, s := range exported.take() {
		if s.SpanContext.TraceID().String() == run.TraceID {
			if _, twice := spans[s.Name]; twice {
				t.Errorf("two spans called %s", s.Name)
			}
			spans[s.Name] = s
		}
	}
	for name, parent := range map[string]string{"auth apikey": "trigger", "admit": "trigger", "run": "trigger", "node echo": "run"} {
		s, ok := spans[name]
		if !ok {
			t.Errorf("no span %q in trace %s", name, run.TraceID)
		} else if s.Parent.SpanID() != spans[parent].SpanContext.SpanID() {
			t.Errorf("span %q is not below %q", name, parent)
		}
		if text := attributesText(s); strings.Contains(text, key.Secret[20:36]) || strings.Contains(text, "Ada") {
			t.Errorf("span %q carries a secret or the input: %s", name, text)
		}
	}
	if len(spans) != 5 {
		t.Errorf("the trace has %d spans, want 5: %v", len(spans), slices.Sorted(maps.Keys(spans)))
	}
	root := spans["trigger"]
	if root.Parent.IsValid() || run.TraceID == callersTrace {
		t.Error("the caller's trace was joined")
	}
	if len(root.Links) != 1 || root.Links[0].SpanContext.TraceID().String() != callersTrace || root.Links[0].SpanContext.SpanID().String() != callersSpan {
		t.Errorf("links of the trigger: %+v", root.Links)
	}
	for name, want := range map[string]string{telemetry.AttrRunID: run.ID, telemetry.AttrRunStatus: "succeeded", telemetry.AttrWorkflowSlug: "echo"} {
		if text := attributesText(spans["run"]); !strings.Contains(text, name+"="+want+";") {
			t.Errorf("span run has %s, want %s=%s", text, name, want)
		}
	}
}

// T1: a collector that refuses everything costs requests nothing.
func TestBrokenExporterHurtsNobody(t *testing.T) {
	t.Parallel()
	data := filepath.Join(t.TempDir(), "data")
	copyData(t, data)
	url, stop := serveInProcess(t, data, telemetry.Config{SpanExporter: refusingExporter{}})
	admin := socketClient(t, data)
	key, err := admin.CreateKey(t.Context(), client.NewKey{Name: "traced", Workflow: "echo"})
	if err != nil {
		t.Fatal(err)
	}
	s := &testServer{process: &process{url: url, data: data}, admin: admin}
	if counts := triggerAll(t, s, key.Secret, 20, 2, nil); counts["ok"] != 20 {
		t.Errorf("triggers with a broken exporter: %v", counts)
	}
	if code := stop(); code != exitOK {
		t.Errorf("the server ended with status %d", code)
	}
}

func attributesText(s tracetest.SpanStub) string {
	var b strings.Builder
	for _, a := range s.Attributes {
		b.WriteString(string(a.Key) + "=" + a.Value.String() + ";")
	}
	return b.String()
}

// serveInProcess runs a server within the test, with telemetry that the test brings along. stop ends it and returns its exit status.
func serveInProcess(t testing.TB, data string, tel telemetry.Config, env ...string) (url string, stop func() int) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	said, stdout := io.Pipe()
	a := &app{json: true, Env: Env{Stdout: stdout, Stderr: io.Discard, Version: "test"}}
	cfg, _, err := loadConfig(append([]string{"KEYFIRE_DATA=" + data, "KEYFIRE_LISTEN=127.0.0.1:0"}, env...), a.serveCommand().Flags())
	if err != nil {
		t.Fatal(err)
	}
	status := make(chan int, 1)
	go func() {
		err := a.serve(ctx, cfg, tel)
		stdout.CloseWithError(err)
		status <- a.report(&cobra.Command{}, err)
	}()
	end := sync.OnceValue(func() int {
		cancel()
		select {
		case code := <-status:
			return code
		case <-time.After(startTimeout):
			return -1
		}
	})
	t.Cleanup(func() { end() })
	var hello struct{ URL string }
	line, err := bufio.NewReader(said).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &hello)
	}
	if err != nil {
		t.Fatalf("the server did not start: %v", err)
	}
	return hello.URL, end
}

// keptSpans remembers what was exported past its own shutdown.
type keptSpans struct {
	mu    sync.Mutex
	spans tracetest.SpanStubs
}

func (k *keptSpans) ExportSpans(_ context.Context, spans []sdktrace.ReadOnlySpan) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.spans = append(k.spans, tracetest.SpanStubsFromReadOnlySpans(spans)...)
	return nil
}

func (k *keptSpans) Shutdown(context.Context) error { return nil }

func (k *keptSpans) take() tracetest.SpanStubs {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.spans
}

// refusingExporter takes nothing.
type refusingExporter struct{}

func (refusingExporter) ExportSpans(context.Context, []sdktrace.ReadOnlySpan) error {
	return io.ErrClosedPipe
}
func (refusingExporter) Shutdown(context.Context) error { return io.ErrClosedPipe }
