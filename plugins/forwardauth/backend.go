package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/textproto"
	"slices"
	"strings"

	"github.com/keyfire/keyfire/plugins/internal/upstream"
	"github.com/keyfire/keyfire/sdk/authplugin"
)

// maxBody is how much of an answer's body is read, so that the connection can be used again. It is not looked at.
const maxBody = 16 << 10

// config is the plugin's configuration.
type config struct {
	URL    string `json:"url"`     // asked for every credential
	CAFile string `json:"ca_file"` // of the service's certificate; empty: the system's
	// Headers are request headers passed on to the service, among those the server shows this plugin.
	Headers []string `json:"headers"`
	// Body passes the body on, with POST. Without it the service is asked with GET.
	Body bool `json:"body"`
	// SubjectHeader is the header of the answer that names the subject, "X-Auth-Subject" when empty.
	SubjectHeader string `json:"subject_header"`
	// AccountHeader and ScopesHeader are headers of the answer with the account, and with scopes separated by spaces. Account and
	// Scopes are what holds without them.
	AccountHeader string   `json:"account_header"`
	ScopesHeader  string   `json:"scopes_header"`
	Account       string   `json:"account"`
	Scopes        []string `json:"scopes"`
	// Attributes maps a name to the header of the answer that has its value.
	Attributes map[string]string `json:"attributes"`
}

// own are the headers of a question that the plugin sets itself. A caller's must not pass for them, even where there is nothing to say.
var own = []string{
	"Authorization", "X-Api-Key", "Host", "Connection", "Content-Length", "Transfer-Encoding",
	"X-Forwarded-Method", "X-Forwarded-Uri", "X-Forwarded-For", "X-Keyfire-Workflow", "Traceparent",
}

// backend asks an HTTP service.
type backend struct {
	config config
	client *http.Client
}

func newBackend() *backend { return &backend{} }

// Validate implements authplugin.Validator.
func (b *backend) Validate(raw []byte) error {
	_, err := parse(raw)
	return err
}

func parse(raw []byte) (config, error) {
	c := config{SubjectHeader: "X-Auth-Subject"}
	if err := authplugin.DecodeConfig(raw, &c); err != nil {
		return c, err
	}
	var problems []error
	if err := upstream.CheckURL(c.URL); err != nil {
		problems = append(problems, fmt.Errorf("url: %w", err))
	}
	if c.SubjectHeader == "" {
		problems = append(problems, errors.New("subject_header: must not be empty"))
	}
	if c.Account != "" && c.AccountHeader != "" {
		problems = append(problems, errors.New("set at most one of account and account_header"))
	}
	for _, h := range c.Headers {
		if slices.Contains(own, textproto.CanonicalMIMEHeaderKey(h)) {
			problems = append(problems, fmt.Errorf("headers: %s is set by the plugin itself", h))
		}
	}
	return c, errors.Join(problems...)
}

// Configure implements authplugin.Configurer.
func (b *backend) Configure(_ context.Context, raw []byte) error {
	c, err := parse(raw)
	if err != nil {
		return err
	}
	client, err := upstream.Client(c.CAFile)
	if err != nil {
		return err
	}
	b.config, b.client = c, client
	return nil
}

// Authenticate implements authplugin.Authenticator. 2xx admits, 401 and 403 refuse, 404 says that the credential is somebody else's, and
// anything else, a redirect to a login page included, is no decision.
func (b *backend) Authenticate(ctx context.Context, r *authplugin.Request) (*authplugin.Principal, error) {
	req, err := b.request(ctx, r)
	if err != nil {
		return nil, err
	}
	res, err := b.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("auth service: %w", err)
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, maxBody))
	_ = res.Body.Close()
	switch {
	case res.StatusCode >= 200 && res.StatusCode <= 299:
		return b.principal(res.Header)
	case res.StatusCode == http.StatusUnauthorized, res.StatusCode == http.StatusForbidden:
		return nil, authplugin.Deny("the auth service refused it")
	case res.StatusCode == http.StatusNotFound:
		return nil, authplugin.ErrNotMine
	}
	return nil, fmt.Errorf("auth service answered %s", res.Status)
}

// request asks about r: its credential where the caller had it, what it is for in the X-Forwarded headers that proxies use.
func (b *backend) request(ctx context.Context, r *authplugin.Request) (*http.Request, error) {
	method, body := http.MethodGet, io.Reader(http.NoBody)
	if b.config.Body {
		method, body = http.MethodPost, bytes.NewReader(r.Body)
	}
	req, err := http.NewRequestWithContext(ctx, method, b.config.URL, body)
	if err != nil {
		return nil, errors.New("request to the auth service could not be made")
	}
	for _, name := range b.config.Headers {
		for _, v := range r.Header.Values(name) {
			req.Header.Add(name, v)
		}
	}
	switch r.Scheme {
	case authplugin.SchemeHeader:
	case authplugin.SchemeAPIKey:
		req.Header.Set("X-Api-Key", r.Credential)
	default:
		// The scheme is told in lower case, which RFC 9110 allows and many a service does not expect.
		req.Header.Set("Authorization", strings.ToUpper(r.Scheme[:min(1, len(r.Scheme))])+r.Scheme[min(1, len(r.Scheme)):]+" "+r.Credential)
	}
	for name, value := range map[string]string{
		"X-Forwarded-Method": r.Method, "X-Forwarded-Uri": r.Path, "X-Keyfire-Workflow": r.Workflow, "Traceparent": r.TraceParent,
	} {
		if value != "" {
			req.Header.Set(name, value)
		}
	}
	if r.Source.IsValid() {
		req.Header.Set("X-Forwarded-For", r.Source.String())
	}
	for _, values := range req.Header {
		for _, v := range values {
			if len(v) > 16<<10 || strings.IndexFunc(v, func(c rune) bool { return c < ' ' && c != '\t' || c == 0x7f }) >= 0 {
				return nil, authplugin.Deny("the credential is malformed")
			}
		}
	}
	return req, nil
}

func (b *backend) principal(h http.Header) (*authplugin.Principal, error) {
	// Of two, one may be the caller's, sent back by the service or by what is in front of it.
	for _, name := range []string{b.config.SubjectHeader, b.config.AccountHeader, b.config.ScopesHeader} {
		if name != "" && len(h.Values(name)) > 1 {
			return nil, fmt.Errorf("auth service set %s more than once", name)
		}
	}
	p := &authplugin.Principal{
		Subject: h.Get(b.config.SubjectHeader), Account: b.config.Account, Scopes: b.config.Scopes, Attributes: make(map[string]string),
	}
	if p.Subject == "" {
		return nil, fmt.Errorf("auth service admitted somebody without saying whom; it must set %s", b.config.SubjectHeader)
	}
	if b.config.AccountHeader != "" {
		if p.Account = h.Get(b.config.AccountHeader); p.Account == "" {
			return nil, fmt.Errorf("auth service did not set %s", b.config.AccountHeader)
		}
	}
	if b.config.ScopesHeader != "" {
		p.Scopes = strings.Fields(h.Get(b.config.ScopesHeader))
	}
	for name, header := range b.config.Attributes {
		if v := h.Get(header); v != "" {
			p.Attributes[name] = v
		}
	}
	return p, nil
}
