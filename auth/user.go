package auth

import (
	"time"

	"github.com/keyfire/keyfire/core"
)

// User is a person who logs in with a password. Users belong to one account.
type User struct {
	ID          string // "usr_" + ULID; names the user in the API and in audit events
	Account     string
	Name        string // what they log in with; unique in the account
	Role        Role
	CreatedAt   time.Time
	CreatedBy   string    // actor, as in the audit event
	PasswordAt  time.Time // when the password was last set
	DisabledAt  time.Time // zero: may log in
	DisabledBy  string
	DisabledWhy string
	LastLoginAt time.Time // zero: never
}

// Subject is how the user is named as a principal and in audit events.
func (u *User) Subject() string { return "user:" + u.ID }

// Disabled reports whether the user may not log in.
func (u *User) Disabled() bool { return !u.DisabledAt.IsZero() }

// Session is the time from a login to its end. Its access tokens are short-lived and name it; its state decides with every request.
type Session struct {
	ID        string // "ses_" + ULID
	Account   string
	UserID    string
	CreatedAt time.Time
	SourceIP  string    // where the login came from
	ExpiresAt time.Time // it cannot be refreshed beyond this
	EndedAt   time.Time // zero: not ended
	EndedWhy  string    // such as "logout" or "role changed"
}

// LiveSession is a session with the user and the state of the account as they are now.
type LiveSession struct {
	Session         Session
	User            User
	AccountDisabled bool
}

// BackendSession is the backend of principals that are people.
const BackendSession = "session"

// Principal is whoever sends a request of the session, by a token that is good until expires.
func (l *LiveSession) Principal(expires time.Time) Principal {
	return Principal{
		Account: l.User.Account, Subject: l.User.Subject(), Backend: BackendSession, Scopes: l.User.Role.Scopes(), ExpiresAt: expires, User: &l.User, Session: &l.Session,
	}
}

// RefreshToken is the stored form of the token that continues a session: everything but its text. Each works once.
type RefreshToken struct {
	PublicID  string // the part of the text by which the row is found
	Account   string
	SessionID string
	Hash      []byte // HMAC-SHA-256(pepper, text)
	Pepper    int    // version of the pepper
	CreatedAt time.Time
	ExpiresAt time.Time
	UsedAt    time.Time // zero: not used
}

// SetupToken is the stored form of the token that makes the first superuser of a server.
type SetupToken struct {
	PublicID  string
	Hash      []byte
	Pepper    int
	CreatedAt time.Time
	ExpiresAt time.Time
}

// UserCheck decides about a change to a user, in the transaction that makes it: u is the user as they are then, and session finds a session as it is then, CodeNotFound for one
// that there is not.
type UserCheck func(u *User, session func(id string) (LiveSession, error)) error

// CheckSession returns nil for a session that may go on, and otherwise the error its holder is told.
func CheckSession(l *LiveSession, now time.Time) error {
	switch {
	case !l.Session.EndedAt.IsZero():
		return ErrSessionEnded()
	case !now.Before(l.Session.ExpiresAt):
		return core.Errorf(core.CodeSessionExpired, "the session expired; log in again")
	case l.User.Disabled():
		return core.Errorf(core.CodeUserDisabled, "this user is disabled; ask an owner of the account")
	}
	return nil
}

// ErrSessionEnded is what the holder of a session that has ended is told.
func ErrSessionEnded() *core.Error {
	return core.Errorf(core.CodeSessionEnded, "the session has ended; log in again")
}
