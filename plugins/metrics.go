package plugins

import (
	"context"
	"errors"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// metrics are the instruments of all plugins. Their labels are the plugin's name and the closed set of verdicts.
type metrics struct {
	calls    metric.Int64Counter
	latency  metric.Float64Histogram
	restarts metric.Int64Counter
}

func newMetrics(m metric.Meter) (*metrics, error) {
	calls, err1 := m.Int64Counter("keyfire.plugin.calls", metric.WithDescription("Calls of auth plugins by verdict."), metric.WithUnit("{call}"))
	latency, err2 := m.Float64Histogram("keyfire.plugin.call.duration", metric.WithDescription("Time until a plugin's verdict."), metric.WithUnit("s"),
		metric.WithExplicitBucketBoundaries(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5))
	restarts, err3 := m.Int64Counter("keyfire.plugin.restarts", metric.WithDescription("Plugin processes started after one ended."), metric.WithUnit("{restart}"))
	return &metrics{calls: calls, latency: latency, restarts: restarts}, errors.Join(err1, err2, err3)
}

func (m *metrics) called(ctx context.Context, plugin, verdict string, took time.Duration) {
	set := metric.WithAttributeSet(attribute.NewSet(attribute.String("keyfire.plugin.name", plugin), attribute.String("keyfire.plugin.verdict", verdict)))
	m.calls.Add(ctx, 1, set)
	m.latency.Record(ctx, took.Seconds(), set)
}

func (m *metrics) restarted(plugin string) {
	m.restarts.Add(context.Background(), 1, metric.WithAttributes(attribute.String("keyfire.plugin.name", plugin)))
}
