package server

import (
	"net/http"
	"net/netip"
	"strings"

	"github.com/keyfire/keyfire/auth"
)

// findSource sets where a request comes from, who is at the local socket or an address, and whether over TLS. It reports whether the peer is a trusted proxy. Nothing else decides either.
//
// Anybody can write X-Forwarded-For, so only what a trusted proxy has appended to it counts: it is read from its end, and the
// first address that is not a trusted proxy's is the caller's. gin's own rule is not used: it trusts everyone on a unix socket.
func (s *Server) findSource(r *http.Request, req *request) (fromProxy bool) {
	req.origin.TLS = r.TLS != nil
	if peer, ok := r.Context().Value(peerKey{}).(*auth.Principal); ok {
		req.peer = peer
		return false
	}
	at, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return false
	}
	source := at.Addr().Unmap().WithZone("")
	fromProxy = s.trusted(source)
	if fromProxy {
		source = s.forwarded(r.Header["X-Forwarded-For"], source)
		if said := r.Header["X-Forwarded-Proto"]; len(said) > 0 {
			first, _, _ := strings.Cut(said[0], ",") // of several proxies, the one that the caller has reached
			req.origin.TLS = strings.EqualFold(strings.TrimSpace(first), "https")
		}
	}
	req.origin.Source = source
	return fromProxy
}

func (s *Server) trusted(a netip.Addr) bool {
	for _, p := range s.TrustedProxies {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// forwarded returns the caller's address by the trusted proxies' word, and otherwise the last address that is known.
func (s *Server) forwarded(headers []string, last netip.Addr) netip.Addr {
	for i := len(headers) - 1; i >= 0; i-- {
		hops := strings.Split(headers[i], ",")
		for j := len(hops) - 1; j >= 0; j-- {
			hop := strings.TrimSpace(hops[j])
			a, err := netip.ParseAddr(strings.Trim(hop, "[]"))
			if err != nil {
				at, err := netip.ParseAddrPort(hop)
				if err != nil {
					return last
				}
				a = at.Addr()
			}
			last = a.Unmap().WithZone("")
			if !s.trusted(last) {
				return last
			}
		}
	}
	return last
}
