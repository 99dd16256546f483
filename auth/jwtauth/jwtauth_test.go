package jwtauth_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"go.uber.org/goleak"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/auth/jwtauth"
	"github.com/keyfire/keyfire/core"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// Idle connections to test issuers that the transport of the server's client keeps.
		goleak.IgnoreTopFunction("net/http.(*persistConn).readLoop"), goleak.IgnoreTopFunction("net/http.(*persistConn).writeLoop"),
		goleak.IgnoreTopFunction("internal/poll.runtime_pollWait"))
}

const audience = "keyfire.example"

// issuer is an OpenID Connect issuer with discovery, whose keys can be rotated and which can be switched off.
type issuer struct {
	*httptest.Server
	fetches atomic.Int64 // of the keys

	mu   sync.Mutex
	keys map[string]crypto.Signer // by id: published
	down bool
}

func newIssuer(t *testing.T) *issuer {
	t.Helper()
	i := &issuer{keys: make(map[string]crypto.Signer)}
	mux := http.NewServeMux()
	mux.HandleFunc("/.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]string{"issuer": i.URL, "jwks_uri": i.URL + "/keys"})
	})
	mux.HandleFunc("/keys", func(w http.ResponseWriter, _ *http.Request) {
		i.fetches.Add(1)
		i.mu.Lock()
		defer i.mu.Unlock()
		if i.down {
			http.Error(w, "down", http.StatusBadGateway)
			return
		}
		var set []map[string]string
		for id, k := range i.keys {
			set = append(set, jwk(id, k.Public()))
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"keys": set})
	})
	i.Server = httptest.NewTLSServer(mux)
	t.Cleanup(i.Close)
	return i
}

func jwk(id string, public crypto.PublicKey) map[string]string {
	b64 := base64.RawURLEncoding.EncodeToString
	switch k := public.(type) {
	case *rsa.PublicKey:
		return map[string]string{"kty": "RSA", "kid": id, "use": "sig", "alg": "RS256", "n": b64(k.N.Bytes()), "e": b64(big.NewInt(int64(k.E)).Bytes())}
	case *ecdsa.PublicKey:
		raw, err := k.Bytes()
		if err != nil {
			panic(err)
		}
		return map[string]string{"kty": "EC", "kid": id, "use": "sig", "alg": "ES256", "crv": "P-256", "x": b64(raw[1:33]), "y": b64(raw[33:])}
	}
	panic("unknown key")
}

func (i *issuer) publish(id string, k crypto.Signer) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.keys[id] = k
}

func (i *issuer) withdraw(id string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.keys, id)
}

func (i *issuer) setDown(down bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.down = down
}

func rsaKey(t *testing.T) *rsa.PrivateKey {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func ecKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func good(iss string) jwt.MapClaims {
	now := time.Now()
	return jwt.MapClaims{
		"iss": iss, "sub": "repo:acme/app:ref:refs/heads/main", "aud": audience, "exp": now.Add(5 * time.Minute).Unix(), "iat": now.Unix(),
		"repository": "acme/app", "ref": "refs/heads/main", "actor": "octocat",
	}
}

func sign(t *testing.T, method jwt.SigningMethod, key any, header map[string]any, claims jwt.Claims) string {
	t.Helper()
	token := jwt.NewWithClaims(method, claims)
	maps.Copy(token.Header, header)
	text, err := token.SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func configFor(i *issuer) jwtauth.Config {
	return jwtauth.Config{
		Now: time.Now,
		Issuers: []jwtauth.Issuer{{
			Name: "github", URL: i.URL, Client: i.Client(), Audiences: []string{audience}, Attributes: jwtauth.GitHub(),
			Rules: []jwtauth.Rule{
				{If: `claims.repository == "acme/app" && claims.ref == "refs/heads/main"`, Account: "acct_a", Scopes: []string{"run:workflow/wf_1"}},
				{If: `claims.repository.startsWith("acme/") && claims.?environment.orValue("") == "staging"`, Account: "acct_b"},
			},
		}},
	}
}

func start(t *testing.T, i *issuer) *jwtauth.Authenticator {
	t.Helper()
	a, err := jwtauth.New(configFor(i))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func ask(ctx context.Context, a auth.Authenticator, token string) (auth.Principal, error) {
	return a.Authenticate(ctx, auth.Credential{Place: auth.PlaceBearer, Secret: auth.NewSecret(token)})
}

func TestRealTokens(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	rs, es := rsaKey(t), ecKey(t)
	i.publish("r1", rs)
	i.publish("e1", es)
	a := start(t, i)
	for name, token := range map[string]string{
		"RS256":          sign(t, jwt.SigningMethodRS256, rs, map[string]any{"kid": "r1"}, good(i.URL)),
		"ES256":          sign(t, jwt.SigningMethodES256, es, map[string]any{"kid": "e1"}, good(i.URL)),
		"without kid":    sign(t, jwt.SigningMethodRS256, rs, nil, good(i.URL)),
		"ignored header": sign(t, jwt.SigningMethodRS256, rs, map[string]any{"kid": "r1", "jku": "https://evil.example/keys"}, good(i.URL)),
	} {
		p, err := ask(t.Context(), a, token)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if p.Subject != "jwt:github/repo:acme/app:ref:refs/heads/main" || p.Account != "acct_a" || p.Backend != "jwt" || len(p.Scopes) != 1 || p.ExpiresAt.IsZero() {
			t.Errorf("%s: %+v", name, p)
		}
		if p.Attributes["repo"] != "acme/app" || p.Attributes["actor"] != "octocat" || p.Attributes["ref"] != "refs/heads/main" || len(p.Attributes) != 3 {
			t.Errorf("%s: attributes %v", name, p.Attributes)
		}
	}
	if n := i.fetches.Load(); n != 1 {
		t.Errorf("the keys were fetched %d times, want once", n)
	}

	if _, err := ask(t.Context(), a, sign(t, jwt.SigningMethodRS256, rs, map[string]any{"kid": "r1", "typ": "application/at+jwt"}, good(i.URL))); err != nil {
		t.Errorf("an access token of RFC 9068: %v", err)
	}
	staging := good(i.URL)
	staging["repository"], staging["environment"], staging["aud"] = "acme/other", "staging", []string{"somebody", audience}
	p, err := ask(t.Context(), a, sign(t, jwt.SigningMethodRS256, rs, map[string]any{"kid": "r1"}, staging))
	if err != nil || p.Account != "acct_b" || len(p.Scopes) != 0 {
		t.Errorf("second rule: %+v, %v", p, err)
	}
}

// TestForgeriesA4 tries to get in with tokens that are wrong in one way each. Those marked pass are not of our issuer or no JWT at all, so the
// next backend may know them.
func TestForgeriesA4(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	rs, es, foreign := rsaKey(t), ecKey(t), rsaKey(t)
	i.publish("r1", rs)
	i.publish("e1", es)
	a := start(t, i)
	kid := map[string]any{"kid": "r1"}
	with := func(change func(jwt.MapClaims)) string {
		c := good(i.URL)
		change(c)
		return sign(t, jwt.SigningMethodRS256, rs, kid, c)
	}
	header := func(h map[string]any) string {
		return sign(t, jwt.SigningMethodRS256, rs, h, good(i.URL))
	}
	hs := func(secret []byte, h map[string]any) string {
		return sign(t, jwt.SigningMethodHS256, secret, h, good(i.URL))
	}
	der, err := x509.MarshalPKIXPublicKey(rs.Public())
	if err != nil {
		t.Fatal(err)
	}
	valid := sign(t, jwt.SigningMethodRS256, rs, kid, good(i.URL))
	parts := strings.Split(valid, ".")
	raw := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	// reheader keeps claims and signature.
	reheader := func(h string) string { return raw(h) + "." + parts[1] + "." + parts[2] }
	unsecured := sign(t, jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, nil, good(i.URL))
	ownJWK, err := json.Marshal(jwk("own", foreign.Public()))
	if err != nil {
		t.Fatal(err)
	}
	hour := func(n int) int64 { return time.Now().Add(time.Duration(n) * time.Hour).Unix() }

	const pass = core.Code("not applicable")
	forgeries := []struct {
		name, token string
		want        core.Code
	}{
		{"alg none, no signature", unsecured, pass},
		{"alg none, a signature", unsecured + "AAAA", core.CodeInvalidKey},
		{"signature in another spelling", valid[:len(valid)-1] + string(valid[len(valid)-1]+1), core.CodeInvalidKey}, // the lowest bits of the last letter decode to nothing
		{"alg None", reheader(`{"alg":"None","kid":"r1"}`), core.CodeInvalidKey},
		{"alg empty", reheader(`{"alg":"","kid":"r1"}`), core.CodeInvalidKey},
		{"alg missing", reheader(`{"kid":"r1"}`), core.CodeInvalidKey},
		{"alg as a list", reheader(`{"alg":["RS256"],"kid":"r1"}`), pass},
		{"HS256 with the public key in PEM", hs(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), kid), core.CodeInvalidKey},
		{"HS256 with the public key in DER", hs(der, kid), core.CodeInvalidKey},
		{"HS256 with the modulus", hs(rs.N.Bytes(), kid), core.CodeInvalidKey},
		{"HS256 with an empty secret", hs([]byte{}, kid), core.CodeInvalidKey},
		{"RS384, not pinned", sign(t, jwt.SigningMethodRS384, rs, kid, good(i.URL)), core.CodeInvalidKey},
		{"PS256, not pinned", sign(t, jwt.SigningMethodPS256, rs, kid, good(i.URL)), core.CodeInvalidKey},
		{"ES256 under the id of the RSA key", sign(t, jwt.SigningMethodES256, es, kid, good(i.URL)), core.CodeInvalidKey},
		{"ES256 with a signature of zeros", raw(`{"alg":"ES256","kid":"e1"}`) + "." + parts[1] + "." + base64.RawURLEncoding.EncodeToString(make([]byte, 64)), core.CodeInvalidKey},
		{"foreign key, known id", sign(t, jwt.SigningMethodRS256, foreign, kid, good(i.URL)), core.CodeInvalidKey},
		{"foreign key, no id", sign(t, jwt.SigningMethodRS256, foreign, nil, good(i.URL)), core.CodeInvalidKey},
		{"foreign key, unknown id", sign(t, jwt.SigningMethodRS256, foreign, map[string]any{"kid": "r9"}, good(i.URL)), core.CodeInvalidKey},
		{"own key in jwk", sign(t, jwt.SigningMethodRS256, foreign, map[string]any{"jwk": json.RawMessage(ownJWK)}, good(i.URL)), core.CodeInvalidKey},
		{"own key at jku", sign(t, jwt.SigningMethodRS256, foreign, map[string]any{"kid": "own", "jku": "https://evil.example/keys"}, good(i.URL)), core.CodeInvalidKey},
		{"own certificate at x5u", sign(t, jwt.SigningMethodRS256, foreign, map[string]any{"x5u": "https://evil.example/cert"}, good(i.URL)), core.CodeInvalidKey},
		{"kid is a path", sign(t, jwt.SigningMethodRS256, foreign, map[string]any{"kid": "../../../dev/null"}, good(i.URL)), core.CodeInvalidKey},
		{"kid is SQL", sign(t, jwt.SigningMethodRS256, foreign, map[string]any{"kid": "x' UNION SELECT 'k"}, good(i.URL)), core.CodeInvalidKey},
		{"kid is long", header(map[string]any{"kid": strings.Repeat("k", 1000)}), core.CodeInvalidKey},
		{"critical extension", header(map[string]any{"kid": "r1", "crit": []string{"b64"}, "b64": false}), core.CodeInvalidKey},
		{"critical extension, empty", header(map[string]any{"kid": "r1", "crit": []string{}}), core.CodeInvalidKey},
		{"another type of token", header(map[string]any{"kid": "r1", "typ": "logout+jwt"}), core.CodeInvalidKey},
		{"claims changed", parts[0] + "." + raw(`{"iss":"`+i.URL+`","sub":"x","aud":"`+audience+`","exp":9999999999}`) + "." + parts[2], core.CodeInvalidKey},
		{"signature cut", valid[:len(valid)-4], core.CodeInvalidKey},
		{"signature padded", valid + "=", core.CodeInvalidKey},
		{"signature of another token", parts[0] + "." + parts[1] + "." + strings.Split(with(func(c jwt.MapClaims) { c["sub"] = "x" }), ".")[2], core.CodeInvalidKey},
		{"no exp", with(func(c jwt.MapClaims) { delete(c, "exp") }), core.CodeInvalidKey},
		{"exp as text", with(func(c jwt.MapClaims) { c["exp"] = "9999999999" }), core.CodeInvalidKey},
		{"expired", with(func(c jwt.MapClaims) { c["exp"] = hour(-1) }), core.CodeKeyExpired},
		{"expired and for another audience", with(func(c jwt.MapClaims) { c["exp"], c["aud"] = hour(-1), "other" }), core.CodeInvalidKey},
		{"not valid yet", with(func(c jwt.MapClaims) { c["nbf"] = hour(1) }), core.CodeInvalidKey},
		{"issued in the future", with(func(c jwt.MapClaims) { c["iat"] = hour(1) }), core.CodeInvalidKey},
		{"no aud", with(func(c jwt.MapClaims) { delete(c, "aud") }), core.CodeInvalidKey},
		{"another aud", with(func(c jwt.MapClaims) { c["aud"] = "other" }), core.CodeInvalidKey},
		{"aud that contains ours", with(func(c jwt.MapClaims) { c["aud"] = "not-" + audience }), core.CodeInvalidKey},
		{"empty aud list", with(func(c jwt.MapClaims) { c["aud"] = []string{} }), core.CodeInvalidKey},
		{"no sub", with(func(c jwt.MapClaims) { delete(c, "sub") }), core.CodeInvalidKey},
		{"sub with a line break", with(func(c jwt.MapClaims) { c["sub"] = "a\nb" }), core.CodeInvalidKey},
		{"another issuer", with(func(c jwt.MapClaims) { c["iss"] = "https://evil.example" }), pass},
		{"issuer with a slash more", with(func(c jwt.MapClaims) { c["iss"] = i.URL + "/" }), pass},
		{"no issuer", with(func(c jwt.MapClaims) { delete(c, "iss") }), pass},
		{"no rule holds", with(func(c jwt.MapClaims) { c["ref"] = "refs/heads/evil" }), core.CodeInsufficientScope},
		{"another repository", with(func(c jwt.MapClaims) { c["repository"] = "evil/app" }), core.CodeInsufficientScope},
		{"longer than allowed", with(func(c jwt.MapClaims) { c["pad"] = strings.Repeat("x", jwtauth.MaxToken) }), core.CodeInvalidKey},
		{"one megabyte of dots", strings.Repeat(".", 1<<20), pass},
		{"one megabyte of dots after a header", "eyJ" + strings.Repeat(".", 1<<20), core.CodeInvalidKey},
		{"five parts", valid + "." + parts[1] + "." + parts[2], pass},
		{"JSON serialization", `{"protected":"` + parts[0] + `","payload":"` + parts[1] + `","signature":"` + parts[2] + `"}`, pass},
		{"an HMAC of our own making", func() string {
			m := hmac.New(sha256.New, []byte("secret"))
			m.Write([]byte(parts[0] + "." + parts[1]))
			return parts[0] + "." + parts[1] + "." + base64.RawURLEncoding.EncodeToString(m.Sum(nil))
		}(), core.CodeInvalidKey},
	}
	if len(forgeries) < 40 {
		t.Fatalf("only %d forgeries, 40 were promised", len(forgeries))
	}
	for _, f := range forgeries {
		p, err := ask(t.Context(), a, f.token)
		got := core.CodeOf(err)
		if errors.Is(err, auth.ErrNotApplicable) {
			got = pass
		}
		if got != f.want || p.Subject != "" {
			t.Errorf("%s: %+v, %v, want %s", f.name, p, err, f.want)
		}
		if err != nil && f.token != "" && len(f.token) < 10000 && strings.Contains(err.Error(), strings.SplitN(f.token, ".", 2)[0]) && len(f.token) > 40 {
			t.Errorf("%s: the error quotes the token: %v", f.name, err)
		}
	}
	if _, err := ask(t.Context(), a, valid); err != nil {
		t.Errorf("the good token is no longer accepted: %v", err)
	}
	if n := i.fetches.Load(); n > 5 { // a burst of four, and what a slow machine's time gave
		t.Errorf("%d forgeries made us fetch the keys %d times", len(forgeries), n)
	}
}

// signedBy returns a good token of an issuer, signed with a key of its that has this id.
func signedBy(t *testing.T, i *issuer, id string, k *rsa.PrivateKey) string {
	t.Helper()
	return sign(t, jwt.SigningMethodRS256, k, map[string]any{"kid": id}, good(i.URL))
}

func TestRotation(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	first, second := rsaKey(t), rsaKey(t)
	i.publish("k1", first)
	cfg := configFor(i)
	a, err := jwtauth.NewWithIntervals(cfg, time.Millisecond, time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	token := func(id string, k *rsa.PrivateKey) string { return signedBy(t, i, id, k) }
	if _, err := ask(t.Context(), a, token("k1", first)); err != nil {
		t.Fatal(err)
	}
	if _, err := ask(t.Context(), a, token("k2", second)); core.CodeOf(err) != core.CodeInvalidKey {
		t.Errorf("a key that is not published yet: %v", err)
	}
	i.publish("k2", second) // overlap: both are good
	time.Sleep(2 * time.Millisecond)
	for id, k := range map[string]*rsa.PrivateKey{"k1": first, "k2": second} {
		if _, err := ask(t.Context(), a, token(id, k)); err != nil {
			t.Errorf("during the rotation: %s: %v", id, err)
		}
	}
	i.withdraw("k1")
	third := rsaKey(t)
	i.publish("k3", third)
	time.Sleep(2 * time.Millisecond)
	if _, err := ask(t.Context(), a, token("k3", third)); err != nil { // makes us fetch
		t.Error(err)
	}
	time.Sleep(2 * time.Millisecond)
	if _, err := ask(t.Context(), a, token("k1", first)); core.CodeOf(err) != core.CodeInvalidKey {
		t.Errorf("a withdrawn key: %v", err)
	}
}

// An issuer may publish a new key, and sign with it, right after its keys were fetched: its tokens are good at once. Tokens of keys that nobody has
// cost the issuer a few requests, not one each.
func TestRotationRightAfterAFetch(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	a := start(t, i) // with the intervals of a server
	for n := range 3 {
		k, id := rsaKey(t), fmt.Sprintf("k%d", n)
		i.publish(id, k)
		if _, err := ask(t.Context(), a, signedBy(t, i, id, k)); err != nil {
			t.Errorf("key %d: %v", n, err)
		}
	}
	before, forger := i.fetches.Load(), rsaKey(t)
	for n := range 100 {
		token := sign(t, jwt.SigningMethodRS256, forger, map[string]any{"kid": fmt.Sprintf("forged-%d", n)}, good(i.URL))
		if _, err := ask(t.Context(), a, token); core.CodeOf(err) != core.CodeInvalidKey {
			t.Fatalf("forgery %d: %v", n, err)
		}
	}
	if asked := i.fetches.Load() - before; asked > 3 { // what was left of the burst, and what a slow machine's time gave
		t.Errorf("100 forgeries made the server ask the issuer %d times", asked)
	}
}

func TestIssuerDown(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	k := rsaKey(t)
	i.publish("k1", k)
	i.setDown(true)
	a, err := jwtauth.NewWithIntervals(configFor(i), 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	token := sign(t, jwt.SigningMethodRS256, k, map[string]any{"kid": "k1"}, good(i.URL))
	_, err = ask(t.Context(), a, token)
	var e *core.Error
	if !errors.As(err, &e) || e.Code != core.CodeAuthUnavailable || e.RetryAfter <= 0 {
		t.Errorf("while the issuer is down: %v", err)
	}
	i.setDown(false)
	if _, err := ask(t.Context(), a, token); err != nil {
		t.Errorf("after it came back: %v", err)
	}
	i.setDown(true)
	if _, err := ask(t.Context(), a, token); err != nil {
		t.Errorf("down again, but its keys are known: %v", err)
	}
}

// A key that its issuer withdraws is refused, although no token of a new key makes us look; the issuer's other keys are as good as before.
func TestWithdrawnKey(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	stolen, other := rsaKey(t), rsaKey(t)
	i.publish("stolen", stolen)
	i.publish("other", other)
	a, err := jwtauth.NewWithAges(configFor(i), 0, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	token := func(id string, k *rsa.PrivateKey) string { return signedBy(t, i, id, k) }
	if _, err := ask(t.Context(), a, token("stolen", stolen)); err != nil {
		t.Fatal(err)
	}
	i.withdraw("stolen")
	if _, err := ask(t.Context(), a, token("stolen", stolen)); core.CodeOf(err) != core.CodeInvalidKey {
		t.Errorf("a withdrawn key: %v", err)
	}
	if _, err := ask(t.Context(), a, token("other", other)); err != nil {
		t.Errorf("a key that was not withdrawn: %v", err)
	}
}

// While an issuer is away its keys are good, but not for ever; and text that is no token does not keep anybody from asking it.
func TestStaleKeys(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name  string
		stale time.Duration
		want  core.Code
	}{{"for a while", time.Hour, ""}, {"not for ever", 0, core.CodeAuthUnavailable}} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			i := newIssuer(t)
			k := rsaKey(t)
			i.publish("k1", k)
			a, err := jwtauth.NewWithAges(configFor(i), 0, test.stale)
			if err != nil {
				t.Fatal(err)
			}
			token := sign(t, jwt.SigningMethodRS256, k, map[string]any{"kid": "k1"}, good(i.URL))
			if _, err := ask(t.Context(), a, token); err != nil {
				t.Fatal(err)
			}
			i.setDown(true)
			if _, err := ask(t.Context(), a, token); core.CodeOf(err) != test.want {
				t.Errorf("while the issuer is away: %v, want %q", err, test.want)
			}
			head, rest, _ := strings.Cut(token, ".")
			raw, err := base64.RawURLEncoding.DecodeString(head)
			if err != nil {
				t.Fatal(err)
			}
			twice := base64.RawURLEncoding.EncodeToString([]byte(strings.TrimSuffix(string(raw), "}")+`,"alg":"RS256"}`)) + "." + rest
			if _, err := ask(t.Context(), a, twice); core.CodeOf(err) != core.CodeInvalidKey {
				t.Errorf("a header with two algorithms: %v", err)
			}
			i.setDown(false)
			i.withdraw("k1")
			if test.stale > 0 {
				return // it is asked again in half a minute
			}
			if _, err := ask(t.Context(), a, token); core.CodeOf(err) != core.CodeInvalidKey {
				t.Errorf("withdrawn while it was away: %v", err)
			}
		})
	}
}

// TestIssuerSwitchesProtocolsA1: an issuer that answers with another protocol, and then says nothing, is down, and holds nobody up.
func TestIssuerSwitchesProtocolsA1(t *testing.T) {
	t.Parallel()
	hold := make(chan struct{})
	i := &issuer{Server: httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		c, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n")
		<-hold
	}))}
	t.Cleanup(i.Close)
	defer close(hold)
	a := start(t, i)
	token := sign(t, jwt.SigningMethodRS256, rsaKey(t), map[string]any{"kid": "k1"}, good(i.URL))
	answer := make(chan error, 1)
	go func() {
		_, err := ask(context.Background(), a, token)
		answer <- err
	}()
	select {
	case err := <-answer:
		if core.CodeOf(err) != core.CodeAuthUnavailable {
			t.Errorf("got %v", err)
		}
	case <-time.After(30 * time.Second):
		t.Error("a request waits for the issuer")
	}
}

func TestNotApplicable(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	k := rsaKey(t)
	i.publish("k1", k)
	a := start(t, i)
	token := sign(t, jwt.SigningMethodRS256, k, nil, good(i.URL))
	for name, c := range map[string]auth.Credential{
		"a key":        {Place: auth.PlaceBearer, Secret: auth.NewSecret("kft_000000000000000000000000000000000000000000000000")},
		"opaque":       {Place: auth.PlaceBearer, Secret: auth.NewSecret("gho_16C7e42F292c6912E7710c838347Ae178B4a")},
		"in X-API-Key": {Place: auth.PlaceAPIKey, Secret: auth.NewSecret(token)},
		"in the query": {Place: auth.PlaceQuery, Secret: auth.NewSecret(token)},
	} {
		if _, err := a.Authenticate(t.Context(), c); !errors.Is(err, auth.ErrNotApplicable) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if i.fetches.Load() != 0 {
		t.Error("the issuer was asked about credentials that are not its tokens")
	}
}

func TestConfigIsValidated(t *testing.T) {
	t.Parallel()
	base := jwtauth.Issuer{Name: "x", URL: "https://issuer.example", Audiences: []string{"a"}, Rules: []jwtauth.Rule{{If: "true", Account: "acct_a"}}}
	for want, change := range map[string]func(*jwtauth.Issuer){
		"name:":             func(i *jwtauth.Issuer) { i.Name = "X y" },
		"must be https":     func(i *jwtauth.Issuer) { i.URL = "http://issuer.example" },
		"plain URL":         func(i *jwtauth.Issuer) { i.URL = "https://user@issuer.example" },
		"jwks:":             func(i *jwtauth.Issuer) { i.JWKS = "ftp://issuer.example" },
		"audiences:":        func(i *jwtauth.Issuer) { i.Audiences = nil },
		`algorithm "HS256"`: func(i *jwtauth.Issuer) { i.Algorithms = []string{"HS256"} },
		`algorithm "none"`:  func(i *jwtauth.Issuer) { i.Algorithms = []string{"none"} },
		"rules:":            func(i *jwtauth.Issuer) { i.Rules = nil },
		"rule 1: no account": func(i *jwtauth.Issuer) {
			i.Rules = []jwtauth.Rule{{If: "true"}}
		},
		"rule 1: if: ERROR":        func(i *jwtauth.Issuer) { i.Rules = []jwtauth.Rule{{If: "claims.ref = 1", Account: "a"}} },
		"gives string, want bool":  func(i *jwtauth.Issuer) { i.Rules = []jwtauth.Rule{{If: `"yes"`, Account: "a"}} },
		"undeclared reference":     func(i *jwtauth.Issuer) { i.Rules = []jwtauth.Rule{{If: "claim.ref == 'x'", Account: "a"}} },
		"attribute who: gives int": func(i *jwtauth.Issuer) { i.Attributes = map[string]string{"who": "1"} },
	} {
		i := base
		change(&i)
		_, err := jwtauth.New(jwtauth.Config{Now: time.Now, Issuers: []jwtauth.Issuer{i}})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want an error with %q", err, want)
		}
	}
	if _, err := jwtauth.New(jwtauth.Config{Now: time.Now, Leeway: 2 * time.Minute, Issuers: []jwtauth.Issuer{base, base}}); err == nil ||
		!strings.Contains(err.Error(), "leeway") || !strings.Contains(err.Error(), "twice") {
		t.Errorf("%v", err)
	}
	if _, err := jwtauth.New(jwtauth.Config{Now: time.Now}); err == nil {
		t.Error("no issuer was accepted")
	}
}

// TestExpensiveRule bounds the work a condition may do; one that goes past it does not hold.
func TestExpensiveRule(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	k := rsaKey(t)
	i.publish("k1", k)
	cfg := configFor(i)
	cfg.Issuers[0].Rules = []jwtauth.Rule{{Account: "acct_a", If: "claims.l.all(a, claims.l.all(b, claims.l.all(c, claims.l.all(d, a + b + c + d >= 0))))"}}
	a, err := jwtauth.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	claims := good(i.URL)
	claims["l"] = make([]int, 500)
	began := time.Now()
	_, err = ask(t.Context(), a, sign(t, jwt.SigningMethodRS256, k, nil, claims))
	if took := time.Since(began); core.CodeOf(err) != core.CodeInsufficientScope || took > time.Minute { // all of it would take hours
		t.Errorf("%v after %s", err, took)
	}
}
