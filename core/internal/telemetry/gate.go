package telemetry

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"

	sdklog "go.opentelemetry.io/otel/sdk/log"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

// A gate stands before the queue of one exporter. It lets in what fits and counts the rest, because the SDK's batch processors
// drop without telling anybody; and it hears the outcome of each export, because they report a failed one only to a process-wide
// handler. The queue behind the gate is at least as long as limit, so nothing is dropped unseen.
type gate struct {
	name    string // set before use
	limit   int64  // set before use; 0 while the signal is off
	pending atomic.Int64
	dropped atomic.Int64 // not let in: the queue was full
	failed  atomic.Int64 // let in, but the exporter reported an error

	mu   sync.Mutex
	last error // of the latest failed export
}

func (g *gate) open(limit int) { g.limit = int64(limit) }

func (g *gate) enter() bool {
	if g.pending.Add(1) > g.limit {
		g.pending.Add(-1)
		g.dropped.Add(1)
		return false
	}
	return true
}

func (g *gate) leave(n int, err error) {
	g.pending.Add(int64(-n))
	if err == nil {
		return
	}
	g.failed.Add(int64(n))
	g.mu.Lock()
	g.last = err
	g.mu.Unlock()
}

// fail counts an error of a signal whose items are not seen one by one.
func (g *gate) fail(err error) {
	g.pending.Add(1)
	g.leave(1, err)
}

func (g *gate) lastError() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.last
}

// losses are the gates of all signals. "other" counts failed exports of metrics and complaints of the SDK itself, "lines" what could not be written to
// the log of this process.
type losses struct {
	spans, records, other, lines gate
	reported                     [4][2]int64 // dropped and failed as of the last log line; touched by the reporter alone
}

func (l *losses) gates() [4]*gate { return [4]*gate{&l.spans, &l.records, &l.other, &l.lines} }

// log writes one line for each signal that lost something since the last call.
func (l *losses) log(logger *slog.Logger) {
	for i, g := range l.gates() {
		dropped, failed := g.dropped.Load(), g.failed.Load()
		newDropped, newFailed := dropped-l.reported[i][0], failed-l.reported[i][1]
		l.reported[i] = [2]int64{dropped, failed}
		if newDropped == 0 && newFailed == 0 {
			continue
		}
		attrs := []any{"signal", g.name, "dropped", newDropped, "failed", newFailed}
		if err := g.lastError(); err != nil && newFailed > 0 {
			attrs = append(attrs, "error", err)
		}
		logger.Warn("telemetry was lost; requests are not affected", attrs...)
	}
}

type spanProcessor struct {
	sdktrace.SpanProcessor
	gate *gate
}

func (p spanProcessor) OnEnd(s sdktrace.ReadOnlySpan) {
	if s.SpanContext().IsSampled() && p.gate.enter() {
		p.SpanProcessor.OnEnd(s)
	}
}

type spanExporter struct {
	sdktrace.SpanExporter
	gate *gate
}

// ExportSpans reports no error to the SDK: the gate has counted it, and the SDK would only log each one.
func (e spanExporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	e.gate.leave(len(spans), e.SpanExporter.ExportSpans(ctx, spans))
	return nil
}

type logProcessor struct {
	sdklog.Processor
	gate *gate
}

func (p logProcessor) OnEmit(ctx context.Context, r *sdklog.Record) error {
	if !p.gate.enter() {
		return nil
	}
	return p.Processor.OnEmit(ctx, r)
}

type logExporter struct {
	sdklog.Exporter
	gate *gate
}

func (e logExporter) Export(ctx context.Context, records []sdklog.Record) error {
	e.gate.leave(len(records), e.Exporter.Export(ctx, records))
	return nil
}
