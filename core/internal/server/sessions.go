package server

import (
	"context"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/gin-gonic/gin"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/admin"
)

// Session is what a login or a refresh gives: the tokens, this once.
type Session struct {
	Object           string    `json:"object" enum:"session" doc:"What this is."`
	ID               string    `json:"id"`
	TokenType        string    `json:"token_type" enum:"Bearer"`
	AccessToken      string    `json:"access_token" doc:"Send it as Authorization: Bearer. It is short-lived."`
	ExpiresIn        int64     `json:"expires_in" doc:"Seconds until the access token expires."`
	ExpiresAt        time.Time `json:"expires_at" doc:"When the access token expires."`
	RefreshToken     string    `json:"refresh_token" doc:"Gets the next two tokens, once. Using it twice ends the session."`
	RefreshExpiresAt time.Time `json:"refresh_expires_at" doc:"When the refresh token expires."`
	User             User      `json:"user"`
}

// Login is the body of POST /v1/auth/login.
type Login struct {
	Account  string     `json:"account,omitempty" maxLength:"64" doc:"Id or name of the account; absent is the default account."`
	User     string     `json:"user" maxLength:"128" doc:"Name of the user."`
	Password secretText `json:"password"`
}

// Refresh is the body of POST /v1/auth/refresh.
type Refresh struct {
	RefreshToken secretText `json:"refresh_token"`
}

// Logout is the body of POST /v1/auth/logout.
type Logout struct {
	All bool `json:"all,omitempty" doc:"End all sessions of the user, not only this one."`
}

// Setup is the body of POST /v1/setup.
type Setup struct {
	Token    secretText `json:"token" doc:"The setup token that the server printed when it started."`
	Name     string     `json:"name" maxLength:"128" doc:"Name of the superuser."`
	Password secretText `json:"password" doc:"10 to 1024 bytes. Well-known ones are refused."`
}

// Self is who a credential belongs to.
type Self struct {
	Object    string     `json:"object" enum:"self" doc:"What this is."`
	Subject   string     `json:"subject" doc:"How the audit log names you." example:"user:usr_01jd"`
	Backend   string     `json:"backend" doc:"What has recognised the credential: apikey, session, socket, or an auth backend."`
	Account   AccountRef `json:"account" doc:"The account you act for."`
	Role      *auth.Role `json:"role" doc:"Of a user; null for other credentials."`
	User      *string    `json:"user" doc:"Name of the user; null for other credentials."`
	Scopes    []string   `json:"scopes" nullable:"false" doc:"What you may do."`
	SessionID *string    `json:"session_id" doc:"null for a credential that is no session."`
	ExpiresAt *time.Time `json:"expires_at" doc:"When the credential expires; null is never, or not known."`
}

// AccountRef names an account.
type AccountRef struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

// SigningKey is a key that session tokens are signed with.
type SigningKey struct {
	Object string `json:"object" enum:"signing_key" doc:"What this is."`
	ID     string `json:"id"`
}

// maxLogin bounds the body of a request whose sender is not known yet.
const maxLogin = 16 << 10

func (s *Server) routeSessions() {
	tags := []string{"Sessions"}
	registerOpen(s, huma.Operation{
		OperationID: "login", Method: http.MethodPost, Path: "/v1/auth/login", Tags: tags,
		Summary:     "Log in",
		Description: "For people; programs have keys. Unknown names and wrong passwords are one answer. Ten failures with one user, or fifty in all, make an address wait for up to five minutes.",
	}, s.jsonBody(Login{}, true, map[string]any{"account": "acme", "user": "ada@example.com", "password": "a long one of her own"}), s.login)
	registerOpen(s, huma.Operation{
		OperationID: "refresh", Method: http.MethodPost, Path: "/v1/auth/refresh", Tags: tags,
		Summary: "Continue a session", Description: "The refresh token is replaced by a new one. A session ends 30 days after its login, or when nobody has refreshed it for 7 days.",
	}, s.jsonBody(Refresh{}, true, nil), s.refresh)
	registerOpen(s, huma.Operation{
		OperationID: "setup", Method: http.MethodPost, Path: "/v1/setup", Tags: tags, DefaultStatus: http.StatusCreated,
		Summary: "Make the first superuser", Description: "With the setup token that a server without a superuser prints on its standard error when it starts. It works once, for an hour.",
	}, s.jsonBody(Setup{}, true, nil), s.setup)
	register(s, huma.Operation{
		OperationID: "logout", Method: http.MethodPost, Path: "/v1/auth/logout", Tags: tags, DefaultStatus: http.StatusNoContent,
		Summary: "Log out", Description: "Ends the session whose token this request carries: no request that starts later is accepted with it.",
	}, s.jsonBody(Logout{}, false, nil), s.logout)
	register(s, huma.Operation{
		OperationID: "whoami", Method: http.MethodGet, Path: "/v1/auth/whoami", Tags: tags,
		Summary: "Who am I?", Description: "What this credential is and may do. Needs no scope.",
	}, nil, s.whoAmI)
	register(s, huma.Operation{
		OperationID: "rotate-signing-key", Method: http.MethodPost, Path: "/v1/auth/signing-key/rotate", Tags: tags,
		Summary: "Replace the key that signs session tokens", Description: "Sessions go on. Needs the scope accounts:write.",
	}, nil, s.rotateSigningKey)
}

// registerOpen adds a route that needs no credential, because what it reads is one. The body is bounded more narrowly than others.
func registerOpen[B, O any](s *Server, op huma.Operation, body *huma.RequestBody, h func(ctx context.Context, req *request, body *B) (*O, error)) {
	status := max(op.DefaultStatus, http.StatusOK)
	s.engine.Handle(op.Method, op.Path, func(c *gin.Context) {
		ctx := c.Request.Context()
		req := requestOf(ctx)
		var b B
		err := s.readOpen(c, req, &b)
		var out *O
		if err == nil {
			out, err = h(ctx, req, &b)
		}
		if err != nil {
			s.fail(c, err)
			return
		}
		s.send(c, status, typeJSON, out)
	})
	op.RequestBody = body
	op.Security = []map[string][]string{}
	op.Responses = map[string]*huma.Response{strconv.Itoa(status): {
		Content: map[string]*huma.MediaType{typeJSON: {Schema: s.schema(*new(O))}},
	}}
	s.describeErrors(&op)
	s.api.OpenAPI().AddOperation(&op)
}

func (s *Server) readOpen(c *gin.Context, req *request, v any) error {
	if req.ambiguous != nil || !req.credential.None() {
		// Whoever reads logs must not have to guess which of the two was meant.
		return errAmbiguous()
	}
	if c.Request.URL.RawQuery != "" {
		return core.Errorf(core.CodeInvalidRequest, "this route has no query parameters; nothing secret belongs into a URL")
	}
	if err := s.checkType(c, typeJSON); err != nil {
		return err
	}
	body, err := s.readBody(c, req, maxLogin)
	if err != nil {
		return err
	}
	if err := core.CheckJSON(body, core.JSONLimits{}); err != nil {
		return err
	}
	return decodeObject(body, v)
}

func (s *Server) login(ctx context.Context, req *request, in *Login) (*Session, error) {
	g, err := s.Admin.Login(ctx, req.origin, admin.Credentials{Account: in.Account, Name: in.User, Password: in.Password.Secret})
	if err != nil {
		return nil, err
	}
	return s.sessionBody(g), nil
}

func (s *Server) refresh(ctx context.Context, req *request, in *Refresh) (*Session, error) {
	g, err := s.Admin.Refresh(ctx, req.origin, in.RefreshToken.Secret)
	if err != nil {
		// Guessing a token is counted like guessing a key.
		return nil, s.Trigger.Refuse(ctx, req.origin, err)
	}
	return s.sessionBody(g), nil
}

func (s *Server) sessionBody(g *admin.Grant) *Session {
	return &Session{
		Object: "session", ID: g.Session.ID, TokenType: "Bearer", AccessToken: g.Access.Reveal(), ExpiresAt: g.AccessExpires,
		ExpiresIn: int64(g.AccessExpires.Sub(s.Now()).Round(time.Second) / time.Second), RefreshToken: g.Refresh.Reveal(), RefreshExpiresAt: g.RefreshExpires.UTC(), User: userBody(&g.User),
	}
}

func (s *Server) setup(ctx context.Context, req *request, in *Setup) (*User, error) {
	u, err := s.Admin.SetupSuperuser(ctx, req.origin, in.Token.Secret, admin.NewUser{Name: in.Name, Password: in.Password.Secret})
	if err != nil {
		return nil, err
	}
	body := userBody(&u)
	return &body, nil
}

func (s *Server) logout(ctx context.Context, req *request, _ *struct{}) (*struct{}, error) {
	var l Logout
	if err := s.readOptional(req, &l); err != nil {
		return nil, err
	}
	return nil, s.Admin.Logout(ctx, req.actor(), l.All)
}

func (s *Server) whoAmI(ctx context.Context, req *request, _ *struct{}) (*answer[Self], error) {
	self, err := s.Admin.WhoAmI(ctx, req.actor())
	if err != nil {
		return nil, err
	}
	p := &req.principal
	body := Self{
		Object: "self", Subject: p.Subject, Backend: p.Backend, Account: AccountRef{self.Account.ID, self.Account.Name}, Scopes: slices.Clone(p.Scopes), ExpiresAt: timeOrNull(p.ExpiresAt),
	}
	if body.Scopes == nil {
		body.Scopes = []string{}
	}
	if p.User != nil {
		body.Role, body.User = &self.Role, &p.User.Name
	}
	if p.Session != nil {
		body.SessionID = &p.Session.ID
	}
	if p.Key != nil {
		body.ExpiresAt = timeOrNull(p.Key.ExpiresAt)
	}
	return &answer[Self]{Body: body}, nil
}

func (s *Server) rotateSigningKey(ctx context.Context, req *request, _ *struct{}) (*answer[SigningKey], error) {
	id, err := s.Admin.RotateSessionKey(ctx, req.actor())
	if err != nil {
		return nil, err
	}
	return &answer[SigningKey]{Body: SigningKey{Object: "signing_key", ID: id}}, nil
}
