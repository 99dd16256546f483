package admin

import (
	"context"
	"slices"
	"strconv"
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
	Name        string       // up to 100 characters; "" is none
	Description string       // up to 1000 characters
	// Scopes the key holds. A workflow may be named by id, slug or alias ("run:workflow/greet") and is stored by id; "run:workflow/billing/*" stays as it
	// is, and "keys:*" stands for the scopes it covers. An admin key without scopes holds those
	// of auth.AdminScopes that its maker does; a trigger key must name at
	// least one workflow or prefix, or "run:*" for all that admit account-wide keys.
	Scopes []string
	// ExpiresAt is when the key stops working; zero is DefaultKeyLife from now, unless Never is set.
	ExpiresAt  time.Time
	Never      bool
	MaxRuns    int64 // 0 is no limit
	AllowQuery bool  // also accept the key in the URL's query
	KeyLimits
}

// CreateKey makes a key. The secret is returned this once and stored only as a hash. An actor cannot give a key more than it may do itself.
func (s *Service) CreateKey(ctx context.Context, a Actor, n NewKey) (*auth.Key, auth.Secret, error) {
	k, err := s.newKey(ctx, a, n)
	if err != nil {
		return nil, auth.Secret{}, err
	}
	secret, text, err := s.newSecret(a, k)
	if err != nil {
		return nil, auth.Secret{}, err
	}
	k.PublicID, k.Hash, k.Pepper, k.Last4 = secret.PublicID, secret.Hash, secret.Pepper, secret.Last4
	if err := s.Store.CreateKey(ctx, *k, s.event(a, core.ActionKeyCreate, k.ID)); err != nil {
		return nil, auth.Secret{}, err
	}
	return k, text, nil
}

// newSecret makes a text for a key.
func (s *Service) newSecret(a Actor, k *auth.Key) (*auth.KeySecret, auth.Secret, error) {
	text, err := auth.GenerateKey(k.Type, s.Random)
	if err != nil {
		return nil, auth.Secret{}, err
	}
	hash, _ := s.Pepper.Hash(s.Pepper.Newest(), text.Secret())
	return &auth.KeySecret{
		PublicID: text.ID, KeyID: k.ID, Hash: hash[:], Pepper: s.Pepper.Newest(), Last4: text.Last4, CreatedAt: s.Now().UTC(), CreatedBy: a.Principal.Subject,
	}, text.Secret(), nil
}

// newKey checks what is asked for and returns the key without a secret.
func (s *Service) newKey(ctx context.Context, a Actor, n NewKey) (*auth.Key, error) {
	if err := a.Require(auth.ScopeKeysWrite); err != nil {
		return nil, err
	}
	if n.Type == "" {
		n.Type = auth.TriggerKey
	}
	if n.Type == auth.AdminKey && len(n.Scopes) == 0 {
		n.Scopes = slices.DeleteFunc(auth.AdminScopes(), func(s string) bool { return !auth.Allows(a.Principal.Scopes, s) })
	}
	now := s.Now().UTC()
	k := &auth.Key{
		ID: s.NewID(core.PrefixKey), Account: a.Principal.Account, Type: n.Type, Name: n.Name, Description: n.Description, AllowQuery: n.AllowQuery, MaxRuns: n.MaxRuns,
		CreatedAt: now, CreatedBy: a.Principal.Subject, UpdatedAt: now, ExpiresAt: n.ExpiresAt.UTC().Truncate(time.Microsecond), Revision: 1,
	}
	switch {
	case n.Never:
		k.ExpiresAt = time.Time{}
	case n.ExpiresAt.IsZero():
		k.ExpiresAt = now.Add(DefaultKeyLife)
	}
	c := &keyCheck{now: now}
	if n.Type != auth.TriggerKey && n.Type != auth.AdminKey {
		c.wrong("type", `must be "trigger" or "admin"`)
	}
	if n.Name != "" {
		c.name(n.Name)
	}
	c.description(n.Description)
	c.maxRuns(n.MaxRuns)
	c.expiry(n.ExpiresAt)
	scopes, err := s.checkScopes(ctx, a, c, n.Type, n.Scopes)
	if err != nil {
		return nil, err
	}
	k.Scopes = scopes
	c.limits(k, &n.KeyLimits)
	return k, c.err()
}

// checkScopes returns scopes as they are stored.
func (s *Service) checkScopes(ctx context.Context, a Actor, c *keyCheck, t auth.KeyType, scopes []string) ([]string, error) {
	if len(scopes) == 0 {
		c.wrong("scopes", `must name what the key may run: "run:workflow/<name>", or "run:*" for every workflow that admits account-wide keys`)
	}
	if len(scopes) > maxKeyScopes {
		c.wrong("scopes", "must have at most 100 entries")
		return nil, nil
	}
	resolved := make([]string, 0, len(scopes))
	for _, asked := range scopes {
		for _, scope := range auth.ExpandScope(asked) {
			stored, detail, err := s.resolveScope(ctx, a, t, scope)
			if err != nil {
				return nil, err
			}
			if detail != "" {
				c.wrong("scopes", quoted(scope)+" "+detail)
				continue
			}
			if !slices.Contains(resolved, stored) {
				resolved = append(resolved, stored)
			}
		}
	}
	return resolved, nil
}

// quoted writes what a caller has sent, so that it is found again in a list of many: short, on one line, and without a key that was pasted in the wrong place.
func quoted(s string) string {
	const most = 100
	r := []rune(auth.Redact(s))
	if len(r) > most {
		r = append(r[:most:most], []rune("...")...)
	}
	return strconv.Quote(string(r))
}

// resolveScope returns a scope as it is stored, or what is wrong with it.
func (s *Service) resolveScope(ctx context.Context, a Actor, t auth.KeyType, scope string) (stored, detail string, err error) {
	if scope == auth.ScopeRunWorkflow+"*" {
		scope = auth.ScopeRunAll
	}
	own := auth.ReachOf(a.Principal.Scopes)
	if ref, ok := strings.CutPrefix(scope, auth.ScopeRunWorkflow); ok {
		if prefix, below := strings.CutSuffix(ref, "/*"); below {
			switch {
			case !core.ValidSlug(prefix):
				return "", `is a prefix that no workflow's name can have; write it like "run:workflow/billing/*"`, nil
			case !auth.Covers(a.Principal.Scopes, []string{scope}):
				return "", "asks for workflows that your own credential may not run", nil
			}
			return scope, "", nil
		}
		w, err := s.Store.Workflow(ctx, a.Principal.Account, ref)
		switch core.CodeOf(err) {
		case "":
		case core.CodeNotFound:
			return "", "names a workflow that does not exist; publish it first", nil
		default:
			return "", "", err
		}
		scope = auth.ScopeRunWorkflow + w.ID
		if !own.All && !own.Below(w.Slug) && !auth.Allows(a.Principal.Scopes, scope) {
			return "", "asks for a workflow that your own credential may not run", nil
		}
		return scope, "", nil
	}
	if slices.Contains(auth.ServerScopes(), scope) && a.Principal.Account != core.DefaultAccount {
		return "", "asks for a scope of the whole server; only a key of the default account can hold it", nil
	}
	if !slices.Contains(auth.SuperuserScopes(), scope) {
		return "", "is no scope; known are run:workflow/<name>, run:workflow/<prefix>/*, " + strings.Join(auth.AdminScopes(), ", "), nil
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
	if err := a.Require(auth.ScopeKeysRead); err != nil {
		return nil, err
	}
	return s.Store.Key(ctx, a.Principal.Account, id)
}

// Keys lists the account's keys, newest first, revoked and expired ones included.
func (s *Service) Keys(ctx context.Context, a Actor, p core.Page) (core.List[auth.Key], error) {
	if err := a.Require(auth.ScopeKeysRead); err != nil {
		return core.List[auth.Key]{}, err
	}
	return s.Store.Keys(ctx, a.Principal.Account, p)
}

// TriggerKeys returns those of the account's next keys after a cursor that are trigger keys and not revoked, newest first, and the cursor of the keys after those, "" when
// there are none. It looks at most keys, in whole pages.
func (s *Service) TriggerKeys(ctx context.Context, a Actor, after string, most int) (keys []auth.Key, next string, err error) {
	page := core.Page{Limit: core.MaxPage, Cursor: after}
	for range (most + core.MaxPage - 1) / core.MaxPage {
		l, err := s.Keys(ctx, a, page)
		if err != nil {
			return nil, "", err
		}
		for i := range l.Items {
			if k := &l.Items[i]; k.Type == auth.TriggerKey && k.RevokedAt.IsZero() {
				keys = append(keys, *k)
			}
		}
		if page.Cursor = l.Next; l.Next == "" {
			break
		}
	}
	return keys, page.Cursor, nil
}

// RevokeKey ends a key for good. Once it has returned, no request that starts later is accepted with the key; runs already
// accepted finish. Revoking a revoked key changes nothing and is no error.
func (s *Service) RevokeKey(ctx context.Context, a Actor, id, why string) (*auth.Key, error) {
	if err := a.Require(auth.ScopeKeysWrite); err != nil {
		return nil, err
	}
	if err := checkReason(why); err != nil {
		return nil, err
	}
	e := s.event(a, core.ActionKeyRevoke, id)
	e.Reason = why
	return s.Store.RevokeKey(ctx, a.Principal.Account, id, why, e)
}

// RevokeTriggerKey is RevokeKey where only trigger keys are seen, as by TriggerKeys: an admin key does not exist there.
func (s *Service) RevokeTriggerKey(ctx context.Context, a Actor, id, why string) (*auth.Key, error) {
	if err := a.Require(auth.ScopeKeysWrite); err != nil {
		return nil, err
	}
	// A key stays of the type that it was made as, so nothing can happen in between.
	k, err := s.Store.Key(ctx, a.Principal.Account, id)
	if err != nil {
		return nil, err
	}
	if k.Type != auth.TriggerKey {
		return nil, core.Errorf(core.CodeNotFound, "there is no such key")
	}
	return s.RevokeKey(ctx, a, id, why)
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
