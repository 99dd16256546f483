// Package hookauth judges signed webhooks by what the workflow they are for says about them, its trigger.webhook. Whoever holds the
// secret named there may start runs of that workflow and do nothing else; the secret itself never travels.
//
// The one scheme is Standard Webhooks: webhook-signature holds the HMAC-SHA-256 of "<webhook-id>.<webhook-timestamp>.<body>", with a time
// that is at most five minutes from now. That a message is taken once is the route's business: it remembers ids, durably.
//
//	hooks, err := hookauth.New(hookauth.Config{Find: trigger.Webhook, Secret: vault, Now: time.Now})
//	chain := auth.NewChain(tracer, append([]auth.Authenticator{hooks}, others...)...)
package hookauth

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
)

// The headers of a signed webhook, in canonical form.
const (
	HeaderID        = "Webhook-Id"
	HeaderTime      = "Webhook-Timestamp"
	HeaderSignature = "Webhook-Signature"
)

// Tolerance is how far the time of a signature may be from now, in either direction.
const Tolerance = 300 * time.Second

// Bounds.
const (
	minSecret     = 16  // bytes
	maxSecrets    = 4   // in one value; a rotation needs two
	maxSignatures = 8   // that one request may offer
	maxID         = 255 // characters
)

// Name is the authenticator's name, and with a colon what the subjects of its principals start with.
const Name = auth.BackendWebhook

// Hook is a workflow that takes signed webhooks.
type Hook struct {
	Account  string
	Workflow string // id
	Verify   string // the scheme, core.VerifyStandardWebhooks
	Secret   string // name of the account's secret
}

// Config is what an Authenticator needs.
type Config struct {
	// Find returns the workflow that a request names, by its newest version. CodeNotFound is one that does not exist or takes no signed webhooks.
	Find func(ctx context.Context, ref string) (Hook, error)
	// Secret returns the value of an account's secret. CodeNotFound is one that is not set.
	Secret func(ctx context.Context, account, name string) (string, error)
	// Shared says that another backend takes the signature header too, for workflows that say nothing about webhooks themselves.
	Shared bool
	Now    func() time.Time
}

// Authenticator is the backend. It is safe for concurrent use.
type Authenticator struct {
	cfg   Config
	decoy []byte // for requests about workflows that do not exist, so that they cost as much
}

var _ auth.Authenticator = (*Authenticator)(nil)

// New returns an Authenticator.
func New(cfg Config) (*Authenticator, error) {
	if cfg.Find == nil || cfg.Secret == nil || cfg.Now == nil {
		return nil, errors.New("hookauth: Find, Secret and Now are required")
	}
	a := &Authenticator{cfg: cfg, decoy: make([]byte, 32)}
	rand.Read(a.decoy) // never fails, by its contract
	return a, nil
}

// Name implements auth.Authenticator.
func (*Authenticator) Name() string { return Name }

// Recognises reports whether a request is signed and on a webhook route. Others are passed over without a span.
func (*Authenticator) Recognises(c auth.Credential) bool {
	return c.Hook && c.Place == auth.PlaceHeader && len(c.Header[HeaderSignature]) > 0
}

// Authenticate implements auth.Authenticator. It judges requests on a webhook route that are signed, and needs their body. A secret
// that is missing or is none fails closed, with CodeAuthUnavailable: its author has yet to set it.
func (a *Authenticator) Authenticate(ctx context.Context, c auth.Credential) (auth.Principal, error) {
	if !a.Recognises(c) {
		return auth.Principal{}, auth.ErrNotApplicable
	}
	hook, err := a.cfg.Find(ctx, c.Workflow)
	known := err == nil
	switch {
	case known:
	case core.CodeOf(err) != core.CodeNotFound:
		return auth.Principal{}, core.Wrap(core.CodeAuthUnavailable, err, "webhooks cannot be checked right now")
	case a.cfg.Shared:
		return auth.Principal{}, auth.ErrNotApplicable
	}
	body, err := c.Body()
	if err != nil {
		return auth.Principal{}, err
	}
	secrets := [][]byte{a.decoy}
	if known {
		if secrets, err = a.secrets(ctx, hook); err != nil {
			return auth.Principal{}, core.Wrap(core.CodeAuthUnavailable, fmt.Errorf("webhooks of workflow %s: %w", hook.Workflow, err), "webhooks of this workflow cannot be checked right now")
		}
	}
	id, good := verify(c.Header, body, secrets, a.cfg.Now())
	if !good || !known {
		return auth.Principal{}, core.Errorf(core.CodeInvalidKey, "the signature of the webhook is not valid, or its time is not within %s of now", Tolerance)
	}
	return auth.Principal{
		Account: hook.Account, Subject: Name + ":" + hook.Secret, Backend: Name, Scopes: []string{auth.ScopeRunWorkflow + hook.Workflow},
		Attributes: map[string]string{"scheme": hook.Verify, "webhook_id": id},
	}, nil
}

// secrets reads the keys of a workflow's webhooks. The value may hold several, separated by white space, while one replaces another.
func (a *Authenticator) secrets(ctx context.Context, h Hook) ([][]byte, error) {
	if h.Verify != core.VerifyStandardWebhooks {
		return nil, fmt.Errorf("scheme %q is not known to this server", h.Verify)
	}
	value, err := a.cfg.Secret(ctx, h.Account, h.Secret)
	if err != nil {
		return nil, fmt.Errorf("secret %s: %w", h.Secret, err)
	}
	texts := strings.Fields(value)
	if len(texts) == 0 || len(texts) > maxSecrets {
		return nil, fmt.Errorf("secret %s: holds %d signing secrets, want 1 to %d", h.Secret, len(texts), maxSecrets)
	}
	all := make([][]byte, len(texts))
	for i, text := range texts {
		// The decoder's own error would quote the secret.
		if all[i], err = base64.StdEncoding.DecodeString(strings.TrimPrefix(text, "whsec_")); err != nil || len(all[i]) < minSecret {
			return nil, fmt.Errorf("secret %s: want whsec_ and the base64 of at least %d bytes", h.Secret, minSecret)
		}
	}
	return all, nil
}

// verify reports whether one of the secrets signed the message, and returns its id. Every pair of secret and signature is tried, whichever fits.
func verify(header map[string][]string, body []byte, secrets [][]byte, now time.Time) (id string, good bool) {
	id, ok1 := only(header, HeaderID)
	at, ok2 := only(header, HeaderTime)
	offered, ok3 := only(header, HeaderSignature)
	fits := ok1 && ok2 && ok3 && validID(id) && fresh(at, now)
	macs := signatures(offered)
	for _, secret := range secrets {
		mac := hmac.New(sha256.New, secret)
		mac.Write([]byte(id + "." + at + "."))
		mac.Write(body)
		sum := mac.Sum(nil)
		for _, m := range macs {
			good = hmac.Equal(sum, m) || good
		}
	}
	return id, good && fits
}

// only returns the one value of a header. Of two, whoever is before us may have checked the other.
func only(header map[string][]string, name string) (string, bool) {
	values := header[name]
	if len(values) != 1 {
		return "", false
	}
	return values[0], true
}

// validID refuses dots: parts of the signed text are joined by them, and a dot in one would let it be read in two ways.
func validID(id string) bool {
	if id == "" || len(id) > maxID {
		return false
	}
	for i := range len(id) {
		if id[i] <= ' ' || id[i] > '~' || id[i] == '.' {
			return false
		}
	}
	return true
}

// fresh reports whether text is a time near now: seconds since 1970, in digits only, since what was signed must have one meaning.
func fresh(text string, now time.Time) bool {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n <= 0 || strconv.FormatInt(n, 10) != text {
		return false
	}
	return now.Sub(time.Unix(n, 0)).Abs() <= Tolerance
}

// signatures returns those that webhook-signature offers, a list of "v1,<base64>" separated by spaces. Other versions are skipped.
func signatures(text string) [][]byte {
	var all [][]byte
	for offered := range strings.SplitSeq(text, " ") {
		b64, ok := strings.CutPrefix(offered, "v1,")
		if !ok || len(all) == maxSignatures {
			continue
		}
		if mac, err := base64.StdEncoding.Strict().DecodeString(b64); err == nil {
			all = append(all, mac)
		}
	}
	return all
}
