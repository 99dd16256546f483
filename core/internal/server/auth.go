package server

import (
	"context"
	"encoding/json"
	"net/http"
	"net/netip"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/trigger"
)

// CheckAuth is the body of POST /v1/auth/check.
type CheckAuth struct {
	Key      presented `json:"key,omitempty" doc:"The key, or token of an auth backend, to ask about; absent is the credential of this request. An empty one, and null, is no credential, so what a caller presents can be asked about as it is. It is judged and forgotten."`
	Workflow string    `json:"workflow,omitempty" doc:"Id, slug or alias, with an optional @version; absent is the one that the key is made for, if there is one."`
	Place    string    `json:"place,omitempty" enum:"bearer,x-api-key,x-bifrost-key,query" default:"bearer" doc:"Where the key would be sent."`
	SourceIP string    `json:"source_ip,omitempty" doc:"Address that it would come from; absent is that of this request."`
	Origin   string    `json:"origin,omitempty" doc:"Origin of the web page that would send it."`
}

// presented is a key that somebody else has presented. That there is none must not turn into the question whether the asker's own is valid.
type presented struct {
	given bool
	text  string
}

// UnmarshalJSON reads a text or null.
func (p *presented) UnmarshalJSON(b []byte) error {
	p.given = true
	if json.Unmarshal(b, &p.text) != nil {
		return invalidField(core.CodeInvalidInput, "#/key", "must be a string")
	}
	return nil
}

// Schema describes the value to the API document.
func (presented) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, Nullable: true}
}

// CheckedAuth is the answer.
type CheckedAuth struct {
	Object  string           `json:"object" enum:"auth_check"`
	Valid   bool             `json:"valid" doc:"Whether a request would be let through now."`
	Code    string           `json:"code" enum:"VALID,NOT_FOUND,DISABLED,EXPIRED,INSUFFICIENT_PERMISSIONS,RATE_LIMITED,USAGE_EXCEEDED" doc:"The verdict in one word."`
	Reason  core.Code        `json:"reason,omitempty" doc:"The code that the request would be refused with."`
	Status  int              `json:"status,omitempty" doc:"The HTTP status that it would be refused with."`
	Detail  string           `json:"detail,omitempty" doc:"What its sender would be told."`
	KeyID   string           `json:"key_id,omitempty"`
	Who     string           `json:"principal,omitempty"`
	Verdict *trigger.Verdict `json:"verdict" doc:"Check by check; remaining is what the run would leave."`
}

func (s *Server) routeAuth() {
	tags := []string{"Auth"}
	register(s, huma.Operation{
		OperationID: "check-auth", Method: http.MethodPost, Path: "/v1/auth/check", Tags: tags,
		Summary: "Would this key be let through?",
		Description: "Judges a key and a workflow as a trigger would, and starts, charges and records nothing. Always answers 200: that a key would be refused is the answer. " +
			"Asking about another credential than that of the request needs the scope keys:read.",
	}, s.jsonBody(CheckAuth{}, false, map[string]any{"key": "kft_...", "workflow": "greet"}), s.checkAuth)
	register(s, huma.Operation{
		OperationID: "explain-auth", Method: http.MethodGet, Path: "/v1/auth/explain/{request}", Tags: tags,
		Summary: "Why was this request refused?",
		Description: "The checks that the request with this id went through, the one that it failed, and what its sender was not told. Kept for the last few thousand refusals, " +
			"and for a week for those whose sender was known. Needs the scope audit:read.",
	}, nil, s.explainAuth)
}

func (s *Server) checkAuth(ctx context.Context, req *request, _ *struct{}) (*answer[CheckedAuth], error) {
	var in CheckAuth
	if err := s.readOptional(req, &in); err != nil {
		return nil, err
	}
	ask := trigger.CheckRequest{Workflow: in.Workflow, Origin: req.origin}
	ask.Origin.Page = in.Origin
	if in.SourceIP != "" {
		a, err := netip.ParseAddr(in.SourceIP)
		if err != nil || a.Zone() != "" {
			return nil, invalidField(core.CodeInvalidInput, "#/source_ip", "must be an address")
		}
		ask.Origin.Source = a.Unmap()
	}
	place := auth.Place(in.Place)
	switch place {
	case "":
		place = auth.PlaceBearer
	case auth.PlaceBearer, auth.PlaceAPIKey, auth.PlaceBifrost, auth.PlaceQuery:
	default:
		return nil, invalidField(core.CodeInvalidInput, "#/place", "must be bearer, x-api-key, x-bifrost-key or query")
	}
	if in.Key.given {
		ask.Credential = auth.Credential{Place: place, Secret: auth.NewSecret(strings.TrimSpace(in.Key.text)), Source: ask.Origin.Source}
	}
	word, v, err := s.Trigger.Check(ctx, req.principal, !in.Key.given, ask)
	if err != nil {
		return nil, err
	}
	body := CheckedAuth{Object: "auth_check", Valid: word == trigger.WordValid, Code: word, Reason: v.Code, KeyID: v.KeyID, Who: v.Principal, Verdict: v}
	if v.Code != "" {
		body.Status, body.Detail = kinds[v.Code].status, redact(v.Message)
	}
	return &answer[CheckedAuth]{Body: body}, nil
}

type explainParams struct {
	Request string `path:"request" maxLength:"64" doc:"Keyfire-Request-Id of the answer."`
}

func (s *Server) explainAuth(ctx context.Context, req *request, in *explainParams) (*answer[trigger.Verdict], error) {
	v, err := s.Trigger.Explain(ctx, req.principal, in.Request)
	if err != nil {
		return nil, err
	}
	return &answer[trigger.Verdict]{Body: *v}, nil
}
