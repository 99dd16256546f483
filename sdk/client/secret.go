package client

import (
	"context"
	"net/http"
	"time"
)

// Secret is a secret of the account, without its value: the server never gives one back.
type Secret struct {
	Name      string    `json:"name"`
	CreatedAt time.Time `json:"created_at"`
	UpdatedAt time.Time `json:"updated_at"`
	UpdatedBy string    `json:"updated_by"`

	Response Response `json:"-"`
}

// Raw returns the object as the server sent it, with members that this version of the package does not know.
func (s *Secret) Raw() []byte { return s.Response.Body }

// SetSecret sets a secret: 8 bytes to 16 KiB of text under a name of upper-case letters, digits and underscores.
func (c *Client) SetSecret(ctx context.Context, name, value string) (*Secret, error) {
	r := request{method: http.MethodPut, path: []string{"v1", "secrets", name}, body: map[string]string{"value": value}}
	return one(ctx, c, r, func(s *Secret, res Response) { s.Response = res })
}

// Secrets lists the account's secrets by name.
func (c *Client) Secrets(ctx context.Context) (*List[Secret], error) {
	return list[Secret](ctx, c, nil, "v1", "secrets")
}

// DeleteSecret removes a secret.
func (c *Client) DeleteSecret(ctx context.Context, name string) (Response, error) {
	return c.do(ctx, request{method: http.MethodDelete, path: []string{"v1", "secrets", name}}, nil)
}
