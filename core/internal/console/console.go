// Package console renders the pages for people who would rather click than type: logging in, and the trigger keys of an account. It decides nothing: a page shows what
// package admin returns, and a form asks package admin for a change, so roles, audit events and errors are those of the API.
//
// The pages are plain HTML. They need no script and nothing from elsewhere, so their Content-Security-Policy forbids both: what a workflow or a key is called can never
// become code in the browser of the person who may revoke keys.
//
// A person is known by a cookie that only these pages are sent. It holds the refresh token of a session, which no other route takes as a credential. Forms that a page of
// another origin sends are refused by what the browser says about their origin (Sec-Fetch-Site, Origin).
package console

import (
	"bytes"
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/admin"
)

// Prefix is what the paths of all pages begin with.
const Prefix = "/settings/"

const (
	pathKeys     = Prefix + "workflow-keys"
	pathNew      = pathKeys + "/new"
	pathKey      = pathKeys + "/*" // * is the id of a key, none of which is "new"
	pathAdapters = Prefix + "adapters"
	pathLogin    = Prefix + "login"

	cookieName = "keyfire_console"
	typeHTML   = "text/html; charset=utf-8"

	// policy lets a page load the style sheet and send forms to this server, and nothing else.
	policy = "default-src 'none'; style-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"

	maxForm = 16 << 10 // bytes
)

//go:embed pages/*.html
var pages embed.FS

//go:embed pages/style.css
var style []byte

// Adapter is one of the adapters for clients of other products, for showing.
type Adapter struct {
	Product  string // as its makers write it
	Endpoint string // what its clients call
	Setting  string // of the server, that switches it
	On       bool
}

// Config configures a Console. Admin, Refused and Call are required.
type Config struct {
	Admin *admin.Service
	// Refused counts a bad credential and returns what its sender is told.
	Refused func(ctx context.Context, o core.Origin, err error) error
	// Call returns a shell command that runs a workflow whose input has the schema; callers reach the server at base.
	Call     func(base string, w core.Workflow, input json.RawMessage) string
	Adapters []Adapter
	Now      func() time.Time // nil is time.Now
}

// Console answers what is asked below Prefix. It is safe for concurrent use.
type Console struct {
	Config
	pages      map[string]*template.Template // by the name of their file
	routes     map[string]handler            // by method and path
	protection *http.CrossOriginProtection
}

// New returns a Console.
func New(cfg Config) (*Console, error) {
	if cfg.Admin == nil || cfg.Refused == nil || cfg.Call == nil {
		return nil, errors.New("console: Admin, Refused and Call are required")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	c := &Console{Config: cfg, protection: http.NewCrossOriginProtection(), pages: make(map[string]*template.Template)}
	layout, err := template.ParseFS(pages, "pages/layout.html")
	if err != nil {
		return nil, fmt.Errorf("console: %w", err)
	}
	for _, name := range []string{"login", "keys", "new", "made", "revoke", "adapters", "failure"} {
		own, err := layout.Clone()
		if err == nil {
			own, err = own.ParseFS(pages, "pages/"+name+".html")
		}
		if err != nil {
			return nil, fmt.Errorf("console: %w", err)
		}
		c.pages[name] = own
	}
	c.routes = map[string]handler{
		"GET " + Prefix:                          c.home,
		"GET " + strings.TrimSuffix(Prefix, "/"): c.home,
		"GET " + Prefix + "style.css":            c.style,
		"GET " + pathLogin:                       c.showLogin,
		"POST " + pathLogin:                      c.login,
		"POST " + Prefix + "logout":              c.known(c.logout),
		"GET " + pathKeys:                        c.known(c.listKeys),
		"POST " + pathKeys:                       c.known(c.createKey),
		"GET " + pathNew:                         c.known(c.newKey),
		"GET " + pathKey:                         c.known(c.confirmRevoke),
		"POST " + pathKey:                        c.known(c.revokeKey),
		"GET " + pathAdapters:                    c.known(c.listAdapters),
	}
	return c, nil
}

// Page is an answer.
type Page struct {
	Status    int
	Header    http.Header
	Body      []byte
	Principal auth.Principal // who sent the request; the zero Principal is nobody known
}

type handler func(*visit) error

// visit is one request and what becomes of it.
type visit struct {
	Page
	r       *http.Request
	session auth.Secret
	origin  core.Origin
	key     string // id of the key that the path names
}

func (v *visit) actor() admin.Actor { return admin.Actor{Principal: v.Principal, Origin: v.origin} }

func (v *visit) ctx() context.Context { return v.r.Context() }

// may reports whether the visitor holds a scope, for not showing what would be refused.
func (v *visit) may(scope string) bool { return auth.Allows(v.Principal.Scopes, scope) }

// Page answers a request that came with a session, as SessionOf found it. With an error there is no answer yet, only who sent the request: what may be told of the error is then for Failure.
func (c *Console) Page(r *http.Request, session auth.Secret, o core.Origin) (*Page, error) {
	v := &visit{r: r, session: session, origin: o, Page: Page{Header: http.Header{}}}
	if err := c.protection.Check(r); err != nil {
		return &v.Page, core.Wrap(core.CodeSourceNotAllowed, err, "this form was sent by a page of another site; open the page here and send it again")
	}
	h := c.find(v)
	if h == nil {
		return &v.Page, core.Errorf(core.CodeNotFound, "there is no such page")
	}
	return &v.Page, h(v)
}

// find returns what answers a visit, nil if nothing does.
func (c *Console) find(v *visit) handler {
	method, path := v.r.Method, v.r.URL.Path
	if method == http.MethodHead {
		method = http.MethodGet
	}
	if h := c.routes[method+" "+path]; h != nil {
		return h
	}
	key, ok := strings.CutPrefix(path, pathKeys+"/")
	if !ok || key == "" || strings.Contains(key, "/") {
		return nil
	}
	v.key = key
	return c.routes[method+" "+pathKey]
}

// Failure is the page for a visitor that says what went wrong, in words that may be public.
func (c *Console) Failure(visitor auth.Principal, status int, title, detail, requestID string) *Page {
	v := &visit{Page: Page{Header: http.Header{}, Principal: visitor}}
	if err := c.render(v, status, "failure", title, map[string]string{"Detail": detail, "RequestID": requestID}); err != nil {
		panic(err) // the page has nothing that could fail
	}
	return &v.Page
}

// view is what every page is rendered with.
type view struct {
	Title string
	User  string // "" when nobody is logged in
	Role  auth.Role
	Of    any // what the page itself shows
}

func (c *Console) render(v *visit, status int, name, title string, of any) error {
	shown := view{Title: title, Of: of}
	if u := v.Principal.User; u != nil {
		shown.User, shown.Role = u.Name, u.Role
	}
	var b bytes.Buffer
	if err := c.pages[name].ExecuteTemplate(&b, "layout.html", shown); err != nil {
		return fmt.Errorf("render %s: %w", name, err)
	}
	h := v.Header
	h.Set("Content-Type", typeHTML)
	h.Set("Content-Security-Policy", policy)
	h.Set("Referrer-Policy", "same-origin") // no-referrer would take the Origin out of forms too
	h.Set("Cache-Control", "no-store")
	v.Status, v.Body = status, b.Bytes()
	return nil
}

// redirect sends the browser to another page, which it gets with GET.
func (v *visit) redirect(path string) error {
	v.Header.Set("Location", path)
	v.Header.Set("Cache-Control", "no-store")
	v.Header.Set("Content-Type", typeHTML)
	v.Status = http.StatusSeeOther
	return nil
}

// form reads the form that the request carries.
func (v *visit) form() (url.Values, error) {
	v.r.Body = http.MaxBytesReader(nil, v.r.Body, maxForm)
	if mediaType, _, _ := strings.Cut(v.r.Header.Get("Content-Type"), ";"); mediaType != "application/x-www-form-urlencoded" {
		return nil, core.Errorf(core.CodeUnsupportedMediaType, "send the form as application/x-www-form-urlencoded; programs use the API (GET /openapi.json)")
	}
	if err := v.r.ParseForm(); err != nil {
		var large *http.MaxBytesError
		if errors.As(err, &large) {
			return nil, core.Errorf(core.CodeBodyTooLarge, "the form has more than %d bytes", maxForm)
		}
		return nil, core.Errorf(core.CodeInvalidRequest, "the form cannot be read")
	}
	return v.r.PostForm, nil
}

func (c *Console) home(v *visit) error { return v.redirect(pathKeys) }

func (c *Console) style(v *visit) error {
	h := v.Header
	h.Set("Content-Type", "text/css; charset=utf-8")
	h.Set("Cache-Control", "public, max-age=300")
	v.Status, v.Body = http.StatusOK, style
	return nil
}

func (c *Console) listAdapters(v *visit) error {
	return c.render(v, http.StatusOK, "adapters", "Adapters", c.Adapters)
}
