package trigger

import (
	"context"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
)

// Tape returns the tape of an attempt of a step, for replaying it; attempt 0 is the last one that has a tape. It needs the scope workflows:write beside access to the run: a
// tape holds what services answered and all that was drawn at random, which no history shows, and only who publishes nodes could see that anyway.
func (s *Service) Tape(ctx context.Context, p auth.Principal, run, step string, attempt int) ([]byte, error) {
	found, err := s.Run(ctx, p, run)
	if err != nil {
		return nil, err
	}
	if !auth.Allows(p.Scopes, auth.ScopeRunsRead) || !auth.Allows(p.Scopes, auth.ScopeWorkflowsWrite) {
		return nil, core.Errorf(core.CodeInsufficientScope, "reading a tape needs the scopes %s and %s", auth.ScopeRunsRead, auth.ScopeWorkflowsWrite)
	}
	number, err := tapeOf(found, step, attempt)
	if err != nil {
		return nil, err
	}
	return s.Store.Tape(ctx, p.Account, run, step, number)
}

// tapeOf finds the attempt whose tape is asked for.
func tapeOf(run *core.Run, step string, attempt int) (int, error) {
	for i := range run.Steps {
		st := &run.Steps[i]
		if st.ID != step {
			continue
		}
		large := false
		for j := len(st.Attempts) - 1; j >= 0; j-- {
			a := &st.Attempts[j]
			switch {
			case attempt != 0 && a.Number != attempt:
			case a.Tape == core.TapeKept:
				return a.Number, nil
			default:
				large = large || a.Tape == core.TapeTooLarge
			}
		}
		if large {
			return 0, core.Errorf(core.CodeNotFound, "there is no tape: it was too large to be kept, or there were too many at that time")
		}
		return 0, core.Errorf(core.CodeNotFound, "there is no tape of it; a node whose attempts are to be replayed has record: failures, or record: all, in its workflow, and one whose module did not start leaves none")
	}
	return 0, core.Errorf(core.CodeNotFound, "the run has no such step")
}
