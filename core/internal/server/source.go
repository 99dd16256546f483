package server

import (
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/keyfire/keyfire/auth"
)

// findSource sets where a request comes from, who is at the local socket or an address, and whether over TLS. It reports whether the peer is a trusted proxy. Nothing else decides either.
//
// Anybody can write X-Forwarded-For, so only what a trusted proxy has appended to it counts: it is read from its end, and the
// first address that is not a trusted proxy's is the caller's. X-Forwarded-Proto is read as far. gin's own rule is not used: it trusts everyone on a unix socket.
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
		var proxies int
		source, proxies = s.forwarded(r.Header["X-Forwarded-For"], source)
		if said := elements(r.Header["X-Forwarded-Proto"]); len(said) > 0 {
			// Of several proxies, the one that the caller has reached. One that stands in front of another may be the only one to say it.
			req.origin.TLS = strings.EqualFold(said[max(0, len(said)-proxies)], "https")
		}
	}
	req.origin.Source = source
	return fromProxy
}

func (s *Server) trusted(a netip.Addr) bool {
	return slices.ContainsFunc(s.TrustedProxies, func(p netip.Prefix) bool { return p.Contains(a) })
}

// elements returns the elements of a header that is a list, in the order in which they were appended.
func elements(values []string) []string {
	var all []string
	for _, v := range values {
		for e := range strings.SplitSeq(v, ",") {
			all = append(all, strings.TrimSpace(e))
		}
	}
	return all
}

// forwarded returns the caller's address by the trusted proxies' word, and otherwise the last address that is known. It returns too how many trusted proxies the request has come
// through, last among them.
func (s *Server) forwarded(headers []string, last netip.Addr) (_ netip.Addr, proxies int) {
	proxies = 1
	for _, hop := range slices.Backward(elements(headers)) {
		a, err := netip.ParseAddr(strings.Trim(hop, "[]"))
		if err != nil {
			at, err := netip.ParseAddrPort(hop)
			if err != nil {
				return last, proxies
			}
			a = at.Addr()
		}
		last = a.Unmap().WithZone("")
		if !s.trusted(last) {
			return last, proxies
		}
		proxies++
	}
	return last, proxies
}
