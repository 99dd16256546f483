package plugintest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/keyfire/keyfire/sdk/authplugin"
	"github.com/keyfire/keyfire/sdk/authplugin/authv1"
)

// The kit is tried on a plugin that does one thing wrong, named by its environment.
func TestMain(m *testing.M) {
	if os.Getenv(authv1.CookieKey) != "" {
		w := wrong(os.Getenv("WRONG"))
		if w == "stays with a dead server" {
			r, _, err := os.Pipe()
			if err != nil {
				panic(err)
			}
			os.Stdin = r // Serve will wait for a pipe that never ends
		}
		if w == "has no Validate" {
			authplugin.Serve(configurer{w})
		}
		authplugin.Serve(w)
	}
	goleak.VerifyTestMain(m)
}

type wrong string

func (w wrong) Version() string {
	if w == "long version" {
		return strings.Repeat("1", 100)
	}
	return "1"
}

func (w wrong) Validate(config []byte) error {
	var c struct{ Tokens []string }
	if w == "accepts any settings" {
		return nil
	}
	return authplugin.DecodeConfig(config, &c)
}

func (w wrong) Configure(_ context.Context, config []byte) error {
	if w == "stumbles over settings" {
		return errors.New("cannot")
	}
	return w.Validate(config)
}

func (w wrong) Authenticate(ctx context.Context, r *authplugin.Request) (*authplugin.Principal, error) {
	alice := &authplugin.Principal{Subject: "alice", Scopes: []string{"run:*"}}
	switch w {
	case "admits everybody":
		return alice, nil
	case "admits the empty credential":
		if r.Credential == "" {
			return alice, nil
		}
	case "lies about the subject":
		alice.Subject = "bob"
	case "forges log lines":
		alice.Subject = "alice\nroot"
	case "is slow":
		time.Sleep(2 * time.Second)
	case "panics on long credentials":
		if len(r.Credential) > 1000 {
			go panic("too long")
			time.Sleep(time.Minute)
		}
	case "leaks":
		fmt.Fprintln(os.Stderr, "checking", r.Credential)
	case "denies at length":
		return nil, &authplugin.Denied{Reason: strings.Repeat("no ", 200)}
	case "crashes when the caller is gone":
		if ctx.Err() != nil || waitFor(ctx, 5*time.Millisecond) {
			os.Exit(3)
		}
	}
	switch {
	case r.Credential == "tok_alice":
		return alice, nil
	case strings.HasPrefix(r.Credential, "tok_down"):
		return nil, errors.New("directory is down")
	case strings.HasPrefix(r.Credential, "tok_"):
		return nil, authplugin.Deny("unknown token")
	}
	return nil, authplugin.ErrNotMine
}

// waitFor reports whether ctx ended before d was over.
func waitFor(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return true
	case <-time.After(d):
		return false
	}
}

func config(fault string) Config {
	bearer := func(credential string) authplugin.Request {
		return authplugin.Request{Scheme: "bearer", Credential: credential, Method: "POST", Path: "/v1/trigger/x"}
	}
	return Config{
		Env: []string{"WRONG=" + fault}, Settings: `{"Tokens": ["a"]}`, BadSettings: []string{`{"Tokens": 1}`},
		Cases: []Case{
			{Name: "alice", Request: bearer("tok_alice"), Want: Allow, Principal: authplugin.Principal{Subject: "alice", Scopes: []string{"run:*"}}},
			{Name: "mallory", Request: bearer("tok_mallory"), Want: Deny},
			{Name: "somebody else's", Request: bearer("other_1"), Want: NotMine},
			{Name: "directory down", Request: bearer("tok_down"), Want: Undecided},
		},
	}
}

func TestGoodPlugin(t *testing.T) { Run(t, config("")) }

// configurer is a good plugin without the optional Validate.
type configurer struct{ w wrong }

func (c configurer) Configure(ctx context.Context, config []byte) error {
	return c.w.Configure(ctx, config)
}

func (c configurer) Authenticate(ctx context.Context, r *authplugin.Request) (*authplugin.Principal, error) {
	return c.w.Authenticate(ctx, r)
}

func TestGoodPluginWithoutValidate(t *testing.T) {
	t.Parallel()
	k, err := newKit(config("has no Validate"))
	if err != nil {
		t.Fatal(err)
	}
	if err := settings(t.Context(), k); err != nil {
		t.Error(err)
	}
}

func TestFaultsAreFound(t *testing.T) {
	t.Parallel()
	for fault, finds := range map[string]string{
		"long version":                    "shakes hands",
		"accepts any settings":            "judges its configuration",
		"stumbles over settings":          "decides the cases",
		"admits everybody":                "decides the cases",
		"admits the empty credential":     "admits nothing else",
		"lies about the subject":          "decides the cases",
		"forges log lines":                "decides the cases",
		"is slow":                         "decides the cases",
		"panics on long credentials":      "admits nothing else",
		"leaks":                           "keeps secrets",
		"denies at length":                "decides the cases",
		"crashes when the caller is gone": "gives up in time",
		"stays with a dead server":        "ends with the server",
	} {
		t.Run(fault, func(t *testing.T) {
			t.Parallel()
			k, err := newKit(config(fault))
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range checks {
				if c.name != finds {
					continue
				}
				if err := c.run(t.Context(), k); err == nil {
					t.Errorf("%q did not notice", finds)
				}
				return
			}
			t.Fatalf("there is no check %q", finds)
		})
	}
}

func TestConfigMustDistinguish(t *testing.T) {
	t.Parallel()
	cfg := config("")
	cfg.Cases = cfg.Cases[:1]
	if _, err := newKit(cfg); err == nil {
		t.Error("cases that are all allowed were taken")
	}
	cfg.Cases = []Case{{Want: "perhaps"}}
	if _, err := newKit(cfg); err == nil {
		t.Error("an unknown verdict was taken")
	}
}
