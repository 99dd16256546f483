package server

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core/internal/admin"
)

// Key is an API key as the API shows it: everything but its text.
type Key struct {
	Object        string        `json:"object" enum:"key" doc:"What this is."`
	ID            string        `json:"id"`
	Type          string        `json:"type" enum:"trigger,admin" doc:"A trigger key starts runs; an admin key uses the control plane."`
	Name          string        `json:"name"`
	Description   string        `json:"description"`
	Masked        string        `json:"masked" doc:"What may be shown of the key's text." example:"kft_4fJ2aP0cXz1B...9f3a"`
	Scopes        []string      `json:"scopes" nullable:"false" doc:"What the key may do; workflows are named by id."`
	Workflows     []string      `json:"workflows" nullable:"false" doc:"Names of the workflows in scopes."`
	State         auth.KeyState `json:"state" enum:"active,expired,revoked,disabled,orphaned" doc:"orphaned: every workflow that the key is for is gone, so it can start nothing."`
	Imported      bool          `json:"imported" doc:"Whether its text was made by another product."`
	AllowQuery    bool          `json:"allow_query" doc:"Whether the key is also accepted in the URL."`
	MaxRuns       *int64        `json:"max_runs" doc:"How many runs it may start in all, or between two refills; null is no limit."`
	RunsUsed      int64         `json:"runs_used" doc:"How many it has started in its life."`
	RunsRemaining *int64        `json:"runs_remaining" doc:"How many it may still start; null is no limit."`
	Refill        *Refill       `json:"refill" doc:"null is never."`
	RateLimits    []RateLimit   `json:"rate_limits" nullable:"false"`
	MaxConcurrent *int64        `json:"max_concurrent_runs" doc:"How many of its runs may execute at once; null is no limit."`
	AllowedIPs    []string      `json:"allowed_ips" nullable:"false" doc:"Networks it may be used from; empty is anywhere."`
	Origins       []string      `json:"allowed_origins" nullable:"false" doc:"Web origins whose pages may use it; empty is none."`
	Metadata      Metadata      `json:"metadata" doc:"As it was given."`
	CreatedAt     time.Time     `json:"created_at"`
	CreatedBy     string        `json:"created_by"`
	UpdatedAt     time.Time     `json:"updated_at"`
	ExpiresAt     *time.Time    `json:"expires_at" doc:"null is never."`
	LastUsedAt    *time.Time    `json:"last_used_at" doc:"Up to a minute late."`
	DisabledAt    *time.Time    `json:"disabled_at"`
	DisabledBy    string        `json:"disabled_by,omitempty"`
	DisabledWhy   string        `json:"disabled_reason,omitempty"`
	RevokedAt     *time.Time    `json:"revoked_at"`
	RevokedBy     string        `json:"revoked_by,omitempty"`
	RevokedReason string        `json:"revoked_reason,omitempty"`
}

// CreatedKey is a new key, with its text.
type CreatedKey struct {
	Key
	Secret string `json:"secret" doc:"The key's text. It is shown this once and cannot be had again."`
}

func (s *Server) routeKeys() {
	tags := []string{"Keys"}
	register(s, huma.Operation{
		OperationID: "create-key", Method: http.MethodPost, Path: "/v1/keys", Tags: tags, DefaultStatus: http.StatusCreated,
		Summary:     "Create a key",
		Description: "Needs the scope keys:write. The secret is in this answer only. A credential cannot give a key more than it may do itself.",
	}, s.jsonBody(NewKey{}, true, map[string]any{
		"name": "CI pipeline", "scopes": []string{"run:workflow/greet"}, "expires_at": "2027-03-01T00:00:00Z", "max_runs": 500,
		"refill": map[string]any{"every": "month", "amount": 500, "day": 1}, "rate_limits": []any{map[string]any{"name": "burst", "limit": 10, "per": "1s"}},
		"max_concurrent_runs": 5, "allowed_ips": []string{"203.0.113.0/24"},
	}), s.createKey)
	register(s, huma.Operation{
		OperationID: "list-keys", Method: http.MethodGet, Path: "/v1/keys", Tags: tags,
		Summary: "List keys", Description: "Newest first, expired and revoked ones included. Needs the scope keys:read.",
	}, nil, s.listKeys)
	register(s, huma.Operation{
		OperationID: "get-key", Method: http.MethodGet, Path: "/v1/keys/{key}", Tags: tags,
		Summary: "Show a key", Description: "Needs the scope keys:read.",
	}, nil, s.getKey)
	register(s, huma.Operation{
		OperationID: "revoke-key", Method: http.MethodDelete, Path: "/v1/keys/{key}", Tags: tags, DefaultStatus: http.StatusNoContent,
		Summary: "Revoke a key",
		Description: "Once this has answered, no request that starts later is accepted with the key. Runs already accepted finish unless `cancel_runs` is true. " +
			"Revoking a revoked key changes nothing about it and is no error. Needs the scope keys:write.",
	}, nil, s.revokeKey)
	s.routeKeyChanges(tags)
}

// KeyParams names a key.
type KeyParams struct {
	Key string `path:"key" doc:"Id of the key." maxLength:"64"`
}

type createKeyAnswer struct {
	Location string `header:"Location" doc:"The key."`
	Body     CreatedKey
}

func (s *Server) createKey(ctx context.Context, req *request, _ *struct{}) (*createKeyAnswer, error) {
	var n NewKey
	if err := s.readObject(req, &n); err != nil {
		return nil, err
	}
	asked, err := n.admin()
	if err != nil {
		return nil, err
	}
	k, secret, err := s.Admin.CreateKey(ctx, req.actor(), asked)
	if err != nil {
		return nil, err
	}
	return &createKeyAnswer{
		Location: "/v1/keys/" + k.ID,
		Body:     CreatedKey{Key: s.madeKey(ctx, req, k), Secret: secret.Reveal()},
	}, nil
}

// madeKey shows a key that was made or changed just now. Its secret, or what was done, must not get lost for want of a workflow's name.
func (s *Server) madeKey(ctx context.Context, req *request, k *auth.Key) Key {
	names, err := s.Admin.ScopeNames(ctx, req.actor(), *k)
	if err != nil {
		s.Logger.WarnContext(ctx, "names of a key's workflows not found", "key_id", k.ID, "error", err)
	}
	return s.keyBody(k, names)
}

func (s *Server) listKeys(ctx context.Context, req *request, in *struct{ PageParams }) (*listAnswer[Key], error) {
	l, err := s.Admin.Keys(ctx, req.actor(), in.page())
	if err != nil {
		return nil, err
	}
	names, err := s.Admin.ScopeNames(ctx, req.actor(), l.Items...)
	if err != nil {
		return nil, err
	}
	return listOf(req, l, func(k *auth.Key) Key { return s.keyBody(k, names) }), nil
}

func (s *Server) getKey(ctx context.Context, req *request, in *KeyParams) (*answer[Key], error) {
	k, err := s.Admin.Key(ctx, req.actor(), in.Key)
	if err != nil {
		return nil, err
	}
	names, err := s.Admin.ScopeNames(ctx, req.actor(), *k)
	if err != nil {
		return nil, err
	}
	return &answer[Key]{Body: s.keyBody(k, names)}, nil
}

type revokeParams struct {
	KeyParams
	Reason     string `query:"reason" doc:"Kept with the key and in the audit log." maxLength:"1000"`
	CancelRuns bool   `query:"cancel_runs" doc:"Also cancel the runs it has started that have not ended; the header Keyfire-Cancelled-Runs says how many those were."`
}

func (s *Server) revokeKey(ctx context.Context, req *request, in *revokeParams) (*struct{}, error) {
	k, err := s.Admin.RevokeKey(ctx, req.actor(), in.Key, in.Reason)
	if err == nil && in.CancelRuns {
		err = cancelled(req)(s.Trigger.CancelKeyRuns(ctx, req.caller(), k.ID, because("key revoked", in.Reason)))
	}
	return nil, err
}

// keyBody shows a key; names are those of workflow ids.
func (s *Server) keyBody(k *auth.Key, names map[string]string) Key {
	now := s.Now()
	body := Key{
		Object: "key", ID: k.ID, Name: k.Name, Description: k.Description, Masked: k.Mask(), Scopes: k.Scopes, Workflows: []string{},
		State: k.State(now), Imported: k.Imported, AllowQuery: k.AllowQuery, RunsUsed: k.RunsUsed, RateLimits: limitBodies(k.RateLimits), AllowedIPs: []string{},
		Origins: k.AllowedOrigins, Metadata: k.Metadata,
		CreatedAt: k.CreatedAt.UTC(), CreatedBy: k.CreatedBy, UpdatedAt: k.UpdatedAt.UTC(), ExpiresAt: timeOrNull(k.ExpiresAt), LastUsedAt: timeOrNull(k.LastUsedAt),
		DisabledAt: timeOrNull(k.DisabledAt), DisabledBy: k.DisabledBy, DisabledWhy: k.DisabledWhy,
		RevokedAt: timeOrNull(k.RevokedAt), RevokedBy: k.RevokedBy, RevokedReason: k.RevokedWhy,
	}
	if body.State == auth.KeyActive && admin.Orphaned(k, names) {
		body.State = auth.KeyOrphaned
	}
	for name, t := range keyTypes {
		if t == k.Type {
			body.Type = name
		}
	}
	if k.MaxRuns > 0 {
		remaining := k.Quota().At(now).Left()
		body.MaxRuns, body.RunsRemaining = &k.MaxRuns, &remaining
	}
	if k.Refill != nil {
		body.Refill = &Refill{Every: k.Refill.Every, Amount: &k.Refill.Amount, Day: k.Refill.Day, Next: timeOrNull(k.Quota().At(now).RefillAt)}
	}
	if k.MaxConcurrent > 0 {
		body.MaxConcurrent = &k.MaxConcurrent
	}
	for _, p := range k.AllowedIPs {
		body.AllowedIPs = append(body.AllowedIPs, p.String())
	}
	if body.Origins == nil {
		body.Origins = []string{}
	}
	if body.Metadata == nil {
		body.Metadata = Metadata{}
	}
	if body.Scopes == nil {
		body.Scopes = []string{}
	}
	for _, id := range auth.WorkflowScopes(k.Scopes) {
		if names[id] != "" {
			body.Workflows = append(body.Workflows, names[id])
		}
	}
	return body
}
