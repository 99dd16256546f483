package trigger

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/workflow"
)

// Attempt is a request to run a workflow, before its body was read.
type Attempt struct {
	Credential auth.Credential
	// Principal is set instead of Credential when the transport has proved who calls, as the local socket does.
	Principal *auth.Principal
	Origin    core.Origin
	// Workflow is an id, slug or alias, with an optional "@version". "" means the one workflow the key is made for.
	Workflow string
	Place    *Place // in the line, or nil; Begin gives it back
	// Repeatable says that the request has an Idempotency-Key or the id of a message. It may then repeat one from before the workflow was switched off, which Begin finds out.
	Repeatable bool
}

// Ticket is an Attempt that may start a run. It is used once.
type Ticket struct {
	Principal auth.Principal
	Workflow  core.Workflow
	Version   int
	place     *Place
	asked     bool // for the version, instead of for the newest
	origin    core.Origin
	pinned    *pinned
	current   *pinned // the newest version, which decides about access
	closed    error   // why only a repetition is answered, or nil
}

// Definition returns what the run will execute. It must not be changed.
func (t *Ticket) Definition() *core.Definition { return &t.pinned.def }

// Origins returns the web origins that the workflow, in its newest version, lets call it. They must not be changed.
func (t *Ticket) Origins() []string { return t.current.def.Trigger.AllowedOrigins }

// PageKnown reports whether pages of a web origin may call at all: some key that can be used allows it, or the workflow with this name does, "" being none. It is
// asked before anybody has said who they are.
func (s *Service) PageKnown(ctx context.Context, origin, workflow string) (bool, error) {
	if workflow != "" {
		if _, current, err := s.addressed(ctx, workflow); err == nil && slices.Contains(current.def.Trigger.AllowedOrigins, origin) {
			return true, nil
		}
	}
	return s.Store.OriginAllowed(ctx, origin, s.Now())
}

// Public is the subject of a caller without a credential, on a workflow that is public.
const Public = "public"

// Authenticate says who a credential is. It is the one gate for every route of the server: it counts and audits refusals, notes
// the use of keys, and slows down sources that keep sending bad credentials.
func (s *Service) Authenticate(ctx context.Context, c auth.Credential, o core.Origin) (auth.Principal, error) {
	c.Trail = o.Trail
	if o.Trail != nil {
		// A request that follows a run is judged again and again, for days. What was said before does not count, and must not pile up.
		o.Trail.Place, o.Trail.Backends = string(c.Place), nil
	}
	p, err := s.Chain.Authenticate(ctx, c)
	if err != nil {
		if o.Trail != nil {
			o.Trail.Shape = c.Shape()
		}
		return auth.Principal{}, s.Refuse(ctx, o, err)
	}
	if err := s.accountOpen(ctx, &p); err != nil {
		if core.CodeOf(err) == core.CodeAccountDisabled {
			return auth.Principal{}, s.RefuseKnown(ctx, p, o, err)
		}
		return auth.Principal{}, s.Refuse(ctx, o, err)
	}
	s.line.prove(c, &p)
	if p.Key != nil {
		now := s.Now()
		s.used.note(p.Key.ID, now)
		s.usage.secret(core.SecretUse{PublicID: p.SecretID, At: now, Source: o.SourceIP(), Agent: o.UserAgent})
	}
	return p, nil
}

// AccountOpen returns why the account of a principal that was let in before may not act any more, or nil.
func (s *Service) AccountOpen(ctx context.Context, p auth.Principal) error {
	return s.accountOpen(ctx, &p)
}

// accountOpen decides whether the account of a principal may act now. It asks the store every time, so that what it says holds from the next request on,
// whichever backend the principal is from.
func (s *Service) accountOpen(ctx context.Context, p *auth.Principal) error {
	err := s.Store.AccountOpen(ctx, p.Account)
	switch core.CodeOf(err) {
	case "", core.CodeAccountDisabled:
		return err
	case core.CodeNotFound:
		if p.Key == nil && p.Session == nil {
			return core.Wrap(core.CodeAuthUnavailable, fmt.Errorf("backend %s speaks for the account %s, which does not exist", p.Backend, p.Account), "the auth backend gave an unusable answer")
		}
		// What is left of a deleted account is as unknown as if it had never been.
		e := core.Wrap(core.CodeInvalidKey, err, "the API key is not valid")
		if p.Key != nil {
			e.KeyID, e.Account = p.Key.ID, p.Account
		}
		return e
	}
	return core.Wrap(core.CodeAuthUnavailable, err, "credentials cannot be checked right now")
}

// Refuse records that a credential or its use was refused and returns the error to answer with: err itself, or CodeRateLimited for a source
// that has sent too many bad credentials. The server calls it for refusals it decides on its own, such as two credentials in one request.
func (s *Service) Refuse(ctx context.Context, o core.Origin, err error) error {
	return s.refusals.record(ctx, o, nil, err)
}

// RefuseKnown is Refuse for what a principal may not do: the audit log names the principal, in its own account.
func (s *Service) RefuseKnown(ctx context.Context, p auth.Principal, o core.Origin, err error) error {
	if p.Subject == Public {
		return s.Refuse(ctx, o, err)
	}
	return s.refusals.record(ctx, o, &p, err)
}

// Open authenticates an attempt, resolves the workflow and decides whether the principal may run it. Errors are a *core.Error;
// a key that is made for certain workflows is told CodeInsufficientScope for every other name, whether it exists or not.
func (s *Service) Open(ctx context.Context, a Attempt) (*Ticket, error) {
	p, err := s.principal(ctx, a)
	if err != nil {
		return nil, err
	}
	t, err := s.authorize(ctx, p, a)
	if err == nil {
		trace.SpanFromContext(ctx).SetAttributes(
			attribute.String("keyfire.workflow.id", t.Workflow.ID),
			attribute.String("keyfire.workflow.slug", t.Workflow.Slug),
			attribute.Int("keyfire.workflow.version", t.Version),
			attribute.String("keyfire.principal", p.Subject),
		)
		return t, nil
	}
	return nil, s.RefuseKnown(ctx, p, a.Origin, err)
}

// principal authenticates, and lets callers without a credential through to public workflows.
func (s *Service) principal(ctx context.Context, a Attempt) (auth.Principal, error) {
	if a.Principal != nil {
		return *a.Principal, nil
	}
	if a.Credential.None() && a.Workflow != "" {
		w, v, err := s.addressed(ctx, a.Workflow)
		if err == nil && w.Enabled && v.def.Trigger.Public && s.Store.AccountOpen(ctx, w.Account) == nil {
			return auth.Principal{Account: w.Account, Subject: Public, Backend: "none", Scopes: []string{auth.ScopeRunWorkflow + w.ID}}, nil
		}
	}
	p, err := s.Authenticate(ctx, a.Credential, a.Origin)
	if err == nil && a.Credential.Place != auth.PlaceHeader {
		a.Place.belong(holder(p.Account, p.Subject))
	}
	return p, err
}

func (s *Service) authorize(ctx context.Context, p auth.Principal, a Attempt) (*Ticket, error) {
	reach := auth.ReachOf(p.Scopes)
	if reach.None() {
		return nil, core.Errorf(core.CodeInsufficientScope, "this credential may not run workflows")
	}
	name := a.Workflow
	if name == "" {
		if name = reach.Single(); name == "" {
			return nil, core.Errorf(core.CodeWorkflowRequired, "this key is not made for one workflow; name one: POST /v1/workflows/{workflow}/runs")
		}
	}
	if a.Origin.Trail != nil {
		a.Origin.Trail.Workflow = a.Workflow
	}
	ref, version, err := splitRef(name)
	var w core.Workflow
	if err == nil {
		w, err = s.Store.Workflow(ctx, p.Account, ref)
	}
	switch {
	case err == nil:
	case core.CodeOf(err) == core.CodeNotFound && !reach.All && !reach.Below(ref):
		return nil, errOtherWorkflow()
	default:
		return nil, err
	}
	// The newest version decides about access: an old version pinned by the caller must not reopen what its author has closed.
	current, err := s.version(ctx, w.Account, w.ID, w.Version)
	if err != nil {
		return nil, err
	}
	scope, err := permits(p, w, &current.def)
	if err != nil {
		return nil, err
	}
	if a.Origin.Trail != nil {
		a.Origin.Trail.Scope = scope
	}
	if err := CheckPage(p, a.Origin, current.def.Trigger.AllowedOrigins); err != nil {
		return nil, err
	}
	pinned, asked := current, version != 0
	if version == 0 {
		version = w.Version
	} else if version != w.Version {
		if pinned, err = s.version(ctx, w.Account, w.ID, version); err != nil {
			return nil, err
		}
	}
	t := &Ticket{place: a.Place, Principal: p, Workflow: w, Version: version, asked: asked, origin: a.Origin, pinned: pinned, current: current}
	if !w.Enabled {
		t.closed = core.Errorf(core.CodeWorkflowDisabled, "the trigger of this workflow is not enabled; its author enables it with trigger.enabled: true or keyfire workflows enable")
		if !a.Repeatable {
			return nil, t.closed
		}
	}
	return t, nil
}

// permits returns the scope by which a principal may run a workflow, or why it may not. A workflow that takes no account-wide keys takes none for a prefix
// either: those too are for workflows that nobody has named.
func permits(p auth.Principal, w core.Workflow, current *core.Definition) (scope string, err error) {
	reach := auth.ReachOf(p.Scopes)
	switch {
	// A key's scopes hold ids, which were looked up when it was made. Those of other backends come from a configuration or a directory, where
	// people write names.
	case slices.Contains(reach.Workflows, w.ID):
		return auth.ScopeRunWorkflow + w.ID, nil
	case p.Key == nil && slices.Contains(reach.Workflows, w.Slug):
		return auth.ScopeRunWorkflow + w.Slug, nil
	case reach.All:
		scope = auth.ScopeRunAll
	case reach.Below(w.Slug):
		for _, prefix := range reach.Prefixes {
			if strings.HasPrefix(w.Slug, prefix) {
				scope = auth.ScopeRunWorkflow + prefix + "*"
			}
		}
	default:
		return "", errOtherWorkflow()
	}
	if !current.Trigger.GlobalKeys {
		return "", core.Errorf(core.CodeInsufficientScope, "this workflow takes only keys that are made for it")
	}
	return scope, nil
}

func errOtherWorkflow() *core.Error {
	return core.Errorf(core.CodeInsufficientScope, "this key is not made for that workflow")
}

// CheckPage refuses a key that is for pages of certain origins when a page of another one sends it. also are further origins that may. A request that comes
// from no page has none to check, and neither has a page of this server.
func CheckPage(p auth.Principal, o core.Origin, also []string) error {
	if p.Key == nil || len(p.Key.AllowedOrigins) == 0 || o.Page == "" || slices.Contains(p.Key.AllowedOrigins, o.Page) || slices.Contains(also, o.Page) {
		return nil
	}
	e := core.Errorf(core.CodeSourceNotAllowed, "this key may not be used by pages of that origin")
	e.KeyID = p.Key.ID
	return e
}

// splitRef takes "name@version" apart; version is 0 when it is not given.
func splitRef(s string) (name string, version int, err error) {
	name, v, pinned := strings.Cut(s, "@")
	if !pinned {
		return name, 0, nil
	}
	version, err = strconv.Atoi(v)
	if err != nil || version < 1 || v[0] == '0' || v[0] == '+' { // a version is written in one way
		return "", 0, errNotFound()
	}
	return name, version, nil
}

func errNotFound() *core.Error { return core.Errorf(core.CodeNotFound, "there is no such workflow") }

const maxPinned = 1024

// pin names one version of a workflow.
type pin struct {
	workflow string
	version  int
}

// pinned is what executing a version needs, ready to use.
type pinned struct {
	def    core.Definition
	digest string
	schema *workflow.Schema // nil accepts any input
}

// checkInput refuses an input that the schema of the version does not accept, and tells of every place that is wrong.
func (p *pinned) checkInput(input json.RawMessage) error {
	if p.schema == nil {
		return nil
	}
	fields := p.schema.Validate(input)
	if len(fields) == 0 {
		return nil
	}
	e := core.Errorf(core.CodeInvalidInput, "%d fields are invalid", len(fields))
	switch len(fields) {
	case 1:
		e.Message = "1 field is invalid"
	case workflow.MaxProblems:
		e.Message = fmt.Sprintf("at least %d fields are invalid; these are the first", len(fields))
	}
	e.Fields = fields
	return e
}

func (s *Service) version(ctx context.Context, account, id string, version int) (*pinned, error) {
	key := pin{id, version}
	if v, ok := s.pinned.Get(key); ok {
		return v, nil
	}
	v, err := s.Store.Version(ctx, account, id, version)
	if err != nil {
		return nil, err
	}
	p := &pinned{def: v.Definition, digest: v.Digest}
	if len(v.Definition.Input) > 0 {
		if p.schema, err = workflow.CompileSchema(v.Definition.Input); err != nil {
			return nil, core.Wrap(core.CodeInternal, err, "the workflow's input schema cannot be used")
		}
	}
	s.pinned.Add(key, p)
	return p, nil
}
