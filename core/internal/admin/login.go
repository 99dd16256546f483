package admin

import (
	"context"
	"strings"
	"time"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
)

// How long things last.
const (
	// SessionLife is how long after a login its session can be refreshed at most.
	SessionLife = 30 * 24 * time.Hour
	// RefreshLife is how long a refresh token waits for its use: a session that nobody uses ends.
	RefreshLife = 7 * 24 * time.Hour
	// SetupLife is how long a setup token works.
	SetupLife = time.Hour
)

// TokenSigner makes the token that a client of a session sends with each request. id is the token's own.
type TokenSigner interface {
	Sign(ctx context.Context, s auth.Session, u auth.User, id string) (token auth.Secret, expires time.Time, err error)
	// Rotate replaces the key that signs, durably, and returns the id of the new one. Tokens signed before stay good.
	Rotate(ctx context.Context) (keyID string, err error)
}

// Grant is what a login or a refresh gives its client. The texts of the tokens exist nowhere else.
type Grant struct {
	Session        auth.Session
	User           auth.User
	Access         auth.Secret
	AccessExpires  time.Time
	Refresh        auth.Secret
	RefreshExpires time.Time
}

// Credentials are what a person logs in with.
type Credentials struct {
	Account  string // id or name; "" is the default account
	Name     string
	Password auth.Secret
}

// Login begins a session. An unknown account, an unknown user and a wrong password are one answer, CodeInvalidLogin, after the same work; that the user or
// the account is disabled is told only to somebody who has the password. Whoever fails too often is refused as CodeRateLimited before any work.
func (s *Service) Login(ctx context.Context, o core.Origin, c Credentials) (*Grant, error) {
	if s.Passwords == nil || s.Tokens == nil {
		return nil, errNoUsers()
	}
	if c.Account == "" {
		c.Account = core.DefaultAccount
	}
	proved, err := s.checkPassword(ctx, o, c.Account, strings.ToLower(c.Name), c.Password)
	if err != nil {
		return nil, err
	}
	now := s.Now().UTC()
	g := &Grant{User: proved.user, Session: auth.Session{
		ID: s.NewID(core.PrefixSession), Account: proved.user.Account, UserID: proved.user.ID, CreatedAt: now, SourceIP: o.SourceIP(), ExpiresAt: now.Add(SessionLife),
	}}
	refresh, err := s.grant(ctx, g, now)
	if err != nil {
		return nil, err
	}
	var rehash *auth.PasswordHash
	if proved.again {
		if hash, err := s.Passwords.Hash(ctx, c.Password); err == nil { // it works as it is, so a busy server leaves it for the next login
			rehash = &hash
		}
	}
	if err := s.Store.CreateSession(ctx, g.Session, refresh, proved.hash, rehash, s.userEvent(o, &g.User, core.ActionSessionCreate, g.Session.ID)); err != nil {
		return nil, err
	}
	g.User.LastLoginAt = now
	return g, nil
}

// proved is a user whose password was right.
type proved struct {
	user  auth.User
	hash  auth.PasswordHash
	again bool
}

// checkPassword is the one place that passwords are checked. A failure is in the audit log before the answer; how many there can be is bounded by the gate.
func (s *Service) checkPassword(ctx context.Context, o core.Origin, accountRef, name string, password auth.Secret) (*proved, error) {
	settle, err := s.logins.begin(o.Source, accountRef, name)
	if err != nil {
		return nil, err
	}
	p, refusal, err := s.tryPassword(ctx, accountRef, name, password)
	if err != nil {
		settle(true) // nobody knows whether it would have been right
		return nil, err
	}
	settle(refusal == nil || refusal.Code != core.CodeInvalidLogin)
	if refusal == nil {
		return p, nil
	}
	e := s.userEvent(o, &p.user, core.ActionSessionCreate, p.user.ID)
	e.Outcome, e.Reason = core.OutcomeRefused, string(refusal.Code)
	if err := s.Store.Audit(context.WithoutCancel(ctx), e); err != nil {
		return nil, core.Wrap(core.CodeAuditUnavailable, err, "the refusal cannot be recorded; try again")
	}
	return nil, refusal
}

// tryPassword returns who the password is proved to be of, or why it is refused and whom that is about. The steps are the same whether the user exists or not.
func (s *Service) tryPassword(ctx context.Context, accountRef, name string, password auth.Secret) (p *proved, refusal *core.Error, err error) {
	p = &proved{}
	account, err := s.Store.Account(ctx, accountRef)
	if err != nil && core.CodeOf(err) != core.CodeNotFound {
		return nil, nil, err
	}
	id := account.ID
	if id == "" {
		id = "acct_none" // for the same look-up
	}
	var stored *auth.PasswordHash
	p.user, p.hash, err = s.Store.Login(ctx, id, name)
	switch core.CodeOf(err) {
	case "":
		stored = &p.hash
	case core.CodeNotFound:
	default:
		return nil, nil, err
	}
	long := len(password.Reveal()) > auth.MaxPassword
	if long {
		password = auth.NewSecret("")
	}
	ok, again, err := s.Passwords.Verify(ctx, password, stored)
	switch {
	case err != nil:
		return nil, nil, err
	case !ok || long:
		return p, core.Errorf(core.CodeInvalidLogin, "the account, the name or the password is not right"), nil
	case account.Disabled():
		return p, core.ErrAccountDisabled(), nil
	case p.user.Disabled():
		return p, core.Errorf(core.CodeUserDisabled, "this user is disabled; ask an owner of the account"), nil
	}
	p.again = again
	return p, nil, nil
}

// userEvent starts the audit event of something a user does before there is a principal. A user without an id is nobody known.
func (s *Service) userEvent(o core.Origin, u *auth.User, action, object string) core.AuditEvent {
	e := core.NewEvent(s.NewID(core.PrefixEvent), s.Now(), o, action, object)
	if u.ID != "" {
		e.Account, e.Actor = u.Account, u.Subject()
	}
	return e
}

// grant makes the tokens of g and returns how the refresh token is stored.
func (s *Service) grant(ctx context.Context, g *Grant, now time.Time) (auth.RefreshToken, error) {
	var err error
	if g.Access, g.AccessExpires, err = s.Tokens.Sign(ctx, g.Session, g.User, s.NewID("tok_")); err != nil {
		return auth.RefreshToken{}, err
	}
	text, err := auth.GenerateToken(auth.RefreshKind, s.Random)
	if err != nil {
		return auth.RefreshToken{}, err
	}
	g.Refresh, g.RefreshExpires = text.Secret(), now.Add(RefreshLife)
	if g.Session.ExpiresAt.Before(g.RefreshExpires) {
		g.RefreshExpires = g.Session.ExpiresAt
	}
	sum, _ := s.Pepper.Hash(s.Pepper.Newest(), text.Secret())
	return auth.RefreshToken{
		PublicID: text.ID, Account: g.Session.Account, SessionID: g.Session.ID, Hash: sum[:], Pepper: s.Pepper.Newest(), CreatedAt: now, ExpiresAt: g.RefreshExpires,
	}, nil
}

// Refresh continues a session by its refresh token, which is replaced by another one. A token that comes a second time ends its session: one of the two who
// sent it has stolen it. Malformed, unknown and wrong tokens are one answer, CodeInvalidKey.
func (s *Service) Refresh(ctx context.Context, o core.Origin, token auth.Secret) (*Grant, error) {
	stored, live, err := s.byRefreshToken(ctx, token)
	if err != nil {
		return nil, err
	}
	g := &Grant{Session: live.Session, User: live.User}
	next, err := s.grant(ctx, g, s.Now().UTC())
	if err != nil {
		return nil, err
	}
	reused, err := s.Store.RotateRefresh(ctx, stored.PublicID, next, s.userEvent(o, &live.User, core.ActionSessionRefresh, live.Session.ID), s.reuseEvent(o, &live))
	switch {
	case core.CodeOf(err) == core.CodeNotFound:
		return nil, auth.ErrSessionEnded() // its user was deleted in between
	case err != nil:
		return nil, err
	case reused:
		return nil, errReused()
	}
	return g, nil
}

// Resume says who holds a refresh token and leaves the token as it is: for a client that sends it with every request and keeps it where nobody else can read it, which is
// a browser with a cookie that no script sees. The token holds until it expires. One that was used to refresh the session has been taken by somebody, and ends the session.
// Errors are those of Refresh.
func (s *Service) Resume(ctx context.Context, o core.Origin, token auth.Secret) (auth.Principal, error) {
	stored, live, err := s.byRefreshToken(ctx, token)
	if err != nil {
		return auth.Principal{}, err
	}
	if !stored.UsedAt.IsZero() {
		if err := s.Store.EndSession(ctx, live.Session.Account, live.Session.ID, "a refresh token was used twice", s.reuseEvent(o, &live)); err != nil {
			return auth.Principal{}, err
		}
		return auth.Principal{}, errReused()
	}
	return live.Principal(stored.ExpiresAt), nil
}

// byRefreshToken returns a refresh token as it is stored, used or not, with its session, which may go on.
func (s *Service) byRefreshToken(ctx context.Context, token auth.Secret) (auth.RefreshToken, auth.LiveSession, error) {
	refuse := func(err error) (auth.RefreshToken, auth.LiveSession, error) {
		return auth.RefreshToken{}, auth.LiveSession{}, err
	}
	if s.Tokens == nil {
		return refuse(errNoUsers())
	}
	text, ok := auth.ParseToken(auth.RefreshKind, token)
	if !ok {
		return refuse(errBadToken())
	}
	stored, err := s.Store.RefreshToken(ctx, text.ID)
	if err != nil && core.CodeOf(err) != core.CodeNotFound {
		return refuse(err)
	}
	if err != nil {
		stored = auth.RefreshToken{Pepper: s.Pepper.Newest(), Hash: make([]byte, 32)} // so that an unknown token is refused by the same steps as a wrong one
	}
	if !s.Pepper.Matches(stored.Pepper, stored.Hash, token) || err != nil {
		return refuse(errBadToken())
	}
	live, err := s.Store.LiveSession(ctx, stored.SessionID)
	switch core.CodeOf(err) {
	case "":
	case core.CodeNotFound:
		return refuse(auth.ErrSessionEnded())
	default:
		return refuse(err)
	}
	now := s.Now()
	if err := auth.CheckSession(&live, now); err != nil {
		return refuse(err)
	}
	if live.AccountDisabled {
		return refuse(core.ErrAccountDisabled())
	}
	if stored.UsedAt.IsZero() && !now.Before(stored.ExpiresAt) {
		return refuse(core.Errorf(core.CodeSessionExpired, "the session was not used for too long; log in again"))
	}
	return stored, live, nil
}

// reuseEvent says that a refresh token came although it was used.
func (s *Service) reuseEvent(o core.Origin, live *auth.LiveSession) core.AuditEvent {
	e := s.userEvent(o, &live.User, core.ActionSessionReuse, live.Session.ID)
	e.Outcome, e.Reason = core.OutcomeRefused, string(core.CodeSessionEnded)
	return e
}

func errReused() *core.Error {
	return core.Errorf(core.CodeSessionEnded, "this refresh token was used before, so its session has ended; log in again")
}

func errBadToken() *core.Error { return core.Errorf(core.CodeInvalidKey, "the token is not valid") }

// Logout ends the actor's session, or all sessions of its user. CodeConflict for a credential that is no session.
func (s *Service) Logout(ctx context.Context, a Actor, all bool) error {
	ses := a.Principal.Session
	if ses == nil {
		return core.Errorf(core.CodeConflict, "this credential is not a session, so there is nothing to log out of; keys are revoked instead")
	}
	e := s.userEvent(a.Origin, a.Principal.User, core.ActionSessionEnd, ses.ID)
	if all {
		e.Object = a.Principal.User.ID
		_, err := s.Store.EndSessions(ctx, ses.Account, ses.UserID, "logout", e)
		return err
	}
	return s.Store.EndSession(ctx, ses.Account, ses.ID, "logout", e)
}

// RotateSessionKey replaces the key that session tokens are signed with. Sessions go on; tokens signed before are good until they expire, minutes later. It needs accounts:write.
func (s *Service) RotateSessionKey(ctx context.Context, a Actor) (keyID string, err error) {
	if err := a.Require(auth.ScopeAccountsWrite); err != nil {
		return "", err
	}
	if s.Tokens == nil {
		return "", errNoUsers()
	}
	// The key is a file, so the two cannot commit together: the order is recorded first, and nothing is changed when it cannot be.
	if err := s.Store.Audit(ctx, s.event(a, core.ActionSessionKey, "server")); err != nil {
		return "", core.Wrap(core.CodeAuditUnavailable, err, "the rotation cannot be recorded, so nothing was changed")
	}
	return s.Tokens.Rotate(ctx)
}

// SetupSuperuser makes the first superuser by the setup token, which works once.
func (s *Service) SetupSuperuser(ctx context.Context, o core.Origin, token auth.Secret, n NewUser) (auth.User, error) {
	n.Role, n.Name = auth.Superuser, strings.ToLower(n.Name)
	if s.Passwords == nil {
		return auth.User{}, errNoUsers()
	}
	settle, err := s.logins.begin(o.Source, core.DefaultAccount, "")
	if err != nil {
		return auth.User{}, err
	}
	u, err := s.setup(ctx, o, token, n)
	settle(core.CodeOf(err) != core.CodeInvalidLogin)
	return u, err
}

func (s *Service) setup(ctx context.Context, o core.Origin, token auth.Secret, n NewUser) (auth.User, error) {
	refused := core.Errorf(core.CodeInvalidLogin, "the setup token is not valid, was used, or has expired, or a server that started later has printed another one; start a server again for a new one")
	refuse := func() (auth.User, error) {
		e := s.userEvent(o, &auth.User{}, core.ActionUserCreate, "")
		e.Outcome, e.Reason = core.OutcomeRefused, string(refused.Code)
		if err := s.Store.Audit(context.WithoutCancel(ctx), e); err != nil {
			return auth.User{}, core.Wrap(core.CodeAuditUnavailable, err, "the refusal cannot be recorded; try again")
		}
		return auth.User{}, refused
	}
	text, ok := auth.ParseToken(auth.SetupKind, token)
	if !ok {
		return refuse()
	}
	stored, err := s.Store.SetupToken(ctx, text.ID)
	switch {
	case core.CodeOf(err) == core.CodeNotFound:
		return refuse()
	case err != nil:
		return auth.User{}, err
	case !s.Pepper.Matches(stored.Pepper, stored.Hash, token) || !s.Now().Before(stored.ExpiresAt):
		return refuse()
	}
	if err := s.checkUser(core.DefaultAccount, n); err != nil {
		return auth.User{}, err // the token is as good as before
	}
	hash, err := s.Passwords.Hash(ctx, n.Password)
	if err != nil {
		return auth.User{}, err
	}
	u := s.newUser(core.DefaultAccount, "setup", n)
	e := s.userEvent(o, &auth.User{}, core.ActionUserCreate, u.ID)
	e.Actor = "setup"
	if err := s.Store.UseSetupToken(ctx, text.ID, u, hash, e); err != nil {
		if core.CodeOf(err) == core.CodeNotFound {
			return refuse()
		}
		return auth.User{}, err
	}
	return u, nil
}

// NewSetupToken makes the one setup token of a server that has no superuser, in place of any earlier one. It returns an empty secret when there is a superuser.
func (s *Service) NewSetupToken(ctx context.Context) (auth.Secret, error) {
	has, err := s.Store.HasSuperuser(ctx)
	if err != nil || has {
		return auth.Secret{}, err
	}
	text, err := auth.GenerateToken(auth.SetupKind, s.Random)
	if err != nil {
		return auth.Secret{}, err
	}
	sum, _ := s.Pepper.Hash(s.Pepper.Newest(), text.Secret())
	now := s.Now().UTC()
	e := s.userEvent(core.Origin{}, &auth.User{}, core.ActionSetupToken, "server")
	e.Actor = "system"
	err = s.Store.PutSetupToken(ctx, auth.SetupToken{PublicID: text.ID, Hash: sum[:], Pepper: s.Pepper.Newest(), CreatedAt: now, ExpiresAt: now.Add(SetupLife)}, e)
	return text.Secret(), err
}

// EnsureSuperuser makes the superuser that the configuration names, and reports whether it did. One that exists is left alone, whatever its password is by now.
func (s *Service) EnsureSuperuser(ctx context.Context, name string, password auth.Secret) (created bool, err error) {
	n := NewUser{Name: strings.ToLower(name), Role: auth.Superuser, Password: password}
	if s.Passwords == nil {
		return false, errNoUsers()
	}
	// Before the look-up, so that a default password is refused at every start and not only at the first.
	if err := s.checkUser(core.DefaultAccount, n); err != nil {
		return false, err
	}
	switch _, err := s.Store.User(ctx, core.DefaultAccount, n.Name); core.CodeOf(err) {
	case "":
		return false, nil
	case core.CodeNotFound:
	default:
		return false, err
	}
	hash, err := s.Passwords.Hash(ctx, password)
	if err != nil {
		return false, err
	}
	u := s.newUser(core.DefaultAccount, "system", n)
	e := s.userEvent(core.Origin{}, &auth.User{}, core.ActionUserCreate, u.ID)
	e.Actor = "system"
	if err := s.Store.CreateUser(ctx, u, hash, e); err != nil {
		if core.CodeOf(err) == core.CodeConflict {
			return false, nil // another server was faster
		}
		return false, err
	}
	return true, nil
}
