package server

import (
	"net/http"
	"slices"
	"strings"

	"github.com/gin-gonic/gin"

	"github.com/keyfire/keyfire/core"
)

// Web pages of other origins may call the routes that start runs and read them, if a key or the workflow names their origin. Nobody else's may, and
// the control plane has no such list. See https://fetch.spec.whatwg.org/#http-cors-protocol.

const (
	corsHeaders = "X-API-Key, Content-Type, Authorization, X-Bifrost-Key, Idempotency-Key, Prefer, traceparent"
	corsExposed = "Keyfire-Request-Id, Keyfire-Run-Id, Keyfire-Run-Status, Keyfire-Run-Existing, Location, Retry-After, RateLimit, RateLimit-Policy, Idempotency-Replayed, Deprecation, Preference-Applied"
	corsMaxAge  = "600" // seconds for which a browser may remember a preflight's answer; every request is checked all the same
	maxOrigin   = 255
)

// page returns the origin of the web page that sent the request, "" when there is none, or it is one of this server.
func page(r *http.Request) string {
	origins := r.Header["Origin"]
	if len(origins) == 0 {
		return ""
	}
	origin := origins[0]
	if len(origin) > maxOrigin {
		origin = origin[:maxOrigin]
	}
	if _, host, ok := strings.Cut(origin, "://"); ok && host == r.Host {
		return ""
	}
	return origin
}

// crossOrigin reports whether pages of other origins may ever call a route.
func (s *Server) crossOrigin(route string) bool {
	return s.triggers[route] || s.adapted[route] || strings.HasPrefix(route, "/v1/runs/:run") || strings.HasPrefix(route, "/v1/runs/{")
}

// allowPage tells the browser that the page may read the answer, if some key or the workflow in the path allows its origin. Whose key the request has is
// not known yet; once it is, restrictPage takes the permission back if that one does not.
func (s *Server) allowPage(c *gin.Context, req *request) {
	if !s.crossOrigin(c.FullPath()) {
		return
	}
	h := c.Writer.Header()
	h.Add("Vary", "Origin")
	if req.origin.Page == "" || !s.pageKnown(c, req.origin.Page) {
		return
	}
	h.Set("Access-Control-Allow-Origin", req.origin.Page)
	h.Set("Access-Control-Expose-Headers", corsExposed)
}

// restrictPage takes the permission to read the answer back from a page that the principal, and what else allows pages, does not allow.
func (r *request) restrictPage(also []string) {
	if r.origin.Page == "" || slices.Contains(also, r.origin.Page) || r.principal.Key != nil && slices.Contains(r.principal.Key.AllowedOrigins, r.origin.Page) {
		return
	}
	h := r.c.Writer.Header()
	h.Del("Access-Control-Allow-Origin")
	h.Del("Access-Control-Expose-Headers")
}

// pageKnown reports whether the workflow in the path or any key that can be used allows the origin.
func (s *Server) pageKnown(c *gin.Context, origin string) bool {
	known, err := s.Trigger.PageKnown(c.Request.Context(), origin, c.Param("workflow"))
	if err != nil {
		s.Logger.WarnContext(c.Request.Context(), "origins cannot be looked up", "error", err)
	}
	return err == nil && known
}

// preflight answers a browser that asks whether a page may send a request. It comes without a credential, so it can only be told what some key or the
// workflow allows. The answer is JSON, as every answer is.
func (s *Server) preflight(c *gin.Context) {
	req := requestOf(c.Request.Context())
	method := c.GetHeader("Access-Control-Request-Method")
	allow := s.methods(c.FullPath())
	if c.GetHeader("Origin") == "" || method == "" {
		c.Header("Allow", strings.Join(allow, ", "))
		s.fail(c, core.Errorf(core.CodeMethodNotAllowed, "this path takes only %s", strings.Join(allow, ", ")))
		return
	}
	h := c.Writer.Header()
	h.Add("Vary", "Access-Control-Request-Method, Access-Control-Request-Headers")
	if req.origin.Page != "" && h.Get("Access-Control-Allow-Origin") == "" {
		s.fail(c, core.Errorf(core.CodeSourceNotAllowed, "no key and no workflow allows pages of this origin to call this path; an operator lists it in allowed_origins"))
		return
	}
	h.Set("Access-Control-Allow-Methods", strings.Join(allow, ", "))
	headers := corsHeaders
	switch c.FullPath() {
	case routeRunEvents, routeRunWorkflow, routeTrigger:
		headers += ", Last-Event-ID" // a page cannot give EventSource a key, so it follows a run by fetch
	}
	h.Set("Access-Control-Allow-Headers", headers)
	h.Set("Access-Control-Max-Age", corsMaxAge)
	s.send(c, http.StatusOK, typeJSON, map[string]any{"allowed": true})
}

// methods returns the methods that a path takes, but for OPTIONS.
func (s *Server) methods(route string) []string {
	var methods []string
	for _, r := range s.engine.Routes() {
		if r.Path == route && r.Method != http.MethodOptions {
			methods = append(methods, r.Method)
		}
	}
	slices.Sort(methods)
	return methods
}

// routePreflights adds OPTIONS to every path that pages of other origins may call. It comes last.
func (s *Server) routePreflights() {
	seen := map[string]bool{}
	for _, r := range s.engine.Routes() {
		if s.crossOrigin(r.Path) && !seen[r.Path] {
			seen[r.Path] = true
			s.engine.OPTIONS(r.Path, s.preflight)
		}
	}
}
