package server

import (
	"maps"
	"net/http"
	"strings"

	"github.com/gin-gonic/gin"

	"github.com/keyfire/keyfire/core/internal/console"
)

// routePages adds the pages for people.
func (s *Server) routePages() {
	if s.Console == nil {
		return
	}
	for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPost} {
		s.engine.Handle(method, console.Prefix+"*page", s.page)
	}
	// As people type it.
	s.engine.GET(strings.TrimSuffix(console.Prefix, "/"), s.page)
	s.engine.HEAD(strings.TrimSuffix(console.Prefix, "/"), s.page)
}

// page answers a person's browser. A page that cannot be had is a page too, with the status that the API would answer with.
func (s *Server) page(c *gin.Context) {
	ctx := c.Request.Context()
	req := requestOf(ctx)
	req.origin.Route = "console"
	answer, err := s.Console.Page(c.Request, req.session, req.origin)
	if answer.Principal.Subject != "" {
		req.accept(answer.Principal)
	}
	if err != nil {
		if req.allowed {
			err = s.refuse(ctx, req, err)
		}
		problem, k, e := problemOf(err)
		s.setProblemHeaders(c.Writer.Header(), k, e)
		s.completeProblem(ctx, req, &problem, err)
		answer = s.Console.Failure(answer.Principal, problem.Status, problem.Title, problem.Detail, problem.RequestID)
	}
	h := c.Writer.Header()
	maps.Copy(h, answer.Header)
	s.sendBytes(c, answer.Status, h.Get("Content-Type"), answer.Body)
}
