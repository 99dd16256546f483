package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/auth/hookauth"
	"github.com/keyfire/keyfire/core/internal/trigger"
	"github.com/keyfire/keyfire/plugins"
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

// A2: a plugin's subjects begin with its name, so it cannot have one that the server's own begin with: it would speak for a user, or for a schedule.
func TestA2PluginsCannotSpeakForTheServer(t *testing.T) {
	t.Parallel()
	user := auth.User{ID: "usr_01m8esyc9e60rskq82g64xh8rq"}
	for _, own := range []string{
		user.Subject(), trigger.SchedulePrincipal("wf_01m8esyc9e60rskq82g64xh8rq"), trigger.Public, auth.BackendSession, hookauth.Name, "key:key_1", "apikey", "jwt:github/x", "uid:0", "socket", "system", "unknown",
		"nobody", "none",
	} {
		name, _, _ := strings.Cut(own, ":")
		if err := plugins.CheckName(name); err == nil || !strings.Contains(err.Error(), "taken by the server") {
			t.Errorf("a plugin may be called %s, as what begins %s: %v", name, own, err)
		}
	}
	if err := plugins.CheckName("ldap"); err != nil {
		t.Error(err)
	}
}
