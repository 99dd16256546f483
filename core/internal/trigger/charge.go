package trigger

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
)

const (
	maxSpent = 4096 // keys
	// accountSpent bounds how long a refusal by an account's limit is repeated without asking, since a key does not show that the account's limits have changed.
	accountSpent = time.Second
	// maxJudgings bounds how often one admission is judged while its key is being changed. Each time takes a committed change of the key, so
	// this many are no operator's work but a loop's.
	maxJudgings = 64
)

// spent is a rate limit that was found used up, and until when. A bucket is only ever drained by others meanwhile, so until then the answer is known,
// and a flood of requests on a key does not reach the store.
type spent struct {
	revision     int64
	since, until time.Time
	refusal      *core.Error
}

// charge admits the run, and judges the ticket again when its key has changed since it was opened. A run that nobody has asked for, such as that of a schedule,
// has no ticket.
func (s *Service) charge(ctx context.Context, t *Ticket, a core.Admission) (core.Admitted, error) {
	if t == nil {
		return s.Store.Admit(ctx, a)
	}
	for range maxJudgings {
		key := t.Principal.Key
		if key != nil {
			a.KeyRevision, a.KeyLimited = key.Revision, key.Limited()
			// A repeated request is answered whatever the limits, and only the store knows whether it is one.
			if a.Idempotency == nil && a.Dedupe == nil {
				if err := s.limited(key, a.Run.CreatedAt); err != nil {
					return core.Admitted{}, err
				}
			}
		}
		out, err := s.Store.Admit(ctx, a)
		switch {
		case core.CodeOf(err) == core.CodeNotFound && key != nil && !auth.ReachOf(key.Scopes).All && !auth.ReachOf(key.Scopes).Below(t.Workflow.Slug):
			return out, errOtherWorkflow() // it was deleted a moment ago, and is now what any other one is
		case err != nil:
			s.noteSpent(key, a.Run.CreatedAt, err)
			return out, err
		case !out.KeyChanged:
			if key != nil && out.RunID == a.Run.ID {
				s.usage.run(&a.Run, t.origin.UserAgent)
			}
			return out, nil
		}
		if err := s.reopen(ctx, t); err != nil {
			return core.Admitted{}, err
		}
	}
	e := core.Errorf(core.CodeOverloaded, "the key is being changed again and again; try again")
	e.RetryAfter = time.Second
	return core.Admitted{}, e
}

// limited returns the refusal that is known to come.
func (s *Service) limited(key *auth.Key, now time.Time) error {
	if len(key.RateLimits) == 0 {
		return nil
	}
	known, ok := s.spent.Get(key.ID)
	if !ok || known.revision != key.Revision || !now.Before(known.until) || now.Before(known.since) { // before: the clock was set back
		return nil
	}
	e := *known.refusal
	past := now.Sub(known.since)
	e.RetryAfter = max(e.RetryAfter-past, 0)
	e.Limits = make([]core.LimitState, len(known.refusal.Limits))
	for i, l := range known.refusal.Limits {
		// What an account's other keys take meanwhile is not known here, nor for longer than accountSpent.
		if at := slices.IndexFunc(key.RateLimits, func(r core.RateLimit) bool { return r.Name == l.Name }); at >= 0 && l.Kind == core.LimitRate {
			l = key.RateLimits[at].Later(l, past)
		} else {
			l.Reset = max(l.Reset-past, 0)
		}
		e.Limits[i] = l
	}
	return &e
}

func (s *Service) noteSpent(key *auth.Key, now time.Time, err error) {
	e, ok := err.(*core.Error) //nolint:errorlint // a refusal of the store is not wrapped; anything else is not one to keep
	if key == nil || !ok || e.Code != core.CodeRateLimited || e.RetryAfter <= 0 {
		return
	}
	known := e.RetryAfter
	if slices.ContainsFunc(e.Limits, func(l core.LimitState) bool {
		return strings.HasPrefix(l.Name, core.AccountLimit) && l.Kind == core.LimitRate && l.Remaining == 0
	}) {
		known = min(known, accountSpent)
	}
	if at := slices.IndexFunc(e.Limits, func(l core.LimitState) bool { return l.Kind == core.LimitQuota && l.Reset > 0 }); at >= 0 {
		known = min(known, e.Limits[at].Reset) // when there is more left of it
	}
	s.spent.Add(key.ID, spent{revision: key.Revision, since: now, until: now.Add(known), refusal: e})
}

// reopen judges a ticket by its key as it is now.
func (s *Service) reopen(ctx context.Context, t *Ticket) error {
	key, err := s.Store.Key(ctx, t.Principal.Account, t.Principal.Key.ID)
	if err != nil {
		return err
	}
	if err := auth.CheckState(key, s.Now()); err != nil {
		return err
	}
	if err := auth.CheckSource(key, t.origin.Source); err != nil {
		return err
	}
	t.Principal.Key, t.Principal.Scopes = key, key.Scopes
	if _, err := permits(t.Principal, t.Workflow, &t.current.def); err != nil {
		return err
	}
	return CheckPage(t.Principal, t.origin, t.current.def.Trigger.AllowedOrigins)
}
