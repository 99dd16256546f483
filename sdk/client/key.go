package client

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"time"
)

// NewKey says what a key shall be. Exactly one of Workflow, Global and Scopes says what a trigger key may run.
type NewKey struct {
	Type        string // "trigger" (the default) or "admin"
	Name        string // required
	Description string
	Workflow    string   // the one workflow it runs: id, slug or alias
	Global      bool     // every workflow that admits account-wide keys
	Scopes      []string // the general form, such as "run:workflow/greet" or "runs:read"
	ExpiresAt   time.Time
	NeverExpire bool  // ExpiresAt and NeverExpire both zero: the server's default, 90 days
	MaxRuns     int64 // 0 is no limit
	AllowQuery  bool  // also accept the key in a URL's query

	Refill            *Refill           // of MaxRuns; nil is never
	RateLimits        []RateLimit       // all of them hold
	MaxConcurrentRuns int64             // 0 is no limit
	AllowedIPs        []string          // networks it may be used from; empty is anywhere
	AllowedOrigins    []string          // web origins whose pages may use it
	Metadata          map[string]string // for you; the server makes nothing of it
}

// Refill gives a key back runs of its quota, at midnight in UTC.
type Refill struct {
	Every  string     `json:"every"` // "day", "week" or "month"
	Amount int64      `json:"amount,omitempty"`
	Day    int        `json:"day,omitempty"` // of the week, Monday being 1, or of the month
	NextAt *time.Time `json:"next_at,omitempty"`
}

// RateLimit is a token bucket: it holds Burst runs, or Limit if that is 0, and gains Limit runs in each Per.
type RateLimit struct {
	Name  string `json:"name,omitempty"`
	Limit int64  `json:"limit"`
	Per   string `json:"per"` // such as "1s", "1m" or "7d"
	Burst int64  `json:"burst,omitempty"`
}

// MarshalJSON writes the API's form, in which an expiry that is null means never and one that is absent means the default.
func (k NewKey) MarshalJSON() ([]byte, error) {
	m := map[string]any{"name": k.Name}
	for name, v := range map[string]string{"type": k.Type, "description": k.Description, "workflow": k.Workflow} {
		if v != "" {
			m[name] = v
		}
	}
	if k.Global {
		m["global"] = true
	}
	if len(k.Scopes) > 0 {
		m["scopes"] = k.Scopes
	}
	if k.NeverExpire {
		m["expires_at"] = nil
	} else if !k.ExpiresAt.IsZero() {
		m["expires_at"] = formatTime(k.ExpiresAt)
	}
	if k.MaxRuns != 0 {
		m["max_runs"] = k.MaxRuns
	}
	if k.AllowQuery {
		m["allow_query"] = true
	}
	if k.Refill != nil {
		m["refill"] = Refill{Every: k.Refill.Every, Amount: k.Refill.Amount, Day: k.Refill.Day}
	}
	if k.MaxConcurrentRuns != 0 {
		m["max_concurrent_runs"] = k.MaxConcurrentRuns
	}
	if len(k.RateLimits) > 0 {
		m["rate_limits"] = k.RateLimits
	}
	for name, v := range map[string][]string{"allowed_ips": k.AllowedIPs, "allowed_origins": k.AllowedOrigins} {
		if len(v) > 0 {
			m[name] = v
		}
	}
	if len(k.Metadata) > 0 {
		m["metadata"] = k.Metadata
	}
	return json.Marshal(m)
}

// Key is an API key without its text.
type Key struct {
	ID            string            `json:"id"`
	Type          string            `json:"type"` // "trigger" or "admin"
	Name          string            `json:"name"`
	Description   string            `json:"description"`
	Masked        string            `json:"masked"` // what may be shown of the text, such as "kft_4fJ2aP0cXz1B...9f3a"
	Scopes        []string          `json:"scopes"`
	Workflows     []string          `json:"workflows"` // names of the workflows in Scopes
	State         string            `json:"state"`     // active, expired, revoked, disabled, orphaned
	Imported      bool              `json:"imported"`  // its text was made by another product
	AllowQuery    bool              `json:"allow_query"`
	MaxRuns       *int64            `json:"max_runs"` // nil is no limit
	RunsUsed      int64             `json:"runs_used"`
	RunsRemaining *int64            `json:"runs_remaining"` // nil is no limit
	Refill        *Refill           `json:"refill"`
	RateLimits    []RateLimit       `json:"rate_limits"`
	MaxConcurrent *int64            `json:"max_concurrent_runs"` // nil is no limit
	AllowedIPs    []string          `json:"allowed_ips"`
	Origins       []string          `json:"allowed_origins"`
	Metadata      map[string]string `json:"metadata"`
	CreatedAt     time.Time         `json:"created_at"`
	CreatedBy     string            `json:"created_by"`
	ExpiresAt     *time.Time        `json:"expires_at"`   // nil is never
	LastUsedAt    *time.Time        `json:"last_used_at"` // up to a minute late
	DisabledAt    *time.Time        `json:"disabled_at"`
	DisabledBy    string            `json:"disabled_by,omitempty"`
	DisabledWhy   string            `json:"disabled_reason,omitempty"`
	RevokedAt     *time.Time        `json:"revoked_at"`
	RevokedBy     string            `json:"revoked_by,omitempty"`
	RevokedReason string            `json:"revoked_reason,omitempty"`

	// Secret is the key's text. Only CreateKey and RotateKey return it, and only once.
	Secret string `json:"secret,omitempty"`

	Response Response `json:"-"`
}

// Raw returns the object as the server sent it, with members that this version of the package does not know.
func (k *Key) Raw() []byte { return k.Response.Body }

// CreateKey makes a key. Its text is in Secret and cannot be had again.
func (c *Client) CreateKey(ctx context.Context, k NewKey) (*Key, error) {
	return c.oneKey(ctx, request{method: http.MethodPost, path: []string{"v1", "keys"}, body: k})
}

// Key returns one key.
func (c *Client) Key(ctx context.Context, id string) (*Key, error) {
	return c.oneKey(ctx, request{method: http.MethodGet, path: []string{"v1", "keys", id}})
}

func (c *Client) oneKey(ctx context.Context, r request) (*Key, error) {
	return one(ctx, c, r, func(v *Key, res Response) { v.Response = res })
}

// Keys lists the account's keys, newest first, expired and revoked ones included.
func (c *Client) Keys(ctx context.Context, p Page) (*List[Key], error) {
	return list[Key](ctx, c, p.values(), "v1", "keys")
}

// RevokeKey ends a key for good: once it has returned, no request that starts later is accepted with it. Revoking a revoked key
// is no error. The reason, which may be empty, is kept with the key and in the audit log. Runs already accepted finish unless CancelRuns is given.
func (c *Client) RevokeKey(ctx context.Context, id, reason string, also ...Also) (Response, error) {
	return c.do(ctx, request{method: http.MethodDelete, path: []string{"v1", "keys", id}, query: ending(reason, also)}, nil)
}

// Also is what else shall be done when something that starts runs is switched off or ended.
type Also string

// CancelRuns also cancels the runs it has started that have not ended. The header HeaderCancelledRuns of the answer says how many.
const CancelRuns Also = "cancel_runs"

// HeaderCancelledRuns says how many runs were cancelled, when CancelRuns asked for that.
const HeaderCancelledRuns = "Keyfire-Cancelled-Runs"

// ending is a reason, and what else shall be done, as a query.
func ending(reason string, also []Also) url.Values {
	v := url.Values{}
	set(v, "reason", reason)
	for _, a := range also {
		v.Set(string(a), "true")
	}
	return v
}

// because is a reason as a body.
func because(reason string) map[string]any {
	if reason == "" {
		return map[string]any{}
	}
	return map[string]any{"reason": reason}
}

// disabling is a reason, and what else shall be done, as a body.
func disabling(reason string, also []Also) map[string]any {
	body := because(reason)
	for _, a := range also {
		body[string(a)] = true
	}
	return body
}
