package trigger

import (
	"context"
	"strings"

	"github.com/keyfire/keyfire/core"
)

// messageKey keeps ids of webhook messages apart from the Idempotency-Keys of the same caller, none of which has a space, and is their fingerprint: the id
// alone decides whether a message is a repetition, since senders may wrap a redelivery in a body that counts it.
const messageKey = "webhook-id "

// addressed returns the workflow that is named by somebody of whom nothing else is known, and its newest version. A slug or alias is one of the default account; an
// id finds its account by itself.
func (s *Service) addressed(ctx context.Context, ref string) (core.Workflow, *pinned, error) {
	name, _, err := splitRef(ref)
	if err != nil {
		return core.Workflow{}, nil, err
	}
	w, err := s.Store.Workflow(ctx, core.DefaultAccount, name)
	if core.CodeOf(err) == core.CodeNotFound && strings.HasPrefix(name, core.PrefixWorkflow) {
		var account string
		if account, err = s.Store.WorkflowAccount(ctx, name); err == nil {
			w, err = s.Store.Workflow(ctx, account, name)
		}
	}
	if err != nil {
		return core.Workflow{}, nil, err
	}
	v, err := s.version(ctx, w.Account, w.ID, w.Version)
	return w, v, err
}

// Webhook returns the workflow that the URL of a webhook names, and what its newest version says about signatures. CodeNotFound is a workflow
// that does not exist or says nothing.
func (s *Service) Webhook(ctx context.Context, ref string) (core.Workflow, *core.WebhookSpec, error) {
	w, v, err := s.addressed(ctx, ref)
	if err != nil {
		return core.Workflow{}, nil, err
	}
	if v.def.Trigger.Webhook == nil {
		return core.Workflow{}, nil, errNotFound()
	}
	return w, v.def.Trigger.Webhook, nil
}
