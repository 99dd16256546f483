package wasm

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"

	"github.com/keyfire/keyfire/core"
)

// A module can carry a signature: a signed note (the format of c2sp.org/signed-note, with Ed25519) about the SHA-256 of the module without it. It
// lies in a custom section at the end, or in a comment at the end of a script, so it travels and is stored with what it signs.
const (
	signatureSection = "keyfire.signature"
	signatureOpening = "\n/* keyfire.signature\n"
	signatureClosing = "*/\n"
	noteHeading      = "keyfire module v1\n"
	privateKeyPrefix = "PRIVATE+KEY+"
	noteDash         = "— "
	noteEd25519      = 1 // the kind of key, in front of its bytes
	noteHash         = 4 // bytes of a key's hash
)

// signerName is what keys may be called: signed notes forbid spaces and plus signs, and the rest keeps a name out of the way of whatever shows it.
var signerName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._/@-]{0,99}$`)

// What Verify says of a module without a good signature.
var (
	// ErrUnsigned means that the module carries no signature, or one by a key that is not trusted.
	ErrUnsigned = errors.New("wasm: no trusted signature")
	// ErrForged means that the module claims to be signed by a trusted key and is not.
	ErrForged = errors.New("wasm: the signature does not fit")
)

// NewSigningKey makes a key by which modules are signed. private is a secret, which Sign takes; public is what ParseTrustedKeys takes. Both
// are one line of text. random nil is the system's.
func NewSigningKey(name string, random io.Reader) (private, public string, err error) {
	if !signerName.MatchString(name) {
		return "", "", fmt.Errorf("a key's name has 1 to 100 letters, digits and . _ / @ -, and begins with a letter or digit; got %q", name)
	}
	if random == nil {
		random = systemRandom{}
	}
	seed := make([]byte, ed25519.SeedSize)
	if _, err := io.ReadFull(random, seed); err != nil {
		return "", "", err
	}
	k := trustedKey{name: name, key: ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey)}
	encode := func(b []byte) string { return base64.StdEncoding.EncodeToString(append([]byte{noteEd25519}, b...)) }
	return fmt.Sprintf(privateKeyPrefix+"%s+%08x+%s", name, k.hash(), encode(seed)), fmt.Sprintf("%s+%08x+%s", name, k.hash(), encode(k.key)), nil
}

// trustedKey is a key that modules are verified by.
type trustedKey struct {
	name string
	key  ed25519.PublicKey
}

func (k trustedKey) hash() uint32 {
	h := sha256.New()
	fmt.Fprintf(h, "%s\n%c", k.name, noteEd25519)
	h.Write(k.key)
	return binary.BigEndian.Uint32(h.Sum(nil))
}

// parseKey reads "name+hash+key", where the key has size bytes.
func parseKey(text string, size int) (name string, hash uint32, key []byte, err error) {
	parts := strings.SplitN(text, "+", 3)
	bad := errors.New("want a key as keyfire module keygen prints it: name+hash+key")
	if len(parts) != 3 || !signerName.MatchString(parts[0]) || len(parts[1]) != 2*noteHash {
		return "", 0, nil, bad
	}
	sum, err := hex.DecodeString(parts[1])
	if err != nil {
		return "", 0, nil, bad
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(parts[2])
	if err != nil || len(raw) != 1+size || raw[0] != noteEd25519 {
		return "", 0, nil, bad
	}
	return parts[0], binary.BigEndian.Uint32(sum), raw[1:], nil
}

// TrustedKeys are the keys that a module's signature may be by.
type TrustedKeys []trustedKey

// ParseTrustedKeys reads public keys as NewSigningKey gives them.
func ParseTrustedKeys(list []string) (TrustedKeys, error) {
	var keys TrustedKeys
	for _, text := range list {
		if strings.HasPrefix(strings.TrimSpace(text), privateKeyPrefix) { // not repeated: it is a secret
			return nil, errors.New("this is the private half of a key; want the public one, as keyfire module keygen prints it: name+hash+key")
		}
		name, hash, key, err := parseKey(strings.TrimSpace(text), ed25519.PublicKeySize)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", printable(text), err)
		}
		k := trustedKey{name, key}
		if k.hash() != hash {
			return nil, fmt.Errorf("%q: the key does not fit its hash; it was not copied in full", printable(text))
		}
		keys = append(keys, k)
	}
	return keys, nil
}

// names lists the keys for messages.
func (keys TrustedKeys) names() string {
	var names []string
	for _, k := range keys {
		names = append(names, k.name)
	}
	slices.Sort(names)
	if names = slices.Compact(names); len(names) == 0 {
		return "no key is trusted"
	}
	return "trusted are " + strings.Join(names, ", ")
}

// noteText is what is signed.
func noteText(body []byte) string { return noteHeading + digest(body) + "\n" }

// Sign returns a module, or script, with a signature by a private key of NewSigningKey's. A signature it carries already is replaced.
func Sign(module []byte, private string) ([]byte, error) {
	text, ok := strings.CutPrefix(strings.TrimSpace(private), privateKeyPrefix)
	if !ok {
		return nil, errors.New("that is no private key; keyfire module keygen makes one")
	}
	name, hash, seed, err := parseKey(text, ed25519.SeedSize)
	if err != nil {
		return nil, err
	}
	key := ed25519.NewKeyFromSeed(seed)
	k := trustedKey{name, key.Public().(ed25519.PublicKey)}
	if k.hash() != hash {
		return nil, errors.New("the private key does not fit its hash; it was not copied in full")
	}
	if !isScript(module) && !bytes.HasPrefix(module, header) {
		return nil, errors.New("that is neither a WebAssembly module nor a script")
	}
	body, _ := splitSignature(module)
	raw := binary.BigEndian.AppendUint32(nil, k.hash())
	raw = append(raw, ed25519.Sign(key, []byte(noteText(body)))...)
	return joinSignature(body, noteText(body)+"\n"+noteDash+name+" "+base64.StdEncoding.EncodeToString(raw)+"\n"), nil
}

// joinSignature puts a note behind a body. There is one way to do it, so that a signed module has one form.
func joinSignature(body []byte, note string) []byte {
	out := bytes.Clone(body)
	if isScript(body) {
		return append(out, signatureOpening+note+signatureClosing...)
	}
	content := append(appendName(nil, signatureSection), note...)
	out = append(out, secCustom)
	out = appendU32(out, uint32(len(content)))
	return append(out, content...)
}

// splitSignature takes the note off a module; note is "" if there is none where it must be.
func splitSignature(module []byte) (body []byte, note string) {
	if isScript(module) {
		rest, ok := bytes.CutSuffix(module, []byte(signatureClosing))
		at := bytes.LastIndex(rest, []byte(signatureOpening))
		if !ok || at < 0 {
			return module, ""
		}
		return module[:at], string(rest[at+len(signatureOpening):])
	}
	if !bytes.HasPrefix(module, header) {
		return module, ""
	}
	r := &reader{b: module, off: len(header)}
	for r.err == nil && r.left() > 0 {
		at := r.off
		id := r.byte()
		content := r.bytes(int(r.u32()))
		if r.err == nil && id == secCustom && r.left() == 0 {
			c := &reader{b: content}
			if c.name("section's name") == signatureSection && c.err == nil {
				return module[:at], string(content[c.off:])
			}
		}
	}
	return module, ""
}

// Verify checks a module's signature and returns the name of the trusted key it is by. Whatever is changed in a signed module, a bit of the
// signature included, takes the signature away. The error is a *core.Error of CodeInvalidModule that says what is wrong, and wraps ErrUnsigned
// or ErrForged.
func (keys TrustedKeys) Verify(module []byte) (name string, err error) {
	refuse := func(kind error, format string, args ...any) (string, error) {
		return "", core.Wrap(core.CodeInvalidModule, kind, fmt.Sprintf(format, args...))
	}
	body, note := splitSignature(module)
	if note == "" {
		return refuse(ErrUnsigned, "the module is not signed; sign it with keyfire module sign (%s)", keys.names())
	}
	text, last, ok := strings.Cut(note, "\n\n")
	if text += "\n"; !ok {
		return refuse(ErrUnsigned, "the module's signature is not a signed note")
	}
	last, dashed := strings.CutPrefix(last, noteDash)
	name, encoded, spaced := strings.Cut(last, " ")
	raw, err := base64.StdEncoding.Strict().DecodeString(encoded)
	// The decoder passes over line breaks, wherever they are.
	if !dashed || !spaced || err != nil || encoded != base64.StdEncoding.EncodeToString(raw)+"\n" || len(raw) != noteHash+ed25519.SignatureSize || !signerName.MatchString(name) {
		return refuse(ErrUnsigned, "the module's signature is not a signed note")
	}
	hash := binary.BigEndian.Uint32(raw)
	i := slices.IndexFunc(keys, func(k trustedKey) bool { return k.name == name && k.hash() == hash })
	if i < 0 {
		return refuse(ErrUnsigned, "the module is signed by %s+%08x, which is not trusted (%s)", name, hash, keys.names())
	}
	if text != noteText(body) || !ed25519.Verify(keys[i].key, []byte(text), raw[noteHash:]) || !bytes.Equal(joinSignature(body, note), module) {
		return refuse(ErrForged, "the module's signature by %s does not fit it: it was changed after it was signed", name)
	}
	return name, nil
}
