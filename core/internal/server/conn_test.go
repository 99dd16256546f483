package server

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/server/compat"
	"github.com/keyfire/keyfire/core/internal/trigger"
)

// A caller that closes its own direction once its request is out, as nc -N does, reads the answer all the same, although net/http has ended the request's context by then.
func TestHalfClosedCallerIsAnswered(t *testing.T) {
	t.Parallel()
	b := setup(t, func(_ *trigger.Config, c *Config) { c.Compat = compat.Products{Keyflow: true, Langflow: true} })
	b.publish("flow", "")
	key := b.globalKey()
	noticed := make(chan struct{}, 1)
	b.executor.set("flow", func(context.Context, *core.Run) { <-noticed })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	b.must(err)
	srv := &http.Server{ConnContext: b.server.connContext, ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer context.AfterFunc(r.Context(), func() { noticed <- struct{}{} })()
		b.handler.ServeHTTP(w, r)
	})}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(&gatedListener{Listener: l, gate: newGate(10, 10, nil)}) }()
	defer func() {
		b.must(srv.Close())
		<-served
	}()
	for _, c := range []struct{ name, path, header, body, want string }{
		{"inline", "/v1/workflows/flow/runs", "", `{"input":{"a":1}}`, `"status":"succeeded"`},
		{"waiting for a durable one", "/v1/workflows/flow/runs", "Prefer: wait=30\r\n", `{"input":{"a":1}}`, `"status":"succeeded"`},
		{"events", "/v1/workflows/flow/runs", "Accept: text/event-stream\r\n", `{}`, "event: run.finished"},
		{"an adapter", "/api/v1/process/flow", "", `{"inputs":{"a":1}}`, `"result":`},
	} {
		conn, err := net.Dial("tcp", l.Addr().String())
		b.must(err)
		defer conn.Close()
		b.must(conn.SetDeadline(time.Now().Add(time.Minute)))
		_, err = fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nX-API-Key: %s\r\nContent-Type: application/json\r\n%sContent-Length: %d\r\n\r\n%s", c.path, key, c.header, len(c.body), c.body)
		b.must(err)
		b.must(conn.(*net.TCPConn).CloseWrite())
		answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
		b.must(err)
		body, err := io.ReadAll(answer.Body)
		_ = answer.Body.Close()
		if err != nil || answer.StatusCode != http.StatusOK || !strings.Contains(string(body), c.want) {
			t.Errorf("%s: %s, %v: %s", c.name, answer.Status, err, body)
		}
	}
}

// A request ends with its caller, unless that has only closed its own direction: at once, or when a run has begun, which is finished in any case.
func TestWhoHasGoneAway(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ ended, soon, admitted, goesOn bool }{
		{ended: false, soon: false, admitted: false, goesOn: false}, // the connection broke
		{ended: false, soon: false, admitted: true, goesOn: false},
		{ended: true, soon: true, admitted: false, goesOn: true},
		{ended: true, soon: true, admitted: true, goesOn: true},
		{ended: true, soon: false, admitted: false, goesOn: false}, // it has lost patience
		{ended: true, soon: false, admitted: true, goesOn: true},
	} {
		synctest.Test(t, func(t *testing.T) {
			conn, r := &gatedConn{}, &request{}
			conn.ended.Store(c.ended)
			conn.soon.Store(c.soon)
			r.admitted.Store(c.admitted)
			gone := errors.New("gone")
			parent, cancel := context.WithCancelCause(context.WithValue(t.Context(), connKey{}, conn))
			ctx, release := r.outlastHalfClose(parent)
			synctest.Wait()
			if ctx.Err() != nil {
				t.Fatal("it ends before its parent")
			}
			cancel(gone)
			synctest.Wait()
			if goesOn := ctx.Err() == nil; goesOn != c.goesOn || !goesOn && !errors.Is(context.Cause(ctx), gone) {
				t.Errorf("%+v: %v", c, context.Cause(ctx))
			}
			release()
			if ctx.Err() == nil {
				t.Error("it is not released")
			}
		})
	}
}

// How soon after a request its sender closed its direction is measured from when more could have come.
func TestHalfClosingIsSoonOrLate(t *testing.T) {
	t.Parallel()
	for wait, soon := range map[time.Duration]bool{0: true, halfClosing / 2: true, halfClosing: false, time.Minute: false} {
		synctest.Test(t, func(t *testing.T) {
			ours, theirs := net.Pipe()
			conn := &gatedConn{Conn: ours}
			go func() {
				_, _ = theirs.Write([]byte("x"))
				time.Sleep(wait)
				_ = theirs.Close()
			}()
			for {
				if _, err := conn.Read(make([]byte, 10)); err != nil {
					break
				}
				if conn.ended.Load() {
					t.Fatal("ended by something that came")
				}
			}
			if !conn.ended.Load() || conn.soon.Load() != soon {
				t.Errorf("after %s: ended %v, soon %v", wait, conn.ended.Load(), conn.soon.Load())
			}
		})
	}
}
