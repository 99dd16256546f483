package core

import "net/netip"

// Origin says where a request came from, for runs, audit events and limits.
type Origin struct {
	RequestID string
	TraceID   string     // "" when there is none
	Source    netip.Addr // by the trusted-proxy rule; the zero Addr for the local socket
	Route     string     // "native", or the name of the adapter that took the request
}

// SourceIP returns the source address as text, "" when there is none.
func (o Origin) SourceIP() string {
	if !o.Source.IsValid() {
		return ""
	}
	return o.Source.Unmap().String()
}
