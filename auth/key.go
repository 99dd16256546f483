package auth

import (
	"slices"
	"strings"
	"time"
)

// Key is a built-in API key as the store holds it: everything but its text.
type Key struct {
	ID          string // "key_" + ULID; names the key in the API and in audit events
	Account     string
	Type        KeyType
	PublicID    string // the 12 characters of the text by which the row is found
	Hash        []byte // HMAC-SHA-256(pepper, text)
	Pepper      int    // version of the pepper
	Last4       string
	Name        string
	Description string
	Scopes      []string // see Scope grammar on AllowsWorkflow
	AllowQuery  bool
	MaxRuns     int64 // 0: no limit
	RunsUsed    int64 // always the number of runs the key has started
	CreatedAt   time.Time
	CreatedBy   string
	ExpiresAt   time.Time // zero: never
	RevokedAt   time.Time // zero: not revoked
	RevokedBy   string
	RevokedWhy  string
	LastUsedAt  time.Time // zero: never; up to a minute late
}

// Mask returns what may be shown of the key's text.
func (k *Key) Mask() string { return maskKey(k.Type, k.PublicID, k.Last4) }

// KeyState is what a key may currently do.
type KeyState string

// The states of a key.
const (
	KeyActive  KeyState = "active"
	KeyExpired KeyState = "expired"
	KeyRevoked KeyState = "revoked"
)

// State returns the state of the key at the given time. Revocation outweighs expiry: it is the fact an operator asks about.
func (k *Key) State(now time.Time) KeyState {
	switch {
	case !k.RevokedAt.IsZero():
		return KeyRevoked
	case !k.ExpiresAt.IsZero() && !now.Before(k.ExpiresAt):
		return KeyExpired
	}
	return KeyActive
}

// Scopes are "action:resource". These are the ones a key can hold.
const (
	ScopeRunAll         = "run:*"           // trigger every workflow of the account that admits account-wide keys
	ScopeRunWorkflow    = "run:workflow/"   // + workflow id: trigger that workflow
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

// WorkflowScopes returns the ids of the workflows that scopes name one by one.
func WorkflowScopes(scopes []string) []string {
	var ids []string
	for _, s := range scopes {
		if id, ok := strings.CutPrefix(s, ScopeRunWorkflow); ok {
			ids = append(ids, id)
		}
	}
	return ids
}
