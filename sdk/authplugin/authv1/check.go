package authv1

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Check returns nil for an answer that keeps the protocol: exactly one verdict, within the bounds, in text that prints. Of an answer that
// is wrong in one place no other place can be trusted, so the server treats it as no answer at all.
func (x *AuthenticateResponse) Check() error {
	verdicts := 0
	for _, given := range []bool{x.GetAllow() != nil, x.GetDeny() != nil, x.GetNotMine() != nil} {
		if given {
			verdicts++
		}
	}
	switch {
	case verdicts != 1:
		return fmt.Errorf("answer holds %d verdicts, want one", verdicts)
	case x.GetAllow() != nil:
		return x.GetAllow().check()
	case x.GetDeny() != nil:
		return x.GetDeny().check()
	}
	return nil
}

func (x *Denial) check() error {
	if !Printable(x.GetReason(), 0, MaxReason) {
		return fmt.Errorf("the reason of a refusal must be at most %d printable characters", MaxReason)
	}
	if ttl := x.GetTtlSeconds(); ttl < 0 || ttl > MaxDenialTTL {
		return fmt.Errorf("the time of a refusal must be 0 to %d seconds, not %d", MaxDenialTTL, ttl)
	}
	return nil
}

func (x *Principal) check() error {
	switch {
	case !Printable(x.GetSubject(), 1, MaxSubject):
		return fmt.Errorf("a subject must be 1 to %d printable characters", MaxSubject)
	case !Printable(x.GetAccount(), 0, MaxSubject):
		return fmt.Errorf("an account must be at most %d printable characters", MaxSubject)
	case len(x.GetScopes()) > MaxScopes:
		return fmt.Errorf("%d scopes, at most %d are allowed", len(x.GetScopes()), MaxScopes)
	case len(x.GetAttributes()) > MaxAttributes:
		return fmt.Errorf("%d attributes, at most %d are allowed", len(x.GetAttributes()), MaxAttributes)
	case x.GetExpiresAtUnix() < 0:
		return errors.New("expires_at_unix is negative")
	}
	for _, s := range x.GetScopes() {
		if !Printable(s, 1, MaxScope) || strings.ContainsRune(s, ' ') {
			return fmt.Errorf("a scope must be 1 to %d printable characters without a space", MaxScope)
		}
	}
	for k, v := range x.GetAttributes() {
		if !Printable(k, 1, MaxAttributeName) || len(v) > MaxAttribute || !Printable(v, 0, MaxAttribute) {
			return fmt.Errorf("an attribute must have a name of 1 to %d and a value of at most %d characters that print", MaxAttributeName, MaxAttribute)
		}
	}
	return nil
}

// Printable reports whether s has between least and most characters, all of which print. Text of plugins reaches logs, audit rows and
// callers, where a line break or an escape sequence would forge.
func Printable(s string, least, most int) bool {
	n := 0
	for _, r := range s {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return false
		}
		n++
	}
	return n >= least && n <= most
}
