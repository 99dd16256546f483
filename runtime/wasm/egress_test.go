package wasm

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/keyfire/keyfire/core"
)

// nameServer is a DNS server that answers A and AAAA questions from a table. A name with several answers gives them one after another, one
// for each question of a type, and stays at the last: that is rebinding.
type nameServer struct {
	conn net.PacketConn
	mu   sync.Mutex
	a    map[string][][]string // name -> answers, each a list of addresses, for both types
	seen map[string]int        // questions answered, by name and type
}

func newNameServer(t testing.TB, table map[string][][]string) *net.Resolver {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &nameServer{conn: conn, a: table, seen: make(map[string]int)}
	done := make(chan struct{})
	go func() { defer close(done); s.serve() }()
	t.Cleanup(func() { conn.Close(); <-done })
	return &net.Resolver{PreferGo: true, StrictErrors: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", conn.LocalAddr().String())
	}}
}

func (s *nameServer) serve() {
	buf := make([]byte, 1500)
	for {
		n, from, err := s.conn.ReadFrom(buf)
		if err != nil {
			return
		}
		if b := s.answer(buf[:n]); b != nil {
			s.conn.WriteTo(b, from)
		}
	}
}

func (s *nameServer) answer(q []byte) []byte {
	if len(q) < 17 {
		return nil
	}
	var labels []string
	i := 12
	for q[i] != 0 {
		n := int(q[i])
		labels = append(labels, string(q[i+1:i+1+n]))
		i += 1 + n
	}
	question := q[12 : i+5]
	typ := binary.BigEndian.Uint16(q[i+1:])
	name := strings.ToLower(strings.Join(labels, "."))

	s.mu.Lock()
	answers, ok := s.a[name]
	key := fmt.Sprintf("%s/%d", name, typ)
	at := s.seen[key]
	s.seen[key]++
	s.mu.Unlock()

	h := make([]byte, 12)
	copy(h, q[:2])
	h[2], h[3] = 0x85, 0x80 // response, authoritative, recursion available
	binary.BigEndian.PutUint16(h[4:], 1)
	b := append(h, question...)
	if !ok {
		h[3] |= 3 // no such name
		return append(h, question...)
	}
	count := uint16(0)
	for _, text := range answers[min(at, len(answers)-1)] {
		addr := netip.MustParseAddr(text)
		raw := addr.AsSlice()
		if typ == 1 && len(raw) != 4 || typ == 28 && len(raw) != 16 {
			continue
		}
		count++
		b = append(b, 0xc0, 12)
		b = binary.BigEndian.AppendUint16(b, typ)
		b = append(b, 0, 1, 0, 0, 0, 0) // class IN, time to live 0
		b = binary.BigEndian.AppendUint16(b, uint16(len(raw)))
		b = append(b, raw...)
	}
	binary.BigEndian.PutUint16(b[6:], count)
	return b
}

// counter counts the connections made to a server.
type counter struct {
	net.Listener
	n atomic.Int64
}

func (c *counter) Accept() (net.Conn, error) {
	conn, err := c.Listener.Accept()
	if err == nil {
		c.n.Add(1)
	}
	return conn, err
}

func countedServer(t testing.TB, h http.Handler) (*httptest.Server, *counter) {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	c := &counter{Listener: s.Listener}
	s.Listener = c
	s.Start()
	t.Cleanup(s.Close)
	return s, c
}

var loopback = prefixes("127.0.0.0/8")

func mustRules(t testing.TB, rules ...string) (out []HTTPRule) {
	t.Helper()
	for _, s := range rules {
		r, err := ParseHTTPRule(s)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, r)
	}
	return out
}

func wantEgress(t *testing.T, err error, class core.ErrorClass, text string) {
	t.Helper()
	var e *egressError
	if !errors.As(err, &e) {
		t.Fatalf("got %v, want a refusal of class %s", err, class)
	}
	if e.class != class || !strings.Contains(e.text, text) {
		t.Fatalf("got %s: %s, want %s: ...%s...", e.class, e.text, class, text)
	}
}

// TestEgressForbidden (S4): whatever a name resolves to, no connection reaches an address that is refused.
func TestEgressForbidden(t *testing.T) {
	t.Parallel()
	_, hits := countedServer(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	port := hits.Addr().(*net.TCPAddr).Port
	resolver := newNameServer(t, map[string][][]string{
		"loopback.example":  {{"127.0.0.1"}},
		"mixed.example":     {{"93.184.216.34", "127.0.0.1"}},
		"zero.example":      {{"0.0.0.0"}},
		"v6.example":        {{"::1"}},
		"mixed6.example":    {{"127.0.0.1", "2606:4700::1111"}},
		"mapped.example":    {{"::ffff:127.0.0.1"}},
		"nat64.example":     {{"64:ff9b::7f00:1"}},
		"sixtofour.example": {{"2002:7f00:1::"}},
		"metadata.example":  {{"169.254.169.254"}},
		"private.example":   {{"10.0.0.1"}},
		"cgnat.example":     {{"100.64.0.1"}},
		"ula.example":       {{"fd00:ec2::254"}},
		"localhost":         {{"127.0.0.1"}},
	})
	e := newEgress(EgressConfig{Resolver: resolver})
	for _, host := range []string{
		"loopback.example", "mixed.example", "zero.example", "v6.example", "mixed6.example", "mapped.example", "nat64.example", "sixtofour.example",
		"metadata.example", "private.example", "cgnat.example", "ula.example", "localhost", "127.0.0.1", "127.9.9.9", "0.0.0.0", "[::1]", "[::]", "[::ffff:127.0.0.1]",
		"[::ffff:7f00:1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::1]", "169.254.169.254", "[fe80::1]",
	} {
		url := fmt.Sprintf("http://%s:%d", host, port)
		_, err := e.do(t.Context(), outgoing{run: "run", rules: mustRules(t, "GET "+url), method: "GET", url: url + "/"})
		if host == "mapped.example" {
			wantEgress(t, err, core.ClassUnavailable, "does not exist") // the resolver already leaves the address out
			continue
		}
		wantEgress(t, err, core.ClassDenied, "may not reach")
	}
	if n := hits.n.Load(); n != 0 {
		t.Errorf("%d connections reached the forbidden address", n)
	}
}

// TestEgressRebinding (S4): what is dialled is what was checked, and the next request checks again.
func TestEgressRebinding(t *testing.T) {
	t.Parallel()
	outside, inside := netip.MustParsePrefix("127.0.0.2/32"), "127.0.0.1"
	l, err := net.Listen("tcp", "127.0.0.2:0")
	if err != nil {
		t.Skipf("no second loopback address: %v", err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") })}
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(l) }()
	t.Cleanup(func() { s.Close(); <-done })
	port := l.Addr().(*net.TCPAddr).Port
	forbidden, err := net.Listen("tcp", fmt.Sprintf("%s:%d", inside, port))
	if err != nil {
		t.Skipf("the port is taken on the other address: %v", err)
	}
	hits := &counter{Listener: forbidden}
	trap := &http.Server{Handler: http.NotFoundHandler()}
	trapped := make(chan struct{})
	go func() { defer close(trapped); trap.Serve(hits) }()
	t.Cleanup(func() { trap.Close(); <-trapped })

	resolver := newNameServer(t, map[string][][]string{"rebind.example": {{"127.0.0.2"}, {inside}}})
	e := newEgress(EgressConfig{Resolver: resolver, Allow: []netip.Prefix{outside}})
	url := fmt.Sprintf("http://rebind.example:%d", port)
	out := outgoing{run: "run", rules: mustRules(t, "GET "+url), method: "GET", url: url}
	in, err := e.do(t.Context(), out)
	if err != nil || string(in.body) != "ok" {
		t.Fatalf("first request: %q, %v", in.body, err)
	}
	for range 3 {
		_, err := e.do(t.Context(), out)
		wantEgress(t, err, core.ClassDenied, "may not reach")
	}
	if n := hits.n.Load(); n != 0 {
		t.Errorf("%d connections reached the forbidden address", n)
	}
}

// server is an HTTP server that guests may reach, with an egress that trusts its certificate and its address.
func allowedServer(t testing.TB, h http.HandlerFunc) (*httptest.Server, *egress) {
	t.Helper()
	s := httptest.NewTLSServer(h)
	t.Cleanup(s.Close)
	pool := x509.NewCertPool()
	pool.AddCert(s.Certificate())
	resolver := newNameServer(t, map[string][][]string{"example.com": {{"127.0.0.1"}}, "other.example": {{"127.0.0.1"}}, "down.example": {{"127.0.0.1"}}})
	return s, newEgress(EgressConfig{Allow: loopback, RootCAs: pool, Resolver: resolver})
}

// at returns the server's origin under another host name; example.com is the one in httptest's certificate.
func at(t testing.TB, s *httptest.Server, host string) string {
	t.Helper()
	u, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	return "https://" + host + ":" + u.Port()
}

func TestEgressRequest(t *testing.T) {
	t.Parallel()
	type got struct {
		method, path, host, body string
		header                   http.Header
	}
	seen := make(chan got, 1)
	s, e := allowedServer(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		seen <- got{r.Method, r.URL.RequestURI(), r.Host, string(b), r.Header}
		w.Header().Add("X-Two", "1")
		w.Header().Add("X-Two", "2")
		w.WriteHeader(http.StatusTeapot)
		io.WriteString(w, "short and stout")
	})
	origin := at(t, s, "example.com")
	var observed HTTPRequest
	var status int
	in, err := e.do(t.Context(), outgoing{
		run: "run_1", rules: mustRules(t, "POST "+origin), idempotencyKey: "run_1/charge",
		observe: func(_ context.Context, r HTTPRequest) (string, func(int, error)) {
			observed = r
			return "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", func(s int, _ error) { status = s }
		},
		method: "POST", url: origin + "/a%2Fb?c=d#e", header: [][2]string{{"content-type", "text/plain"}, {"X-A", "1"}, {"x-a", "2"}}, body: []byte("hello"),
	})
	if err != nil {
		t.Fatal(err)
	}
	if in.status != http.StatusTeapot || string(in.body) != "short and stout" {
		t.Errorf("response %d %q", in.status, in.body)
	}
	if n := strings.Count(fmt.Sprint(in.header), "X-Two"); n != 2 {
		t.Errorf("response header %v", in.header)
	}
	r := <-seen
	if r.method != "POST" || r.path != "/a%2Fb?c=d" || "https://"+r.host != origin || r.body != "hello" {
		t.Errorf("the server saw %+v", r)
	}
	for name, want := range map[string]string{
		"Idempotency-Key": "run_1/charge", "Traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "Content-Type": "text/plain",
		"User-Agent": "keyfire", "X-A": "1",
	} {
		if r.header.Get(name) != want {
			t.Errorf("header %s: %q, want %q", name, r.header.Get(name), want)
		}
	}
	if len(r.header["X-A"]) != 2 {
		t.Errorf("header X-A: %q", r.header["X-A"])
	}
	if observed.Method != "POST" || observed.Scheme != "https" || observed.Host != "example.com" || status != http.StatusTeapot {
		t.Errorf("the observer saw %+v, status %d", observed, status)
	}
}

func TestEgressRefusesRequests(t *testing.T) {
	t.Parallel()
	e := newEgress(EgressConfig{Resolver: newNameServer(t, nil)})
	rules := mustRules(t, "* https://example.com")
	for _, tt := range []struct {
		name  string
		out   outgoing
		class core.ErrorClass
		text  string
	}{
		{"no grant", outgoing{method: "GET", url: "https://example.com/"}, core.ClassDenied, `grants: {http: ["GET https://example.com"]}`},
		{"other host", outgoing{rules: rules, method: "GET", url: "https://example.org/"}, core.ClassDenied, `"GET https://example.org"`},
		{"method", outgoing{rules: rules, method: "get", url: "https://example.com/"}, core.ClassFailed, "upper-case"},
		{"CONNECT", outgoing{rules: rules, method: "CONNECT", url: "https://example.com/"}, core.ClassFailed, "CONNECT"},
		{"method with a break", outgoing{rules: rules, method: "GET / HTTP/1.1\r\nX: y", url: "https://example.com/"}, core.ClassFailed, "method"},
		{"Host", outgoing{rules: rules, method: "GET", url: "https://example.com/", header: [][2]string{{"hOST", "x"}}}, core.ClassFailed, "Host"},
		{"Content-Length", outgoing{rules: rules, method: "GET", url: "https://example.com/", header: [][2]string{{"Content-Length", "5"}}}, core.ClassFailed, "Content-Length"},
		{"Transfer-Encoding", outgoing{rules: rules, method: "GET", url: "https://example.com/", header: [][2]string{{"Transfer-Encoding", "chunked"}}}, core.ClassFailed, "Transfer-Encoding"},
		{"Connection", outgoing{rules: rules, method: "GET", url: "https://example.com/", header: [][2]string{{"Connection", "upgrade"}}}, core.ClassFailed, "Connection"},
		{"Upgrade", outgoing{rules: rules, method: "GET", url: "https://example.com/", header: [][2]string{{"Upgrade", "websocket"}}}, core.ClassFailed, "Upgrade"},
		{"Proxy-Authorization", outgoing{rules: rules, method: "GET", url: "https://example.com/", header: [][2]string{{"proxy-authorization", "x"}}}, core.ClassFailed, "Proxy-Authorization"},
		{"Traceparent", outgoing{rules: rules, method: "GET", url: "https://example.com/", header: [][2]string{{"traceparent", "x"}}}, core.ClassFailed, "Traceparent"},
		{"CRLF in a value", outgoing{rules: rules, method: "GET", url: "https://example.com/", header: [][2]string{{"X", "a\r\nHost: evil"}}}, core.ClassFailed, "control"},
		{"NUL in a value", outgoing{rules: rules, method: "GET", url: "https://example.com/", header: [][2]string{{"X", "a\x00"}}}, core.ClassFailed, "control"},
		{"CRLF in a name", outgoing{rules: rules, method: "GET", url: "https://example.com/", header: [][2]string{{"X\r\nHost", "a"}}}, core.ClassFailed, "token"},
		{"space in a name", outgoing{rules: rules, method: "GET", url: "https://example.com/", header: [][2]string{{"Host ", "a"}}}, core.ClassFailed, "token"},
		{"many fields", outgoing{rules: rules, method: "GET", url: "https://example.com/", header: make([][2]string, MaxHeaderFields+1)}, core.ClassFailed, "64"},
		{"large fields", outgoing{rules: rules, method: "GET", url: "https://example.com/", header: [][2]string{{"X", strings.Repeat("x", MaxHeaderBytes)}}}, core.ClassFailed, "16 KiB"},
		{"large body", outgoing{rules: rules, method: "POST", url: "https://example.com/", body: make([]byte, MaxRequestBody+1)}, core.ClassFailed, "1 MiB"},
	} {
		_, err := e.do(t.Context(), tt.out)
		t.Run(tt.name, func(t *testing.T) { wantEgress(t, err, tt.class, tt.text) })
	}
}

func TestEgressResponses(t *testing.T) {
	t.Parallel()
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	if _, err := z.Write(make([]byte, 64<<20)); err != nil {
		t.Fatal(err)
	}
	z.Close()
	s, e := allowedServer(t, func(w http.ResponseWriter, r *http.Request) {
		flush := func() { w.(http.Flusher).Flush() }
		switch r.URL.Path {
		case "/limit":
			w.Write(make([]byte, MaxResponseBody))
		case "/large":
			w.Write(make([]byte, MaxResponseBody+1))
		case "/chunks":
			for range 3 << 10 {
				if _, err := w.Write(make([]byte, 1<<10)); err != nil {
					return
				}
				flush()
			}
		case "/gzip":
			w.Header().Set("Content-Encoding", "gzip")
			w.Write(bomb.Bytes())
		case "/redirect":
			http.Redirect(w, r, "http://169.254.169.254/latest/meta-data", http.StatusFound)
		case "/headers":
			for i := range 2000 {
				w.Header().Set(fmt.Sprintf("X-%d", i), strings.Repeat("x", 100))
			}
		case "/cut":
			w.Header().Set("Content-Length", "100")
			w.Write([]byte("x"))
		case "/switch", "/bare":
			c, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			io.WriteString(c, map[string]string{
				"/switch": "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\nhello", "/bare": "HTTP/1.1 200 OK\r\n\r\nhello",
			}[r.URL.Path])
		case "/slow":
			flush()
			<-r.Context().Done()
		}
	})
	origin := at(t, s, "example.com")
	get := func(ctx context.Context, url string) (incoming, error) {
		return e.do(ctx, outgoing{run: "run", rules: mustRules(t, "GET "+origin, "GET https://other.example:"+strings.Split(origin, ":")[2], "GET https://down.example:1", "GET https://none.example"), method: "GET", url: url})
	}
	t.Run("at the limit", func(t *testing.T) {
		in, err := get(t.Context(), origin+"/limit")
		if err != nil || len(in.body) != MaxResponseBody {
			t.Errorf("%d bytes, %v", len(in.body), err)
		}
	})
	for path, text := range map[string]string{"/large": "1 MiB", "/chunks": "1 MiB", "/gzip": "1 MiB"} {
		t.Run(path, func(t *testing.T) { _, err := get(t.Context(), origin+path); wantEgress(t, err, core.ClassLimit, text) })
	}
	t.Run("no header", func(t *testing.T) {
		in, err := get(t.Context(), origin+"/bare")
		if b, _ := json.Marshal(in.header); err != nil || string(in.body) != "hello" || string(b) != "[]" {
			t.Errorf("%q, header %s, %v", in.body, b, err)
		}
	})
	for path, text := range map[string]string{"/headers": "valid HTTP", "/cut": "valid HTTP", "/switch": "valid HTTP"} {
		t.Run(path, func(t *testing.T) {
			_, err := get(t.Context(), origin+path)
			wantEgress(t, err, core.ClassUnavailable, text)
		})
	}
	t.Run("a redirect is an answer", func(t *testing.T) {
		in, err := get(t.Context(), origin+"/redirect")
		if err != nil || in.status != http.StatusFound {
			t.Errorf("%d, %v", in.status, err)
		}
	})
	t.Run("certificate of another name", func(t *testing.T) {
		_, err := get(t.Context(), at(t, s, "other.example"))
		wantEgress(t, err, core.ClassUnavailable, "certificate")
	})
	t.Run("nobody listens", func(t *testing.T) {
		_, err := get(t.Context(), "https://down.example:1/")
		wantEgress(t, err, core.ClassUnavailable, "connected")
	})
	t.Run("no such name", func(t *testing.T) {
		_, err := get(t.Context(), "https://none.example/")
		wantEgress(t, err, core.ClassUnavailable, "does not exist")
	})
	t.Run("deadline of the node", func(t *testing.T) {
		ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, errTimeout)
		defer cancel()
		if _, err := get(ctx, origin+"/slow"); !errors.Is(err, errTimeout) {
			t.Errorf("got %v, want the cause of the context", err)
		}
	})
}

// TestEgressConcurrency: a run has at most MaxConcurrent requests under way, and other runs are not held up by it.
func TestEgressConcurrency(t *testing.T) {
	t.Parallel()
	arrived, release := make(chan string, 16), make(chan struct{})
	s, e := allowedServer(t, func(_ http.ResponseWriter, r *http.Request) {
		arrived <- r.URL.Path
		<-release
	})
	origin := at(t, s, "example.com")
	rules := mustRules(t, "GET "+origin)
	var wg sync.WaitGroup
	send := func(run string) {
		wg.Go(func() {
			if _, err := e.do(context.Background(), outgoing{run: run, rules: rules, method: "GET", url: origin + "/" + run}); err != nil {
				t.Error(err)
			}
		})
	}
	for range MaxConcurrent + 2 {
		send("a")
	}
	for range MaxConcurrent {
		<-arrived
	}
	send("b")
	if p := <-arrived; p != "/b" {
		t.Errorf("%s arrived beyond its limit", p)
	}
	close(release)
	wg.Wait()
	if len(e.runs) != 0 {
		t.Errorf("%d runs are remembered after their requests", len(e.runs))
	}
}

// TestEgressAddresses: an address that does not answer leaves time for the next one of the host.
func TestEgressAddresses(t *testing.T) {
	t.Parallel()
	s, e := allowedServer(t, func(http.ResponseWriter, *http.Request) {})
	e.config.Resolver = newNameServer(t, map[string][][]string{"example.com": {{"127.0.0.3", "127.0.0.1"}}})
	silent := errors.New("it does not answer")
	e.dialer.ControlContext = func(ctx context.Context, _, address string, _ syscall.RawConn) error {
		end, bounded := ctx.Deadline()
		left := time.Until(end)
		if !strings.HasPrefix(address, "127.0.0.3:") {
			return nil
		}
		if !bounded || left > RequestTimeout/2 {
			t.Errorf("the first of two addresses may take %v of %v", left, RequestTimeout)
		}
		return silent
	}
	origin := at(t, s, "example.com")
	if _, err := e.do(t.Context(), outgoing{run: "run", rules: mustRules(t, "GET "+origin), method: "GET", url: origin}); err != nil {
		t.Error(err)
	}
}

// TestEgressNoProxy: whatever the environment of the server says, requests go where the rules were checked.
func TestEgressNoProxy(t *testing.T) {
	proxy, hits := countedServer(t, http.NotFoundHandler())
	t.Setenv("HTTPS_PROXY", proxy.URL)
	t.Setenv("https_proxy", proxy.URL)
	s, e := allowedServer(t, func(http.ResponseWriter, *http.Request) {})
	origin := at(t, s, "example.com")
	if _, err := e.do(t.Context(), outgoing{run: "run", rules: mustRules(t, "GET "+origin), method: "GET", url: origin}); err != nil {
		t.Fatal(err)
	}
	if n := hits.n.Load(); n != 0 {
		t.Errorf("%d connections to the proxy", n)
	}
}
