package auth

import (
	"context"
	"errors"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/keyfire/keyfire/core"
)

// Chain asks authenticators in order. The first answer other than ErrNotApplicable is final, so no later authenticator can turn
// a refusal or a failure into an admission.
type Chain struct {
	links  []Authenticator
	tracer trace.Tracer
}

// NewChain returns a Chain over links, in the order given. Each attempt of a link is recorded as a span "auth <name>".
func NewChain(tracer trace.Tracer, links ...Authenticator) *Chain {
	return &Chain{links: links, tracer: tracer}
}

// Authenticate returns the principal the credential proves to be, or a *core.Error. Without a credential it is
// CodeUnauthenticated; when nobody knows the credential's kind it is CodeInvalidKey, the same as for a wrong key; an error an
// authenticator did not classify is CodeAuthUnavailable, because a chain that cannot decide must refuse.
func (c *Chain) Authenticate(ctx context.Context, cred Credential) (Principal, error) {
	if cred.None() {
		return Principal{}, core.Errorf(core.CodeUnauthenticated, "send an API key as Authorization: Bearer or X-API-Key")
	}
	for _, link := range c.links {
		if r, ok := link.(recogniser); ok && !r.Recognises(cred) {
			continue
		}
		p, err := c.ask(ctx, link, cred)
		note(cred.Trail, link.Name(), err)
		if errors.Is(err, ErrNotApplicable) {
			continue
		}
		return p, err
	}
	return Principal{}, errInvalidKey()
}

// recogniser is an authenticator that can tell by the look of a credential, without deciding anything, that it is not of its kind. It is then passed over without a
// span, as if it had answered ErrNotApplicable.
type recogniser interface {
	Recognises(c Credential) bool
}

// note adds what an authenticator said to the trail.
func note(t *core.Trail, backend string, err error) {
	if t == nil {
		return
	}
	v := core.BackendVerdict{Backend: backend, Verdict: "deny", Code: core.CodeOf(err)}
	switch {
	case err == nil:
		v.Verdict = "allow"
	case errors.Is(err, ErrNotApplicable):
		v.Verdict, v.Code = "abstain", ""
	case v.Code == core.CodeAuthUnavailable || v.Code == core.CodeInternal:
		v.Verdict = "error"
	}
	t.Backends = append(t.Backends, v)
}

func (c *Chain) ask(ctx context.Context, link Authenticator, cred Credential) (Principal, error) {
	ctx, span := c.tracer.Start(ctx, "auth "+link.Name(), trace.WithAttributes(
		attribute.String("keyfire.auth.backend", link.Name()),
		attribute.String("keyfire.auth.place", string(cred.Place)),
	))
	defer span.End()
	p, err := link.Authenticate(ctx, cred)
	switch {
	case err != nil && (p.Subject != "" || p.Account != ""):
		// Whoever says yes and no at once has not decided, and neither half may be picked out of the answer.
		err = core.Wrap(core.CodeAuthUnavailable, errors.Join(errors.New("authenticator "+link.Name()+" returned a principal and an error"), unclassify(err)),
			"the auth backend gave an unusable answer")
	case err == nil && (p.Subject == "" || p.Account == ""):
		// A principal without a subject or account would be able to act without leaving a trace of who it was.
		err = core.Wrap(core.CodeAuthUnavailable, errors.New("authenticator "+link.Name()+" returned an incomplete principal"), "the auth backend gave an unusable answer")
	case err == nil:
		span.SetAttributes(attribute.String("keyfire.principal", p.Subject))
		return p, nil
	case errors.Is(err, ErrNotApplicable):
		return Principal{}, err
	}
	var classified *core.Error
	if !errors.As(err, &classified) {
		err = core.Wrap(core.CodeAuthUnavailable, err, "the auth backend could not decide")
	}
	span.SetStatus(codes.Error, string(core.CodeOf(err)))
	return Principal{}, err
}

// unclassify keeps the text of err for the log and drops its identity: a contradictory answer must not pass for ErrNotApplicable
// or for a refusal because one of its halves does.
func unclassify(err error) error { return errors.New(err.Error()) }

// errInvalidKey is the one answer for a credential that is malformed, unknown or wrong: whoever gets it learns nothing about which.
func errInvalidKey() *core.Error {
	return core.Errorf(core.CodeInvalidKey, "the API key is not valid")
}
