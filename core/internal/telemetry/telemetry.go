package telemetry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"sync"
	"time"

	"go.opentelemetry.io/contrib/bridges/otelslog"
	"go.opentelemetry.io/contrib/exporters/autoexport"
	"go.opentelemetry.io/contrib/instrumentation/runtime"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"
	sdklog "go.opentelemetry.io/otel/sdk/log"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

const (
	defaultQueue  = 2048            // spans or records that wait for one exporter
	reportEvery   = time.Minute     // how often losses are logged
	shutdownLimit = 2 * time.Second // longest wait for exporters at the end; a collector that is well takes milliseconds
)

// Config says what this process is called and where its own log goes. Exporters are configured by OTEL_* variables alone.
type Config struct {
	// Service and Version name the process in every exported signal. OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES outweigh them.
	Service string
	Version string

	// Logs receives the log, one line a record. Required. A write that fails is lost: logging must not stop the server. Nor does a file that nobody
	// reads, such as a pipe or a terminal: what it does not take at once is lost too.
	Logs io.Writer
	// LogFormat is "text" (the default) or "json".
	LogFormat string
	// LogLevel is the least severe level that is written. The zero value is info.
	LogLevel slog.Level

	// SpanExporter, when set, receives every span instead of the exporter that OTEL_* variables name. Tests use it.
	SpanExporter sdktrace.SpanExporter
}

// Telemetry holds the providers of one process. Its methods are safe for concurrent use.
type Telemetry struct {
	logger  *slog.Logger
	tracers *sdktrace.TracerProvider
	meters  *sdkmetric.MeterProvider // nil while metrics are off
	records *sdklog.LoggerProvider   // nil while exported logs are off
	losses  losses

	stop     chan struct{}
	stopOnce sync.Once
	reporter sync.WaitGroup
	closed   error
}

// New sets up the three signals and starts the goroutine that reports losses; Shutdown ends it. It fails when cfg or an OTEL_*
// variable names something that does not exist. It does not contact an exporter's endpoint: one that is down is not an error.
//
// When a signal is exported, New also takes over OpenTelemetry's process-wide error handler and logger, the only way to hear of variables
// that it cannot read, which are an error, and later of metrics that could not be delivered.
func New(ctx context.Context, cfg Config) (*Telemetry, error) {
	if cfg.Logs == nil {
		return nil, errors.New("telemetry: Config.Logs is required")
	}
	res, err := resource.New(ctx,
		resource.WithAttributes(attribute.String("service.name", cfg.Service), attribute.String("service.version", cfg.Version)),
		resource.WithTelemetrySDK(),
		resource.WithHost(),
		resource.WithFromEnv(),
	)
	if err != nil {
		return nil, fmt.Errorf("telemetry: describe this process: %w", err)
	}
	t := &Telemetry{stop: make(chan struct{})}
	var said complaints
	if wanted("TRACES") || wanted("LOGS") || wanted("METRICS") {
		said.hear()
	}
	t.losses.spans.name, t.losses.records.name, t.losses.other.name, t.losses.lines.name = "spans", "logs", "other", "log_lines"
	if file, ok := cfg.Logs.(*os.File); ok {
		cfg.Logs = local(file, &t.losses.lines)
	}
	if err := t.startTraces(ctx, cfg, res); err != nil {
		return nil, err
	}
	if err := t.startLogs(ctx, cfg, res); err != nil {
		return nil, errors.Join(err, t.Shutdown(ctx))
	}
	if err := t.startMetrics(ctx, res); err != nil {
		return nil, errors.Join(err, t.Shutdown(ctx))
	}
	if err := said.end(t.losses.other.fail); err != nil {
		soon, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		_ = t.Shutdown(soon) // that nothing can be delivered is what err tells
		return nil, err
	}
	t.reporter.Go(t.report)
	return t, nil
}

func (t *Telemetry) startTraces(ctx context.Context, cfg Config, res *resource.Resource) error {
	exporter := cfg.SpanExporter
	if exporter == nil && wanted("TRACES") {
		var err error
		if exporter, err = autoexport.NewSpanExporter(ctx); err != nil {
			return fmt.Errorf("telemetry: exporter of traces (OTEL_TRACES_EXPORTER=%q): %w", os.Getenv("OTEL_TRACES_EXPORTER"), err)
		}
		if autoexport.IsNoneSpanExporter(exporter) {
			exporter = nil
		}
	}
	if exporter == nil {
		// Not the no-op provider: that one gives every span the all-zero trace id.
		t.tracers = sdktrace.NewTracerProvider(sdktrace.WithSampler(sdktrace.NeverSample()), sdktrace.WithResource(res))
		return nil
	}
	size := queueSize("OTEL_BSP_MAX_QUEUE_SIZE")
	t.losses.spans.open(size)
	batch := sdktrace.NewBatchSpanProcessor(
		spanExporter{SpanExporter: exporter, gate: &t.losses.spans},
		sdktrace.WithMaxQueueSize(size+1), // one more for the marker of ForceFlush
	)
	t.tracers = sdktrace.NewTracerProvider(
		sdktrace.WithSpanProcessor(spanProcessor{SpanProcessor: batch, gate: &t.losses.spans}),
		sdktrace.WithResource(res),
	)
	return nil
}

func (t *Telemetry) startLogs(ctx context.Context, cfg Config, res *resource.Resource) error {
	opts := &slog.HandlerOptions{Level: cfg.LogLevel}
	var local slog.Handler
	switch cfg.LogFormat {
	case "", "text":
		local = slog.NewTextHandler(cfg.Logs, opts)
	case "json":
		local = slog.NewJSONHandler(cfg.Logs, opts)
	default:
		return fmt.Errorf("telemetry: log format %q: want text or json", cfg.LogFormat)
	}
	handler := slog.Handler(traceHandler{local})
	if wanted("LOGS") {
		exporter, err := autoexport.NewLogExporter(ctx)
		if err != nil {
			return fmt.Errorf("telemetry: exporter of logs (OTEL_LOGS_EXPORTER=%q): %w", os.Getenv("OTEL_LOGS_EXPORTER"), err)
		}
		if !autoexport.IsNoneLogExporter(exporter) {
			size := queueSize("OTEL_BLRP_MAX_QUEUE_SIZE")
			t.losses.records.open(size)
			batch := sdklog.NewBatchProcessor(logExporter{Exporter: exporter, gate: &t.losses.records}, sdklog.WithMaxQueueSize(size))
			t.records = sdklog.NewLoggerProvider(
				sdklog.WithProcessor(logProcessor{Processor: batch, gate: &t.losses.records}),
				sdklog.WithResource(res),
			)
			bridge := otelslog.NewHandler(cfg.Service, otelslog.WithLoggerProvider(t.records))
			handler = slog.NewMultiHandler(handler, levelHandler{Handler: bridge, level: cfg.LogLevel})
		}
	}
	t.logger = slog.New(handler)
	return nil
}

func (t *Telemetry) startMetrics(ctx context.Context, res *resource.Resource) error {
	if !wanted("METRICS") {
		return nil
	}
	reader, err := autoexport.NewMetricReader(ctx)
	if err != nil {
		return fmt.Errorf("telemetry: exporter of metrics (OTEL_METRICS_EXPORTER=%q): %w", os.Getenv("OTEL_METRICS_EXPORTER"), err)
	}
	if autoexport.IsNoneMetricReader(reader) {
		return nil
	}
	t.meters = sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader), sdkmetric.WithResource(res))
	if err := runtime.Start(runtime.WithMeterProvider(t.meters)); err != nil {
		return fmt.Errorf("telemetry: runtime metrics: %w", err)
	}
	_, err = t.meters.Meter("github.com/keyfire/keyfire/core/internal/telemetry").Int64ObservableCounter(
		MetricLost,
		metric.WithDescription("Spans and log records that were dropped or could not be delivered."),
		metric.WithUnit("{item}"),
		metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error {
			for _, g := range t.losses.gates() {
				o.Observe(g.dropped.Load(), metric.WithAttributes(attribute.String("signal", g.name), attribute.String("reason", "queue_full")))
				o.Observe(g.failed.Load(), metric.WithAttributes(attribute.String("signal", g.name), attribute.String("reason", "export_failed")))
			}
			return nil
		}),
	)
	if err != nil {
		return fmt.Errorf("telemetry: loss counter: %w", err)
	}
	return nil
}

// Tracer returns a tracer named after the package that uses it. Spans it starts always have a valid trace id, recorded or not.
func (t *Telemetry) Tracer(name string) trace.Tracer { return t.tracers.Tracer(name) }

// Meter returns a meter named after the package that uses it. It records nothing while metrics are off.
func (t *Telemetry) Meter(name string) metric.Meter {
	if t.meters == nil {
		return noop.NewMeterProvider().Meter(name)
	}
	return t.meters.Meter(name)
}

// Logger returns the process's logger. A record logged with the context of a span carries trace_id and span_id.
func (t *Telemetry) Logger() *slog.Logger { return t.logger }

func (t *Telemetry) report() {
	tick := time.NewTicker(reportEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			t.losses.log(t.logger)
		case <-t.stop:
			t.losses.log(t.logger)
			return
		}
	}
}

// Shutdown delivers what is waiting and releases everything. It returns after 2 seconds at the latest, or when ctx ends: an
// exporter that hangs must not keep the server from stopping. Losses are in the log; the error reports only what prevented an
// orderly end. Later calls return the first one's result.
func (t *Telemetry) Shutdown(ctx context.Context) error {
	t.stopOnce.Do(func() {
		ctx, cancel := context.WithTimeout(ctx, shutdownLimit)
		defer cancel()
		stops := []func(context.Context) error{t.tracers.Shutdown}
		if t.meters != nil {
			stops = append(stops, t.meters.Shutdown)
		}
		if t.records != nil {
			stops = append(stops, t.records.Shutdown)
		}
		errs := make([]error, len(stops))
		var wg sync.WaitGroup
		for i, stop := range stops {
			wg.Go(func() { errs[i] = stop(ctx) })
		}
		wg.Wait()
		close(t.stop)
		t.reporter.Wait()
		if err := errors.Join(errs...); err != nil {
			t.closed = fmt.Errorf("telemetry: shut down: %w", err)
		}
	})
	return t.closed
}

// wanted reports whether the environment asks for a signal: by naming its exporter, or by naming an OTLP endpoint to send to.
func wanted(signal string) bool {
	if off, err := strconv.ParseBool(os.Getenv("OTEL_SDK_DISABLED")); err == nil && off {
		return false
	}
	for _, name := range []string{
		"OTEL_" + signal + "_EXPORTER",
		"OTEL_EXPORTER_OTLP_ENDPOINT",
		"OTEL_EXPORTER_OTLP_" + signal + "_ENDPOINT",
	} {
		if os.Getenv(name) != "" {
			return true
		}
	}
	return false
}

// queueSize reads the SDK's own variable for the bound of a queue, because the bound is kept here and not by the SDK.
func queueSize(variable string) int {
	if n, err := strconv.Atoi(os.Getenv(variable)); err == nil && n > 0 {
		return n
	}
	return defaultQueue
}
