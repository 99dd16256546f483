package server

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/keyfire/keyfire/core"
)

// Routes that start a run.
const (
	routeRunWorkflow = "/v1/workflows/:workflow/runs"
	routeTrigger     = "/v1/trigger"
	routeHook        = "/v1/hooks/:workflow"
)

// route is the one list of everything the server answers.
func (s *Server) route() {
	e := s.engine
	e.NoRoute(func(c *gin.Context) {
		err := errNoRoute()
		if path := c.Request.URL.Path; len(path) > 1 && strings.HasSuffix(path, "/") {
			err = core.Errorf(core.CodeNotFound, "there is nothing at this path: it ends with a slash, and no path of the API does")
		}
		s.fail(c, err)
	})
	e.NoMethod(func(c *gin.Context) {
		// OPTIONS is for browsers that ask about a page of another origin, and no method of the path.
		c.Header("Allow", strings.TrimSuffix(strings.ReplaceAll(c.Writer.Header().Get("Allow"), "OPTIONS, ", ""), ", OPTIONS"))
		e := core.Errorf(core.CodeMethodNotAllowed, "this path takes only %s", c.Writer.Header().Get("Allow"))
		if path := c.Request.URL.Path; c.Request.Method == http.MethodPost && (path == runsPath || strings.HasPrefix(path, workflowsPath)) {
			e.Message += "; a run of a workflow is started by POST " + workflowsPath + "{workflow}/runs" // also of .../run, which is the name of a workflow
		}
		s.fail(c, e)
	})

	// These answer without a credential: they tell nothing about anybody's data.
	for _, method := range []string{http.MethodGet, http.MethodHead} {
		e.Handle(method, "/healthz", s.health)
		e.Handle(method, "/readyz", s.ready)
		e.Handle(method, "/openapi.json", s.getDocument)
		e.Handle(method, "/docs", s.getDocs)
	}
	s.routePages()

	s.triggers = map[string]bool{routeRunWorkflow: true, routeTrigger: true, routeHook: true}
	e.POST(routeRunWorkflow, s.runWorkflow)
	e.POST(routeTrigger, s.runBound)
	for _, method := range hookMethods {
		e.Handle(method, routeHook, s.runHook)
	}
	s.routeAdapters()

	// Everything else is the control plane, behind authenticate.
	s.api = s.newAPI()
	s.routeKeys()
	s.routeWorkflows()
	s.routeRuns()
	s.routeFollow()
	s.routeSecrets()
	s.routeAudit()
	s.routePlugins()
	s.routeAccounts()
	s.routeUsers()
	s.routeSessions()
	s.routeAuth()
	s.routeSnippets()
	s.routePreflights()
	s.finishDocument()
}

func errNoRoute() error {
	return core.Errorf(core.CodeNotFound, "there is nothing at this path; GET /openapi.json lists what there is")
}

type status struct {
	Status string `json:"status" enum:"ok,unavailable"`
}

// health reports that the process answers requests.
func (s *Server) health(c *gin.Context) { s.send(c, http.StatusOK, typeJSON, status{"ok"}) }

// Readiness is the answer to whether requests should be sent here.
type Readiness struct {
	Status  string            `json:"status" enum:"ok,unavailable"`
	Plugins []PluginReadiness `json:"plugins,omitempty" doc:"The auth plugins, for callers with the scope plugins:read and on the local socket. One that is out of order does not make the server unavailable: only requests that need it are refused."`
}

// PluginReadiness is what a probe of an operator wants to know about an auth plugin.
type PluginReadiness struct {
	Name     string `json:"name"`
	State    string `json:"state"`
	Degraded bool   `json:"degraded"`
	Required bool   `json:"required"`
	Failures int    `json:"failures" doc:"Processes that ended or could not be started in the last minute."`
}

// ready reports whether requests should be sent here. Why not is for the log: most callers of this route are nobody we know.
func (s *Server) ready(c *gin.Context) {
	answer, code := Readiness{Status: "ok", Plugins: s.readyPlugins(c)}, http.StatusOK
	if !s.isReady(c.Request.Context()) {
		answer.Status, code = "unavailable", http.StatusServiceUnavailable
	}
	c.Header("Cache-Control", "no-store")
	s.send(c, code, typeJSON, answer)
}

func (s *Server) isReady(ctx context.Context) bool {
	if s.leaving.Load() || s.stopping.Load() || s.Trigger.Draining() {
		return false
	}
	if s.Ready == nil {
		return true
	}
	// A probe that sends its request and closes its side of the connection is one that has gone away, to net/http. It still reads the answer.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := s.Ready(ctx); err != nil {
		if n := s.unready.Happened(time.Now()); n > 0 { // load balancers ask every second, and several of them
			s.Logger.WarnContext(ctx, "not ready", "times", n, "error", err)
		}
		return false
	}
	return true
}

// readyPlugins returns what the caller may know about the auth plugins. A credential that is no good makes no difference to the answer: whatever sends one
// along with a probe wants to know about the server.
func (s *Server) readyPlugins(c *gin.Context) []PluginReadiness {
	ctx := c.Request.Context()
	req := requestOf(ctx)
	if req.peer == nil && req.credential.None() {
		return nil
	}
	p, err := s.principal(ctx, req)
	if err != nil {
		return nil
	}
	req.accept(p)
	all, err := s.Admin.AuthPlugins(ctx, req.actor())
	if err != nil {
		return nil
	}
	plugins := make([]PluginReadiness, len(all))
	for i, p := range all {
		plugins[i] = PluginReadiness{Name: p.Name, State: p.State, Degraded: p.Degraded, Required: p.Required, Failures: p.Failures}
	}
	return plugins
}

const (
	workflowsPath = "/v1/workflows/"
	runsPath      = "/v1/runs"
	hooksPath     = "/v1/hooks/"
)

// foldSlug makes the name of a workflow one element of the path. A slug may have slashes ("billing/invoice"); escaped as %2F they are part of the element
// already, but people write them as they are, and some proxies unescape them on the way. What follows the name in the routes above decides
// where it ends, so a slug whose last part is itself called "runs", "versions", "enable", "disable" or "snippets" must be escaped or replaced by the id.
func foldSlug(u *url.URL) {
	path, prefix := u.EscapedPath(), workflowsPath
	rest, ok := strings.CutPrefix(path, prefix)
	if !ok {
		prefix = hooksPath
		rest, ok = strings.CutPrefix(path, prefix)
	}
	if !ok || strings.Count(rest, "/") == 0 {
		return
	}
	parts := strings.Split(rest, "/")
	tail := 0
	switch n := len(parts); {
	case prefix == hooksPath: // nothing follows the name
	case parts[n-1] == "runs" || parts[n-1] == "versions" || parts[n-1] == "enable" || parts[n-1] == "disable" || parts[n-1] == "snippets":
		tail = 1
	case n > 2 && parts[n-2] == "versions":
		tail = 2
	case n > 3 && parts[n-3] == "versions" && parts[n-1] == "publish":
		tail = 3
	}
	name := parts[:len(parts)-tail]
	if len(name) < 2 || slices.Contains(name, "") { // "//" is a mistake, not a name
		return
	}
	u.RawPath = prefix + strings.Join(name, "%2F")
	if tail > 0 {
		u.RawPath += "/" + strings.Join(parts[len(parts)-tail:], "/")
	}
}
