package auth

import (
	"context"
	"errors"
	"testing"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/keyfire/keyfire/core"
)

// link answers with what it is given, and counts.
type link struct {
	name  string
	p     Principal
	err   error
	asked int
}

func (l *link) Name() string { return l.name }

func (l *link) Authenticate(context.Context, Credential) (Principal, error) {
	l.asked++
	return l.p, l.err
}

func TestChain(t *testing.T) {
	t.Parallel()
	alice := Principal{Account: "acct_default", Subject: "a:alice", Backend: "a"}
	for _, c := range []struct {
		name   string
		links  []*link
		code   core.Code
		asked  []int
		public string
	}{
		{name: "nobody", code: core.CodeInvalidKey},
		{name: "yes", links: []*link{{p: alice}, {p: alice}}, asked: []int{1, 0}},
		{name: "not mine, yes", links: []*link{{err: ErrNotApplicable}, {p: alice}}, asked: []int{1, 1}},
		{name: "wrapped not mine", links: []*link{{err: errors.Join(errors.New("x"), ErrNotApplicable)}, {p: alice}}, asked: []int{1, 1}},
		{name: "nobody's", links: []*link{{err: ErrNotApplicable}, {err: ErrNotApplicable}}, asked: []int{1, 1}, code: core.CodeInvalidKey},
		{name: "no is final", links: []*link{{err: core.Errorf(core.CodeInvalidKey, "no")}, {p: alice}}, asked: []int{1, 0}, code: core.CodeInvalidKey},
		{name: "down is final", links: []*link{{err: errors.New("connection refused")}, {p: alice}}, asked: []int{1, 0}, code: core.CodeAuthUnavailable},
		{name: "expired is final", links: []*link{{err: core.Errorf(core.CodeKeyExpired, "old")}, {p: alice}}, asked: []int{1, 0}, code: core.CodeKeyExpired},
		{name: "yes and no", links: []*link{{p: alice, err: core.Errorf(core.CodeInvalidKey, "no")}, {p: alice}}, asked: []int{1, 0}, code: core.CodeAuthUnavailable},
		{name: "yes and not mine", links: []*link{{p: alice, err: ErrNotApplicable}, {p: alice}}, asked: []int{1, 0}, code: core.CodeAuthUnavailable},
		{name: "no subject", links: []*link{{p: Principal{Account: "a"}}, {p: alice}}, asked: []int{1, 0}, code: core.CodeAuthUnavailable},
		{name: "no account", links: []*link{{p: Principal{Subject: "s"}}, {p: alice}}, asked: []int{1, 0}, code: core.CodeAuthUnavailable},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			spans := tracetest.NewSpanRecorder()
			tracer := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans)).Tracer("test")
			links := make([]Authenticator, len(c.links))
			for i, l := range c.links {
				l.name = string(rune('a' + i))
				links[i] = l
			}
			p, err := NewChain(tracer, links...).Authenticate(t.Context(), Credential{Place: PlaceBearer, Secret: NewSecret("x")})
			if core.CodeOf(err) != c.code || (err == nil) != (p.Subject == alice.Subject) || err != nil && p.Account != "" {
				t.Errorf("%+v, %v", p, err)
			}
			asked := 0
			for i, l := range c.links {
				if l.asked != c.asked[i] {
					t.Errorf("link %d was asked %d times", i, l.asked)
				}
				asked += l.asked
			}
			if len(spans.Ended()) != asked {
				t.Errorf("%d spans for %d questions", len(spans.Ended()), asked)
			}
		})
	}
}

func TestChainWithoutCredential(t *testing.T) {
	t.Parallel()
	l := &link{name: "a", p: Principal{Account: "a", Subject: "s"}}
	chain := NewChain(sdktrace.NewTracerProvider().Tracer("test"), l)
	for _, c := range []Credential{{}, {Place: PlaceBearer}, {Place: PlaceAPIKey, Secret: NewSecret("")}} {
		if _, err := chain.Authenticate(t.Context(), c); core.CodeOf(err) != core.CodeUnauthenticated {
			t.Errorf("%+v: %v", c, err)
		}
	}
	if l.asked > 0 {
		t.Error("an authenticator was asked about nothing")
	}
}
