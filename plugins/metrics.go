package plugins

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// metrics are the instruments of all plugins. Their labels are the plugin's name and the closed sets of verdicts and states.
type metrics struct {
	calls    metric.Int64Counter
	latency  metric.Float64Histogram
	restarts metric.Int64Counter
	state    metric.Int64ObservableGauge
	degraded metric.Int64ObservableGauge
	meter    metric.Meter
}

// Names of the labels.
const (
	labelPlugin  = "keyfire.plugin.name"
	labelVerdict = "keyfire.plugin.verdict"
	labelState   = "keyfire.plugin.state"
)

// allStates are the values of labelState.
var allStates = [...]State{StateStarting, StateReady, StateDegraded, StateDown, StateRefused, StateStopped}

func newMetrics(m metric.Meter) (*metrics, error) {
	calls, err1 := m.Int64Counter("keyfire.plugin.calls", metric.WithDescription("Calls of auth plugins by verdict."), metric.WithUnit("{call}"))
	latency, err2 := m.Float64Histogram("keyfire.plugin.call.duration", metric.WithDescription("Time until a plugin's verdict."), metric.WithUnit("s"),
		metric.WithExplicitBucketBoundaries(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5))
	restarts, err3 := m.Int64Counter("keyfire.plugin.restarts", metric.WithDescription("Plugin processes started after one ended."), metric.WithUnit("{restart}"))
	state, err4 := m.Int64ObservableGauge("keyfire.plugin.status", metric.WithDescription("1 for the state an auth plugin is in, 0 for the others."))
	degraded, err5 := m.Int64ObservableGauge("keyfire.plugin.degraded", metric.WithDescription("1 while an auth plugin keeps failing or does not decide."))
	return &metrics{calls: calls, latency: latency, restarts: restarts, state: state, degraded: degraded, meter: m}, errors.Join(err1, err2, err3, err4, err5)
}

// watch reports the state of plugins whenever metrics are read, until stop is called.
func (m *metrics) watch(status func() []Status) (stop func(), err error) {
	r, err := m.meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		for _, s := range status() {
			name := attribute.String(labelPlugin, s.Name)
			for _, state := range allStates {
				o.ObserveInt64(m.state, one(s.State == state), metric.WithAttributes(name, attribute.String(labelState, string(state))))
			}
			o.ObserveInt64(m.degraded, one(s.Degraded), metric.WithAttributes(name))
		}
		return nil
	}, m.state, m.degraded)
	if err != nil {
		return nil, fmt.Errorf("report the state of plugins: %w", err)
	}
	return func() { _ = r.Unregister() }, nil // it fails for what is not registered
}

func one(yes bool) int64 {
	if yes {
		return 1
	}
	return 0
}

func (m *metrics) called(ctx context.Context, plugin, verdict string, took time.Duration) {
	set := metric.WithAttributeSet(attribute.NewSet(attribute.String(labelPlugin, plugin), attribute.String(labelVerdict, verdict)))
	m.calls.Add(ctx, 1, set)
	m.latency.Record(ctx, took.Seconds(), set)
}

func (m *metrics) restarted(plugin string) {
	m.restarts.Add(context.Background(), 1, metric.WithAttributes(attribute.String(labelPlugin, plugin)))
}
