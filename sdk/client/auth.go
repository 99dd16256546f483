package client

import (
	"context"
	"net/http"
	"time"
)

// AuthCheck asks how a request with a key would be judged. All of it may be left out.
type AuthCheck struct {
	Key      *string `json:"key,omitempty"`      // nil is the client's own; an empty one is a caller who sends none, and not valid
	Workflow string  `json:"workflow,omitempty"` // id, slug or alias; "" is the one that the key is made for
	Place    string  `json:"place,omitempty"`    // bearer, x-api-key, x-bifrost-key or query
	SourceIP string  `json:"source_ip,omitempty"`
	Origin   string  `json:"origin,omitempty"` // of a web page
}

// AuthResult is the answer.
type AuthResult struct {
	Valid   bool         `json:"valid"`
	Code    string       `json:"code"`             // VALID, NOT_FOUND, DISABLED, EXPIRED, INSUFFICIENT_PERMISSIONS, RATE_LIMITED or USAGE_EXCEEDED
	Reason  string       `json:"reason,omitempty"` // the code of the refusal
	Status  int          `json:"status,omitempty"`
	Detail  string       `json:"detail,omitempty"`
	KeyID   string       `json:"key_id,omitempty"`
	Verdict *AuthVerdict `json:"verdict"`

	Response Response `json:"-"`
}

// Raw returns the object as the server sent it, with members that this version of the package does not know.
func (r *AuthResult) Raw() []byte { return r.Response.Body }

// AuthVerdict is how a request was judged, check by check.
type AuthVerdict struct {
	RequestID string     `json:"request_id"`
	TraceID   string     `json:"trace_id,omitempty"`
	Time      time.Time  `json:"time"`
	SourceIP  string     `json:"source_ip,omitempty"`
	UserAgent string     `json:"user_agent,omitempty"`
	Route     string     `json:"route,omitempty"`
	Principal string     `json:"principal,omitempty"`
	KeyID     string     `json:"key_id,omitempty"`
	Workflow  string     `json:"workflow,omitempty"`
	Code      string     `json:"code,omitempty"` // of the refusal
	Message   string     `json:"message,omitempty"`
	Chain     []AuthStep `json:"chain"`

	Response Response `json:"-"`
}

// Raw returns the object as the server sent it, with members that this version of the package does not know.
func (v *AuthVerdict) Raw() []byte { return v.Response.Body }

// AuthStep is one check.
type AuthStep struct {
	Check    string `json:"check"`
	Outcome  string `json:"outcome"` // pass, fail, skip, not_reached
	Detail   string `json:"detail,omitempty"`
	Backends []struct {
		Backend string `json:"backend"`
		Verdict string `json:"verdict"` // allow, deny, abstain, error
		Code    string `json:"code,omitempty"`
	} `json:"backends,omitempty"`
	Limits []struct {
		Name      string `json:"name"`
		Kind      string `json:"kind"`
		Limit     int64  `json:"limit"`
		Per       string `json:"per,omitempty"`
		Remaining int64  `json:"remaining"`
		ResetMS   int64  `json:"reset_ms,omitempty"`
	} `json:"limits,omitempty"`
}

// CheckAuth judges a key and a workflow as a trigger would. Nothing is started, charged or recorded.
func (c *Client) CheckAuth(ctx context.Context, q AuthCheck) (*AuthResult, error) {
	return one(ctx, c, request{method: http.MethodPost, path: []string{"v1", "auth", "check"}, body: q}, func(v *AuthResult, res Response) { v.Response = res })
}

// ExplainAuth tells why the request with this id was refused.
func (c *Client) ExplainAuth(ctx context.Context, requestID string) (*AuthVerdict, error) {
	return one(ctx, c, request{method: http.MethodGet, path: []string{"v1", "auth", "explain", requestID}}, func(v *AuthVerdict, res Response) { v.Response = res })
}
