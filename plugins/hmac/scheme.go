package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/keyfire/keyfire/sdk/authplugin"
)

// maxSignatures bounds how many signatures one request may offer: senders that rotate send two.
const maxSignatures = 8

// scheme is a way of signing requests.
type scheme interface {
	// read takes out of a request what was signed and how. ok is false when the request is not signed in this way.
	read(r *authplugin.Request) (signed signature, ok bool)
	// secret makes a key of its text.
	secret(text string) ([]byte, error)
}

// signature is what a request says about itself, and nothing of it has been believed yet.
type signature struct {
	hash    func() hash.Hash
	message [][]byte  // in parts, so that the body is not copied
	macs    [][]byte  // offered; one must be right
	time    time.Time // zero when the scheme has none
	stale   bool      // the time cannot be read
	id      string    // of the message, if it is signed too
}

// fresh reports whether the signed time is close to now.
func (s signature) fresh(now time.Time, tolerance time.Duration) bool {
	if s.stale {
		return false
	}
	return s.time.IsZero() || now.Sub(s.time).Abs() <= tolerance
}

// by reports whether one of the secrets made one of the signatures. Every pair is tried, whichever fits.
func (s signature) by(secrets [][]byte) bool {
	good := false
	for _, secret := range secrets {
		mac := hmac.New(s.hash, secret)
		for _, part := range s.message {
			mac.Write(part)
		}
		sum := mac.Sum(nil)
		for _, offered := range s.macs {
			good = hmac.Equal(sum, offered) || good
		}
	}
	return good
}

// digest identifies the signed message of a sender.
func (s signature) digest(sender string) [sha256.Size]byte {
	h := sha256.New()
	_, _ = fmt.Fprintf(h, "%d:%s:", len(sender), sender)
	for _, part := range s.message {
		h.Write(part)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

func schemeOf(s sender) (scheme, error) {
	if s.Custom != nil && s.Preset != "custom" {
		return nil, errors.New(`custom is for preset "custom"`)
	}
	switch s.Preset {
	case "github":
		return github{}, nil
	case "stripe":
		return stripe{}, nil
	case "slack":
		return slack{}, nil
	case "standard-webhooks":
		return standard{}, nil
	case "custom":
		if s.Custom == nil {
			return nil, errors.New("custom: say how requests are signed")
		}
		return s.Custom, s.Custom.validate()
	}
	return nil, fmt.Errorf("preset %.30q: use github, stripe, slack, standard-webhooks or custom", s.Preset)
}

// plain is for schemes whose secret is its text.
type plain struct{}

func (plain) secret(text string) ([]byte, error) { return []byte(text), nil }

// github is X-Hub-Signature-256: sha256=<hex> over the body. It has no time in it, so it does not tell a replay.
type github struct{ plain }

func (github) read(r *authplugin.Request) (signature, bool) {
	value, ok := one(r.Header, "X-Hub-Signature-256")
	if !ok {
		return signature{}, false
	}
	return signature{hash: sha256.New, message: [][]byte{r.Body}, macs: decodeHex(strings.TrimPrefix(value, "sha256="))}, true
}

// stripe is Stripe-Signature: t=<unix>,v1=<hex>[,v1=<hex>] over "<t>.<body>".
type stripe struct{ plain }

func (stripe) read(r *authplugin.Request) (signature, bool) {
	value, ok := one(r.Header, "Stripe-Signature")
	if !ok {
		return signature{}, false
	}
	s := signature{hash: sha256.New}
	var at string
	for pair := range strings.SplitSeq(value, ",") {
		switch name, v, _ := strings.Cut(strings.TrimSpace(pair), "="); name {
		case "t":
			at = v
		case "v1":
			s.macs = append(s.macs, decodeHex(v)...)
		}
	}
	s.macs = s.macs[:min(len(s.macs), maxSignatures)]
	s.message = [][]byte{[]byte(at + "."), r.Body}
	s.setTime(at)
	return s, true
}

// slack is X-Slack-Signature: v0=<hex> over "v0:<timestamp>:<body>".
type slack struct{ plain }

func (slack) read(r *authplugin.Request) (signature, bool) {
	value, ok := one(r.Header, "X-Slack-Signature")
	if !ok {
		return signature{}, false
	}
	at, _ := one(r.Header, "X-Slack-Request-Timestamp")
	s := signature{hash: sha256.New, message: [][]byte{[]byte("v0:" + at + ":"), r.Body}, macs: decodeHex(strings.TrimPrefix(value, "v0="))}
	s.setTime(at)
	return s, true
}

// standard is Standard Webhooks: webhook-signature: v1,<base64>[ v1,<base64>] over "<id>.<timestamp>.<body>", with secrets whsec_<base64>.
type standard struct{}

func (standard) secret(text string) ([]byte, error) {
	secret, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(text, "whsec_"))
	if err != nil {
		return nil, errors.New("must be whsec_ and base64")
	}
	return secret, nil
}

func (standard) read(r *authplugin.Request) (signature, bool) {
	value, ok := one(r.Header, "Webhook-Signature")
	if !ok {
		return signature{}, false
	}
	id, _ := one(r.Header, "Webhook-Id")
	at, _ := one(r.Header, "Webhook-Timestamp")
	s := signature{hash: sha256.New, message: [][]byte{[]byte(id + "." + at + "."), r.Body}, id: id}
	for offered := range strings.FieldsSeq(value) {
		if b64, ok := strings.CutPrefix(offered, "v1,"); ok && len(s.macs) < maxSignatures {
			s.macs = append(s.macs, decodeBase64(b64)...)
		}
	}
	s.setTime(at)
	// Parts are joined by dots, so a dot in one would let a signature be read in two ways.
	s.stale = s.stale || id == "" || strings.Contains(id, ".")
	return s, true
}

// custom is a scheme of one's own: a header with the signature of the body, or of "<timestamp><separator><body>".
type custom struct {
	plain
	Header          string `json:"header"`
	Prefix          string `json:"prefix"`           // before the signature, such as "sha256="
	Encoding        string `json:"encoding"`         // "hex" or "base64"
	Algorithm       string `json:"algorithm"`        // "sha256" or "sha512"
	TimestampHeader string `json:"timestamp_header"` // seconds since 1970; empty: none, and replays cannot be told
	Separator       string `json:"separator"`        // between timestamp and body, such as "."
}

func (c *custom) validate() error {
	var problems []error
	if c.Header == "" {
		problems = append(problems, errors.New("custom.header: name the header that holds the signature"))
	}
	if !slices.Contains([]string{"hex", "base64"}, c.Encoding) {
		problems = append(problems, errors.New(`custom.encoding: "hex" or "base64"`))
	}
	if !slices.Contains([]string{"sha256", "sha512"}, c.Algorithm) {
		problems = append(problems, errors.New(`custom.algorithm: "sha256" or "sha512"`))
	}
	if c.TimestampHeader != "" && c.Separator == "" {
		problems = append(problems, errors.New("custom.separator: needed between the timestamp and the body, or a digit could move from one to the other"))
	}
	return errors.Join(problems...)
}

func (c *custom) read(r *authplugin.Request) (signature, bool) {
	value, ok := one(r.Header, c.Header)
	if !ok {
		return signature{}, false
	}
	s := signature{hash: sha256.New}
	if c.Algorithm == "sha512" {
		s.hash = sha512.New
	}
	if c.TimestampHeader != "" {
		at, _ := one(r.Header, c.TimestampHeader)
		s.message = append(s.message, []byte(at+c.Separator))
		s.setTime(at)
	}
	s.message = append(s.message, r.Body)
	if mac, ok := strings.CutPrefix(value, c.Prefix); !ok {
		s.macs = nil
	} else if c.Encoding == "hex" {
		s.macs = decodeHex(mac)
	} else {
		s.macs = decodeBase64(mac)
	}
	return s, true
}

// setTime reads seconds since 1970, in digits only: what was signed must have one meaning.
func (s *signature) setTime(text string) {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n <= 0 || strconv.FormatInt(n, 10) != text {
		s.stale = true
		return
	}
	s.time = time.Unix(n, 0)
}

// one returns the only value of a header. Of two, a proxy and we might each believe another one.
func one(h http.Header, name string) (string, bool) {
	values := h.Values(name)
	if len(values) == 0 {
		return "", false
	}
	if len(values) > 1 {
		return "", true
	}
	return values[0], true
}

func decodeHex(text string) [][]byte {
	if b, err := hex.DecodeString(text); err == nil && len(b) > 0 {
		return [][]byte{b}
	}
	return nil
}

func decodeBase64(text string) [][]byte {
	if b, err := base64.StdEncoding.Strict().DecodeString(text); err == nil && len(b) > 0 {
		return [][]byte{b}
	}
	return nil
}
