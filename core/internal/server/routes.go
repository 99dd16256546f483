package server

import (
	"context"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/keyfire/keyfire/core"
)

// Routes that start a run.
const (
	routeRunWorkflow = "/v1/workflows/:workflow/runs"
	routeTrigger     = "/v1/trigger"
)

// route is the one list of everything the server answers.
func (s *Server) route() error {
	e := s.engine
	e.NoRoute(func(c *gin.Context) {
		s.fail(c, core.Errorf(core.CodeNotFound, "there is nothing at this path; GET /openapi.json lists what there is"))
	})
	e.NoMethod(func(c *gin.Context) {
		s.fail(c, core.Errorf(core.CodeMethodNotAllowed, "this path takes only %s", c.Writer.Header().Get("Allow")))
	})

	// These answer without a credential: they tell nothing about anybody's data.
	for _, method := range []string{http.MethodGet, http.MethodHead} {
		e.Handle(method, "/healthz", s.health)
		e.Handle(method, "/readyz", s.ready)
	}
	e.GET("/openapi.json", s.getDocument)
	e.GET("/docs", s.getDocs)

	s.triggers = map[string]bool{routeRunWorkflow: true, routeTrigger: true}
	e.POST(routeRunWorkflow, s.runWorkflow)
	e.POST(routeTrigger, s.runBound)
	s.routeAdapters()

	// Everything else is the control plane, behind authenticate.
	s.api = s.newAPI()
	s.routeKeys()
	s.routeWorkflows()
	s.routeRuns()
	s.routeSecrets()
	s.routeAudit()
	s.routePlugins()
	s.routeAccounts()
	s.routeUsers()
	s.routeSessions()
	return s.finishDocument()
}

type status struct {
	Status string `json:"status" enum:"ok,unavailable"`
}

// health reports that the process answers requests.
func (s *Server) health(c *gin.Context) { s.send(c, http.StatusOK, typeJSON, status{"ok"}) }

// ready reports whether requests should be sent here. Why not is for the log: the caller of this route is nobody we know.
func (s *Server) ready(c *gin.Context) {
	if s.stopping.Load() || s.Trigger.Draining() {
		s.send(c, http.StatusServiceUnavailable, typeJSON, status{"unavailable"})
		return
	}
	if s.Ready != nil {
		ctx, cancel := context.WithTimeout(c.Request.Context(), 5*time.Second)
		defer cancel()
		if err := s.Ready(ctx); err != nil {
			s.Logger.WarnContext(ctx, "not ready", "error", err)
			s.send(c, http.StatusServiceUnavailable, typeJSON, status{"unavailable"})
			return
		}
	}
	s.send(c, http.StatusOK, typeJSON, status{"ok"})
}

const workflowsPath = "/v1/workflows/"

// foldSlug makes the name of a workflow one element of the path. A slug may have slashes ("billing/invoice"); escaped as %2F they are part of the element
// already, but people write them as they are, and some proxies unescape them on the way. What follows the name in the routes above decides
// where it ends, so a slug whose last part is itself called "runs", "versions", "enable" or "disable" must be escaped or replaced by the id.
func foldSlug(u *url.URL) {
	path := u.EscapedPath()
	rest, ok := strings.CutPrefix(path, workflowsPath)
	if !ok || strings.Count(rest, "/") == 0 {
		return
	}
	parts := strings.Split(rest, "/")
	tail := 0
	switch n := len(parts); {
	case parts[n-1] == "runs" || parts[n-1] == "versions" || parts[n-1] == "enable" || parts[n-1] == "disable":
		tail = 1
	case n > 2 && parts[n-2] == "versions":
		tail = 2
	}
	name := parts[:len(parts)-tail]
	if len(name) < 2 {
		return
	}
	for _, part := range name {
		if part == "" {
			return // "//" is a mistake, not a name
		}
	}
	u.RawPath = workflowsPath + strings.Join(name, "%2F")
	if tail > 0 {
		u.RawPath += "/" + strings.Join(parts[len(parts)-tail:], "/")
	}
}
