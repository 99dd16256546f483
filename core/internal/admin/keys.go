package admin

import (
	"context"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
)

// Bounds of a key's fields.
const (
	DefaultKeyLife = 90 * 24 * time.Hour
	maxKeyName     = 100  // characters
	maxKeyText     = 1000 // characters of a description
	maxKeyScopes   = 100
)

// NewKey says what a key shall be.
type NewKey struct {
	Type        auth.KeyType // "" is auth.TriggerKey
	Name        string       // required, up to 100 characters
	Description string       // up to 1000 characters
	// Scopes the key holds. A workflow may be named by id, slug or alias ("run:workflow/greet") and is stored by id. An admin key without scopes holds
	// those of auth.AdminScopes that its maker does; a trigger key must name at least one workflow, or "run:*" for all that admit account-wide keys.
	Scopes []string
	// ExpiresAt is when the key stops working; zero is DefaultKeyLife from now, unless Never is set.
	ExpiresAt  time.Time
	Never      bool
	MaxRuns    int64 // 0 is no limit
	AllowQuery bool  // also accept the key in the URL's query
}

// CreateKey makes a key. The secret is returned this once and stored only as a hash. An actor cannot give a key more than it may do itself.
func (s *Service) CreateKey(ctx context.Context, a Actor, n NewKey) (*auth.Key, auth.Secret, error) {
	if err := a.require(auth.ScopeKeysWrite); err != nil {
		return nil, auth.Secret{}, err
	}
	if n.Type == "" {
		n.Type = auth.TriggerKey
	}
	now := s.Now().UTC()
	scopes, fields, err := s.checkKey(ctx, a, n, now)
	if err != nil {
		return nil, auth.Secret{}, err
	}
	if len(fields) > 0 {
		e := core.Errorf(core.CodeInvalidInput, "the key cannot be made as asked: %s %s", strings.TrimPrefix(fields[0].Pointer, "#/"), fields[0].Detail)
		e.Fields = fields
		return nil, auth.Secret{}, e
	}
	text, err := auth.GenerateKey(n.Type, s.Random)
	if err != nil {
		return nil, auth.Secret{}, err
	}
	hash, _ := s.Pepper.Hash(s.Pepper.Newest(), text.Secret())
	k := auth.Key{
		ID: s.NewID(core.PrefixKey), Account: a.Principal.Account, Type: n.Type, PublicID: text.ID, Hash: hash[:], Pepper: s.Pepper.Newest(),
		Last4: text.Last4, Name: n.Name, Description: n.Description, Scopes: scopes, AllowQuery: n.AllowQuery, MaxRuns: n.MaxRuns,
		CreatedAt: now, CreatedBy: a.Principal.Subject, ExpiresAt: n.ExpiresAt.UTC(),
	}
	switch {
	case n.Never:
		k.ExpiresAt = time.Time{}
	case n.ExpiresAt.IsZero():
		k.ExpiresAt = now.Add(DefaultKeyLife)
	}
	if err := s.Store.CreateKey(ctx, k, s.event(a, core.ActionKeyCreate, k.ID)); err != nil {
		return nil, auth.Secret{}, err
	}
	return &k, text.Secret(), nil
}

// checkKey returns the scopes as they are stored, and what is wrong with the request.
func (s *Service) checkKey(ctx context.Context, a Actor, n NewKey, now time.Time) (scopes []string, fields []core.Field, err error) {
	wrong := func(name, detail string) { fields = append(fields, core.Field{Pointer: "#/" + name, Detail: detail}) }
	if n.Type != auth.TriggerKey && n.Type != auth.AdminKey {
		wrong("type", `must be "trigger" or "admin"`)
	}
	if !printable(n.Name, 1, maxKeyName) {
		wrong("name", "must have 1 to 100 printable characters, so that people can tell keys apart")
	}
	if !printable(n.Description, 0, maxKeyText) {
		wrong("description", "must have at most 1000 printable characters")
	}
	if n.MaxRuns < 0 {
		wrong("max_runs", "must be at least 1; leave it out for no limit")
	}
	if !n.ExpiresAt.IsZero() && !n.ExpiresAt.After(now) {
		wrong("expires_at", "must be in the future; null makes a key that never expires")
	}
	scopes = n.Scopes
	if n.Type == auth.AdminKey && len(scopes) == 0 {
		scopes = slices.DeleteFunc(auth.AdminScopes(), func(s string) bool { return !auth.Allows(a.Principal.Scopes, s) })
	}
	if len(scopes) == 0 {
		wrong("scopes", `must name what the key may run: "run:workflow/<name>", or "run:*" for every workflow that admits account-wide keys`)
	}
	if len(scopes) > maxKeyScopes {
		wrong("scopes", "must have at most 100 entries")
		return nil, fields, nil
	}
	resolved := make([]string, 0, len(scopes))
	for _, scope := range scopes {
		stored, detail, err := s.resolveScope(ctx, a, n.Type, scope)
		if err != nil {
			return nil, nil, err
		}
		if detail != "" {
			wrong("scopes", detail)
			continue
		}
		if !slices.Contains(resolved, stored) {
			resolved = append(resolved, stored)
		}
	}
	return resolved, fields, nil
}

// resolveScope returns a scope as it is stored, or what is wrong with it.
func (s *Service) resolveScope(ctx context.Context, a Actor, t auth.KeyType, scope string) (stored, detail string, err error) {
	if ref, ok := strings.CutPrefix(scope, auth.ScopeRunWorkflow); ok {
		w, err := s.Store.Workflow(ctx, a.Principal.Account, ref)
		switch core.CodeOf(err) {
		case "":
		case core.CodeNotFound:
			return "", "names a workflow that does not exist; publish it first", nil
		default:
			return "", "", err
		}
		scope = auth.ScopeRunWorkflow + w.ID
		if !auth.Allows(a.Principal.Scopes, auth.ScopeRunAll) && !auth.Allows(a.Principal.Scopes, scope) {
			return "", "asks for a workflow that your own credential may not run", nil
		}
		return scope, "", nil
	}
	if slices.Contains(auth.ServerScopes(), scope) && a.Principal.Account != core.DefaultAccount {
		return "", "asks for a scope of the whole server; only a key of the default account can hold it", nil
	}
	if !slices.Contains(auth.SuperuserScopes(), scope) {
		return "", "holds an unknown scope; known are run:workflow/<name>, " + strings.Join(auth.AdminScopes(), ", "), nil
	}
	if t == auth.TriggerKey && scope != auth.ScopeRunAll && scope != auth.ScopeRunsRead {
		return "", "asks for more than a trigger key can hold; make an admin key for it", nil
	}
	if !auth.Allows(a.Principal.Scopes, scope) {
		return "", "asks for a scope that your own credential does not hold", nil
	}
	return scope, "", nil
}

func printable(s string, least, most int) bool {
	n := utf8.RuneCountInString(s)
	if n < least || n > most || !utf8.ValidString(s) || s != strings.TrimSpace(s) {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

// Key returns one key, without its text.
func (s *Service) Key(ctx context.Context, a Actor, id string) (*auth.Key, error) {
	if err := a.require(auth.ScopeKeysRead); err != nil {
		return nil, err
	}
	return s.Store.Key(ctx, a.Principal.Account, id)
}

// Keys lists the account's keys, newest first, revoked and expired ones included.
func (s *Service) Keys(ctx context.Context, a Actor, p core.Page) (core.List[auth.Key], error) {
	if err := a.require(auth.ScopeKeysRead); err != nil {
		return core.List[auth.Key]{}, err
	}
	return s.Store.Keys(ctx, a.Principal.Account, p)
}

// RevokeKey ends a key for good. Once it has returned, no request that starts later is accepted with the key; runs already
// accepted finish. Revoking a revoked key changes nothing and is no error.
func (s *Service) RevokeKey(ctx context.Context, a Actor, id, why string) (*auth.Key, error) {
	if err := a.require(auth.ScopeKeysWrite); err != nil {
		return nil, err
	}
	if !printable(why, 0, maxKeyText) {
		e := core.Errorf(core.CodeInvalidInput, "the reason must have at most 1000 printable characters")
		e.Fields = []core.Field{{Pointer: "#/reason", Detail: "must have at most 1000 printable characters"}}
		return nil, e
	}
	e := s.event(a, core.ActionKeyRevoke, id)
	e.Reason = why
	return s.Store.RevokeKey(ctx, a.Principal.Account, id, why, e)
}

// ScopeNames returns the slugs of the workflows that the scopes of keys name, by workflow id, for showing to people keys that the
// actor was allowed to have. A workflow that is gone has none.
func (s *Service) ScopeNames(ctx context.Context, a Actor, keys ...auth.Key) (map[string]string, error) {
	names := make(map[string]string)
	for i := range keys {
		for _, id := range auth.WorkflowScopes(keys[i].Scopes) {
			if _, done := names[id]; done {
				continue
			}
			w, err := s.Store.Workflow(ctx, a.Principal.Account, id)
			switch core.CodeOf(err) {
			case "":
				names[id] = w.Slug
			case core.CodeNotFound:
				names[id] = ""
			default:
				return nil, err
			}
		}
	}
	return names, nil
}
