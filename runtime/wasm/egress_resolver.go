package wasm

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
)

// systemResolver is the system's resolver for names that end with a dot. Go finds such a name in the hosts file only if it has another dot, so localhost, and
// the short names that operators and container engines write there, would be asked of a name server that has never heard of them.
type systemResolver struct {
	dns   *net.Resolver
	hosts *net.Resolver // reads the hosts file and reaches no name server
}

func newSystemResolver() *systemResolver {
	return &systemResolver{dns: net.DefaultResolver, hosts: &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		return nil, errors.New("only the hosts file is read")
	}}}
}

// LookupNetIP returns the addresses of one family, "ip4" or "ip6". Of a name that the hosts file has, no name server is asked for the other family either.
func (r *systemResolver) LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error) {
	name := strings.TrimSuffix(host, ".")
	if strings.Contains(name, ".") {
		return r.dns.LookupNetIP(ctx, network, host)
	}
	all, err := r.hosts.LookupNetIP(ctx, "ip", name)
	if err != nil || len(all) == 0 {
		return r.dns.LookupNetIP(ctx, network, host)
	}
	var addrs []netip.Addr
	for _, a := range all {
		if a = a.Unmap(); a.Is4() == (network == "ip4") {
			addrs = append(addrs, a)
		}
	}
	return addrs, nil
}
