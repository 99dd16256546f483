// Package plugintest runs an auth plugin the way a Keyfire server does, as a process of its own that shakes hands over mutual TLS, and
// tells whether it keeps the contract: that it decides the author's cases right, holds to the bounds, survives hostile credentials and
// many callers, gives up when its time is over, keeps secrets out of its output, and ends with the server.
//
// For a plugin in Go, the test binary is the plugin; no build step is needed:
//
//	func TestMain(m *testing.M) { plugintest.Main(m, &legacy{}) }
//
//	func TestConformance(t *testing.T) {
//		plugintest.Run(t, plugintest.Config{
//			Settings: `{"file": "testdata/tokens"}`,
//			Cases: []plugintest.Case{
//				{Name: "known", Request: authplugin.Request{Scheme: "bearer", Credential: "tok_alice"}, Want: plugintest.Allow},
//				{Name: "unknown", Request: authplugin.Request{Scheme: "bearer", Credential: "tok_mallory"}, Want: plugintest.Deny},
//			},
//		})
//	}
//
// A plugin in another language is named by Config.Executable.
package plugintest

import (
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/keyfire/keyfire/sdk/authplugin"
	"github.com/keyfire/keyfire/sdk/authplugin/authv1"
)

// Config describes the plugin to be tried.
type Config struct {
	// Executable is the plugin's program, by absolute path. Empty is the test binary, whose TestMain must call Main.
	Executable string
	// Env is the whole environment of the process but for the handshake, as NAME=value.
	Env []string
	// Settings is a configuration the plugin accepts, one JSON object. Empty is {}.
	Settings string
	// BadSettings are configurations the plugin must find fault with, without crashing.
	BadSettings []string
	// Cases are requests with the verdict each must get. At least one must be allowed and one denied.
	Cases []Case
	// Timeout is how long a call may take, 500 ms when zero: what a server allows by default.
	Timeout time.Duration
}

// Case is a request and the verdict it must get.
type Case struct {
	Name    string
	Request authplugin.Request
	Want    Verdict
	// Principal, if its Subject is not empty, is the principal an allowed request must get. ExpiresAt is not compared.
	Principal authplugin.Principal
}

// Verdict is one of the four answers of a plugin.
type Verdict string

// The verdicts.
const (
	Allow     Verdict = "allow"
	Deny      Verdict = "deny"
	NotMine   Verdict = "not mine"
	Undecided Verdict = "undecided" // any other error
)

// Main is the body of TestMain for a plugin in Go: it serves a when the process was started as the plugin, and runs the tests
// otherwise. It does not return.
func Main(m *testing.M, a authplugin.Authenticator) {
	if os.Getenv(authv1.CookieKey) != "" {
		authplugin.Serve(a)
	}
	os.Exit(m.Run())
}

// Run runs every check as a subtest.
func Run(t *testing.T, cfg Config) {
	t.Helper()
	k, err := newKit(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range checks {
		t.Run(c.name, func(t *testing.T) {
			if err := c.run(t.Context(), k); err != nil {
				t.Errorf("%v\n%s", err, c.why)
			}
		})
	}
}

func newKit(cfg Config) (*kit, error) {
	k := &kit{self: cfg.Executable == ""}
	if k.self {
		self, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("plugintest: %w", err)
		}
		cfg.Executable = self
	}
	if cfg.Settings == "" {
		cfg.Settings = "{}"
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 500 * time.Millisecond
	}
	wanted := make(map[Verdict]bool)
	for _, c := range cfg.Cases {
		switch c.Want {
		case Allow, Deny, NotMine, Undecided:
			wanted[c.Want] = true
		default:
			return nil, fmt.Errorf("plugintest: case %q wants %q, which is not a verdict", c.Name, c.Want)
		}
	}
	if !wanted[Allow] || !wanted[Deny] {
		return nil, errors.New("plugintest: give at least one case to be allowed and one to be denied; a plugin that always says the same would pass otherwise")
	}
	k.cfg = cfg
	return k, nil
}
