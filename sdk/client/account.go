package client

import (
	"context"
	"net/http"
	"time"
)

// Account is a tenant of the server. Only superusers see accounts.
type Account struct {
	ID             string     `json:"id"`
	Name           string     `json:"name"`
	Title          string     `json:"title"`
	State          string     `json:"state"` // active, disabled
	CreatedAt      time.Time  `json:"created_at"`
	CreatedBy      string     `json:"created_by"`
	DisabledAt     *time.Time `json:"disabled_at"`
	DisabledBy     string     `json:"disabled_by,omitempty"`
	DisabledReason string     `json:"disabled_reason,omitempty"`

	RateLimits        []RateLimit `json:"rate_limits"`         // of all runs of the account together
	MaxConcurrentRuns *int64      `json:"max_concurrent_runs"` // nil: no limit

	Response Response `json:"-"`
}

// Raw returns the object as the server sent it, with members that this version of the package does not know.
func (a *Account) Raw() []byte { return a.Response.Body }

// User is a person who can log in.
type User struct {
	ID             string     `json:"id"`
	Name           string     `json:"name"`
	Role           string     `json:"role"`  // viewer, operator, owner, superuser
	State          string     `json:"state"` // active, disabled
	CreatedAt      time.Time  `json:"created_at"`
	CreatedBy      string     `json:"created_by"`
	PasswordSetAt  time.Time  `json:"password_set_at"`
	LastLoginAt    *time.Time `json:"last_login_at"`
	DisabledAt     *time.Time `json:"disabled_at"`
	DisabledBy     string     `json:"disabled_by,omitempty"`
	DisabledReason string     `json:"disabled_reason,omitempty"`

	Response Response `json:"-"`
}

// Raw returns the object as the server sent it, with members that this version of the package does not know.
func (u *User) Raw() []byte { return u.Response.Body }

// Session is what a login gives: the tokens of a person. They are secrets.
type Session struct {
	ID               string    `json:"id"`
	AccessToken      string    `json:"access_token"` // goes into Config.Key
	ExpiresAt        time.Time `json:"expires_at"`
	RefreshToken     string    `json:"refresh_token"` // for Refresh, once
	RefreshExpiresAt time.Time `json:"refresh_expires_at"`
	User             User      `json:"user"`

	Response Response `json:"-"`
}

// Self is who the credential of a Client belongs to.
type Self struct {
	Subject string `json:"subject"` // as in the audit log, such as "user:usr_01..."
	Backend string `json:"backend"` // what has recognised the credential
	Account struct {
		ID   string `json:"id"`
		Name string `json:"name"`
	} `json:"account"`
	Role      string     `json:"role"` // "" for what is no user
	User      string     `json:"user"` // name of the user
	Scopes    []string   `json:"scopes"`
	SessionID string     `json:"session_id"`
	ExpiresAt *time.Time `json:"expires_at"`

	Response Response `json:"-"`
}

// Raw returns the object as the server sent it, with members that this version of the package does not know.
func (s *Self) Raw() []byte { return s.Response.Body }

// SigningKey is a key that session tokens are signed with, without the key.
type SigningKey struct {
	ID string `json:"id"`

	Response Response `json:"-"`
}

// Raw returns the object as the server sent it.
func (k *SigningKey) Raw() []byte { return k.Response.Body }

func (c *Client) oneAccount(ctx context.Context, r request) (*Account, error) {
	return one(ctx, c, r, func(a *Account, res Response) { a.Response = res })
}

func (c *Client) oneUser(ctx context.Context, r request) (*User, error) {
	return one(ctx, c, r, func(u *User, res Response) { u.Response = res })
}

// CreateAccount makes an account. The title may be empty.
func (c *Client) CreateAccount(ctx context.Context, name, title string) (*Account, error) {
	body := map[string]string{"name": name}
	if title != "" {
		body["title"] = title
	}
	return c.oneAccount(ctx, request{method: http.MethodPost, path: []string{"v1", "accounts"}, body: body})
}

// Account returns an account by id or name.
func (c *Client) Account(ctx context.Context, ref string) (*Account, error) {
	return c.oneAccount(ctx, request{method: http.MethodGet, path: []string{"v1", "accounts", ref}})
}

// Accounts lists the server's accounts, newest first.
func (c *Client) Accounts(ctx context.Context, p Page) (*List[Account], error) {
	return list[Account](ctx, c, p.values(), "v1", "accounts")
}

// AccountChange says what shall change about an account, as members of PATCH /v1/accounts/{account}: what is absent stays, and nil takes a limit away.
type AccountChange map[string]any

// UpdateAccount changes an account. Its limits hold for every request that starts later.
func (c *Client) UpdateAccount(ctx context.Context, ref string, change AccountChange) (*Account, error) {
	return c.oneAccount(ctx, request{method: http.MethodPatch, path: []string{"v1", "accounts", ref}, body: change})
}

// EnableAccount lets an account be used again.
func (c *Client) EnableAccount(ctx context.Context, ref, reason string) (*Account, error) {
	return c.oneAccount(ctx, request{method: http.MethodPost, path: []string{"v1", "accounts", ref, "enable"}, body: because(reason)})
}

// DisableAccount ends all use of an account: once it has returned, no request that starts later is accepted for it. Runs already accepted finish unless CancelRuns
// is given.
func (c *Client) DisableAccount(ctx context.Context, ref, reason string, also ...Also) (*Account, error) {
	return c.oneAccount(ctx, request{method: http.MethodPost, path: []string{"v1", "accounts", ref, "disable"}, body: disabling(reason, also)})
}

// DeleteAccount deletes a disabled account with everything it owns.
func (c *Client) DeleteAccount(ctx context.Context, ref string) (Response, error) {
	return c.do(ctx, request{method: http.MethodDelete, path: []string{"v1", "accounts", ref}}, nil)
}

// CreateUser makes a user with a password.
func (c *Client) CreateUser(ctx context.Context, name, role, password string) (*User, error) {
	return c.oneUser(ctx, request{method: http.MethodPost, path: []string{"v1", "users"}, body: map[string]string{"name": name, "role": role, "password": password}})
}

// User returns a user by id or name.
func (c *Client) User(ctx context.Context, ref string) (*User, error) {
	return c.oneUser(ctx, request{method: http.MethodGet, path: []string{"v1", "users", ref}})
}

// Users lists the account's users, newest first.
func (c *Client) Users(ctx context.Context, p Page) (*List[User], error) {
	return list[User](ctx, c, p.values(), "v1", "users")
}

// SetUserRole gives a user another role, and ends their sessions.
func (c *Client) SetUserRole(ctx context.Context, ref, role string) (*User, error) {
	return c.oneUser(ctx, request{method: http.MethodPut, path: []string{"v1", "users", ref, "role"}, body: map[string]string{"role": role}})
}

// SetPassword sets a password and ends the sessions of its user. current is the present one of a user who sets their own, and "" otherwise.
func (c *Client) SetPassword(ctx context.Context, ref, current, password string) (*User, error) {
	body := map[string]string{"password": password}
	if current != "" {
		body["current_password"] = current
	}
	return c.oneUser(ctx, request{method: http.MethodPut, path: []string{"v1", "users", ref, "password"}, body: body})
}

// EnableUser lets a user log in again.
func (c *Client) EnableUser(ctx context.Context, ref, reason string) (*User, error) {
	return c.oneUser(ctx, request{method: http.MethodPost, path: []string{"v1", "users", ref, "enable"}, body: because(reason)})
}

// DisableUser ends a user's sessions and keeps them from logging in.
func (c *Client) DisableUser(ctx context.Context, ref, reason string) (*User, error) {
	return c.oneUser(ctx, request{method: http.MethodPost, path: []string{"v1", "users", ref, "disable"}, body: because(reason)})
}

// DeleteUser removes a user.
func (c *Client) DeleteUser(ctx context.Context, ref string) (Response, error) {
	return c.do(ctx, request{method: http.MethodDelete, path: []string{"v1", "users", ref}}, nil)
}

// Login begins a session of a person. account is an id or a name, "" for the default account. The Client must have no Key.
func (c *Client) Login(ctx context.Context, account, user, password string) (*Session, error) {
	body := map[string]string{"user": user, "password": password}
	if account != "" {
		body["account"] = account
	}
	return one(ctx, c, request{method: http.MethodPost, path: []string{"v1", "auth", "login"}, body: body}, func(s *Session, res Response) { s.Response = res })
}

// Refresh continues a session. The token cannot be used again: using one twice ends the session. The Client must have no Key.
func (c *Client) Refresh(ctx context.Context, refreshToken string) (*Session, error) {
	return one(ctx, c, request{method: http.MethodPost, path: []string{"v1", "auth", "refresh"}, body: map[string]string{"refresh_token": refreshToken}}, func(s *Session, res Response) { s.Response = res })
}

// Logout ends the session whose access token is the Client's Key, or with all every session of its user.
func (c *Client) Logout(ctx context.Context, all bool) (Response, error) {
	body := map[string]bool{}
	if all {
		body["all"] = true
	}
	return c.do(ctx, request{method: http.MethodPost, path: []string{"v1", "auth", "logout"}, body: body}, nil)
}

// WhoAmI says who the Client's credential belongs to, and what it may do.
func (c *Client) WhoAmI(ctx context.Context) (*Self, error) {
	return one(ctx, c, request{method: http.MethodGet, path: []string{"v1", "auth", "whoami"}}, func(s *Self, res Response) { s.Response = res })
}

// Setup makes the first superuser of a server by the token it printed. The Client must have no Key.
func (c *Client) Setup(ctx context.Context, token, name, password string) (*User, error) {
	return c.oneUser(ctx, request{method: http.MethodPost, path: []string{"v1", "setup"}, body: map[string]string{"token": token, "name": name, "password": password}})
}

// RotateSigningKey replaces the key that session tokens are signed with. Sessions go on.
func (c *Client) RotateSigningKey(ctx context.Context) (*SigningKey, error) {
	return one(ctx, c, request{method: http.MethodPost, path: []string{"v1", "auth", "signing-key", "rotate"}}, func(k *SigningKey, res Response) { k.Response = res })
}
