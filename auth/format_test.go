package auth

import (
	"bytes"
	"crypto/rand"
	"errors"
	"hash/crc32"
	"io"
	"regexp"
	"strings"
	"testing"
	"testing/iotest"
)

// keyPattern is the format as it is documented, for scanners.
var keyPattern = regexp.MustCompile(`^kf[ta]_[0-9A-Za-z]{50}$`)

func TestGenerateKey(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, typ := range []KeyType{TriggerKey, AdminKey} {
		for range 500 {
			k, err := GenerateKey(typ, rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			text := k.Secret().Reveal()
			if !keyPattern.MatchString(text) || seen[text] || seen[k.ID] {
				t.Fatalf("key %q", text)
			}
			seen[text], seen[k.ID] = true, true
			if k.Type != typ || text[:4] != "kf"+string(typ)+"_" || k.ID != text[4:16] || k.Last4 != text[50:] {
				t.Fatalf("%q taken apart: %q %q %q", text, k.Type, k.ID, k.Last4)
			}
			again, ok := ParseKey(k.Secret())
			if !ok || again.Type != k.Type || again.ID != k.ID || again.Last4 != k.Last4 || !again.Secret().Equal(k.Secret()) {
				t.Fatalf("%q is not read back", text)
			}
		}
	}
}

// A reader that ends or fails must not make a key of what it gave so far.
func TestGenerateKeyNeedsRandomness(t *testing.T) {
	t.Parallel()
	broken := errors.New("no entropy")
	for _, r := range []io.Reader{iotest.ErrReader(broken), io.LimitReader(rand.Reader, 40), strings.NewReader(""), iotest.TimeoutReader(iotest.OneByteReader(rand.Reader))} {
		if k, err := GenerateKey(TriggerKey, r); err == nil || !k.Secret().Empty() {
			t.Errorf("a key from a broken source: %v", err)
		}
	}
}

// Every character is as likely as any other, because bytes that would favour some are thrown away.
func TestKeyCharactersAreUniform(t *testing.T) {
	t.Parallel()
	var all [256]byte
	for i := range all {
		all[i] = byte(i)
	}
	got, err := appendBase62(nil, bytes.NewReader(all[:]), 62*4)
	if err != nil {
		t.Fatal(err)
	}
	count := map[byte]int{}
	for _, c := range got {
		count[c]++
	}
	for i := range base62 {
		if count[base62[i]] != 4 {
			t.Errorf("%q comes %d times of all bytes, want 4", base62[i], count[base62[i]])
		}
	}
}

func TestParseKeyRefuses(t *testing.T) {
	t.Parallel()
	k, err := GenerateKey(TriggerKey, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	good := k.Secret().Reveal()
	bad := []string{
		"", "kft_", good[:53], good + "0", " " + good[1:], good[:53] + " ", "KFT_" + good[4:], "kfx_" + good[4:], "kfa_" + good[4:], strings.Replace(good, "_", "-", 1),
		good[:30] + "-" + good[31:], good[:30] + "\x00" + good[31:], good[:30] + "é" + good[32:], strings.ToUpper(good), good[:53] + "\n", "kft_" + strings.Repeat("0", 50),
	}
	// Each single character that is changed is found by the check.
	for i := range good {
		for _, c := range []byte{'0', 'z', '_', '.'} {
			if good[i] != c {
				bad = append(bad, good[:i]+string(c)+good[i+1:])
			}
		}
	}
	// So are two neighbours that changed places.
	for i := 4; i < 53; i++ {
		if good[i] != good[i+1] {
			bad = append(bad, good[:i]+string(good[i+1])+string(good[i])+good[i+2:])
		}
	}
	for _, s := range bad {
		if _, ok := ParseKey(NewSecret(s)); ok {
			t.Errorf("%q is taken for a key", s)
		}
	}
}

// The check is that of a known key, so that it can never change unnoticed: keys that are out there would stop working.
func TestKeyCheckIsFixed(t *testing.T) {
	t.Parallel()
	const body = "kft_0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefgh"
	sum := crc32.ChecksumIEEE([]byte(body))
	var want []byte
	for range 6 {
		want = append([]byte{"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"[sum%62]}, want...)
		sum /= 62
	}
	got := string(appendCheck([]byte(body)))
	if got != body+string(want) {
		t.Errorf("check %s, want %s", got[48:], want)
	}
	if k, ok := ParseKey(NewSecret(got)); !ok || k.ID != "0123456789AB" || k.Last4 != string(want[2:]) {
		t.Errorf("%s is not a key", got)
	}
}

// FuzzParseKey: what is taken for a key has the documented format and a right check, and is taken apart without a loss.
func FuzzParseKey(f *testing.F) {
	k, err := GenerateKey(AdminKey, rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(k.Secret().Reveal())
	f.Add("kft_" + strings.Repeat("0", 50))
	f.Add(string(appendCheck([]byte("kft_" + strings.Repeat("z", 44)))))
	f.Add("kft_\x00")
	f.Fuzz(func(t *testing.T, s string) {
		// The check is completed, too, or the fuzzer would never get past it.
		for _, text := range []string{s, string(appendCheck([]byte(s)))} {
			k, ok := ParseKey(NewSecret(text))
			switch {
			case ok && !keyPattern.MatchString(text):
				t.Fatalf("%q is taken for a key", text)
			case ok && (k.Secret().Reveal() != text || k.ID != text[4:16] || k.Last4 != text[50:] || string(k.Type) != text[2:3]):
				t.Fatalf("%q is taken apart wrongly", text)
			case !ok && keyPattern.MatchString(text) && string(appendCheck([]byte(text[:48]))) == text:
				t.Fatalf("%q is a key", text)
			}
		}
	})
}

func BenchmarkParseKey(b *testing.B) {
	k, err := GenerateKey(TriggerKey, rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := ParseKey(k.Secret()); !ok {
			b.Fatal("not a key")
		}
	}
}
