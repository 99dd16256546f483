package plugins

import (
	"context"
	"maps"
	"slices"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
)

// series reads all metrics: "<metric> <plugin> <verdict or state>" to the value, or to the number of measurements of a histogram.
func series(t *testing.T, reader *sdkmetric.ManualReader) map[string]int64 {
	t.Helper()
	var all metricdata.ResourceMetrics
	if err := reader.Collect(context.WithoutCancel(t.Context()), &all); err != nil {
		t.Fatal(err)
	}
	found := make(map[string]int64)
	name := func(metric string, set attribute.Set) string {
		for _, label := range []attribute.Key{labelPlugin, labelVerdict, labelState} {
			if v, ok := set.Value(label); ok {
				metric += " " + v.AsString()
			}
		}
		return metric
	}
	for _, scope := range all.ScopeMetrics {
		for _, m := range scope.Metrics {
			switch data := m.Data.(type) {
			case metricdata.Sum[int64]:
				for _, p := range data.DataPoints {
					found[name(m.Name, p.Attributes)] = p.Value
				}
			case metricdata.Gauge[int64]:
				for _, p := range data.DataPoints {
					found[name(m.Name, p.Attributes)] = p.Value
				}
			case metricdata.Histogram[float64]:
				for _, p := range data.DataPoints {
					found[name(m.Name, p.Attributes)] = int64(p.Count)
					if p.Sum <= 0 {
						t.Errorf("%s measures nothing", m.Name)
					}
				}
			}
		}
	}
	return found
}

// TestMetrics has a plugin give each verdict, crash and degrade, and reads what an operator's dashboard would.
func TestMetrics(t *testing.T) {
	t.Parallel()
	reader := sdkmetric.NewManualReader()
	meters := sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader))
	p := pluginHere(t, "p")
	ev := newEvents()
	cfg := testConfig(t, ev, p)
	cfg.Meter = meters.Meter("test")
	host, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	h := &testHost{Host: host, events: ev, dir: cfg.RuntimeDir}
	defer h.Close()
	for _, token := range []string{"ok", "ok", "deny", "not mine", "error", "foreign scope"} {
		_, _ = h.ask(t, "p", token)
	}
	check := func(when string, want map[string]int64) {
		t.Helper()
		got := series(t, reader)
		for _, name := range slices.Sorted(maps.Keys(want)) {
			if got[name] != want[name] {
				t.Errorf("%s: %s is %d, want %d; all: %v", when, name, got[name], want[name], got)
			}
		}
	}
	check("after six calls", map[string]int64{
		"keyfire.plugin.calls p allow": 2, "keyfire.plugin.calls p deny": 1, "keyfire.plugin.calls p abstain": 1, "keyfire.plugin.calls p error": 2, // what is beyond the grant is no verdict
		"keyfire.plugin.call.duration p allow": 2, "keyfire.plugin.call.duration p error": 2,
		"keyfire.plugin.status p ready": 1, "keyfire.plugin.status p down": 0, "keyfire.plugin.degraded p": 0, "keyfire.plugin.restarts p": 0,
	})
	for n := range degradedFailures {
		_, _ = h.ask(t, "p", "kill")
		ev.await(t, "p", EventRestart, n+1)
	}
	ev.await(t, "p", EventDegrade, 1)
	check("after five crashes", map[string]int64{
		"keyfire.plugin.restarts p": degradedFailures, "keyfire.plugin.status p degraded": 1, "keyfire.plugin.status p ready": 0, "keyfire.plugin.degraded p": 1,
	})
	if s := h.status(t, "p"); s.State != StateDegraded || !s.Degraded {
		t.Errorf("status %+v, want degraded", s)
	}
	h.Close()
	if got := series(t, reader); got["keyfire.plugin.status p stopped"] != 0 {
		t.Errorf("a closed host still reports: %v", got)
	}
}

// TestSpansCrossTheProcessLine finds the span of a call below its caller's, and its context in what the plugin was given.
func TestSpansCrossTheProcessLine(t *testing.T) {
	t.Parallel()
	spans := tracetest.NewSpanRecorder()
	tracing := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans))
	p := pluginHere(t, "p")
	cfg := testConfig(t, newEvents(), p)
	cfg.Tracer = tracing.Tracer("test")
	host, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	ctx, parent := cfg.Tracer.Start(t.Context(), "auth p")
	a, err := host.Authenticator("p")
	if err != nil {
		t.Fatal(err)
	}
	who, err := a.Authenticate(ctx, bearer("tok_see"))
	parent.End()
	if err != nil {
		t.Fatal(err)
	}
	_, err = a.Authenticate(ctx, bearer("tok_error"))
	if err == nil {
		t.Fatal("an error was no error")
	}
	var found []string
	for _, s := range spans.Ended() {
		if s.Name() != "plugin p" {
			continue
		}
		if s.Parent().SpanID() != parent.SpanContext().SpanID() || s.SpanContext().TraceID() != parent.SpanContext().TraceID() {
			t.Errorf("span %s is not below its caller's", s.Name())
		}
		attributes := attribute.NewSet(s.Attributes()...)
		verdict, _ := attributes.Value(labelVerdict)
		version, _ := attributes.Value("keyfire.plugin.version")
		found = append(found, verdict.AsString()+" "+version.AsString()+" "+s.Status().Description)
		if verdict.AsString() == kindAllow && who.Attributes["trace"] != traceparent(s.SpanContext()) {
			t.Errorf("the plugin was given %q, want the span %s", who.Attributes["trace"], traceparent(s.SpanContext()))
		}
		if s.EndTime().Sub(s.StartTime()) <= 0 || s.EndTime().Sub(s.StartTime()) > time.Minute {
			t.Errorf("span took %s", s.EndTime().Sub(s.StartTime()))
		}
	}
	if !slices.Equal(found, []string{"allow 1.2.3 ", "error 1.2.3 call failed"}) {
		t.Errorf("spans %q", found)
	}
}
