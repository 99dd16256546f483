package core

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// Redacted stands where a [Redactor] has found a secret.
const Redacted = "[redacted]"

// Redactor takes secrets out of text: as they are, as text in quotes writes them, line by line, and in base64 of either alphabet at any of its three alignments. It is a
// net for mistakes: what encodes a secret in another way passes. A nil one changes nothing. It may be used concurrently.
type Redactor struct{ replacer *strings.Replacer }

// NewRedactor returns a Redactor for the values of secrets, nil when there is none to take out. A value shorter than MinSecret stays: it could not be taken out without
// taking out innocent text.
func NewRedactor(secrets map[string]string) *Redactor {
	var forms []string
	for _, s := range secrets {
		if len(s) < MinSecret {
			continue
		}
		if t := strings.TrimSpace(s); len(t) >= MinSecret {
			s = t // who reads it from a file's end may do so too
		}
		forms = append(forms, s)
		forms = append(forms, quoted(s)...)
		for line := range strings.FieldsFuncSeq(s, unicode.IsControl) {
			if line = strings.TrimSpace(line); len(line) >= minSecretLine {
				forms = append(forms, line)
			}
		}
		for _, enc := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			for shift := range 3 {
				// The characters at both ends also depend on what stands beside the secret; only those between are its own.
				e := enc.EncodeToString(append(make([]byte, shift), s...))
				first, last := (shift*8+5)/6, (shift+len(s))*8/6
				forms = append(forms, e[first:last])
			}
		}
	}
	if len(forms) == 0 {
		return nil
	}
	// The longest first: the replacer takes the first that fits, and a secret may be part of another.
	slices.SortFunc(forms, func(a, b string) int { return cmp.Or(len(b)-len(a), strings.Compare(a, b)) })
	var pairs []string
	for _, f := range slices.Compact(forms) {
		pairs = append(pairs, f, Redacted)
	}
	return &Redactor{strings.NewReplacer(pairs...)}
}

// minSecretLine is how long a line of a secret is that is taken out by itself, as the lines of a key in PEM are: a log splits its text into lines. The shorter ones
// of a secret that is a document also stand in innocent text.
const minSecretLine = 16

// quoted returns how JSON and Go write a text between quotes, where that is not as it is: with and without what HTML needs, and in ASCII.
func quoted(s string) []string {
	var plain strings.Builder
	enc := json.NewEncoder(&plain)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(s) // a text can always be encoded
	var ascii strings.Builder
	for _, c := range plain.String() {
		switch {
		case c < utf8.RuneSelf:
			ascii.WriteRune(c)
		default:
			for _, unit := range utf16.AppendRune(nil, c) {
				fmt.Fprintf(&ascii, `\u%04x`, unit)
			}
		}
	}
	html, _ := json.Marshal(s)
	forms := []string{strings.TrimSuffix(plain.String(), "\n"), strings.TrimSuffix(ascii.String(), "\n"), string(html), strconv.Quote(s)}
	for i, f := range forms {
		forms[i] = f[1 : len(f)-1]
	}
	return forms
}

// Text returns s without secrets.
func (r *Redactor) Text(s string) string {
	if r == nil {
		return s
	}
	return r.replacer.Replace(s)
}

// JSON redacts the texts of a valid JSON document, names of members included, however they are escaped; a number that holds a secret becomes a text.
// All else stays byte by byte.
func (r *Redactor) JSON(b []byte) []byte {
	if r == nil {
		return b
	}
	out := make([]byte, 0, len(b))
	for i := 0; i < len(b); {
		switch c := b[i]; {
		case c == '"':
			end := i + 1
			for b[end] != '"' {
				if b[end] == '\\' {
					end++
				}
				end++
			}
			end++
			out = append(out, r.literal(b[i:end])...)
			i = end
		case c == '-' || c >= '0' && c <= '9':
			end := i
			for end < len(b) && strings.IndexByte("+-.eE0123456789", b[end]) >= 0 {
				end++
			}
			if number := string(b[i:end]); r.replacer.Replace(number) != number {
				out = append(out, `"`+Redacted+`"`...)
			} else {
				out = append(out, number...)
			}
			i = end
		default:
			out = append(out, c)
			i++
		}
	}
	return out
}

func (r *Redactor) literal(raw []byte) []byte {
	var s string
	if json.Unmarshal(raw, &s) != nil {
		return raw
	}
	clean := r.replacer.Replace(s)
	if clean == s {
		return raw
	}
	b, err := json.Marshal(clean)
	if err != nil {
		return []byte(`"` + Redacted + `"`)
	}
	return b
}
