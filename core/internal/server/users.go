package server

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/admin"
)

// User is a person who can log in, as the API shows them.
type User struct {
	Object         string     `json:"object" enum:"user" doc:"What this is."`
	ID             string     `json:"id"`
	Name           string     `json:"name" doc:"What they log in with; unique in the account."`
	Role           auth.Role  `json:"role" enum:"viewer,operator,owner,superuser"`
	State          string     `json:"state" enum:"active,disabled"`
	CreatedAt      time.Time  `json:"created_at"`
	CreatedBy      string     `json:"created_by"`
	PasswordSetAt  time.Time  `json:"password_set_at"`
	LastLoginAt    *time.Time `json:"last_login_at"`
	DisabledAt     *time.Time `json:"disabled_at"`
	DisabledBy     string     `json:"disabled_by,omitempty"`
	DisabledReason string     `json:"disabled_reason,omitempty"`
}

// NewUser is the body of POST /v1/users.
type NewUser struct {
	Name     string     `json:"name" minLength:"1" maxLength:"128" doc:"What they log in with: letters, digits and . _ @ + -, such as a mail address. Unique in the account."`
	Role     auth.Role  `json:"role" enum:"viewer,operator,owner,superuser" doc:"viewer sees, operator also runs and publishes and manages keys, owner also manages users. A superuser, in the default account only, operates the server."`
	Password secretText `json:"password" doc:"10 to 1024 bytes. Well-known ones are refused."`
}

// NewRole is the body of PUT /v1/users/{user}/role.
type NewRole struct {
	Role auth.Role `json:"role" enum:"viewer,operator,owner,superuser"`
}

// NewPassword is the body of PUT /v1/users/{user}/password.
type NewPassword struct {
	Password secretText `json:"password" doc:"The new password: 10 to 1024 bytes. Well-known ones are refused."`
	Current  secretText `json:"current_password,omitzero" doc:"The present password; required of users who set their own."`
}

// secretText is a member of a body that must not be printed.
type secretText struct{ auth.Secret }

// UnmarshalJSON reads a string.
func (s *secretText) UnmarshalJSON(b []byte) error {
	var text string
	if json.Unmarshal(b, &text) != nil {
		return core.Errorf(core.CodeInvalidInput, "a password or token must be a string")
	}
	s.Secret = auth.NewSecret(text)
	return nil
}

// Schema describes the value to the API document.
func (secretText) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, Format: "password"}
}

func (s *Server) routeUsers() {
	tags := []string{"Users"}
	register(s, huma.Operation{
		OperationID: "create-user", Method: http.MethodPost, Path: "/v1/users", Tags: tags, DefaultStatus: http.StatusCreated,
		Summary: "Create a user", Description: "Nobody can create a user who may do more than their own credential. Needs the scope users:write.",
	}, s.jsonBody(NewUser{}, true, map[string]any{"name": "ada@example.com", "role": "operator", "password": "a long one of her own"}), s.createUser)
	register(s, huma.Operation{
		OperationID: "list-users", Method: http.MethodGet, Path: "/v1/users", Tags: tags,
		Summary: "List users", Description: "Those of the account, newest first. Needs the scope users:read.",
	}, nil, s.listUsers)
	register(s, huma.Operation{
		OperationID: "get-user", Method: http.MethodGet, Path: "/v1/users/{user}", Tags: tags,
		Summary: "Show a user", Description: "Needs the scope users:read, except for oneself.",
	}, nil, s.getUser)
	register(s, huma.Operation{
		OperationID: "set-user-role", Method: http.MethodPut, Path: "/v1/users/{user}/role", Tags: tags,
		Summary: "Set a user's role", Description: "Their sessions end. Not one's own, and not beyond what the credential may do itself. Needs the scope users:write.",
	}, s.jsonBody(NewRole{}, true, map[string]any{"role": "viewer"}), s.setUserRole)
	register(s, huma.Operation{
		OperationID: "set-user-password", Method: http.MethodPut, Path: "/v1/users/{user}/password", Tags: tags,
		Summary: "Set a user's password", Description: "Their sessions end, one's own included. One's own needs the present password and no scope; that of others needs users:write.",
	}, s.jsonBody(NewPassword{}, true, map[string]any{"password": "another long one", "current_password": "a long one of her own"}), s.setUserPassword)
	register(s, huma.Operation{
		OperationID: "disable-user", Method: http.MethodPost, Path: "/v1/users/{user}/disable", Tags: tags,
		Summary: "Disable a user", Description: "Once this has answered, no request that starts later is accepted from their sessions, and they cannot log in. Needs the scope users:write.",
	}, s.jsonBody(Reason{}, false, nil), s.switchUser(false))
	register(s, huma.Operation{
		OperationID: "enable-user", Method: http.MethodPost, Path: "/v1/users/{user}/enable", Tags: tags,
		Summary: "Enable a user", Description: "They can log in again. Needs the scope users:write.",
	}, s.jsonBody(Reason{}, false, nil), s.switchUser(true))
	register(s, huma.Operation{
		OperationID: "delete-user", Method: http.MethodDelete, Path: "/v1/users/{user}", Tags: tags, DefaultStatus: http.StatusNoContent,
		Summary: "Delete a user", Description: "Their sessions end. Keys they made stay. Needs the scope users:write.",
	}, nil, s.deleteUser)
}

// UserParams names a user.
type UserParams struct {
	User string `path:"user" doc:"Id or name of the user." maxLength:"128"`
}

type createUserAnswer struct {
	Location string `header:"Location" doc:"The user."`
	Body     User
}

func (s *Server) createUser(ctx context.Context, req *request, _ *struct{}) (*createUserAnswer, error) {
	var n NewUser
	if err := s.readObject(req, &n); err != nil {
		return nil, err
	}
	u, err := s.Admin.CreateUser(ctx, req.actor(), admin.NewUser{Name: n.Name, Role: n.Role, Password: n.Password.Secret})
	if err != nil {
		return nil, err
	}
	return &createUserAnswer{Location: "/v1/users/" + u.ID, Body: userBody(&u)}, nil
}

func (s *Server) listUsers(ctx context.Context, req *request, in *struct{ PageParams }) (*listAnswer[User], error) {
	l, err := s.Admin.Users(ctx, req.actor(), in.page())
	if err != nil {
		return nil, err
	}
	return listOf(req, l, userBody), nil
}

func (s *Server) getUser(ctx context.Context, req *request, in *UserParams) (*answer[User], error) {
	return show(userBody)(s.Admin.User(ctx, req.actor(), in.User))
}

func (s *Server) setUserRole(ctx context.Context, req *request, in *UserParams) (*answer[User], error) {
	var n NewRole
	if err := s.readObject(req, &n); err != nil {
		return nil, err
	}
	return show(userBody)(s.Admin.SetUserRole(ctx, req.actor(), in.User, n.Role))
}

func (s *Server) setUserPassword(ctx context.Context, req *request, in *UserParams) (*answer[User], error) {
	var n NewPassword
	if err := s.readObject(req, &n); err != nil {
		return nil, err
	}
	return show(userBody)(s.Admin.SetPassword(ctx, req.actor(), in.User, n.Current.Secret, n.Password.Secret))
}

func (s *Server) switchUser(enabled bool) handler[UserParams, answer[User]] {
	return func(ctx context.Context, req *request, in *UserParams) (*answer[User], error) {
		var r Reason
		if err := s.readOptional(req, &r); err != nil {
			return nil, err
		}
		return show(userBody)(s.Admin.SetUserEnabled(ctx, req.actor(), in.User, enabled, r.Reason))
	}
}

func (s *Server) deleteUser(ctx context.Context, req *request, in *UserParams) (*struct{}, error) {
	return nil, s.Admin.DeleteUser(ctx, req.actor(), in.User)
}

func userBody(u *auth.User) User {
	body := User{
		Object: "user", ID: u.ID, Name: u.Name, Role: u.Role, State: "active", CreatedAt: u.CreatedAt.UTC(), CreatedBy: u.CreatedBy, PasswordSetAt: u.PasswordAt.UTC(),
		LastLoginAt: timeOrNull(u.LastLoginAt), DisabledAt: timeOrNull(u.DisabledAt), DisabledBy: u.DisabledBy, DisabledReason: u.DisabledWhy,
	}
	if u.Disabled() {
		body.State = "disabled"
	}
	return body
}
