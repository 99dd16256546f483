package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/keyfire/keyfire/plugins/internal/upstream"
	"github.com/keyfire/keyfire/sdk/authplugin"
)

// Bounds of an authorization server's answer.
const (
	maxAnswer = 64 << 10          // bytes
	maxUnix   = 253_402_300_799.0 // the end of the year 9999
)

// config is the plugin's configuration.
type config struct {
	URL      string `json:"url"` // the introspection endpoint
	ClientID string `json:"client_id"`
	// The client's secret, or a file that holds it.
	ClientSecret     string `json:"client_secret"`
	ClientSecretFile string `json:"client_secret_file"`
	CAFile           string `json:"ca_file"` // of the endpoint's certificate; empty: the system's
	// Issuer and Audiences, when set, are what the answer must say in "iss", and one of "aud".
	Issuer    string   `json:"issuer"`
	Audiences []string `json:"audiences"`
	// Scopes maps a token's scope to Keyfire's. A token's scope that is not here gives nothing.
	Scopes map[string][]string `json:"scopes"`
	// Account is the account of all tokens; AccountClaim is the member of the answer that names it instead.
	Account      string `json:"account"`
	AccountClaim string `json:"account_claim"`
	// SubjectClaim is the member that names the subject, "sub" when empty.
	SubjectClaim string `json:"subject_claim"`
	// InactiveTTL is for how many seconds a token that is not active may be refused without asking again, 0 to 60.
	InactiveTTL int `json:"inactive_ttl_seconds"`
}

// backend asks an authorization server.
type backend struct {
	now func() time.Time

	config config
	client *http.Client
}

func newBackend() *backend { return &backend{now: time.Now} }

// Validate implements authplugin.Validator.
func (b *backend) Validate(raw []byte) error {
	_, err := parse(raw)
	return err
}

func parse(raw []byte) (config, error) {
	c := config{SubjectClaim: "sub"}
	if err := authplugin.DecodeConfig(raw, &c); err != nil {
		return c, err
	}
	var problems []error
	check := func(ok bool, text string) {
		if !ok {
			problems = append(problems, errors.New(text))
		}
	}
	if err := upstream.CheckURL(c.URL); err != nil {
		problems = append(problems, fmt.Errorf("url: %w", err))
	}
	check(c.ClientID != "", "client_id: the authorization server must know who asks, or anybody could try tokens out there")
	check((c.ClientSecret == "") != (c.ClientSecretFile == ""), "set one of client_secret and client_secret_file")
	check((c.Account == "") || (c.AccountClaim == ""), "set at most one of account and account_claim")
	check(c.SubjectClaim != "", "subject_claim: must not be empty")
	check(c.InactiveTTL >= 0 && c.InactiveTTL <= 60, "inactive_ttl_seconds: 0 to 60")
	return c, errors.Join(problems...)
}

// Configure implements authplugin.Configurer.
func (b *backend) Configure(_ context.Context, raw []byte) error {
	c, err := parse(raw)
	if err != nil {
		return err
	}
	if c.ClientSecretFile != "" {
		secret, err := os.ReadFile(c.ClientSecretFile)
		if err != nil {
			return fmt.Errorf("client_secret_file: %w", err)
		}
		if c.ClientSecret = strings.TrimSpace(string(secret)); c.ClientSecret == "" {
			return errors.New("client_secret_file: is empty")
		}
	}
	client, err := upstream.Client(c.CAFile)
	if err != nil {
		return err
	}
	b.config, b.client = c, client
	return nil
}

// Authenticate implements authplugin.Authenticator.
func (b *backend) Authenticate(ctx context.Context, r *authplugin.Request) (*authplugin.Principal, error) {
	if r.Scheme != "bearer" {
		return nil, authplugin.ErrNotMine
	}
	inactive := &authplugin.Denied{Reason: "the token is not active", TTL: time.Duration(b.config.InactiveTTL) * time.Second}
	if !plausible(r.Credential) {
		return nil, inactive
	}
	answer, err := b.introspect(ctx, r)
	if err != nil {
		return nil, err
	}
	// Without it the answer is no answer (RFC 7662, 2.2), such as an error that came with status 200, and says nothing about the token.
	active, ok := answer["active"].(bool)
	if !ok {
		return nil, errors.New("introspection answer does not say whether the token is active, true or false")
	}
	if !active {
		return nil, inactive
	}
	return b.principal(answer)
}

// plausible spares the authorization server what cannot be a token (RFC 6750, b68token).
func plausible(token string) bool {
	if token == "" || len(token) > 8<<10 {
		return false
	}
	return strings.IndexFunc(token, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("-._~+/=", r)
	}) < 0
}

func (b *backend) introspect(ctx context.Context, r *authplugin.Request) (map[string]any, error) {
	form := url.Values{"token": {r.Credential}, "token_type_hint": {"access_token"}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, b.config.URL, strings.NewReader(form.Encode()))
	if err != nil {
		return nil, errors.New("introspection request could not be made")
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Accept", "application/json")
	if r.TraceParent != "" {
		req.Header.Set("Traceparent", r.TraceParent)
	}
	req.SetBasicAuth(url.QueryEscape(b.config.ClientID), url.QueryEscape(b.config.ClientSecret)) // encoded as RFC 6749, 2.3.1, wants it
	res, err := b.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("introspection: %w", err)
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("introspection: %w", err)
	case res.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("introspection endpoint answered %s", res.Status)
	case len(body) > maxAnswer:
		return nil, fmt.Errorf("introspection answer is longer than %d bytes", maxAnswer)
	}
	var answer map[string]any
	if err := json.Unmarshal(body, &answer); err != nil {
		return nil, errors.New("introspection answer is not a JSON object")
	}
	return answer, nil
}

// principal makes a principal of an answer that says the token is active, after checking what such answers may leave to us.
func (b *backend) principal(answer map[string]any) (*authplugin.Principal, error) {
	now := b.now()
	expires, err1 := unix(answer, "exp")
	from, err2 := unix(answer, "nbf")
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	switch {
	case answer["exp"] != nil && !now.Before(expires):
		return nil, authplugin.Deny("the token is not active")
	case from.After(now):
		return nil, authplugin.Deny("the token is not active")
	case b.config.Issuer != "" && text(answer["iss"]) != b.config.Issuer:
		return nil, authplugin.Deny("the token was not issued for this server")
	case len(b.config.Audiences) > 0 && !slices.ContainsFunc(audiences(answer["aud"]), func(a string) bool { return slices.Contains(b.config.Audiences, a) }):
		return nil, authplugin.Deny("the token was not issued for this server")
	}
	p := &authplugin.Principal{Subject: text(answer[b.config.SubjectClaim]), Account: b.config.Account, ExpiresAt: expires, Attributes: make(map[string]string)}
	if p.Subject == "" {
		return nil, fmt.Errorf("introspection answer has no %s", b.config.SubjectClaim)
	}
	if b.config.AccountClaim != "" {
		if p.Account = text(answer[b.config.AccountClaim]); p.Account == "" {
			return nil, fmt.Errorf("introspection answer has no %s", b.config.AccountClaim)
		}
	}
	for scope := range strings.FieldsSeq(text(answer["scope"])) {
		p.Scopes = append(p.Scopes, b.config.Scopes[scope]...)
	}
	slices.Sort(p.Scopes)
	p.Scopes = slices.Compact(p.Scopes)
	for _, name := range []string{"client_id", "username"} {
		if v := text(answer[name]); v != "" {
			p.Attributes[name] = v
		}
	}
	return p, nil
}

func text(v any) string {
	s, _ := v.(string)
	return s
}

// unix reads a member that is a number of seconds since 1970; without it, the time is zero. What is there and is no such number is an error: a
// token must not live for ever because its end cannot be read.
func unix(answer map[string]any, name string) (time.Time, error) {
	v, ok := answer[name]
	if !ok || v == nil {
		return time.Time{}, nil
	}
	n, ok := v.(float64)
	if !ok || n < 0 || n > maxUnix {
		return time.Time{}, fmt.Errorf("introspection answer: %s is not a number of seconds since 1970", name)
	}
	return time.Unix(int64(n), 0), nil
}

// audiences reads "aud", which is text or a list of it.
func audiences(v any) []string {
	if list, ok := v.([]any); ok {
		all := make([]string, 0, len(list))
		for _, e := range list {
			all = append(all, text(e))
		}
		return all
	}
	return []string{text(v)}
}
