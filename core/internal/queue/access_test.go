package queue_test

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nkeys"

	"github.com/keyfire/keyfire/core/internal/queue"
	"github.com/keyfire/keyfire/core/internal/queue/queuetest"
)

// TestProof checks what a server can prove itself to NATS with, and what is said when that is refused or cannot be read.
func TestProof(t *testing.T) {
	t.Parallel()
	open := func(t *testing.T, url, file string) error {
		t.Helper()
		q, err := queue.NewJetStream(t.Context(), queue.JetStreamConfig{URL: url, Credentials: file, Name: newName(), Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			return err
		}
		return q.Shutdown()
	}
	write := func(t *testing.T, text string) string {
		t.Helper()
		file := filepath.Join(t.TempDir(), "proof")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	refused := func(t *testing.T, err error, want string) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hidden") {
			t.Errorf("error = %v, want one with %q and no secret", err, want)
		}
	}
	const barred = "does not let this server in"

	t.Run("Password", func(t *testing.T) {
		t.Parallel()
		s := queuetest.NewNats(t, `authorization { user: keyfire, password: right }`)
		host := strings.TrimPrefix(s.URL, "nats://")
		if err := open(t, "nats://keyfire:right@"+host, ""); err != nil {
			t.Error(err)
		}
		refused(t, open(t, "nats://keyfire:hidden@"+host, ""), barred)
		refused(t, open(t, s.URL, ""), barred)
		refused(t, open(t, "nats://hidden@"+host, ""), barred)
	})
	t.Run("Certificate", func(t *testing.T) {
		t.Parallel()
		site := httptest.NewUnstartedServer(nil) // for its certificate, which nobody here trusts
		site.StartTLS()
		defer site.Close()
		key, err := x509.MarshalPKCS8PrivateKey(site.TLS.Certificates[0].PrivateKey)
		if err != nil {
			t.Fatal(err)
		}
		s := queuetest.NewNats(t, fmt.Sprintf("tls { cert_file: %q, key_file: %q }",
			write(t, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: site.Certificate().Raw}))),
			write(t, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})))))
		refused(t, open(t, strings.Replace(s.URL, "nats:", "tls:", 1), ""), "SSL_CERT_FILE")
	})
	t.Run("Nkey", func(t *testing.T) {
		t.Parallel()
		user, other := newNkey(t, nkeys.PrefixByteUser), newNkey(t, nkeys.PrefixByteUser)
		s := queuetest.NewNats(t, fmt.Sprintf(`authorization { users: [ { nkey: %s } ] }`, user.public))
		if err := open(t, s.URL, write(t, user.seed+"\n")); err != nil {
			t.Error(err)
		}
		refused(t, open(t, s.URL, write(t, other.seed)), barred)
		refused(t, open(t, s.URL, write(t, "hidden")), "neither a user's JWT and seed")
		refused(t, open(t, s.URL, filepath.Join(t.TempDir(), "none")), "no such file")
	})
	t.Run("JWT", func(t *testing.T) {
		t.Parallel()
		operator, account, system, user := newNkey(t, nkeys.PrefixByteOperator), newNkey(t, nkeys.PrefixByteAccount), newNkey(t, nkeys.PrefixByteAccount), newNkey(t, nkeys.PrefixByteUser)
		limits := map[string]any{
			"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1,
			"mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1,
		}
		s := queuetest.NewNats(t, fmt.Sprintf("operator: %s\nsystem_account: %s\nresolver: MEMORY\nresolver_preload: {\n%s: %s\n%s: %s\n}",
			operator.sign(t, operator, map[string]any{"type": "operator"}), system.public,
			account.public, operator.sign(t, account, map[string]any{"type": "account", "limits": limits}),
			system.public, operator.sign(t, system, map[string]any{"type": "account", "limits": map[string]any{"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1}})))
		creds := func(by nkey) string {
			return fmt.Sprintf("-----BEGIN NATS USER JWT-----\n%s\n------END NATS USER JWT------\n\n-----BEGIN USER NKEY SEED-----\n%s\n------END USER NKEY SEED------\n",
				by.sign(t, user, map[string]any{"type": "user", "subs": -1, "data": -1, "payload": -1}), user.seed)
		}
		if err := open(t, s.URL, write(t, creds(account))); err != nil {
			t.Error(err)
		}
		refused(t, open(t, s.URL, write(t, creds(newNkey(t, nkeys.PrefixByteAccount)))), barred)
		refused(t, open(t, s.URL, ""), barred)
	})
}

// TestRefusedForAWhile checks that a server whose password NATS does not take for some time, while somebody changes it, is let in again without a restart.
func TestRefusedForAWhile(t *testing.T) {
	t.Parallel()
	s := queuetest.NewNats(t, `authorization { user: keyfire, password: right }`)
	log := make(logLines, 64)
	q, err := queue.NewJetStream(t.Context(), queue.JetStreamConfig{
		URL: strings.Replace(s.URL, "nats://", "nats://keyfire:right@", 1), Name: newName(), Logger: slog.New(slog.NewTextHandler(log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer q.Shutdown()
	for _, password := range []string{"another", "right"} {
		s.Kill()
		if err := s.Configure(`authorization { user: keyfire, password: ` + password + ` }`); err != nil {
			t.Fatal(err)
		}
		if err := s.Start(); err != nil {
			t.Fatal(err)
		}
		if password == "another" {
			for range 4 {
				log.wait(t, "uthorization")
			}
		}
	}
	log.wait(t, "the connection to NATS is back")
}

// logLines is a log whose lines are waited for.
type logLines chan string

func (l logLines) Write(b []byte) (int, error) {
	select {
	case l <- string(b):
	default: // nobody waits for so many
	}
	return len(b), nil
}

func (l logLines) wait(t *testing.T, want string) {
	t.Helper()
	for end := time.After(time.Minute); ; {
		select {
		case line := <-l:
			if strings.Contains(line, want) {
				return
			}
		case <-end:
			t.Fatalf("nothing is logged with %q", want)
		}
	}
}

// nkey is a pair of keys as NATS writes them.
type nkey struct {
	pair         nkeys.KeyPair
	public, seed string
}

func newNkey(t *testing.T, prefix nkeys.PrefixByte) nkey {
	t.Helper()
	pair, err := nkeys.CreatePair(prefix)
	if err != nil {
		t.Fatal(err)
	}
	public, err := pair.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	seed, err := pair.Seed()
	if err != nil {
		t.Fatal(err)
	}
	return nkey{pair, public, string(seed)}
}

// sign returns a JWT of NATS by which k vouches for of.
func (k nkey) sign(t *testing.T, of nkey, claims map[string]any) string {
	t.Helper()
	claims["version"] = 2
	body, err := json.Marshal(map[string]any{"iat": time.Now().Unix(), "iss": k.public, "sub": of.public, "name": "test", "nats": claims})
	if err != nil {
		t.Fatal(err)
	}
	text := base64.RawURLEncoding.EncodeToString([]byte(`{"typ":"JWT","alg":"ed25519-nkey"}`)) + "." + base64.RawURLEncoding.EncodeToString(body)
	signature, err := k.pair.Sign([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return text + "." + base64.RawURLEncoding.EncodeToString(signature)
}

// TestBarredIsNoFloodOfTheLogO1 checks what is said of a NATS that lets a server in no more, which is tried four times a second: once what is wrong, and nothing secret.
func TestBarredIsNoFloodOfTheLogO1(t *testing.T) {
	t.Parallel()
	s := queuetest.NewNats(t, `authorization { user: keyfire, password: hidden }`)
	lines := make(chan string, 1000)
	q, err := queue.NewJetStream(t.Context(), queue.JetStreamConfig{
		URL: "nats://keyfire:hidden@" + strings.TrimPrefix(s.URL, "nats://"), Name: newName(), Logger: slog.New(slog.NewTextHandler(writeTo(lines), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = q.Shutdown() })
	s.Kill()
	if err := s.Configure(`authorization { user: keyfire, password: other }`); err != nil {
		t.Fatal(err)
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	told := 0
	for enough := time.After(3 * time.Second); enough != nil; {
		select {
		case line := <-lines:
			if strings.Contains(line, "hidden") {
				t.Errorf("the log has the password: %s", line)
			}
			if strings.Contains(line, "NATS reports an error") {
				if told++; !strings.Contains(line, "does not let this server in") {
					t.Errorf("what is wrong is not said: %s", line)
				}
			}
		case <-enough:
			enough = nil
		}
	}
	if told != 1 {
		t.Errorf("in three seconds it was told %d times", told)
	}
}

// writeTo is a writer of lines.
type writeTo chan<- string

func (w writeTo) Write(line []byte) (int, error) {
	w <- string(line)
	return len(line), nil
}
