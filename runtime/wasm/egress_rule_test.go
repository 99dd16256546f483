package wasm

import (
	"net/netip"
	"strings"
	"testing"
)

func TestParseHTTPRule(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"GET https://api.example.com":            "",
		"GET,POST https://api.example.com:8443":  "",
		"* https://*.example.com":                "",
		"GET http://10.0.0.7:8080":               "",
		"GET https://[2606:4700::1111]:8443":     "",
		"GET https://API.Example.COM":            "GET https://api.example.com",
		"GET https://api.example.com:443":        "GET https://api.example.com",
		"GET http://api.example.com:80":          "GET http://api.example.com",
		"GET,GET https://a.example":              "GET https://a.example",
		"GET https://[2606:4700:0:0:0:0:0:1111]": "GET https://[2606:4700::1111]",
		"DELETE https://xn--bcher-kva.example":   "",
		"PROPFIND https://dav_1.example.com":     "",
	} {
		r, err := ParseHTTPRule(in)
		if err != nil {
			t.Errorf("%q: %v", in, err)
			continue
		}
		if want == "" {
			want = in
		}
		if r.String() != want {
			t.Errorf("%q reads as %q, want %q", in, r, want)
		}
	}
	for _, in := range []string{
		"", "GET", "https://api.example.com", "get https://api.example.com", "GET  https://api.example.com", "GET, POST https://a.example",
		"GET api.example.com", "GET ftp://api.example.com", "GET HTTPS://api.example.com", "GET https://", "GET https://api.example.com/",
		"GET https://api.example.com/v1", "GET https://api.example.com?x", "GET https://u@api.example.com", "GET https://api.example.com:0",
		"GET https://api.example.com:99999", "GET https://api.example.com:https", "GET https://api.example.com:", "GET https://*", "GET https://*.com",
		"GET https://*.*.example.com", "GET https://a.*.example.com", "GET https://api*.example.com", "GET https://*.10.0.0.1", "GET https://api.example.com.",
		"CONNECT https://api.example.com", "TRACE https://a.example", "GET https://bücher.example", "GET https://127.1", "GET https://0x7f000001",
		"GET https://[::1%25lo]", "GET https://[10.0.0.1]", "GET https://::1", "* https://" + strings.Repeat("a", 600),
	} {
		if r, err := ParseHTTPRule(in); err == nil {
			t.Errorf("%q is accepted as %q", in, r)
		}
	}
}

// TestEgressTargets (S4) is the list of ways to write a URL that a rule does not mean.
func TestEgressTargets(t *testing.T) {
	t.Parallel()
	tests := []struct {
		rule, method, url string
		want              string // "yes", "no" (parsed, not covered) or "bad" (refused as a URL)
	}{
		{"GET https://api.example.com", "GET", "https://api.example.com", "yes"},
		{"GET https://api.example.com", "GET", "https://api.example.com/v1/x?y=z#f", "yes"},
		{"GET https://api.example.com", "GET", "HTTPS://API.EXAMPLE.COM/", "yes"},
		{"GET https://api.example.com", "GET", "https://api.example.com:443/", "yes"},
		{"GET https://api.example.com", "GET", "https://api.example.com/%2e%2e/x", "yes"},
		{"GET https://api.example.com", "GET", "https://api.example.com//evil.example/", "yes"},
		{"GET https://api.example.com", "GET", "https://api.example.com/@evil.example", "yes"},
		{"GET https://api.example.com", "POST", "https://api.example.com/", "no"},
		{"GET https://api.example.com", "GETX", "https://api.example.com/", "no"},
		{"GET https://api.example.com", "GET", "http://api.example.com/", "no"},
		{"GET https://api.example.com", "GET", "http://api.example.com:443/", "no"},
		{"GET https://api.example.com", "GET", "https://api.example.com:8443/", "no"},
		{"GET https://api.example.com", "GET", "https://api.example.com:080/", "bad"},
		{"GET https://api.example.com", "GET", "https://api.example.com:/", "bad"},
		{"GET https://api.example.com", "GET", "https://api.example.com:+443/", "bad"},
		{"GET https://api.example.com", "GET", "https://api.example.com:443:443/", "bad"},
		{"GET https://api.example.com", "GET", "https://evil.example/", "no"},
		{"GET https://api.example.com", "GET", "https://api.example.com.evil.example/", "no"},
		{"GET https://api.example.com", "GET", "https://evilapi.example.com/", "no"},
		{"GET https://api.example.com", "GET", "https://x.api.example.com/", "no"},
		{"GET https://api.example.com", "GET", "https://example.com/", "no"},
		{"GET https://api.example.com", "GET", "https://api.example.com./", "bad"},
		{"GET https://api.example.com", "GET", "https://.api.example.com/", "bad"},
		{"GET https://api.example.com", "GET", "https://api..example.com/", "bad"},
		{"GET https://api.example.com", "GET", "https://api.example.com@evil.example/", "bad"},
		{"GET https://api.example.com", "GET", "https://api.example.com:pw@evil.example/", "bad"},
		{"GET https://api.example.com", "GET", "https://evil.example@api.example.com/", "bad"},
		{"GET https://api.example.com", "GET", "https://@api.example.com/", "bad"},
		{"GET https://api.example.com", "GET", `https://api.example.com\@evil.example/`, "bad"},
		{"GET https://api.example.com", "GET", `https://evil.example\.api.example.com/`, "bad"},
		{"GET https://api.example.com", "GET", "https://api.example.com%2eevil.example/", "bad"},
		{"GET https://api.example.com", "GET", "https://api.example.com%00.evil.example/", "bad"},
		{"GET https://api.example.com", "GET", "https://api.example.com#@evil.example/", "yes"},
		{"GET https://api.example.com", "GET", "https://evil.example#api.example.com", "no"},
		{"GET https://api.example.com", "GET", "https://evil.example?api.example.com", "no"},
		{"GET https://api.example.com", "GET", "https:api.example.com", "bad"},
		{"GET https://api.example.com", "GET", "https:/api.example.com", "bad"},
		{"GET https://api.example.com", "GET", "https:///api.example.com", "bad"},
		{"GET https://api.example.com", "GET", "//api.example.com", "bad"},
		{"GET https://api.example.com", "GET", "api.example.com", "bad"},
		{"GET https://api.example.com", "GET", "file:///etc/passwd", "bad"},
		{"GET https://api.example.com", "GET", "gopher://api.example.com", "bad"},
		{"GET https://api.example.com", "GET", "unix:///run/x.sock", "bad"},
		{"GET https://api.example.com", "GET", "https://api.example.com/ x", "bad"},
		{"GET https://api.example.com", "GET", " https://api.example.com/", "bad"},
		{"GET https://api.example.com", "GET", "https://api.example.com/\r\nHost: evil.example", "bad"},
		{"GET https://api.example.com", "GET", "https://api.example.com/\tx", "bad"},
		{"GET https://api.example.com", "GET", "https://api.example.com/\x00", "bad"},
		{"GET https://api.example.com", "GET", "https://аpi.example.com/", "bad"}, // a Cyrillic first letter
		{"GET https://api.example.com", "GET", "https://api。example。com/", "bad"}, // ideographic full stops
		{"GET https://api.example.com", "GET", "https://ａpi.example.com/", "bad"}, // a full-width letter
		{"GET https://api.example.com", "GET", "https://xn--pi-6kc.example.com/", "no"},
		{"GET https://api.example.com", "GET", "", "bad"},
		{"GET https://api.example.com", "GET", "https://" + strings.Repeat("a.", 130) + "com/", "bad"},
		{"GET https://api.example.com", "GET", "https://api.example.com/" + strings.Repeat("x", 9000), "bad"},

		{"* https://*.example.com", "PATCH", "https://a.example.com/", "yes"},
		{"* https://*.example.com", "PATCH", "https://example.com/", "no"},
		{"* https://*.example.com", "PATCH", "https://a.b.example.com/", "no"},
		{"* https://*.example.com", "PATCH", "https://.example.com/", "bad"},
		{"* https://*.example.com", "PATCH", "https://aexample.com/", "no"},
		{"* https://*.example.com", "PATCH", "https://*.example.com/", "bad"},
		{"* https://*.example.com", "PATCH", "https://a.example.com.evil.example/", "no"},

		{"* http://127.0.0.1", "GET", "http://127.0.0.1/", "yes"},
		{"* http://127.0.0.1", "GET", "http://2130706433/", "bad"},
		{"* http://127.0.0.1", "GET", "http://0x7f000001/", "bad"},
		{"* http://127.0.0.1", "GET", "http://0x7f.0.0.1/", "bad"},
		{"* http://127.0.0.1", "GET", "http://0177.0.0.1/", "bad"},
		{"* http://127.0.0.1", "GET", "http://017700000001/", "bad"},
		{"* http://127.0.0.1", "GET", "http://127.1/", "bad"},
		{"* http://127.0.0.1", "GET", "http://127.0.1/", "bad"},
		{"* http://127.0.0.1", "GET", "http://127.0.0.01/", "bad"},
		{"* http://127.0.0.1", "GET", "http://127.0.0.1./", "bad"},
		{"* http://127.0.0.1", "GET", "http://127.0.0.1.example/", "no"},
		{"* http://127.0.0.1", "GET", "http://[::ffff:127.0.0.1]/", "no"},
		{"* http://127.0.0.1", "GET", "http://[::ffff:7f00:1]/", "no"},
		{"* http://127.0.0.1", "GET", "http://[127.0.0.1]/", "bad"},
		{"* http://127.0.0.1", "GET", "http://①②⑦.0.0.1/", "bad"},
		{"* http://[::1]", "GET", "http://[0:0:0:0:0:0:0:1]/", "yes"},
		{"* http://[::1]", "GET", "http://[::1%25lo]/", "bad"},
		{"* http://[::1]", "GET", "http://[::1]evil/", "bad"},
		{"* http://[::1]", "GET", "http://[::1]:80/", "yes"},
		{"* http://[::1]", "GET", "http://::1/", "bad"},
		{"* http://[::1]", "GET", "http://[::1/", "bad"},
	}
	if len(tests) < 80 {
		t.Errorf("%d cases; the promise is 80", len(tests))
	}
	for _, tt := range tests {
		r, err := ParseHTTPRule(tt.rule)
		if err != nil {
			t.Fatalf("%q: %v", tt.rule, err)
		}
		got := "bad"
		if target, err := parseTarget(tt.url); err == nil {
			got = "no"
			if r.allows(tt.method, target) {
				got = "yes"
			}
		}
		if got != tt.want {
			t.Errorf("rule %q, %s %q: %s, want %s", tt.rule, tt.method, tt.url, got, tt.want)
		}
	}
}

func TestPublicAddr(t *testing.T) {
	t.Parallel()
	for addr, want := range map[string]bool{
		"93.184.216.34": true, "1.1.1.1": true, "172.15.255.255": true, "172.32.0.0": true, "100.63.255.255": true, "100.128.0.0": true, "223.255.255.255": true,
		"2606:4700::1111": true, "2001:200::1": true, "2003::1": true, "2620:0:2d0::1": true,

		"0.0.0.0": false, "0.1.2.3": false, "10.0.0.1": false, "100.64.0.1": false, "100.100.100.200": false, "127.0.0.1": false, "127.255.255.254": false,
		"169.254.169.254": false, "172.16.0.1": false, "172.31.255.255": false, "192.0.0.192": false, "192.0.2.1": false, "192.88.99.1": false,
		"192.168.1.1": false, "198.18.0.1": false, "198.19.255.255": false, "198.51.100.1": false, "203.0.113.1": false, "224.0.0.1": false,
		"239.255.255.255": false, "240.0.0.1": false, "255.255.255.255": false,
		"::": false, "::1": false, "::ffff:127.0.0.1": false, "::ffff:93.184.216.34": false, "::127.0.0.1": false, "64:ff9b::7f00:1": false,
		"64:ff9b::5db8:d822": false, "64:ff9b:1::1": false, "100::1": false, "2001::1": false, "2001:0:4136:e378::1": false, "2001:10::1": false,
		"2001:20::1": false, "2001:db8::1": false, "2002:7f00:1::1": false, "2002:a00:1::": false, "3fff::1": false, "5f00::1": false, "fc00::1": false, "fd00:ec2::254": false,
		"fe80::1": false, "fe80::1%eth0": false, "fec0::1": false, "ff02::1": false,
	} {
		if got := publicAddr(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s: %v, want %v", addr, got, want)
		}
	}
	if publicAddr(netip.Addr{}) {
		t.Error("the zero address is public")
	}
}

// FuzzEgress looks for a request whose rule, whose own parser and whose sender disagree about where it goes.
func FuzzEgress(f *testing.F) {
	f.Add("GET https://api.example.com", "GET", "https://api.example.com/v1?x=y")
	f.Add("* https://*.example.com:8443", "POST", "https://a.example.com:8443/")
	f.Add("GET http://[::1]", "GET", "http://[::1]:80/")
	f.Add("GET http://10.0.0.1", "GET", "http://10.0.0.1/%2f")
	f.Fuzz(func(t *testing.T, rule, method, raw string) {
		r, err := ParseHTTPRule(rule)
		if err != nil {
			return
		}
		again, err := ParseHTTPRule(r.String())
		if err != nil || again.String() != r.String() {
			t.Fatalf("%q reads as %q, which reads as %q (%v)", rule, r, again, err)
		}
		to, err := parseTarget(raw)
		if err != nil {
			return
		}
		// What is sent is to.url: it must be read the same way by every parser, ours included.
		back, err := parseTarget(to.url.String())
		if err != nil || back.scheme != to.scheme || back.host != to.host || back.port != to.port {
			t.Fatalf("%q goes to %v, written out to %v (%v)", raw, to, back, err)
		}
		if to.url.Hostname() != to.host || to.url.User != nil || to.url.Opaque != "" {
			t.Fatalf("%q: the URL's host is %q, the target's %q", raw, to.url.Hostname(), to.host)
		}
		if !r.allows(method, to) {
			return
		}
		if !strings.HasSuffix(to.host, r.host) || len(to.host) != len(r.host) && !r.any {
			t.Fatalf("rule %q allows host %q", rule, to.host)
		}
	})
}
