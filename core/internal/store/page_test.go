package store

import (
	"testing"

	"github.com/keyfire/keyfire/core"
)

// FuzzCursor checks that nothing but a cursor of the very list is taken for one.
func FuzzCursor(f *testing.F) {
	seal := cursorSeal{key: []byte("0123456789abcdef0123456789abcdef")}
	good := seal.encode("runs", "acct", "run_01jd3v6q8k2m4n5p7r9s1t3v5w")
	for _, c := range []string{good, good[1:], good + "A", "", "AAAA", "====", "\x00", seal.encode("runsacct", "", "x"), seal.encode("audit", "acct", "7")} {
		f.Add(c)
	}
	f.Fuzz(func(t *testing.T, cursor string) {
		position, err := seal.decode("runs", "acct", cursor)
		if err != nil {
			if core.CodeOf(err) != core.CodeInvalidRequest {
				t.Errorf("error = %v, want invalid_request", err)
			}
			return
		}
		if seal.encode("runs", "acct", position) != cursor {
			t.Errorf("cursor %q was taken for position %q, which has another cursor", cursor, position)
		}
	})
}
