package wasm

import (
	"context"
	"errors"
	"fmt"
	"slices"

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

// redact takes the secrets that a guest has read out of all that it leaves behind.
func (g *guest) redact(res *Result, failure error) {
	r := core.NewRedactor(g.secrets) // of which nil changes nothing
	if res.Output != nil {
		res.Output = r.JSON(res.Output)
	}
	for i := range res.Log {
		res.Log[i].Message = r.Text(res.Log[i].Message)
	}
	var e *Error
	if errors.As(failure, &e) {
		e.Message = cut(r.Text(e.Message))
		if r.Text(e.Code) != e.Code {
			e.Code = "redacted"
		}
	}
}

// SecretSource gives the value of one secret of an account. CodeNotFound means that it is not set.
type SecretSource func(ctx context.Context, account, name string) (string, error)

func noSecrets(context.Context, string, string) (string, error) {
	return "", core.Errorf(core.CodeNotFound, "there are no secrets")
}
