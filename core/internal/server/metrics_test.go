package server

import (
	"context"
	"strings"
	"testing"

	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/admin"
	"github.com/keyfire/keyfire/core/internal/trigger"
)

// TestMetrics sends requests of several kinds and reads what an operator's dashboard would. One that finds keys in URLs is from compat.md.
func TestMetrics(t *testing.T) {
	t.Parallel()
	reader := sdkmetric.NewManualReader()
	meter := sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader)).Meter("test")
	b := setup(t, func(tc *trigger.Config, sc *Config) { tc.Meter, sc.Meter = meter, meter })
	b.publish("good", "")
	b.publish("bad", "")
	b.executor.set("bad", func(_ context.Context, run *core.Run) {
		run.Status, run.Output, run.Error = core.RunFailed, nil, &core.RunError{Code: core.CodeRunFailed, Step: "only", Message: "no luck"}
	})
	_, text := b.key(admin.NewKey{Scopes: []string{"run:*"}, AllowQuery: true})
	b.call("POST", "/v1/workflows/good/runs", text, `{}`).want(200)
	b.call("POST", "/v1/workflows/good/runs?x-api-key="+text, "", `{}`).want(200)
	b.call("POST", "/v1/workflows/bad/runs", "", `{}`, "X-API-Key", text).want(500)
	b.publish("no", "")
	b.executor.set("no", func(_ context.Context, run *core.Run) {
		run.Status, run.Output, run.Error = core.RunFailed, nil, &core.RunError{Code: core.CodeRunFailed, UserCode: "internal", Status: 409, Step: "only", Message: "no"}
	})
	b.call("POST", "/v1/workflows/no/runs", "", `{}`, "X-API-Key", text).want(409)
	_, once := b.key(admin.NewKey{Scopes: []string{"run:*"}, MaxRuns: 1})
	b.call("POST", "/v1/workflows/good/runs", once, `{}`).want(200)
	b.call("POST", "/v1/workflows/good/runs", once, `{}`).want(429)
	b.call("POST", "/v1/workflows/good/runs", "", `{}`).want(401)
	b.call("BREW", "/nowhere", text, "").want(404)
	b.call("GET", "/healthz", text, "").want(200)

	var all metricdata.ResourceMetrics
	if err := reader.Collect(context.WithoutCancel(t.Context()), &all); err != nil {
		t.Fatal(err)
	}
	got := map[string]uint64{}
	for _, m := range all.ScopeMetrics[0].Metrics {
		switch data := m.Data.(type) {
		case metricdata.Histogram[float64]:
			for _, p := range data.DataPoints {
				var labels []string
				for _, kv := range p.Attributes.ToSlice() { // sorted by name
					labels = append(labels, kv.Value.String())
				}
				got[m.Name+" "+strings.Join(labels, " ")] = p.Count
				if p.Sum <= 0 {
					t.Errorf("%s %v measures nothing", m.Name, labels)
				}
			}
		case metricdata.Sum[int64]:
			for _, p := range data.DataPoints {
				place, _ := p.Attributes.Value("auth.credential_location")
				got[m.Name+" "+place.AsString()] = uint64(p.Value)
			}
		case metricdata.Gauge[int64]:
			got[m.Name] = uint64(data.DataPoints[0].Value) + 1
		}
	}
	want := map[string]uint64{
		"http.server.request.duration POST 200 /v1/workflows/:workflow/runs":                 3,
		"http.server.request.duration run_failed POST 500 /v1/workflows/:workflow/runs":      1,
		"http.server.request.duration workflow POST 409 /v1/workflows/:workflow/runs":        1,
		"http.server.request.duration quota_exhausted POST 429 /v1/workflows/:workflow/runs": 1,
		"http.server.request.duration unauthenticated POST 401 /v1/workflows/:workflow/runs": 1,
		"http.server.request.duration not_found _OTHER 404":                                  1,
		"keyfire.auth.credentials bearer":                                                    5, // of /healthz too
		"keyfire.auth.credentials query":                                                     1,
		"keyfire.auth.credentials x-api-key":                                                 2,
		"keyfire.run.duration succeeded":                                                     3,
		"keyfire.run.duration failed":                                                        2,
		"keyfire.queue.waiting":                                                              1, // plus 1
	}
	for name, n := range want {
		if got[name] != n {
			t.Errorf("%s: %d, want %d", name, got[name], n)
		}
	}
	if len(got) != len(want) {
		t.Errorf("there is more: %v", got)
	}
}
