package authplugin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keyfire/keyfire/sdk/authplugin/authv1"
)

// TestMain lets the test binary be a plugin that was started by hand.
func TestMain(m *testing.M) {
	if os.Getenv("SERVE") != "" {
		Serve(answer(nil))
	}
	goleak.VerifyTestMain(m)
}

// answer is a plugin made of a function.
type answer func(*Request) (*Principal, error)

func (a answer) Authenticate(_ context.Context, r *Request) (*Principal, error) { return a(r) }

func TestServeByHand(t *testing.T) {
	t.Parallel()
	cmd := exec.Command(os.Args[0])
	cmd.Env = []string{"SERVE=1"}
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	var exit *exec.ExitError
	if err := cmd.Run(); !errors.As(err, &exit) || exit.ExitCode() != 2 {
		t.Errorf("ended with %v, want status 2", err)
	}
	if stdout.Len() > 0 || !strings.Contains(stderr.String(), "hint:") {
		t.Errorf("wrote %q and %q", &stdout, &stderr)
	}
}

func TestVerdictsOnTheWire(t *testing.T) {
	t.Parallel()
	expires := time.Unix(1_800_000_000, 0)
	for name, tc := range map[string]struct {
		principal *Principal
		err       error
		want      string // of the response's text form, or of the status
		code      codes.Code
	}{
		"allow":             {principal: &Principal{Subject: "alice", ExpiresAt: expires}, want: `allow:{subject:"alice"expires_at_unix:1800000000}`},
		"allow, of 1970":    {principal: &Principal{Subject: "alice", ExpiresAt: time.Unix(0, 0)}, want: `allow:{subject:"alice"expires_at_unix:1}`},
		"allow, before":     {principal: &Principal{Subject: "alice", ExpiresAt: time.Unix(-5, 0)}, want: `allow:{subject:"alice"expires_at_unix:1}`},
		"not mine":          {err: fmt.Errorf("token: %w", ErrNotMine), want: "not_mine:{}"},
		"deny":              {err: fmt.Errorf("bind: %w", Deny("wrong password")), want: `deny:{reason:"wrongpassword"}`},
		"deny, remembered":  {err: &Denied{Reason: "x", TTL: 90 * time.Second}, want: `deny:{reason:"x"ttl_seconds:60}`},
		"deny, before time": {err: &Denied{Reason: "x", TTL: -time.Second}, want: `deny:{reason:"x"}`},
		"cannot decide":     {err: errors.New("directory is down"), want: "directory is down", code: codes.Unavailable},
		"neither":           {want: "neither", code: codes.Internal},
		"both":              {principal: &Principal{Subject: "alice"}, err: Deny("no"), want: "a principal and an error", code: codes.Internal},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newServer(answer(func(*Request) (*Principal, error) { return tc.principal, tc.err }))
			res, err := s.Authenticate(t.Context(), &authv1.AuthenticateRequest{})
			if status.Code(err) != tc.code {
				t.Fatalf("status %v, want %v", err, tc.code)
			}
			got := strings.ReplaceAll(res.String(), " ", "") // its spaces vary on purpose
			if err != nil {
				got = err.Error()
			}
			if !strings.Contains(got, tc.want) {
				t.Errorf("got %s, want %s", got, tc.want)
			}
		})
	}
}

func TestPanicDoesNotTellTheCredential(t *testing.T) {
	t.Parallel()
	s := newServer(answer(func(r *Request) (*Principal, error) { panic(r.Credential) }))
	_, err := s.Authenticate(t.Context(), &authv1.AuthenticateRequest{Credential: "s3cret-token"})
	if status.Code(err) != codes.Internal || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("%v", err)
	}
}

func TestConfigWithoutConfigurer(t *testing.T) {
	t.Parallel()
	s := newServer(answer(nil))
	for config, good := range map[string]bool{"{}": true, `{"a": 1}`: false, "[]": false, "null": false, "": false} {
		v, err := s.Validate(t.Context(), &authv1.ValidateRequest{ConfigJson: []byte(config)})
		if err != nil || (len(v.GetProblems()) == 0) != good {
			t.Errorf("validate %q: %v, %v", config, v.GetProblems(), err)
		}
		c, err := s.Configure(t.Context(), &authv1.ConfigureRequest{ConfigJson: []byte(config)})
		if err != nil || (len(c.GetProblems()) == 0) != good {
			t.Errorf("configure %q: %v, %v", config, c.GetProblems(), err)
		}
	}
}

func TestRequestPrintsNothingSecret(t *testing.T) {
	t.Parallel()
	r := &Request{Scheme: "bearer", Credential: "s3cret", Header: http.Header{"X-Sig": {"s3cret"}}, Body: []byte("s3cret"), Path: "/v1/trigger/x"}
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("asked", "request", r)
	for _, text := range []string{fmt.Sprint(r), fmt.Sprintf("%+v", r), fmt.Sprintf("%#v", r), fmt.Sprintf("%s %q %x", r, r, r), fmt.Sprintf("%v %+v %#v", *r, *r, *r), log.String()} {
		if strings.Contains(text, "s3cret") || strings.Contains(text, "733363726574") || !strings.Contains(text, "/v1/trigger/x") {
			t.Errorf("printed %s", text)
		}
	}
}

func TestBasic(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		scheme, credential, user, password string
		ok                                 bool
	}{
		{"basic", "YWxpY2U6czNjcmV0OnR3bw==", "alice", "s3cret:two", true},
		{"basic", "YWxpY2U=", "alice", "", false},
		{"basic", "%%%", "", "", false},
		{"bearer", "YWxpY2U6czNjcmV0", "", "", false},
	} {
		r := &Request{Scheme: tc.scheme, Credential: tc.credential}
		if user, password, ok := r.Basic(); ok != tc.ok || ok && (user != tc.user || password != tc.password) {
			t.Errorf("%s %s: %q %q %v", tc.scheme, tc.credential, user, password, ok)
		}
	}
}

func TestDecodeConfig(t *testing.T) {
	t.Parallel()
	var c struct {
		URL string `json:"url"`
	}
	for text, good := range map[string]bool{`{"url": "x"}`: true, `{"ulr": "x"}`: false, `{} {}`: false, `{`: false, ``: false, `null`: false, ` {}`: true} {
		if err := DecodeConfig([]byte(text), &c); (err == nil) != good {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// TestGeneratedCode regenerates the protocol's code and compares it with what is checked in. It needs protoc.
func TestGeneratedCode(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("protoc"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("protoc is not installed (Debian: protobuf-compiler)")
		}
		t.Skip("SKIPPED: protoc is not installed (Debian: protobuf-compiler)")
	}
	if out, err := exec.Command("authv1/generate.sh", "-check").CombinedOutput(); err != nil {
		t.Errorf("the checked-in code is not what auth.proto makes: %v\n%s", err, out)
	}
}
