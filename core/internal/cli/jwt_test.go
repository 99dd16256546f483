package cli

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// TestWorkloadIdentity has a CI job start a run with the token of a local OpenID Connect issuer, on a server that knows no key.
func TestWorkloadIdentity(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	issuer := oidcIssuer(t, key)
	config := writeFile(t, "keyfire.yaml", fmt.Sprintf(`auth:
  - jwt:
      issuers:
        - name: ci
          url: %s
          audiences: [keyfire.test]
          attributes: github
          rules:
            - if: claims.repository == "acme/app" && claims.ref == "refs/heads/main"
              account: acct_default
              scopes: ["run:workflow/echo"]
`, issuer))
	data := filepath.Join(t.TempDir(), "data")
	if err := copyDir(data, filepath.Join(sharedDir(t), "data")); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	s, err := launch(data, &log, "--config", config)
	if err != nil {
		t.Fatalf("%v\n%s", err, log.String())
	}
	defer func() {
		if err := s.stop(); err != nil {
			t.Error(err)
		}
	}()
	trigger := func(change func(jwt.MapClaims)) (int, string) {
		t.Helper()
		now := time.Now()
		claims := jwt.MapClaims{
			"iss": issuer, "sub": "repo:acme/app:ref:refs/heads/main", "aud": "keyfire.test", "iat": now.Unix(), "exp": now.Add(5 * time.Minute).Unix(),
			"repository": "acme/app", "ref": "refs/heads/main", "actor": "octocat",
		}
		change(claims)
		unsigned := jwt.NewWithClaims(jwt.SigningMethodES256, claims)
		unsigned.Header["kid"] = "k1"
		token, err := unsigned.SignedString(key)
		if err != nil {
			t.Fatal(err)
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.url+"/v1/workflows/echo/runs", strings.NewReader(`{"input":{"n":1}}`))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		req.Header.Set("Content-Type", "application/json")
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = res.Body.Close() }()
		body, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(body)
	}
	status, body := trigger(func(jwt.MapClaims) {})
	for _, want := range []string{`"principal":"jwt:ci/repo:acme/app:ref:refs/heads/main"`, `"backend":"jwt"`, `"repo":"acme/app"`, `"actor":"octocat"`} {
		if status != http.StatusOK || !strings.Contains(body, want) {
			t.Errorf("%d %s, want 200 with %s\n%s", status, body, want, log.String())
		}
	}
	for name, tc := range map[string]struct {
		change func(jwt.MapClaims)
		status int
		code   string
	}{
		"another branch":   {func(c jwt.MapClaims) { c["ref"] = "refs/heads/evil" }, 403, "insufficient_scope"},
		"another audience": {func(c jwt.MapClaims) { c["aud"] = "other" }, 401, "invalid_key"},
		"expired":          {func(c jwt.MapClaims) { c["exp"] = 1 }, 401, "key_expired"},
		"another issuer":   {func(c jwt.MapClaims) { c["iss"] = "https://evil.example" }, 401, "invalid_key"},
	} {
		if status, body := trigger(tc.change); status != tc.status || !strings.Contains(body, `"code":"`+tc.code+`"`) {
			t.Errorf("%s: %d %s, want %d %s", name, status, body, tc.status, tc.code)
		}
	}
}

// oidcIssuer serves discovery and one key, and returns its URL.
func oidcIssuer(t *testing.T, key *ecdsa.PrivateKey) string {
	t.Helper()
	public, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	b64 := base64.RawURLEncoding.EncodeToString
	mux := http.NewServeMux()
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	for path, document := range map[string]any{
		"/.well-known/openid-configuration": map[string]string{"issuer": s.URL, "jwks_uri": s.URL + "/keys"},
		"/keys": map[string]any{"keys": []any{map[string]string{
			"kty": "EC", "crv": "P-256", "kid": "k1", "use": "sig", "alg": "ES256", "x": b64(public[1:33]), "y": b64(public[33:]),
		}}},
	} {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(document) })
	}
	return s.URL
}
