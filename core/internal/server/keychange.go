package server

import (
	"cmp"
	"context"
	"net/http"
	"slices"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/admin"
)

// Rotation is the body of POST /v1/keys/{key}/rotate. All of it may be left out.
type Rotation struct {
	Overlap *string `json:"overlap,omitempty" example:"24h" doc:"How long the old text still works, from 0s to 30d; absent is 24h. It never works longer than it would have."`
}

// KeyUsage says what a key was used for.
type KeyUsage struct {
	Object    string       `json:"object" enum:"key_usage"`
	Key       string       `json:"key" doc:"Id of the key."`
	From      string       `json:"from" doc:"The first day, in UTC." example:"2026-03-01"`
	To        string       `json:"to" doc:"The last day: today."`
	Runs      int64        `json:"runs" doc:"Started in these days."`
	Days      []UsageDay   `json:"days" nullable:"false" doc:"Days with runs, the newest first."`
	Workflows []UsageCount `json:"workflows" nullable:"false" doc:"Over all days, the most used first."`
	Sources   []UsageCount `json:"sources" nullable:"false"`
	Agents    []UsageCount `json:"user_agents" nullable:"false"`
	Secrets   []UsedSecret `json:"secrets" nullable:"false" doc:"The texts of the key, the newest first: the present one, and those that were rotated out."`
}

// UsageDay is one day of a key's usage.
type UsageDay struct {
	Date      string       `json:"date" example:"2026-03-01"`
	Runs      int64        `json:"runs"`
	Workflows []UsageCount `json:"workflows" nullable:"false"`
	Sources   []UsageCount `json:"sources" nullable:"false"`
	Agents    []UsageCount `json:"user_agents" nullable:"false"`
}

// UsageCount counts runs by one value.
type UsageCount struct {
	Value string `json:"value" doc:"Id of a workflow, an address, or a user agent; empty for what had none, and for all beyond the first 100 of a day."`
	Name  string `json:"name,omitempty" doc:"Of a workflow."`
	Runs  int64  `json:"runs"`
}

// UsedSecret is a text of a key, masked, and its last use.
type UsedSecret struct {
	Masked     string     `json:"masked"`
	Imported   bool       `json:"imported,omitempty"`
	CreatedAt  time.Time  `json:"created_at"`
	CreatedBy  string     `json:"created_by"`
	ExpiresAt  *time.Time `json:"expires_at" doc:"When an old text stops working; null is with the key."`
	LastUsedAt *time.Time `json:"last_used_at" doc:"Up to a minute late when there are several servers."`
	LastSource string     `json:"last_source_ip,omitempty"`
	LastAgent  string     `json:"last_user_agent,omitempty"`
}

func (s *Server) routeKeyChanges(tags []string) {
	register(s, huma.Operation{
		OperationID: "change-key", Method: http.MethodPatch, Path: "/v1/keys/{key}", Tags: tags,
		Summary: "Change a key",
		Description: "What is absent stays. The change holds for every request that starts later. A rate limit that stays as it is keeps its state. " +
			"A revoked key cannot be changed. Needs the scope keys:write and all scopes of the key, but not to switch it off; a credential cannot give a key more than it may do itself.",
	}, s.jsonBody(ChangedKey{}, true, map[string]any{"max_runs": 1000, "allowed_ips": []string{"203.0.113.0/24"}}), s.changeKey)
	for _, on := range []bool{true, false} {
		verb, summary, needs, body := "disable", "Switch a key off", "", any(Disabling{})
		description := "No request that starts later is accepted with the key, until it is switched on again. Runs already accepted finish unless `cancel_runs` is true. "
		if on {
			verb, summary, description, needs, body = "enable", "Switch a key on again", "", " and all scopes of the key", Reason{}
		}
		register(s, huma.Operation{
			OperationID: verb + "-key", Method: http.MethodPost, Path: "/v1/keys/{key}/" + verb, Tags: tags,
			Summary: summary, Description: description + "Asking for the state it is in changes nothing and is no error. Needs the scope keys:write" + needs + ".",
		}, s.jsonBody(body, false, nil), s.switchKey(on))
	}
	register(s, huma.Operation{
		OperationID: "rotate-key", Method: http.MethodPost, Path: "/v1/keys/{key}/rotate", Tags: tags, DefaultStatus: http.StatusCreated,
		Summary: "Give a key a new text",
		Description: "The key, its id, its scopes, its expiry and its counters stay; the new text is in this answer only, and the old one works for the overlap. " +
			"Needs the scope keys:write and all scopes of the key.",
	}, s.jsonBody(Rotation{}, false, map[string]any{"overlap": "24h"}), s.rotateKey)
	register(s, huma.Operation{
		OperationID: "import-key", Method: http.MethodPost, Path: "/v1/keys/import", Tags: tags, DefaultStatus: http.StatusCreated,
		Summary: "Take over a key of another product",
		Description: "By the SHA-256 of its text, so that nobody needs to know the text to move it. Whoever holds it uses it as before, in every place that takes a key. " +
			"Everything else is as for a new key. Needs the scope keys:write.",
	}, s.jsonBody(ImportedKey{}, true, map[string]any{
		"name": "CRM webhook", "workflow": "greet", "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", "last4": "9f3a",
	}), s.importKey)
	register(s, huma.Operation{
		OperationID: "get-key-usage", Method: http.MethodGet, Path: "/v1/keys/{key}/usage", Tags: tags,
		Summary:     "What a key is used for",
		Description: "Runs by workflow, source address and user agent, by day. Who would notice if the key were revoked or its old text stopped working? Needs the scope keys:read.",
	}, nil, s.keyUsage)
}

func (s *Server) changeKey(ctx context.Context, req *request, in *KeyParams) (*answer[Key], error) {
	var n ChangedKey
	if err := s.readChange(req, &n); err != nil {
		return nil, err
	}
	change, err := n.change()
	if err != nil {
		return nil, err
	}
	k, err := s.Admin.UpdateKey(ctx, req.actor(), in.Key, change)
	if err != nil {
		return nil, err
	}
	return &answer[Key]{Body: s.madeKey(ctx, req, k)}, nil
}

func (s *Server) switchKey(on bool) handler[KeyParams, answer[Key]] {
	return func(ctx context.Context, req *request, in *KeyParams) (*answer[Key], error) {
		r, err := s.readDisabling(req, on)
		if err != nil {
			return nil, err
		}
		k, err := s.Admin.SetKeyEnabled(ctx, req.actor(), in.Key, on, r.Reason)
		if err == nil && r.CancelRuns {
			err = cancelled(req)(s.Trigger.CancelKeyRuns(ctx, req.caller(), k.ID, because("key disabled", r.Reason)))
		}
		if err != nil {
			return nil, err
		}
		return &answer[Key]{Body: s.madeKey(ctx, req, k)}, nil
	}
}

func (s *Server) rotateKey(ctx context.Context, req *request, in *KeyParams) (*createKeyAnswer, error) {
	var r Rotation
	if err := s.readOptional(req, &r); err != nil {
		return nil, err
	}
	overlap := admin.DefaultOverlap
	if r.Overlap != nil {
		var err error
		if overlap, err = core.ParseSpan(*r.Overlap); err != nil {
			return nil, invalidField(core.CodeInvalidInput, "#/overlap", `must be a time such as "0s", "24h" or "7d"`)
		}
	}
	k, secret, err := s.Admin.RotateKey(ctx, req.actor(), in.Key, overlap)
	if err != nil {
		return nil, err
	}
	return &createKeyAnswer{Location: "/v1/keys/" + k.ID, Body: CreatedKey{Key: s.madeKey(ctx, req, k), Secret: secret.Reveal()}}, nil
}

type importKeyAnswer struct {
	Location string `header:"Location" doc:"The key."`
	Body     Key
}

func (s *Server) importKey(ctx context.Context, req *request, _ *struct{}) (*importKeyAnswer, error) {
	var n ImportedKey
	if err := s.readObject(req, &n); err != nil {
		return nil, err
	}
	asked, err := n.admin()
	if err != nil {
		return nil, err
	}
	k, err := s.Admin.ImportKey(ctx, req.actor(), asked, n.SHA256, n.Last4)
	if err != nil {
		return nil, err
	}
	return &importKeyAnswer{Location: "/v1/keys/" + k.ID, Body: s.madeKey(ctx, req, k)}, nil
}

type usageParams struct {
	KeyParams
	Days int `query:"days" minimum:"1" maximum:"400" default:"30" doc:"How many days, today included."`
}

func (s *Server) keyUsage(ctx context.Context, req *request, in *usageParams) (*answer[KeyUsage], error) {
	if err := s.Trigger.FlushUsage(ctx); err != nil {
		s.Logger.WarnContext(ctx, "use of keys not recorded", "error", err)
	}
	k, usage, err := s.Admin.KeyUsage(ctx, req.actor(), in.Key, in.Days)
	if err != nil {
		return nil, err
	}
	secrets, err := s.Admin.KeySecrets(ctx, req.actor(), in.Key)
	if err != nil {
		return nil, err
	}
	today := s.Now().UTC()
	body := KeyUsage{
		Object: "key_usage", Key: k.ID, From: today.AddDate(0, 0, 1-in.Days).Format(time.DateOnly), To: today.Format(time.DateOnly),
		Days: []UsageDay{}, Secrets: []UsedSecret{},
	}
	names, err := s.workflowNames(ctx, req, usage)
	if err != nil {
		return nil, err
	}
	body.count(usage, names)
	for i := range secrets {
		t := &secrets[i]
		body.Secrets = append(body.Secrets, UsedSecret{
			Masked: t.Mask(k.Type), Imported: t.Imported, CreatedAt: t.CreatedAt, CreatedBy: t.CreatedBy, ExpiresAt: timeOrNull(t.ExpiresAt),
			LastUsedAt: timeOrNull(t.LastUsedAt), LastSource: t.LastSource, LastAgent: t.LastAgent,
		})
	}
	return &answer[KeyUsage]{Body: body}, nil
}

// workflowNames returns the names of the workflows in usage.
func (s *Server) workflowNames(ctx context.Context, req *request, usage []core.KeyUsage) (map[string]string, error) {
	scopes := []string{}
	for i := range usage {
		if usage[i].Kind == core.UsageWorkflow && usage[i].Value != "" {
			scopes = append(scopes, auth.ScopeRunWorkflow+usage[i].Value)
		}
	}
	return s.Admin.ScopeNames(ctx, req.actor(), auth.Key{Scopes: scopes})
}

// count adds up rows that come by day.
func (u *KeyUsage) count(rows []core.KeyUsage, names map[string]string) {
	total := map[core.UsageKind]map[string]int64{}
	lists := func(d *UsageDay) map[core.UsageKind]*[]UsageCount {
		return map[core.UsageKind]*[]UsageCount{core.UsageWorkflow: &d.Workflows, core.UsageSource: &d.Sources, core.UsageAgent: &d.Agents}
	}
	for _, row := range rows {
		date := time.Unix(row.Day*86400, 0).UTC().Format(time.DateOnly)
		if n := len(u.Days); n == 0 || u.Days[n-1].Date != date {
			u.Days = append(u.Days, UsageDay{Date: date, Workflows: []UsageCount{}, Sources: []UsageCount{}, Agents: []UsageCount{}})
		}
		day := &u.Days[len(u.Days)-1]
		if row.Kind == core.UsageRuns {
			day.Runs += row.Count
			u.Runs += row.Count
			continue
		}
		list, known := lists(day)[row.Kind]
		if !known {
			continue
		}
		c := UsageCount{Value: row.Value, Runs: row.Count}
		if row.Kind == core.UsageWorkflow {
			c.Name = names[row.Value]
		}
		*list = append(*list, c)
		if total[row.Kind] == nil {
			total[row.Kind] = map[string]int64{}
		}
		total[row.Kind][row.Value] += row.Count
	}
	sum := func(kind core.UsageKind) []UsageCount {
		all := []UsageCount{}
		for value, runs := range total[kind] {
			c := UsageCount{Value: value, Runs: runs}
			if kind == core.UsageWorkflow {
				c.Name = names[value]
			}
			all = append(all, c)
		}
		slices.SortFunc(all, func(a, b UsageCount) int { return cmp.Or(cmp.Compare(b.Runs, a.Runs), cmp.Compare(a.Value, b.Value)) })
		return all[:min(len(all), core.MaxUsageValues)]
	}
	u.Workflows, u.Sources, u.Agents = sum(core.UsageWorkflow), sum(core.UsageSource), sum(core.UsageAgent)
}
