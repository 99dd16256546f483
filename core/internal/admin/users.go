package admin

import (
	"context"
	"strings"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
)

// UserStore is what the control plane needs of the store for users and their sessions. A user is named by id or name, within an account. may decides about a change in
// the transaction that makes it; nil is always.
type UserStore interface {
	CreateUser(ctx context.Context, u auth.User, p auth.PasswordHash, e core.AuditEvent) error
	User(ctx context.Context, account, ref string) (auth.User, error)
	Users(ctx context.Context, account string, p core.Page) (core.List[auth.User], error)
	SetUserRole(ctx context.Context, account, ref string, role auth.Role, may auth.UserCheck, e core.AuditEvent) (auth.User, error)
	SetUserEnabled(ctx context.Context, account, ref string, enabled bool, why string, may auth.UserCheck, e core.AuditEvent) (auth.User, error)
	SetUserPassword(ctx context.Context, account, ref string, p auth.PasswordHash, may auth.UserCheck, e core.AuditEvent) (auth.User, error)
	DeleteUser(ctx context.Context, account, ref string, may auth.UserCheck, e core.AuditEvent) error

	Login(ctx context.Context, account, name string) (auth.User, auth.PasswordHash, error)
	CreateSession(ctx context.Context, s auth.Session, r auth.RefreshToken, checked auth.PasswordHash, rehash *auth.PasswordHash, e core.AuditEvent) error
	LiveSession(ctx context.Context, id string) (auth.LiveSession, error)
	RefreshToken(ctx context.Context, publicID string) (auth.RefreshToken, error)
	RotateRefresh(ctx context.Context, old string, next auth.RefreshToken, e, onReuse core.AuditEvent) (reused bool, err error)
	EndSession(ctx context.Context, account, id, why string, e core.AuditEvent) error
	EndSessions(ctx context.Context, account, userID, why string, e core.AuditEvent) (int64, error)

	HasSuperuser(ctx context.Context) (bool, error)
	PutSetupToken(ctx context.Context, t auth.SetupToken, e core.AuditEvent) error
	SetupToken(ctx context.Context, publicID string) (auth.SetupToken, error)
	UseSetupToken(ctx context.Context, publicID string, u auth.User, p auth.PasswordHash, e core.AuditEvent) error
}

// NewUser says what a user shall be.
type NewUser struct {
	Name     string // what they log in with; unique in the account; upper case is taken as lower
	Role     auth.Role
	Password auth.Secret
}

// CreateUser makes a user of the actor's account. Nobody can make a user who may do more than they may themselves.
func (s *Service) CreateUser(ctx context.Context, a Actor, n NewUser) (auth.User, error) {
	if err := a.Require(auth.ScopeUsersWrite); err != nil {
		return auth.User{}, err
	}
	n.Name = strings.ToLower(n.Name)
	if err := s.checkUser(a.Principal.Account, n); err != nil {
		return auth.User{}, err
	}
	if err := a.mayHave(n.Role); err != nil {
		return auth.User{}, err
	}
	hash, err := s.Passwords.Hash(ctx, n.Password)
	if err != nil {
		return auth.User{}, err
	}
	u := s.newUser(a.Principal.Account, a.Principal.Subject, n)
	if err := s.Store.CreateUser(ctx, u, hash, s.event(a, core.ActionUserCreate, u.ID)); err != nil {
		return auth.User{}, err
	}
	return u, nil
}

func (s *Service) newUser(account, by string, n NewUser) auth.User {
	now := s.Now().UTC()
	return auth.User{ID: s.NewID(core.PrefixUser), Account: account, Name: n.Name, Role: n.Role, CreatedAt: now, CreatedBy: by, PasswordAt: now}
}

// checkUser returns what is wrong with a user to be, all at once.
func (s *Service) checkUser(account string, n NewUser) error {
	if s.Passwords == nil {
		return errNoUsers()
	}
	var fields []core.Field
	wrong := func(name, detail string) { fields = append(fields, core.Field{Pointer: "#/" + name, Detail: detail}) }
	if !core.ValidUserName(n.Name) {
		wrong("name", "must be a lower-case letter or digit, then up to 127 of these and of . _ @ + -, and not begin with "+core.PrefixUser)
	}
	if detail := checkRole(account, n.Role); detail != "" {
		wrong("role", detail)
	}
	if detail := auth.CheckPassword(n.Name, n.Password); detail != "" {
		wrong("password", detail)
	}
	if len(fields) == 0 {
		return nil
	}
	e := core.Errorf(core.CodeInvalidInput, "%s %s", strings.TrimPrefix(fields[0].Pointer, "#/"), fields[0].Detail)
	e.Fields = fields
	return e
}

func checkRole(account string, r auth.Role) string {
	switch {
	case !r.Valid():
		return "must be viewer, operator, owner or superuser"
	case r == auth.Superuser && account != core.DefaultAccount:
		return "must be viewer, operator or owner: superusers belong to the default account"
	}
	return ""
}

// mayHave refuses to hand out, or to touch whoever has, a role that may do more than the actor: who could set an owner's password could be an owner.
func (a Actor) mayHave(r auth.Role) error {
	if auth.Covers(a.Principal.Scopes, r.Scopes()) {
		return nil
	}
	return core.Errorf(core.CodeInsufficientScope, "the role %s may do more than this credential", r)
}

func errNoUsers() *core.Error {
	return core.Errorf(core.CodeNotSupported, "this server is set up without users")
}

// User returns a user of the account. It needs the scope users:read, except for oneself.
func (s *Service) User(ctx context.Context, a Actor, ref string) (auth.User, error) {
	if !a.is(ref) {
		if err := a.Require(auth.ScopeUsersRead); err != nil {
			return auth.User{}, err
		}
	}
	return s.Store.User(ctx, a.Principal.Account, ref)
}

// is reports whether the actor is the user that ref names.
func (a Actor) is(ref string) bool {
	u := a.Principal.User
	return u != nil && u.Account == a.Principal.Account && (ref == u.ID || ref == u.Name)
}

// Users lists the account's users, newest first.
func (s *Service) Users(ctx context.Context, a Actor, p core.Page) (core.List[auth.User], error) {
	if err := a.Require(auth.ScopeUsersRead); err != nil {
		return core.List[auth.User]{}, err
	}
	return s.Store.Users(ctx, a.Principal.Account, p)
}

// mayChange returns what decides whether the actor may do something to a user. A person's session is judged again, since two who demote each other at the same moment were both let
// in: the first change ends the other's session, and so somebody is left who may undo it.
func (s *Service) mayChange(a Actor, what string) auth.UserCheck {
	return func(u *auth.User, session func(string) (auth.LiveSession, error)) error {
		if a.is(u.ID) {
			return core.Errorf(core.CodeConflict, "you cannot %s yourself; somebody else has to", what)
		}
		if own := a.Principal.Session; own != nil {
			live, err := session(own.ID)
			switch {
			case core.CodeOf(err) == core.CodeNotFound:
				return auth.ErrSessionEnded()
			case err != nil:
				return err
			}
			if err := auth.CheckSession(&live, s.Now()); err != nil {
				return err
			}
		}
		return a.mayHave(u.Role)
	}
}

// change finds a user whom the actor may change, by now. may decides again when it is done: a password takes its time to be hashed.
func (s *Service) change(ctx context.Context, a Actor, ref, what string) (u auth.User, may auth.UserCheck, err error) {
	if err := a.Require(auth.ScopeUsersWrite); err != nil {
		return auth.User{}, nil, err
	}
	if u, err = s.Store.User(ctx, a.Principal.Account, ref); err != nil {
		return auth.User{}, nil, err
	}
	may = s.mayChange(a, what)
	return u, may, may(&u, func(id string) (auth.LiveSession, error) { return s.Store.LiveSession(ctx, id) })
}

// SetUserRole gives a user another role, and ends their sessions.
func (s *Service) SetUserRole(ctx context.Context, a Actor, ref string, role auth.Role) (auth.User, error) {
	u, may, err := s.change(ctx, a, ref, "change the role of")
	if err != nil {
		return auth.User{}, err
	}
	if detail := checkRole(u.Account, role); detail != "" {
		return auth.User{}, invalid("#/role", detail)
	}
	if err := a.mayHave(role); err != nil {
		return auth.User{}, err
	}
	e := s.event(a, core.ActionUserRole, u.ID)
	e.Reason = string(u.Role) + " to " + string(role)
	return s.Store.SetUserRole(ctx, u.Account, u.ID, role, may, e)
}

// SetUserEnabled lets a user log in or no longer. Once it has returned, no request that starts later is accepted from a session of a user who is off.
func (s *Service) SetUserEnabled(ctx context.Context, a Actor, ref string, enabled bool, why string) (auth.User, error) {
	if err := a.Require(auth.ScopeUsersWrite); err != nil {
		return auth.User{}, err
	}
	if err := checkReason(why); err != nil {
		return auth.User{}, err
	}
	action, what := core.ActionUserDisable, "disable"
	if enabled {
		action, what = core.ActionUserEnable, "enable"
	}
	e := s.event(a, action, ref)
	e.Reason = why
	return s.Store.SetUserEnabled(ctx, a.Principal.Account, ref, enabled, why, s.mayChange(a, what), e)
}

// DeleteUser removes a user. What they did stays in the audit log under their id.
func (s *Service) DeleteUser(ctx context.Context, a Actor, ref string) error {
	if err := a.Require(auth.ScopeUsersWrite); err != nil {
		return err
	}
	return s.Store.DeleteUser(ctx, a.Principal.Account, ref, s.mayChange(a, "delete"), s.event(a, core.ActionUserDelete, ref))
}

// SetPassword sets a password, and ends the sessions of its user. Users set their own by the current one, which counts as a login and is bounded like one; it takes no
// scope. For others it needs what every change of them does, and current is ignored.
func (s *Service) SetPassword(ctx context.Context, a Actor, ref string, current, password auth.Secret) (auth.User, error) {
	if s.Passwords == nil {
		return auth.User{}, errNoUsers()
	}
	var u auth.User
	var may auth.UserCheck // nil: of one's own
	var err error
	if a.is(ref) {
		u, err = s.proveOwn(ctx, a, current)
	} else {
		u, may, err = s.change(ctx, a, ref, "set the password of")
	}
	if err != nil {
		return auth.User{}, err
	}
	if detail := auth.CheckPassword(u.Name, password); detail != "" {
		return auth.User{}, invalid("#/password", detail)
	}
	hash, err := s.Passwords.Hash(ctx, password)
	if err != nil {
		return auth.User{}, err
	}
	return s.Store.SetUserPassword(ctx, u.Account, u.ID, hash, may, s.event(a, core.ActionUserPassword, u.ID))
}

// proveOwn checks the current password of the user that the actor is: whoever finds an open session must not be able to keep it.
func (s *Service) proveOwn(ctx context.Context, a Actor, current auth.Secret) (auth.User, error) {
	own := a.Principal.User
	if current.Empty() {
		return auth.User{}, invalid("#/current_password", "must be your present password")
	}
	proved, err := s.checkPassword(ctx, a.Origin, own.Account, own.Name, current)
	if err != nil {
		return auth.User{}, err
	}
	return proved.user, nil
}
