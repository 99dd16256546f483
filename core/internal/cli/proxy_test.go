package cli

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/keyfire/keyfire/sdk/client"
)

// nginxOf runs the configuration of the operator's page before a server and returns the address at which it answers. Only what is of the machine is put in its place.
func nginxOf(t *testing.T, upstream string) string {
	t.Helper()
	nginx, err := exec.LookPath("nginx")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skipf("SKIPPED: %v", err)
	}
	page, err := os.ReadFile("../../../core/OPERATING.md")
	if err != nil {
		t.Fatal(err)
	}
	_, block, _ := strings.Cut(string(page), "```nginx\n")
	block, _, ok := strings.Cut(block, "```")
	if !ok {
		t.Fatal("the page has no configuration of nginx")
	}
	dir := t.TempDir()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	from := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, from, from, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	// nginx takes a socket that listens from whoever starts it, as from an older nginx, so that no port has to be guessed and nothing waited for. It does so only where its master and its
	// worker are processes of their own.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	socket, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	address := l.Addr().String()

	for name, b := range map[string]*pem.Block{"cert.pem": {Type: "CERTIFICATE", Bytes: cert}, "key.pem": {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for old, own := range map[string]string{
		"listen 443 ssl;":        "listen " + address + " ssl;",
		"/etc/ssl/keyfire.pem":   filepath.Join(dir, "cert.pem"),
		"/etc/ssl/keyfire.key":   filepath.Join(dir, "key.pem"),
		"http://127.0.0.1:8080;": upstream + ";",
	} {
		if strings.Count(block, old) != 1 {
			t.Fatalf("the configuration does not say %s once", old)
		}
		block = strings.Replace(block, old, own, 1)
	}
	head := fmt.Sprintf("daemon off; worker_processes 1; user root; pid %[1]s/pid; error_log %[1]s/error.log info;\nevents {}\nhttp {\naccess_log off; gzip on; gzip_types *;\n", dir)
	for _, of := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		head += fmt.Sprintf("%s_temp_path %s/%s;\n", of, dir, of)
	}
	conf := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(conf, []byte(head+block+"}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	cmd := exec.Command(nginx, "-p", dir, "-c", conf, "-e", filepath.Join(dir, "error.log"))
	cmd.Env, cmd.ExtraFiles, cmd.Stdout, cmd.Stderr = append(os.Environ(), "NGINX=3;"), []*os.File{socket}, &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // its worker ends with it
		_ = cmd.Wait()                          // it was told to
		if t.Failed() {
			errors, _ := os.ReadFile(filepath.Join(dir, "error.log"))
			t.Logf("%s%s", said.String(), errors)
		}
	})
	return address
}

// What the page for operators says of nginx is all that it needs: callers have their own address, whatever they claim; events come when they happen; pages of this server are not those of
// another; and a body that is too large is refused by Keyfire, which says why.
func TestBehindNginx(t *testing.T) {
	t.Parallel()
	s := startServer(t, "--trusted-proxies", "127.0.0.1")
	address := nginxOf(t, s.url)
	key := s.createKey(t, client.NewKey{Workflow: "echo", AllowedOrigins: []string{"https://app.example"}}).Secret

	transport := &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, // of this test's own certificate
		DialContext: func(ctx context.Context, network, to string) (net.Conn, error) {
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}} // not the proxy's, which is trusted
			return d.DialContext(ctx, network, to)
		},
	}
	t.Cleanup(transport.CloseIdleConnections)
	post := func(path, body string, header ...string) *http.Response {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+address+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+key)
		r.Header.Set("Content-Type", "application/json")
		for i := 0; i < len(header); i += 2 {
			r.Header.Set(header[i], header[i+1])
		}
		answer, err := transport.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { answer.Body.Close() })
		return answer
	}
	text := func(r *http.Response) string {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}

	run := text(post("/v1/trigger", `{"input": {"name": "Ada"}}`, "X-Forwarded-For", "203.0.113.9", "Origin", "https://"+address))
	if !strings.Contains(run, `"source_ip":"127.0.0.2"`) || !strings.Contains(run, "\"status\":\"succeeded\"") {
		t.Errorf("of a page of this server, from 127.0.0.2: %s", run)
	}
	if answer := post("/v1/trigger", `{}`, "Origin", "https://elsewhere.example"); answer.StatusCode != http.StatusForbidden {
		t.Errorf("of a page of another server: %d %s", answer.StatusCode, text(answer))
	}
	if answer := post("/v1/trigger", `{"input": {"name": "`+strings.Repeat("x", 2<<20)+`"}}`); answer.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("2 MiB: %d %s", answer.StatusCode, text(answer))
	} else if said := text(answer); !strings.Contains(said, `"code":"body_too_large"`) {
		t.Errorf("2 MiB: %s", said)
	}

	// Its end is asked for only when its beginning has come through, compressed.
	events := post("/v1/trigger", `{"input": {"name": "Ada"}, "run_after": "`+time.Now().AddDate(1, 0, 0).UTC().Format(time.RFC3339)+`"}`, "Accept", "text/event-stream")
	id := events.Header.Get("Keyfire-Run-Id")
	lines := bufio.NewReader(events.Body)
	if first, err := lines.ReadString('\n'); err != nil || first != ": "+id+"\n" || !events.Uncompressed {
		t.Fatalf("the stream begins with %q, compressed: %t, error %v", first, events.Uncompressed, err)
	}
	if answer := post("/v1/runs/"+id+"/cancel", ""); answer.StatusCode != http.StatusAccepted {
		t.Fatalf("cancel: %d %s", answer.StatusCode, text(answer))
	}
	rest, err := io.ReadAll(lines)
	if err != nil || !regexp.MustCompile(`"type":"run.finished".*"status":"cancelled"`).Match(rest) {
		t.Errorf("the stream ends with %q, error %v", rest, err)
	}
}
