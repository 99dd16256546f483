package core

import "net/netip"

// Origin says where a request came from, for runs, audit events and limits.
type Origin struct {
	RequestID string
	TraceID   string     // "" when there is none
	Source    netip.Addr // by the trusted-proxy rule; the zero Addr for the local socket
	TLS       bool       // the caller has reached this server, or the trusted proxy before it, over TLS
	Route     string     // "native", or the name of the adapter that took the request
	UserAgent string     // as the caller says, cut to a bounded printable text
	Page      string     // origin of the web page that sent the request, "" when it was none or one of this server
	Trail     *Trail     // what was found out about the request's credential; may be nil
}

// Trail is what is found out about a credential on its way through the authenticators, for telling an operator why it was refused. It holds no part of
// the credential. One request writes it, from one goroutine.
type Trail struct {
	Place    string // where the credential was
	Shape    string // what it looked like
	Backends []BackendVerdict
	Workflow string // as the request named it
	Scope    string // the scope that matched the workflow
}

// BackendVerdict is what one authenticator said.
type BackendVerdict struct {
	Backend string `json:"backend"`
	Verdict string `json:"verdict" enum:"allow,deny,abstain,error"`
	Code    Code   `json:"code,omitempty"`
}

// SourceIP returns the source address as text, "" when there is none.
func (o Origin) SourceIP() string {
	if !o.Source.IsValid() {
		return ""
	}
	return o.Source.Unmap().String()
}

// Base is where the caller has reached the server, which it calls host.
func (o Origin) Base(host string) string {
	if o.TLS {
		return "https://" + host
	}
	return "http://" + host
}

// Network is what counts as one source where attempts are counted: an IPv4 address, or an IPv6 /64, which is what one subscriber is given. The
// local socket has none: the zero Prefix.
func Network(a netip.Addr) netip.Prefix {
	a = a.Unmap()
	bits := 32
	if a.Is6() {
		bits = 64
	}
	p, err := a.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}
