package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keyfire/keyfire/sdk/authplugin"
	"github.com/keyfire/keyfire/sdk/authplugin/plugintest"
)

func TestMain(m *testing.M) { plugintest.Main(m, newBackend()) }

const entries = `
dn: dc=example,dc=com
objectClass: domain
dc: example

dn: ou=people,dc=example,dc=com
objectClass: organizationalUnit
ou: people

dn: ou=groups,dc=example,dc=com
objectClass: organizationalUnit
ou: groups

dn: uid=alice,ou=people,dc=example,dc=com
objectClass: inetOrgPerson
uid: alice
cn: Alice
sn: A
userPassword: alices-password

dn: uid=bob,ou=people,dc=example,dc=com
objectClass: inetOrgPerson
uid: bob
cn: Bob
sn: B
userPassword: bobs-password

dn: cn=deployers,ou=groups,dc=example,dc=com
objectClass: groupOfNames
cn: deployers
member: uid=alice,ou=people,dc=example,dc=com

dn: cn=readers,ou=groups,dc=example,dc=com
objectClass: groupOfNames
cn: readers
member: uid=alice,ou=people,dc=example,dc=com
member: uid=bob,ou=people,dc=example,dc=com

dn: cn=keyfire,dc=example,dc=com
objectClass: applicationProcess
objectClass: simpleSecurityObject
cn: keyfire
userPassword: plugins-password
`

// directory runs a real slapd, which has more entries beside those of all tests, and returns its URL and the file of its certificate.
func directory(t *testing.T, more ...string) (url, caFile string) {
	t.Helper()
	slapd, err := exec.LookPath("slapd")
	if err != nil {
		if slapd = "/usr/sbin/slapd"; !exists(slapd) {
			if os.Getenv("CI") == "true" {
				t.Fatal("slapd is not installed (Debian: slapd)")
			}
			t.Skip("SKIPPED: slapd is not installed (Debian: slapd)")
		}
	}
	dir := t.TempDir()
	caFile = filepath.Join(dir, "cert.pem")
	certificate(t, caFile, filepath.Join(dir, "key.pem"))
	conf := filepath.Join(dir, "slapd.conf")
	write(t, conf, fmt.Sprintf(`
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
modulepath /usr/lib/ldap
moduleload back_mdb
pidfile %[1]s/pid
TLSCertificateFile %[1]s/cert.pem
TLSCertificateKeyFile %[1]s/key.pem
access to attrs=userPassword by anonymous auth by * none
access to * by users read by * none
database mdb
maxsize 10485760
suffix "dc=example,dc=com"
directory %[1]s
`, dir))
	ldif := filepath.Join(dir, "entries.ldif")
	write(t, ldif, entries+strings.Join(more, ""))
	if out, err := exec.Command(slapd, "-T", "add", "-f", conf, "-l", ldif).CombinedOutput(); err != nil {
		t.Fatalf("slapadd: %v\n%s", err, out)
	}
	port := freePort(t)
	cmd := exec.Command(slapd, "-f", conf, "-h", fmt.Sprintf("ldap://127.0.0.1:%d", port), "-d", "0")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	deadline := time.Now().Add(10 * time.Second)
	for {
		conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			_ = conn.Close()
			return fmt.Sprintf("ldap://127.0.0.1:%d", port), caFile
		}
		if time.Now().After(deadline) {
			t.Fatalf("slapd does not listen: %v", err)
		}
		time.Sleep(10 * time.Millisecond) // nothing signals that another program listens
	}
}

func basic(user, password string) authplugin.Request {
	return authplugin.Request{
		Scheme: "basic", Credential: base64.StdEncoding.EncodeToString([]byte(user + ":" + password)), Method: "POST", Path: "/v1/trigger/x",
	}
}

// cases are the same for both ways of finding a user.
func cases() []plugintest.Case {
	all := []plugintest.Case{
		{Name: "alice", Request: basic("alice", "alices-password"), Want: plugintest.Allow, Principal: authplugin.Principal{
			Subject: "alice", Account: "acct_a", Scopes: []string{"run:workflow/wf_deploy", "runs:read", "workflows:read"},
			Attributes: map[string]string{"dn": "uid=alice,ou=people,dc=example,dc=com"},
		}},
		{Name: "bob is in fewer groups", Request: basic("bob", "bobs-password"), Want: plugintest.Allow, Principal: authplugin.Principal{
			Subject: "bob", Account: "acct_a", Scopes: []string{"runs:read", "workflows:read"}, Attributes: map[string]string{"dn": "uid=bob,ou=people,dc=example,dc=com"},
		}},
		{Name: "a token", Request: authplugin.Request{Scheme: "bearer", Credential: "YWxpY2U6YWxpY2VzLXBhc3N3b3Jk"}, Want: plugintest.NotMine},
	}
	for name, r := range map[string]authplugin.Request{
		"wrong password": basic("alice", "bobs-password"), "empty password": basic("alice", ""), "unknown user": basic("carol", "x"), "empty name": basic("", "x"),
		"filter injection": basic("ali*", "alices-password"), "filter injection 2": basic("alice)(uid=*", "alices-password"),
		"DN injection": basic("alice,ou=people", "alices-password"), "another DN": basic("x,dc=example,dc=com", "x"), "not base64": {Scheme: "basic", Credential: "%"},
		"NUL in the name": basic("alice\x00", "alices-password"), "long password": basic("alice", strings.Repeat("x", 1000)),
	} {
		all = append(all, plugintest.Case{Name: name, Request: r, Want: plugintest.Deny})
	}
	return all
}

const rest = `"account": "acct_a", "groups": {"base": "ou=groups,dc=example,dc=com", "filter": "(member={dn})"},
	"scopes": {"deployers": ["run:workflow/wf_deploy"], "readers": ["runs:read"], "*": ["workflows:read"]}`

func TestConformance(t *testing.T) {
	url, ca := directory(t)
	password := filepath.Join(t.TempDir(), "password")
	write(t, password, "plugins-password\n")
	for name, settings := range map[string]string{
		"user_dn with TLS": fmt.Sprintf(`{"url": %q, "start_tls": true, "ca_file": %q, "user_dn": "uid={username},ou=people,dc=example,dc=com", %s}`, url, ca, rest),
		"search": fmt.Sprintf(`{"url": %q, "search": {"bind_dn": "cn=keyfire,dc=example,dc=com", "bind_password_file": %q, "base": "ou=people,dc=example,dc=com",
			"filter": "(&(objectClass=inetOrgPerson)(uid={username}))"}, %s}`, url, password, rest),
	} {
		t.Run(name, func(t *testing.T) {
			plugintest.Run(t, plugintest.Config{
				Settings: settings,
				BadSettings: []string{
					`{"url": "ldap://directory.example", "user_dn": "uid={username},dc=x"}`, `{"url": "ldaps://directory.example"}`, `{"url": "ldaps://directory.example", "user_dn": "dc=x"}`,
					`{"url": "ldaps://directory.example", "search": {"base": "dc=x", "filter": "(uid={username}"}}`,
					`{"url": "ldaps://directory.example", "user_dn": "uid={username},dc=x", "require_group": true}`,
				},
				Timeout: 2 * time.Second,
				Cases:   cases(),
			})
		})
	}
}

// A directory takes many spellings for one name. Whoever binds with one must not become another subject by it: audit, limits and history are by subject.
func TestOneSubjectForEachUser(t *testing.T) {
	t.Parallel()
	url, _ := directory(t)
	for name, how := range map[string]string{
		"user_dn": `"user_dn": "uid={username},ou=people,dc=example,dc=com"`,
		"search":  `"search": {"bind_dn": "cn=keyfire,dc=example,dc=com", "bind_password": "plugins-password", "base": "ou=people,dc=example,dc=com", "filter": "(uid={username})"}`,
	} {
		b := newBackend()
		if err := b.Configure(t.Context(), fmt.Appendf(nil, `{"url": %q, %s}`, url, how)); err != nil {
			t.Fatal(err)
		}
		for _, user := range []string{
			"alice", "ALICE", " alice", "alice ", "  alice  ", "\uff41lice", "al\u034fice", "al\ufe0fice", "al\u180bice", "al\u1806ice", "al\ufffcice", "al\u00adice", "al\u200bice", "\u2170", "al\u0131ce", "al\u0130ce",
		} {
			r := basic(user, "alices-password")
			p, err := b.Authenticate(t.Context(), &r)
			var denied *authplugin.Denied
			switch {
			case errors.As(err, &denied):
				if strings.EqualFold(user, "alice") {
					t.Errorf("%s: %q was refused", name, user)
				}
			case err != nil || p.Subject != "alice":
				t.Errorf("%s: %q became %+v, %v; want alice, or a refusal", name, user, p, err)
			}
		}
	}
}

func TestRequireGroup(t *testing.T) {
	t.Parallel()
	url, _ := directory(t)
	b := newBackend()
	config := fmt.Sprintf(`{"url": %q, "user_dn": "uid={username},ou=people,dc=example,dc=com", "require_group": true, "groups": {"base": "ou=groups,dc=example,dc=com", "filter": "(member={dn})"},
		"scopes": {"deployers": ["run:*"]}}`, url)
	if err := b.Configure(t.Context(), []byte(config)); err != nil {
		t.Fatal(err)
	}
	alice, bob := basic("alice", "alices-password"), basic("bob", "bobs-password")
	if _, err := b.Authenticate(t.Context(), &alice); err != nil {
		t.Error(err)
	}
	if _, err := b.Authenticate(t.Context(), &bob); err == nil || !strings.Contains(err.Error(), "no group") {
		t.Errorf("%v, want a refusal", err)
	}
}

// Who is in more groups than are taken at once has the scopes of those that mean something, and who is in none of them has none of theirs.
func TestUserInManyGroups(t *testing.T) {
	t.Parallel()
	var many []string
	for i := range maxGroups + 50 { // whose names come before those that count
		many = append(many, fmt.Sprintf("\ndn: cn=a%d,ou=groups,dc=example,dc=com\nobjectClass: groupOfNames\ncn: a%[1]d\nmember: uid=alice,ou=people,dc=example,dc=com\nmember: uid=bob,ou=people,dc=example,dc=com\n", i))
	}
	url, _ := directory(t, many...)
	scopes := func(mapped, user string) ([]string, error) {
		t.Helper()
		b := newBackend()
		config := fmt.Sprintf(`{"url": %q, "user_dn": "uid={username},ou=people,dc=example,dc=com", "account": "acct_a", "groups": {"base": "ou=groups,dc=example,dc=com", "filter": "(member={dn})"}, "scopes": %s}`, url, mapped)
		if err := b.Configure(t.Context(), []byte(config)); err != nil {
			t.Fatal(err)
		}
		r := basic(user, user+"s-password")
		p, err := b.Authenticate(t.Context(), &r)
		if err != nil {
			return nil, err
		}
		return p.Scopes, nil
	}
	for _, c := range []struct{ mapped, user, want string }{
		{`{"deployers": ["run:*"], "readers": ["runs:read"], "*": ["workflows:read"]}`, "alice", "run:* runs:read workflows:read"},
		{`{"deployers": ["run:*"], "readers": ["runs:read"], "*": ["workflows:read"]}`, "bob", "runs:read workflows:read"},
		{`{"*": ["workflows:read"]}`, "alice", "workflows:read"},
		{`{"a1)(cn=*": ["run:*"], "a7": ["runs:read"]}`, "alice", "runs:read"}, // a name is no filter
	} {
		if got, err := scopes(c.mapped, c.user); err != nil || strings.Join(got, " ") != c.want {
			t.Errorf("%s with %s: %v, %v; want %s", c.user, c.mapped, got, err, c.want)
		}
	}
	var all []string
	for i := range maxGroups + 1 {
		all = append(all, fmt.Sprintf(`"a%d": ["runs:read"]`, i))
	}
	if _, err := scopes("{"+strings.Join(all, ",")+"}", "alice"); err == nil || !strings.Contains(err.Error(), "make groups.base or groups.filter narrower") {
		t.Errorf("more groups that count than can be taken: %v", err)
	}
}

// TestDirectoryDown has a directory that accepts connections and never answers, and one that is not there.
func TestDirectoryDown(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = silent.Close() }()
	for name, addr := range map[string]string{"silent": silent.Addr().String(), "gone": fmt.Sprintf("127.0.0.1:%d", freePort(t))} {
		b := newBackend()
		if err := b.Configure(t.Context(), fmt.Appendf(nil, `{"url": "ldap://%s", "user_dn": "uid={username},dc=x"}`, addr)); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		r := basic("alice", "alices-password")
		began := time.Now()
		_, err := b.Authenticate(ctx, &r)
		cancel()
		var denied *authplugin.Denied
		if err == nil || strings.Contains(err.Error(), "alices") || time.Since(began) > 2*time.Second {
			t.Errorf("%s: %v after %s", name, err, time.Since(began))
		}
		if ok := errors.As(err, &denied); ok {
			t.Errorf("%s: a directory that is down looks like a wrong password: %v", name, err)
		}
	}
}

func exists(path string) bool { _, err := os.Stat(path); return err == nil }

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port
}

func certificate(t *testing.T, certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "directory"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write(t, certFile, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	write(t, keyFile, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})))
}

// A directory that agrees to TLS and is silent then keeps a request no longer than the request may take.
func TestDirectorySilentInHandshake(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer func() { _ = c.Close() }()
		_, _ = c.Read(make([]byte, 512))
		_, _ = c.Write([]byte("\x30\x0c\x02\x01\x01\x78\x07\x0a\x01\x00\x04\x00\x04\x00")) // success, to message 1
		_, _ = io.Copy(io.Discard, c)                                                      // until the plugin closes
	}()
	b := newBackend()
	if err := b.Configure(t.Context(), fmt.Appendf(nil, `{"url": "ldap://%s", "start_tls": true, "user_dn": "uid={username},dc=x"}`, l.Addr())); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	failed := make(chan error, 1)
	go func() {
		r := basic("alice", "alices-password")
		_, err := b.Authenticate(ctx, &r)
		failed <- err
	}()
	select {
	case err := <-failed:
		if err == nil || !strings.Contains(err.Error(), "start TLS") {
			t.Error(err)
		}
		<-ended
	case <-time.After(10 * time.Second):
		t.Fatal("the request waits for the handshake although its time is up")
	}
}
