// Package jwtauth admits workloads by tokens that somebody they run on has signed: GitHub Actions, GitLab, Kubernetes, or any other
// issuer of OpenID Connect. No key of ours is stored in CI any more. The package hides where an issuer's keys come from, how they
// rotate, and how the claims of a token become an account and scopes.
//
// A token is admitted when all of this holds: its issuer is configured; its algorithm is one that is pinned for the issuer; its signature
// verifies with a key the issuer publishes, or did five minutes ago; it names an audience of ours, it has an expiry and is within it; and a rule of the
// issuer holds for its claims. What a token says about how to verify itself (jku, jwk, x5u, x5c) is ignored.
//
// [Sessions] are our own tokens, of people who have logged in. They are signed here too, and what they may do is read from the store with every request.
package jwtauth

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
)

// Bounds of what is accepted.
const (
	MaxToken      = 8 << 10 // bytes
	MaxLeeway     = time.Minute
	DefaultLeeway = 30 * time.Second
	maxAttribute  = 1024
)

// Config is everything an Authenticator needs.
type Config struct {
	// Name names the authenticator in subjects, spans and audit events, "jwt" when empty.
	Name string
	// Issuers are whose tokens are admitted; at least one. Names and URLs are unique.
	Issuers []Issuer
	// Leeway is by how much clocks may differ, 30 s when zero, at most a minute.
	Leeway time.Duration
	// Now is the clock that tokens expire by.
	Now func() time.Time
}

// Issuer is somebody whose tokens are admitted, and on which terms.
type Issuer struct {
	// Name is put before the subject of a token, "<name>/<sub>", so that two issuers cannot speak of one principal: a lower-case letter,
	// then up to 31 letters, digits and hyphens.
	Name string
	// URL is the exact "iss" of its tokens. Keys are found from it by discovery. It must be https, but for loopback addresses.
	URL string
	// JWKS, when set, is where the keys are, for an issuer without discovery.
	JWKS string
	// Client makes the requests to the issuer, such as with the CA and the token of a Kubernetes API server. Nil is a client of the
	// system's trust store. It is used with its own timeouts, and redirects are never followed.
	Client *http.Client
	// Audiences are the values of "aud" of which a token must name one; at least one. Choose a name of this server's own: a token made
	// for somebody else must not work here.
	Audiences []string
	// Algorithms are the signature algorithms accepted, RS256 and ES256 when empty. Symmetric ones cannot be configured.
	Algorithms []string
	// Rules are tried in order; the first that holds decides. A token for which none holds is refused.
	Rules []Rule
	// Attributes are facts for the run and the audit log: a name, and a CEL expression over claims that gives a string. One that fails
	// because a claim is missing is left out. See GitHub, GitLab and Kubernetes for ready ones.
	Attributes map[string]string
}

// Rule gives an account and scopes to the tokens for which its condition holds.
type Rule struct {
	// If is a CEL expression over claims, a map, that gives a bool: claims.repository == "acme/app" && claims.ref == "refs/heads/main".
	// A condition that fails, such as for a missing claim, does not hold.
	If string
	// Account is whose workflows the token may reach, and Scopes what it may do there.
	Account string
	Scopes  []string
}

// Authenticator admits tokens. It is safe for concurrent use.
type Authenticator struct {
	name    string
	leeway  time.Duration
	now     func() time.Time
	issuers map[string]*issuer // by URL
}

var _ auth.Authenticator = (*Authenticator)(nil)

// New returns an Authenticator. It connects to no issuer: one that is down at the start is asked when its first token comes. The error
// names everything that is wrong with the configuration, the expressions included.
func New(cfg Config) (*Authenticator, error) {
	if cfg.Name == "" {
		cfg.Name = "jwt"
	}
	if cfg.Leeway == 0 {
		cfg.Leeway = DefaultLeeway
	}
	var problems []error
	if cfg.Now == nil {
		problems = append(problems, errors.New("no clock given"))
	}
	if cfg.Leeway < 0 || cfg.Leeway > MaxLeeway {
		problems = append(problems, fmt.Errorf("leeway %s: at most %s", cfg.Leeway, MaxLeeway))
	}
	if len(cfg.Issuers) == 0 {
		problems = append(problems, errors.New("name at least one issuer"))
	}
	a := &Authenticator{name: cfg.Name, leeway: cfg.Leeway, now: cfg.Now, issuers: make(map[string]*issuer)}
	names := make(map[string]bool)
	for _, c := range cfg.Issuers {
		i, err := newIssuer(c, cfg.Leeway, cfg.Now)
		if err == nil && (names[c.Name] || a.issuers[c.URL] != nil) {
			err = fmt.Errorf("issuer %s: its name or URL is used twice", c.Name)
		}
		if err != nil {
			problems = append(problems, err)
			continue
		}
		names[c.Name], a.issuers[c.URL] = true, i
	}
	if err := errors.Join(problems...); err != nil {
		return nil, fmt.Errorf("jwt authentication: %w", err)
	}
	return a, nil
}

// Name returns the configured name.
func (a *Authenticator) Name() string { return a.name }

// header is the part of a token's header that is looked at.
type header struct {
	Algorithm string          `json:"alg"`
	Type      string          `json:"typ"`
	KeyID     string          `json:"kid"`
	Critical  json.RawMessage `json:"crit"`
}

// Authenticate judges a bearer token. Text that is not a signed JWT, or one of an issuer that is not configured, is not applicable. A token
// that is not good is CodeInvalidKey, one past its expiry CodeKeyExpired if everything else about it is right, one that no rule admits
// CodeInsufficientScope; when the issuer's keys cannot be had it is CodeAuthUnavailable.
func (a *Authenticator) Authenticate(ctx context.Context, c auth.Credential) (auth.Principal, error) {
	text := c.Secret.Reveal()
	if c.Place != auth.PlaceBearer || !strings.HasPrefix(text, "eyJ") { // a JSON object that is encoded begins so
		return auth.Principal{}, auth.ErrNotApplicable
	}
	if len(text) > MaxToken {
		return auth.Principal{}, refuse(fmt.Errorf("token of %d bytes", len(text)))
	}
	h, iss, ok := peek(text)
	if !ok {
		return auth.Principal{}, auth.ErrNotApplicable
	}
	issuer := a.issuers[iss]
	if issuer == nil {
		return auth.Principal{}, auth.ErrNotApplicable
	}
	if err := issuer.acceptable(h); err != nil {
		return auth.Principal{}, refuse(err)
	}
	// go-oidc decodes the signature leniently, and a token shall have one spelling.
	if _, err := jwt.NewParser(jwt.WithStrictDecoding()).DecodeSegment(text[strings.LastIndexByte(text, '.')+1:]); err != nil {
		return auth.Principal{}, refuse(errors.New("signature is not base64url as it has to be"))
	}
	payload, err := issuer.keys.verify(ctx, text)
	switch {
	case errors.Is(err, errUnavailable):
		e := core.Wrap(core.CodeAuthUnavailable, fmt.Errorf("keys of issuer %s: %w", issuer.cfg.Name, err), "the issuer's keys cannot be had right now")
		e.RetryAfter = retryFailed
		return auth.Principal{}, e
	case err != nil:
		return auth.Principal{}, refuse(err)
	}
	return a.judge(ctx, issuer, payload)
}

// judge decides about claims whose signature has been verified.
func (a *Authenticator) judge(ctx context.Context, i *issuer, payload []byte) (auth.Principal, error) {
	// Not RegisteredClaims: they take a number in quotes for a time.
	var claims jwt.MapClaims
	if err := json.Unmarshal(payload, &claims); err != nil {
		return auth.Principal{}, refuse(errors.New("claims are not a JSON object"))
	}
	if err := i.validator.Validate(claims); err != nil {
		if onlyExpired(err) {
			return auth.Principal{}, core.Errorf(core.CodeKeyExpired, "the token expired; request a new one from its issuer")
		}
		return auth.Principal{}, refuse(err)
	}
	subject, err1 := claims.GetSubject()
	expires, err2 := claims.GetExpirationTime()
	if err := errors.Join(err1, err2); err != nil || expires == nil || !printable(subject) {
		return auth.Principal{}, refuse(errors.New("token without a subject that prints"))
	}
	rule, ok := i.policy.decide(ctx, claims)
	if !ok {
		return auth.Principal{}, core.Errorf(core.CodeInsufficientScope, "the token is good, but no rule of this server admits its bearer")
	}
	return auth.Principal{
		Account:    rule.Account,
		Subject:    a.name + ":" + i.cfg.Name + "/" + subject,
		Backend:    a.name,
		Scopes:     slices.Clone(rule.Scopes),
		Attributes: i.policy.describe(ctx, claims),
		ExpiresAt:  expires.Add(a.leeway),
	}, nil
}

// peek reads a token's header and issuer without verifying anything. They only choose what the token is then held to.
func peek(text string) (h header, iss string, ok bool) {
	parts := strings.Split(text, ".")
	if len(parts) != 3 || parts[2] == "" {
		return h, "", false // three parts and a signature, or it is not a signed JWT
	}
	var claims struct {
		Issuer string `json:"iss"`
	}
	parser := jwt.NewParser(jwt.WithStrictDecoding())
	head, err1 := parser.DecodeSegment(parts[0])
	body, err2 := parser.DecodeSegment(parts[1])
	if errors.Join(err1, err2) != nil || json.Unmarshal(head, &h) != nil || json.Unmarshal(body, &claims) != nil {
		return h, "", false
	}
	return h, claims.Issuer, true
}

// onlyExpired reports whether the expiry is all that is wrong with a token: whoever holds a token that was good may know that.
func onlyExpired(err error) bool {
	if !errors.Is(err, jwt.ErrTokenExpired) {
		return false
	}
	for _, other := range []error{jwt.ErrTokenInvalidAudience, jwt.ErrTokenInvalidIssuer, jwt.ErrTokenNotValidYet, jwt.ErrTokenUsedBeforeIssued, jwt.ErrTokenRequiredClaimMissing} {
		if errors.Is(err, other) {
			return false
		}
	}
	return true
}

// refuse gives every bad token one answer. Why it was bad is for the log.
func refuse(cause error) error {
	return core.Wrap(core.CodeInvalidKey, cause, "the token is not valid")
}

// printable reports whether s can be part of a subject, which is shown and logged.
func printable(s string) bool {
	return s != "" && len(s) <= maxAttribute && strings.IndexFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f || r == 0xfffd }) < 0
}
