package auth

import (
	"crypto/subtle"
	"fmt"
	"io"
	"strings"
)

// TokenKind is what an opaque token is for. It is part of the token's text, so one kind can never be taken for another, nor for a key.
type TokenKind string

// The kinds of tokens. Their texts have the shape of a key's, so that scanners find leaked ones and logs hide them by the same rule.
const (
	RefreshKind TokenKind = "r" // kfr_: continues a session, once
	SetupKind   TokenKind = "s" // kfs_: makes the first superuser, once
)

// TokenText is an opaque token taken apart. Only ParseToken and GenerateToken make one, so its check is right.
type TokenText struct {
	Kind   TokenKind
	ID     string // public id, 12 characters
	secret Secret // the whole text
}

// Secret returns the whole text.
func (t TokenText) Secret() Secret { return t.secret }

// GenerateToken makes a new token from random, which must be a cryptographic source. It fails only when random does.
func GenerateToken(kind TokenKind, random io.Reader) (TokenText, error) {
	body := append(make([]byte, 0, keyLen), "kf"+string(kind)+"_"...)
	body, err := appendBase62(body, random, idLen+secretLen)
	if err != nil {
		return TokenText{}, fmt.Errorf("generate token: %w", err)
	}
	return splitToken(kind, string(appendCheck(body))), nil
}

// ParseToken takes a token's text apart and verifies its check. It reports only whether the text is a well-formed token of the kind.
func ParseToken(kind TokenKind, text Secret) (TokenText, bool) {
	s := text.Reveal()
	if !strings.HasPrefix(s, "kf"+string(kind)+"_") || !wellFormed(s) {
		return TokenText{}, false
	}
	return splitToken(kind, s), true
}

func splitToken(kind TokenKind, s string) TokenText {
	return TokenText{Kind: kind, ID: s[prefixLen : prefixLen+idLen], secret: NewSecret(s)}
}

// Matches reports whether text is what hash was made of under the pepper's version. It takes the same time whether it is or not.
func (p *Pepper) Matches(version int, hash []byte, text Secret) bool {
	sum, ok := p.Hash(version, text)
	return subtle.ConstantTimeCompare(sum[:], hash) == 1 && ok
}
