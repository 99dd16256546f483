package telemetry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// newTelemetry starts telemetry that logs JSON into the returned buffer. Read the buffer after Shutdown only.
func newTelemetry(t *testing.T, exporter sdktrace.SpanExporter) (*Telemetry, *logBuffer) {
	t.Helper()
	var logs logBuffer
	tel, err := New(t.Context(), Config{Service: "keyfire", Version: "test", Logs: &logs, LogFormat: "json", SpanExporter: exporter})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tel.Shutdown(context.Background()) })
	return tel, &logs
}

// logBuffer is written by telemetry's own goroutines while the test reads it.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *logBuffer) Len() int { return len(l.String()) }

// take returns what was written since the last call.
func (l *logBuffer) take() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	taken := bytes.Clone(l.b.Bytes())
	l.b.Reset()
	return taken
}

func records(t *testing.T, logs *logBuffer) []map[string]any {
	t.Helper()
	var all []map[string]any
	for dec := json.NewDecoder(bytes.NewReader(logs.take())); ; {
		var r map[string]any
		if err := dec.Decode(&r); err == io.EOF {
			return all
		} else if err != nil {
			t.Fatalf("log is not JSON: %v", err)
		}
		all = append(all, r)
	}
}

func TestSpansHaveTraceIDsWhenNothingIsExported(t *testing.T) {
	t.Parallel()
	tel, logs := newTelemetry(t, nil)
	ctx, span := tel.Tracer("test").Start(t.Context(), "trigger")
	child, inner := tel.Tracer("test").Start(ctx, "admit")
	sc, innerSC := span.SpanContext(), inner.SpanContext()
	if !sc.IsValid() || sc.IsSampled() || span.IsRecording() {
		t.Errorf("span context valid=%v sampled=%v recording=%v; want a valid one that is neither", sc.IsValid(), sc.IsSampled(), span.IsRecording())
	}
	if innerSC.TraceID() != sc.TraceID() || innerSC.SpanID() == sc.SpanID() {
		t.Errorf("child %v/%v of %v/%v: want the same trace and another span", innerSC.TraceID(), innerSC.SpanID(), sc.TraceID(), sc.SpanID())
	}
	tel.Logger().InfoContext(child, "hello")
	tel.Logger().Info("outside")
	got := records(t, logs)
	if len(got) != 2 || got[0][LogTraceID] != sc.TraceID().String() || got[0][LogSpanID] != innerSC.SpanID().String() {
		t.Errorf("log = %v; want the ids of the inner span on the first line", got)
	}
	if _, ok := got[1][LogTraceID]; ok {
		t.Errorf("a record outside any span has a trace id: %v", got[1])
	}
}

func TestSpansReachTheExporterAtShutdown(t *testing.T) {
	t.Parallel()
	exporter := &keepSpans{}
	tel, logs := newTelemetry(t, exporter)
	_, span := tel.Tracer("test").Start(t.Context(), "run")
	span.End()
	if err := tel.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := exporter.names(); len(got) != 1 || got[0] != "run" {
		t.Errorf("exported %v, want [run]", got)
	}
	if err := tel.Shutdown(t.Context()); err != nil {
		t.Errorf("second Shutdown: %v", err)
	}
	if logs.Len() != 0 {
		t.Errorf("nothing was lost, but the log says %s", logs)
	}
}

// T1: an exporter that hangs costs requests nothing but the spans that do not fit the queue.
func TestT1HangingExporter(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var logs logBuffer
		tel, err := New(t.Context(), Config{Service: "keyfire", Logs: &logs, LogFormat: "json", SpanExporter: hang{}})
		if err != nil {
			t.Fatal(err)
		}
		const spans = 3 * defaultQueue
		start := time.Now()
		for range spans {
			_, span := tel.Tracer("test").Start(t.Context(), "trigger")
			span.End()
		}
		if waited := time.Since(start); waited != 0 {
			t.Errorf("ending %d spans waited %v, want no wait at all", spans, waited)
		}
		if dropped := tel.losses.spans.dropped.Load(); dropped != spans-defaultQueue {
			t.Errorf("dropped = %d, want %d: what exceeds the queue", dropped, spans-defaultQueue)
		}
		time.Sleep(reportEvery + time.Second)
		if first := records(t, &logs)[0]; first["dropped"] != float64(spans-defaultQueue) || first["signal"] != "spans" {
			t.Errorf("after a minute the log says %v, want %d dropped spans", first, spans-defaultQueue)
		}
		start = time.Now()
		tel.Shutdown(context.Background())
		if took := time.Since(start); took > shutdownLimit || took > 2*time.Second { // as OPERATING.md says
			t.Errorf("Shutdown took %v, want at most %v", took, shutdownLimit)
		}
		time.Sleep(5 * time.Minute) // the SDK's own goroutine ends once its export times out
	})
}

// T1: an exporter that fails is counted and named in the log, once a minute.
func TestT1FailingExporter(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var logs logBuffer
		tel, err := New(t.Context(), Config{Service: "keyfire", Logs: &logs, LogFormat: "json", SpanExporter: fail{}})
		if err != nil {
			t.Fatal(err)
		}
		for range 90 {
			_, span := tel.Tracer("test").Start(t.Context(), "trigger")
			span.End()
			time.Sleep(time.Second)
		}
		if err := tel.Shutdown(context.Background()); err != nil {
			t.Fatal(err)
		}
		got := records(t, &logs)
		if len(got) != 2 {
			t.Fatalf("log has %d lines in 90 s, want one after a minute and one at the end: %v", len(got), got)
		}
		if sum := got[0]["failed"].(float64) + got[1]["failed"].(float64); sum != 90 {
			t.Errorf("failed spans add up to %v, want 90", sum)
		}
		if got[0]["error"] != "collector is down" {
			t.Errorf("error = %v, want the exporter's own", got[0]["error"])
		}
	})
}

func TestOTLPByEnvironment(t *testing.T) {
	var mu sync.Mutex
	got := map[string]int{}
	collector := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		got[r.URL.Path]++
	}))
	defer collector.Close()
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.URL)

	tel, _ := newTelemetry(t, nil)
	ctx, span := tel.Tracer("test").Start(t.Context(), "trigger")
	if !span.SpanContext().IsSampled() {
		t.Error("an endpoint is configured, but spans are not sampled")
	}
	tel.Logger().InfoContext(ctx, "hello")
	span.End()
	if err := tel.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	http.DefaultClient.CloseIdleConnections()
	mu.Lock()
	defer mu.Unlock()
	for _, path := range []string{"/v1/traces", "/v1/logs", "/v1/metrics"} {
		if got[path] == 0 {
			t.Errorf("nothing was sent to %s; requests: %v", path, got)
		}
	}
}

func TestWhatTheEnvironmentAsksFor(t *testing.T) {
	for _, tc := range []struct {
		name   string
		env    map[string]string
		traces bool
	}{
		{"nothing", nil, false},
		{"exporter none", map[string]string{"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}, false},
		{"another signal's endpoint", map[string]string{"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://127.0.0.1:1"}, false},
		{"its own endpoint", map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1"}, true},
		{"disabled", map[string]string{"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Setenv("OTEL_METRICS_EXPORTER", "none")
			t.Setenv("OTEL_LOGS_EXPORTER", "none")
			for k, v := range tc.env {
				t.Setenv(k, v)
			}
			tel, _ := newTelemetry(t, nil)
			_, span := tel.Tracer("test").Start(t.Context(), "trigger")
			if span.SpanContext().IsSampled() != tc.traces {
				t.Errorf("traces exported = %v, want %v", !tc.traces, tc.traces)
			}
		})
	}
}

func TestNewRefuses(t *testing.T) {
	if _, err := New(t.Context(), Config{}); err == nil || !strings.Contains(err.Error(), "Logs is required") {
		t.Errorf("without Logs: %v", err)
	}
	if _, err := New(t.Context(), Config{Logs: io.Discard, LogFormat: "xml"}); err == nil || !strings.Contains(err.Error(), "want text or json") {
		t.Errorf("format xml: %v", err)
	}
	t.Setenv("OTEL_TRACES_EXPORTER", "carrier-pigeon")
	if _, err := New(t.Context(), Config{Logs: io.Discard}); err == nil || !strings.Contains(err.Error(), "carrier-pigeon") {
		t.Errorf("unknown exporter: %v", err)
	}
}

// What the SDK would only print in a form of its own, and go on with a default that nobody asked for.
func TestNewRefusesVariables(t *testing.T) {
	for name, value := range map[string]string{
		"OTEL_EXPORTER_OTLP_ENDPOINT":    "::bad",
		"OTEL_EXPORTER_OTLP_TIMEOUT":     "soon",
		"OTEL_EXPORTER_OTLP_CERTIFICATE": "/does/not/exist",
		"OTEL_EXPORTER_OTLP_HEADERS":     "authorization Bearer hidden",
		"OTEL_TRACES_SAMPLER":            "nonsense",
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
			t.Setenv(name, value)
			tel, err := New(t.Context(), Config{Logs: io.Discard})
			if err == nil {
				t.Errorf("taken: %v", tel.Shutdown(t.Context()))
			} else if !strings.Contains(err.Error(), "telemetry: OTEL_* variables: ") || strings.Contains(err.Error(), "hidden") || strings.Contains(err.Error(), "\n") {
				t.Errorf("refused with %v", err)
			}
		})
	}
}

func TestLogLevel(t *testing.T) {
	t.Parallel()
	var logs logBuffer
	tel, err := New(t.Context(), Config{Logs: &logs, LogLevel: slog.LevelWarn})
	if err != nil {
		t.Fatal(err)
	}
	defer tel.Shutdown(t.Context())
	tel.Logger().Info("quiet")
	tel.Logger().With("a", 1).WithGroup("g").Warn("loud")
	if s := logs.String(); strings.Contains(s, "quiet") || !strings.Contains(s, "loud") {
		t.Errorf("log = %q, want warnings only", s)
	}
}

func BenchmarkSpanOff(b *testing.B) {
	tel, err := New(b.Context(), Config{Logs: io.Discard})
	if err != nil {
		b.Fatal(err)
	}
	defer tel.Shutdown(context.Background())
	tracer := tel.Tracer("bench")
	b.ReportAllocs()
	for b.Loop() {
		_, span := tracer.Start(b.Context(), "trigger", trace.WithSpanKind(trace.SpanKindServer))
		span.End()
	}
}

// keepSpans remembers what was exported past its own shutdown, which tracetest's exporter does not.
type keepSpans struct {
	mu    sync.Mutex
	spans tracetest.SpanStubs
}

func (k *keepSpans) ExportSpans(_ context.Context, spans []sdktrace.ReadOnlySpan) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.spans = append(k.spans, tracetest.SpanStubsFromReadOnlySpans(spans)...)
	return nil
}

func (k *keepSpans) Shutdown(context.Context) error { return nil }

func (k *keepSpans) names() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var all []string
	for _, s := range k.spans {
		all = append(all, s.Name)
	}
	return all
}

type hang struct{}

func (hang) ExportSpans(ctx context.Context, _ []sdktrace.ReadOnlySpan) error {
	<-ctx.Done()
	return ctx.Err()
}
func (hang) Shutdown(context.Context) error { return nil }

type fail struct{}

func (fail) ExportSpans(context.Context, []sdktrace.ReadOnlySpan) error {
	return errors.New("collector is down")
}
func (fail) Shutdown(context.Context) error { return nil }
