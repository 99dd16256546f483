package trigger

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
)

// Outcomes of a check.
const (
	checkPass       = "pass"
	checkFail       = "fail"
	checkSkip       = "skip"        // there was nothing to check
	checkNotReached = "not_reached" // an earlier check has failed
)

// Check is one of the checks that a request goes through, in order.
type Check struct {
	Check    string                `json:"check" enum:"credential,backend,key,source,scope,workflow,override,rate,concurrency,quota,server" doc:"What was checked."`
	Outcome  string                `json:"outcome" enum:"pass,fail,skip,not_reached"`
	Detail   string                `json:"detail,omitempty"`
	Backends []core.BackendVerdict `json:"backends,omitempty" doc:"What each auth backend said, in the order in which they were asked."`
	Limits   []Limit               `json:"limits,omitempty" doc:"Where the key stood with each limit."`
}

// Limit is where a key stands with one of its limits.
type Limit struct {
	Name      string         `json:"name"`
	Kind      core.LimitKind `json:"kind" enum:"rate,concurrency,quota"`
	Limit     int64          `json:"limit"`
	Per       string         `json:"per,omitempty" doc:"Of a rate: the time in which limit runs may be started."`
	Remaining int64          `json:"remaining"`
	ResetMS   int64          `json:"reset_ms,omitempty" doc:"Until there is more."`
}

// Verdict is how a request was judged, check by check. It holds no credential.
type Verdict struct {
	Object    string    `json:"object" enum:"auth_verdict"`
	RequestID string    `json:"request_id"`
	TraceID   string    `json:"trace_id,omitempty"`
	Time      time.Time `json:"time"`
	SourceIP  string    `json:"source_ip,omitempty"`
	UserAgent string    `json:"user_agent,omitempty"`
	Route     string    `json:"route,omitempty" doc:"native, or the name of the adapter that took the request."`
	Principal string    `json:"principal,omitempty" doc:"Who it was, as far as that was proved."`
	KeyID     string    `json:"key_id,omitempty" doc:"The key, as far as it is known: a wrong secret may still name one."`
	Workflow  string    `json:"workflow,omitempty" doc:"As the request named it."`
	Code      core.Code `json:"code,omitempty" doc:"Why the request was refused; absent when it was not."`
	Message   string    `json:"message,omitempty"`
	Chain     []Check   `json:"chain" nullable:"false"`

	account string
}

// checkOf says which check a code fails.
func checkOf(c core.Code) string {
	switch c {
	case core.CodeUnauthenticated, core.CodeAmbiguousCredential:
		return "credential"
	case core.CodeInvalidKey, core.CodeAuthUnavailable:
		return "backend"
	case core.CodeKeyExpired, core.CodeKeyRevoked, core.CodeKeyDisabled:
		return "key"
	case core.CodeSourceNotAllowed:
		return "source"
	case core.CodeInsufficientScope:
		return "scope"
	case core.CodeNotFound, core.CodeWorkflowDisabled, core.CodeWorkflowRequired:
		return "workflow"
	case core.CodeOverrideNotAllowed:
		return "override"
	case core.CodeRateLimited:
		return "rate"
	case core.CodeConcurrencyLimited:
		return "concurrency"
	case core.CodeQuotaExhausted:
		return "quota"
	}
	return "server"
}

// facts is what a verdict is made of.
type facts struct {
	origin core.Origin
	trail  core.Trail
	who    *auth.Principal
	err    *core.Error // nil: let through
	limits []core.LimitState
	at     time.Time
}

// account returns whose request it was; the default account's, when nobody knows.
func (f *facts) account() string {
	switch {
	case f.who != nil:
		return f.who.Account
	case f.err != nil && f.err.Account != "":
		return f.err.Account
	}
	return core.DefaultAccount
}

// verdict tells the facts check by check.
func (f *facts) verdict() *Verdict {
	o := f.origin
	v := &Verdict{
		Object: "auth_verdict", RequestID: o.RequestID, TraceID: o.TraceID, Time: f.at.UTC(), SourceIP: o.SourceIP(), UserAgent: o.UserAgent, Route: o.Route,
		Workflow: auth.Redact(f.trail.Workflow), account: f.account(),
	}
	failed := ""
	if f.err != nil {
		v.Code, v.Message, v.KeyID = f.err.Code, auth.Redact(f.err.Message), f.err.KeyID
		failed = checkOf(f.err.Code)
		if f.err.Code == core.CodeRateLimited && len(f.err.Limits) == 0 {
			failed = "backend" // too many bad credentials from one address
		}
	}
	var key *auth.Key
	if f.who != nil {
		v.Principal, key = f.who.Subject, f.who.Key
		if key != nil {
			v.KeyID = key.ID
		}
	}
	reached := true
	add := func(c Check, skip bool) {
		c.Detail = auth.Redact(c.Detail) // it may quote what the caller wrote, and callers write keys in the wrong places
		switch {
		case !reached:
			c.Outcome, c.Detail = checkNotReached, ""
		case c.Check == failed:
			c.Outcome, reached = checkFail, false
			if f.err != nil && c.Detail == "" {
				c.Detail = v.Message
			}
		case skip:
			c.Outcome = checkSkip
		default:
			c.Outcome = checkPass
		}
		v.Chain = append(v.Chain, c)
	}
	add(Check{Check: "credential", Detail: f.credential()}, false)
	add(Check{Check: "backend", Detail: f.backend(), Backends: f.trail.Backends}, len(f.trail.Backends) == 0)
	keyDetail := ""
	if key != nil {
		keyDetail = key.Mask() + " " + string(key.State(f.at))
	}
	// A key that failed was proved but is not the principal; only its id is known.
	add(Check{Check: "key", Detail: keyDetail}, key == nil)
	add(Check{Check: "source"}, key == nil || len(key.AllowedIPs) == 0 && len(key.AllowedOrigins) == 0)
	scope := f.trail.Scope
	if scope != "" {
		scope = "matched " + scope
	}
	add(Check{Check: "scope", Detail: scope}, scope == "")
	add(Check{Check: "workflow"}, scope == "")
	add(Check{Check: "override"}, true)
	f.addLimits(add)
	if failed == "server" {
		add(Check{Check: "server"}, false)
	}
	return v
}

func (f *facts) addLimits(add func(Check, bool)) {
	limits := f.limits
	if f.err != nil && len(f.err.Limits) > 0 {
		limits = f.err.Limits
	}
	for _, kind := range []core.LimitKind{core.LimitRate, core.LimitConcurrency, core.LimitQuota} {
		c := Check{Check: string(kind)}
		for _, l := range limits {
			if l.Kind != kind {
				continue
			}
			shown := Limit{Name: l.Name, Kind: l.Kind, Limit: l.Limit, Remaining: l.Remaining, ResetMS: l.Reset.Milliseconds()}
			if l.Per > 0 {
				shown.Per = l.Per.String()
			}
			c.Limits = append(c.Limits, shown)
		}
		add(c, len(c.Limits) == 0)
	}
}

func (f *facts) credential() string {
	place, shape := f.trail.Place, f.trail.Shape
	switch {
	case f.err != nil && f.err.Code == core.CodeAmbiguousCredential:
		return f.err.Message
	case shape == "" && f.who != nil && f.who.Key != nil:
		shape = "key, proved"
	case shape == "" && f.who != nil:
		shape = "proved by " + f.who.Backend
	}
	if place == "" {
		return shape
	}
	return "in " + place + ": " + shape
}

// backend says what the backends' refusal was about, which the caller is not told.
func (f *facts) backend() string {
	switch {
	case f.err == nil:
		return ""
	case f.err.Code == core.CodeInvalidKey:
		return f.unproved(f.err)
	case f.err.Code == core.CodeRateLimited && len(f.err.Limits) == 0: // too many bad credentials from one address; the cause is what this one had
		var cause *core.Error
		if errors.As(f.err.Err, &cause) && cause.Code == core.CodeInvalidKey {
			return f.err.Message + "; " + f.unproved(cause)
		}
	}
	return ""
}

// unproved says why a credential proved nobody.
func (f *facts) unproved(e *core.Error) string {
	switch {
	case e.KeyID != "" && f.trail.Place == string(auth.PlaceQuery):
		return "the key exists; either its secret is wrong, or it was sent in the URL without allow_query"
	case e.KeyID != "":
		return "a key with this id exists, and its secret is another one"
	}
	return "no backend knows the credential"
}

// maxVerdicts bounds the refusals that can be told in full; the oldest are forgotten first. Those of someone who is known are in the store too.
const maxVerdicts = 4096

type verdicts struct {
	recent *lru.Cache[string, *facts] // by request id
	queue  chan string                // ids of those to be kept
}

func newVerdicts() (*verdicts, error) {
	recent, err := lru.New[string, *facts](maxVerdicts)
	return &verdicts{recent: recent, queue: make(chan string, 256)}, err
}

// note remembers why a request was refused.
func (v *verdicts) note(o core.Origin, who *auth.Principal, e *core.Error, at time.Time) {
	if o.RequestID == "" {
		return
	}
	f := &facts{origin: o, err: e, at: at}
	f.origin.Trail = nil
	if o.Trail != nil {
		f.trail = *o.Trail
	}
	if who != nil {
		p := *who
		f.who = &p
	}
	v.recent.Add(o.RequestID, f)
}

// keep has a refusal written. What the queue cannot take stays in memory only.
func (v *verdicts) keep(requestID string) {
	select {
	case v.queue <- requestID:
	default:
	}
}

func (s *Service) keepVerdict(requestID string) {
	f, ok := s.verdicts.recent.Peek(requestID)
	if !ok {
		return
	}
	v := f.verdict()
	text, err := json.Marshal(v)
	if err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		err = s.Store.PutRefusal(ctx, v.account, requestID, v.Time, string(text))
	}
	if err != nil {
		s.Logger.Warn("why a request was refused is not kept", "request_id", requestID, "error", err)
	}
}

func (s *Service) flushVerdicts() {
	for {
		select {
		case id := <-s.verdicts.queue:
			s.keepVerdict(id)
		default:
			return
		}
	}
}

// Explain tells why a request to the account was refused: the last few thousand, and for a week those of someone who was known. It needs the scope
// audit:read. CodeNotFound when nothing is known of such a request.
func (s *Service) Explain(ctx context.Context, p auth.Principal, requestID string) (*Verdict, error) {
	if !auth.Allows(p.Scopes, auth.ScopeAuditRead) {
		return nil, core.Errorf(core.CodeInsufficientScope, "this credential lacks the scope %s", auth.ScopeAuditRead)
	}
	// Whose it is comes first: another account's must take no longer than none.
	if f, ok := s.verdicts.recent.Peek(requestID); ok && f.account() == p.Account {
		return f.verdict(), nil
	}
	text, err := s.Store.Refusal(ctx, p.Account, requestID)
	if core.CodeOf(err) == core.CodeNotFound {
		return nil, core.Errorf(core.CodeNotFound, "no refused request with this id is known; it was let through, or it is too long ago")
	}
	if err != nil {
		return nil, err
	}
	v := &Verdict{}
	if err := json.Unmarshal([]byte(text), v); err != nil {
		return nil, core.Wrap(core.CodeInternal, err, "")
	}
	return v, nil
}
