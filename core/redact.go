package core

import (
	"cmp"
	"encoding/base64"
	"encoding/hex"
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

// Redactor takes secrets out of text: as they are, as logs print them, as text in quotes writes them, also within quotes of its own, line by line, as URLs and forms write
// them, in hexadecimal digits, and in base64 of either alphabet at any of its three alignments. It is a net for mistakes: what encodes a secret in another way passes. A
// nil one changes nothing. It may be used concurrently.
type Redactor struct{ replacer *strings.Replacer }

// NewRedactor returns a Redactor for the values of secrets, nil when there is none to take out. A value shorter than MinSecret stays: it could not be taken out without
// taking out innocent text.
func NewRedactor(secrets map[string]string) *Redactor {
	var forms []string
	for _, s := range secrets {
		forms = append(forms, secretForms(s)...)
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

// secretForms returns the ways in which a secret is looked for, none for one that is too short. Which one a text held is part of what a [Mask] keeps, so forms are only
// added, at the end of the list.
func secretForms(s string) (forms []string) {
	if len(s) < MinSecret {
		return nil
	}
	if t := strings.TrimSpace(s); len(t) >= MinSecret {
		s = t // who reads it from a file's end may do so too
	}
	forms = append(forms, s)
	forms = append(forms, quoted(s)...)
	if len(s) <= maxSecretEncoded {
		if shown := printed(s); shown != s {
			forms = append(append(forms, shown), quoted(shown)...)
		}
		for _, once := range quoted(s) {
			if once != s {
				forms = append(forms, quoted(once)...)
			}
		}
		forms = append(forms, escaped(s)...)
		digits := hex.EncodeToString([]byte(s))
		forms = append(forms, digits, strings.ToUpper(digits))
	}
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
	return forms
}

// minSecretLine is how long a line of a secret is that is taken out by itself, as the lines of a key in PEM are: a log splits its text into lines. The shorter ones
// of a secret that is a document also stand in innocent text.
const minSecretLine = 16

// maxSecretEncoded is how long a secret is at most that is looked for in the encodings which only short ones are put in: nobody sends a document in a URL, and every form
// that is looked for costs each call of a node that has read the secret.
const maxSecretEncoded = 4 << 10

// printed returns a text without the characters that a log does not keep.
func printed(s string) string {
	return strings.Map(func(c rune) rune {
		switch {
		case c == '\t':
			return ' '
		case unicode.In(c, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp):
			return -1
		}
		return c
	}, s)
}

// unescaped are the characters beside letters, digits and "-_.~" that one or another library leaves as they are in a part of a URL or of a form.
var unescaped = []string{
	"",                 // Go's and Java's query, Python's quote_plus, RFC 3986
	"/",                // Python's quote
	"!'()*",            // encodeURIComponent
	"!*'();:@&=+$,/?#", // encodeURI
	"$&+=:@",           // Go's path
	"$&+,;=",           // Go's user and password
	"*",                // a form of a browser
}

// escaped returns how URLs and forms write a text, with digits of either case.
func escaped(s string) []string {
	var forms []string
	for i, keep := range unescaped {
		if i > 0 && !strings.ContainsAny(s, keep) {
			continue // as without it
		}
		upper, lower := percent(s, keep, "0123456789ABCDEF"), percent(s, keep, "0123456789abcdef")
		if upper == s {
			continue
		}
		forms = append(forms, upper)
		if lower != upper {
			forms = append(forms, lower)
		}
		if strings.Contains(s, " ") {
			forms = append(forms, strings.ReplaceAll(upper, "%20", "+"), strings.ReplaceAll(lower, "%20", "+"))
		}
	}
	return forms
}

// percent escapes all but letters, digits, "-_.~" and the characters to keep.
func percent(s, keep, digits string) string {
	b := make([]byte, 0, 3*len(s))
	for i := range len(s) {
		c := s[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.IndexByte("-_.~", c) >= 0, strings.IndexByte(keep, c) >= 0:
			b = append(b, c)
		default:
			b = append(b, '%', digits[c>>4], digits[c&15])
		}
	}
	return string(b)
}

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
