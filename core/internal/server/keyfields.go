package server

import (
	"encoding/json"
	"reflect"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/admin"
)

// Metadata is what an owner notes on an object.
type Metadata map[string]string

// Refill gives a key back runs of its quota from time to time, at midnight in UTC.
type Refill struct {
	Every  core.RefillEvery `json:"every" enum:"day,week,month"`
	Amount *int64           `json:"amount,omitempty" minimum:"1" doc:"How many runs come back, up to max_runs; absent is all."`
	Day    int              `json:"day,omitempty" minimum:"0" maximum:"31" doc:"Of the week, Monday being 1, or of the month, where a shorter month means its last; absent is 1."`
	Next   *time.Time       `json:"next_at,omitempty" readOnly:"true" doc:"When."`
}

// RateLimit is a token bucket: it holds burst runs and gains limit runs in each per.
type RateLimit struct {
	Name  string `json:"name,omitempty" maxLength:"32" doc:"Tells the limits of a key or account apart; shown in the RateLimit headers. The only limit may leave it out."`
	Limit int64  `json:"limit" minimum:"1" maximum:"1000000"`
	Per   string `json:"per" example:"1s" doc:"From 1s to 31d."`
	Burst *int64 `json:"burst,omitempty" minimum:"1" doc:"How many may come at once; absent is limit."`
}

// KeyFields are what can be said of a key when it is made and changed later.
type KeyFields struct {
	Name           *string        `json:"name,omitempty" minLength:"1" maxLength:"100" doc:"So that people can tell keys apart. A new key may do without."`
	Description    *string        `json:"description,omitempty" maxLength:"1000"`
	Scopes         []string       `json:"scopes,omitempty" maxItems:"100" doc:"What the key may do, denied being what is not here: run:workflow/<id, slug or alias>, run:workflow/<prefix>/*, run:*, runs:read, and for admin keys also workflows:read, workflows:write, keys:read, keys:write, secrets:read, secrets:write, audit:read, users:read, users:write, plugins:read, plugins:write. keys:* is short for both scopes on keys. An admin key without scopes gets all of these that its maker has. A superuser can also give accounts:read and accounts:write, by name."`
	Workflow       string         `json:"workflow,omitempty" doc:"Short for the scope run:workflow/<workflow>."`
	Global         bool           `json:"global,omitempty" doc:"Short for the scope run:*, every workflow that admits account-wide keys."`
	ExpiresAt      optionalTime   `json:"expires_at,omitzero" doc:"When the key stops working; absent is 90 days from now, null is never."`
	MaxRuns        optionalCount  `json:"max_runs,omitzero" doc:"How many runs it may start in all, or between two refills; null is no limit."`
	Refill         optionalRefill `json:"refill,omitzero" doc:"When runs of max_runs come back; null is never."`
	RateLimits     *[]RateLimit   `json:"rate_limits,omitempty" maxItems:"10" doc:"All of them hold."`
	MaxConcurrent  optionalCount  `json:"max_concurrent_runs,omitzero" doc:"How many of its runs may execute at once, up to 1000; null is no limit."`
	AllowedIPs     *[]string      `json:"allowed_ips,omitempty" maxItems:"100" doc:"Networks in CIDR notation, or addresses, that it may be used from; empty is anywhere."`
	AllowedOrigins *[]string      `json:"allowed_origins,omitempty" maxItems:"50" doc:"Origins of web pages that may use it, such as https://app.example.com; empty is none."`
	AllowQuery     *bool          `json:"allow_query,omitempty" doc:"Also accept the key in the URL (?x-api-key=). URLs end up in logs; only for clients that cannot send a header, such as old ones of Langflow."`
	Metadata       *Metadata      `json:"metadata,omitempty" maxProperties:"50" doc:"For you; the server makes nothing of it."`
}

// NewKey is the body of POST /v1/keys.
type NewKey struct {
	Type string `json:"type,omitempty" enum:"trigger,admin" default:"trigger" doc:"A trigger key starts runs; an admin key uses the control plane."`
	KeyFields
}

// ImportedKey is the body of POST /v1/keys/import.
type ImportedKey struct {
	SHA256 string `json:"sha256" pattern:"^[0-9a-fA-F]{64}$" doc:"Of the secret's text, in hexadecimal."`
	Last4  string `json:"last4,omitempty" maxLength:"4" doc:"The last four characters of the text, for showing."`
	NewKey
}

// ChangedKey is the body of PATCH /v1/keys/{key}. What is absent stays.
type ChangedKey struct {
	KeyFields
	Disabled *bool `json:"disabled,omitempty" doc:"true switches the key off, from the next request on."`
}

// admin translates the body. What admin.Service checks itself is left to it, so that all that is wrong is told at once.
func (n *NewKey) admin() (admin.NewKey, error) {
	asked := admin.NewKey{
		Type: auth.KeyType(n.Type), Name: valueOf(n.Name), Description: valueOf(n.Description), AllowQuery: valueOf(n.AllowQuery),
		ExpiresAt: n.ExpiresAt.time, Never: n.ExpiresAt.set && n.ExpiresAt.time.IsZero(),
		KeyLimits: admin.KeyLimits{AllowedIPs: valueOf(n.AllowedIPs), AllowedOrigins: valueOf(n.AllowedOrigins), Metadata: valueOf(n.Metadata)},
	}
	if t, ok := keyTypes[n.Type]; ok {
		asked.Type = t
	} else if n.Type != "" {
		return asked, invalidField(core.CodeInvalidInput, "#/type", `must be "trigger" or "admin"`)
	}
	var err error
	if asked.MaxRuns, err = n.maxRuns(); err != nil {
		return asked, err
	}
	if asked.MaxConcurrent, err = n.maxConcurrent(); err != nil {
		return asked, err
	}
	if asked.Refill, err = n.refill(); err != nil {
		return asked, err
	}
	if asked.RateLimits, err = n.rateLimits(); err != nil {
		return asked, err
	}
	asked.Scopes, err = n.scopes()
	return asked, err
}

// change translates the body.
func (n *ChangedKey) change() (admin.KeyChange, error) {
	c := admin.KeyChange{
		Name: n.Name, Description: n.Description, AllowQuery: n.AllowQuery, AllowedIPs: n.AllowedIPs, AllowedOrigins: n.AllowedOrigins, Disabled: n.Disabled,
	}
	if n.Metadata != nil {
		m := map[string]string(*n.Metadata)
		c.Metadata = &m
	}
	if n.ExpiresAt.set {
		c.ExpiresAt = &n.ExpiresAt.time
	}
	if n.MaxRuns.set {
		v, err := n.maxRuns()
		if err != nil {
			return c, err
		}
		c.MaxRuns = &v
	}
	if n.MaxConcurrent.set {
		v, err := n.maxConcurrent()
		if err != nil {
			return c, err
		}
		c.MaxConcurrent = &v
	}
	if n.Refill.set {
		v, err := n.refill()
		if err != nil {
			return c, err
		}
		c.Refill = &v
	}
	if n.RateLimits != nil {
		v, err := n.rateLimits()
		if err != nil {
			return c, err
		}
		c.RateLimits = &v
	}
	if n.Scopes != nil || n.Workflow != "" || n.Global {
		v, err := n.scopes()
		if err != nil {
			return c, err
		}
		c.Scopes = &v
	}
	return c, nil
}

func (n *KeyFields) maxRuns() (int64, error) { return n.MaxRuns.atLeastOne("max_runs") }

func (n *KeyFields) maxConcurrent() (int64, error) {
	return n.MaxConcurrent.atLeastOne("max_concurrent_runs")
}

func (n *KeyFields) refill() (*core.Refill, error) {
	r := n.Refill.value
	if r == nil {
		return nil, nil
	}
	// Left out it is all of the quota, so none must not be mistaken for that.
	if r.Amount != nil && *r.Amount < 1 {
		return nil, invalidField(core.CodeInvalidInput, "#/refill/amount", "must be at least 1; leave it out for all of max_runs")
	}
	return &core.Refill{Every: r.Every, Amount: valueOf(r.Amount), Day: r.Day}, nil
}

func (n *KeyFields) rateLimits() ([]core.RateLimit, error) { return coreLimits(valueOf(n.RateLimits)) }

func coreLimits(asked []RateLimit) ([]core.RateLimit, error) {
	var limits []core.RateLimit
	for i, l := range asked {
		per, err := core.ParseSpan(l.Per)
		if err != nil {
			return nil, invalidField(core.CodeInvalidInput, "#/rate_limits/"+strconv.Itoa(i)+"/per", `must be a time such as "1s", "1m", "24h" or "7d"`)
		}
		if l.Burst != nil && *l.Burst < 1 {
			return nil, invalidField(core.CodeInvalidInput, "#/rate_limits/"+strconv.Itoa(i)+"/burst", "must be at least 1; leave it out for as many as limit")
		}
		limits = append(limits, core.RateLimit{Name: l.Name, Limit: l.Limit, Per: core.Duration(per), Burst: valueOf(l.Burst)})
	}
	return limits, nil
}

func limitBodies(limits []core.RateLimit) []RateLimit {
	bodies := make([]RateLimit, 0, len(limits))
	for _, l := range limits {
		body := RateLimit{Name: l.Name, Limit: l.Limit, Per: spanText(l.Per.Std())}
		if l.Burst > 0 {
			body.Burst = &l.Burst
		}
		bodies = append(bodies, body)
	}
	return bodies
}

// scopes returns what the key shall do, however it is said.
func (n *KeyFields) scopes() ([]string, error) {
	scopes, said := n.Scopes, 0
	if len(n.Scopes) > 0 {
		said++
	}
	if n.Workflow != "" {
		scopes = []string{auth.ScopeRunWorkflow + n.Workflow}
		said++
	}
	if n.Global {
		scopes = []string{auth.ScopeRunAll}
		said++
	}
	if said > 1 {
		return nil, invalidField(core.CodeInvalidInput, "#/scopes", "must not be given together with workflow or global, nor those two together")
	}
	return scopes, nil
}

func valueOf[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// optionalCount tells a number that is absent from one that is null.
type optionalCount struct {
	set   bool
	value *int64 // nil when null
}

// atLeastOne returns the number, 0 for one that is absent or null. name is the member's.
func (o *optionalCount) atLeastOne(name string) (int64, error) {
	switch {
	case o.value == nil:
		return 0, nil
	case *o.value < 1:
		return 0, invalidField(core.CodeInvalidInput, "#/"+name, "must be at least 1; leave it out for no limit")
	}
	return *o.value, nil
}

// UnmarshalJSON reads a number or null.
func (o *optionalCount) UnmarshalJSON(b []byte) error {
	o.set = true
	return decodeOptional(b, &o.value)
}

// Schema describes the value to the API document.
func (optionalCount) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeInteger, Format: "int64", Nullable: true}
}

// optionalRefill tells a refill that is absent from one that is null.
type optionalRefill struct {
	set   bool
	value *Refill // nil when null
}

// UnmarshalJSON reads a refill or null.
func (o *optionalRefill) UnmarshalJSON(b []byte) error {
	o.set = true
	return decodeOptional(b, &o.value)
}

func (optionalRefill) holds() reflect.Type { return reflect.TypeFor[Refill]() }

// Schema describes the value to the API document.
func (optionalRefill) Schema(r huma.Registry) *huma.Schema {
	return &huma.Schema{AnyOf: []*huma.Schema{r.Schema(reflect.TypeFor[Refill](), true, "Refill"), {Type: "null"}}}
}

// decodeOptional reads a value or null. Its members were checked by knownMembers.
func decodeOptional[T any](b []byte, into **T) error {
	if string(b) == "null" {
		return nil
	}
	*into = new(T)
	if err := json.Unmarshal(b, *into); err != nil {
		return core.Wrap(core.CodeInvalidInput, err, "must be "+describe(reflect.TypeFor[T]())+", or null")
	}
	return nil
}

// spanText writes a time the way people say it.
func spanText(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d >= 2*day && d%day == 0:
		return strconv.FormatInt(int64(d/day), 10) + "d"
	case d >= time.Hour && d%time.Hour == 0:
		return strconv.FormatInt(int64(d/time.Hour), 10) + "h"
	case d >= time.Minute && d%time.Minute == 0:
		return strconv.FormatInt(int64(d/time.Minute), 10) + "m"
	}
	return d.String()
}
