package auth

import (
	"regexp"
	"strings"
)

// keyText matches a built-in key or token, or most of one, in other text: kft_ and kfa_ are keys, kfr_ and kfs_ tokens, and eyJ begins a session token.
var keyText = regexp.MustCompile(`kf[tars]_[0-9A-Za-z]{8,}|eyJ[0-9A-Za-z_-]{8,}\.[0-9A-Za-z_.-]+`)

// Redact takes the texts of keys and tokens, and of most of one, out of text that somebody else wrote. Whatever of a request is logged, stored or
// answered goes through it: callers paste keys into paths, names and headers. It does not know the keys of other products, which have no shape.
func Redact(s string) string {
	if !strings.Contains(s, "kf") && !strings.Contains(s, "eyJ") {
		return s
	}
	return keyText.ReplaceAllStringFunc(s, func(key string) string {
		if key[0] == 'e' {
			return "[redacted]"
		}
		return key[:4] + "[redacted]"
	})
}
