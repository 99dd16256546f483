package server

import (
	"context"
	"fmt"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	metricnoop "go.opentelemetry.io/otel/metric/noop"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
)

// metrics counts and times requests, by OpenTelemetry's conventions for HTTP servers.
type metrics struct {
	requests    metric.Float64Histogram
	credentials metric.Int64Counter
}

func newMetrics(m metric.Meter) (*metrics, error) {
	if m == nil {
		m = metricnoop.NewMeterProvider().Meter("")
	}
	requests, err := m.Float64Histogram("http.server.request.duration", metric.WithUnit("s"), metric.WithDescription("Duration of HTTP server requests."),
		metric.WithExplicitBucketBoundaries(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10))
	if err != nil {
		return nil, fmt.Errorf("metrics of requests: %w", err)
	}
	credentials, err := m.Int64Counter("keyfire.auth.credentials", metric.WithUnit("{request}"),
		metric.WithDescription("Requests with a credential by the place it came in: those with query=... have it in their URL."))
	if err != nil {
		return nil, fmt.Errorf("metrics of requests: %w", err)
	}
	return &metrics{requests: requests, credentials: credentials}, nil
}

// codeOfWorkflow stands for all codes that workflows choose, which may be any, and may be spelled like ours.
const codeOfWorkflow core.Code = "workflow"

// answered records one request. Its attributes have few values: the route is a pattern, the method one that is known, and the code one of ours, or codeOfWorkflow. Without the code, a quota that is used up could not be told from a rate, nor a workflow that failed from a server that did.
func (m *metrics) answered(ctx context.Context, method, route string, status int, code core.Code, took time.Duration) {
	if !m.requests.Enabled(ctx) {
		return
	}
	attrs := make([]attribute.KeyValue, 0, 4)
	attrs = append(attrs, attribute.String("http.request.method", method), attribute.Int("http.response.status_code", status))
	if route != "" {
		attrs = append(attrs, attribute.String("http.route", route))
	}
	if code != "" {
		attrs = append(attrs, attribute.String("error.type", string(code)))
	}
	m.requests.Record(ctx, took.Seconds(), metric.WithAttributeSet(attribute.NewSet(attrs...)))
}

// countCredential records where a request had its credential, whatever becomes of it. One in the URL counts as that, also when it is not the one used.
func (s *Server) countCredential(ctx context.Context, req *request) {
	place := req.credential.Place
	switch {
	case req.inQuery:
		place = auth.PlaceQuery
	case req.credential.None():
		return
	}
	if s.metrics.credentials.Enabled(ctx) {
		s.metrics.credentials.Add(ctx, 1, metric.WithAttributes(attribute.String("auth.credential_location", string(place))))
	}
}
