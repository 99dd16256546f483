package console

import (
	"errors"
	"net/http"
	"net/url"
	"path"
	"strings"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/admin"
)

// SessionOf returns the session that a browser has sent, an empty Secret if it has sent none.
func SessionOf(r *http.Request) auth.Secret {
	cookie, err := r.Cookie(cookieName)
	if err != nil {
		return auth.Secret{}
	}
	return auth.NewSecret(cookie.Value)
}

// known lets a handler answer only people who are logged in; others are sent to log in, and come back after it.
func (c *Console) known(h handler) handler {
	return func(v *visit) error {
		err := c.recognise(v)
		switch core.CodeOf(err) {
		case "":
			return h(v)
		case core.CodeUnauthenticated, core.CodeInvalidKey, core.CodeSessionEnded, core.CodeSessionExpired:
			back := ""
			if v.r.Method == http.MethodGet || v.r.Method == http.MethodHead {
				back = "?next=" + url.QueryEscape(v.r.URL.RequestURI())
			}
			return v.redirect(pathLogin + back)
		}
		return err
	}
}

// recognise says who the visitor is.
func (c *Console) recognise(v *visit) error {
	if v.session.Empty() {
		return core.Errorf(core.CodeUnauthenticated, "log in first")
	}
	var err error
	v.Principal, err = c.Admin.Resume(v.ctx(), v.origin, v.session)
	if core.CodeOf(err) == core.CodeInvalidKey {
		return c.Refused(v.ctx(), v.origin, err) // guessing is counted as it is everywhere
	}
	return err
}

// loginForm is what the page of the form shows.
type loginForm struct {
	Account, User, Next string
	Problem             string
}

func (c *Console) showLogin(v *visit) error {
	next := after(v.r.URL.Query().Get("next"))
	if c.recognise(v) == nil {
		return v.redirect(next)
	}
	v.Principal = auth.Principal{}
	return c.render(v, http.StatusOK, "login", "Log in", loginForm{Next: next})
}

func (c *Console) login(v *visit) error {
	values, err := v.form()
	if err != nil {
		return err
	}
	f := loginForm{Account: strings.TrimSpace(values.Get("account")), User: strings.TrimSpace(values.Get("user")), Next: after(values.Get("next"))}
	g, err := c.Admin.Login(v.ctx(), v.origin, admin.Credentials{Account: f.Account, Name: f.User, Password: auth.NewSecret(values.Get("password"))})
	switch core.CodeOf(err) {
	case "":
	case core.CodeInvalidLogin, core.CodeUserDisabled, core.CodeAccountDisabled:
		f.Problem = said(err)
		return c.render(v, http.StatusUnauthorized, "login", "Log in", f)
	default:
		return err
	}
	v.setCookie(g.Refresh.Reveal(), int(g.RefreshExpires.Sub(c.Now()).Seconds()))
	return v.redirect(f.Next)
}

func (c *Console) logout(v *visit) error {
	if err := c.Admin.Logout(v.ctx(), v.actor(), false); err != nil {
		return err
	}
	v.setCookie("", -1)
	return v.redirect(pathLogin)
}

// setCookie gives the browser the cookie for some seconds, or takes it back. Lax: a link to a page from elsewhere finds the visitor logged in; nothing is changed by a link.
func (v *visit) setCookie(value string, seconds int) {
	cookie := http.Cookie{ //nolint:gosec // Secure is set wherever the visitor has TLS; on this machine alone there is none
		Name: cookieName, Value: value, Path: Prefix, MaxAge: seconds, HttpOnly: true, SameSite: http.SameSiteLaxMode, Secure: v.origin.TLS,
	}
	v.Header.Set("Set-Cookie", cookie.String())
}

// after is where to go after the login: to a page of the console, whatever is asked for.
func after(next string) string {
	u, err := url.Parse(next)
	if err != nil || u.IsAbs() || u.Host != "" || u.Opaque != "" || u.Path != path.Clean(u.Path) || !strings.HasPrefix(u.Path, Prefix) || u.Path == pathLogin {
		return pathKeys
	}
	return (&url.URL{Path: u.Path, RawQuery: u.RawQuery}).String()
}

// said is what may be told of an error.
func said(err error) string {
	var e *core.Error
	if errors.As(err, &e) {
		return e.Message
	}
	return "something went wrong"
}
