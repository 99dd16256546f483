package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
)

// maxAnswer bounds a request as a whole: the longest run, and time to be read and answered.
const maxAnswer = core.MaxRunTimeout + time.Minute

// peerKey is the context key of a local connection's *auth.Principal.
type peerKey struct{}

// Serve answers requests on listeners until ctx ends or a listener fails, and closes them. A unix listener is the local door: who connects is known
// by the user id of the process, see [localPrincipal]; on every other one a credential is needed.
//
// When ctx ends, /readyz answers 503. After LeaveTime, new triggers are refused as draining, and running ones have StopTimeout to end; what is left then is
// recorded as interrupted. Serve returns nil after such a stop, when no request is being answered any more.
func (s *Server) Serve(ctx context.Context, listeners ...net.Listener) error {
	if len(listeners) == 0 {
		return errors.New("server: nothing to listen on")
	}
	srv := &http.Server{
		Handler:           s.Handler(),
		ReadHeaderTimeout: s.HeaderTimeout,
		IdleTimeout:       s.IdleTimeout,
		// The body has its own deadline, set for each request, and so has the answer. These two only bound what those may miss.
		WriteTimeout:                 maxAnswer,
		MaxHeaderBytes:               2 * s.MaxHeader, // checkHead answers in JSON; net/http cannot
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     slog.NewLogLogger(s.Logger.Handler(), slog.LevelDebug),
		BaseContext:                  func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
		ConnContext:                  s.connContext,
		ConnState:                    connState,
	}
	// The local door has places of its own: whoever fills the others, from loopback or by way of a proxy, must not keep an operator out.
	gate, local := newGate(s.MaxConns, s.MaxAddrConns, s.TrustedProxies), newGate(s.MaxConns, s.MaxAddrConns, nil)
	failed := make(chan error, len(listeners))
	var serving sync.WaitGroup
	for _, l := range listeners {
		by := gate
		if _, ok := l.(*net.UnixListener); ok {
			by = local
		}
		serving.Go(func() {
			if err := srv.Serve(&gatedListener{Listener: l, gate: by, refuse: s.refuseBare, soon: halfClosing}); !errors.Is(err, http.ErrServerClosed) {
				failed <- fmt.Errorf("serve %s: %w", l.Addr(), err)
			}
		})
	}
	var err error
	select {
	case <-ctx.Done():
		s.leaving.Store(true)
		select {
		case <-time.After(s.LeaveTime):
		case err = <-failed:
		}
	case err = <-failed:
	}
	s.stop(ctx, srv)
	gate.close()
	local.close()
	serving.Wait()
	return err
}

// stop ends a server in three steps: no new runs and publications, those under way end, the last answers go out.
func (s *Server) stop(ctx context.Context, srv *http.Server) {
	s.stopping.Store(true)
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.StopTimeout)
	defer cancel()
	published := make(chan struct{})
	go func() { // ends with the last publication, which ends with its request
		s.publishing.Lock()
		close(published)
	}()
	s.Trigger.Drain(grace)
	select {
	case <-published:
	case <-grace.Done():
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.lastAnswers)
	defer cancel()
	if err := srv.Shutdown(last); err != nil {
		s.Logger.Warn("requests cut off while stopping", "error", err)
		_ = srv.Close() // it only repeats the listeners' errors
	}
}

// connContext tells requests of a local connection who is at its other end. It runs once for a connection.
func (s *Server) connContext(ctx context.Context, c net.Conn) context.Context {
	if g, ok := c.(*gatedConn); ok {
		ctx = context.WithValue(ctx, connKey{}, g)
		c = g.Conn
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	p, err := localPrincipal(u)
	if err != nil {
		// The connection is closed rather than served without a principal: what comes through this door needs no credential.
		s.Logger.Warn("local connection refused", "error", err)
		_ = c.Close() // nothing was sent on it yet
		p = nobody
	}
	return context.WithValue(ctx, peerKey{}, p)
}

// nobody is a principal that may do nothing.
var nobody = &auth.Principal{Account: "none", Subject: "nobody", Backend: "socket"}
