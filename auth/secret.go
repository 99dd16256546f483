package auth

import (
	"crypto/subtle"
	"fmt"
	"io"
	"log/slog"
)

// redacted is what every formatting verb, encoder and logger sees of a Secret.
const redacted = "[redacted]"

// Secret is text that must never be printed: a key, a token, a password. It prints, formats, marshals and logs as "[redacted]";
// Reveal is the one way to its text, so every use of the text can be found by searching for that word.
//
// The zero Secret is empty. A Secret is an ordinary immutable value and safe for concurrent use.
//
// The text is behind a pointer because fmt prints the fields of a field it cannot call methods on, which an unexported Secret in
// another struct is: it then shows an address. Compare Secrets with Equal, never with ==.
type Secret struct{ text *string }

// NewSecret wraps text.
func NewSecret(text string) Secret { return Secret{&text} }

// Reveal returns the text. Its callers must neither log nor store it.
func (s Secret) Reveal() string {
	if s.text == nil {
		return ""
	}
	return *s.text
}

// Empty reports whether there is no text.
func (s Secret) Empty() bool { return s.Reveal() == "" }

// Equal compares in time that depends only on the lengths.
func (s Secret) Equal(t Secret) bool {
	return subtle.ConstantTimeCompare([]byte(s.Reveal()), []byte(t.Reveal())) == 1
}

// String implements fmt.Stringer and hides the text.
func (s Secret) String() string { return redacted }

// Format implements fmt.Formatter and hides the text from every verb: %d would otherwise print the field.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// LogValue implements slog.LogValuer and hides the text.
func (s Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText implements encoding.TextMarshaler and hides the text from every encoder.
func (s Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }
