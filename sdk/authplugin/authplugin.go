package authplugin

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"time"
)

// Authenticator is a plugin. Authenticate is called from many goroutines at once and must honour ctx, which carries the server's
// deadline (500 ms unless configured otherwise).
type Authenticator interface {
	Authenticate(ctx context.Context, r *Request) (*Principal, error)
}

// Configurer is implemented by a plugin that has a configuration. Configure is called once, before the first Authenticate, with one
// JSON object (an empty one when nothing is configured). An error stops the process, and the operator reads it; errors.Join of
// several is shown as several problems.
type Configurer interface {
	Configure(ctx context.Context, config []byte) error
}

// Validator is implemented by a plugin that can check a configuration without acting on it: "keyfire plugin check" calls it. It must
// connect to nothing. A Configurer that is no Validator is checked as far as being JSON.
type Validator interface {
	Validate(config []byte) error
}

// Versioner is implemented by a plugin that states its version itself. Otherwise it is the version of the main module, as the Go
// toolchain recorded it.
type Versioner interface {
	Version() string
}

// ErrNotMine is the answer to a credential that is not of this plugin's kind. Another backend may know it.
var ErrNotMine = errors.New("credential is not for this plugin")

// Denied is the answer to a credential of this plugin's kind that is not good. Make one with Deny.
type Denied struct {
	// Reason is read by the caller: it must not help a guesser, and holds at most 255 printable characters.
	Reason string
	// TTL is for how long the server may repeat the refusal for an identical request without asking again: 0 to 60 seconds, in whole
	// seconds. It spares a directory that locks accounts after some failures. Principals are never cached.
	TTL time.Duration
}

// Error returns the reason.
func (d *Denied) Error() string { return "denied: " + d.Reason }

// Deny refuses a credential for good; no later backend is asked about it.
func Deny(reason string) *Denied { return &Denied{Reason: reason} }

// Principal is who a credential belongs to. The server's configuration limits the accounts and scopes a plugin may name, and an answer
// beyond that is refused as a whole.
type Principal struct {
	Subject    string            // stable name within this plugin, 1 to 255 printable characters; the server puts the plugin's name before it
	Account    string            // may be empty when the plugin is granted a single account
	Scopes     []string          // such as "run:*" or "run:workflow/wf_01...", at most 64
	Attributes map[string]string // for the run and the audit log, at most 32; they grant nothing
	ExpiresAt  time.Time         // when the proof ends; zero when it has no end of its own
}

// Schemes that are not those of an Authorization header.
const (
	SchemeAPIKey = "x-api-key" // the credential was in the X-API-Key header
	SchemeHeader = "header"    // the request's headers are the credential, as in signature schemes
)

// Request is a credential and what the server tells about the request it came with. It holds a secret: it prints and logs without
// the credential, the headers and the body.
type Request struct {
	Scheme      string      // Authorization scheme in lower case ("bearer", "basic"), or a Scheme constant
	Credential  string      // without its scheme; empty when Scheme is SchemeHeader
	Source      netip.Addr  // address of the caller; invalid when unknown
	Method      string      // of the HTTP request
	Path        string      // without the query
	Header      http.Header // the headers the server's configuration selects for this plugin
	Workflow    string      // the workflow reference the request names; empty when it names none
	Body        []byte      // the raw body, if the server's configuration says body: true
	TraceParent string      // W3C traceparent of the server's span, to continue the trace; empty when there is none
}

// Basic returns the user name and password of a credential with the scheme "basic". ok is false when it is not one.
func (r *Request) Basic() (user, password string, ok bool) {
	if r.Scheme != "basic" {
		return "", "", false
	}
	text, err := base64.StdEncoding.DecodeString(r.Credential)
	if err != nil {
		return "", "", false
	}
	return strings.Cut(string(text), ":")
}

// Format implements fmt.Formatter for every verb, so that printing a request in any way shows nothing secret.
func (r Request) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "%s %s scheme=%s source=%s workflow=%s credential=[redacted]", r.Method, r.Path, r.Scheme, r.Source, r.Workflow)
}

// LogValue implements slog.LogValuer and shows nothing secret.
func (r Request) LogValue() slog.Value {
	return slog.GroupValue(slog.String("method", r.Method), slog.String("path", r.Path), slog.String("scheme", r.Scheme),
		slog.String("source", r.Source.String()), slog.String("workflow", r.Workflow))
}

// DecodeConfig decodes a configuration into what v points to, and refuses fields that v does not have: a misspelt setting must not
// pass for its default.
func DecodeConfig(config []byte, v any) error {
	if !bytes.HasPrefix(bytes.TrimLeft(config, " \t\r\n"), []byte("{")) {
		return errors.New("config: must be one JSON object")
	}
	d := json.NewDecoder(bytes.NewReader(config))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("config: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("config: more than one JSON value")
	}
	return nil
}
