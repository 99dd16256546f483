package server

import (
	"bufio"
	"context"
	"encoding/json"
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
	"github.com/keyfire/keyfire/core/internal/admin"
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
	go func() {
		served <- srv.Serve(&gatedListener{Listener: l, gate: newGate(10, 10, nil), soon: time.Minute})
	}()
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

// What net/http refuses by itself is a problem with a request id and a line in the log, as everything else that is refused.
func TestWhatIsNoRequestIsAProblem(t *testing.T) {
	t.Parallel()
	b := setup(t)
	addr, _, _ := b.serve()
	for _, c := range []struct {
		name, text string
		status     int
		code       core.Code
		says       string
	}{
		{"no request line", "hello\r\n\r\n", 400, core.CodeInvalidRequest, "no request of HTTP/1.1"},
		{"TLS", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, core.CodeInvalidRequest, "no request of HTTP/1.1"},
		{"no host", "GET /healthz HTTP/1.1\r\n\r\n", 400, core.CodeInvalidRequest, "missing required Host header"},
		{"bad host", "GET /healthz HTTP/1.1\r\nHost: a b\r\n\r\n", 400, core.CodeInvalidRequest, "malformed Host header"},
		{"bad header", "GET /healthz HTTP/1.1\r\nHost: x\r\nX: a\x00secret\r\n\r\n", 400, core.CodeInvalidRequest, ""},
		{"HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 404, core.CodeNotFound, ""},
		{"HTTP/3", "GET /healthz HTTP/3.0\r\nHost: x\r\n\r\n", 505, core.CodeInvalidRequest, "unsupported protocol version"},
		{"unknown coding", "POST /v1/trigger HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501, core.CodeInvalidRequest, "unsupported transfer encoding"},
		{"two lengths", "POST /v1/trigger HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n1", 400, core.CodeInvalidRequest, ""},
		{"unknown expectation", "POST /v1/trigger HTTP/1.1\r\nHost: x\r\nExpect: secret\r\nContent-Length: 1\r\n\r\n1", 417, core.CodeInvalidRequest, "100-continue"},
		{"large header", "GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("secret", 10_000) + "\r\n\r\n", 431, core.CodeHeadersTooLarge, "more than 16384 bytes"},
		{"65 fields", "GET /healthz HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("X: secret\r\n", 63) + "Connection: close\r\n\r\n", 431, core.CodeHeadersTooLarge, "more than 64 header fields"},
	} {
		answer := raw(t, addr, c.text)
		r, err := http.ReadResponse(bufio.NewReader(strings.NewReader(answer)), nil)
		if err != nil {
			t.Errorf("%s: %v: %q", c.name, err, answer)
			continue
		}
		body, err := io.ReadAll(r.Body)
		_ = r.Body.Close()
		b.must(err)
		var p Problem
		if err := json.Unmarshal(body, &p); err != nil || r.Header.Get("Content-Type") != typeProblem || int64(len(body)) != r.ContentLength || !r.Close {
			t.Errorf("%s: %v: %q", c.name, err, answer)
			continue
		}
		if r.StatusCode != c.status || p.Status != c.status || p.Code != string(c.code) || !strings.Contains(p.Detail, c.says) || p.RequestID == "" || r.Header.Get("Keyfire-Request-Id") != p.RequestID {
			t.Errorf("%s: %s", c.name, answer)
		}
		if strings.Contains(answer, "secret") || !strings.Contains(b.logs.String(), `"request_id":"`+p.RequestID) {
			t.Errorf("%s: the answer repeats the request, or the log does not have it: %s", c.name, answer)
		}
	}
	if strings.Contains(b.logs.String(), "secret") {
		t.Error(b.logs.String())
	}
}

// All fields count, also those that net/http keeps elsewhere than with the others.
func TestHeaderLimitsHoldExactlyI1(t *testing.T) {
	t.Parallel()
	b := setup(t)
	addr, _, _ := b.serve()
	const coding = "Transfer-Encoding: chunked\r\n"
	for _, c := range []struct {
		head string
		want string
	}{
		{"Host: x\r\n" + strings.Repeat("X: y\r\n", 62), "200"},
		{"Host: x\r\n" + coding + strings.Repeat("X: y\r\n", 61), "200"},
		{"Host: x\r\n" + coding + strings.Repeat("X: y\r\n", 62), "431"},
		{"Host: x\r\nX: " + strings.Repeat("y", 16384-len("Host: x\r\nX: \r\nConnection: close\r\n")) + "\r\n", "200"},
		{"Host: x\r\nX: " + strings.Repeat("y", 16385-len("Host: x\r\nX: \r\nConnection: close\r\n")) + "\r\n", "431"},
	} {
		body := ""
		if strings.Contains(c.head, coding) {
			body = "0\r\n\r\n"
		}
		if answer := raw(t, addr, "GET /healthz HTTP/1.1\r\n"+c.head+"Connection: close\r\n\r\n"+body); !strings.HasPrefix(answer, "HTTP/1.1 "+c.want) {
			t.Errorf("%d fields, %d bytes: %.60q, want %s", strings.Count(c.head, "\n")+1, len(c.head), answer, c.want)
		}
	}
}

// A refusal is told from the beginning of an answer of ours, which has other headers.
func TestAnswersOfOursAreLeftAlone(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int{
		bareLine + "400 Bad Request" + bareHeader + "400 Bad Request":                                                   400,
		bareLine + "400 Bad Request: malformed Host header" + bareHeader + "400 Bad Request: malformed Host header":     400,
		bareLine + "501 Not Implemented" + bareHeader + "Unsupported transfer encoding":                                 501,
		bareExpect + "Connection: close\r\nContent-Length: 0\r\n\r\n":                                                   417,
		bareLine + "400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nDate: x\r\nConnection: close\r\n\r\n": 0,
		bareLine + "200 OK\r\nContent-Type: application/json\r\n\r\n{}":                                                 0,
		bareLine + "x" + bareHeader: 0,
		bareLine:                    0,
	} {
		if status, _, ok := bareRefusal(text); status != want || ok != (want != 0) {
			t.Errorf("%q: %d, %v", text, status, ok)
		}
	}
}

// A request ends with its caller, unless that has only closed its own direction.
func TestWhoHasGoneAway(t *testing.T) {
	t.Parallel()
	for _, halfClosed := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			conn := &gatedConn{}
			conn.halfClosed.Store(halfClosed)
			gone := errors.New("gone")
			parent, cancel := context.WithCancelCause(context.WithValue(t.Context(), connKey{}, conn))
			ctx, release := outlastHalfClose(parent)
			synctest.Wait()
			if ctx.Err() != nil {
				t.Fatal("it ends before its parent")
			}
			cancel(gone)
			synctest.Wait()
			if goesOn := ctx.Err() == nil; goesOn != halfClosed || !goesOn && !errors.Is(context.Cause(ctx), gone) {
				t.Errorf("half closed: %v; %v", halfClosed, context.Cause(ctx))
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
			conn := &gatedConn{Conn: ours, soon: halfClosing}
			go func() {
				_, _ = theirs.Write([]byte("x"))
				time.Sleep(wait)
				_ = theirs.Close()
			}()
			for {
				if _, err := conn.Read(make([]byte, 10)); err != nil {
					break
				}
				if conn.halfClosed.Load() {
					t.Fatal("closed by something that came")
				}
			}
			if conn.halfClosed.Load() != soon {
				t.Errorf("after %s: half closed is %v", wait, !soon)
			}
		})
	}
}

// The bytes of a module are the one thing that is sent as somebody made it. They may look like a refusal wherever net/http ends one write and begins the next; and once they
// are out, a refusal on the same connection is a problem again.
func TestDownloadedBytesAreLeftAlone(t *testing.T) {
	t.Parallel()
	b := setup(t)
	addr, _, _ := b.serve()
	boss := b.adminKey()
	const refusal = bareLine + "400 Bad Request" + bareHeader + "400 Bad Request"
	download := func(size int) (binary, answer string) {
		binary = wasm + strings.Repeat("x", size) + refusal
		slug := fmt.Sprintf("raw%d", size)
		_, err := b.admin.PublishWorkflow(t.Context(), b.boss, admin.Publish{
			Slug: slug, Filename: "workflow.yaml", Source: []byte(workflowFile(slug, "")), Modules: map[string][]byte{"./only.wasm": []byte(binary)},
		})
		b.must(err)
		_, v, err := b.admin.Workflow(t.Context(), b.boss, slug, 0)
		b.must(err)
		return binary, raw(t, addr, "GET /v1/modules/"+v.Definition.Nodes[0].Module+" HTTP/1.1\r\nHost: x\r\nX-API-Key: "+boss+"\r\n\r\nno request\r\n\r\n")
	}
	const writes = 4096 - len(wasm) // of net/http, whose buffer 4096 bytes are
	_, first := download(writes)
	header := strings.Index(first, "\r\n\x00asm") + 2
	for size := writes - header - 2; size <= writes-header+2; size++ {
		binary, text := download(size)
		answers := bufio.NewReader(strings.NewReader(text))
		r, err := http.ReadResponse(answers, nil)
		b.must(err)
		body, err := io.ReadAll(r.Body)
		_ = r.Body.Close()
		if err != nil || string(body) != binary {
			t.Fatalf("a module of %d bytes: %v: %q", len(binary), err, body[min(len(body), size):])
		}
		r, err = http.ReadResponse(answers, nil)
		b.must(err)
		_ = r.Body.Close()
		if r.StatusCode != http.StatusBadRequest || r.Header.Get("Content-Type") != typeProblem {
			t.Errorf("what is no request is then answered with %s, %s", r.Status, r.Header.Get("Content-Type"))
		}
	}
}
