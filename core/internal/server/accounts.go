package server

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/admin"
)

// Account is an account as the API shows it.
type Account struct {
	Object         string     `json:"object" enum:"account" doc:"What this is."`
	ID             string     `json:"id"`
	Name           string     `json:"name" doc:"Unique on the server."`
	Title          string     `json:"title"`
	State          string     `json:"state" enum:"active,disabled"`
	CreatedAt      *time.Time `json:"created_at" doc:"null for the default account, which is as old as its server."`
	CreatedBy      string     `json:"created_by"`
	DisabledAt     *time.Time `json:"disabled_at"`
	DisabledBy     string     `json:"disabled_by,omitempty"`
	DisabledReason string     `json:"disabled_reason,omitempty"`

	RateLimits    []RateLimit `json:"rate_limits" nullable:"false" doc:"Of all runs of the account together, beside the limits of each key."`
	MaxConcurrent *int64      `json:"max_concurrent_runs"`
}

// NewAccount is the body of POST /v1/accounts.
type NewAccount struct {
	Name  string `json:"name" minLength:"1" maxLength:"63" doc:"A lower-case letter, then letters, digits and hyphens; unique on the server."`
	Title string `json:"title,omitempty" maxLength:"200" doc:"For showing."`
}

// ChangedAccount is the body of PATCH /v1/accounts/{account}. What is absent stays.
type ChangedAccount struct {
	Title         *string       `json:"title,omitempty" maxLength:"200" doc:"For showing."`
	RateLimits    *[]RateLimit  `json:"rate_limits,omitempty" maxItems:"10" doc:"Hold for all runs of the account together, beside the limits of each key; in headers their names begin with account:."`
	MaxConcurrent optionalCount `json:"max_concurrent_runs,omitzero" doc:"How many of its runs may be under way at once, up to 1000; null is no limit."`
}

// Reason is the body of requests that switch something off or on.
type Reason struct {
	Reason string `json:"reason,omitempty" maxLength:"1000" doc:"Kept with the object and in the audit log."`
}

// Disabling is the body of requests that switch off what starts runs.
type Disabling struct {
	Reason     string `json:"reason,omitempty" maxLength:"1000" doc:"Kept with the object and in the audit log."`
	CancelRuns bool   `json:"cancel_runs,omitempty" doc:"Also cancel the runs it has started that have not ended; the header Keyfire-Cancelled-Runs says how many those were."`
}

// readDisabling reads the body of a request that switches something off, or of its opposite, which cancels nothing.
func (s *Server) readDisabling(req *request, enabling bool) (d Disabling, err error) {
	if !enabling {
		return d, s.readOptional(req, &d)
	}
	var r Reason
	err = s.readOptional(req, &r)
	d.Reason = r.Reason
	return d, err
}

// cancelled says in the answer how many runs were cancelled. When that could not be finished, what was to come before it has still been done.
func cancelled(req *request) func(int, error) error {
	return func(n int, err error) error {
		req.c.Header("Keyfire-Cancelled-Runs", strconv.Itoa(n))
		return err
	}
}

// because is the reason of runs that are cancelled along with something.
func because(what, why string) string {
	if why == "" {
		return what
	}
	return what + ": " + why
}

func (s *Server) routeAccounts() {
	tags := []string{"Accounts"}
	register(s, huma.Operation{
		OperationID: "create-account", Method: http.MethodPost, Path: "/v1/accounts", Tags: tags, DefaultStatus: http.StatusCreated,
		Summary: "Create an account", Description: "It owns nothing yet: act for it with the header Keyfire-Account to make its first user or key. Needs the scope accounts:write.",
	}, s.jsonBody(NewAccount{}, true, map[string]any{"name": "acme", "title": "Acme Ltd"}), s.createAccount)
	register(s, huma.Operation{
		OperationID: "list-accounts", Method: http.MethodGet, Path: "/v1/accounts", Tags: tags,
		Summary: "List accounts", Description: "All of the server's, newest first. Needs the scope accounts:read.",
	}, nil, s.listAccounts)
	register(s, huma.Operation{
		OperationID: "get-account", Method: http.MethodGet, Path: "/v1/accounts/{account}", Tags: tags,
		Summary: "Show an account", Description: "Needs the scope accounts:read.",
	}, nil, s.getAccount)
	register(s, huma.Operation{
		OperationID: "change-account", Method: http.MethodPatch, Path: "/v1/accounts/{account}", Tags: tags,
		Summary: "Change an account",
		Description: "What is absent stays. The limits hold from the next request on for whoever starts runs of the account: with any key, a session, a signed webhook or none. " +
			"A rate limit that stays as it is keeps its state. Needs the scope accounts:write.",
	}, s.jsonBody(ChangedAccount{}, true, map[string]any{"rate_limits": []map[string]any{{"name": "burst", "limit": 100, "per": "1s"}}, "max_concurrent_runs": 50}), s.changeAccount)
	register(s, huma.Operation{
		OperationID: "disable-account", Method: http.MethodPost, Path: "/v1/accounts/{account}/disable", Tags: tags,
		Summary: "Disable an account",
		Description: "Once this has answered, no request that starts later is accepted with a key, a session or any other credential of the account: they get `account_disabled`. " +
			"Runs already accepted finish unless `cancel_runs` is true. The default account cannot be disabled. Needs the scope accounts:write.",
	}, s.jsonBody(Disabling{}, false, nil), s.switchAccount(false))
	register(s, huma.Operation{
		OperationID: "enable-account", Method: http.MethodPost, Path: "/v1/accounts/{account}/enable", Tags: tags,
		Summary: "Enable an account", Description: "Its keys work again as they did before. Needs the scope accounts:write.",
	}, s.jsonBody(Reason{}, false, nil), s.switchAccount(true))
	register(s, huma.Operation{
		OperationID: "delete-account", Method: http.MethodDelete, Path: "/v1/accounts/{account}", Tags: tags, DefaultStatus: http.StatusNoContent,
		Summary: "Delete an account",
		Description: "It must be disabled. From then on it does not exist; everything it owned is removed in the background, for good. Only its audit events stay. " +
			"Needs the scope accounts:write.",
	}, nil, s.deleteAccount)
}

// AccountParams names an account.
type AccountParams struct {
	Account string `path:"account" doc:"Id or name of the account." maxLength:"64"`
}

type createAccountAnswer struct {
	Location string `header:"Location" doc:"The account."`
	Body     Account
}

func (s *Server) createAccount(ctx context.Context, req *request, _ *struct{}) (*createAccountAnswer, error) {
	var n NewAccount
	if err := s.readObject(req, &n); err != nil {
		return nil, err
	}
	a, err := s.Admin.CreateAccount(ctx, req.actor(), n.Name, n.Title)
	if err != nil {
		return nil, err
	}
	return &createAccountAnswer{Location: "/v1/accounts/" + a.ID, Body: accountBody(&a)}, nil
}

func (s *Server) listAccounts(ctx context.Context, req *request, in *struct{ PageParams }) (*listAnswer[Account], error) {
	l, err := s.Admin.Accounts(ctx, req.actor(), in.page())
	if err != nil {
		return nil, err
	}
	return listOf(req, l, accountBody), nil
}

func (s *Server) getAccount(ctx context.Context, req *request, in *AccountParams) (*answer[Account], error) {
	return show(accountBody)(s.Admin.Account(ctx, req.actor(), in.Account))
}

func (s *Server) changeAccount(ctx context.Context, req *request, in *AccountParams) (*answer[Account], error) {
	var n ChangedAccount
	if err := s.readChange(req, &n); err != nil {
		return nil, err
	}
	change := admin.AccountChange{Title: n.Title}
	if n.RateLimits != nil {
		limits, err := coreLimits(*n.RateLimits)
		if err != nil {
			return nil, err
		}
		change.RateLimits = &limits
	}
	if n.MaxConcurrent.set {
		v, err := n.MaxConcurrent.atLeastOne("max_concurrent_runs")
		if err != nil {
			return nil, err
		}
		change.MaxConcurrent = &v
	}
	return show(accountBody)(s.Admin.UpdateAccount(ctx, req.actor(), in.Account, change))
}

func (s *Server) switchAccount(enabled bool) handler[AccountParams, answer[Account]] {
	return func(ctx context.Context, req *request, in *AccountParams) (*answer[Account], error) {
		r, err := s.readDisabling(req, enabled)
		if err != nil {
			return nil, err
		}
		a, err := s.Admin.SetAccountEnabled(ctx, req.actor(), in.Account, enabled, r.Reason)
		if err == nil && r.CancelRuns {
			err = cancelled(req)(s.Trigger.CancelAccountRuns(ctx, req.caller(), a.ID, because("account disabled", r.Reason)))
		}
		return show(accountBody)(a, err)
	}
}

func (s *Server) deleteAccount(ctx context.Context, req *request, in *AccountParams) (*struct{}, error) {
	return nil, s.Admin.DeleteAccount(ctx, req.actor(), in.Account)
}

func accountBody(a *core.Account) Account {
	body := Account{
		Object: "account", ID: a.ID, Name: a.Name, Title: a.Title, State: "active", CreatedAt: timeOrNull(a.CreatedAt), CreatedBy: a.CreatedBy,
		DisabledAt: timeOrNull(a.DisabledAt), DisabledBy: a.DisabledBy, DisabledReason: a.DisabledWhy,
		RateLimits: limitBodies(a.RateLimits),
	}
	if a.MaxConcurrent > 0 {
		body.MaxConcurrent = &a.MaxConcurrent
	}
	if a.Disabled() {
		body.State = "disabled"
	}
	return body
}
