package wasm

import (
	"context"
	"errors"
	"slices"
)

// Client sends requests of the server itself, such as callbacks, under the same rules as those of guests: to granted origins only, to one address that
// was resolved once and checked, without proxies and redirects, within the same bounds of size and time. It is safe for concurrent use.
type Client struct {
	egress *egress
	rules  []HTTPRule
}

// NewClient returns a Client that may send what rules allow; without rules, nothing.
func NewClient(c EgressConfig, rules []HTTPRule) *Client {
	return &Client{egress: newEgress(c), rules: rules}
}

// Check refuses a request that no rule allows, or whose URL is not one. It does not resolve the host. Its error is fit to be shown to whoever chose
// the URL.
func (c *Client) Check(method, url string) error {
	t, err := parseTarget(url)
	switch {
	case err != nil:
		return err
	case !slices.ContainsFunc(c.rules, func(r HTTPRule) bool { return r.allows(method, t) }):
		return errors.New("this server may not send requests to " + origin(t.scheme, t.host, t.port))
	}
	return nil
}

// Send sends a request and returns the status of the answer, whose body is read and dropped. Its error is fit to be shown to whoever chose the
// URL; it names the origin and nothing of the server's network.
func (c *Client) Send(ctx context.Context, method, url string, header [][2]string, body []byte) (status int, err error) {
	t, err := parseTarget(url)
	if err != nil {
		return 0, err
	}
	in, err := c.egress.do(ctx, outgoing{run: origin(t.scheme, t.host, t.port), rules: c.rules, method: method, url: url, header: header, body: body})
	var known *egressError
	switch {
	case err == nil:
		return in.status, nil
	case errors.As(err, &known):
		return 0, errors.New(known.text)
	}
	return 0, errors.New(origin(t.scheme, t.host, t.port) + " did not answer in time")
}
