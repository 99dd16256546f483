// Package telemetry is where traces, metrics and logs leave the server. It is the only importer of the OpenTelemetry SDK and its
// exporters; every other package sees a trace.Tracer of the OpenTelemetry API or a *slog.Logger.
//
// What is exported, and where to, is said by the standard OTEL_* environment variables and by nothing else: OTEL_TRACES_EXPORTER,
// OTEL_METRICS_EXPORTER, OTEL_LOGS_EXPORTER, OTEL_EXPORTER_OTLP_ENDPOINT and their relatives. Unlike the SDK's own default, which
// is to send to localhost, a signal that no variable asks for is off: then spans are not recorded, but each still has a valid
// trace id, so that a response and a log line can carry the same one.
//
// Telemetry never hurts a request. What waits for an exporter is bounded; what does not fit is dropped, never waited for; what
// was dropped or could not be delivered is counted and logged once a minute.
//
//	t, err := telemetry.New(ctx, telemetry.Config{Service: "keyfire", Version: "v1.2.3", Logs: os.Stderr})
//	if err != nil {
//		return err
//	}
//	defer t.Shutdown(context.Background())
//	tracer := t.Tracer("github.com/keyfire/keyfire/core/internal/trigger")
package telemetry
