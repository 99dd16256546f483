package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/admin"
)

// Variables that name the first superuser. They are not settings: a password must not be shown by config print.
const (
	envSuperuser             = "KEYFIRE_SUPERUSER"
	envSuperuserPassword     = "KEYFIRE_SUPERUSER_PASSWORD"
	envSuperuserPasswordFile = "KEYFIRE_SUPERUSER_PASSWORD_FILE"
)

// superuser is the superuser that the environment asks for; name is "" when it asks for none.
type superuser struct {
	name     string
	password auth.Secret
}

func readSuperuser(environ []string) (superuser, error) {
	u := superuser{name: lookup(environ, envSuperuser)}
	password, file := lookup(environ, envSuperuserPassword), lookup(environ, envSuperuserPasswordFile)
	switch {
	case u.name == "" && password == "" && file == "":
		return u, nil
	case u.name == "":
		return u, fmt.Errorf("%s is not set, but a password for it is", envSuperuser)
	case password != "" && file != "":
		return u, fmt.Errorf("%s and %s are both set; give one of them", envSuperuserPassword, envSuperuserPasswordFile)
	case file != "":
		f, err := os.Open(file)
		if err != nil {
			return u, fmt.Errorf("%s: %w", envSuperuserPasswordFile, err)
		}
		defer f.Close()
		raw, err := io.ReadAll(io.LimitReader(f, auth.MaxPassword+3))
		if err != nil {
			return u, fmt.Errorf("%s: %w", envSuperuserPasswordFile, err)
		}
		password = strings.TrimSuffix(strings.TrimSuffix(string(raw), "\n"), "\r")
	}
	if password == "" {
		return u, fmt.Errorf("%s is set without a password; there is no default one: set %s to a file that holds it, or %s", envSuperuser, envSuperuserPasswordFile, envSuperuserPassword)
	}
	u.password = auth.NewSecret(password)
	return u, nil
}

// people makes the first superuser that the environment names, or else prints a setup token while there is no superuser.
func (a *app) people(ctx context.Context, cfg *Config, control *admin.Service, s *system) error {
	u, err := readSuperuser(a.Environ)
	if err != nil {
		return usageError{err}
	}
	if u.name != "" {
		created, err := control.EnsureSuperuser(ctx, u.name, u.password)
		var said *core.Error
		switch {
		case errors.As(err, &said) && said.Code == core.CodeInvalidInput:
			return usagef("the superuser of %s is refused: %s", envSuperuser, said.Message)
		case err != nil:
			return fmt.Errorf("make the superuser: %w", err)
		case created:
			s.log.Info("superuser made", "name", strings.ToLower(u.name))
		}
		return nil
	}
	token, err := control.NewSetupToken(ctx)
	if err != nil {
		return fmt.Errorf("make a setup token: %w", err)
	}
	if token.Empty() {
		return nil
	}
	// Not through the logger, whose lines may be exported to where a secret must not go.
	if cfg.LogFormat == "json" {
		return json.NewEncoder(a.Stderr).Encode(map[string]string{
			"level": "INFO", "msg": "there is no superuser yet; keyfire setup makes one with this token, once, within an hour", "setup_token": token.Reveal(),
		})
	}
	a.note("there is no superuser yet; keyfire setup makes one, once, within an hour, with the token %s", token.Reveal())
	return nil
}
