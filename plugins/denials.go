package plugins

import (
	"crypto/sha256"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/keyfire/keyfire/sdk/authplugin/authv1"
)

// maxDenials bounds the refusals remembered for one process of a plugin.
const maxDenials = 4096

// denials remembers refusals that a process of a plugin asked to be remembered, by the digest of the whole request it saw, so that no other request
// is ever answered with them, and no successor of the process, which may know better. There is no such memory for principals anywhere.
type denials struct {
	now func() time.Time

	mu      sync.Mutex
	entries map[[sha256.Size]byte]denial
}

type denial struct {
	reason string
	until  time.Time
}

// keyOf returns the digest of everything in r, which must not have a traceparent yet.
func keyOf(r *authv1.AuthenticateRequest) [sha256.Size]byte {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(r)
	if err != nil {
		b = nil // not valid UTF-8: gRPC will refuse to send it, so there will be no refusal to remember
	}
	return sha256.Sum256(b)
}

func (d *denials) find(key [sha256.Size]byte) (reason string, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	e, ok := d.entries[key]
	if !ok || !d.now().Before(e.until) {
		return "", false
	}
	return e.reason, true
}

func (d *denials) remember(key [sha256.Size]byte, reason string, ttl time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.now()
	if d.entries == nil {
		d.entries = make(map[[sha256.Size]byte]denial)
	}
	if len(d.entries) >= maxDenials {
		for k, e := range d.entries {
			if !now.Before(e.until) {
				delete(d.entries, k)
			}
		}
		for k := range d.entries {
			if len(d.entries) < maxDenials {
				break
			}
			delete(d.entries, k) // any will do: forgetting one costs a call
		}
	}
	d.entries[key] = denial{reason: reason, until: now.Add(ttl)}
}

func (d *denials) empty() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.entries) == 0
}
