package trigger

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
)

const (
	refusalWindow  = time.Minute
	maxKept        = 1024 // rows that could not be written and are tried again; more are lost, which the log says
	maxRefusalKeys = 4096 // distinct (source, actor, code) in a window; the rest is counted under no source
	rowsPerWindow  = 100  // rows for one (source, actor, code) in a window; the rest is one summary row
)

// refusal reports whether a code is a decision about a credential, and so belongs into the audit log.
func refusal(c core.Code) bool {
	switch c {
	case core.CodeInvalidKey, core.CodeKeyExpired, core.CodeKeyRevoked, core.CodeKeyDisabled, core.CodeAmbiguousCredential, core.CodeAuthUnavailable,
		core.CodeSourceNotAllowed, core.CodeInsufficientScope, core.CodeNotFound, core.CodeWorkflowDisabled, core.CodeOverrideNotAllowed, core.CodeQuotaExhausted,
		core.CodeAccountDisabled, core.CodeUserDisabled, core.CodeInvalidLogin, core.CodeSessionExpired, core.CodeSessionEnded:
		return true
	}
	return false
}

// bad reports whether a code means that the credential itself failed, which counts against its source.
func bad(c core.Code) bool {
	return c == core.CodeInvalidKey || c == core.CodeAmbiguousCredential
}

// refusals counts refused credentials and writes them to the audit log. A refusal of someone who proved who they are gets its
// own row, written before the answer. One of an unproved credential must not cost a write that its sender can multiply or time:
// the first of a source, actor and code in a minute is written in the background, the others end up in one row that counts them.
type refusals struct {
	s     *Service
	queue chan core.AuditEvent

	mu      sync.Mutex
	opened  time.Time
	tallies map[tally]*tallied
	sources map[netip.Prefix]int
	kept    []core.AuditEvent // that could not be written
}

type tally struct {
	source netip.Prefix
	actor  string
	code   core.Code
}

type tallied struct {
	rows  int
	extra int64
	last  core.AuditEvent
}

func newRefusals(s *Service) *refusals {
	return &refusals{
		s: s, queue: make(chan core.AuditEvent, 256), opened: s.Now(),
		tallies: make(map[tally]*tallied), sources: make(map[netip.Prefix]int),
	}
}

// record notes the refusal of who, or of nobody known when who is nil, and returns the error to answer with.
func (r *refusals) record(ctx context.Context, o core.Origin, who *auth.Principal, err error) error {
	var e *core.Error
	if !errors.As(err, &e) {
		return err
	}
	if !refusal(e.Code) {
		r.s.verdicts.note(o, who, e, r.s.Now())
		return err
	}
	event := r.event(o, who, e)
	source := core.Network(o.Source)
	proved := (who != nil || e.KeyID != "") && !bad(e.Code)
	own := r.count(event, source, e.Code, proved)
	if wait := r.tooMany(source, e.Code); wait > 0 {
		limited := core.Wrap(core.CodeRateLimited, e, "too many bad credentials from this address")
		limited.RetryAfter, limited.KeyID, limited.Account = wait, e.KeyID, e.Account
		e, err = limited, limited
	}
	r.s.verdicts.note(o, who, e, r.s.Now()) // of what the sender is told
	if own {
		// Also of a caller who does not wait for the answer, which is nobody's way around the audit log.
		if werr := r.s.Store.Audit(context.WithoutCancel(ctx), event); werr != nil {
			r.keep(werr, event)
		}
		r.s.verdicts.keep(o.RequestID)
	}
	return err
}

// count counts a refusal. It reports whether the caller is to write a row of it; the rows of those that are not proved are written in the background.
func (r *refusals) count(event core.AuditEvent, source netip.Prefix, code core.Code, proved bool) (own bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	k := tally{source, event.Actor, code}
	t := r.tallies[k]
	if t == nil && len(r.tallies) >= maxRefusalKeys {
		k = tally{code: code}
		t = r.tallies[k]
	}
	if t == nil {
		t = &tallied{}
		r.tallies[k] = t
	}
	switch {
	case proved && t.rows < rowsPerWindow:
		t.rows++
		return true
	case !proved && t.rows < 1:
		t.rows++
		select {
		case r.queue <- event:
			return false
		default: // full
		}
	}
	t.extra++
	t.last = event
	return false
}

// tooMany counts a bad credential of a source and returns for how long the source is to wait, 0 for a source that may go on.
func (r *refusals) tooMany(source netip.Prefix, code core.Code) time.Duration {
	if !bad(code) {
		return 0
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.sources) < maxRefusalKeys || r.sources[source] > 0 {
		r.sources[source]++
	}
	if m := r.s.MaxBadCredentials; m < 0 || r.sources[source] <= m {
		return 0
	}
	return max(time.Second, refusalWindow-r.s.Now().Sub(r.opened))
}

func (r *refusals) event(o core.Origin, who *auth.Principal, e *core.Error) core.AuditEvent {
	event := core.NewEvent(r.s.NewID(core.PrefixEvent), r.s.Now(), o, core.ActionAuthRefuse, "")
	event.Outcome, event.Reason, event.KeyID = core.OutcomeRefused, string(e.Code), e.KeyID
	switch {
	case who != nil:
		who.Sign(&event)
	case e.KeyID != "":
		event.Actor = "key:" + e.KeyID
		if e.Account != "" {
			event.Account = e.Account
		}
	}
	return event
}

func (r *refusals) write(e core.AuditEvent) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := r.s.Store.Audit(ctx, e); err != nil {
		r.keep(err, e)
	}
}

// keep holds rows for the next flush that could not be written, as far as there is room: the database may be back by then. What it does not take, it would never take.
func (r *refusals) keep(err error, events ...core.AuditEvent) {
	code := core.CodeOf(err)
	away := !r.s.stopped() && (code == core.CodeStoreUnavailable || code == core.CodeOverloaded || errors.Is(err, context.DeadlineExceeded))
	held := 0
	r.mu.Lock()
	if away {
		held = min(len(events), maxKept-len(r.kept))
	}
	r.kept = append(r.kept, events[:held]...)
	r.mu.Unlock()
	if held > 0 {
		r.s.Logger.Warn("refusals not audited yet; trying again soon", "rows", held, "error", err)
	}
	for _, e := range events[held:] {
		r.s.Logger.Error("refusal not audited", "code", e.Reason, "actor", e.Actor, "request_id", e.RequestID, "error", err)
	}
}

// flush ends the window when it is over, and always when the service stops.
func (r *refusals) flush(ctx context.Context) {
	var events []core.AuditEvent
	for drained := false; !drained; {
		select {
		case e := <-r.queue:
			events = append(events, e)
		default:
			drained = true
		}
	}
	now := r.s.Now()
	r.mu.Lock()
	events = append(r.kept, events...)
	r.kept = nil
	if now.Sub(r.opened) >= refusalWindow || r.s.stopped() {
		for _, t := range r.tallies {
			if t.extra > 0 {
				t.last.ID = r.s.NewID(core.PrefixEvent)
				t.last.Count = t.extra
				events = append(events, t.last)
			}
		}
		r.opened = now
		clear(r.tallies)
		clear(r.sources)
	}
	r.mu.Unlock()
	if len(events) == 0 {
		return
	}
	if err := r.s.Store.Audit(ctx, events...); err != nil {
		r.keep(err, events...)
	}
}

// lastUsed collects when keys were used. It holds at most one time a key, and keys are bounded by how many exist.
type lastUsed struct {
	mu      sync.Mutex
	keys    map[string]time.Time
	written map[string]time.Time // when a key was last taken, if that is less than a minute ago
}

func newLastUsed() *lastUsed {
	return &lastUsed{keys: make(map[string]time.Time), written: make(map[string]time.Time)}
}

func (l *lastUsed) note(key string, at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.keys[key] = at
}

// back takes back what could not be written.
func (l *lastUsed) back(used map[string]time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for key, at := range used {
		delete(l.written, key)
		if l.keys[key].Before(at) {
			l.keys[key] = at
		}
	}
}

// touchEvery is how often a key's last use is written at most. It is asked twice as often, so a use is written within a minute.
const touchEvery = 50 * time.Second

// take returns what is to be written: no key more than about once a minute, but all of them when it is the last time.
func (l *lastUsed) take(now time.Time, last bool) map[string]time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	for key, at := range l.written {
		if now.Sub(at) >= touchEvery {
			delete(l.written, key)
		}
	}
	due := make(map[string]time.Time, len(l.keys))
	for key, at := range l.keys {
		if _, recent := l.written[key]; recent && !last {
			continue
		}
		due[key], l.written[key] = at, now
		delete(l.keys, key)
	}
	return due
}
