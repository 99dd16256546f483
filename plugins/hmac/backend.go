package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/keyfire/keyfire/sdk/authplugin"
)

// Bounds.
const (
	defaultTolerance = 5 * time.Minute
	maxTolerance     = 10 * time.Minute
	minSecret        = 16      // bytes
	maxSenders       = 100     // each costs a hash of the body for requests of its scheme
	maxSecrets       = 4       // of one sender: a rotation needs two
	maxSeen          = 100_000 // signatures remembered
)

// config is the plugin's configuration.
type config struct {
	Senders []sender `json:"senders"`
	// Tolerance is by how many seconds a signed time may differ from ours, 300 when 0.
	Tolerance int `json:"tolerance_seconds"`
	// Replays is "refuse", the default, or "allow": whether a signature with a time in it works a second time within the tolerance.
	Replays string `json:"replays"`
}

// sender is somebody who signs requests.
type sender struct {
	Name   string  `json:"name"`   // the subject
	Preset string  `json:"preset"` // "github", "stripe", "slack", "standard-webhooks", or "custom" with Custom
	Custom *custom `json:"custom,omitempty"`
	// Secrets, and files that hold one each, so that the configuration can be shown. Any of them will do, for rotation.
	Secrets     []string `json:"secrets"`
	SecretFiles []string `json:"secret_files"`

	Account string   `json:"account"`
	Scopes  []string `json:"scopes"`
}

var namePattern = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}$`)

// backend verifies signatures.
type backend struct {
	now func() time.Time

	senders   []verifier
	tolerance time.Duration
	seen      *memory // nil: replays are allowed
}

// verifier is a sender with its scheme made ready.
type verifier struct {
	sender
	scheme  scheme
	secrets [][]byte
}

func newBackend() *backend { return &backend{now: time.Now} }

// Validate implements authplugin.Validator.
func (b *backend) Validate(raw []byte) error {
	_, _, err := parse(raw)
	return err
}

// Configure implements authplugin.Configurer.
func (b *backend) Configure(_ context.Context, raw []byte) error {
	c, senders, err := parse(raw)
	if err != nil {
		return err
	}
	b.senders, b.tolerance = senders, time.Duration(c.Tolerance)*time.Second
	if c.Replays == "refuse" {
		b.seen = newMemory()
	}
	return nil
}

func parse(raw []byte) (config, []verifier, error) {
	c := config{Tolerance: int(defaultTolerance / time.Second), Replays: "refuse"}
	if err := authplugin.DecodeConfig(raw, &c); err != nil {
		return c, nil, err
	}
	var problems []error
	if len(c.Senders) == 0 || len(c.Senders) > maxSenders {
		problems = append(problems, fmt.Errorf("senders: name 1 to %d", maxSenders))
	}
	if c.Tolerance < 1 || c.Tolerance > int(maxTolerance/time.Second) {
		problems = append(problems, fmt.Errorf("tolerance_seconds: 1 to %d", int(maxTolerance/time.Second)))
	}
	if c.Replays != "refuse" && c.Replays != "allow" {
		problems = append(problems, errors.New(`replays: "refuse" or "allow"`))
	}
	senders := make([]verifier, 0, len(c.Senders))
	for n, s := range c.Senders {
		v, err := newVerifier(s)
		if err != nil {
			problems = append(problems, fmt.Errorf("senders[%d]: %w", n, err))
		}
		senders = append(senders, v)
	}
	return c, senders, errors.Join(problems...)
}

func newVerifier(s sender) (verifier, error) {
	v := verifier{sender: s}
	if !namePattern.MatchString(s.Name) {
		return v, errors.New("name: 1 to 64 letters, digits, dots, hyphens and underscores")
	}
	if n := len(s.Secrets) + len(s.SecretFiles); n == 0 || n > maxSecrets {
		return v, fmt.Errorf("%s: secrets and secret_files: name 1 to %d in all", s.Name, maxSecrets)
	}
	texts := slices.Clone(s.Secrets)
	for _, path := range s.SecretFiles {
		text, err := os.ReadFile(path) // #nosec G304 -- the operator names the file
		if err != nil {
			return v, fmt.Errorf("%s: secret_files: %w", s.Name, err)
		}
		texts = append(texts, strings.TrimRight(string(text), "\r\n"))
	}
	var err error
	if v.scheme, err = schemeOf(s); err != nil {
		return v, fmt.Errorf("%s: %w", s.Name, err)
	}
	for n, text := range texts {
		secret, err := v.scheme.secret(text)
		if err != nil {
			return v, fmt.Errorf("%s: secrets[%d]: %w", s.Name, n, err) // without the secret
		}
		if len(secret) < minSecret {
			return v, fmt.Errorf("%s: secrets[%d]: shorter than %d bytes", s.Name, n, minSecret)
		}
		v.secrets = append(v.secrets, secret)
	}
	return v, nil
}

// Authenticate implements authplugin.Authenticator. Senders of one scheme are told apart by whose secret fits.
func (b *backend) Authenticate(_ context.Context, r *authplugin.Request) (*authplugin.Principal, error) {
	now, ours := b.now(), false
	for _, s := range b.senders {
		signed, ok := s.scheme.read(r)
		if !ok {
			continue
		}
		ours = true
		if len(r.Body) == 0 && signed.time.IsZero() {
			// The same for every request of the sender: whoever has seen it once could send what is no part of the body.
			return nil, authplugin.Deny("the request has no body, so nothing of it is signed")
		}
		if !signed.fresh(now, b.tolerance) || !signed.by(s.secrets) {
			continue
		}
		if b.seen != nil && !signed.time.IsZero() && !b.seen.first(signed.digest(s.Name), hookRoute(r, signed), now, signed.time.Add(b.tolerance)) {
			return nil, authplugin.Deny("this request was received before")
		}
		return &authplugin.Principal{
			Subject: s.Name, Account: s.Account, Scopes: s.Scopes, Attributes: map[string]string{"scheme": s.Preset},
		}, nil
	}
	if !ours {
		return nil, authplugin.ErrNotMine
	}
	return nil, authplugin.Deny("the signature is not valid, or its time is not now")
}

// hookRoute returns the route of a message that the server itself takes once, "" for any other: one whose id is signed, on a webhook route, which
// remembers ids durably and answers a repetition with the run of the first. A sender that repeats itself is answered so rather than refused.
func hookRoute(r *authplugin.Request, s signature) string {
	if s.id != "" && strings.HasPrefix(r.Path, "/v1/hooks/") {
		return r.Path
	}
	return ""
}

// memory remembers signatures for as long as they would be fresh. It is this process's: a restart forgets it, which a sender with its own
// idempotency key does not notice.
type memory struct {
	mu   sync.Mutex
	seen map[[sha256.Size]byte]sighting
}

// sighting is a signature that was taken.
type sighting struct {
	until time.Time
	route string // where it may be seen again, "" for nowhere
}

func newMemory() *memory { return &memory{seen: make(map[[sha256.Size]byte]sighting)} }

// first reports whether the signature is new, or was seen on the same route that takes a message once by itself. When memory is full it says no:
// forgetting one early would let it in again.
func (m *memory) first(digest [sha256.Size]byte, route string, now, until time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s, ok := m.seen[digest]; ok && !now.After(s.until) {
		return route != "" && route == s.route
	}
	if len(m.seen) >= maxSeen {
		for d, s := range m.seen {
			if now.After(s.until) {
				delete(m.seen, d)
			}
		}
		if len(m.seen) >= maxSeen {
			return false
		}
	}
	m.seen[digest] = sighting{until: until, route: route}
	return true
}
