package trigger

import (
	"context"
	"slices"
	"strings"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
)

// Run returns one run with its steps. Whoever may not read all runs of the account reads only those it started; any other run
// is CodeNotFound, exactly as one that does not exist.
func (s *Service) Run(ctx context.Context, p auth.Principal, id string) (*core.Run, error) {
	run, err := s.Store.Run(ctx, p.Account, id)
	if core.CodeOf(err) == core.CodeNotFound || err == nil && !mayRead(p, run) {
		return nil, core.Errorf(core.CodeNotFound, "there is no such run")
	}
	if err != nil {
		return nil, err
	}
	if run.Durable && !run.Status.Terminal() {
		s.fillSteps(ctx, run)
	}
	return run, nil
}

// fillSteps adds the steps that are not recorded yet to a run that has not ended.
func (s *Service) fillSteps(ctx context.Context, run *core.Run) {
	v, err := s.version(ctx, run.Account, run.Workflow.ID, run.Workflow.Version)
	if err != nil {
		return // what is recorded is all that is known
	}
	recorded := run.Steps
	run.Steps = make([]core.Step, len(v.def.Nodes))
	for i := range v.def.Nodes {
		n := &v.def.Nodes[i]
		run.Steps[i] = core.Step{ID: n.ID, Status: core.StepPending, Module: n.Module}
		for _, st := range recorded {
			if st.ID == n.ID {
				run.Steps[i] = st
			}
		}
	}
}

func mayRead(p auth.Principal, run *core.Run) bool { return mayReadOf(p, run.Trigger.Principal) }

// mayReadOf reports whether a principal may read the runs that a principal of its account has started.
func mayReadOf(p auth.Principal, starter string) bool {
	return auth.Allows(p.Scopes, auth.ScopeRunsRead) || startedBy(p, starter)
}

func startedBy(p auth.Principal, starter string) bool {
	return starter == p.Subject && p.Subject != Public
}

// runToActOn is Run for whoever wants to do something to the run. Reading all runs is no right to stop those of others: that takes one to run their workflow, whatever
// keys it admits, or to change it. The run shows the name that its workflow had.
func (s *Service) runToActOn(ctx context.Context, c Caller, id string) (*core.Run, error) {
	run, err := s.Run(ctx, c.Principal, id)
	if err != nil {
		return nil, err
	}
	p, reach := c.Principal, auth.ReachOf(c.Principal.Scopes)
	switch {
	case startedBy(p, run.Trigger.Principal), reach.All, auth.Allows(p.Scopes, auth.ScopeWorkflowsWrite):
	case slices.Contains(reach.Workflows, run.Workflow.ID), reach.Below(run.Workflow.Slug):
	case p.Key == nil && slices.Contains(reach.Workflows, run.Workflow.Slug): // see permits
	default:
		return nil, core.Errorf(core.CodeInsufficientScope, "another credential started this run, and yours may read it, but neither run nor change its workflow")
	}
	return run, nil
}

// Runs lists runs of the account, newest first, without input, output and steps. It needs the scope runs:read. f.Workflow may be an id, slug or
// alias; one that does not exist matches nothing, but by its id the runs of a deleted workflow are found.
func (s *Service) Runs(ctx context.Context, p auth.Principal, f core.RunFilter, page core.Page) (core.List[core.Run], error) {
	if !auth.Allows(p.Scopes, auth.ScopeRunsRead) {
		return core.List[core.Run]{}, core.Errorf(core.CodeInsufficientScope, "listing runs needs the scope %s; a trigger key reads the runs it started one by one", auth.ScopeRunsRead)
	}
	if f.Workflow != "" {
		w, err := s.Store.Workflow(ctx, p.Account, f.Workflow)
		switch core.CodeOf(err) {
		case "":
			f.Workflow = w.ID
		case core.CodeNotFound:
			if !strings.HasPrefix(f.Workflow, core.PrefixWorkflow) {
				return core.List[core.Run]{}, nil
			}
		default:
			return core.List[core.Run]{}, err
		}
	}
	return s.Store.Runs(ctx, p.Account, f, page)
}
