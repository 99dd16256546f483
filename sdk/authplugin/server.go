package authplugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"runtime/debug"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keyfire/keyfire/sdk/authplugin/authv1"
)

// server speaks the protocol for an Authenticator.
type server struct {
	authv1.UnimplementedAuthPluginServer
	plugin Authenticator
}

func newServer(a Authenticator) *server { return &server{plugin: a} }

func (s *server) Describe(context.Context, *authv1.DescribeRequest) (*authv1.DescribeResponse, error) {
	if v, ok := s.plugin.(Versioner); ok {
		return &authv1.DescribeResponse{Version: v.Version()}, nil
	}
	version := "unknown"
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		version = info.Main.Version
	}
	return &authv1.DescribeResponse{Version: version[:min(len(version), authv1.MaxVersion)]}, nil
}

func (s *server) Validate(_ context.Context, r *authv1.ValidateRequest) (res *authv1.ValidateResponse, err error) {
	defer recoverTo(&err)
	v, ok := s.plugin.(Validator)
	if !ok {
		return &authv1.ValidateResponse{Problems: s.withoutValidator(r.GetConfigJson())}, nil
	}
	return &authv1.ValidateResponse{Problems: problems(v.Validate(r.GetConfigJson()))}, nil
}

// withoutValidator checks as much of a configuration as can be checked without the plugin's help.
func (s *server) withoutValidator(config []byte) []string {
	var object map[string]json.RawMessage
	if err := json.Unmarshal(config, &object); err != nil || object == nil { // null decodes too
		return []string{"the configuration must be one JSON object"}
	}
	if _, ok := s.plugin.(Configurer); !ok && len(object) > 0 {
		return []string{"this plugin has no configuration; leave it out"}
	}
	return nil
}

func (s *server) Configure(ctx context.Context, r *authv1.ConfigureRequest) (res *authv1.ConfigureResponse, err error) {
	defer recoverTo(&err)
	c, ok := s.plugin.(Configurer)
	if !ok {
		return &authv1.ConfigureResponse{Problems: s.withoutValidator(r.GetConfigJson())}, nil
	}
	return &authv1.ConfigureResponse{Problems: problems(c.Configure(ctx, r.GetConfigJson()))}, nil
}

// problems takes apart what errors.Join put together.
func problems(err error) []string {
	if err == nil {
		return nil
	}
	var all []string
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range joined.Unwrap() {
			all = append(all, problems(e)...)
		}
		return all
	}
	return []string{err.Error()}
}

func (s *server) Authenticate(ctx context.Context, r *authv1.AuthenticateRequest) (res *authv1.AuthenticateResponse, err error) {
	defer recoverTo(&err)
	p, err := s.plugin.Authenticate(ctx, request(r))
	var denied *Denied
	switch {
	case err != nil && p != nil:
		return nil, status.Error(codes.Internal, "plugin returned a principal and an error")
	case errors.Is(err, ErrNotMine):
		return &authv1.AuthenticateResponse{NotMine: &authv1.NotMine{}}, nil
	case errors.As(err, &denied):
		ttl := min(max(denied.TTL/time.Second, 0), authv1.MaxDenialTTL)
		return &authv1.AuthenticateResponse{Deny: &authv1.Denial{Reason: denied.Reason, TtlSeconds: int32(ttl)}}, nil
	case err != nil:
		if e := ctx.Err(); e != nil {
			return nil, status.FromContextError(e).Err()
		}
		return nil, status.Error(codes.Unavailable, err.Error())
	case p == nil:
		return nil, status.Error(codes.Internal, "plugin returned neither a principal nor an error")
	}
	allow := &authv1.Principal{Subject: p.Subject, Account: p.Account, Scopes: p.Scopes, Attributes: p.Attributes}
	if !p.ExpiresAt.IsZero() {
		// 0 says that the proof has no end, which is not what time.Unix(0, 0) says: a plugin makes that of a token whose expiry is 0.
		allow.ExpiresAtUnix = max(p.ExpiresAt.Unix(), 1)
	}
	return &authv1.AuthenticateResponse{Allow: allow}, nil
}

func request(r *authv1.AuthenticateRequest) *Request {
	req := &Request{
		Scheme: r.GetScheme(), Credential: r.GetCredential(), Method: r.GetMethod(), Path: r.GetPath(),
		Workflow: r.GetWorkflow(), Body: r.GetBody(), TraceParent: r.GetTraceparent(), Header: make(http.Header, len(r.GetHeaders())),
	}
	req.Source, _ = netip.ParseAddr(r.GetSource())
	for _, h := range r.GetHeaders() {
		req.Header[http.CanonicalHeaderKey(h.GetName())] = h.GetValues()
	}
	return req
}

// recoverTo turns a panic into "cannot decide". One credential that trips over a bug must not end the process, and with it every
// other request in flight. The stack goes to the server's log; the panic's value may hold the credential and stays here.
func recoverTo(err *error) {
	if v := recover(); v != nil {
		fmt.Fprintf(os.Stderr, "[ERROR] panic of type %T in the plugin\n%s", v, debug.Stack())
		*err = status.Error(codes.Internal, "the plugin panicked")
	}
}
