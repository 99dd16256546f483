package auth

import (
	"net/netip"
	"slices"
	"time"

	"github.com/keyfire/keyfire/core"
)

// Key is a built-in API key as the store holds it: everything but its text. Its text may be replaced (see [KeySecret]); the key, its id and its
// counters stay.
type Key struct {
	ID      string // "key_" + ULID; names the key in the API and in audit events
	Account string
	Type    KeyType
	// PublicID, Hash, Pepper, Last4 and Imported are those of its newest secret. See [KeySecret].
	PublicID       string
	Hash           []byte
	Pepper         int
	Last4          string
	Imported       bool
	Name           string
	Description    string
	Scopes         []string // see [Reach]
	AllowQuery     bool
	AllowedIPs     []netip.Prefix // where it may be used from; empty is anywhere
	AllowedOrigins []string       // web origins whose pages may use it; empty is none
	Metadata       map[string]string
	MaxRuns        int64        // 0: no limit
	RunsUsed       int64        // always the number of runs the key has started
	Credited       int64        // runs that refills have given back
	Refill         *core.Refill // nil: never
	RefillAt       time.Time    // the next refill, zero without one
	RateLimits     []core.RateLimit
	MaxConcurrent  int64 // runs at once; 0: no limit
	CreatedAt      time.Time
	CreatedBy      string
	UpdatedAt      time.Time
	ExpiresAt      time.Time // zero: never
	DisabledAt     time.Time // zero: not disabled
	DisabledBy     string
	DisabledWhy    string
	RevokedAt      time.Time // zero: not revoked
	RevokedBy      string
	RevokedWhy     string
	LastUsedAt     time.Time // zero: never; up to a minute late
	// Revision counts the changes to everything above but the counters, from 1. An admission that was prepared with an older one is not made.
	Revision int64
	// RateState is the state of each rate limit, by name. See [core.RateLimit.Take].
	RateState map[string]int64
}

// KeySecret is one of the texts that prove a key: the newest, or one that was rotated out and still works for a while.
type KeySecret struct {
	PublicID   string // found by this: the 12 characters in a key's text, or what [Pepper.ImportID] makes of an imported one
	KeyID      string
	Hash       []byte // HMAC-SHA-256(pepper, text), of an imported one HMAC-SHA-256(pepper, SHA-256(text))
	Pepper     int    // version of the pepper
	Last4      string
	Imported   bool
	CreatedAt  time.Time
	CreatedBy  string
	ExpiresAt  time.Time // zero: with the key; otherwise the end of the overlap after a rotation
	LastUsedAt time.Time // zero: never; up to a minute late
	LastSource string    // address of its last use
	LastAgent  string    // user agent of its last use
}

// Mask returns what may be shown of the text: "kft_<id>...<last four>", and of an imported one "...<last four>".
func (s *KeySecret) Mask(t KeyType) string { return maskSecret(t, s.PublicID, s.Last4, s.Imported) }

// Mask returns what may be shown of the key's newest text.
func (k *Key) Mask() string { return maskSecret(k.Type, k.PublicID, k.Last4, k.Imported) }

func maskSecret(t KeyType, id, last4 string, imported bool) string {
	switch {
	case !imported:
		return "kf" + string(t) + "_" + id + "..." + last4
	case last4 == "":
		return "(imported)"
	}
	return "..." + last4
}

// Quota returns where the key stands with the runs it may start in all.
func (k *Key) Quota() core.Quota {
	return core.Quota{Max: k.MaxRuns, Used: k.RunsUsed, Credited: k.Credited, Refill: k.Refill, RefillAt: k.RefillAt}
}

// Secret returns the newest secret of a key that was not used yet.
func (k *Key) Secret() KeySecret {
	return KeySecret{
		PublicID: k.PublicID, KeyID: k.ID, Hash: k.Hash, Pepper: k.Pepper, Last4: k.Last4, Imported: k.Imported, CreatedAt: k.CreatedAt, CreatedBy: k.CreatedBy,
	}
}

// Limited reports whether the key has limits other than a number of runs in all, which take more than one statement to charge.
func (k *Key) Limited() bool {
	return len(k.RateLimits) > 0 || k.MaxConcurrent > 0 || k.Refill != nil
}

// KeyState is what a key may currently do.
type KeyState string

// The states of a key.
const (
	KeyActive   KeyState = "active"
	KeyExpired  KeyState = "expired"
	KeyRevoked  KeyState = "revoked"
	KeyDisabled KeyState = "disabled"
	KeyOrphaned KeyState = "orphaned" // active, but every workflow it is for is gone; only lists say so, by looking
)

// State returns the state of the key at the given time. Revocation outweighs the rest, and being switched off outweighs expiry: the
// strongest is the fact an operator asks about.
func (k *Key) State(now time.Time) KeyState {
	switch {
	case !k.RevokedAt.IsZero():
		return KeyRevoked
	case !k.DisabledAt.IsZero():
		return KeyDisabled
	case !k.ExpiresAt.IsZero() && !now.Before(k.ExpiresAt):
		return KeyExpired
	}
	return KeyActive
}

// AllowsSource reports whether the key may be used from an address. One with a list may not be used where there is no address to go by, such as
// the local socket.
func (k *Key) AllowsSource(from netip.Addr) bool {
	if len(k.AllowedIPs) == 0 {
		return true
	}
	from = from.Unmap().WithZone("")
	return slices.ContainsFunc(k.AllowedIPs, func(p netip.Prefix) bool { return p.Contains(from) })
}

// Scopes are "action:resource". These are the ones a key can hold.
const (
	ScopeRunAll         = "run:*"           // trigger every workflow of the account that admits account-wide keys
	ScopeRunWorkflow    = "run:workflow/"   // + workflow id: trigger that workflow; + "billing/*": every workflow below that name
	ScopeRunsRead       = "runs:read"       // read every run of the account
	ScopeWorkflowsRead  = "workflows:read"  // read workflows and modules
	ScopeWorkflowsWrite = "workflows:write" // publish, enable, disable
	ScopeKeysRead       = "keys:read"       // list and show keys
	ScopeKeysWrite      = "keys:write"      // create and revoke keys
	ScopeSecretsRead    = "secrets:read"    // list the names of secrets; nobody reads values
	ScopeSecretsWrite   = "secrets:write"   // set and remove secrets
	ScopeAuditRead      = "audit:read"      // read the audit log
	ScopePluginsRead    = "plugins:read"    // see the server's auth plugins and what they write
	ScopePluginsWrite   = "plugins:write"   // reload them
)

// AdminScopes returns what an admin key holds when it is made without a narrower list.
func AdminScopes() []string {
	return []string{
		ScopeRunAll, ScopeRunsRead, ScopeWorkflowsRead, ScopeWorkflowsWrite, ScopeKeysRead, ScopeKeysWrite, ScopeSecretsRead, ScopeSecretsWrite, ScopeAuditRead,
		ScopePluginsRead, ScopePluginsWrite, ScopeUsersRead, ScopeUsersWrite,
	}
}

// Allows reports whether scopes contain the given one, by exact match.
func Allows(scopes []string, scope string) bool { return slices.Contains(scopes, scope) }
