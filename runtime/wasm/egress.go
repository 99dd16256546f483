package wasm

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/keyfire/keyfire/core"
)

// Bounds of a guest's HTTP requests.
const (
	MaxRequestBody  = 1 << 20  // bytes of a request's body
	MaxResponseBody = 1 << 20  // bytes of a response's body, after decompression
	MaxHeaderBytes  = 16 << 10 // bytes of a request's header fields
	MaxHeaderFields = 64       // header fields of a request
	MaxConcurrent   = 4        // requests of one run at the same time; a further one waits
	RequestTimeout  = 10 * time.Second

	maxResponseHeader = 64 << 10
)

// Resolver finds the addresses of a host. *net.Resolver is one.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// EgressConfig says how guests' HTTP requests leave the server. The zero value is safe: public addresses only, and only for nodes that have
// a grant.
type EgressConfig struct {
	// Allow lists networks that guests may reach although they are private, loopback or otherwise special. A node still needs the grant
	// for the host.
	Allow []netip.Prefix
	// Resolver finds addresses; nil is the system's.
	Resolver Resolver
	// RootCAs are the certificate authorities that are trusted; nil is the system's.
	RootCAs *x509.CertPool
}

// HTTPRequest is what a guest asked for, as it goes to the observer.
type HTTPRequest struct {
	Method string
	Scheme string
	Host   string // as in the URL, without port and brackets
	Port   int
}

// Observer hears about each request that leaves the server, so that it can have a span. It returns the value of the traceparent header to
// send ("" for none) and a function that is called once with the status, 0 if there was none, and why the request failed.
// The context is the invocation's.
type Observer func(ctx context.Context, r HTTPRequest) (traceparent string, end func(status int, err error))

// egress sends the requests of all guests. It is safe for concurrent use and holds no connection between requests: an open one
// would be an address that was checked some time ago, and a channel between nodes that share nothing else.
type egress struct {
	config EgressConfig
	dialer net.Dialer

	mu   sync.Mutex
	runs map[string]*runSlots // runs with requests under way
}

type runSlots struct {
	slots chan struct{}
	users int
}

func newEgress(c EgressConfig) *egress {
	if c.Resolver == nil {
		c.Resolver = newSystemResolver()
	}
	return &egress{config: c, runs: make(map[string]*runSlots)}
}

// outgoing is one request of a guest, with all that decides about it.
type outgoing struct {
	run            string // whose requests are counted together
	rules          []HTTPRule
	idempotencyKey string // sent unless the guest chose one
	observe        Observer
	large          func(context.Context) error // called before a large response is read; nil is for nobody

	method string
	url    string
	header [][2]string
	body   []byte
}

// incoming is the response.
type incoming struct {
	status int
	header [][2]string
	body   []byte
}

// egressError is why a request gave no response. Its text is for the guest and its author.
type egressError struct {
	class core.ErrorClass // denied, failed (the request is wrong), limit, timeout or unavailable
	text  string
	err   error
}

func (e *egressError) Error() string { return e.text }
func (e *egressError) Unwrap() error { return e.err }

func denied(format string, args ...any) error {
	return &egressError{class: core.ClassDenied, text: fmt.Sprintf(format, args...)}
}

func badRequest(format string, args ...any) error {
	return &egressError{class: core.ClassFailed, text: fmt.Sprintf(format, args...)}
}

// errSwitched is what a server did that answers with another protocol.
var errSwitched = errors.New("it switches protocols")

// errTooSlow is the cause of the context of a request that took more than RequestTimeout.
var errTooSlow = errors.New("the request took too long")

// do sends one request and reads the whole response. Every error is an *egressError, except the cause of ctx when that ends first.
func (e *egress) do(ctx context.Context, out outgoing) (in incoming, err error) {
	req, t, err := prepare(ctx, &out)
	if err != nil {
		return incoming{}, err
	}
	limited, cancel := context.WithTimeoutCause(ctx, RequestTimeout, errTooSlow)
	defer cancel()
	release, err := e.slot(limited, out.run)
	if err != nil {
		return incoming{}, e.explain(ctx, limited, t, err)
	}
	defer release()

	if out.observe != nil {
		traceparent, end := out.observe(ctx, HTTPRequest{Method: out.method, Scheme: t.scheme, Host: t.host, Port: int(t.port)})
		if traceparent != "" {
			req.Header.Set("Traceparent", traceparent)
		}
		defer func() { end(in.status, err) }()
	}
	tr := e.transport(limited, t)
	defer tr.CloseIdleConnections()
	res, err := tr.RoundTrip(req.WithContext(limited))
	if err != nil {
		return incoming{}, e.explain(ctx, limited, t, err)
	}
	if res.StatusCode == http.StatusSwitchingProtocols {
		// Nobody asked for it, and what follows would be the bare connection, which no deadline ends.
		return incoming{}, e.explain(ctx, limited, t, errors.Join(errSwitched, res.Body.Close()))
	}
	in.status = res.StatusCode
	in.body, err = readBody(limited, res.Body, out.large)
	if cerr := res.Body.Close(); err == nil {
		err = cerr
	}
	if err == nil && limited.Err() != nil {
		// A server that sees the connection being closed may still end the body properly, and what was read looks whole.
		err = context.Cause(limited)
	}
	switch {
	case len(in.body) > MaxResponseBody:
		in.body = nil
		return in, &egressError{class: core.ClassLimit, text: fmt.Sprintf("the response of %s has more than %s", origin(t.scheme, t.host, t.port), byteSize(MaxResponseBody))}
	case err != nil:
		in.body = nil
		return in, e.explain(ctx, limited, t, err)
	}
	in.header = flatten(res.Header)
	return in, nil
}

// readBody reads as much of a body as shows whether it is too large.
func readBody(ctx context.Context, body io.Reader, large func(context.Context) error) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(body, smallText+1))
	if err != nil || len(b) <= smallText {
		return b, err
	}
	if large != nil {
		if err := large(ctx); err != nil {
			return nil, err
		}
	}
	rest := bytes.NewBuffer(b)
	_, err = rest.ReadFrom(io.LimitReader(body, MaxResponseBody+1-int64(len(b))))
	return rest.Bytes(), err
}

// prepare checks what the guest asked for.
func prepare(ctx context.Context, out *outgoing) (*http.Request, target, error) {
	if !validMethod(out.method) {
		return nil, target{}, badRequest("the method must be an upper-case name such as GET; CONNECT and TRACE cannot be sent")
	}
	t, err := parseTarget(out.url)
	if err != nil {
		return nil, target{}, badRequest("%s", err)
	}
	if !slices.ContainsFunc(out.rules, func(r HTTPRule) bool { return r.allows(out.method, t) }) {
		want := out.method + " " + origin(t.scheme, t.host, t.port)
		return nil, target{}, denied("%s is not granted; the node would need grants: {http: [%q]}", want, want)
	}
	if len(out.body) > MaxRequestBody {
		return nil, target{}, badRequest("the request's body has more than %s", byteSize(MaxRequestBody))
	}
	header, err := requestHeader(out.header)
	if err != nil {
		return nil, target{}, err
	}
	if len(header["Idempotency-Key"]) == 0 && out.idempotencyKey != "" {
		header.Set("Idempotency-Key", out.idempotencyKey)
	}
	if len(header["User-Agent"]) == 0 {
		header.Set("User-Agent", "keyfire")
	}
	req := (&http.Request{
		Method: out.method, URL: t.url, Host: t.url.Host, Header: header, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		ContentLength: int64(len(out.body)), Body: http.NoBody,
	}).WithContext(ctx)
	if len(out.body) > 0 {
		req.Body = io.NopCloser(bytes.NewReader(out.body))
	}
	return req, t, nil
}

// forbiddenHeaders are those that belong to the connection, to the message's framing, or to the server.
var forbiddenHeaders = map[string]string{
	"Host": "it comes from the URL", "Content-Length": "it comes from the body", "Transfer-Encoding": "it comes from the body",
	"Connection": "it belongs to the connection", "Keep-Alive": "it belongs to the connection", "Te": "it belongs to the connection",
	"Trailer": "it belongs to the connection", "Upgrade": "it belongs to the connection", "Expect": "it belongs to the connection",
	"Http2-Settings": "it belongs to the connection", "Traceparent": "the server sets it", "Tracestate": "the server sets it",
}

func requestHeader(fields [][2]string) (http.Header, error) {
	if len(fields) > MaxHeaderFields {
		return nil, badRequest("the request has more than %d header fields", MaxHeaderFields)
	}
	size := 0
	h := make(http.Header, len(fields)+2)
	for _, f := range fields {
		name, value := f[0], f[1]
		if !headerName(name) {
			return nil, badRequest("a header field's name is not a token: letters, digits and hyphens")
		}
		canonical := http.CanonicalHeaderKey(name)
		if why, no := forbiddenHeaders[canonical]; no || strings.HasPrefix(canonical, "Proxy-") {
			if why == "" {
				why = "there is no proxy"
			}
			return nil, badRequest("the header %s cannot be set: %s", canonical, why)
		}
		for i := range len(value) {
			if c := value[i]; c < ' ' && c != '\t' || c == 0x7f {
				return nil, badRequest("the value of the header %s holds a control character", canonical)
			}
		}
		if size += len(name) + len(value); size > MaxHeaderBytes {
			return nil, badRequest("the request's header fields have more than %s", byteSize(MaxHeaderBytes))
		}
		h[canonical] = append(h[canonical], value)
	}
	return h, nil
}

func headerName(s string) bool {
	if s == "" || len(s) > 256 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("!#$%&'*+-.^_`|~", rune(c)) {
			return false
		}
	}
	return true
}

// transport returns a transport for one request to t, whose context has a deadline.
func (e *egress) transport(request context.Context, t target) *http.Transport {
	end, _ := request.Deadline()
	return &http.Transport{
		Proxy: nil, // whatever the environment says
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { // ctx ends with the request, and does not say when
			return e.dial(ctx, t, end)
		},
		TLSClientConfig:        &tls.Config{ServerName: t.host, RootCAs: e.config.RootCAs, MinVersion: tls.VersionTLS12},
		DisableKeepAlives:      true,
		MaxResponseHeaderBytes: maxResponseHeader,
		// No HTTP/2: its frames, settings and header compression are much more to bound, for one request.
		TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{},
	}
}

// leastConnect is how long connecting to an address may take although there are others to try.
const leastConnect = 2 * time.Second

// dial resolves the host once, checks every address it got, and connects to one of exactly those. Each has its share of the time that is left until end, as with Go's own
// dialer: one that does not answer would keep the others from being tried.
func (e *egress) dial(ctx context.Context, t target, end time.Time) (net.Conn, error) {
	addrs, err := e.resolve(ctx, t.host)
	if err != nil {
		return nil, err
	}
	for _, a := range addrs {
		if !e.reachable(a) {
			// All of them are refused, not only this one: a name that also resolves to the inside is a trap or a mistake.
			return nil, denied("%s has an address that nodes and callbacks may not reach: it is private, local or reserved, and not in the egress.allow of the server", t.host)
		}
	}
	var first error
	for i, a := range addrs {
		dialer := e.dialer
		dialer.Timeout = max(leastConnect, time.Until(end)/time.Duration(len(addrs)-i))
		conn, err := dialer.DialContext(ctx, "tcp", netip.AddrPortFrom(a, t.port).String())
		if err == nil {
			return conn, nil
		}
		if first == nil {
			first = err
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, first
}

func (e *egress) reachable(a netip.Addr) bool {
	return publicAddr(a) || slices.ContainsFunc(e.config.Allow, func(p netip.Prefix) bool { return p.Contains(a) })
}

// resolve returns the addresses of a host, IPv4 first. The two families are asked for separately, because only then a v4-mapped address in an
// AAAA record can be told from an A record; the system's resolver leaves such an address out.
func (e *egress) resolve(ctx context.Context, host string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a}, nil
	}
	// The final dot keeps the resolver from trying the name under the server's own search domains.
	v4, err4 := e.config.Resolver.LookupNetIP(ctx, "ip4", host+".")
	v6, err6 := e.config.Resolver.LookupNetIP(ctx, "ip6", host+".")
	addrs := make([]netip.Addr, 0, len(v4)+len(v6))
	for _, a := range v4 {
		addrs = append(addrs, a.Unmap())
	}
	addrs = append(addrs, v6...)
	if len(addrs) == 0 {
		return nil, fmt.Errorf("resolve %s: %w", host, errors.Join(err4, err6))
	}
	return addrs, nil
}

// slot waits until the run may send one more request.
func (e *egress) slot(ctx context.Context, run string) (release func(), err error) {
	e.mu.Lock()
	s, ok := e.runs[run]
	if !ok {
		s = &runSlots{slots: make(chan struct{}, MaxConcurrent)}
		e.runs[run] = s
	}
	s.users++
	e.mu.Unlock()
	leave := func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		if s.users--; s.users == 0 {
			delete(e.runs, run)
		}
	}
	select {
	case s.slots <- struct{}{}:
		return func() { <-s.slots; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, context.Cause(ctx)
	}
}

// explain turns a failure into words that name the origin and nothing of the server's own network.
func (e *egress) explain(ctx, limited context.Context, t target, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	where := origin(t.scheme, t.host, t.port)
	if limited.Err() != nil {
		return &egressError{class: core.ClassTimeout, text: fmt.Sprintf("%s did not answer within %s", where, RequestTimeout), err: err}
	}
	var own *egressError
	if errors.As(err, &own) {
		return own
	}
	unavailable := func(what string) error {
		return &egressError{class: core.ClassUnavailable, text: where + ": " + what, err: err}
	}
	var dns *net.DNSError
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	var op *net.OpError
	switch {
	case errors.As(err, &dns) && dns.IsNotFound:
		return unavailable("the host name does not exist")
	case errors.As(err, &dns):
		return unavailable("the host name could not be resolved")
	case errors.As(err, &unknown), errors.As(err, &name), errors.As(err, &invalid):
		return unavailable("its certificate is not trusted")
	case errors.As(err, &op) && op.Op == "dial":
		return unavailable("it could not be connected to")
	}
	return unavailable("it did not answer with a valid HTTP response")
}

// flatten returns the fields of a header in a stable order: an empty list, and not nil, for none, because guests get it as JSON.
func flatten(h http.Header) [][2]string {
	out := [][2]string{}
	for _, n := range slices.Sorted(maps.Keys(h)) {
		for _, v := range h[n] {
			out = append(out, [2]string{n, v})
		}
	}
	return out
}
