package server

import (
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
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
	State         auth.KeyState `json:"state" enum:"active,expired,revoked"`
	AllowQuery    bool          `json:"allow_query" doc:"Whether the key is also accepted in the URL."`
	MaxRuns       *int64        `json:"max_runs" doc:"How many runs it may start in all; null is no limit."`
	RunsUsed      int64         `json:"runs_used" doc:"How many it has started."`
	RunsRemaining *int64        `json:"runs_remaining" doc:"How many it may still start; null is no limit."`
	CreatedAt     time.Time     `json:"created_at"`
	CreatedBy     string        `json:"created_by"`
	ExpiresAt     *time.Time    `json:"expires_at" doc:"null is never."`
	LastUsedAt    *time.Time    `json:"last_used_at" doc:"Up to a minute late."`
	RevokedAt     *time.Time    `json:"revoked_at"`
	RevokedBy     string        `json:"revoked_by,omitempty"`
	RevokedReason string        `json:"revoked_reason,omitempty"`
}

// CreatedKey is a new key, with its text.
type CreatedKey struct {
	Key
	Secret string `json:"secret" doc:"The key's text. It is shown this once and cannot be had again."`
}

// NewKey is the body of POST /v1/keys.
type NewKey struct {
	Type        string       `json:"type,omitempty" enum:"trigger,admin" default:"trigger" doc:"A trigger key starts runs; an admin key uses the control plane."`
	Name        string       `json:"name" minLength:"1" maxLength:"100" doc:"So that people can tell keys apart."`
	Description string       `json:"description,omitempty" maxLength:"1000"`
	Scopes      []string     `json:"scopes,omitempty" maxItems:"100" doc:"What the key may do: run:workflow/<id, slug or alias>, run:*, runs:read, and for admin keys also workflows:read, workflows:write, keys:read, keys:write, secrets:read, secrets:write, audit:read, users:read, users:write, plugins:read, plugins:write. An admin key without scopes gets all of these that its maker has. A superuser can also give accounts:read and accounts:write, by name."`
	Workflow    string       `json:"workflow,omitempty" doc:"Short for the scope run:workflow/<workflow>."`
	Global      bool         `json:"global,omitempty" doc:"Short for the scope run:*, every workflow that admits account-wide keys."`
	ExpiresAt   optionalTime `json:"expires_at,omitzero" doc:"When the key stops working; absent is 90 days from now, null is never."`
	MaxRuns     *int64       `json:"max_runs,omitempty" minimum:"1" doc:"How many runs it may start in all; absent is no limit."`
	AllowQuery  bool         `json:"allow_query,omitempty" doc:"Also accept the key in the URL (?x-api-key=). URLs end up in logs; only for clients that cannot send a header."`
}

func (s *Server) routeKeys() {
	tags := []string{"Keys"}
	register(s, huma.Operation{
		OperationID: "create-key", Method: http.MethodPost, Path: "/v1/keys", Tags: tags, DefaultStatus: http.StatusCreated,
		Summary:     "Create a key",
		Description: "Needs the scope keys:write. The secret is in this answer only. A credential cannot give a key more than it may do itself.",
	}, s.jsonBody(NewKey{}, true, map[string]any{"name": "CI pipeline", "workflow": "greet", "max_runs": 500, "expires_at": "2027-03-01T00:00:00Z"}), s.createKey)
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
		Description: "Once this has answered, no request that starts later is accepted with the key. Runs already accepted finish. " +
			"Revoking a revoked key changes nothing and is no error. Needs the scope keys:write.",
	}, nil, s.revokeKey)
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
	body, err := s.readJSON(req.c, req)
	if err != nil {
		return nil, err
	}
	var n NewKey
	if err := decodeObject(body, &n); err != nil {
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
	// The key exists now, and its secret must not get lost for want of a workflow's name.
	names, err := s.Admin.ScopeNames(ctx, req.actor(), *k)
	if err != nil {
		s.Logger.WarnContext(ctx, "names of a key's workflows not found", "key_id", k.ID, "error", err)
	}
	return &createKeyAnswer{
		Location: "/v1/keys/" + k.ID,
		Body:     CreatedKey{Key: s.keyBody(k, names), Secret: secret.Reveal()},
	}, nil
}

// admin translates the body. What admin.Service checks itself is left to it, so that all that is wrong is told at once.
func (n *NewKey) admin() (admin.NewKey, error) {
	asked := admin.NewKey{
		Type: auth.KeyType(n.Type), Name: n.Name, Description: n.Description, Scopes: n.Scopes, AllowQuery: n.AllowQuery,
		ExpiresAt: n.ExpiresAt.time, Never: n.ExpiresAt.set && n.ExpiresAt.time.IsZero(),
	}
	if t, ok := keyTypes[n.Type]; ok {
		asked.Type = t
	} else if n.Type != "" {
		return asked, invalidField(core.CodeInvalidInput, "#/type", `must be "trigger" or "admin"`)
	}
	if n.MaxRuns != nil {
		if asked.MaxRuns = *n.MaxRuns; asked.MaxRuns < 1 {
			return asked, invalidField(core.CodeInvalidInput, "#/max_runs", "must be at least 1; leave it out for no limit")
		}
	}
	said := 0
	if len(n.Scopes) > 0 {
		said++
	}
	if n.Workflow != "" {
		asked.Scopes = []string{auth.ScopeRunWorkflow + n.Workflow}
		said++
	}
	if n.Global {
		asked.Scopes = []string{auth.ScopeRunAll}
		said++
	}
	if said > 1 {
		return asked, invalidField(core.CodeInvalidInput, "#/scopes", "must not be given together with workflow or global, nor those two together")
	}
	return asked, nil
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
	Reason string `query:"reason" doc:"Kept with the key and in the audit log." maxLength:"1000"`
}

func (s *Server) revokeKey(ctx context.Context, req *request, in *revokeParams) (*struct{}, error) {
	_, err := s.Admin.RevokeKey(ctx, req.actor(), in.Key, in.Reason)
	return nil, err
}

// keyBody shows a key; names are those of workflow ids.
func (s *Server) keyBody(k *auth.Key, names map[string]string) Key {
	body := Key{
		Object: "key", ID: k.ID, Name: k.Name, Description: k.Description, Masked: k.Mask(), Scopes: k.Scopes, Workflows: []string{},
		State: k.State(s.Now()), AllowQuery: k.AllowQuery, RunsUsed: k.RunsUsed,
		CreatedAt: k.CreatedAt.UTC(), CreatedBy: k.CreatedBy, ExpiresAt: timeOrNull(k.ExpiresAt), LastUsedAt: timeOrNull(k.LastUsedAt),
		RevokedAt: timeOrNull(k.RevokedAt), RevokedBy: k.RevokedBy, RevokedReason: k.RevokedWhy,
	}
	for name, t := range keyTypes {
		if t == k.Type {
			body.Type = name
		}
	}
	if k.MaxRuns > 0 {
		remaining := max(k.MaxRuns-k.RunsUsed, 0)
		body.MaxRuns, body.RunsRemaining = &k.MaxRuns, &remaining
	}
	if body.Scopes == nil {
		body.Scopes = []string{}
	}
	for _, scope := range k.Scopes {
		if id, ok := strings.CutPrefix(scope, auth.ScopeRunWorkflow); ok && names[id] != "" {
			body.Workflows = append(body.Workflows, names[id])
		}
	}
	return body
}
