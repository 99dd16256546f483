package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/runtime/wasm"
)

// TestSpans proves which spans a run leaves behind, and that no value of the run is in one of them.
func TestSpans(t *testing.T) {
	t.Parallel()
	spans := tracetest.NewInMemoryExporter()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans))
	calls := 0
	e, err := New(Config{
		Tracer: provider.Tracer("test"),
		Invoker: modules{
			"sha256:a": func(ctx context.Context, call wasm.Call) (wasm.Result, error) {
				if calls++; calls == 1 {
					return wasm.Result{}, &wasm.Error{Class: core.ClassUnavailable, Message: "secret-4711"}
				}
				_, span := provider.Tracer("test").Start(ctx, "host call")
				span.End()
				return wasm.Result{Output: call.Input, PeakMemory: 65536}, nil
			},
			"sha256:b": fails(wasm.Error{Class: core.ClassTrap, Message: "secret-4711"}),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	def := checked(t, `{"nodes":[
		{"id":"a","module":"sha256:a","with":"${{ input }}","retry":{"max_attempts":2,"initial":"1ms","max":"1ms","backoff":"constant","on":["unavailable"]}},
		{"id":"skipped","module":"sha256:a","needs":["a"],"if":"${{ nodes.a.output == 'other' }}"},
		{"id":"b","module":"sha256:b","needs":["skipped","a"]}]}`)
	run := &core.Run{ID: "run_1", Input: json.RawMessage(`"secret-4711"`), Workflow: core.WorkflowRef{ID: "wf_1", Slug: "s", Version: 3}}
	e.Execute(t.Context(), run, def)

	var got []string
	names := map[string]string{}
	for _, s := range spans.GetSpans() {
		names[s.SpanContext.SpanID().String()] = s.Name
	}
	for _, s := range spans.GetSpans() {
		line := s.Name + " < " + names[s.Parent.SpanID().String()] + ":"
		for _, a := range s.Attributes {
			line += fmt.Sprintf(" %s=%s", a.Key, a.Value.String())
		}
		for _, e := range s.Events {
			line += " event " + e.Name
		}
		if s.Status.Description != "" {
			line += " error " + s.Status.Description
		}
		if strings.Contains(fmt.Sprintf("%+v", s), "secret-4711") {
			t.Errorf("the span %s holds a value", s.Name)
		}
		got = append(got, line)
	}
	want := []string{
		"host call < node a:",
		"node a < run: keyfire.node.id=a keyfire.node.module=sha256:a keyfire.node.attempt=2 keyfire.node.peak_memory_bytes=65536 event retry",
		"node skipped < run: keyfire.node.id=skipped keyfire.node.module=sha256:a event skipped",
		"node b < run: keyfire.node.id=b keyfire.node.module=sha256:b keyfire.node.attempt=1 keyfire.node.peak_memory_bytes=0 keyfire.node.error_class=trap error trap",
		"run < : keyfire.run.id=run_1 keyfire.workflow.id=wf_1 keyfire.workflow.slug=s keyfire.workflow.version=3 keyfire.run.status=failed error run_failed",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}
