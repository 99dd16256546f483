package plugins

import (
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
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

// decode holds an answer to the contract of the protocol. Whatever breaks it is an error as a whole: of an answer that is wrong in one
// place, no other place can be trusted.
func decode(name string, r *authv1.AuthenticateResponse) (verdict, error) {
	verdicts := 0
	for _, given := range []bool{r.GetAllow() != nil, r.GetDeny() != nil, r.GetNotMine() != nil} {
		if given {
			verdicts++
		}
	}
	if verdicts != 1 {
		return verdict{}, fmt.Errorf("answer holds %d verdicts, want one", verdicts)
	}
	switch {
	case r.GetNotMine() != nil:
		return verdict{kind: kindAbstain}, nil
	case r.GetDeny() != nil:
		return decodeDenial(r.GetDeny())
	default:
		return decodePrincipal(name, r.GetAllow())
	}
}

func decodeDenial(d *authv1.Denial) (verdict, error) {
	if !printable(d.GetReason(), 0, authv1.MaxReason) {
		return verdict{}, fmt.Errorf("the reason of a refusal must be at most %d printable characters", authv1.MaxReason)
	}
	if ttl := d.GetTtlSeconds(); ttl < 0 || ttl > authv1.MaxDenialTTL {
		return verdict{}, fmt.Errorf("the time of a refusal must be 0 to %d seconds, not %d", authv1.MaxDenialTTL, ttl)
	}
	return verdict{kind: kindDeny, reason: d.GetReason(), ttl: time.Duration(d.GetTtlSeconds()) * time.Second}, nil
}

func decodePrincipal(name string, p *authv1.Principal) (verdict, error) {
	switch {
	case !printable(p.GetSubject(), 1, authv1.MaxSubject):
		return verdict{}, fmt.Errorf("a subject must be 1 to %d printable characters", authv1.MaxSubject)
	case !printable(p.GetAccount(), 0, authv1.MaxSubject):
		return verdict{}, errors.New("the account is not a name")
	case len(p.GetScopes()) > authv1.MaxScopes:
		return verdict{}, fmt.Errorf("%d scopes, at most %d are allowed", len(p.GetScopes()), authv1.MaxScopes)
	case len(p.GetAttributes()) > authv1.MaxAttributes:
		return verdict{}, fmt.Errorf("%d attributes, at most %d are allowed", len(p.GetAttributes()), authv1.MaxAttributes)
	case p.GetExpiresAtUnix() < 0:
		return verdict{}, errors.New("expires_at_unix is negative")
	}
	for _, s := range p.GetScopes() {
		if !printable(s, 1, authv1.MaxScope) || strings.ContainsRune(s, ' ') {
			return verdict{}, fmt.Errorf("a scope must be 1 to %d printable characters without a space", authv1.MaxScope)
		}
	}
	for k, v := range p.GetAttributes() {
		if !printable(k, 1, 64) || len(v) > authv1.MaxAttribute || !printable(v, 0, authv1.MaxAttribute) {
			return verdict{}, errors.New("an attribute's name or value is too long or does not print")
		}
	}
	principal := auth.Principal{
		Account: p.GetAccount(), Subject: name + ":" + p.GetSubject(), Backend: name,
		Scopes: p.GetScopes(), Attributes: p.GetAttributes(),
	}
	if s := p.GetExpiresAtUnix(); s > 0 {
		principal.ExpiresAt = time.Unix(s, 0)
	}
	return verdict{kind: kindAllow, principal: principal}, nil
}

// printable reports whether s has between least and most characters, all of which print. Text from a plugin reaches logs, audit rows and
// callers, where a line break or an escape sequence would forge.
func printable(s string, least, most int) bool {
	n := 0
	for _, r := range s {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return false
		}
		n++
	}
	return n >= least && n <= most
}

// traceparent returns the W3C header of the span, "" when there is none.
func traceparent(sc trace.SpanContext) string {
	if !sc.IsValid() {
		return ""
	}
	return fmt.Sprintf("00-%s-%s-%02x", sc.TraceID(), sc.SpanID(), byte(sc.TraceFlags()&trace.FlagsSampled))
}
