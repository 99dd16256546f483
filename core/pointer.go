package core

import "strings"

// EscapePointer writes a name as one step of a JSON pointer (RFC 6901), and UnescapePointer reads it back.
func EscapePointer(name string) string {
	return strings.ReplaceAll(strings.ReplaceAll(name, "~", "~0"), "/", "~1")
}

// UnescapePointer returns the name that a step of a JSON pointer stands for.
func UnescapePointer(step string) string {
	return strings.ReplaceAll(strings.ReplaceAll(step, "~1", "/"), "~0", "~")
}
