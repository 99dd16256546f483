package jwtauth

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// asymmetric are the algorithms that can be configured. With a symmetric one whoever can verify a token could make it, and "none" is no
// signature.
var asymmetric = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}

var namePattern = regexp.MustCompile(`^[a-z][a-z0-9-]{0,31}$`)

// issuer is an Issuer made ready.
type issuer struct {
	cfg       Issuer
	keys      *keys
	policy    *policy
	validator *jwt.Validator
}

func newIssuer(cfg Issuer, leeway time.Duration, now func() time.Time) (*issuer, error) {
	if len(cfg.Algorithms) == 0 {
		cfg.Algorithms = []string{"RS256", "ES256"}
	}
	var problems []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			problems = append(problems, fmt.Errorf(format, args...))
		}
	}
	check(namePattern.MatchString(cfg.Name), "name: use a lower-case letter, then up to 31 letters, digits and hyphens")
	problems = append(problems, checkURL("url", cfg.URL))
	if cfg.JWKS != "" {
		problems = append(problems, checkURL("jwks", cfg.JWKS))
	}
	check(len(cfg.Audiences) > 0 && !slices.Contains(cfg.Audiences, ""), "audiences: name at least one; without it a token made for anybody would work here")
	for _, alg := range cfg.Algorithms {
		check(slices.Contains(asymmetric, alg), "algorithm %q: use one of %s", alg, strings.Join(asymmetric, ", "))
	}
	check(len(cfg.Rules) > 0, "rules: without one no token is admitted")
	p, err := newPolicy(cfg.Rules, cfg.Attributes)
	problems = append(problems, err)
	if err := errors.Join(problems...); err != nil {
		return nil, fmt.Errorf("issuer %q: %w", cfg.Name, err)
	}
	return &issuer{
		cfg: cfg, policy: p, keys: newKeys(cfg),
		validator: jwt.NewValidator(
			jwt.WithExpirationRequired(), jwt.WithIssuedAt(), jwt.WithIssuer(cfg.URL), jwt.WithAudience(cfg.Audiences...),
			jwt.WithLeeway(leeway), jwt.WithTimeFunc(now),
		),
	}, nil
}

// acceptable looks at a header before any key is looked for.
func (i *issuer) acceptable(h header) error {
	switch {
	case !slices.Contains(i.cfg.Algorithms, h.Algorithm):
		return fmt.Errorf("algorithm %.20q is not accepted from issuer %s", h.Algorithm, i.cfg.Name)
	case h.Critical != nil:
		return errors.New("token has critical extensions, and none is understood")
	case !slices.Contains([]string{"", "jwt", "at+jwt", "application/at+jwt"}, strings.ToLower(h.Type)): // the long form is RFC 9068's too
		// A token of another type, such as a logout token, is signed with the same keys and means something else.
		return fmt.Errorf("token of type %.20q", h.Type)
	case len(h.KeyID) > 256:
		return errors.New("key id is longer than 256 bytes")
	}
	return nil
}

// checkURL returns nil for an https URL, and for an http one of a loopback address, where nobody else can listen.
func checkURL(what, text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return fmt.Errorf("%s: %q is not a plain URL", what, text)
	}
	if u.Scheme == "https" {
		return nil
	}
	ip := net.ParseIP(u.Hostname())
	if u.Scheme == "http" && (u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()) {
		return nil
	}
	return fmt.Errorf("%s: %s must be https", what, text)
}
