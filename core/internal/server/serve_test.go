package server

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/trigger"
)

// serve starts b's server on a loopback port and on a unix socket, and returns both and a function that stops it and waits.
func (b *bundle) serve() (addr, socket string, stop func() error) {
	b.t.Helper()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	b.must(err)
	dir, err := os.MkdirTemp("", "kf") // t.TempDir is too long for a socket's name on some systems
	b.must(err)
	socket = filepath.Join(dir, "s")
	local, err := net.Listen("unix", socket)
	b.must(err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.server.Serve(ctx, tcp, local) }()
	var once sync.Once
	var result error
	stop = func() error {
		once.Do(func() {
			cancel()
			result = <-done
		})
		return result
	}
	b.t.Cleanup(func() {
		if err := stop(); err != nil {
			b.t.Error(err)
		}
		_ = os.RemoveAll(dir)
	})
	return tcp.Addr().String(), socket, stop
}

// raw sends text over a connection of its own and returns all that comes back until the server closes it.
func raw(t testing.TB, addr, text string) string {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(c)
	if err != nil && len(answer) == 0 {
		t.Fatal(err)
	}
	return string(answer)
}

// I2: what is not one clear HTTP request starts nothing. Each case hides a second trigger in the first one, or is framed in two ways.
func TestNothingIsSmuggled(t *testing.T) {
	t.Parallel()
	b := setup(t, func(_ *trigger.Config, sc *Config) {
		// A busy machine may be late to send, or to read, a header that is there.
		sc.HeaderTimeout, sc.BodyTimeout, sc.IdleTimeout = 2*time.Second, 200*time.Millisecond, 200*time.Millisecond
	})
	b.publish("open", "")
	key := b.globalKey()
	started := make(chan string, 100)
	b.executor.set("open", func(_ context.Context, run *core.Run) { started <- string(run.Input) })
	addr, _, _ := b.serve()
	head := "POST /v1/workflows/open/runs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nX-API-Key: " + key + "\r\n"
	hidden := "POST /v1/workflows/open/runs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nX-API-Key: " + key + "\r\nContent-Length: 18\r\n\r\n{\"input\":\"hidden\"}"
	const good = `{"input":"good"}` // 16 bytes
	for _, c := range []struct {
		name, text string
		runs       bool // the first request is a good one
	}{
		{"good", head + "Content-Length: 16\r\n\r\n" + good, true},
		{"chunked", head + "Transfer-Encoding: chunked\r\n\r\n10\r\n" + good + "\r\n0\r\n\r\n", true},
		{"two equal lengths", head + "Content-Length: 16\r\nContent-Length: 16\r\n\r\n" + good, true},
		{"a length and a coding", head + "Content-Length: 500\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n" + good + "\r\n0\r\n\r\n" + hidden, true},
		{"a coding and a length", head + "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n10\r\n" + good + "\r\n0\r\n\r\n" + hidden, true},
		{"two lengths", head + "Content-Length: 16\r\nContent-Length: 5\r\n\r\n" + good + hidden, false},
		{"a list of lengths", head + "Content-Length: 16, 5\r\n\r\n" + good + hidden, false},
		{"signed length", head + "Content-Length: +16\r\n\r\n" + good + hidden, false},
		{"negative length", head + "Content-Length: -16\r\n\r\n" + good + hidden, false},
		{"hexadecimal length", head + "Content-Length: 0x10\r\n\r\n" + good + hidden, false},
		{"unknown transfer coding", head + "Content-Length: 16\r\nTransfer-Encoding: xchunked\r\n\r\n" + good + hidden, false},
		{"two transfer codings", head + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + hidden, false},
		{"coding list", head + "Transfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n" + hidden, false},
		{"coding after white space", head + "Transfer-Encoding : chunked\r\nContent-Length: 16\r\n\r\n" + good + hidden, false},
		{"coding with vertical tab", head + "Transfer-Encoding: \x0bchunked\r\nContent-Length: 16\r\n\r\n" + good + hidden, false},
		{"folded header", head + "X-Fold: a\r\n Content-Length: 0\r\nContent-Length: 16\r\n\r\n" + good, true},
		{"bare carriage return", head + "X-A: a\rContent-Length: 0\r\n\r\n" + hidden, false},
		{"NUL in a header", head + "X-A: a\x00b\r\nContent-Length: 16\r\n\r\n" + good + hidden, false},
		{"space before colon", head + "Content-Length : 16\r\n\r\n" + good + hidden, false},
		{"space in a name", head + "Content Length: 16\r\n\r\n" + good + hidden, false},
		{"no host", strings.Replace(head, "Host: x\r\n", "", 1) + "Content-Length: 16\r\n\r\n" + good, false},
		{"two hosts", strings.Replace(head, "Host: x\r\n", "Host: x\r\nHost: y\r\n", 1) + "Content-Length: 16\r\n\r\n" + good, false},
		{"chunk size with a sign", head + "Transfer-Encoding: chunked\r\n\r\n+10\r\n" + good + "\r\n0\r\n\r\n" + hidden, false},
		{"chunk size overflow", head + "Transfer-Encoding: chunked\r\n\r\n10000000000000010\r\n" + good + "\r\n0\r\n\r\n" + hidden, false},
		{"chunk without end", head + "Transfer-Encoding: chunked\r\n\r\n10\r\n" + good + "xx0\r\n\r\n" + hidden, false},
		{"short body", head + "Content-Length: 99\r\n\r\n" + good, false},
		{"HTTP/1.0 chunked", strings.Replace(head, "HTTP/1.1", "HTTP/1.0", 1) + "Transfer-Encoding: chunked\r\n\r\n10\r\n" + good + "\r\n0\r\n\r\n" + hidden, false},
		{"unknown version", strings.Replace(head, "HTTP/1.1", "HTTP/9.9", 1) + "Content-Length: 16\r\n\r\n" + good, false},
		{"line break in the path", strings.Replace(head, "/runs", "/runs\r\nX: y", 1) + "Content-Length: 16\r\n\r\n" + good, false},
		{"no request", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", false},
		{"a proxy's request", "GET http://elsewhere/v1/keys HTTP/1.1\r\nHost: elsewhere\r\n\r\n", false},
		{"connect", "CONNECT elsewhere:443 HTTP/1.1\r\nHost: elsewhere:443\r\n\r\n", false},
		{"asterisk", "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", false},
		{"upgrade", "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n", false},
	} {
		answer := raw(t, addr, c.text)
		// net/http's own answers to framing and versions that it does not know.
		answer = strings.NewReplacer("HTTP/1.1 501 Not Implemented", "", "HTTP/1.1 505 HTTP Version", "").Replace(answer)
		var ran []string
		for drained := false; !drained; {
			select {
			case input := <-started:
				ran = append(ran, input)
			default:
				drained = true
			}
		}
		switch {
		case c.runs && (len(ran) != 1 || ran[0] != `"good"`), !c.runs && len(ran) != 0:
			t.Errorf("%s: runs %v\n%.300s", c.name, ran, answer)
		case strings.Contains(answer, "HTTP/1.1 5"):
			t.Errorf("%s: %.300s", c.name, answer)
		}
	}
}

// O2: slow clients are cut off, and are in nobody's way.
func TestSlowClients(t *testing.T) {
	t.Parallel()
	b := setup(t, func(_ *trigger.Config, sc *Config) {
		// A busy machine may be late to send, or to read, a header that is there.
		sc.HeaderTimeout, sc.BodyTimeout, sc.IdleTimeout = 2*time.Second, 150*time.Millisecond, 150*time.Millisecond
	})
	b.publish("open", "")
	key := b.globalKey()
	var addr string
	var stop func() error
	pprof.Do(context.Background(), pprof.Labels("server", t.Name()), func(context.Context) { addr, _, stop = b.serve() })
	// goroutines returns those of this server: each inherits the label of the one that begins it.
	goroutines := func() string {
		var all bytes.Buffer
		b.must(pprof.Lookup("goroutine").WriteTo(&all, 1))
		var ours []string
		for stack := range strings.SplitSeq(all.String(), "\n\n") {
			if strings.Contains(stack, t.Name()+`"`) {
				ours = append(ours, stack)
			}
		}
		return strings.Join(ours, "\n\n")
	}
	if goroutines() == "" {
		t.Fatal("no goroutine of the server is found")
	}
	head := "POST /v1/workflows/open/runs HTTP/1.1\r\nHost: x\r\nX-API-Key: " + key + "\r\nContent-Type: application/json\r\n"
	var wg sync.WaitGroup
	for name, c := range map[string]struct{ text, want string }{
		"half a header":                {"POST /v1/workflows/open/runs HTTP/1.1\r\nHost: x\r\nX-A: ", ""},
		"nothing at all":               {"", ""},
		"half a body":                  {head + "Content-Length: 20\r\n\r\n{\"inp", "did not arrive within"},
		"half a chunk":                 {head + "Transfer-Encoding: chunked\r\n\r\n10\r\n{\"in", "did not arrive within"},
		"a body nobody reads":          {"POST /v1/workflows/open/runs HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n\r\n{\"inp", "unauthenticated"},
		"idle after an answer":         {"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", `"ok"`},
		"a body for a missing route":   {"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n\r\n{", "not_found"},
		"a body announced, never sent": {head + "Expect: 100-continue\r\nContent-Length: 20\r\n\r\n", "100 Continue"},
	} {
		for range 5 {
			wg.Go(func() {
				conn, err := net.Dial("tcp", addr)
				if err != nil {
					t.Error(err)
					return
				}
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
				_, _ = io.WriteString(conn, c.text)
				answer, err := io.ReadAll(conn) // until the server closes
				if errors.Is(err, os.ErrDeadlineExceeded) || !strings.Contains(string(answer), c.want) {
					t.Errorf("%s: %v %q", name, err, answer)
				}
			})
		}
	}
	// Meanwhile everybody else is served.
	client := &http.Client{Transport: &http.Transport{}}
	for range 20 {
		resp, err := client.Get("http://" + addr + "/healthz")
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
	}
	client.CloseIdleConnections()
	wg.Wait()
	if err := stop(); err != nil {
		t.Error(err)
	}
	for end := time.Now().Add(20 * time.Second); goroutines() != ""; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("of the server is left:\n%s", goroutines())
		}
	}
}

// A run that takes longer than the body timeout is not cut off by it: that timeout is for the body alone.
func TestLongRunsOutliveTheBodyTimeout(t *testing.T) {
	t.Parallel()
	b := setup(t, func(_ *trigger.Config, sc *Config) { sc.BodyTimeout = 50 * time.Millisecond })
	b.publish("open", "")
	key := b.globalKey()
	b.executor.set("open", func(ctx context.Context, run *core.Run) {
		select {
		case <-time.After(200 * time.Millisecond): // the one way to be longer than a timeout
		case <-ctx.Done():
			run.Status = core.RunCancelled
			run.Error = &core.RunError{Code: core.CodeRunCancelled, Message: context.Cause(ctx).Error()}
		}
	})
	addr, _, _ := b.serve()
	req, _ := http.NewRequest("POST", "http://"+addr+"/v1/workflows/open/runs", strings.NewReader(`{"input":1}`))
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-API-Key", key)
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, _ := io.ReadAll(resp.Body); resp.StatusCode != 200 {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
}

// L1: a stop lets the running request finish, refuses new ones, and says so to load balancers.
func TestStop(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.publish("open", "")
	key := b.globalKey()
	running, finish := make(chan struct{}), make(chan struct{})
	b.executor.set("open", func(_ context.Context, run *core.Run) {
		if string(run.Input) == `"wait"` {
			close(running)
			<-finish
		}
	})
	addr, _, stop := b.serve()
	post := func(c *http.Client, body string) (int, string) {
		req, _ := http.NewRequest("POST", "http://"+addr+"/v1/workflows/open/runs", strings.NewReader(body))
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("X-API-Key", key)
		resp, err := c.Do(req)
		if err != nil {
			t.Error(err)
			return 0, ""
		}
		defer resp.Body.Close()
		text, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(text)
	}
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	var wg sync.WaitGroup
	wg.Go(func() {
		if code, body := post(client, `{"input":"wait"}`); code != 200 {
			t.Errorf("the running request got %d %s", code, body)
		}
	})
	<-running
	stopped := make(chan error, 1)
	go func() { stopped <- stop() }()
	for !b.trigger.Draining() {
		runtime.Gosched()
	}
	if code, body := post(client, `{"input":1}`); code != 503 || !strings.Contains(body, `"draining"`) {
		t.Errorf("a new trigger got %d %s", code, body)
	}
	if resp, err := client.Get("http://" + addr + "/readyz"); err != nil || resp.StatusCode != 503 {
		t.Errorf("readyz: %v %v", resp, err)
	} else {
		_ = resp.Body.Close()
	}
	close(finish)
	wg.Wait()
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	if _, err := net.Dial("tcp", addr); err == nil {
		t.Error("still listening")
	}
	// A refusal that is foreseen is no error of the server.
	if text := b.logs.String(); strings.Contains(text, `"ERROR"`) || !strings.Contains(text, `"code":"draining"`) {
		t.Errorf("the log: %s", text)
	}
}

func TestServeReportsABrokenListener(t *testing.T) {
	t.Parallel()
	b := setup(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	b.must(err)
	b.must(l.Close())
	if err := b.server.Serve(t.Context(), l); err == nil {
		t.Error("a closed listener is no error")
	}
	if err := b.server.Serve(t.Context()); err == nil {
		t.Error("no listener is no error")
	}
}

// The local socket needs no credential: the kernel says who is there. A credential that is sent all the same is judged.
func TestLocalSocket(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("the local socket is refused on " + runtime.GOOS)
	}
	b := setup(t)
	b.publish("open", "")
	_, socket, _ := b.serve()
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	defer client.CloseIdleConnections()
	send := func(method, path, key, body string) (int, string) {
		req, _ := http.NewRequest(method, "http://local"+path, strings.NewReader(body))
		req.Header.Set("X-Forwarded-For", "198.51.100.4")
		if body != "" {
			req.Header.Set("Content-Type", "application/json")
		}
		if key != "" {
			req.Header.Set("X-API-Key", key)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(text)
	}
	me := fmt.Sprintf("uid:%d", os.Getuid())
	if code, body := send("POST", "/v1/keys", "", `{"name":"made locally","global":true}`); code != 201 || !strings.Contains(body, `"created_by":"`+me+`"`) {
		t.Errorf("%d %s", code, body)
	}
	if code, body := send("POST", "/v1/workflows/open/runs", "", `{}`); code != 200 || !strings.Contains(body, `"principal":"`+me+`"`) || !strings.Contains(body, `"backend":"socket"`) || strings.Contains(body, "source_ip") {
		t.Errorf("%d %s", code, body)
	}
	if code, body := send("GET", "/v1/audit?action=key.create&limit=1", "", ""); code != 200 || !strings.Contains(body, `"actor":"`+me+`"`) {
		t.Errorf("%d %s", code, body)
	}
	if code, _ := send("GET", "/v1/keys", "nonsense", ""); code != 401 {
		t.Errorf("a wrong key on the local socket: %d", code)
	}
	if code, _ := send("GET", "/v1/keys", b.globalKey(), ""); code != 403 {
		t.Errorf("a weak key on the local socket: %d", code)
	}
}

func TestConnectionsOfOneAddress(t *testing.T) {
	t.Parallel()
	g := newGate(100, 3, []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")})
	addr := func(s string) net.Addr { return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(s)) }
	for from, want := range map[string]string{
		"203.0.113.7:1": "203.0.113.7/32", "[::ffff:203.0.113.7]:1": "203.0.113.7/32", "[2001:db8::1]:1": "2001:db8::/64", "127.0.0.1:1": "invalid Prefix", "[::1]:1": "invalid Prefix", "10.2.3.4:1": "invalid Prefix",
	} {
		if got := g.source(addr(from)).String(); got != want {
			t.Errorf("%s counts as %s, want %s", from, got, want)
		}
	}
	if got := g.source(&net.UnixAddr{Name: "x"}); got.IsValid() {
		t.Error("the local socket is counted")
	}
	source := g.source(addr("203.0.113.7:1"))
	for range 3 {
		if !g.enter(source) {
			t.Fatal("refused too early")
		}
	}
	if g.enter(source) {
		t.Error("a fourth connection")
	}
	if !g.enter(g.source(addr("203.0.113.8:1"))) {
		t.Error("another address is refused")
	}
	g.leave(source)
	if !g.enter(source) {
		t.Error("a place that became free is not given")
	}
}

// The bound on all connections makes the next one wait; it is served when one ends.
func TestConnectionsInAll(t *testing.T) {
	t.Parallel()
	b := setup(t, func(_ *trigger.Config, sc *Config) { sc.MaxConns = 2 }) // one listener's place is taken while it waits
	l, err := net.Listen("tcp", "127.0.0.1:0")
	b.must(err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.server.Serve(ctx, l) }()
	ask := func() (net.Conn, func() string) {
		c, err := net.Dial("tcp", l.Addr().String())
		b.must(err)
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		_, err = io.WriteString(c, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
		b.must(err)
		return c, func() string {
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			b.must(err)
			defer resp.Body.Close()
			body, _ := io.ReadAll(resp.Body)
			return string(bytes.TrimSpace(body))
		}
	}
	first, answer1 := ask()
	answer1()
	second, answer2 := ask()
	answer2()
	third, answer3 := ask()
	_ = first.Close()
	if got := answer3(); got != `{"status":"ok"}` {
		t.Errorf("the waiting connection got %s", got)
	}
	_ = second.Close()
	_ = third.Close()
	cancel()
	b.must(<-done)
}

// O2: whoever holds all connections over TCP, which loopback and proxies may, does not keep an operator from the local socket.
func TestLocalSocketHasItsOwnPlacesO2(t *testing.T) {
	t.Parallel()
	const most = 3
	b := setup(t, func(_ *trigger.Config, sc *Config) { sc.MaxConns, sc.HeaderTimeout = most, time.Minute })
	addr, socket, _ := b.serve()
	for range 2 * most {
		c, err := net.Dial("tcp", addr)
		b.must(err)
		defer c.Close()
	}
	for i := range 2 * most {
		c, err := net.Dial("unix", socket)
		b.must(err)
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		_, err = io.WriteString(c, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
		b.must(err)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatalf("local connection %d was not answered: %v", i+1, err)
		}
		_ = resp.Body.Close()
		_ = c.Close()
	}
}

// A client that reads the answer only when all of its body is sent, as most in Python do, learns that the body was too large: its connection is not reset before.
// One that asks first (Expect: 100-continue) is told without sending anything.
func TestTooLargeIsTold(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.publish("flow", "")
	key := b.globalKey()
	addr, _, _ := b.serve()
	const size = 24 << 20
	for _, c := range []struct{ name, framing string }{
		{"length", fmt.Sprintf("Content-Length: %d\r\n", size)},
		{"chunks", "Transfer-Encoding: chunked\r\n"},
	} {
		conn, err := net.Dial("tcp", addr)
		b.must(err)
		defer conn.Close()
		b.must(conn.SetDeadline(time.Now().Add(time.Minute)))
		_, err = fmt.Fprintf(conn, "POST /v1/workflows/flow/runs HTTP/1.1\r\nHost: x\r\nX-API-Key: %s\r\nContent-Type: application/json\r\n%s\r\n", key, c.framing)
		b.must(err)
		piece := bytes.Repeat([]byte("x"), 1<<20)
		if c.name == "chunks" {
			piece = append(append([]byte("100000\r\n"), piece...), "\r\n"...)
		}
		for range size >> 20 {
			if _, err := conn.Write(piece); err != nil {
				t.Fatalf("%s: the connection broke while the body was sent: %v", c.name, err)
			}
		}
		if c.name == "chunks" {
			_, err = conn.Write([]byte("0\r\n\r\n"))
			b.must(err)
		}
		answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatalf("%s: no answer: %v", c.name, err)
		}
		if answer.StatusCode != http.StatusRequestEntityTooLarge || !answer.Close {
			t.Errorf("%s: status %d, close %v", c.name, answer.StatusCode, answer.Close)
		}
		answer.Body.Close()
	}
	asked := raw(t, addr, fmt.Sprintf("POST /v1/workflows/flow/runs HTTP/1.1\r\nHost: x\r\nX-API-Key: %s\r\nContent-Type: application/json\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n", key, size))
	if !strings.HasPrefix(asked, "HTTP/1.1 413 ") {
		t.Errorf("asked first: %.100s", asked)
	}
}

// L1: a server that is asked to stop tells load balancers, and answers everything until they have had time to hear it.
func TestStopLeavesFirstL1(t *testing.T) {
	t.Parallel()
	b := setup(t, func(_ *trigger.Config, c *Config) { c.LeaveTime = 5 * time.Second })
	b.publish("open", "")
	key := b.globalKey()
	addr, _, stop := b.serve()
	began := time.Now()
	stopped := make(chan error, 1)
	go func() { stopped <- stop() }()
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	for code := 0; code != 503; {
		resp, err := client.Get("http://" + addr + "/readyz")
		if err != nil {
			t.Fatal(err)
		}
		code = resp.StatusCode
		_ = resp.Body.Close()
	}
	req, _ := http.NewRequest("POST", "http://"+addr+"/v1/workflows/open/runs", strings.NewReader(`{"input":1}`))
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-API-Key", key)
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != 200 || !resp.Close {
		t.Errorf("status %d, and the connection ends: %v; want 200 and true", resp.StatusCode, resp.Close)
	}
	if err := <-stopped; err != nil || time.Since(began) < 5*time.Second {
		t.Errorf("it stopped after %s: %v", time.Since(began), err)
	}
}

// L1: a publication that is under way when the server stops is done, as a run is, however long its modules take to compile.
func TestStopLetsPublicationsFinishL1(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.server.lastAnswers = 50 * time.Millisecond
	compiling, finish := make(chan struct{}), make(chan struct{})
	b.compile = func(ctx context.Context) error {
		close(compiling)
		select {
		case <-finish:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	boss := b.adminKey()
	contentType, body := publication(t, [3]string{"workflow", "workflow.yaml", workflowFile("new", "")}, [3]string{"module", "./only.wasm", wasm + "\x00\x01x"})
	addr, _, stop := b.serve()
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	put := func() (int, error) {
		req, _ := http.NewRequest("PUT", "http://"+addr+"/v1/workflows/new", strings.NewReader(body))
		req.Header.Set("Authorization", "Bearer "+boss)
		req.Header.Set("Content-Type", contentType)
		resp, err := client.Do(req)
		if err != nil {
			return 0, err
		}
		return resp.StatusCode, resp.Body.Close()
	}
	var under sync.WaitGroup
	under.Go(func() {
		if code, err := put(); code != 201 || err != nil {
			t.Errorf("the publication under way got %d, %v", code, err)
		}
	})
	<-compiling
	stopped := make(chan error, 1)
	go func() { stopped <- stop() }()
	select {
	case <-stopped:
		t.Error("the server has stopped before the publication was done")
	case <-time.After(4 * b.server.lastAnswers):
	}
	close(finish)
	under.Wait()
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}
