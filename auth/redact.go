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
	if !mayHoldKey(s) {
		return s
	}
	return keyText.ReplaceAllStringFunc(s, func(key string) string {
		if key[0] == 'e' {
			return "[redacted]"
		}
		return key[:4] + "[redacted]"
	})
}

// mayHoldKey spares most texts the expression: every path of a workflow has "kf" in it.
func mayHoldKey(s string) bool {
	if strings.Contains(s, "eyJ") {
		return true
	}
	for {
		_, after, found := strings.Cut(s, "kf")
		switch {
		case !found:
			return false
		case len(after) > 1 && after[1] == '_':
			return true
		}
		s = after
	}
}
