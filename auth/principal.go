package auth

import (
	"context"
	"errors"
	"time"

	"github.com/keyfire/keyfire/core"
)

// BackendWebhook is the backend of principals that have signed a webhook, as its workflow demands: its body, and nothing else that it says.
const BackendWebhook = "webhook"

// Principal is who a credential turned out to be and what it may do. It is a value: copies are independent but for Scopes and
// Attributes, which must not be changed.
type Principal struct {
	Account string
	Subject string // namespaced by backend: "key:key_01...", "user:usr_01...", "uid:1000"
	Backend string // the authenticator that decided: "apikey", "session", "socket", ...
	Scopes  []string

	// Attributes are facts about the identity that belong in the run and the audit log, such as repo, ref and actor of a CI
	// job. They grant nothing.
	Attributes map[string]string
	// ExpiresAt is when the proof of identity ends, zero when it has no end of its own. A principal past it is an error.
	ExpiresAt time.Time

	// Key is set when the principal is a built-in key. Its counters are as of the look-up; only the admission transaction
	// decides by them. SecretID is the public id of the text that proved it.
	Key      *Key
	SecretID string
	// User and Session are set when the principal is a person who has logged in.
	User    *User
	Session *Session
}

// Sign writes into an audit event that the principal is who did it, with its key if it has one, in the account that it acts for.
func (p *Principal) Sign(e *core.AuditEvent) {
	e.Account, e.Actor = p.Account, p.Subject
	if p.Key != nil {
		e.KeyID = p.Key.ID
	}
}

// ErrNotApplicable is an authenticator's answer to a credential that is not of its kind. The chain then asks the next one.
var ErrNotApplicable = errors.New("credential is not for this authenticator")

// Authenticator decides about one kind of credential. Authenticate returns a principal, or ErrNotApplicable, or another error
// that stops the chain: a *core.Error with CodeInvalidKey and its relatives for a bad credential, with CodeAuthUnavailable when it cannot decide.
// Implementations are safe for concurrent use and honour ctx.
type Authenticator interface {
	// Name identifies the authenticator in spans, runs and audit events.
	Name() string
	Authenticate(ctx context.Context, c Credential) (Principal, error)
}
