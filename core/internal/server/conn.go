package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keyfire/keyfire/core"
)

// gatedConn is a connection that was let through a gate. It gives its place back when it is closed, and remembers whether its other side has only stopped to send.
type gatedConn struct {
	net.Conn
	gate   *gate
	source netip.Prefix
	once   sync.Once

	refuse    func(from net.Addr, status int, detail string) []byte // renders what net/http refuses by itself
	answering atomic.Bool                                           // a handler's answer goes out, which may hold any bytes

	soon       time.Duration // how long after a request its sender may close its own direction and count as one that waits for the answer
	halfClosed atomic.Bool   // the other side has closed its own direction at once after its request, and reads on
}

// halfClosing is enough for nc -N, which closes as soon as its input ends. Whoever has lost patience hangs up later than that.
const halfClosing = 250 * time.Millisecond

// Read reads from the connection.
func (c *gatedConn) Read(p []byte) (int, error) {
	began := time.Now()
	n, err := c.Conn.Read(p)
	if errors.Is(err, io.EOF) && time.Since(began) < c.soon {
		c.halfClosed.Store(true)
	}
	return n, err
}

// What net/http writes when it refuses a request before there is one to speak of, in one piece and past every handler: a status line, perhaps with a reason, this header, and a
// text.
const (
	bareLine   = "HTTP/1.1 "
	bareHeader = "\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n"
	bareMost   = 512 // bytes

	// bareExpect begins its answer to a request that expects something other than 100-continue, which no handler sees either.
	bareExpect = "HTTP/1.1 417 Expectation Failed\r\n"
)

// Write writes to the connection. A refusal by net/http becomes a problem, as every other refusal is one. What looks like one in an answer is left alone: a module that is downloaded is
// whatever its author made it, and may begin a write anywhere.
func (c *gatedConn) Write(p []byte) (int, error) {
	if c.refuse == nil || c.answering.Load() || len(p) > bareMost || !bytes.HasPrefix(p, []byte(bareLine)) {
		return c.Conn.Write(p)
	}
	status, detail, ok := bareRefusal(string(p))
	if !ok {
		return c.Conn.Write(p)
	}
	if _, err := c.Conn.Write(c.refuse(c.RemoteAddr(), status, detail)); err != nil {
		return 0, err
	}
	return len(p), nil
}

// bareRefusal reads a refusal by net/http: its status and, if it says one, its reason, which repeats nothing of the request.
func bareRefusal(text string) (status int, reason string, ok bool) {
	if strings.HasPrefix(text, bareExpect) {
		return http.StatusExpectationFailed, "expects what this server does not do; 100-continue is all", true
	}
	line, body, ok := strings.Cut(strings.TrimPrefix(text, bareLine), bareHeader)
	number, said, _ := strings.Cut(line, " ")
	status, err := strconv.Atoi(number)
	if !ok || err != nil {
		return 0, "", false
	}
	_, reason, _ = strings.Cut(said, ": ")
	if status == http.StatusNotImplemented {
		reason = strings.ToLower(body) // "Unsupported transfer encoding"
	}
	return status, reason, true
}

// refuseBare renders the refusal of what never became a request, with the header of an answer, and logs it as requests are.
func (s *Server) refuseBare(from net.Addr, status int, reason string) []byte {
	e := core.Errorf(core.CodeInvalidRequest, "what was sent is no request of HTTP/1.1")
	switch {
	case status == http.StatusRequestHeaderFieldsTooLarge:
		e = core.Errorf(core.CodeHeadersTooLarge, "the request header has more than %d bytes", s.MaxHeader)
	case reason != "":
		e.Message = "the request cannot be taken: " + reason
	}
	p, _, _ := problemOf(e)
	p.Status, p.RequestID = status, s.NewID(core.PrefixRequest)
	var body bytes.Buffer
	if err := encodeJSON(&body, p); err != nil {
		panic(err) // our own types always marshal
	}
	attrs := []slog.Attr{slog.String("request_id", p.RequestID), slog.String("method", knownMethod("")), slog.Int("status", status), slog.String("code", p.Code)}
	if at, err := netip.ParseAddrPort(from.String()); err == nil {
		attrs = append(attrs, slog.String("source_ip", at.Addr().Unmap().WithZone("").String()))
	}
	ctx := context.Background()
	s.Logger.LogAttrs(ctx, slog.LevelInfo, "request", attrs...)
	s.metrics.answered(ctx, knownMethod(""), "", status, core.Code(p.Code), 0)
	var b bytes.Buffer
	fmt.Fprintf(&b, "HTTP/1.1 %d %s\r\nCache-Control: no-store\r\nConnection: close\r\nContent-Length: %d\r\nContent-Type: %s\r\nDate: %s\r\nKeyfire-Request-Id: %s\r\nX-Content-Type-Options: nosniff\r\n\r\n",
		status, http.StatusText(status), body.Len(), typeProblem, s.Now().UTC().Format(http.TimeFormat), p.RequestID)
	return append(b.Bytes(), body.Bytes()...)
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

// markAnswer notes that whatever is written next on the connection of a request answers it.
func markAnswer(r *http.Request) {
	if conn, ok := r.Context().Value(connKey{}).(*gatedConn); ok {
		conn.answering.Store(true)
	}
}

// connState notes when an answer is out, and the next request may be refused.
func connState(c net.Conn, state http.ConnState) {
	if conn, ok := c.(*gatedConn); ok && state == http.StateIdle {
		conn.answering.Store(false)
	}
}

// connKey is the context key of a request's *gatedConn.
type connKey struct{}

// outlastHalfClose returns a context that ends as ctx does, which is the one of a request, but not when its caller has only closed its own direction: net/http takes that for a caller
// who has gone away. The two look alike until somebody writes, so whoever closes at once counts as a reader, and everybody else is let go: they must not hold a connection, of
// which an address has only so many, and more before their run has begun. release must be called in the end.
func outlastHalfClose(ctx context.Context) (_ context.Context, release func()) {
	conn, ok := ctx.Value(connKey{}).(*gatedConn)
	if !ok {
		return ctx, func() {}
	}
	own, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		if !conn.halfClosed.Load() {
			cancel(context.Cause(ctx))
		}
	})
	return own, func() {
		stop()
		cancel(nil)
	}
}
