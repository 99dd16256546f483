package core

import (
	"regexp"
	"time"
)

// Bounds of a secret's value, in bytes.
const (
	// MinSecret is so long because a shorter value could not be taken out of a log or an output without taking out innocent text too.
	MinSecret = 8
	MaxSecret = 16 << 10
	// MaxSecrets is how many an account may have.
	MaxSecrets = 1_000
)

// Secret is a value that nodes read by name when their workflow grants it. It has no field for the value: that is sealed before it is stored,
// and only the runtime opens it.
type Secret struct {
	Account   string
	Name      string
	CreatedAt time.Time
	UpdatedAt time.Time
	UpdatedBy string // actor, as in the audit event
}

var secretPattern = regexp.MustCompile(`^[A-Z][A-Z0-9_]{0,63}$`)

// ValidSecretName reports whether s may name a secret: an upper-case letter, then upper-case letters, digits and underscores, at most 64.
func ValidSecretName(s string) bool { return secretPattern.MatchString(s) }
