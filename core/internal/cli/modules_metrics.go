package cli

import (
	"context"
	"fmt"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/keyfire/keyfire/core/internal/telemetry"
	"github.com/keyfire/keyfire/runtime/wasm"
)

// observeModules reports the figures of the node runtime whenever metrics are read. The function it returns ends that.
func observeModules(m metric.Meter, stats func() wasm.Stats) (stop func() error, err error) {
	var all []metric.Observable
	note := func(o metric.Observable, e error) {
		all = append(all, o)
		if err == nil {
			err = e
		}
	}
	gauge := func(name, unit, description string) metric.Int64Observable {
		g, err := m.Int64ObservableGauge(name, metric.WithUnit(unit), metric.WithDescription(description))
		note(g, err)
		return g
	}
	counter := func(name, unit, description string) metric.Int64Observable {
		c, err := m.Int64ObservableCounter(name, metric.WithUnit(unit), metric.WithDescription(description))
		note(c, err)
		return c
	}
	used := gauge(telemetry.MetricMemoryUsed, "By", "Memory that the nodes under way may take, by their limits.")
	waiting := gauge(telemetry.MetricMemoryWaiting, "{call}", "Calls of nodes that wait for memory.")
	modules := gauge(telemetry.MetricModules, "{module}", "Modules that are loaded.")
	moduleMemory := gauge(telemetry.MetricModuleMemory, "By", "Memory of the loaded modules, about.")
	idle := gauge(telemetry.MetricIdle, "{instance}", "Instances that wait to be used.")
	idleMemory := gauge(telemetry.MetricIdleMemory, "By", "Memory of the waiting instances, about.")
	calls := counter(telemetry.MetricCalls, "{call}", "Invocations of nodes by how they began.")
	made := counter(telemetry.MetricMade, "{instance}", "Instances that were made from an image or started ahead.")
	resets := counter(telemetry.MetricResets, "{reset}", "Instances put back to their module's initial state.")
	verified := counter(telemetry.MetricVerified, "{reset}", "Resets that were compared with the initial state, byte by byte.")
	mismatches := counter(telemetry.MetricMismatches, "{reset}", "Resets that had left a difference. Anything but 0 is a fault of the server.")
	if err != nil {
		return nil, fmt.Errorf("metrics of the node runtime: %w", err)
	}
	r, err := m.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		s := stats()
		for _, v := range []struct {
			of    metric.Int64Observable
			value int64
		}{
			{used, s.MemoryInUse},
			{waiting, int64(s.Waiting)},
			{modules, int64(s.Modules)},
			{moduleMemory, s.ModuleBytes},
			{idle, int64(s.IdleShells)},
			{idleMemory, s.IdleBytes},
			{made, counted(s.Made)},
			{resets, counted(s.Resets)},
			{verified, counted(s.Verified)},
			{mismatches, counted(s.Mismatches)},
		} {
			o.ObserveInt64(v.of, v.value)
		}
		for start, n := range s.Starts {
			o.ObserveInt64(calls, counted(n), metric.WithAttributes(attribute.String(telemetry.AttrNodeStart, string(start))))
		}
		return nil
	}, all...)
	if err != nil {
		return nil, fmt.Errorf("metrics of the node runtime: %w", err)
	}
	return r.Unregister, nil
}

// counted is a count as metrics have it. No count gets as far as the sign.
func counted(n uint64) int64 { return int64(n) }
