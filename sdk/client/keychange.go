package client

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// KeyChange says what shall change about a key, as members of PATCH /v1/keys/{key}: what is absent stays, and nil takes a limit away.
type KeyChange map[string]any

// UpdateKey changes a key. The change holds for every request that starts later.
func (c *Client) UpdateKey(ctx context.Context, id string, change KeyChange) (*Key, error) {
	return c.oneKey(ctx, request{method: http.MethodPatch, path: []string{"v1", "keys", id}, body: change})
}

// DisableKey switches a key off, from the next request on, until EnableKey. The reason may be empty. Runs already accepted finish unless CancelRuns is given.
func (c *Client) DisableKey(ctx context.Context, id, reason string, also ...Also) (*Key, error) {
	return c.oneKey(ctx, request{method: http.MethodPost, path: []string{"v1", "keys", id, "disable"}, body: disabling(reason, also)})
}

// EnableKey switches a key on again.
func (c *Client) EnableKey(ctx context.Context, id, reason string) (*Key, error) {
	return c.oneKey(ctx, request{method: http.MethodPost, path: []string{"v1", "keys", id, "enable"}, body: because(reason)})
}

// RotateKey gives a key a new text, in Secret, and lets the old one work for the overlap: a time such as "0s", "24h" or "7d", "" being 24 hours.
func (c *Client) RotateKey(ctx context.Context, id, overlap string) (*Key, error) {
	body := map[string]string{}
	if overlap != "" {
		body["overlap"] = overlap
	}
	return c.oneKey(ctx, request{method: http.MethodPost, path: []string{"v1", "keys", id, "rotate"}, body: body})
}

// ImportKey makes a key of a secret that another product has given out, by the SHA-256 of its text in hexadecimal. last4 may be empty.
func (c *Client) ImportKey(ctx context.Context, k NewKey, sha256hex, last4 string) (*Key, error) {
	raw, err := json.Marshal(k)
	if err != nil {
		return nil, err
	}
	body := map[string]json.RawMessage{}
	if err := json.Unmarshal(raw, &body); err != nil {
		return nil, err
	}
	for name, v := range map[string]string{"sha256": sha256hex, "last4": last4} {
		if v != "" {
			if body[name], err = json.Marshal(v); err != nil {
				return nil, err
			}
		}
	}
	return c.oneKey(ctx, request{method: http.MethodPost, path: []string{"v1", "keys", "import"}, body: body})
}

// KeyUsage says what a key was used for.
type KeyUsage struct {
	Key       string       `json:"key"`
	From      string       `json:"from"` // a day, in UTC
	To        string       `json:"to"`
	Runs      int64        `json:"runs"`
	Days      []UsageDay   `json:"days"` // with runs, the newest first
	Workflows []UsageCount `json:"workflows"`
	Sources   []UsageCount `json:"sources"`
	Agents    []UsageCount `json:"user_agents"`
	Secrets   []UsedSecret `json:"secrets"` // the newest first

	Response Response `json:"-"`
}

// Raw returns the object as the server sent it, with members that this version of the package does not know.
func (u *KeyUsage) Raw() []byte { return u.Response.Body }

// UsageDay is one day of a key's usage.
type UsageDay struct {
	Date      string       `json:"date"`
	Runs      int64        `json:"runs"`
	Workflows []UsageCount `json:"workflows"`
	Sources   []UsageCount `json:"sources"`
	Agents    []UsageCount `json:"user_agents"`
}

// UsageCount counts runs by one value: a workflow's id, an address, a user agent. "" is what had none, and all beyond the first hundred of a day.
type UsageCount struct {
	Value string `json:"value"`
	Name  string `json:"name,omitempty"` // of a workflow
	Runs  int64  `json:"runs"`
}

// UsedSecret is a text of a key, masked, and its last use.
type UsedSecret struct {
	Masked     string     `json:"masked"`
	CreatedAt  time.Time  `json:"created_at"`
	ExpiresAt  *time.Time `json:"expires_at"` // nil is with the key
	LastUsedAt *time.Time `json:"last_used_at"`
	LastSource string     `json:"last_source_ip,omitempty"`
	LastAgent  string     `json:"last_user_agent,omitempty"`
}

// KeyUsage returns what a key was used for in the last days, today included; 0 is 30.
func (c *Client) KeyUsage(ctx context.Context, id string, days int) (*KeyUsage, error) {
	v := url.Values{}
	if days > 0 {
		v.Set("days", strconv.Itoa(days))
	}
	return one(ctx, c, request{method: http.MethodGet, path: []string{"v1", "keys", id, "usage"}, query: v}, func(v *KeyUsage, res Response) { v.Response = res })
}
