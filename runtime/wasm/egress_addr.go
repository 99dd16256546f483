package wasm

import (
	"net/netip"
	"slices"
)

// Addresses a guest's request may not go to, unless the operator lists them: those that mean something else on every machine or network,
// and so could reach what only this server can reach. From the IANA special-purpose address registries.
var refusedIPv4 = prefixes(
	"0.0.0.0/8",       // this network; 0.0.0.0 is the own machine for most systems
	"10.0.0.0/8",      // private
	"100.64.0.0/10",   // shared address space behind carrier-grade NAT; some clouds' metadata
	"127.0.0.0/8",     // loopback
	"169.254.0.0/16",  // link-local; cloud metadata
	"172.16.0.0/12",   // private
	"192.0.0.0/24",    // IETF protocol assignments
	"192.0.2.0/24",    // documentation
	"192.88.99.0/24",  // 6to4 relays
	"192.168.0.0/16",  // private
	"198.18.0.0/15",   // benchmarking
	"198.51.100.0/24", // documentation
	"203.0.113.0/24",  // documentation
	"224.0.0.0/4",     // multicast
	"240.0.0.0/4",     // reserved; broadcast
)

// IPv6 is the other way round: only global unicast is let through, without those parts of it that are special. That refuses, by
// being elsewhere: ::, ::1, v4-mapped and v4-compatible addresses, NAT64 (64:ff9b::/96, 64:ff9b:1::/48), discard-only, unique local, link-local,
// site-local and multicast.
var (
	globalIPv6  = netip.MustParsePrefix("2000::/3")
	refusedIPv6 = prefixes(
		"2001::/23",     // IETF protocol assignments: Teredo, benchmarking, ORCHID
		"2001:db8::/32", // documentation
		"2002::/16",     // 6to4: holds an IPv4 address of the sender's choice
		"3fff::/20",     // documentation
	)
)

func prefixes(list ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(list))
	for i, s := range list {
		out[i] = netip.MustParsePrefix(s)
	}
	return out
}

// publicAddr reports whether a is an ordinary address of the public internet.
func publicAddr(a netip.Addr) bool {
	within := func(p netip.Prefix) bool { return p.Contains(a) }
	switch {
	case !a.IsValid() || a.Zone() != "" || a.Is4In6():
		return false
	case a.Is4():
		return !slices.ContainsFunc(refusedIPv4, within)
	}
	return globalIPv6.Contains(a) && !slices.ContainsFunc(refusedIPv6, within)
}
