package jwtauth_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/auth/jwtauth"
	"github.com/keyfire/keyfire/core"
)

// sessionTable is the sessions of a test.
type sessionTable map[string]auth.LiveSession

func (s sessionTable) LiveSession(_ context.Context, id string) (auth.LiveSession, error) {
	if l, ok := s[id]; ok {
		return l, nil
	}
	if id == "ses_down" {
		return auth.LiveSession{}, errors.New("disk on fire")
	}
	return auth.LiveSession{}, core.Errorf(core.CodeNotFound, "there is no such session")
}

type sessionRig struct {
	now      time.Time
	table    sessionTable
	key      jwtauth.SigningKey
	saved    []jwtauth.SigningKey
	saveErr  error
	sessions *jwtauth.Sessions
}

func newSessionRig(t *testing.T) *sessionRig {
	t.Helper()
	r := &sessionRig{now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}
	r.table = sessionTable{"ses_1": {
		Session: auth.Session{ID: "ses_1", Account: "acct_a", UserID: "usr_1", ExpiresAt: r.now.Add(time.Hour)},
		User:    auth.User{ID: "usr_1", Account: "acct_a", Name: "ada", Role: auth.Operator},
	}}
	var err error
	if r.key, err = jwtauth.NewSigningKey(rand.Reader, r.now); err != nil {
		t.Fatal(err)
	}
	r.sessions, err = jwtauth.NewSessions(jwtauth.SessionConfig{
		Keys: []jwtauth.SigningKey{r.key}, Sessions: r.table, Now: func() time.Time { return r.now }, Random: rand.Reader,
		Save: func(keys []jwtauth.SigningKey) error {
			if r.saveErr == nil {
				r.saved = keys
			}
			return r.saveErr
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *sessionRig) sign(t *testing.T) string {
	t.Helper()
	text, expires, err := r.sessions.Sign(t.Context(), r.table["ses_1"].Session, r.table["ses_1"].User, "tok_1")
	if err != nil || !expires.Equal(r.now.Add(jwtauth.SessionLife)) {
		t.Fatalf("expires %v, %v", expires, err)
	}
	return text.Reveal()
}

func (r *sessionRig) judge(text string) (auth.Principal, error) {
	return r.sessions.Authenticate(context.Background(), auth.Credential{Place: auth.PlaceBearer, Secret: auth.NewSecret(text)})
}

func TestSessionToken(t *testing.T) {
	t.Parallel()
	r := newSessionRig(t)
	p, err := r.judge(r.sign(t))
	if err != nil || p.Subject != "user:usr_1" || p.Account != "acct_a" || p.Backend != "session" || !auth.Allows(p.Scopes, auth.ScopeKeysWrite) || auth.Allows(p.Scopes, auth.ScopeUsersWrite) ||
		p.Session.ID != "ses_1" || p.User.Name != "ada" {
		t.Fatalf("%+v, %v", p, err)
	}
}

// A4: a token is held to everything that ours have; what it says about how to verify itself counts for nothing.
func TestSessionForgeries(t *testing.T) {
	t.Parallel()
	r := newSessionRig(t)
	private := ed25519.NewKeyFromSeed(r.key.Seed)
	public := private.Public().(ed25519.PublicKey)
	claims := func(change func(jwt.MapClaims)) jwt.MapClaims {
		c := jwt.MapClaims{"iss": "keyfire", "aud": "keyfire-api", "sub": "user:usr_1", "sid": "ses_1", "exp": r.now.Add(time.Minute).Unix(), "iat": r.now.Unix(), "nbf": r.now.Unix(), "jti": "x"}
		if change != nil {
			change(c)
		}
		return c
	}
	made := func(method jwt.SigningMethod, key any, c jwt.MapClaims, header map[string]any) string {
		t.Helper()
		token := jwt.NewWithClaims(method, c)
		token.Header["kid"], token.Header["typ"] = r.key.ID, "keyfire-session+jwt"
		for name, value := range header {
			if value == nil {
				delete(token.Header, name)
				continue
			}
			token.Header[name] = value
		}
		text, err := token.SignedString(key)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	good := func(change func(jwt.MapClaims), header map[string]any) string {
		return made(jwt.SigningMethodEdDSA, private, claims(change), header)
	}
	if _, err := r.judge(good(nil, nil)); err != nil {
		t.Fatalf("the base of the forgeries is not good: %v", err)
	}
	_, stranger, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	set := func(name string, value any) func(jwt.MapClaims) {
		return func(c jwt.MapClaims) {
			if value == nil {
				delete(c, name)
				return
			}
			c[name] = value
		}
	}
	parts := strings.Split(good(nil, nil), ".")
	other := strings.Split(good(set("jti", "y"), nil), ".")
	head := func(h string) string { return base64.RawURLEncoding.EncodeToString([]byte(h)) }
	for name, text := range map[string]string{
		"another key":               made(jwt.SigningMethodEdDSA, stranger, claims(nil), nil),
		"no signature":              made(jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, claims(nil), nil) + "AA",
		"alg none with a signature": head(`{"alg":"none","typ":"keyfire-session+jwt","kid":"`+r.key.ID+`"}`) + "." + parts[1] + "." + parts[2],
		"HMAC with the public key":  made(jwt.SigningMethodHS256, []byte(public), claims(nil), nil),
		"another's signature":       parts[0] + "." + parts[1] + "." + other[2],
		"other claims":              parts[0] + "." + other[1] + "." + parts[2],
		"unknown kid":               good(nil, map[string]any{"kid": "0123456789abcdef"}),
		"no kid":                    good(nil, map[string]any{"kid": nil}),
		"a kid that is no text":     good(nil, map[string]any{"kid": 7}),
		"jwk":                       made(jwt.SigningMethodEdDSA, stranger, claims(nil), map[string]any{"jwk": map[string]any{"kty": "OKP", "crv": "Ed25519", "x": base64.RawURLEncoding.EncodeToString(stranger.Public().(ed25519.PublicKey))}}),
		"jku":                       made(jwt.SigningMethodEdDSA, stranger, claims(nil), map[string]any{"jku": "https://evil.example/jwks"}),
		"x5u":                       made(jwt.SigningMethodEdDSA, stranger, claims(nil), map[string]any{"x5u": "https://evil.example/cert"}),
		"type JWT":                  good(nil, map[string]any{"typ": "JWT"}),
		"no type":                   good(nil, map[string]any{"typ": nil}),
		"critical extension":        good(nil, map[string]any{"crit": []string{"x"}}),
		"no audience":               good(set("aud", nil), nil),
		"another audience":          good(set("aud", "else"), nil),
		"no expiry":                 good(set("exp", nil), nil),
		"not yet":                   good(set("nbf", r.now.Add(time.Minute).Unix()), nil),
		"issued later":              good(set("iat", r.now.Add(time.Minute).Unix()), nil),
		"another user's session":    good(set("sub", "user:usr_2"), nil),
		"no subject":                good(set("sub", nil), nil),
		"a key's subject":           good(set("sub", "key:key_1"), nil),
		"padding":                   parts[0] + "." + parts[1] + "." + parts[2] + "==",
		"line break":                parts[0] + "." + parts[1] + "." + parts[2] + "\n",
		"no claims at all":          parts[0] + "." + head(`{"iss":"keyfire"}`) + "." + parts[2],
	} {
		p, err := r.judge(text)
		var e *core.Error
		if p.Subject != "" || (!errors.As(err, &e) || e.Code != core.CodeInvalidKey) && !errors.Is(err, auth.ErrNotApplicable) {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
	}
	// What is not ours is nobody's here: others in the chain may know it.
	for name, c := range map[string]auth.Credential{
		"another issuer": {Place: auth.PlaceBearer, Secret: auth.NewSecret(good(set("iss", "https://issuer.example"), nil))},
		"X-API-Key":      {Place: auth.PlaceAPIKey, Secret: auth.NewSecret(good(nil, nil))},
		"the query":      {Place: auth.PlaceQuery, Secret: auth.NewSecret(good(nil, nil))},
		"a key":          {Place: auth.PlaceBearer, Secret: auth.NewSecret("kft_" + strings.Repeat("A", 50))},
		"too long":       {Place: auth.PlaceBearer, Secret: auth.NewSecret(good(set("jti", strings.Repeat("x", 9000)), nil))},
	} {
		if _, err := r.sessions.Authenticate(t.Context(), c); !errors.Is(err, auth.ErrNotApplicable) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The token only names a session: what has become of that since decides, at once. Why is told only of a token that was good.
func TestSessionStateDecides(t *testing.T) {
	t.Parallel()
	r := newSessionRig(t)
	text := r.sign(t)
	change := func(f func(*auth.LiveSession)) {
		l := r.table["ses_1"]
		f(&l)
		r.table["ses_1"] = l
	}
	want := func(what string, code core.Code) {
		t.Helper()
		if _, err := r.judge(text); core.CodeOf(err) != code {
			t.Errorf("%s: %v", what, err)
		}
	}
	change(func(l *auth.LiveSession) { l.User.Role = auth.Viewer })
	if p, err := r.judge(text); err != nil || auth.Allows(p.Scopes, auth.ScopeKeysWrite) {
		t.Errorf("another role: %+v, %v", p, err)
	}
	change(func(l *auth.LiveSession) { l.User.DisabledAt = r.now })
	want("a disabled user", core.CodeUserDisabled)
	change(func(l *auth.LiveSession) { l.Session.EndedAt = r.now })
	want("logged out", core.CodeSessionEnded)
	delete(r.table, "ses_1")
	want("its user deleted", core.CodeSessionEnded)

	r = newSessionRig(t)
	text = r.sign(t)
	r.now = r.now.Add(jwtauth.SessionLife - time.Second)
	want("just before its end", "")
	r.now = r.now.Add(10 * time.Second)
	want("just after", core.CodeSessionExpired)
	r.now = r.now.Add(time.Hour)
	want("after the session", core.CodeSessionExpired)

	r = newSessionRig(t)
	down, _, err := r.sessions.Sign(t.Context(), auth.Session{ID: "ses_down", ExpiresAt: r.now.Add(time.Hour)}, auth.User{ID: "usr_1"}, "x")
	if err != nil {
		t.Fatal(err)
	}
	text = down.Reveal()
	want("a store that is down", core.CodeAuthUnavailable)
}

func TestSigningKeyRotation(t *testing.T) {
	t.Parallel()
	r := newSessionRig(t)
	first := r.sign(t)
	r.saveErr = errors.New("disk full")
	if _, err := r.sessions.Rotate(t.Context()); err == nil {
		t.Fatal("a key that was not stored is used")
	}
	if _, err := r.judge(first); err != nil {
		t.Fatal(err)
	}
	r.saveErr = nil
	r.now = r.now.Add(time.Minute)
	id, err := r.sessions.Rotate(t.Context())
	if err != nil || len(r.saved) != 2 || r.saved[0].ID != id || r.saved[1].ID != r.key.ID {
		t.Fatalf("%s, %v, %d keys", id, err, len(r.saved))
	}
	second := r.sign(t)
	for name, text := range map[string]string{"before": first, "after": second} {
		if _, err := r.judge(text); err != nil {
			t.Errorf("a token of %s the rotation: %v", name, err)
		}
	}
	var head struct{ Kid string }
	raw, _ := base64.RawURLEncoding.DecodeString(strings.Split(second, ".")[0])
	if err := json.Unmarshal(raw, &head); err != nil || head.Kid != id {
		t.Errorf("signed with %q, want %q", head.Kid, id)
	}
	// A key that no token can be of any more is gone with the next rotation.
	r.now = r.now.Add(jwtauth.SessionLife + time.Minute)
	if _, err := r.sessions.Rotate(t.Context()); err != nil || len(r.saved) != 2 || r.saved[1].ID != id {
		t.Errorf("%v, keys %+v", err, r.saved)
	}
	raw, err = json.Marshal(r.saved)
	if err != nil {
		t.Fatal(err)
	}
	var read []jwtauth.SigningKey
	if err := json.Unmarshal(raw, &read); err != nil || len(read) != 2 || !bytes.Equal(read[0].Seed, r.saved[0].Seed) || !read[0].CreatedAt.Equal(r.saved[0].CreatedAt) {
		t.Errorf("%v, %v", read, err)
	}
}

func TestNewSessionsRefuses(t *testing.T) {
	t.Parallel()
	r := newSessionRig(t)
	full := jwtauth.SessionConfig{Keys: []jwtauth.SigningKey{r.key}, Sessions: r.table, Now: time.Now, Random: rand.Reader, Save: func([]jwtauth.SigningKey) error { return nil }}
	for name, change := range map[string]func(*jwtauth.SessionConfig){
		"no keys": func(c *jwtauth.SessionConfig) { c.Keys = nil }, "a key twice": func(c *jwtauth.SessionConfig) { c.Keys = append(c.Keys, c.Keys[0]) },
		"a short key": func(c *jwtauth.SessionConfig) { c.Keys = []jwtauth.SigningKey{{ID: "x", Seed: []byte("short")}} }, "no store": func(c *jwtauth.SessionConfig) { c.Sessions = nil },
		"no clock": func(c *jwtauth.SessionConfig) { c.Now = nil }, "no place": func(c *jwtauth.SessionConfig) { c.Save = nil },
	} {
		cfg := full
		change(&cfg)
		if _, err := jwtauth.NewSessions(cfg); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

// K1: a signing key that gets into a log line or an error by mistake is not shown there; its own file alone has it.
func TestSigningKeysAreNotShown(t *testing.T) {
	t.Parallel()
	k, err := jwtauth.NewSigningKey(bytes.NewReader(bytes.Repeat([]byte("hunter2!"), 8)), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
		fmt.Fprintf(&out, verb+verb+verb+"\n", k, &k, []jwtauth.SigningKey{k})
	}
	for _, logger := range []*slog.Logger{slog.New(slog.NewTextHandler(&out, nil)), slog.New(slog.NewJSONHandler(&out, nil))} {
		logger.Info("line", "key", k)
	}
	for _, leak := range []string{"hunter2", fmt.Sprintf("%x", "hunter2!hunter2"), fmt.Sprintf("%X", "hunter2!hunter2"), "104 117 110", base64.StdEncoding.EncodeToString([]byte("hunter2!hunter2!"))[:20]} {
		if strings.Contains(out.String(), leak) {
			t.Errorf("%q is shown: %s", leak, out.String())
		}
	}
}
