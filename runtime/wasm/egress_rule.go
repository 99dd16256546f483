package wasm

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// HTTPRule is one line of a node's `grants: {http: [...]}`: which requests the node may send. It is written as methods and an origin:
//
//	GET https://api.example.com
//	GET,POST https://*.example.com:8443
//	* http://10.0.0.7:8080
//
// Methods are separated by commas without spaces; "*" is every method. The host is exact, an IP address, or has one wildcard label at its
// left, which stands for exactly one label. Without a port it is the scheme's. A rule has no path: whoever can reach an origin can
// usually reach all of it, by a redirect, a proxy or a method override, and a rule that looks narrower than it is would be a trap.
type HTTPRule struct {
	methods []string // nil is every method
	scheme  string   // "http" or "https"
	host    string   // lower case; what follows "*." when wildcard is set
	port    uint16
	any     bool // the host began with "*."
}

// ParseHTTPRule reads a rule. Its error says what would be right.
func ParseHTTPRule(s string) (HTTPRule, error) {
	const form = `write methods and an origin, such as "GET https://api.example.com"`
	if len(s) > 512 {
		return HTTPRule{}, errors.New("a rule has at most 512 bytes; " + form)
	}
	methods, origin, ok := strings.Cut(s, " ")
	if !ok || methods == "" {
		return HTTPRule{}, errors.New(form)
	}
	var r HTTPRule
	if methods != "*" {
		for m := range strings.SplitSeq(methods, ",") {
			if !validMethod(m) {
				return HTTPRule{}, errors.New(`methods are upper-case names separated by commas, such as "GET,POST", or "*" for all; CONNECT and TRACE cannot be granted`)
			}
			if !slices.Contains(r.methods, m) {
				r.methods = append(r.methods, m)
			}
		}
	}
	scheme, authority, ok := strings.Cut(origin, "://")
	if !ok || scheme != "https" && scheme != "http" {
		return HTTPRule{}, errors.New("the origin begins with https:// or http://; " + form)
	}
	r.scheme = scheme
	if strings.ContainsAny(authority, "/?#") {
		return HTTPRule{}, errors.New("a rule ends after the host and port: it covers every path of the origin")
	}
	if rest, wild := strings.CutPrefix(authority, "*."); wild {
		r.any, authority = true, rest
	}
	host, port, err := splitAuthority(authority, scheme)
	if err != nil {
		return HTTPRule{}, err
	}
	r.host, r.port = host, port
	if r.any {
		if _, err := netip.ParseAddr(host); err == nil || !strings.Contains(host, ".") {
			return HTTPRule{}, errors.New("a wildcard needs at least two labels after it, such as *.example.com")
		}
	}
	return r, nil
}

// String writes the rule as ParseHTTPRule reads it.
func (r HTTPRule) String() string {
	methods, host := "*", r.host
	if r.methods != nil {
		methods = strings.Join(r.methods, ",")
	}
	if r.any {
		host = "*." + host
	}
	return methods + " " + origin(r.scheme, host, r.port)
}

// allows reports whether the rule covers a request to a target.
func (r HTTPRule) allows(method string, t target) bool {
	if r.scheme != t.scheme || r.port != t.port || r.methods != nil && !slices.Contains(r.methods, method) {
		return false
	}
	if !r.any {
		return r.host == t.host
	}
	label, rest, ok := strings.Cut(t.host, ".")
	return ok && label != "" && rest == r.host
}

// target is where a request goes, in the one spelling that rules are compared with.
type target struct {
	scheme string
	host   string // lower-case name, or an IP address in its canonical form, without brackets
	port   uint16
	url    *url.URL
}

// parseTarget reads the URL of a request. It accepts one spelling of each host: other ways to write an address, which name resolution or
// a server further on might read differently than the rules did, are refused.
func parseTarget(raw string) (target, error) {
	if len(raw) > 8<<10 {
		return target{}, errors.New("the URL has more than 8 KiB")
	}
	for i := range len(raw) {
		if c := raw[i]; c <= ' ' || c == '\\' || c >= 0x7f {
			return target{}, errors.New("the URL holds a character that must be percent-encoded (a host name that is not ASCII must be in its xn-- form)")
		}
	}
	u, err := url.Parse(raw)
	if err != nil {
		return target{}, errors.New("the URL cannot be parsed")
	}
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return target{}, errors.New("the URL must begin with https:// or http://")
	case u.Opaque != "":
		return target{}, errors.New("the URL has no host")
	case u.User != nil:
		return target{}, errors.New("the URL must not hold a user name or a password, since URLs are shown; a header may")
	}
	host, port, err := splitAuthority(u.Host, u.Scheme)
	if err != nil {
		return target{}, err
	}
	u.Host = strings.TrimPrefix(origin(u.Scheme, host, port), u.Scheme+"://")
	u.Fragment, u.RawFragment = "", ""
	return target{scheme: u.Scheme, host: host, port: port, url: u}, nil
}

// splitAuthority reads "host" or "host:port".
func splitAuthority(s, scheme string) (host string, port uint16, err error) {
	port = 443
	if scheme == "http" {
		port = 80
	}
	if rest, ok := strings.CutPrefix(s, "["); ok {
		var after string
		if host, after, ok = strings.Cut(rest, "]"); !ok || after != "" && after[0] != ':' {
			return "", 0, errors.New("an IPv6 address stands in brackets")
		}
		a, err := netip.ParseAddr(host)
		if err != nil || !a.Is6() || a.Zone() != "" {
			return "", 0, errors.New("what stands in brackets is not an IPv6 address without a zone")
		}
		host = a.String()
		s = after
	} else if host, _, _ = strings.Cut(s, ":"); len(host) < len(s) {
		s = s[len(host):]
	} else {
		s = ""
	}
	if s != "" {
		n, err := strconv.ParseUint(s[1:], 10, 16)
		if err != nil || n == 0 || s[1] == '0' || s[1] == '+' {
			return "", 0, errors.New("the port is not a number from 1 to 65535")
		}
		port = uint16(n)
	}
	if strings.Contains(host, ":") { // an IPv6 address, canonical by now
		return host, port, nil
	}
	host = strings.ToLower(host)
	if err := checkHost(host); err != nil {
		return "", 0, err
	}
	return host, port, nil
}

// checkHost accepts a lower-case DNS name or a dotted IPv4 address.
func checkHost(host string) error {
	switch {
	case host == "":
		return errors.New("the host is missing")
	case len(host) > 253:
		return errors.New("the host name has more than 253 characters")
	case strings.HasSuffix(host, "."):
		return errors.New("the host ends with a dot; leave it out")
	}
	labels := strings.Split(host, ".")
	for _, l := range labels {
		if l == "" || len(l) > 63 || l[0] == '-' || l[len(l)-1] == '-' {
			return errors.New("the host is not a DNS name: each label has 1 to 63 characters and no hyphen at an end")
		}
		for i := range len(l) {
			if c := l[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
				return errors.New("the host is not a DNS name: it holds other characters than letters, digits and hyphens (write an international name in its xn-- form)")
			}
		}
	}
	// As the URL standard has it: what ends in a number is an IPv4 address, however oddly written. Only the plain form is taken.
	if last := labels[len(labels)-1]; last[0] >= '0' && last[0] <= '9' {
		if a, err := netip.ParseAddr(host); err != nil || a.String() != host {
			return errors.New("the host looks like an IPv4 address; write it as four decimal numbers without leading zeros")
		}
	}
	return nil
}

// origin writes scheme, host and port, leaving out the scheme's own port.
func origin(scheme, host string, port uint16) string {
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if scheme == "https" && port == 443 || scheme == "http" && port == 80 {
		return scheme + "://" + host
	}
	return fmt.Sprintf("%s://%s:%d", scheme, host, port)
}

func validMethod(m string) bool {
	if m == "" || len(m) > 16 || m == "CONNECT" || m == "TRACE" {
		return false
	}
	for i := range len(m) {
		if m[i] < 'A' || m[i] > 'Z' {
			return false
		}
	}
	return true
}
