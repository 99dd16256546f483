package core

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"net/url"
	"strings"
	"testing"
)

// TestMask: no form of a secret is in the pieces of a text, and the text comes out of them as it was.
func TestMask(t *testing.T) {
	t.Parallel()
	secrets := map[string]string{"A": "sk_live_51HqLyjWDarjtT1zd", "B": `p"w\ü-12345678`, "C": "12345678901", "D": "sk_live_51", "short": "abc"}
	m := NewMask(secrets)
	var texts []string
	for _, s := range secrets {
		quoted, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		texts = append(texts, s, string(quoted), hex.EncodeToString([]byte(s)), base64.StdEncoding.EncodeToString([]byte("u:"+s)), url.QueryEscape(s), "x"+s+s+"\x00"+s)
	}
	texts = append(texts, "", "innocent", "\xff\xfe"+secrets["A"]+"\xff", strings.Repeat("sk_live_5", 3))
	for _, text := range texts {
		pieces := m.Cut([]byte(text))
		for _, p := range pieces {
			if r := NewRedactor(secrets); r.Text(string(p.Bytes)) != string(p.Bytes) {
				t.Errorf("%q: the piece %q holds a secret", text, p.Bytes)
			}
		}
		if got := m.Join(pieces); string(got) != text {
			t.Errorf("%q came back as %q", text, got)
		}
	}
	if p := m.Cut([]byte("a" + secrets["C"] + "b")); len(p) != 3 || p[1].Hole != (Hole{"C", 0}) {
		t.Errorf("pieces %+v", p)
	}
	other := NewMask(map[string]string{"C": "another value"})
	if got := other.Join(m.Cut([]byte("a" + secrets["C"] + "b" + secrets["D"]))); string(got) != "aanother valueb"+Redacted {
		t.Errorf("with another value: %q", got)
	}
	var none *Mask
	if got := none.Join(none.Cut([]byte("as it is"))); !bytes.Equal(got, []byte("as it is")) || NewMask(map[string]string{"short": "abc"}) != nil {
		t.Errorf("without secrets: %q", got)
	}
}

// TestSecretFormsStay: tapes name the forms of a secret by their place in the list.
func TestSecretFormsStay(t *testing.T) {
	t.Parallel()
	forms := secretForms("a b/c\"\n12345678")
	sum := sha256.Sum256([]byte(strings.Join(forms, "|")))
	if got, want := hex.EncodeToString(sum[:8]), "ddeffd5c89bab673"; len(forms) != 46 || got != want {
		t.Errorf("%d forms with digest %s; want 46 with %s: %q", len(forms), got, want, forms)
	}
}
