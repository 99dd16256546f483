package wasm

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// egressInside tells the test binary that it runs in a network namespace of its own.
const egressInside = "KEYFIRE_EGRESS_INSIDE"

// TestEgressNamespace is promise S4 against a whole network: in a namespace of its own, every address there is answers on port 80, a DNS server of the
// test's is the system's, and nothing is replaced in the server: whatever 80 cases and more try, no connection reaches a forbidden address.
func TestEgressNamespace(t *testing.T) {
	t.Parallel()
	if os.Getenv(egressInside) != "" {
		egressNamespace(t)
		return
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "-test.run", "^TestEgressNamespace$", "-test.v", "-test.timeout", "3m")
	cmd.Env = append(os.Environ(), egressInside+"=1", "HTTP_PROXY=http://10.1.2.3:80", "http_proxy=http://10.1.2.3:80", "ALL_PROXY=http://10.1.2.3:80")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) || bytes.Contains(out, []byte("SKIPPED")) {
		if os.Getenv("CI") == "true" && os.Geteuid() == 0 && errors.As(err, &exit) {
			t.Fatalf("%v\n%s", err, out)
		}
		t.Skipf("SKIPPED: no network namespace can be made here: %v\n%s", err, out)
	}
	if err != nil || !bytes.Contains(out, []byte("--- PASS: TestEgressNamespace")) {
		t.Fatalf("%v\n%s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "connections") {
			t.Log(strings.TrimSpace(line))
		}
	}
}

// outsideAddr is the one address of the namespace that guests may reach.
var outsideAddr = netip.MustParseAddr("93.184.216.34")

func egressNamespace(t *testing.T) {
	resolv := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(resolv, []byte("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	hosts := filepath.Join(t.TempDir(), "hosts")
	if err := os.WriteFile(hosts, []byte("93.184.216.34 outside outside.hosts\n10.1.2.3 inside inside.hosts\n93.184.216.34 both\n10.1.2.3 both\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"ip link set lo up", "ip route add local 0.0.0.0/0 dev lo", "ip -6 route add local ::/0 dev lo",
		"mount --make-rprivate /", "mount --bind " + resolv + " /etc/resolv.conf", "mount --bind " + hosts + " /etc/hosts",
	} {
		words := strings.Fields(line)
		if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
			t.Skipf("SKIPPED: %s: %v\n%s", line, err, out)
		}
	}

	// Whoever connects to port 80, wherever it is, is counted by where that was.
	var mu sync.Mutex
	reached := map[netip.Addr]int{}
	listener, err := net.Listen("tcp", ":80")
	if err != nil {
		t.Fatal(err)
	}
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	z.Write(make([]byte, 64<<20))
	z.Close()
	server := &http.Server{
		ConnState: func(c net.Conn, state http.ConnState) {
			if state == http.StateNew {
				mu.Lock()
				reached[netip.MustParseAddrPort(c.LocalAddr().String()).Addr().Unmap()]++
				mu.Unlock()
			}
		},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			var status int
			switch path := r.URL.Path; {
			case strings.HasPrefix(path, "/redirect/"):
				fmt.Sscanf(path, "/redirect/%d", &status)
				w.Header().Set("Location", r.URL.Query().Get("to"))
				w.WriteHeader(status)
			case path == "/gzip":
				w.Header().Set("Content-Encoding", "gzip")
				w.Write(bomb.Bytes())
			case path == "/endless":
				for r.Context().Err() == nil {
					if _, err := w.Write(make([]byte, 64<<10)); err != nil {
						return
					}
				}
			default:
				io.WriteString(w, "public")
			}
		}),
	}
	go server.Serve(listener)
	defer server.Close()
	forbidden := func() (n int) {
		mu.Lock()
		defer mu.Unlock()
		for a, count := range reached {
			if a != outsideAddr {
				n += count
			}
		}
		return n
	}
	// The counters count: without the server's care, a private address is one connection away.
	direct := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := direct.Get("http://10.1.2.3/")
	if err != nil || forbidden() != 1 {
		t.Fatalf("a private address cannot be reached in the namespace at all: %v, %d connections", err, forbidden())
	}
	resp.Body.Close()
	mu.Lock()
	clear(reached)
	mu.Unlock()

	addresses := []string{
		"127.0.0.1", "127.9.9.9", "127.255.255.254", "10.0.0.1", "10.1.2.3", "10.255.255.255", "172.16.0.1", "172.31.255.254", "192.168.0.1", "192.168.255.1",
		"169.254.169.254", "169.254.0.1", "100.64.0.1", "100.127.255.254", "0.0.0.0", "0.1.2.3", "192.0.0.8", "192.0.2.1", "198.18.0.1", "198.19.255.254", "198.51.100.7",
		"203.0.113.9", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255",
		"::1", "::", "fd00::1", "fd00:ec2::254", "fc00::1", "fe80::1", "ff02::1", "64:ff9b::7f00:1", "64:ff9b::a01:203", "2002:7f00:1::1", "2002:a01:203::1", "2001:0:7f00:1::1",
		"2001:db8::1", "::7f00:1",
	}
	type attempt struct {
		name, url, grant string
		header           [][2]string
		ok               bool // there may be a response, and it is the public server's
	}
	var attempts []attempt
	names := map[string][][]string{"public.test": {{outsideAddr.String()}}}
	for i, a := range addresses {
		host := a
		if strings.Contains(a, ":") {
			host = "[" + a + "]"
		}
		name := fmt.Sprintf("n%d.test", i)
		names[name] = [][]string{{a}}
		names["mixed-"+name] = [][]string{{outsideAddr.String(), a}}
		attempts = append(attempts,
			attempt{name: "address " + a, url: "http://" + host + "/", grant: "GET http://" + host},
			attempt{name: "name of " + a, url: "http://" + name + "/", grant: "GET http://" + name},
			attempt{name: "name of a public address and " + a, url: "http://mixed-" + name + "/", grant: "GET http://mixed-" + name},
		)
	}
	names["x.deep.test"] = [][]string{{"10.1.2.3"}}
	names["localhost"] = [][]string{{"127.0.0.1"}}
	names["single"] = [][]string{{outsideAddr.String()}}
	for _, url := range []string{
		"http://[::ffff:127.0.0.1]/", "http://[::ffff:10.1.2.3]/", "http://2130706433/", "http://0x7f000001/", "http://0177.0.0.1/", "http://127.1/", "http://127.0.1/", "http://0/",
		"http://127.0.0.1./", "http://public.test./", "http://public.test@127.0.0.1/", "http://user:pass@public.test/", "http://１２７.０.０.１/", "http://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ/", "http://127。0。0。1/",
		"http://localhost/", "http://LOCALHOST/", "http://10.1.2.3:80@public.test/", "http://public.test\\@10.1.2.3/", "http://public.test:80\r\nHost: 10.1.2.3/", "http://[fe80::1%25lo]/", "http:///etc/passwd",
		"file:///etc/passwd", "gopher://10.1.2.3/", "//10.1.2.3/", "http://public.test:22/", "http://10.1.2.3#@public.test/", "http://%31%30.1.2.3/",
	} {
		attempts = append(attempts, attempt{name: url, url: url, grant: "GET http://public.test"})
	}
	for _, status := range []int{300, 301, 302, 303, 307, 308} {
		attempts = append(attempts, attempt{
			name: fmt.Sprint("redirect ", status), grant: "GET http://public.test", ok: true,
			url: fmt.Sprintf("http://public.test/redirect/%d?to=http://169.254.169.254/latest/", status),
		})
	}
	for _, h := range [][2]string{{"Host", "10.1.2.3"}, {"X-A", "a\r\nHost: 10.1.2.3"}, {"X-A: b\r\nHost", "10.1.2.3"}, {"Proxy-Authorization", "x"}, {"Connection", "upgrade"}, {"Transfer-Encoding", "chunked"}} {
		attempts = append(attempts, attempt{name: fmt.Sprintf("header %q", h), url: "http://public.test/", grant: "GET http://public.test", header: [][2]string{h}})
	}
	attempts = append(
		attempts,
		attempt{name: "gzip bomb", url: "http://public.test/gzip", grant: "GET http://public.test"},
		attempt{name: "endless body", url: "http://public.test/endless", grant: "GET http://public.test"},
		attempt{name: "another method", url: "http://public.test/", grant: "POST http://public.test"},
		attempt{name: "another host", url: "http://n4.test/", grant: "GET http://public.test"},
		attempt{name: "a wildcard", url: "http://x.deep.test/", grant: "GET http://*.deep.test"},
		attempt{name: "the hosts file", url: "http://outside/", grant: "GET http://outside", ok: true},
		attempt{name: "a name with a dot in the hosts file", url: "http://outside.hosts/", grant: "GET http://outside.hosts", ok: true},
		attempt{name: "a private address in the hosts file", url: "http://inside/", grant: "GET http://inside"},
		attempt{name: "a private address with a dot in the hosts file", url: "http://inside.hosts/", grant: "GET http://inside.hosts"},
		attempt{name: "a private address beside a public one in the hosts file", url: "http://both/", grant: "GET http://both"},
		attempt{name: "a name of one label that only the name server has", url: "http://single/", grant: "GET http://single", ok: true},
		attempt{name: "public", url: "http://public.test/", grant: "GET http://public.test", ok: true},
	)
	conn, err := net.ListenPacket("udp", "127.0.0.1:53")
	if err != nil {
		t.Fatal(err)
	}
	ns := &nameServer{conn: conn, a: names, seen: make(map[string]int)}
	go ns.serve()
	defer conn.Close()

	e := newEgress(EgressConfig{}) // as the server has it
	rounds := 1
	if os.Getenv("KEYFIRE_CHAOS") != "" {
		rounds = 50
	}
	for round := range rounds {
		for _, a := range attempts {
			in, err := e.do(t.Context(), outgoing{run: "run", rules: mustRules(t, a.grant), method: "GET", url: a.url, header: a.header})
			if (err == nil) != a.ok {
				t.Errorf("%s: status %d, body %.40q, error %v", a.name, in.status, in.body, err)
			}
			if n := forbidden(); n != 0 {
				t.Fatalf("%s: a forbidden address was reached: %v", a.name, reached)
			}
		}
		// A name that is public when it is checked, and private from the next question on.
		rebind := fmt.Sprintf("rebind%d.test", round)
		ns.mu.Lock()
		names[rebind] = [][]string{{outsideAddr.String()}, {"10.1.2.3"}}
		ns.mu.Unlock()
		for i := range 4 {
			_, err := e.do(t.Context(), outgoing{run: "run", rules: mustRules(t, "GET http://"+rebind), method: "GET", url: "http://" + rebind + "/"})
			if (err == nil) != (i == 0) {
				t.Errorf("request %d to a name that changes: %v", i, err)
			}
		}
	}
	if n := forbidden(); n != 0 {
		t.Errorf("%d connections to forbidden addresses: %v", n, reached)
	}
	mu.Lock()
	defer mu.Unlock()
	t.Logf("%d cases, %d times: %d connections to the public address, 0 connections to a forbidden one", len(attempts)+1, rounds, reached[outsideAddr])
	if reached[outsideAddr] < 8*rounds {
		t.Error("hardly anything was reached at all")
	}
}
