package jwtauth

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
)

// What a session token says of itself. All of it is pinned: a token that says anything else is none.
const (
	sessionIssuer   = "keyfire"
	sessionAudience = "keyfire-api"
	sessionType     = "keyfire-session+jwt" // RFC 8725 section 3.11: a token for another purpose is signed differently
	sessionLeeway   = 5 * time.Second       // between the clocks of several servers
)

// SessionLife is how long a session token works. A client then gets another one by its refresh token.
const SessionLife = 15 * time.Minute

// SigningKeySize is the length of a signing key's seed in bytes.
const SigningKeySize = ed25519.SeedSize

// SigningKey is a key that session tokens are signed with.
type SigningKey struct {
	ID        string // "kid" of the tokens
	Seed      []byte // SigningKeySize bytes, secret
	CreatedAt time.Time
}

// Format implements fmt.Formatter and hides the seed from every verb.
func (k SigningKey) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "signing key "+k.ID) }

// LogValue implements slog.LogValuer and hides the seed, which MarshalJSON does not.
func (k SigningKey) LogValue() slog.Value { return slog.StringValue("signing key " + k.ID) }

// SessionReader finds sessions by id, as they are at this moment. It answers CodeNotFound for an unknown one.
type SessionReader interface {
	LiveSession(ctx context.Context, id string) (auth.LiveSession, error)
}

// SharedKeys is where several servers keep the keys that they sign with, so that each verifies what the others have signed.
type SharedKeys interface {
	// Load returns the keys of all servers.
	Load(ctx context.Context) ([]SigningKey, error)
	// Store adds keys that are not there and removes those with the ids, durably.
	Store(ctx context.Context, keys []SigningKey, remove []string) error
}

// SessionConfig configures Sessions. All fields are required but Shared.
type SessionConfig struct {
	// Keys verify tokens; the newest one signs them.
	Keys []SigningKey
	// Save stores the keys durably in place of those before; Rotate calls it before it uses a new key.
	Save func(keys []SigningKey) error
	// Shared has the keys of other servers too. It is asked whenever a token is signed, and about a key that is not known.
	Shared   SharedKeys
	Sessions SessionReader
	Now      func() time.Time
	Random   io.Reader // a cryptographic source
}

// Sessions signs the tokens of people who have logged in, and admits them. A token only names its session: whether the session still is, who the user is and what
// they may do is read from the store with every request, so that a logout, a new password or another role holds at once. It is safe for concurrent use.
type Sessions struct {
	cfg    SessionConfig
	parser *jwt.Parser

	rotating sync.Mutex // one at a time

	begun   atomic.Int64 // how often cfg.Shared was asked
	loading sync.Mutex   // one at a time asks it, and holds what follows
	loaded  int64        // the last of those that was answered
	shared  []SigningKey // what the answer was

	mu   sync.RWMutex
	keys []SigningKey // the newest first
}

var errUnknownKey = errors.New("signed with a key that is not known")

var _ auth.Authenticator = (*Sessions)(nil)

// NewSessions returns Sessions.
func NewSessions(cfg SessionConfig) (*Sessions, error) {
	if len(cfg.Keys) == 0 || cfg.Save == nil || cfg.Sessions == nil || cfg.Now == nil || cfg.Random == nil {
		return nil, errors.New("session tokens: Keys, Save, Sessions, Now and Random are required")
	}
	ids := make(map[string]bool)
	for _, k := range cfg.Keys {
		if k.ID == "" || len(k.Seed) != SigningKeySize || ids[k.ID] {
			return nil, fmt.Errorf("session tokens: signing key %q: want an id of its own and %d bytes", k.ID, SigningKeySize)
		}
		ids[k.ID] = true
	}
	s := &Sessions{cfg: cfg, keys: newestFirst(slices.Clone(cfg.Keys))}
	s.parser = jwt.NewParser(
		jwt.WithValidMethods([]string{jwt.SigningMethodEdDSA.Alg()}), jwt.WithStrictDecoding(), jwt.WithExpirationRequired(), jwt.WithIssuedAt(),
		jwt.WithIssuer(sessionIssuer), jwt.WithAudience(sessionAudience), jwt.WithLeeway(sessionLeeway), jwt.WithTimeFunc(cfg.Now),
	)
	return s, nil
}

// NewSigningKey makes a key.
func NewSigningKey(random io.Reader, now time.Time) (SigningKey, error) {
	raw := make([]byte, SigningKeySize+8)
	if _, err := io.ReadFull(random, raw); err != nil {
		return SigningKey{}, fmt.Errorf("signing key: %w", err)
	}
	return SigningKey{ID: fmt.Sprintf("%x", raw[SigningKeySize:]), Seed: raw[:SigningKeySize], CreatedAt: now.UTC()}, nil
}

// sessionClaims is what a session token holds.
type sessionClaims struct {
	jwt.RegisteredClaims
	Session string `json:"sid"`
}

// newestFirst sorts keys.
func newestFirst(keys []SigningKey) []SigningKey {
	slices.SortStableFunc(keys, func(a, b SigningKey) int { return b.CreatedAt.Compare(a.CreatedAt) })
	return keys
}

// living returns the keys of both lists that a valid token can be of at now, each once and the newest first.
func living(now time.Time, some, others []SigningKey) []SigningKey {
	all := newestFirst(slices.Concat(some, others))
	var keys []SigningKey
	for _, k := range all {
		known := slices.ContainsFunc(keys, func(have SigningKey) bool { return have.ID == k.ID })
		// A key was in use until the one after it was made; the newest is.
		if !known && (len(keys) == 0 || now.Sub(keys[len(keys)-1].CreatedAt) < SessionLife+sessionLeeway) {
			keys = append(keys, k)
		}
	}
	return keys
}

// Join takes part in the keys of all servers: from then on each has those of the others. With anew, they are replaced by this server's instead, which logs everybody out.
func (s *Sessions) Join(ctx context.Context, anew bool) error {
	if s.cfg.Shared == nil {
		return nil
	}
	others, err := s.cfg.Shared.Load(ctx)
	if err != nil {
		return fmt.Errorf("session tokens: %w", err)
	}
	s.mu.Lock()
	if !anew {
		s.keys = living(s.cfg.Now(), s.keys, others)
	}
	keys := slices.Clone(s.keys)
	s.mu.Unlock()
	if err := s.cfg.Shared.Store(ctx, keys, without(others, keys)); err != nil {
		return fmt.Errorf("session tokens: %w", err)
	}
	if err := s.cfg.Save(keys); err != nil {
		return fmt.Errorf("store the signing keys: %w", err)
	}
	return nil
}

// without returns the ids of keys that are not among those to keep.
func without(keys, keep []SigningKey) []string {
	var ids []string
	for _, k := range keys {
		if !slices.ContainsFunc(keep, func(kept SigningKey) bool { return kept.ID == k.ID }) {
			ids = append(ids, k.ID)
		}
	}
	return ids
}

// refresh takes up what other servers have stored until now, and returns all of that. Whoever comes while somebody else waits for an answer shares the next one, so that many
// made-up tokens ask one at a time.
func (s *Sessions) refresh(ctx context.Context) ([]SigningKey, error) {
	if s.cfg.Shared == nil {
		return nil, nil
	}
	want := s.begun.Load() + 1 // what was asked before may not have what is looked for
	s.loading.Lock()
	defer s.loading.Unlock()
	if s.loaded >= want {
		return s.shared, nil
	}
	n := s.begun.Add(1)
	keys, err := s.cfg.Shared.Load(ctx)
	if err != nil {
		return nil, err
	}
	s.loaded, s.shared = n, keys
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys = living(s.cfg.Now(), s.keys, keys)
	return keys, nil
}

// Sign makes a token for a session of a user, and says when it expires: after SessionLife, or with the session. id is the token's own.
func (s *Sessions) Sign(ctx context.Context, ses auth.Session, u auth.User, id string) (auth.Secret, time.Time, error) {
	if _, err := s.refresh(ctx); err != nil {
		return auth.Secret{}, time.Time{}, fmt.Errorf("sign a session token: %w", err)
	}
	now := s.cfg.Now()
	expires := now.Add(SessionLife)
	if ses.ExpiresAt.Before(expires) {
		expires = ses.ExpiresAt
	}
	s.mu.RLock()
	key := s.keys[0]
	s.mu.RUnlock()
	token := jwt.NewWithClaims(jwt.SigningMethodEdDSA, sessionClaims{
		RegisteredClaims: jwt.RegisteredClaims{
			Issuer: sessionIssuer, Audience: jwt.ClaimStrings{sessionAudience}, Subject: u.Subject(), ID: id,
			IssuedAt: jwt.NewNumericDate(now), NotBefore: jwt.NewNumericDate(now), ExpiresAt: jwt.NewNumericDate(expires),
		},
		Session: ses.ID,
	})
	token.Header["kid"], token.Header["typ"] = key.ID, sessionType
	text, err := token.SignedString(ed25519.NewKeyFromSeed(key.Seed))
	if err != nil {
		return auth.Secret{}, time.Time{}, fmt.Errorf("sign a session token: %w", err)
	}
	return auth.NewSecret(text), expires.UTC().Truncate(time.Second), nil
}

// Rotate makes a new key, stores it, and signs with it from now on. Keys before it go on verifying for as long as a token of theirs can be valid, and are then
// dropped by a later Rotate. It returns the new key's id.
func (s *Sessions) Rotate(ctx context.Context) (string, error) {
	s.rotating.Lock()
	defer s.rotating.Unlock()
	shared, err := s.refresh(ctx)
	if err != nil {
		return "", fmt.Errorf("read the signing keys: %w", err)
	}
	now := s.cfg.Now()
	fresh, err := NewSigningKey(s.cfg.Random, now)
	if err != nil {
		return "", err
	}
	s.mu.RLock()
	before := slices.Clone(s.keys)
	s.mu.RUnlock()
	if last := before[0].CreatedAt; !fresh.CreatedAt.After(last) { // the clock was set back, or is another server's
		fresh.CreatedAt = last.Add(time.Microsecond)
	}
	keys := living(now, []SigningKey{fresh}, before)
	if s.cfg.Shared != nil {
		if err := s.cfg.Shared.Store(ctx, keys, without(shared, keys)); err != nil {
			return "", fmt.Errorf("store the signing key: %w", err)
		}
	}
	if err := s.cfg.Save(keys); err != nil {
		return "", fmt.Errorf("store the signing key: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys = living(now, keys, s.keys)
	return fresh.ID, nil
}

// Name returns auth.BackendSession.
func (s *Sessions) Name() string { return auth.BackendSession }

// Recognises reports whether a credential looks like a JWT, which is all that can be a session token.
func (s *Sessions) Recognises(c auth.Credential) bool {
	text := c.Secret.Reveal()
	return c.Place == auth.PlaceBearer && strings.HasPrefix(text, "eyJ") && len(text) <= MaxToken && !strings.ContainsAny(text, "\r\n") // which decoders of base64 pass over
}

// Authenticate judges a session token. A credential that is not a JWT of this server is not applicable. One that is not good is CodeInvalidKey; that it has
// expired (CodeSessionExpired) or that its session has ended (CodeSessionEnded) is told only of a token that was good.
func (s *Sessions) Authenticate(ctx context.Context, c auth.Credential) (auth.Principal, error) {
	text := c.Secret.Reveal()
	if !s.Recognises(c) {
		return auth.Principal{}, auth.ErrNotApplicable
	}
	if _, iss, ok := peek(text); !ok || iss != sessionIssuer {
		return auth.Principal{}, auth.ErrNotApplicable
	}
	var claims sessionClaims
	var away error
	_, err := s.parser.ParseWithClaims(text, &claims, func(t *jwt.Token) (any, error) {
		key, err := s.verifier(t)
		if s.cfg.Shared == nil || !errors.Is(err, errUnknownKey) {
			return key, err
		}
		// Another server may have made it just now.
		if _, away = s.refresh(ctx); away != nil {
			return nil, away
		}
		return s.verifier(t)
	})
	if away != nil {
		return auth.Principal{}, core.Wrap(core.CodeAuthUnavailable, away, "sessions cannot be checked right now")
	}
	expired := err != nil && onlyExpired(err)
	if err != nil && !expired {
		return auth.Principal{}, refuse(err)
	}
	live, err := s.cfg.Sessions.LiveSession(ctx, claims.Session)
	switch core.CodeOf(err) {
	case "":
	case core.CodeNotFound:
		// Its user was deleted, or it ended so long ago that it was swept.
		return auth.Principal{}, auth.ErrSessionEnded()
	default:
		return auth.Principal{}, core.Wrap(core.CodeAuthUnavailable, err, "sessions cannot be checked right now")
	}
	if claims.Subject != live.User.Subject() || claims.ExpiresAt == nil {
		return auth.Principal{}, refuse(errors.New("session token is for another user than its session"))
	}
	if err := auth.CheckSession(&live, s.cfg.Now()); err != nil {
		return auth.Principal{}, err
	}
	if expired {
		return auth.Principal{}, core.Errorf(core.CodeSessionExpired, "the token expired; refresh it, or log in again")
	}
	return live.Principal(claims.ExpiresAt.Time), nil
}

// verifier returns the key that a token is verified with. Its header is held to what our own tokens have; nothing in it but the id of the key is used.
func (s *Sessions) verifier(t *jwt.Token) (any, error) {
	if t.Header["typ"] != sessionType || t.Header["crit"] != nil {
		return nil, errors.New("not a session token")
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, k := range s.keys {
		if t.Header["kid"] == k.ID {
			return ed25519.NewKeyFromSeed(k.Seed).Public(), nil
		}
	}
	return nil, errUnknownKey
}

// MarshalJSON writes a key as it is stored.
func (k SigningKey) MarshalJSON() ([]byte, error) {
	return json.Marshal(storedKey(k))
}

// UnmarshalJSON reads a stored key.
func (k *SigningKey) UnmarshalJSON(raw []byte) error {
	var stored storedKey
	if json.Unmarshal(raw, &stored) != nil {
		return errors.New("not a signing key") // the decoder's own error could quote the seed
	}
	*k = SigningKey(stored)
	return nil
}

type storedKey struct {
	ID        string    `json:"id"`
	Seed      []byte    `json:"seed"`
	CreatedAt time.Time `json:"created_at"`
}
