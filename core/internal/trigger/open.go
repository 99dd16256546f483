package trigger

import (
	"context"
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
}

// Ticket is an Attempt that may start a run. It is used once.
type Ticket struct {
	Principal auth.Principal
	Workflow  core.Workflow
	Version   int
	origin    core.Origin
	pinned    *pinned
}

// Definition returns what the run will execute. It must not be changed.
func (t *Ticket) Definition() *core.Definition { return &t.pinned.def }

// Public is the subject of a caller without a credential, on a workflow that is public.
const Public = "public"

// Authenticate says who a credential is. It is the one gate for every route of the server: it counts and audits refusals, notes
// the use of keys, and slows down sources that keep sending bad credentials.
func (s *Service) Authenticate(ctx context.Context, c auth.Credential, o core.Origin) (auth.Principal, error) {
	p, err := s.Chain.Authenticate(ctx, c)
	if err != nil {
		return auth.Principal{}, s.Refuse(ctx, o, err)
	}
	if err := s.accountOpen(ctx, &p); err != nil {
		if core.CodeOf(err) == core.CodeAccountDisabled {
			return auth.Principal{}, s.RefuseKnown(ctx, p, o, err)
		}
		return auth.Principal{}, s.Refuse(ctx, o, err)
	}
	if p.Key != nil {
		s.used.note(p.Key.ID, s.Now())
	}
	return p, nil
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
		ref, _, err := splitRef(a.Workflow)
		if err == nil {
			if w, err := s.Store.Workflow(ctx, core.DefaultAccount, ref); err == nil && w.Enabled {
				if v, err := s.version(ctx, w.Account, w.ID, w.Version); err == nil && v.def.Trigger.Public {
					return auth.Principal{Account: w.Account, Subject: Public, Backend: "none", Scopes: []string{auth.ScopeRunWorkflow + w.ID}}, nil
				}
			}
		}
	}
	return s.Authenticate(ctx, a.Credential, a.Origin)
}

func (s *Service) authorize(ctx context.Context, p auth.Principal, a Attempt) (*Ticket, error) {
	own := auth.WorkflowScopes(p.Scopes)
	all := auth.Allows(p.Scopes, auth.ScopeRunAll)
	if !all && len(own) == 0 {
		return nil, core.Errorf(core.CodeInsufficientScope, "this credential may not run workflows")
	}
	name := a.Workflow
	if name == "" {
		if all || len(own) != 1 {
			return nil, core.Errorf(core.CodeWorkflowRequired, "this key is not made for one workflow; name one: POST /v1/workflows/{workflow}/runs")
		}
		name = own[0]
	}
	ref, version, err := splitRef(name)
	var w core.Workflow
	if err == nil {
		w, err = s.Store.Workflow(ctx, p.Account, ref)
	}
	switch {
	case err == nil && named(p, own, w):
	case !all && (err == nil || core.CodeOf(err) == core.CodeNotFound):
		return nil, core.Errorf(core.CodeInsufficientScope, "this key is not made for that workflow")
	case err != nil:
		return nil, err
	}
	// The newest version decides about access: an old version pinned by the caller must not reopen what its author has closed.
	current, err := s.version(ctx, w.Account, w.ID, w.Version)
	if err != nil {
		return nil, err
	}
	if !named(p, own, w) && !current.def.Trigger.GlobalKeys {
		return nil, core.Errorf(core.CodeInsufficientScope, "this workflow takes only keys that are made for it")
	}
	pinned := current
	if version == 0 {
		version = w.Version
	} else if version != w.Version {
		if pinned, err = s.version(ctx, w.Account, w.ID, version); err != nil {
			return nil, err
		}
	}
	if !w.Enabled {
		return nil, core.Errorf(core.CodeWorkflowDisabled, "the trigger of this workflow is not enabled; its author enables it with trigger.enabled: true or keyfire workflows enable")
	}
	return &Ticket{Principal: p, Workflow: w, Version: version, origin: a.Origin, pinned: pinned}, nil
}

// named reports whether one of the scopes is for this workflow alone. A key's scopes hold ids, which were looked up when it was made. Those of
// other backends come from a configuration or a directory, where people write names.
func named(p auth.Principal, own []string, w core.Workflow) bool {
	return slices.Contains(own, w.ID) || p.Key == nil && slices.Contains(own, w.Slug)
}

// splitRef takes "name@version" apart; version is 0 when it is not given.
func splitRef(s string) (name string, version int, err error) {
	name, v, pinned := strings.Cut(s, "@")
	if !pinned {
		return name, 0, nil
	}
	version, err = strconv.Atoi(v)
	if err != nil || version < 1 {
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
