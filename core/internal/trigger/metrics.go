package trigger

import (
	"context"
	"fmt"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	metricnoop "go.opentelemetry.io/otel/metric/noop"

	"github.com/keyfire/keyfire/core"
)

// metrics counts and times runs, and says what waits.
type metrics struct{ runs metric.Float64Histogram }

func newMetrics(m metric.Meter, waiting func() int) (*metrics, error) {
	if m == nil {
		m = metricnoop.NewMeterProvider().Meter("")
	}
	runs, err := m.Float64Histogram("keyfire.run.duration", metric.WithUnit("s"),
		metric.WithDescription("Time from a run's acceptance to its end on this server, by how it ended; what a run waited for is part of it."),
		metric.WithExplicitBucketBoundaries(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 3600))
	if err != nil {
		return nil, fmt.Errorf("metrics of runs: %w", err)
	}
	_, err = m.Int64ObservableGauge("keyfire.queue.waiting", metric.WithUnit("{run}"),
		metric.WithDescription("Durable runs that wait for a worker or a time; with several servers, those of all of them."),
		metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error {
			o.Observe(int64(waiting()))
			return nil
		}))
	if err != nil {
		return nil, fmt.Errorf("metrics of runs: %w", err)
	}
	return &metrics{runs: runs}, nil
}

// ended records a run whose end is committed.
func (m *metrics) ended(ctx context.Context, run *core.Run) {
	if m.runs.Enabled(ctx) {
		took := max(0, run.FinishedAt.Sub(run.CreatedAt)) // by the clocks of two servers, perhaps
		m.runs.Record(ctx, took.Seconds(), metric.WithAttributes(attribute.String("keyfire.run.status", string(run.Status))))
	}
}
