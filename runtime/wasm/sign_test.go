package wasm

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/keyfire/keyfire/core"
)

// Keys and a note that another implementation of signed notes (golang.org/x/mod/sumdb/note) made.
const (
	foreignPrivate = "PRIVATE+KEY+release.example/1+74bfb3da+AQcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcH"
	foreignPublic  = "release.example/1+74bfb3da+AepKbGPinFIKvvVQexMuxfmVR3auvr57kkIe6mkURtIs"
	foreignNote    = "keyfire module v1\nsha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\n\n" +
		"— release.example/1 dL+z2qao1lUFsed/Jsd6a9x9Jw7rpGp/2iUnlTWQlaEH+zHXOAhohMxxuZZg7utsWCvYRGN6VlLSCykioKg3Ovo24wY=\n"
)

func trusted(t *testing.T, public ...string) TrustedKeys {
	t.Helper()
	keys, err := ParseTrustedKeys(public)
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// TestSignedNote: keys and signatures are those of other tools for signed notes.
func TestSignedNote(t *testing.T) {
	t.Parallel()
	private, public, err := NewSigningKey("release.example/1", bytes.NewReader(bytes.Repeat([]byte{7}, 32)))
	if err != nil || private != foreignPrivate || public != foreignPublic {
		t.Errorf("%s\n%s\n%v", private, public, err)
	}
	text, line, _ := strings.Cut(foreignNote, "\n\n")
	raw, err := base64.StdEncoding.DecodeString(strings.TrimSuffix(strings.TrimPrefix(line, "— release.example/1 "), "\n"))
	if err != nil {
		t.Fatal(err)
	}
	k := trusted(t, foreignPublic)[0]
	if hash := binary.BigEndian.Uint32(raw); hash != k.hash() {
		t.Errorf("the note's key has hash %08x, want %08x", k.hash(), hash)
	}
	if noteText(nil) != text+"\n" || !ed25519.Verify(k.key, []byte(text+"\n"), raw[noteHash:]) {
		t.Error("a note that another tool signed does not verify")
	}
	for _, bad := range []string{
		"", "x", "a b+74bfb3da+AepK", strings.Replace(foreignPublic, "74bf", "74be", 1), foreignPublic + "A", foreignPublic[:len(foreignPublic)-2],
		strings.Replace(foreignPublic, "+Aep", "+Bep", 1), foreignPrivate,
	} {
		if _, err := ParseTrustedKeys([]string{bad}); err == nil {
			t.Errorf("%q is taken for a key", bad)
		}
	}
	if _, _, err := NewSigningKey("two words", nil); err == nil {
		t.Error("a name with a space is accepted")
	}
	for _, bad := range []string{"", foreignPublic, strings.Replace(foreignPrivate, "74bf", "74be", 1)} {
		if _, err := Sign(writer("1", 1), bad); err == nil {
			t.Errorf("signed by %q", bad)
		}
	}
	if _, err := Sign([]byte{1, 2, 3, 0}, foreignPrivate); err == nil {
		t.Error("something that is no module is signed")
	}
}

// TestSignature is promise C1 for modules: a module is what the key's holder signed, to the last bit, or it is refused.
func TestSignature(t *testing.T) {
	t.Parallel()
	private, public, err := NewSigningKey("ours", nil)
	if err != nil {
		t.Fatal(err)
	}
	otherPrivate, otherPublic, err := NewSigningKey("ours", nil) // of the same name
	if err != nil {
		t.Fatal(err)
	}
	keys := trusted(t, public)
	for name, module := range map[string][]byte{
		"module": writer(`"signed"`, 1), "with a name section": newModule().section(secCustom, concat(sized([]byte("name")), []byte{0, 2, 1, 'x'})...).b,
		"script": []byte("export default () => 1;\n"), "script without an end of line": []byte("export default () => 1"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			signed, err := Sign(module, private)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := keys.Verify(signed); got != "ours" || err != nil {
				t.Fatalf("%q, %v", got, err)
			}
			if again, err := Sign(signed, private); err != nil || !bytes.Equal(again, signed) {
				t.Errorf("signing twice gives another module (%v)", err)
			}
			if _, err := keys.Verify(module); !errors.Is(err, ErrUnsigned) || core.CodeOf(err) != core.CodeInvalidModule {
				t.Errorf("unsigned: %v", err)
			}
			foreign, err := Sign(module, otherPrivate)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := keys.Verify(foreign); !errors.Is(err, ErrUnsigned) || !strings.Contains(err.Error(), "not trusted") {
				t.Errorf("another key of the same name: %v", err)
			}
			if got, err := trusted(t, otherPublic, public).Verify(foreign); got != "ours" || err != nil {
				t.Errorf("one of two keys: %q, %v", got, err)
			}
			for i := range 8 * len(signed) {
				bad := bytes.Clone(signed)
				bad[i/8] ^= 1 << (i % 8)
				if _, err := keys.Verify(bad); err == nil {
					t.Fatalf("bit %d of byte %d of %d is flipped, and the signature still holds", i%8, i/8, len(signed))
				}
			}
			for i := range signed {
				if _, err := keys.Verify(signed[:i]); err == nil {
					t.Fatalf("cut after %d of %d bytes, and the signature still holds", i, len(signed))
				}
			}
			for _, more := range []string{"\x00", "\n", " ", "\x00\x01\x00", string(signed)} {
				if _, err := keys.Verify(append(bytes.Clone(signed), more...)); err == nil {
					t.Errorf("%q is added, and the signature still holds", more)
				}
			}
			// A note of one module behind another.
			_, note := splitSignature(signed)
			moved := joinSignature(append(bytes.Clone(module), '\n'), note)
			if isScript(module) {
				if _, err := keys.Verify(moved); !errors.Is(err, ErrForged) {
					t.Errorf("a signature that was moved: %v", err)
				}
			}
			// The same note, in a section whose length takes a byte more than it must.
			if !isScript(module) {
				content := append(appendName(nil, signatureSection), note...)
				loose := append(bytes.Clone(module), secCustom, byte(len(content))|0x80, byte(len(content)>>7)|0x80, 0)
				if _, err := keys.Verify(append(loose, content...)); err == nil {
					t.Error("a signature in another form holds")
				}
			}
		})
	}
	// A signed module runs like any other.
	b := setup(t)
	signed, err := Sign(writer(`"signed"`, 1), private)
	if err != nil {
		t.Fatal(err)
	}
	if res, err := b.call(t, b.publish(t, signed), "", core.Limits{}); err != nil || string(res.Output) != `"signed"` {
		t.Errorf("%s, %v", res.Output, err)
	}
}

// FuzzVerify: nothing but what Sign made is taken for signed, and nothing makes Verify panic.
func FuzzVerify(f *testing.F) {
	keys, err := ParseTrustedKeys([]string{foreignPublic})
	if err != nil {
		f.Fatal(err)
	}
	for _, m := range [][]byte{writer("1", 1), []byte("export default 1\n"), probeModule, header} {
		signed, err := Sign(m, foreignPrivate)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(signed)
		f.Add(m)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := keys.Verify(b); err != nil {
			return
		}
		body, _ := splitSignature(b)
		if again, err := Sign(body, foreignPrivate); err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%q is taken for signed", b)
		}
	})
}
