package auth_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace/noop"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
)

// verdict is one way for a backend to answer, with what the chain has to make of it.
type verdict struct {
	name   string
	answer func(backend string) (auth.Principal, error)
	// want is what the chain answers when this verdict is the one that counts; abstain passes to the next backend.
	want    core.Code
	abstain bool
}

var now = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// verdicts are the eight answers of promise A2: four honest ones, and four kinds of ALLOW that must count as ERROR.
func verdicts() []verdict {
	principal := func(backend string) auth.Principal {
		return auth.Principal{Account: "acct_a", Subject: backend + ":alice", Backend: backend, Scopes: []string{"run:workflow/wf_1"}}
	}
	return []verdict{
		{name: "allow", answer: func(b string) (auth.Principal, error) { return principal(b), nil }},
		{name: "deny", want: core.CodeInvalidKey, answer: func(string) (auth.Principal, error) {
			return auth.Principal{}, core.Errorf(core.CodeInvalidKey, "no")
		}},
		{name: "abstain", abstain: true, answer: func(string) (auth.Principal, error) { return auth.Principal{}, auth.ErrNotApplicable }},
		{name: "error", want: core.CodeAuthUnavailable, answer: func(string) (auth.Principal, error) {
			return auth.Principal{}, errors.New("connection reset")
		}},
		{name: "allow and error", want: core.CodeAuthUnavailable, answer: func(b string) (auth.Principal, error) {
			return principal(b), fmt.Errorf("half: %w", auth.ErrNotApplicable)
		}},
		{name: "allow without subject", want: core.CodeAuthUnavailable, answer: func(b string) (auth.Principal, error) {
			p := principal(b)
			p.Subject = ""
			return p, nil
		}},
		{name: "allow, expired", want: core.CodeAuthUnavailable, answer: func(b string) (auth.Principal, error) {
			p := principal(b)
			p.ExpiresAt = now
			return p, nil
		}},
		{name: "allow, foreign account", want: core.CodeAuthUnavailable, answer: func(b string) (auth.Principal, error) {
			p := principal(b)
			p.Account = "acct_b"
			return p, nil
		}},
	}
}

type backend struct {
	name  string
	v     verdict
	asked int
}

func (b *backend) Name() string { return b.name }
func (b *backend) Authenticate(context.Context, auth.Credential) (auth.Principal, error) {
	b.asked++
	return b.v.answer(b.name)
}

func bind(t testing.TB, a auth.Authenticator) auth.Authenticator {
	t.Helper()
	link, err := auth.Bind(a, auth.Binding{
		Route: auth.Route{Prefixes: []string{"tok_"}},
		Grant: auth.Grant{Accounts: []string{"acct_a", "acct_c"}, Scopes: []string{"run:workflow/*"}},
		Now:   func() time.Time { return now },
	})
	if err != nil {
		t.Fatal(err)
	}
	return link
}

// TestVerdictsA2 asks a chain of three backends with every combination of eight verdicts. The oracle is the rule itself: the first
// backend that does not abstain decides, and nobody after it is asked.
func TestVerdictsA2(t *testing.T) {
	t.Parallel()
	tracer := noop.NewTracerProvider().Tracer("")
	combinations := 0
	for _, first := range verdicts() {
		for _, second := range verdicts() {
			for _, third := range verdicts() {
				combinations++
				backends := []*backend{{name: "b1", v: first}, {name: "b2", v: second}, {name: "b3", v: third}}
				var links []auth.Authenticator
				decider := -1
				for i, b := range backends {
					links = append(links, bind(t, b))
					if decider < 0 && !b.v.abstain {
						decider = i
					}
				}
				p, err := auth.NewChain(tracer, links...).Authenticate(t.Context(), auth.Credential{Place: auth.PlaceBearer, Secret: auth.NewSecret("tok_1")})

				want, wantSubject := core.CodeInvalidKey, "" // nobody's credential
				if decider >= 0 {
					want = backends[decider].v.want
					if want == "" {
						wantSubject = backends[decider].name + ":alice"
					}
				}
				label := first.name + " / " + second.name + " / " + third.name
				if got := core.CodeOf(err); got != want {
					t.Errorf("%s: code %q, want %q (%v)", label, got, want, err)
				}
				if p.Subject != wantSubject {
					t.Errorf("%s: principal %q, want %q", label, p.Subject, wantSubject)
				}
				for i, b := range backends {
					if asked := decider < 0 || i <= decider; (b.asked == 1) != asked || b.asked > 1 {
						t.Errorf("%s: backend %d was asked %d times", label, i+1, b.asked)
					}
				}
			}
		}
	}
	if combinations != 512 {
		t.Fatalf("%d combinations, want 512", combinations)
	}
}

func TestRouteMatch(t *testing.T) {
	t.Parallel()
	bearer := func(s string) auth.Credential {
		return auth.Credential{Place: auth.PlaceBearer, Secret: auth.NewSecret(s)}
	}
	prefix := auth.Route{Prefixes: []string{"tok_"}}
	basic := auth.Route{Schemes: []string{"basic"}}
	signature := auth.Route{Headers: []string{"x-hub-signature-256"}}
	opaque := auth.Route{AnyBearer: true}
	for _, tc := range []struct {
		name  string
		route auth.Route
		cred  auth.Credential
		want  bool
	}{
		{"prefix", prefix, bearer("tok_1"), true},
		{"other prefix", prefix, bearer("tik_1"), false},
		{"prefix in X-API-Key", prefix, auth.Credential{Place: auth.PlaceAPIKey, Secret: auth.NewSecret("tok_1")}, true},
		{"prefix in the query", prefix, auth.Credential{Place: auth.PlaceQuery, Secret: auth.NewSecret("tok_1")}, false},
		{"scheme", basic, auth.Credential{Place: auth.PlaceAuthorization, Scheme: "basic", Secret: auth.NewSecret("YTpi")}, true},
		{"other scheme", basic, auth.Credential{Place: auth.PlaceAuthorization, Scheme: "digest", Secret: auth.NewSecret("YTpi")}, false},
		{"scheme does not match a bearer token", basic, bearer("basic"), false},
		{"signature header", signature, auth.Credential{Place: auth.PlaceHeader, Header: map[string][]string{"X-Hub-Signature-256": {"sha256=00"}}}, true},
		{"another backend's header", signature, auth.Credential{Place: auth.PlaceHeader, Header: map[string][]string{"Stripe-Signature": {"t=1"}}}, false},
		{"opaque", opaque, bearer("whatever"), true},
		{"opaque, but not a bearer token", opaque, auth.Credential{Place: auth.PlaceAPIKey, Secret: auth.NewSecret("whatever")}, false},
		{"a trigger key is nobody else's", opaque, bearer("kft_rest"), false},
		{"an admin key is nobody else's", opaque, bearer("kfa_rest"), false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			if got := tc.route.Match(tc.cred); got != tc.want {
				t.Errorf("match %v, want %v", got, tc.want)
			}
		})
	}
}

func TestRouteAndGrantValidate(t *testing.T) {
	t.Parallel()
	for _, r := range []auth.Route{
		{},
		{Prefixes: []string{""}},
		{Prefixes: []string{"k"}},
		{Prefixes: []string{"kft_"}},
		{Prefixes: []string{"kfa_x"}},
		{Schemes: []string{"Basic"}},
		{Schemes: []string{"bearer"}},
		{Headers: []string{"authorization"}},
		{Headers: []string{"a b"}},
	} {
		if r.Validate() == nil {
			t.Errorf("route %+v was accepted", r)
		}
	}
	if err := (auth.Route{Prefixes: []string{"ghp_"}, Schemes: []string{"basic"}, Headers: []string{"Webhook-Signature"}}).Validate(); err != nil {
		t.Error(err)
	}
	for _, g := range []auth.Grant{{}, {Accounts: []string{""}}, {Accounts: []string{"acct_a"}, Scopes: []string{""}}} {
		if g.Validate() == nil {
			t.Errorf("grant %+v was accepted", g)
		}
	}
	g := auth.Grant{Accounts: []string{"acct_a"}, Scopes: []string{"runs:read", "run:workflow/*"}}
	for scope, want := range map[string]bool{
		"runs:read": true, "run:workflow/wf_1": true, "run:workflow/": false, "run:*": false, "runs:readx": false, "keys:write": false,
	} {
		if g.AllowsScope(scope) != want {
			t.Errorf("scope %q allowed: %v, want %v", scope, !want, want)
		}
	}
}

// A grant for every workflow includes one of them, as it does for whoever makes a key; the other way round it does not.
func TestGrantIncludesWhatIsNarrower(t *testing.T) {
	t.Parallel()
	for granted, scopes := range map[string]map[string]bool{
		"run:*":                  {"run:*": true, "run:workflow/wf_1": true, "run:workflow/billing/*": true, "runs:read": false, "keys:write": false, "run": false, "": false, "run:workflow": false},
		"run:workflow/billing/*": {"run:workflow/billing/a": true, "run:workflow/billing/*": true, "run:workflow/billing/": false, "run:workflow/a": false, "run:*": false, "run:workflow/*": false},
		"run:workflow/wf_1":      {"run:workflow/wf_1": true, "run:workflow/wf_2": false, "run:workflow/wf_1/a": false, "run:*": false},
		"runs:read":              {"runs:read": true, "runs:write": false, "run:*": false},
	} {
		g := auth.Grant{Accounts: []string{"acct_a"}, Scopes: []string{granted}}
		for scope, want := range scopes {
			if g.AllowsScope(scope) != want {
				t.Errorf("a grant of %s allows %q: %v, want %v", granted, scope, !want, want)
			}
		}
	}
}

func TestBoundAnswerOutsideGrant(t *testing.T) {
	t.Parallel()
	base := auth.Principal{Account: "acct_a", Subject: "b:alice", Backend: "b"}
	change := func(f func(*auth.Principal)) auth.Principal { p := base; f(&p); return p }
	for name, p := range map[string]auth.Principal{
		"scope":             change(func(p *auth.Principal) { p.Scopes = []string{"run:workflow/wf_1", "run:*"} }),
		"foreign namespace": change(func(p *auth.Principal) { p.Subject = "key:key_01" }),
		"bare namespace":    change(func(p *auth.Principal) { p.Subject = "b:" }),
		"no account of two": change(func(p *auth.Principal) { p.Account = "" }),
		"built-in key":      change(func(p *auth.Principal) { p.Key = &auth.Key{} }),
	} {
		link := bind(t, &backend{name: "b", v: verdict{answer: func(string) (auth.Principal, error) { return p, nil }}})
		got, err := link.Authenticate(t.Context(), auth.Credential{Place: auth.PlaceBearer, Secret: auth.NewSecret("tok_1")})
		if core.CodeOf(err) != core.CodeAuthUnavailable || got.Subject != "" {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}
