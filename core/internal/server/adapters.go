package server

import (
	"net/url"

	"github.com/gin-gonic/gin"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/admin"
	"github.com/keyfire/keyfire/core/internal/server/compat"
	"github.com/keyfire/keyfire/core/internal/trigger"
)

// adapters is the server as the adapters for other products' clients see it.
type adapters struct{ *Server }

var _ compat.Host = adapters{}

// routeAdapters adds the adapters that are switched on. Their paths are documented by the products they stand in for, not in our API document.
func (s *Server) routeAdapters() {
	s.adapted = make(map[string]bool)
	for _, r := range compat.Routes(adapters{s}, s.Compat) {
		s.adapted[r.Path] = true
		if r.Trigger {
			s.triggers[r.Path] = true
		}
		s.engine.Handle(r.Method, r.Path, r.Handle)
	}
}

// Open implements compat.Host.
func (a adapters) Open(c *gin.Context, product, workflow string) (*trigger.Ticket, error) {
	req := requestOf(c.Request.Context())
	req.origin.Route = product
	return a.open(c, workflow)
}

// Authenticate implements compat.Host.
func (a adapters) Authenticate(c *gin.Context) error {
	ctx := c.Request.Context()
	req := requestOf(ctx)
	p, err := a.principal(ctx, req)
	if err == nil {
		req.accept(p)
	}
	return err
}

// Body implements compat.Host.
func (a adapters) Body(c *gin.Context) ([]byte, error) {
	if encoded(c.Request.Header) {
		return nil, core.Errorf(core.CodeUnsupportedMediaType, refuseEncoded)
	}
	return a.readBody(c, requestOf(c.Request.Context()), a.MaxBody)
}

// Query implements compat.Host.
func (a adapters) Query(c *gin.Context) (url.Values, error) { return textQuery(c.Request.URL) }

// Begin implements compat.Host.
func (a adapters) Begin(c *gin.Context, t *trigger.Ticket, p trigger.Payload) (*trigger.Begun, error) {
	var err error
	if p.IdempotencyKey, err = idempotencyKey(c.Request.Header["Idempotency-Key"]); err != nil {
		return nil, err
	}
	begun, err := a.Trigger.Begin(c.Request.Context(), t, p)
	if err != nil {
		return nil, err
	}
	requestOf(c.Request.Context()).begun(c.Request.Context(), begun)
	setLimits(c.Writer.Header(), begun.Limits)
	if begun.Replayed {
		c.Header("Idempotency-Replayed", "true")
	}
	return begun, nil
}

// Run implements compat.Host.
func (a adapters) Run(c *gin.Context, id string) (*core.Run, error) {
	if err := a.Authenticate(c); err != nil {
		return nil, err
	}
	return a.findRun(c.Request.Context(), requestOf(c.Request.Context()), id)
}

// Control implements compat.Host.
func (a adapters) Control(c *gin.Context) (*admin.Service, admin.Actor, error) {
	if err := a.Authenticate(c); err != nil {
		return nil, admin.Actor{}, err
	}
	return a.Admin, requestOf(c.Request.Context()).actor(), nil
}

// Refused implements compat.Host. Who was not let in was refused when that was found out.
func (a adapters) Refused(c *gin.Context, err error) error {
	req := requestOf(c.Request.Context())
	if !req.allowed {
		return err
	}
	return a.refuse(c.Request.Context(), req, err)
}

// Status implements compat.Host.
func (a adapters) Status(err error) (int, *core.Error) {
	p, _, e := problemOf(err)
	return p.Status, e
}

// Send implements compat.Host.
func (a adapters) Send(c *gin.Context, status int, contentType string, v any, cause error) {
	if cause != nil {
		req := requestOf(c.Request.Context())
		p, k, e := problemOf(cause)
		if req.runID != "" {
			k, e = k.admitted(), &core.Error{}
		}
		a.setProblemHeaders(c.Writer.Header(), k, e)
		p.Status = status
		a.completeProblem(c.Request.Context(), req, &p, cause)
		status = p.Status
	}
	a.send(c, status, contentType, v)
	c.Abort()
}

// SendPart implements compat.Host.
func (a adapters) SendPart(c *gin.Context, part []byte) error { return a.sendPart(c, part) }
