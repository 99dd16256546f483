package plugins

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/sdk/authplugin/authv1"
)

// backend is a supervisor as an authenticator, and link the same with whatever route and grant are in force at each call.
type (
	backend struct{ *supervisor }
	link    struct{ *backend }
)

var _, _ auth.Authenticator = (*backend)(nil), (*link)(nil)

// Authenticate asks the plugin if the credential is on its route, and holds the answer to its grant.
func (l *link) Authenticate(ctx context.Context, c auth.Credential) (auth.Principal, error) {
	return (*l.bound.Load()).Authenticate(ctx, c)
}

// Name returns the plugin's name.
func (b *backend) Name() string { return b.name }

// Authenticate asks the plugin. It never waits for a plugin that is not there: whoever needs one that is being restarted is told to come
// back.
func (b *backend) Authenticate(ctx context.Context, c auth.Credential) (auth.Principal, error) {
	began := time.Now()
	v, err := b.ask(ctx, c)
	if err != nil {
		v.kind = kindError
	}
	b.metrics.called(ctx, b.name, v.kind, time.Since(began))
	switch {
	case err != nil:
		return auth.Principal{}, b.unavailable(err)
	case v.kind == kindAbstain:
		return auth.Principal{}, auth.ErrNotApplicable
	case v.kind == kindDeny:
		return auth.Principal{}, denied(v.reason)
	}
	return v.principal, nil
}

// Reasons for not asking at all.
var (
	errDown = errors.New("the plugin is not running")
	errOpen = errors.New("the plugin has not been deciding; calls are held off")
	errBusy = errors.New("the plugin has as many calls under way as it may have")
)

func (b *backend) ask(ctx context.Context, c auth.Credential) (verdict, error) {
	inst := b.current.Load()
	for inst != nil && !inst.begin() { // being replaced: its successor is current already, or there is none
		next := b.current.Load()
		if next == inst {
			inst = nil
			break
		}
		inst = next
	}
	if inst == nil {
		return verdict{}, errDown
	}
	defer inst.end()
	r, err := encode(&inst.spec, c)
	if err != nil {
		return verdict{}, err
	}
	if !inst.denials.empty() {
		if reason, ok := inst.denials.find(keyOf(r)); ok {
			return verdict{kind: kindDeny, reason: reason}, nil
		}
	}
	if n := b.inFlight.Add(1); n > int64(inst.spec.Concurrency) {
		b.inFlight.Add(-1)
		return verdict{}, errBusy
	}
	defer b.inFlight.Add(-1)
	if !b.breaker.allow() {
		return verdict{}, errOpen
	}
	began := time.Now()
	v, err := b.call(ctx, inst, r)
	switch {
	case err == nil:
		b.breaker.verdict()
		if !inst.proved.Load() {
			inst.proved.Store(true)
		}
	case ctx.Err() != nil:
		b.breaker.neither()
	default:
		b.breaker.failure(time.Since(began) >= inst.spec.Timeout/2)
		b.callFailed(err)
	}
	if v.kind == kindDeny && v.ttl > 0 {
		r.Traceparent = ""
		inst.denials.remember(keyOf(r), v.reason, v.ttl)
	}
	return v, err
}

// call makes one call over the process line, with a span of its own whose context the plugin is given.
func (b *backend) call(ctx context.Context, inst *instance, r *authv1.AuthenticateRequest) (verdict, error) {
	ctx, span := b.tracer.Start(ctx, "plugin "+b.name, trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(
		attribute.String("keyfire.plugin.name", b.name),
		attribute.String("keyfire.plugin.version", inst.version),
	))
	defer span.End()
	r.Traceparent = traceparent(span.SpanContext())
	ctx, cancel := context.WithTimeout(ctx, inst.spec.Timeout)
	defer cancel()
	failed := func(how string, err error) (verdict, error) {
		span.SetAttributes(attribute.String(labelVerdict, kindError))
		span.SetStatus(codes.Error, how)
		return verdict{}, err
	}
	res, err := inst.rpc.Authenticate(ctx, r)
	if err != nil {
		return failed("call failed", shorten(err))
	}
	v, err := decode(b.name, res)
	if err == nil && v.kind == kindAllow {
		// The route's binding checks this too. Here it makes such an answer what it is, no verdict: for the metrics, the breaker and the operator.
		v.principal = inst.spec.Grant.Complete(v.principal)
		err = inst.spec.Grant.Check(v.principal, b.now())
	}
	if err != nil {
		return failed("unusable answer", err)
	}
	span.SetAttributes(attribute.String(labelVerdict, v.kind))
	return v, nil
}

func denied(reason string) error {
	if reason == "" {
		return core.Errorf(core.CodeInvalidKey, "the credential is not valid")
	}
	return core.Errorf(core.CodeInvalidKey, "the credential was refused: %s", reason)
}

// unavailable makes the answer of a request that could not be decided. A *core.Error is about the request itself, such as a body that
// is too large, and stays what it is.
func (b *backend) unavailable(err error) error {
	var classified *core.Error
	if errors.As(err, &classified) {
		return classified
	}
	e := core.Wrap(core.CodeAuthUnavailable, fmt.Errorf("plugin %s: %w", b.name, err), "the auth backend for this credential cannot decide right now")
	e.RetryAfter = time.Second
	if errors.Is(err, errDown) {
		e.RetryAfter = max(time.Second, b.untilStart().Round(time.Second))
	}
	return e
}
