package auth

import (
	"fmt"
	"hash/crc32"
	"io"
)

// KeyType is what a key is for. It is part of the key's text, so a trigger key can never be taken for an admin key.
type KeyType string

// The types of keys.
const (
	TriggerKey KeyType = "t" // kft_: starts runs
	AdminKey   KeyType = "a" // kfa_: uses the control plane
)

// A key's text is "kf", its type, "_", a public id, a secret and a check, in base62 throughout: 54 characters of which only the
// 32 of the secret are secret (190 bits). The check is the CRC-32 (IEEE) of everything before it, so that a scanner can tell a
// key from look-alikes offline, and a typing error costs no look-up.
const (
	prefixLen = 4
	idLen     = 12
	secretLen = 32
	checkLen  = 6
	keyLen    = prefixLen + idLen + secretLen + checkLen
)

const base62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

// KeyText is a key's text taken apart. Only ParseKey and GenerateKey make one, so its check is right.
type KeyText struct {
	Type   KeyType
	ID     string // public id, 12 characters
	Last4  string // the last four characters, shown in masks
	secret Secret // the whole text
}

// Secret returns the whole text of the key.
func (k KeyText) Secret() Secret { return k.secret }

// GenerateKey makes a new key from random, which must be a cryptographic source such as crypto/rand.Reader.
// It fails only when random does.
func GenerateKey(t KeyType, random io.Reader) (KeyText, error) {
	body := make([]byte, 0, keyLen)
	body = append(body, 'k', 'f')
	body = append(body, t...)
	body = append(body, '_')
	body, err := appendBase62(body, random, idLen+secretLen)
	if err != nil {
		return KeyText{}, fmt.Errorf("generate key: %w", err)
	}
	body = appendCheck(body)
	return splitKey(string(body)), nil
}

// appendBase62 appends n characters by rejection sampling: 62 does not divide 256, and taking bytes modulo 62 would make some
// characters more likely than others.
func appendBase62(dst []byte, random io.Reader, n int) ([]byte, error) {
	var buf [64]byte
	for n > 0 {
		if _, err := io.ReadFull(random, buf[:]); err != nil {
			return nil, err
		}
		for _, b := range buf {
			if b >= 62*4 {
				continue
			}
			dst = append(dst, base62[b%62])
			if n--; n == 0 {
				break
			}
		}
	}
	return dst, nil
}

func appendCheck(body []byte) []byte {
	sum := crc32.ChecksumIEEE(body)
	var check [checkLen]byte
	for i := checkLen - 1; i >= 0; i-- {
		check[i] = base62[sum%62]
		sum /= 62
	}
	return append(body, check[:]...)
}

// ParseKey takes a key's text apart and verifies its check. It does no I/O, and it reports only whether the text is a
// well-formed key: telling a caller why it is not would help nobody but a guesser.
func ParseKey(text Secret) (KeyText, bool) {
	s := text.Reveal()
	if !likeOurKey(s) || !wellFormed(s) {
		return KeyText{}, false
	}
	return splitKey(s), true
}

// wellFormed reports whether s has the length of a key, behind its prefix nothing but base62, and at its end the right check.
func wellFormed(s string) bool {
	if len(s) != keyLen {
		return false
	}
	for i := prefixLen; i < keyLen; i++ {
		c := s[i]
		if (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return string(appendCheck([]byte(s[:keyLen-checkLen]))) == s
}

func splitKey(s string) KeyText {
	return KeyText{
		Type:   KeyType(s[2:3]),
		ID:     s[prefixLen : prefixLen+idLen],
		Last4:  s[keyLen-4:],
		secret: NewSecret(s),
	}
}
