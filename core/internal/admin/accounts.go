package admin

import (
	"context"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
)

// AccountStore is what the control plane needs of the store for accounts. An account is named by its id or its name.
type AccountStore interface {
	CreateAccount(ctx context.Context, a core.Account, e core.AuditEvent) error
	Account(ctx context.Context, ref string) (core.Account, error)
	Accounts(ctx context.Context, p core.Page) (core.List[core.Account], error)
	UpdateAccount(ctx context.Context, ref string, edit func(*core.Account) error, e core.AuditEvent) (core.Account, error)
	SetAccountEnabled(ctx context.Context, ref string, enabled bool, why string, e core.AuditEvent) (core.Account, error)
	DeleteAccount(ctx context.Context, ref string, e core.AuditEvent) error
}

const (
	maxTitle  = 200  // characters of an account's title
	maxReason = 1000 // characters of why something is done, of whatever kind it is
)

// CreateAccount makes an account, which owns nothing yet. It needs the scope accounts:write, like every change of accounts.
func (s *Service) CreateAccount(ctx context.Context, a Actor, name, title string) (core.Account, error) {
	if err := a.Require(auth.ScopeAccountsWrite); err != nil {
		return core.Account{}, err
	}
	switch {
	case !core.ValidAccountName(name):
		return core.Account{}, invalid("#/name", "must be a lower-case letter, then up to 62 letters, digits and hyphens")
	case !printable(title, 0, maxTitle):
		return core.Account{}, invalid("#/title", "must have at most 200 printable characters")
	}
	account := core.Account{ID: s.NewID(core.PrefixAccount), Name: name, Title: title, CreatedAt: s.Now().UTC(), CreatedBy: a.Principal.Subject}
	if err := s.Store.CreateAccount(ctx, account, s.event(a, core.ActionAccountCreate, account.ID)); err != nil {
		return core.Account{}, err
	}
	return account, nil
}

// Account returns an account by its id or name. It needs the scope accounts:read.
func (s *Service) Account(ctx context.Context, a Actor, ref string) (core.Account, error) {
	if err := a.Require(auth.ScopeAccountsRead); err != nil {
		return core.Account{}, err
	}
	return s.Store.Account(ctx, ref)
}

// Accounts lists the accounts of the server, newest first. It needs the scope accounts:read.
func (s *Service) Accounts(ctx context.Context, a Actor, p core.Page) (core.List[core.Account], error) {
	if err := a.Require(auth.ScopeAccountsRead); err != nil {
		return core.List[core.Account]{}, err
	}
	return s.Store.Accounts(ctx, p)
}

// AccountChange says what shall change about an account. What is nil stays.
type AccountChange struct {
	Title         *string
	RateLimits    *[]core.RateLimit // as a key's; one that stays as it is keeps its state, others start full
	MaxConcurrent *int64            // runs that have not ended; 0 is no limit
}

// UpdateAccount changes an account. Its limits hold, beside those of each key, for all its runs together, from the next request on; one that is lifted may be
// felt for another second. It needs the scope accounts:write.
func (s *Service) UpdateAccount(ctx context.Context, a Actor, ref string, change AccountChange) (core.Account, error) {
	if err := a.Require(auth.ScopeAccountsWrite); err != nil {
		return core.Account{}, err
	}
	c := &keyCheck{account: true}
	if v := change.Title; v != nil && !printable(*v, 0, maxTitle) {
		c.wrong("title", "must have at most 200 printable characters")
	}
	var rates []core.RateLimit
	if v := change.RateLimits; v != nil {
		rates = c.rates(*v)
	}
	if v := change.MaxConcurrent; v != nil {
		c.concurrent(*v)
	}
	if err := c.err(); err != nil {
		return core.Account{}, err
	}
	return s.Store.UpdateAccount(ctx, ref, func(acc *core.Account) error {
		if change.Title != nil {
			acc.Title = *change.Title
		}
		if change.RateLimits != nil {
			acc.RateLimits = rates
		}
		if change.MaxConcurrent != nil {
			acc.MaxConcurrent = *change.MaxConcurrent
		}
		return nil
	}, s.event(a, core.ActionAccountUpdate, ref))
}

// SetAccountEnabled switches an account on or off. Once it has returned, no request that starts later is accepted for an account that is off: not with its keys, not
// with sessions of its users, not through an auth backend. Runs already accepted finish.
func (s *Service) SetAccountEnabled(ctx context.Context, a Actor, ref string, enabled bool, why string) (core.Account, error) {
	if err := a.Require(auth.ScopeAccountsWrite); err != nil {
		return core.Account{}, err
	}
	if err := checkReason(why); err != nil {
		return core.Account{}, err
	}
	action := core.ActionAccountDisable
	if enabled {
		action = core.ActionAccountEnable
	}
	e := s.event(a, action, ref)
	e.Reason = why
	return s.Store.SetAccountEnabled(ctx, ref, enabled, why, e)
}

// DeleteAccount deletes a disabled account with everything it owns but its audit events.
func (s *Service) DeleteAccount(ctx context.Context, a Actor, ref string) error {
	if err := a.Require(auth.ScopeAccountsWrite); err != nil {
		return err
	}
	return s.Store.DeleteAccount(ctx, ref, s.event(a, core.ActionAccountDelete, ref))
}

// ActFor returns the principal as it acts for another account, named by id or name. Whoever holds accounts:write may do everything anyway, so this is no more than saying
// where; the audit events are of that account, and name who it really was. A key still starts no runs there: they would be charged to nobody.
func (s *Service) ActFor(ctx context.Context, p auth.Principal, ref string) (auth.Principal, error) {
	if !auth.Allows(p.Scopes, auth.ScopeAccountsWrite) {
		// Naming one's own account is not acting for another. What is read for it is the own account only, so the answer tells nothing about others.
		if own, err := s.Store.Account(ctx, p.Account); err != nil || ref == own.ID || ref == own.Name {
			return p, err
		}
		return auth.Principal{}, core.Errorf(core.CodeInsufficientScope, "acting for an account needs the scope %s", auth.ScopeAccountsWrite)
	}
	account, err := s.Store.Account(ctx, ref)
	if err != nil {
		return auth.Principal{}, err
	}
	p.Account = account.ID
	return p, nil
}

// Self is who an actor is.
type Self struct {
	Account core.Account
	Role    auth.Role // "" for a principal that is no user
}

// WhoAmI tells an actor who it is. It needs no scope.
func (s *Service) WhoAmI(ctx context.Context, a Actor) (Self, error) {
	account, err := s.Store.Account(ctx, a.Principal.Account)
	if err != nil {
		return Self{}, err
	}
	self := Self{Account: account}
	if a.Principal.User != nil {
		self.Role = a.Principal.User.Role
	}
	return self, nil
}

// invalid is the refusal of one member of a body.
func invalid(pointer, detail string) *core.Error {
	e := core.Errorf(core.CodeInvalidInput, "%s %s", pointer[len("#/"):], detail)
	e.Fields = []core.Field{{Pointer: pointer, Detail: detail}}
	return e
}
