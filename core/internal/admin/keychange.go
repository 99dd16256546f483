package admin

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
)

// Bounds of the time in which a rotated text and its successor both work.
const (
	DefaultOverlap = 24 * time.Hour
	MaxOverlap     = 30 * 24 * time.Hour
)

// KeyChange says what shall change about a key. What is nil stays. A change takes effect with the next request; an admission that is under way is judged
// again by it.
type KeyChange struct {
	Name, Description *string
	Scopes            *[]string
	ExpiresAt         *time.Time // zero is never
	MaxRuns           *int64     // of the key's life, or between refills; 0 is no limit. What was used stays used
	Refill            **core.Refill
	RateLimits        *[]core.RateLimit // one that stays as it is keeps its state, others start full
	MaxConcurrent     *int64
	AllowedIPs        *[]string
	AllowedOrigins    *[]string
	AllowQuery        *bool
	Metadata          *map[string]string
	Disabled          *bool
}

// edited is the answer of an edit that gives the key no new text.
func edited(err error) (*auth.KeySecret, time.Time, error) { return nil, time.Time{}, err }

// switchesOff reports whether the change does nothing but switch the key off.
func (change KeyChange) switchesOff() bool {
	return change.Disabled != nil && *change.Disabled && change == KeyChange{Disabled: change.Disabled}
}

// what names what the change sets, for the audit log: a key that got other networks, or none, is not one that got another name. Values are not for it, but for whether the key works.
func (change KeyChange) what() string {
	var all []string
	for _, m := range []struct {
		set  bool
		name string
	}{
		{change.Name != nil, "name"},
		{change.Description != nil, "description"},
		{change.Scopes != nil, "scopes"},
		{change.ExpiresAt != nil, "expires_at"},
		{change.MaxRuns != nil, "max_runs"},
		{change.Refill != nil, "refill"},
		{change.RateLimits != nil, "rate_limits"},
		{change.MaxConcurrent != nil, "max_concurrent_runs"},
		{change.AllowedIPs != nil, "allowed_ips"},
		{change.AllowedOrigins != nil, "allowed_origins"},
		{change.AllowQuery != nil, "allow_query"},
		{change.Metadata != nil, "metadata"},
		{change.Disabled != nil && *change.Disabled, "switched off"},
		{change.Disabled != nil && !*change.Disabled, "switched on"},
	} {
		if m.set {
			all = append(all, m.name)
		}
	}
	return strings.Join(all, ", ")
}

// UpdateKey changes a key and returns it. An actor cannot change a key that may do more than itself, but to switch it off. A revoked key is CodeConflict: it
// stays as it was when it was revoked, as evidence.
func (s *Service) UpdateKey(ctx context.Context, a Actor, id string, change KeyChange) (*auth.Key, error) {
	if err := a.Require(auth.ScopeKeysWrite); err != nil {
		return nil, err
	}
	before, err := s.Store.Key(ctx, a.Principal.Account, id)
	if err != nil {
		return nil, err
	}
	own, err := s.ownScopes(ctx, a, before)
	if err != nil {
		return nil, err
	}
	// Scopes are looked up, so they are checked before the transaction; by the type, which never changes.
	now, scopes := s.Now().UTC(), []string(nil)
	checked := &keyCheck{now: now}
	if change.Scopes != nil {
		if scopes, err = s.checkScopes(ctx, a, checked, before.Type, *change.Scopes); err != nil {
			return nil, err
		}
	}
	e := s.event(a, core.ActionKeyUpdate, id)
	e.Reason = change.what()
	return s.Store.UpdateKey(ctx, a.Principal.Account, id, change.switchesOff(), func(k *auth.Key) (*auth.KeySecret, time.Time, error) {
		switch {
		case !change.switchesOff() && !auth.Covers(own, k.Scopes):
			return edited(errMightier())
		case !k.RevokedAt.IsZero():
			return edited(errRevoked())
		}
		c := &keyCheck{now: now, fields: checked.fields[:len(checked.fields):len(checked.fields)]}
		if change.Scopes != nil {
			k.Scopes = scopes
		}
		change.apply(c, k, a)
		k.UpdatedAt = now
		return edited(c.err())
	}, e)
}

func errRevoked() *core.Error {
	return core.Errorf(core.CodeConflict, "the key is revoked, for good; make a new one")
}

// ownScopes returns what the actor holds, with the workflows that k names one by one and that the actor's prefixes hold. auth.Covers compares it with the
// scopes of k: who could loosen a key that may do more than themselves, or get a new text for it, could be that key. Taking away is left to everybody
// with keys:write, so that a key which has leaked is stopped by whoever sees it first.
func (s *Service) ownScopes(ctx context.Context, a Actor, k *auth.Key) ([]string, error) {
	own := slices.Clone(a.Principal.Scopes)
	reach := auth.ReachOf(own)
	if len(reach.Prefixes) == 0 {
		return own, nil
	}
	for _, id := range auth.WorkflowScopes(k.Scopes) {
		w, err := s.Store.Workflow(ctx, a.Principal.Account, id)
		switch {
		case core.CodeOf(err) == core.CodeNotFound:
		case err != nil:
			return nil, err
		case reach.Below(w.Slug):
			own = append(own, auth.ScopeRunWorkflow+w.ID)
		}
	}
	return own, nil
}

func errMightier() *core.Error {
	return core.Errorf(core.CodeInsufficientScope, "this key may do more than your own credential; whoever changes, enables or rotates it must hold its scopes")
}

func (change *KeyChange) apply(c *keyCheck, k *auth.Key, a Actor) {
	if v := change.Name; v != nil {
		c.name(*v)
		k.Name = *v
	}
	if v := change.Description; v != nil {
		c.description(*v)
		k.Description = *v
	}
	if v := change.ExpiresAt; v != nil {
		c.expiry(*v)
		k.ExpiresAt = v.UTC().Truncate(time.Microsecond)
	}
	if v := change.MaxRuns; v != nil {
		c.maxRuns(*v)
		k.Credited = k.Quota().At(c.now).Credited
		if k.MaxRuns = *v; k.MaxRuns == 0 {
			k.Credited = 0
		}
	}
	switch {
	case change.Refill != nil:
		k.Credited = k.Quota().At(c.now).Credited
		c.refill(k, *change.Refill)
	case change.MaxRuns != nil && k.Refill != nil:
		c.refill(k, k.Refill) // it must still fit the quota
	}
	if v := change.RateLimits; v != nil {
		k.RateLimits = c.rates(*v)
	}
	if v := change.MaxConcurrent; v != nil {
		k.MaxConcurrent = c.concurrent(*v)
	}
	if v := change.AllowedIPs; v != nil {
		k.AllowedIPs = c.networks(*v)
	}
	if v := change.AllowedOrigins; v != nil {
		k.AllowedOrigins = c.origins(*v)
	}
	if v := change.AllowQuery; v != nil {
		k.AllowQuery = *v
	}
	if v := change.Metadata; v != nil {
		k.Metadata = c.metadata(*v)
	}
	if v := change.Disabled; v != nil {
		switchKey(k, a, !*v, "", c.now)
	}
}

// switchKey switches a key on or off and reports whether that changes anything.
func switchKey(k *auth.Key, a Actor, on bool, why string, now time.Time) bool {
	if k.DisabledAt.IsZero() == on {
		return false
	}
	k.UpdatedAt, k.DisabledAt, k.DisabledBy, k.DisabledWhy = now, time.Time{}, "", ""
	if !on {
		k.DisabledAt, k.DisabledBy, k.DisabledWhy = now, a.Principal.Subject, why
	}
	return true
}

// SetKeyEnabled switches a key off, which holds from the next request on, or on again. Asking for the state it is in changes nothing and is no
// error. An actor cannot switch on a key that may do more than itself. A revoked key is CodeConflict.
func (s *Service) SetKeyEnabled(ctx context.Context, a Actor, id string, on bool, why string) (*auth.Key, error) {
	if err := a.Require(auth.ScopeKeysWrite); err != nil {
		return nil, err
	}
	if err := checkReason(why); err != nil {
		return nil, err
	}
	action, own := core.ActionKeyDisable, []string(nil)
	if on {
		action = core.ActionKeyEnable
		before, err := s.Store.Key(ctx, a.Principal.Account, id)
		if err != nil {
			return nil, err
		}
		if own, err = s.ownScopes(ctx, a, before); err != nil {
			return nil, err
		}
	}
	e := s.event(a, action, id)
	e.Reason = why
	now := s.Now().UTC()
	return s.Store.UpdateKey(ctx, a.Principal.Account, id, !on, func(k *auth.Key) (*auth.KeySecret, time.Time, error) {
		switch {
		case on && !auth.Covers(own, k.Scopes):
			return edited(errMightier())
		case !k.RevokedAt.IsZero():
			return edited(errRevoked())
		case !switchKey(k, a, on, why, now):
			return edited(core.ErrUnchanged)
		}
		return edited(nil)
	}, e)
}

// RotateKey gives a key a new text, which is returned this once. The texts it had work for the overlap at most, and none of them longer than it would have: the
// key's expiry, its counters and everything else about it stay. An actor cannot take over a key that may do more than itself. A key
// that is revoked or has expired is CodeConflict.
func (s *Service) RotateKey(ctx context.Context, a Actor, id string, overlap time.Duration) (*auth.Key, auth.Secret, error) {
	if err := a.Require(auth.ScopeKeysWrite); err != nil {
		return nil, auth.Secret{}, err
	}
	if overlap < 0 || overlap > MaxOverlap {
		return nil, auth.Secret{}, invalid("#/overlap", `must be from "0s" to "30d"`)
	}
	before, err := s.Store.Key(ctx, a.Principal.Account, id)
	if err != nil {
		return nil, auth.Secret{}, err
	}
	own, err := s.ownScopes(ctx, a, before)
	if err != nil {
		return nil, auth.Secret{}, err
	}
	secret, text, err := s.newSecret(a, before)
	if err != nil {
		return nil, auth.Secret{}, err
	}
	now := secret.CreatedAt
	k, err := s.Store.UpdateKey(ctx, a.Principal.Account, id, false, func(k *auth.Key) (*auth.KeySecret, time.Time, error) {
		switch {
		case !auth.Covers(own, k.Scopes):
			return edited(errMightier())
		case !k.RevokedAt.IsZero():
			return edited(errRevoked())
		case k.State(now) == auth.KeyExpired:
			return edited(core.Errorf(core.CodeConflict, "the key has expired, and a rotation does not extend it; change its expires_at first, or make a new one"))
		}
		k.UpdatedAt = now
		return secret, now.Add(overlap), nil
	}, s.event(a, core.ActionKeyRotate, id))
	if err != nil {
		return nil, auth.Secret{}, err
	}
	return k, text, nil
}

var hexDigest = regexp.MustCompile(`^[0-9a-fA-F]{64}$`)

// ImportKey makes a trigger key of a secret that another product has given out, of which only the SHA-256 is known. Whoever holds the secret uses it as
// before, whatever its text looks like. last4 are the last four characters of the text, for showing; it may be empty. A secret that
// was imported already is CodeConflict.
func (s *Service) ImportKey(ctx context.Context, a Actor, n NewKey, sha256hex, last4 string) (*auth.Key, error) {
	if n.Type == auth.AdminKey {
		e := core.Errorf(core.CodeInvalidInput, "an imported key starts runs; make a new one for the control plane")
		e.Fields = []core.Field{{Pointer: "#/type", Detail: `must be "trigger": nobody here knows how well the other product makes its secrets`}}
		return nil, e
	}
	k, err := s.newKey(ctx, a, n)
	c := &keyCheck{}
	if !hexDigest.MatchString(sha256hex) {
		c.wrong("sha256", "must be the SHA-256 of the secret's text, in 64 hexadecimal digits")
	}
	if last4 != "" && !printable(last4, 4, 4) {
		c.wrong("last4", "must be the last four characters of the secret, or left out")
	}
	if bad := c.err(); err == nil && bad != nil {
		err = bad
	}
	if err != nil {
		return nil, err
	}
	var digest [sha256.Size]byte
	if _, err := hex.Decode(digest[:], []byte(sha256hex)); err != nil {
		return nil, err
	}
	version := s.Pepper.Newest()
	hash, _ := s.Pepper.ImportHash(version, digest)
	k.PublicID, _ = s.Pepper.ImportID(version, digest)
	k.Hash, k.Pepper, k.Last4, k.Imported = hash[:], version, last4, true
	if err := s.Store.CreateKey(ctx, *k, s.event(a, core.ActionKeyImport, k.ID)); err != nil {
		return nil, err
	}
	return k, nil
}

// KeySecrets returns the texts that prove a key, the newest first: the present one, and those that were rotated out.
func (s *Service) KeySecrets(ctx context.Context, a Actor, id string) ([]auth.KeySecret, error) {
	if err := a.Require(auth.ScopeKeysRead); err != nil {
		return nil, err
	}
	return s.Store.KeySecrets(ctx, a.Principal.Account, id)
}

// MaxUsageDays bounds how far back usage is told.
const MaxUsageDays = 400

// KeyUsage returns how often a key was used in the last days, today included, by workflow, source and user agent.
func (s *Service) KeyUsage(ctx context.Context, a Actor, id string, days int) (*auth.Key, []core.KeyUsage, error) {
	k, err := s.Key(ctx, a, id)
	if err != nil {
		return nil, nil, err
	}
	usage, err := s.Store.KeyUsage(ctx, a.Principal.Account, id, s.Now().Unix()/86400-int64(min(max(days, 1), MaxUsageDays))+1)
	return k, usage, err
}

// Orphaned reports whether a key that could be used is for nothing any more: every workflow it names is gone. names are the names of workflows by id, as
// ScopeNames returns them.
func Orphaned(k *auth.Key, names map[string]string) bool {
	r := auth.ReachOf(k.Scopes)
	if r.All || len(r.Prefixes) > 0 || len(r.Workflows) != len(k.Scopes) || len(r.Workflows) == 0 {
		return false
	}
	for _, id := range r.Workflows {
		if name, looked := names[id]; !looked || name != "" {
			return false
		}
	}
	return true
}
