package plugins

import (
	"fmt"
	"time"
	"unicode/utf8"

	"go.opentelemetry.io/otel/trace"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/sdk/authplugin"
	"github.com/keyfire/keyfire/sdk/authplugin/authv1"
)

// encode puts into a request what the plugin is granted to see of c, and nothing else.
func encode(p *Plugin, c auth.Credential) (*authv1.AuthenticateRequest, error) {
	r := &authv1.AuthenticateRequest{Credential: c.Secret.Reveal(), Method: c.Method, Path: c.Path, Workflow: c.Workflow}
	switch c.Place {
	case auth.PlaceBearer:
		r.Scheme = "bearer"
	case auth.PlaceAuthorization:
		r.Scheme = c.Scheme
	case auth.PlaceHeader:
		r.Scheme = authplugin.SchemeHeader
	default:
		r.Scheme = authplugin.SchemeAPIKey
	}
	if c.Source.IsValid() {
		r.Source = c.Source.String()
	}
	for _, name := range p.Headers { // sorted, so that equal requests encode equally
		if values := c.Header[name]; len(values) > 0 {
			r.Headers = append(r.Headers, &authv1.Header{Name: name, Values: values})
		}
	}
	if p.Body && c.Body != nil {
		body, err := c.Body()
		if err != nil {
			return nil, err
		}
		r.Body = body
	}
	// gRPC refuses text that is not UTF-8, which would look like a failure of the plugin.
	if !utf8.ValidString(r.Credential) || !utf8.ValidString(r.Path) || !utf8.ValidString(r.Workflow) {
		return nil, core.Errorf(core.CodeInvalidKey, "the credential is not valid")
	}
	for _, h := range r.Headers {
		for _, v := range h.Values {
			if !utf8.ValidString(v) {
				return nil, core.Errorf(core.CodeInvalidKey, "the credential is not valid")
			}
		}
	}
	return r, nil
}

// verdict is a plugin's answer once it has been found to be one.
type verdict struct {
	kind      string // one of the closed set below, which is also a metric label
	principal auth.Principal
	reason    string        // of a denial
	ttl       time.Duration // of a denial
}

// The kinds of verdict.
const (
	kindAllow   = "allow"
	kindDeny    = "deny"
	kindAbstain = "abstain"
	kindError   = "error"
)

// decode holds an answer to the protocol and makes a verdict of it.
func decode(name string, r *authv1.AuthenticateResponse) (verdict, error) {
	if err := r.Check(); err != nil {
		return verdict{}, err
	}
	switch {
	case r.GetNotMine() != nil:
		return verdict{kind: kindAbstain}, nil
	case r.GetDeny() != nil:
		return verdict{kind: kindDeny, reason: r.GetDeny().GetReason(), ttl: time.Duration(r.GetDeny().GetTtlSeconds()) * time.Second}, nil
	}
	p := r.GetAllow()
	principal := auth.Principal{
		Account: p.GetAccount(), Subject: name + ":" + p.GetSubject(), Backend: name,
		Scopes: p.GetScopes(), Attributes: p.GetAttributes(),
	}
	if s := p.GetExpiresAtUnix(); s > 0 {
		principal.ExpiresAt = time.Unix(s, 0)
	}
	return verdict{kind: kindAllow, principal: principal}, nil
}

// traceparent returns the W3C header of the span, "" when there is none.
func traceparent(sc trace.SpanContext) string {
	if !sc.IsValid() {
		return ""
	}
	return fmt.Sprintf("00-%s-%s-%02x", sc.TraceID(), sc.SpanID(), byte(sc.TraceFlags()&trace.FlagsSampled))
}
