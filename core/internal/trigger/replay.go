package trigger

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/keyfire/keyfire/core"
)

// Where a replay begins, beside a step's id.
const (
	ReplayStart  = "start"
	ReplayFailed = "failed"
)

// Which version of the workflow a replay executes, beside a number.
const (
	ReplaySame   = "same"
	ReplayLatest = "latest"
)

// Replay is what a run is repeated with.
type Replay struct {
	// From is ReplayStart, ReplayFailed for the steps that did not succeed, or a step's id for that step and all that needs it. "" is ReplayStart.
	From string
	// Version is which version of the workflow is executed: ReplaySame, ReplayLatest or a number. "" is ReplaySame.
	Version string
	// Input replaces the input; nil keeps it. Only from the start.
	Input json.RawMessage
	// IdempotencyKey makes a repeated request find the run of the first one.
	IdempotencyKey string
}

// ReplayRun starts a new, durable run that repeats an ended one of the same account, with the results of the steps that are not repeated. The caller
// must be allowed to read the old run and to run its workflow, and is charged as for any run. CodeReplayIncompatible, which names the step, when
// a result that is to be kept does not fit the version or was not kept whole.
func (s *Service) ReplayRun(ctx context.Context, c Caller, id string, r Replay) (*Begun, error) {
	old, err := s.Run(ctx, c.Principal, id)
	if err != nil {
		return nil, err
	}
	if !old.Status.Terminal() {
		return nil, core.Errorf(core.CodeConflict, "the run has not ended; cancel it first, or wait for its end")
	}
	r.From, r.Version = cmp.Or(r.From, ReplayStart), cmp.Or(r.Version, ReplaySame)
	ref := old.Workflow.ID
	switch r.Version {
	case ReplaySame:
		ref += fmt.Sprintf("@%d", old.Workflow.Version)
	case ReplayLatest:
	default:
		ref += "@" + r.Version
	}
	ticket, err := s.Open(ctx, Attempt{Principal: &c.Principal, Origin: c.Origin, Workflow: ref})
	if err != nil {
		return nil, err
	}
	def := ticket.Definition()
	steps, err := keptSteps(old, def, r.From)
	if err != nil {
		return nil, err
	}
	// What callers may override is decided by the version that is executed, as for any run.
	var overrides map[string]map[string]json.RawMessage
	if len(old.Overrides) > 0 {
		if err := json.Unmarshal(old.Overrides, &overrides); err != nil {
			return nil, core.Wrap(core.CodeInternal, err, "the overrides of the run cannot be read")
		}
		if _, err := checkOverrides(def, overrides); err != nil {
			return nil, s.RefuseKnown(ctx, c.Principal, c.Origin, err)
		}
	}
	p := Payload{Input: old.Input, Metadata: old.Metadata, IdempotencyKey: r.IdempotencyKey, Durable: true, ticket: ticket, repeats: old.ID + " from " + r.From}
	if r.Input != nil {
		if r.From != ReplayStart {
			return nil, core.Errorf(core.CodeInvalidRequest, "the input can be replaced only from the start: results that are kept came from the old one")
		}
		p.Input = r.Input
	}
	if err := ticket.pinned.checkInput(p.Input); err != nil {
		return nil, err
	}
	run := s.newRun(ctx, ticket, p, old.Overrides)
	run.Trigger.Type, run.ReplayOf, run.Steps = "replay", old.ID, steps
	begun, err := s.enqueue(ctx, run, def, p, nil)
	if err != nil {
		return nil, s.RefuseKnown(ctx, c.Principal, c.Origin, err)
	}
	return begun, nil
}

// keptSteps returns a step for every node, those of the old run that are not repeated and pending ones.
func keptSteps(old *core.Run, def *core.Definition, from string) ([]core.Step, error) {
	if from == ReplayStart {
		return nil, nil
	}
	incompatible := func(format string, args ...any) error {
		return core.Errorf(core.CodeReplayIncompatible, format, args...)
	}
	repeated := map[string]bool{}
	if from != ReplayFailed {
		if _, ok := def.Node(from); !ok {
			return nil, incompatible("the version has no step %q to replay from", core.Clip(from))
		}
		repeated[from] = true
		for grown := true; grown; { // nodes may stand in any order
			grown = false
			for i := range def.Nodes {
				n := &def.Nodes[i]
				if !repeated[n.ID] && slices.ContainsFunc(n.Needs, func(need string) bool { return repeated[need] }) {
					repeated[n.ID], grown = true, true
				}
			}
		}
	} else if !slices.ContainsFunc(old.Steps, func(st core.Step) bool { return st.Status != core.StepSucceeded && st.Status != core.StepSkipped }) {
		return nil, incompatible("the run has no step that failed")
	}
	steps := make([]core.Step, len(def.Nodes))
	for i := range def.Nodes {
		steps[i] = core.Step{ID: def.Nodes[i].ID, Status: core.StepPending}
	}
	for _, st := range old.Steps {
		if st.Status != core.StepSucceeded || repeated[st.ID] {
			continue
		}
		i := slices.IndexFunc(def.Nodes, func(n core.Node) bool { return n.ID == st.ID })
		switch {
		case i < 0:
			return nil, incompatible("step %s, whose result would be kept, is not in the version", st.ID)
		case omitted(st.Output):
			return nil, incompatible("the result of step %s was too large to be kept; replay from there or from the start", st.ID)
		}
		st.Attempts = slices.Clone(st.Attempts)
		for j := range st.Attempts {
			st.Attempts[j].Tape = "" // that is the old run's
		}
		steps[i] = st
	}
	return steps, nil
}

// omitted reports whether a document is what is left of one that was too large to be kept.
func omitted(raw json.RawMessage) bool {
	var left struct {
		Omitted *struct {
			SHA256 string `json:"sha256"`
		} `json:"keyfire_omitted"`
	}
	return json.Unmarshal(raw, &left) == nil && left.Omitted != nil && left.Omitted.SHA256 != ""
}
