package server

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/keyfire/keyfire/core"
)

// Secret is a secret without its value, which no answer ever has.
type Secret struct {
	Object    string    `json:"object" enum:"secret" doc:"What this is."`
	Name      string    `json:"name"`
	CreatedAt time.Time `json:"created_at"`
	UpdatedAt time.Time `json:"updated_at" doc:"When the value was last set."`
	UpdatedBy string    `json:"updated_by" doc:"Who set it."`
}

// NewSecret sets a secret.
type NewSecret struct {
	Value string `json:"value" doc:"8 bytes to 16 KiB of text." minLength:"8" maxLength:"16384"`
}

func (s *Server) routeSecrets() {
	tags := []string{"Secrets"}
	register(s, huma.Operation{
		OperationID: "set-secret", Method: http.MethodPut, Path: "/v1/secrets/{secret}", Tags: tags, DefaultStatus: http.StatusOK,
		Summary: "Set a secret",
		Description: "201 when it is new. Steps that begin later read the new value. No answer ever has a value: only a node whose workflow grants the secret reads it. " +
			"Needs the scope secrets:write.",
	}, s.jsonBody(NewSecret{}, true, map[string]any{"value": "the token"}), s.setSecret)
	register(s, huma.Operation{
		OperationID: "list-secrets", Method: http.MethodGet, Path: "/v1/secrets", Tags: tags,
		Summary: "List secrets", Description: "By name, without values; all of them, at most 1,000. Needs the scope secrets:read.",
	}, nil, s.listSecrets)
	register(s, huma.Operation{
		OperationID: "delete-secret", Method: http.MethodDelete, Path: "/v1/secrets/{secret}", Tags: tags, DefaultStatus: http.StatusNoContent,
		Summary: "Remove a secret", Description: "Nodes that are granted it cannot read it any more. Needs the scope secrets:write.",
	}, nil, s.deleteSecret)
}

// SecretParams names a secret.
type SecretParams struct {
	Secret string `path:"secret" doc:"An upper-case letter, then upper-case letters, digits and underscores." maxLength:"64"`
}

type setSecretAnswer struct {
	Status int
	Body   Secret
}

func (s *Server) setSecret(ctx context.Context, req *request, in *SecretParams) (*setSecretAnswer, error) {
	var n NewSecret
	if err := s.readObject(req, &n); err != nil {
		return nil, err
	}
	secret, created, err := s.Admin.SetSecret(ctx, req.actor(), in.Secret, n.Value)
	if err != nil {
		return nil, err
	}
	a := &setSecretAnswer{Status: http.StatusOK, Body: secretBody(&secret)}
	if created {
		a.Status = http.StatusCreated
	}
	return a, nil
}

func (s *Server) listSecrets(ctx context.Context, req *request, _ *struct{}) (*listAnswer[Secret], error) {
	list, err := s.Admin.Secrets(ctx, req.actor())
	if err != nil {
		return nil, err
	}
	return listOf(req, core.List[core.Secret]{Items: list}, secretBody), nil
}

func (s *Server) deleteSecret(ctx context.Context, req *request, in *SecretParams) (*struct{}, error) {
	return nil, s.Admin.DeleteSecret(ctx, req.actor(), in.Secret)
}

func secretBody(c *core.Secret) Secret {
	return Secret{Object: "secret", Name: c.Name, CreatedAt: c.CreatedAt.UTC(), UpdatedAt: c.UpdatedAt.UTC(), UpdatedBy: c.UpdatedBy}
}
