package trigger

import (
	"context"
	"errors"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
)

// CheckRequest asks how a request would be judged.
type CheckRequest struct {
	Credential auth.Credential
	Workflow   string // "" is the one the key is made for
	Origin     core.Origin
}

// The words of a check's answer.
const (
	WordValid                   = "VALID"
	WordNotFound                = "NOT_FOUND"
	WordDisabled                = "DISABLED"
	WordExpired                 = "EXPIRED"
	WordInsufficientPermissions = "INSUFFICIENT_PERMISSIONS"
	WordRateLimited             = "RATE_LIMITED"
	WordUsageExceeded           = "USAGE_EXCEEDED"
)

func wordOf(c core.Code) string {
	switch c {
	case "":
		return WordValid
	case core.CodeInvalidKey, core.CodeUnauthenticated:
		return WordNotFound
	case core.CodeKeyExpired:
		return WordExpired
	case core.CodeKeyRevoked, core.CodeKeyDisabled:
		return WordDisabled
	case core.CodeRateLimited, core.CodeConcurrencyLimited:
		return WordRateLimited
	case core.CodeQuotaExhausted:
		return WordUsageExceeded
	}
	return WordInsufficientPermissions
}

// Check judges a request as Open and the admission would, without admitting, charging or recording anything. Asking about another credential than one's own
// needs the scope keys:read, and one of another account is unknown. The error is about the question; a refusal is an answer.
func (s *Service) Check(ctx context.Context, asker auth.Principal, own bool, r CheckRequest) (word string, v *Verdict, err error) {
	if !own && !auth.Allows(asker.Scopes, auth.ScopeKeysRead) {
		return "", nil, core.Errorf(core.CodeInsufficientScope, "this credential lacks the scope %s", auth.ScopeKeysRead)
	}
	trail := &core.Trail{Place: string(r.Credential.Place), Shape: r.Credential.Shape(), Workflow: r.Workflow}
	r.Credential.Trail, r.Origin.Trail = trail, trail
	f := &facts{origin: r.Origin, at: s.Now()}
	f.origin.TraceID = "" // that of the question says nothing of the answer
	err = s.check(ctx, asker, own, r, f)
	f.trail = *trail
	f.origin.Trail = nil
	var refusal *core.Error
	if err != nil && (!errors.As(err, &refusal) || unanswerable(refusal.Code)) {
		return "", nil, err
	}
	f.err = refusal
	v = f.verdict()
	return wordOf(v.Code), v, nil
}

// unanswerable reports whether a code means that the check itself could not be made.
func unanswerable(c core.Code) bool {
	return c == core.CodeAuthUnavailable || c == core.CodeStoreUnavailable || c == core.CodeInternal || c == core.CodeOverloaded
}

func (s *Service) check(ctx context.Context, asker auth.Principal, own bool, r CheckRequest, f *facts) error {
	p := asker
	if !own {
		var err error
		if p, err = s.Chain.Authenticate(ctx, r.Credential); err != nil {
			return s.foreign(ctx, asker, r.Credential, err)
		}
		if p.Account != asker.Account {
			return unknown(r.Credential)
		}
	}
	f.who = &p
	if r.Workflow != "" || !auth.ReachOf(p.Scopes).None() && auth.ReachOf(p.Scopes).Single() != "" {
		if _, err := s.authorize(ctx, p, Attempt{Workflow: r.Workflow, Origin: r.Origin}); err != nil {
			return err
		}
	}
	key := ""
	if p.Key != nil {
		key = p.Key.ID
	}
	var err error
	f.limits, err = s.Store.Limits(ctx, p.Account, key, s.Now())
	return err
}

// foreign keeps to itself that a refused key is one of another account.
func (s *Service) foreign(ctx context.Context, asker auth.Principal, c auth.Credential, err error) error {
	var e *core.Error
	switch {
	case !errors.As(err, &e):
		return err
	case e.KeyID == "":
		if e.Account == "" || e.Account == asker.Account {
			return err
		}
	default:
		if _, lookup := s.Store.Key(ctx, asker.Account, e.KeyID); lookup == nil {
			return err
		}
	}
	return unknown(c)
}

// unknown refuses a credential of another account as one that nobody knows, and has the trail tell nothing else: a backend denies what looks like
// its own, and passes on what does not.
func unknown(c auth.Credential) error {
	if t := c.Trail; len(t.Backends) > 0 {
		last := &t.Backends[len(t.Backends)-1]
		last.Verdict, last.Code = "abstain", ""
		if _, ours := auth.ParseKey(c.Secret); ours {
			last.Verdict, last.Code = "deny", core.CodeInvalidKey
		}
	}
	return core.Errorf(core.CodeInvalidKey, "the API key is not valid")
}
