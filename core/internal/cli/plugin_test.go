package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/keyfire/keyfire/sdk/authplugin"
)

// testBackend is the auth plugin of the scripts. What it does is in the credential.
type testBackend struct{}

func (testBackend) Version() string { return "1.4.0" }

func (testBackend) Validate(config []byte) error {
	var c struct {
		Fault string `json:"fault"`
	}
	if err := authplugin.DecodeConfig(config, &c); err != nil {
		return err
	}
	if c.Fault != "" {
		return errors.New(c.Fault)
	}
	return nil
}

func (b testBackend) Configure(_ context.Context, config []byte) error { return b.Validate(config) }

func (testBackend) Authenticate(_ context.Context, r *authplugin.Request) (*authplugin.Principal, error) {
	user, password, _ := r.Basic()
	token := strings.TrimPrefix(r.Credential, "legacy_")
	switch {
	case token == "alice" || user == "alice" && password == "secret":
		fmt.Fprintln(os.Stderr, "hello\x1b[31m alice")
		return &authplugin.Principal{Subject: "alice", Scopes: []string{"run:workflow/echo"}, Attributes: map[string]string{"team": "billing"}}, nil
	case token == "root":
		return &authplugin.Principal{Subject: "root", Scopes: []string{"keys:write"}}, nil
	case token == "crash":
		os.Exit(3)
	}
	return nil, authplugin.Deny("unknown token")
}
