package core

import (
	"regexp"
	"strings"
	"time"
)

// Account is a tenant: it owns keys, workflows, modules, runs, secrets and users, and none of them is seen from another one.
type Account struct {
	ID          string // "acct_" + ULID; the name of DefaultAccount is "default"
	Name        string // what people and commands call it; unique on the server
	Title       string // for showing; may be ""
	CreatedAt   time.Time
	CreatedBy   string    // actor, as in the audit event
	DisabledAt  time.Time // zero: in use
	DisabledBy  string
	DisabledWhy string

	// RateLimits and MaxConcurrent hold for all runs of the account together, whoever starts them, beside the limits of each key.
	RateLimits    []RateLimit
	MaxConcurrent int64 // runs that have not ended; 0: no limit
	// RateState is the state of each rate limit, by name. See [RateLimit.Take].
	RateState map[string]int64
}

// Limited reports whether the account has limits.
func (a *Account) Limited() bool { return len(a.RateLimits) > 0 || a.MaxConcurrent > 0 }

// Disabled reports whether nothing and nobody of the account may do anything.
func (a *Account) Disabled() bool { return !a.DisabledAt.IsZero() }

var accountName = regexp.MustCompile(`^[a-z][a-z0-9-]{0,62}$`)

// ValidAccountName reports whether s may name an account: a lower-case letter, then up to 62 letters, digits and hyphens.
func ValidAccountName(s string) bool { return accountName.MatchString(s) }

var userName = regexp.MustCompile(`^[a-z0-9][a-z0-9._@+-]{0,127}$`)

// ValidUserName reports whether s may name a user: a lower-case letter or digit, then up to 127 of these and of . _ @ + -. What looks like
// the id of a user is not a name.
func ValidUserName(s string) bool {
	return userName.MatchString(s) && !strings.HasPrefix(s, PrefixUser)
}

// ErrAccountDisabled is what whoever belongs to a disabled account is told, once it has proved that it does.
func ErrAccountDisabled() *Error {
	return Errorf(CodeAccountDisabled, "this account is disabled; ask the operator of the server")
}
