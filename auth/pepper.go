package auth

import (
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
)

// PepperSize is the length of a pepper in bytes.
const PepperSize = 32

// Pepper is the secret that key hashes depend on. It lives outside the database, so that a copy of the database, or even write access to it,
// is no help in forging a key. Peppers have versions: new keys use the newest, old keys keep the one they were made with.
type Pepper struct {
	newest   int
	versions map[int][]byte
}

// NewPepper returns a Pepper of the given versions, each PepperSize bytes; the highest number is the newest.
func NewPepper(versions map[int][]byte) (*Pepper, error) {
	if len(versions) == 0 {
		return nil, errors.New("pepper: no version given")
	}
	p := &Pepper{versions: make(map[int][]byte, len(versions))}
	for v, b := range versions {
		if len(b) != PepperSize {
			return nil, fmt.Errorf("pepper: version %d has %d bytes, want %d", v, len(b), PepperSize)
		}
		p.versions[v] = append([]byte(nil), b...)
		p.newest = max(p.newest, v)
	}
	return p, nil
}

// Newest returns the version that new keys are hashed with.
func (p *Pepper) Newest() int { return p.newest }

// Hash returns HMAC-SHA-256(pepper[version], key). ok is false when the version is not known.
func (p *Pepper) Hash(version int, key Secret) (sum [sha256.Size]byte, ok bool) {
	b, ok := p.versions[version]
	if !ok {
		return sum, false
	}
	mac := hmac.New(sha256.New, b)
	mac.Write([]byte(key.Reveal()))
	mac.Sum(sum[:0])
	return sum, true
}

// Fingerprints returns eight bytes of each version that tell it from others and nothing else of it, so that servers can compare what they
// have without showing it.
func (p *Pepper) Fingerprints() map[int][]byte {
	all := make(map[int][]byte, len(p.versions))
	for v, b := range p.versions {
		mac := hmac.New(sha256.New, b)
		mac.Write([]byte("keyfire pepper fingerprint"))
		all[v] = mac.Sum(nil)[:8]
	}
	return all
}
