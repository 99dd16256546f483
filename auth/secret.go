package auth

import (
	"crypto/subtle"
	"log/slog"
)

// redacted is what every formatting verb, encoder and logger sees of a Secret.
const redacted = "[redacted]"

// Secret is text that must never be printed: a key, a token, a password. It prints, formats, marshals and logs as "[redacted]";
// Reveal is the one way to its text, so every use of the text can be found by searching for that word.
//
// The zero Secret is empty. A Secret is an ordinary immutable value and safe for concurrent use.
type Secret struct{ text string }

// NewSecret wraps text.
func NewSecret(text string) Secret { return Secret{text} }

// Reveal returns the text. Its callers must neither log nor store it.
func (s Secret) Reveal() string { return s.text }

// Empty reports whether there is no text.
func (s Secret) Empty() bool { return s.text == "" }

// Equal compares in time that depends only on the lengths.
func (s Secret) Equal(t Secret) bool {
	return subtle.ConstantTimeCompare([]byte(s.text), []byte(t.text)) == 1
}

// String implements fmt.Stringer and hides the text.
func (s Secret) String() string { return redacted }

// GoString implements fmt.GoStringer and hides the text from %#v.
func (s Secret) GoString() string { return redacted }

// LogValue implements slog.LogValuer and hides the text.
func (s Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText implements encoding.TextMarshaler and hides the text from every encoder.
func (s Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }
