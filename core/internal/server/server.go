// Package server is Keyfire's HTTP front: it bounds and reads requests, finds the credential in them, hands them to the data
// plane (package trigger) or the control plane (package admin), and renders what comes back. It decides nothing itself: every
// run starts in trigger, every change happens in admin.
//
// It hides gin and huma. A Server is an http.Handler with its own timeouts, connection limits and stop:
//
//	s, err := server.New(server.Config{Trigger: data, Admin: control, Tracer: tracer, NewID: ids})
//	if err != nil {
//		return err
//	}
//	return s.Serve(ctx, tcp, unix) // until ctx ends and the running requests with it
//
// What it promises for every request, whatever the route but those of the pages for people: an answer in JSON with a request id; RFC 9457 problems with a stable
// code; no credential, query or body in any log, span or answer; nothing read from the body before its sender is known. What is not HTTP, is framed in a way that HTTP does not know,
// expects something other than 100-continue, or has a head larger than twice the limit is refused by net/http, with 400, 417, 431, 501 or 505, before there is a request to speak of; Serve
// makes a problem of that too, with an id and a line in the log, but without a span.
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/gin-gonic/gin"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/admin"
	"github.com/keyfire/keyfire/core/internal/console"
	"github.com/keyfire/keyfire/core/internal/server/compat"
	"github.com/keyfire/keyfire/core/internal/trigger"
)

// Config configures a Server. Trigger, Admin, Tracer and NewID are required; zero values of the rest are the defaults given.
type Config struct {
	Trigger *trigger.Service
	Admin   *admin.Service
	Tracer  trace.Tracer
	Meter   metric.Meter // nil records nothing
	NewID   core.NewID
	Logger  *slog.Logger     // nil is slog.Default()
	Now     func() time.Time // nil is time.Now

	// Ready reports whether the server can do its work, beyond being up; nil is always. Its error is logged, never sent.
	Ready func(ctx context.Context) error
	// Version of the program, for the API document.
	Version string

	// Compat switches on the adapters for other products' clients; none by default.
	Compat compat.Products

	// Console answers people's browsers below console.Prefix; nil is no such pages.
	Console *console.Console

	// TrustedProxies are the networks whose X-Forwarded-For, X-Forwarded-Proto and traceparent are believed. None by default: anybody can send them.
	TrustedProxies []netip.Prefix
	// AuthSchemes are Authorization schemes other than Bearer, lower case, that some auth backend takes, such as "basic". A credential
	// of any other scheme counts as none.
	AuthSchemes []string
	// AuthHeaders are headers that are a credential by themselves for some auth backend, such as "X-Hub-Signature-256".
	AuthHeaders []string
	// AuthShown are further headers that some auth backend is shown beside a credential, such as the time a signature is over.
	AuthShown []string
	// AuthBody lets auth backends read the raw body of a request before its sender is known, which signatures need.
	AuthBody bool

	MaxURL       int   // bytes of the request target; 0 is 4 KiB
	MaxHeader    int   // bytes of all header fields; 0 is 16 KiB
	MaxFields    int   // header fields; 0 is 64
	MaxBody      int64 // bytes of a JSON body; 0 is 1 MiB
	MaxPublish   int64 // bytes of a published workflow with its modules; 0 is 64 MiB
	MaxConns     int   // open connections on all TCP listeners, and again on all local ones; the next ones wait to be accepted; 0 is 8192
	MaxAddrConns int   // open connections of one address, loopback and trusted proxies excepted; 0 is 256

	HeaderTimeout time.Duration // to send the head of a request; 0 is 5 s
	BodyTimeout   time.Duration // to send its body; 0 is 15 s
	IdleTimeout   time.Duration // between two requests of a connection; 0 is 60 s
	WriteTimeout  time.Duration // to take an answer; 0 is 30 s
	SyncWait      time.Duration // for a durable run, by a caller that does not say; 0 is 30 s
	MaxWait       time.Duration // for a run, whatever the caller asks for; 0 is 60 s
	Heartbeat     time.Duration // between two signs of life of a stream of events, and between two looks at whether its reader may still read; 0 is 15 s
	LeaveTime     time.Duration // for which everything is served still after Serve's context ends, while /readyz says that it will not be; 0 is none
	StopTimeout   time.Duration // for running requests after that; 0 is 30 s
}

// Server answers HTTP requests. It is safe for concurrent use; Serve is called once.
type Server struct {
	Config
	engine   *gin.Engine
	metrics  *metrics
	api      huma.API
	document func() ([]byte, error) // the OpenAPI document
	docs     func() (docs, error)   // the same for people

	triggers map[string]bool // routes that start runs
	adapted  map[string]bool // routes of the adapters
	leaving  atomic.Bool     // no more requests should be sent
	stopping atomic.Bool

	unready core.Rarely                // probes that were told so
	outages map[core.Code]*core.Rarely // requests that failed because of something that all need

	publications *publications // that are held in memory
	publishing   sync.RWMutex  // held for reading by each publication, for writing once the server stops
	lastAnswers  time.Duration // how long answers may take to go out once all work is done
}

// New returns a Server that does not listen yet.
func New(cfg Config) (*Server, error) {
	if cfg.Trigger == nil || cfg.Admin == nil || cfg.Tracer == nil || cfg.NewID == nil {
		return nil, errors.New("server: Trigger, Admin, Tracer and NewID are required")
	}
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	figures, err := newMetrics(cfg.Meter)
	if err != nil {
		return nil, fmt.Errorf("server: %w", err)
	}
	gin.SetMode(gin.ReleaseMode)
	s := &Server{Config: cfg, engine: gin.New(), metrics: figures, publications: newPublications(), lastAnswers: 5 * time.Second, outages: map[core.Code]*core.Rarely{
		core.CodeStoreUnavailable: {}, core.CodeAuthUnavailable: {}, core.CodeAuditUnavailable: {},
	}}
	s.engine.HandleMethodNotAllowed = true
	s.engine.RedirectTrailingSlash = false // a redirect makes clients repeat a POST as a GET
	s.engine.UseRawPath = true             // an escaped slash belongs to a workflow's name
	if err := s.engine.SetTrustedProxies(nil); err != nil {
		return nil, fmt.Errorf("server: %w", err)
	}
	s.engine.Use(s.handle)
	s.route()
	return s, nil
}

func (c *Config) setDefaults() error {
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Version == "" {
		c.Version = "devel"
	}
	for _, n := range []struct {
		name  string
		value *int
		or    int
	}{
		{"MaxURL", &c.MaxURL, 4 << 10},
		{"MaxHeader", &c.MaxHeader, 16 << 10},
		{"MaxFields", &c.MaxFields, 64},
		{"MaxConns", &c.MaxConns, 8192},
		{"MaxAddrConns", &c.MaxAddrConns, 256},
	} {
		if err := setDefault(n.name, n.value, n.or); err != nil {
			return err
		}
	}
	for _, n := range []struct {
		name  string
		value *int64
		or    int64
	}{{"MaxBody", &c.MaxBody, 1 << 20}, {"MaxPublish", &c.MaxPublish, 64 << 20}} {
		if err := setDefault(n.name, n.value, n.or); err != nil {
			return err
		}
	}
	for _, n := range []struct {
		name  string
		value *time.Duration
		or    time.Duration
	}{
		{"HeaderTimeout", &c.HeaderTimeout, 5 * time.Second},
		{"BodyTimeout", &c.BodyTimeout, 15 * time.Second},
		{"IdleTimeout", &c.IdleTimeout, time.Minute},
		{"WriteTimeout", &c.WriteTimeout, 30 * time.Second},
		{"SyncWait", &c.SyncWait, 30 * time.Second},
		{"MaxWait", &c.MaxWait, time.Minute},
		{"Heartbeat", &c.Heartbeat, 15 * time.Second},
		{"StopTimeout", &c.StopTimeout, 30 * time.Second},
	} {
		if err := setDefault(n.name, n.value, n.or); err != nil {
			return err
		}
	}
	for i, scheme := range c.AuthSchemes {
		if scheme == "" || scheme == "bearer" || scheme != strings.ToLower(scheme) {
			return fmt.Errorf("server: AuthSchemes[%d]: write a scheme other than bearer, in lower case", i)
		}
	}
	c.AuthHeaders, c.AuthShown = canonical(c.AuthHeaders), canonical(c.AuthShown)
	return nil
}

func canonical(names []string) []string {
	all := make([]string, len(names))
	for i, name := range names {
		all[i] = http.CanonicalHeaderKey(name)
	}
	return all
}

func setDefault[T int | int64 | time.Duration](name string, value *T, or T) error {
	if *value < 0 {
		return fmt.Errorf("server: %s must not be negative", name)
	}
	if *value == 0 {
		*value = or
	}
	return nil
}

// Handler returns the handler that Serve serves, for tests and for embedding behind another server. The limits on time and on
// connections are Serve's and do not hold for it.
func (s *Server) Handler() http.Handler { return http.HandlerFunc(s.serveHTTP) }

func (s *Server) serveHTTP(w http.ResponseWriter, r *http.Request) {
	markAnswer(r)
	foldSlug(r.URL)
	s.engine.ServeHTTP(w, r)
}
