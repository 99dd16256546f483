package auth

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"slices"
	"sync"
)

// PepperSize is the length of a pepper in bytes.
const PepperSize = 32

// Pepper is the secret that key hashes depend on. It lives outside the database, so that a copy of the database, or even write access to it,
// is no help in forging a key. Peppers have versions: new keys use the newest, old keys keep the one they were made with.
type Pepper struct {
	newest   int
	versions map[int]*pepperVersion
}

// pepperVersion is one version, and the states of its HMAC that are not in use: to make one takes as long as two short messages.
type pepperVersion struct {
	secret []byte
	macs   sync.Pool
}

// NewPepper returns a Pepper of the given versions, each PepperSize bytes; the highest number is the newest.
func NewPepper(versions map[int][]byte) (*Pepper, error) {
	if len(versions) == 0 {
		return nil, errors.New("pepper: no version given")
	}
	p := &Pepper{versions: make(map[int]*pepperVersion, len(versions))}
	for v, b := range versions {
		if len(b) != PepperSize {
			return nil, fmt.Errorf("pepper: version %d has %d bytes, want %d", v, len(b), PepperSize)
		}
		secret := append([]byte(nil), b...)
		p.versions[v] = &pepperVersion{secret: secret, macs: sync.Pool{New: func() any { return hmac.New(sha256.New, secret) }}}
		p.newest = max(p.newest, v)
	}
	return p, nil
}

// Format implements fmt.Formatter and hides the peppers from every verb.
func (p *Pepper) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// Newest returns the version that new keys are hashed with.
func (p *Pepper) Newest() int { return p.newest }

// Hash returns HMAC-SHA-256(pepper[version], key). ok is false when the version is not known.
func (p *Pepper) Hash(version int, key Secret) (sum [sha256.Size]byte, ok bool) {
	return p.mac(version, "", []byte(key.Reveal()))
}

// Fingerprints returns eight bytes of each version that tell it from others and nothing else of it, so that servers can compare what they
// have without showing it.
func (p *Pepper) Fingerprints() map[int][]byte {
	all := make(map[int][]byte, len(p.versions))
	for v, b := range p.versions {
		mac := hmac.New(sha256.New, b.secret)
		mac.Write([]byte("keyfire pepper fingerprint"))
		all[v] = mac.Sum(nil)[:8]
	}
	return all
}

// Versions returns the versions, the newest first.
func (p *Pepper) Versions() []int {
	all := slices.Sorted(maps.Keys(p.versions))
	slices.Reverse(all)
	return all
}

// ImportID returns what an imported secret is found by, given the SHA-256 of its text. Like the hash it depends on the pepper: the texts of other
// products may be short enough to guess, and neither column shall confirm a guess. ok is false when the version is not known.
func (p *Pepper) ImportID(version int, digest [sha256.Size]byte) (id string, ok bool) {
	sum, ok := p.mac(version, "keyfire: id of an imported secret", digest[:])
	return importPrefix + hex.EncodeToString(sum[:16]), ok
}

// ImportHash returns HMAC-SHA-256(pepper[version], digest), the hash of an imported secret whose text has this SHA-256. ok is false when the version is
// not known.
func (p *Pepper) ImportHash(version int, digest [sha256.Size]byte) (sum [sha256.Size]byte, ok bool) {
	return p.mac(version, "", digest[:])
}

// SealKey returns a key for the seals of the audit log, made from the pepper, so that who has the database alone cannot make seals. ok is false when the version is not known.
func (p *Pepper) SealKey(version int) (key []byte, ok bool) {
	sum, ok := p.mac(version, "keyfire: key of the audit seals", nil)
	return sum[:], ok
}

// importPrefix begins the ids of imported secrets. No id in a key's text has a hyphen.
const importPrefix = "i-"

func (p *Pepper) mac(version int, label string, message []byte) (sum [sha256.Size]byte, ok bool) {
	b, ok := p.versions[version]
	if !ok {
		return sum, false
	}
	mac := b.macs.Get().(hash.Hash)
	mac.Write([]byte(label))
	mac.Write(message)
	mac.Sum(sum[:0])
	mac.Reset()
	b.macs.Put(mac)
	return sum, true
}
