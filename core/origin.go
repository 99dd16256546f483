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

// Publication is a new version of a workflow with everything that must land together.
type Publication struct {
	Account  string
	Workflow Workflow          // ID is used when no workflow of that slug exists yet
	Version  Version           // its number and workflow id are given by the store
	Modules  map[string][]byte // digest -> binary, of the modules the account may not hold yet
}
