package engine

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/keyfire/keyfire/runtime/wasm"
)

// observeRequest gives an HTTP request of a node its span, and the request the header by which the service it goes to continues the trace.
// The span has the origin but neither path nor query, which may hold anything.
func (r *runner) observeRequest(ctx context.Context, req wasm.HTTPRequest) (traceparent string, end func(status int, err error)) {
	ctx, span := r.config.Tracer.Start(ctx, req.Method, trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(
		attribute.String("http.request.method", req.Method),
		attribute.String("url.scheme", req.Scheme),
		attribute.String("server.address", req.Host),
		attribute.Int("server.port", req.Port),
	))
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, carrier)
	return carrier["traceparent"], func(status int, err error) {
		if status != 0 {
			span.SetAttributes(attribute.Int("http.response.status_code", status))
		}
		if err != nil || status >= 400 {
			span.SetStatus(codes.Error, "")
		}
		span.End()
	}
}
