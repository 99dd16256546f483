package server

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// gatedConn is a connection that was let through a gate. It gives its place back when it is closed, and remembers how its other side has ended.
type gatedConn struct {
	net.Conn
	gate   *gate
	source netip.Prefix
	once   sync.Once

	ended atomic.Bool // the other side sends nothing any more; it may still read
	soon  atomic.Bool // and that was so at once after its request
}

// halfClosing is how long after a request its sender may close its own direction and count as one that waits for the answer, as nc -N does. Whoever has lost patience hangs up
// later than that.
const halfClosing = time.Second

// Read reads from the connection.
func (c *gatedConn) Read(p []byte) (int, error) {
	began := time.Now()
	n, err := c.Conn.Read(p)
	if errors.Is(err, io.EOF) {
		c.soon.Store(time.Since(began) < halfClosing)
		c.ended.Store(true)
	}
	return n, err
}

// CloseWrite ends our direction only, so that net/http can have a caller read the last answer before the connection is cut.
func (c *gatedConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// Close closes the connection; further calls do nothing.
func (c *gatedConn) Close() error {
	err := net.ErrClosed
	c.once.Do(func() {
		err = c.Conn.Close()
		if c.source.IsValid() {
			c.gate.leave(c.source)
		}
		<-c.gate.places
	})
	return err
}

// connKey is the context key of a request's *gatedConn.
type connKey struct{}

// outlastHalfClose returns a context that ends as ctx does, which is the one of a request, but not when its caller has only closed its own direction: net/http takes that for a caller
// who has gone away. The two look alike until somebody writes, so those count as readers who close at once, and all of them once their run has begun, for it is finished
// in any case. Others are let go before they cost anything. release must be called in the end.
func (r *request) outlastHalfClose(ctx context.Context) (_ context.Context, release func()) {
	conn, ok := ctx.Value(connKey{}).(*gatedConn)
	if !ok {
		return ctx, func() {}
	}
	own, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		if conn.ended.Load() && (conn.soon.Load() || r.admitted.Load()) {
			return
		}
		cancel(context.Cause(ctx))
	})
	return own, func() {
		stop()
		cancel(nil)
	}
}
