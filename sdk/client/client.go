package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"time"
)

// maxResponse bounds how much of an answer is read. Runs carry at most a few megabytes.
const maxResponse = 64 << 20

// Config says which server to talk to and as whom.
type Config struct {
	// URL is the server's base, such as "http://127.0.0.1:8080". A path in it is kept. Required; http or https.
	URL string
	// Key is sent as "Authorization: Bearer". Empty sends no credential, which only public workflows accept.
	Key string `json:"-"`
	// Account is the account to act for, by id or name, for credentials of a superuser; empty is the credential's own.
	Account string
	// HTTPClient sends the requests. Nil is a client without an overall timeout: a synchronous trigger may take as long as the
	// workflow's own timeout, so bound calls by their context. Redirects are not followed either way, because a key must not travel to
	// wherever a server points.
	HTTPClient *http.Client
	// UserAgent names the program; empty is "keyfire-go".
	UserAgent string
}

// Format implements fmt.Formatter: a program that logs its configuration does not show the key.
func (c Config) Format(f fmt.State, _ rune) {
	key := "none"
	if c.Key != "" {
		key = "[redacted]"
	}
	_, _ = fmt.Fprintf(f, "{URL:%s Key:%s Account:%s UserAgent:%s}", c.URL, key, c.Account, c.UserAgent)
}

// Client calls one server. It is safe for concurrent use.
type Client struct {
	base    *url.URL
	key     *string // behind a pointer, of which fmt shows the address
	account string
	agent   string
	http    *http.Client
}

// New returns a Client. It does not contact the server.
func New(cfg Config) (*Client, error) {
	base, err := url.Parse(cfg.URL)
	if err != nil || base.Scheme != "http" && base.Scheme != "https" || base.Host == "" {
		return nil, fmt.Errorf("client: URL %q: want http://host:port or https://host", cfg.URL)
	}
	if base.User != nil || base.RawQuery != "" || base.Fragment != "" {
		return nil, errors.New("client: URL must have no user, query or fragment; the key goes into Config.Key")
	}
	hc := http.Client{}
	if cfg.HTTPClient != nil {
		hc = *cfg.HTTPClient
	}
	hc.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	c := &Client{base: base, key: &cfg.Key, account: cfg.Account, agent: cfg.UserAgent, http: &hc}
	if c.agent == "" {
		c.agent = "keyfire-go"
	}
	return c, nil
}

// Response is the answer an object was decoded from.
type Response struct {
	Status    int
	Header    http.Header
	Body      []byte // as sent, with members that this version of the package does not know
	RequestID string // names the request in the server's log and audit trail
}

// request is one call of the API. Path elements are escaped one by one, since a slug may contain "/".
type request struct {
	method string
	path   []string
	query  url.Values
	header http.Header
	body   any       // encoded as JSON unless raw is set
	raw    io.Reader // sent as it is, with header's Content-Type
}

// do sends r and decodes a 2xx answer into out, unless out is nil.
func (c *Client) do(ctx context.Context, r request, out any) (Response, error) {
	body := r.raw
	header := r.header.Clone()
	if header == nil {
		header = http.Header{}
	}
	if body == nil && r.body != nil {
		b, err := json.Marshal(r.body)
		if err != nil {
			return Response{}, fmt.Errorf("client: encode request: %w", err)
		}
		body = bytes.NewReader(b)
		header.Set("Content-Type", "application/json")
	}
	req, err := c.newRequest(ctx, r.method, r.path, body)
	if err != nil {
		return Response{}, err
	}
	req.URL.RawQuery = r.query.Encode()
	maps.Copy(req.Header, header)
	req.Header.Set("Accept", "application/json, application/problem+json")
	resp, err := c.http.Do(req)
	if err != nil {
		return Response{}, err
	}
	defer resp.Body.Close()
	answer := Response{Status: resp.StatusCode, Header: resp.Header, RequestID: resp.Header.Get("Keyfire-Request-Id")}
	answer.Body, err = io.ReadAll(io.LimitReader(resp.Body, maxResponse+1))
	switch {
	case err != nil:
		return answer, fmt.Errorf("client: read answer: %w", err)
	case len(answer.Body) > maxResponse:
		return answer, fmt.Errorf("client: answer exceeds %d bytes", maxResponse)
	case answer.Status < 200 || answer.Status > 299:
		return answer, newError(answer)
	case out == nil:
		return answer, nil
	}
	if err := json.Unmarshal(answer.Body, out); err != nil {
		return answer, fmt.Errorf("client: %s %s answered %d with something that is not the API's JSON (is %s a Keyfire server?): %w",
			r.method, req.URL.Path, answer.Status, c.base.Host, err)
	}
	return answer, nil
}

// newRequest returns a request that says who asks, and for which account.
func (c *Client) newRequest(ctx context.Context, method string, path []string, body io.Reader) (*http.Request, error) {
	escaped, err := escape(path)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base.JoinPath(escaped...).String(), body)
	if err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	req.Header.Set("User-Agent", c.agent)
	if *c.key != "" {
		req.Header.Set("Authorization", "Bearer "+*c.key)
	}
	if c.account != "" {
		req.Header.Set("Keyfire-Account", c.account)
	}
	return req, nil
}

// escape makes each element one segment of a path. Elements that a path would swallow are refused: they would address another
// object than the one they name.
func escape(elements []string) ([]string, error) {
	escaped := make([]string, len(elements))
	for i, e := range elements {
		if e == "" || e == "." || e == ".." {
			return nil, fmt.Errorf("client: %q cannot name an object", e)
		}
		escaped[i] = url.PathEscape(e)
	}
	return escaped, nil
}

// List is one page of a list, newest first.
type List[T any] struct {
	Data       []T    `json:"data"`
	HasMore    bool   `json:"has_more"`
	NextCursor string `json:"next_cursor"`

	Response Response `json:"-"`
}

// Raw returns the list as the server sent it, with members that this version of the package does not know.
func (l *List[T]) Raw() []byte { return l.Response.Body }

// Page asks for one page of a list. The zero value is the first page of the server's usual length.
type Page struct {
	Limit  int    // 1..200
	Cursor string // List.NextCursor of the page before
}

func (p Page) values() url.Values {
	v := url.Values{}
	if p.Limit > 0 {
		v.Set("limit", fmt.Sprint(p.Limit))
	}
	set(v, "cursor", p.Cursor)
	return v
}

func set(v url.Values, name, value string) {
	if value != "" {
		v.Set(name, value)
	}
}

// one sends r and decodes the answer into an object, whose Response keep sets.
func one[T any](ctx context.Context, c *Client, r request, keep func(*T, Response)) (*T, error) {
	var v T
	res, err := c.do(ctx, r, &v)
	if err != nil {
		return nil, err
	}
	keep(&v, res)
	return &v, nil
}

// list fetches one page.
func list[T any](ctx context.Context, c *Client, query url.Values, path ...string) (*List[T], error) {
	return one(ctx, c, request{method: http.MethodGet, path: path, query: query}, func(l *List[T], res Response) { l.Response = res })
}

// Ready reports whether the server takes requests: nil, or an *Error with status 503, or why it cannot be reached.
func (c *Client) Ready(ctx context.Context) error {
	_, err := c.do(ctx, request{method: http.MethodGet, path: []string{"readyz"}}, nil)
	return err
}

// formatTime writes t as the API reads it.
func formatTime(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339Nano)
}
