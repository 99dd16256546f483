package admin

import (
	"bytes"
	"strings"
	"testing"
)

func TestVault(t *testing.T) {
	t.Parallel()
	v, err := NewVault(bytes.Repeat([]byte{7}, VaultKeySize))
	if err != nil {
		t.Fatal(err)
	}
	const value = "t0ps3cret-ü"
	sealed := v.Seal("acct", "TOKEN", value)
	if bytes.Contains(sealed, []byte("t0ps3cret")) {
		t.Error("the sealed value holds the value")
	}
	if bytes.Equal(sealed, v.Seal("acct", "TOKEN", value)) {
		t.Error("sealing twice gives the same bytes")
	}
	if got, err := v.Open("acct", "TOKEN", sealed); err != nil || got != value {
		t.Errorf("%q, %v", got, err)
	}
	for what, place := range map[string][2]string{"another account": {"acct2", "TOKEN"}, "another name": {"acct", "TOKEN2"}, "shifted": {"acctT", "OKEN"}} {
		if got, err := v.Open(place[0], place[1], sealed); err == nil {
			t.Errorf("opened for %s: %q", what, got)
		}
	}
	for i := range sealed {
		changed := bytes.Clone(sealed)
		changed[i] ^= 1
		if got, err := v.Open("acct", "TOKEN", changed); err == nil {
			t.Errorf("opened with byte %d changed: %q", i, got)
		}
	}
	if _, err := v.Open("acct", "TOKEN", nil); err == nil {
		t.Error("opened nothing")
	}
	other, err := NewVault(bytes.Repeat([]byte{8}, VaultKeySize))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Open("acct", "TOKEN", sealed); err == nil || !strings.Contains(err.Error(), "another key") {
		t.Errorf("opened with another key: %v", err)
	}
	if _, err := NewVault([]byte("short")); err == nil {
		t.Error("a short key is taken")
	}
}
