package auth

import (
	"context"
	"errors"
	"fmt"
	"net/textproto"
	"slices"
	"strings"
	"time"

	"github.com/keyfire/keyfire/core"
)

// Route says which credentials are a backend's business, by what can be seen of them without judging them. A credential that
// no part of the route names is never shown to the backend, so the chain tries nothing out: it looks up.
//
// Text that starts like a built-in key ("kft_", "kfa_") is on no route. Only the [Keyring] ever sees it.
type Route struct {
	Prefixes  []string // what the credential starts with, such as "legacy_"
	Schemes   []string // Authorization schemes other than bearer, lower case, such as "basic"
	Headers   []string // headers that are a credential by themselves, such as "X-Hub-Signature-256"
	AnyBearer bool     // every bearer token, for opaque tokens that have no prefix; such a backend belongs at the end of the chain
}

// Validate returns nil for a route that names something, and nothing that is not a backend's to have.
func (r Route) Validate() error {
	if len(r.Prefixes) == 0 && len(r.Schemes) == 0 && len(r.Headers) == 0 && !r.AnyBearer {
		return errors.New("route: name at least one prefix, scheme or header, or set any_bearer")
	}
	for _, p := range r.Prefixes {
		if p == "" || strings.HasPrefix("kft_", p) || strings.HasPrefix("kfa_", p) || likeOurKey(p) {
			return fmt.Errorf("route: prefix %q would cover built-in keys; choose one that they do not start with", p)
		}
	}
	for _, s := range r.Schemes {
		if s == "" || s == "bearer" || s != strings.ToLower(s) || strings.ContainsAny(s, " \t,") {
			return fmt.Errorf("route: scheme %q: write an Authorization scheme in lower case, and use prefixes or any_bearer for bearer tokens", s)
		}
	}
	for _, h := range r.Headers {
		switch name := textproto.CanonicalMIMEHeaderKey(h); {
		case name == "" || strings.ContainsAny(name, " \t:"):
			return fmt.Errorf("route: %q is not a header name", h)
		case name == "Authorization" || name == "X-Api-Key" || name == "X-Bifrost-Key" || name == "Cookie":
			return fmt.Errorf("route: header %s is read by the server itself; use prefixes or schemes", name)
		}
	}
	return nil
}

// Match reports whether the route names c.
func (r Route) Match(c Credential) bool {
	text := c.Secret.Reveal()
	if likeOurKey(text) {
		return false
	}
	switch c.Place {
	case PlaceHeader:
		return slices.ContainsFunc(r.Headers, func(h string) bool { return len(c.Header[textproto.CanonicalMIMEHeaderKey(h)]) > 0 })
	case PlaceAuthorization:
		return slices.Contains(r.Schemes, c.Scheme)
	case PlaceQuery:
		// A credential in a URL ends up in logs on its way here. Only a built-in key whose creator allowed it may do that.
		return false
	}
	if text == "" {
		return false
	}
	return r.AnyBearer && c.Place == PlaceBearer ||
		slices.ContainsFunc(r.Prefixes, func(p string) bool { return strings.HasPrefix(text, p) })
}

func likeOurKey(s string) bool { return strings.HasPrefix(s, "kft_") || strings.HasPrefix(s, "kfa_") }

// Grant bounds what a backend may hand out. It comes from the server's configuration, never from the backend.
type Grant struct {
	Accounts []string // accounts its principals may belong to; at least one
	// Scopes its principals may hold. An entry that ends in "/*" stands for every scope that starts with what is before the
	// star; all others are compared whole.
	Scopes []string
}

// Validate returns nil for a grant that names an account.
func (g Grant) Validate() error {
	if len(g.Accounts) == 0 || slices.Contains(g.Accounts, "") {
		return errors.New("grant: name the accounts that the backend may speak for")
	}
	if slices.Contains(g.Scopes, "") {
		return errors.New("grant: a scope is empty")
	}
	return nil
}

// AllowsScope reports whether the grant covers scope: it names it, or with "run:workflow/*" every single workflow; or it is narrower, as
// "run:workflow/billing" is than "run:*".
func (g Grant) AllowsScope(scope string) bool {
	return scope != ScopeRunWorkflow && Covers(g.Scopes, []string{scope}) || slices.ContainsFunc(g.Scopes, func(granted string) bool {
		if prefix, ok := strings.CutSuffix(granted, "*"); ok && strings.HasSuffix(prefix, "/") {
			return strings.HasPrefix(scope, prefix) && len(scope) > len(prefix)
		}
		return scope == granted
	})
}

// Complete gives a principal without an account that of the grant, when the grant has just one.
func (g Grant) Complete(p Principal) Principal {
	if p.Account == "" && len(g.Accounts) == 1 {
		p.Account = g.Accounts[0]
	}
	return p
}

// Check returns why a principal, completed, is beyond the grant or no longer valid at now, nil when it is neither.
func (g Grant) Check(p Principal, now time.Time) error {
	if !slices.Contains(g.Accounts, p.Account) {
		return fmt.Errorf("principal for account %q, which the backend is not granted", p.Account)
	}
	for _, s := range p.Scopes {
		if !g.AllowsScope(s) {
			return fmt.Errorf("principal with scope %q, which the backend is not granted", s)
		}
	}
	if !p.ExpiresAt.IsZero() && !now.Before(p.ExpiresAt) {
		return fmt.Errorf("principal expired at %s", p.ExpiresAt.UTC().Format(time.RFC3339))
	}
	return nil
}

// Binding is what the configuration says about a backend: what it is asked about, and what it may answer.
type Binding struct {
	Route Route
	Grant Grant
	Now   func() time.Time
}

// Bind puts a in its place in a chain: it is asked only about credentials on its route, and an answer outside its grant is an
// error with CodeAuthUnavailable, not a smaller permission. So is a principal whose subject does not start with the backend's
// name and a colon, which could otherwise pass for a key or for another backend's principal, and one that has expired. A
// principal without an account gets the grant's account when the grant has just one.
func Bind(a Authenticator, b Binding) (Authenticator, error) {
	if b.Now == nil {
		return nil, errors.New("bind: no clock given")
	}
	if err := errors.Join(b.Route.Validate(), b.Grant.Validate()); err != nil {
		return nil, fmt.Errorf("auth backend %s: %w", a.Name(), err)
	}
	return &bound{Authenticator: a, binding: b}, nil
}

type bound struct {
	Authenticator
	binding Binding
}

func (b *bound) Authenticate(ctx context.Context, c Credential) (Principal, error) {
	if !b.binding.Route.Match(c) {
		return Principal{}, ErrNotApplicable
	}
	p, err := b.Authenticator.Authenticate(ctx, c)
	if err != nil {
		return p, err // with p, so that the chain sees an answer that contradicts itself
	}
	p = b.binding.Grant.Complete(p)
	if err := b.check(p); err != nil {
		return Principal{}, core.Wrap(core.CodeAuthUnavailable, fmt.Errorf("auth backend %s: %w", b.Name(), err), "the auth backend gave an unusable answer")
	}
	return p, nil
}

func (b *bound) check(p Principal) error {
	if subject, ok := strings.CutPrefix(p.Subject, b.Name()+":"); !ok || subject == "" {
		return errors.New("principal without a subject of this backend")
	}
	if err := b.binding.Grant.Check(p, b.binding.Now()); err != nil {
		return err
	}
	if p.Key != nil || p.User != nil || p.Session != nil {
		return errors.New("principal claims to be a built-in key or a user of the server")
	}
	return nil
}
