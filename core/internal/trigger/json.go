package trigger

import (
	"bytes"
	"cmp"
	"encoding/json"
	"strings"
)

// decodeExact decodes JSON without rounding its numbers.
func decodeExact(raw json.RawMessage) (any, error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var v any
	err := d.Decode(&v)
	return v, err
}

// escapePointer escapes a member name for use in an RFC 6901 pointer.
func escapePointer(s string) string {
	return strings.NewReplacer("~", "~0", "/", "~1").Replace(s)
}

func compare(a, b string) int { return cmp.Compare(a, b) }
