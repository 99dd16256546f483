package wasm

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/tetratelabs/wazero/api"

	"github.com/keyfire/keyfire/core"
)

// secretGet gives the value of a secret that the workflow grants by name.
func secretGet(g *guest, m api.Memory, p []uint64) int64 {
	name, ok := g.utf8Text(m, p[0], p[1])
	if !ok {
		return int64(abiInvalid)
	}
	value, code := g.secret(name)
	if code != abiOK {
		return int64(code)
	}
	return g.give(m, p[2], p[3], []byte(value))
}

// secret returns the value of a secret, and remembers it, so that it does not leave the node in its log, its output or its error.
func (g *guest) secret(name string) (value string, code int32) {
	if !slices.Contains(g.call.Grants.Secrets, name) {
		return "", int32(g.refuse(abiDenied, "the secret is not granted; the node would need grants: {secrets: [%s]}", printable(name)))
	}
	if value, ok := g.secrets[name]; ok {
		return value, abiOK
	}
	var err error
	g.wait(func() { value, err = g.vault(g.timed(), g.call.Account, name) })
	if core.CodeOf(err) == core.CodeNotFound {
		return "", int32(g.refuse(abiNotFound, "the secret %s is granted but not set; set it with keyfire secrets set %s", name, name))
	}
	if err != nil {
		g.abort(fmt.Errorf("read secret %s: %w", name, err))
	}
	if g.secrets == nil {
		g.secrets = make(map[string]string)
	}
	g.secrets[name] = value
	return value, abiOK
}

// redacted stands where a secret was.
const redacted = "[redacted]"

// redactor replaces secrets in text: as they are, and in base64 of either alphabet at any of its three alignments. It is nil without secrets.
type redactor struct{ *strings.Replacer }

func newRedactor(secrets map[string]string) *redactor {
	if len(secrets) == 0 {
		return nil
	}
	var forms []string
	for _, s := range secrets {
		if len(s) < core.MinSecret {
			continue
		}
		forms = append(forms, s)
		for _, enc := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			for shift := range 3 {
				// The characters at both ends also depend on what stands beside the secret; only those between are its own.
				e := enc.EncodeToString(append(make([]byte, shift), s...))
				first, last := (shift*8+5)/6, (shift+len(s))*8/6
				forms = append(forms, e[first:last])
			}
		}
	}
	// The longest first: the replacer takes the first that fits, and a secret may be part of another.
	slices.SortFunc(forms, func(a, b string) int { return len(b) - len(a) })
	var pairs []string
	for _, f := range slices.Compact(forms) {
		pairs = append(pairs, f, redacted)
	}
	return &redactor{strings.NewReplacer(pairs...)}
}

func (r *redactor) text(s string) string {
	if r == nil {
		return s
	}
	return r.Replace(s)
}

// json redacts the texts of a JSON document, names of members included, however they are escaped; a number that holds a secret becomes a text.
// All else stays byte by byte.
func (r *redactor) json(b []byte) []byte {
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
			if number := string(b[i:end]); r.Replace(number) != number {
				out = append(out, `"`+redacted+`"`...)
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

func (r *redactor) literal(raw []byte) []byte {
	var s string
	if json.Unmarshal(raw, &s) != nil {
		return raw
	}
	clean := r.Replace(s)
	if clean == s {
		return raw
	}
	b, err := json.Marshal(clean)
	if err != nil {
		return []byte(`"` + redacted + `"`)
	}
	return b
}

// redact takes the secrets that a guest has read out of all that it leaves behind.
func (g *guest) redact(res *Result, failure error) {
	r := newRedactor(g.secrets)
	if r == nil {
		return
	}
	if res.Output != nil {
		res.Output = r.json(res.Output)
	}
	for i := range res.Log {
		res.Log[i].Message = r.text(res.Log[i].Message)
	}
	var e *Error
	if errors.As(failure, &e) {
		e.Message = r.text(e.Message)
	}
}

// SecretSource gives the value of one secret of an account. CodeNotFound means that it is not set.
type SecretSource func(ctx context.Context, account, name string) (string, error)

func noSecrets(context.Context, string, string) (string, error) {
	return "", core.Errorf(core.CodeNotFound, "there are no secrets")
}
