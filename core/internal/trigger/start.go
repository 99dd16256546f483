package trigger

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"maps"
	"runtime/debug"
	"slices"
	"strconv"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/keyfire/keyfire/core"
)

// idempotencyKept is how long an Idempotency-Key finds its run. It is part of the API's documentation.
const idempotencyKept = 24 * time.Hour

// Payload is what a caller sends along, already checked for JSON syntax.
type Payload struct {
	Input          json.RawMessage // nil is {}
	Overrides      map[string]map[string]json.RawMessage
	Metadata       map[string]string
	Variables      map[string]string // for expressions; may be secret, so they are never stored, and a durable run, which has to be, takes none
	IdempotencyKey string
	ticket         *Ticket // set by Begin and ReplayRun
	repeats        string  // for a run that repeats another one: which, and from where
	// Webhook says that the request came as a webhook. MessageID is then its sender's id of the message, "" when there is none: a second
	// message with it finds the run of the first, whatever else it holds. It outweighs IdempotencyKey.
	Webhook   bool
	MessageID string

	// Durable asks for a run that goes through the queue and survives this server. So do RunAfter and CallbackURL, and the workflow itself may.
	Durable     bool
	RunAfter    time.Time    // not to be executed before
	CallbackURL string       // who is told how the run ended; see Service.CheckCallback
	Dedupe      *core.Dedupe // which runs exclude each other
}

// Result is a run that has ended, whatever its status.
type Result struct {
	Run *core.Run
	// Replayed is true when an earlier request with the same Idempotency-Key started the run.
	Replayed bool
}

// Start admits a run, executes it, and returns when it has ended and its result is committed; the caller going away does not stop it.
//
// An error is a *core.Error and means that no run was started, with one exception: CodeStoreUnavailable after the admission, when the
// result could not be written in time. Result.Run is then set and its outcome is known only later.
func (s *Service) Start(ctx context.Context, t *Ticket, p Payload) (Result, error) {
	begun, err := s.Begin(ctx, t, p)
	if err != nil {
		return Result{}, err
	}
	return begun.Wait(ctx)
}

// Begun is a run that was admitted, by this request or an earlier one with the same Idempotency-Key.
type Begun struct {
	RunID    string
	Replayed bool
	Deduped  bool              // the run was found by Payload.Dedupe
	Durable  bool              // it goes through the queue, or may
	Limits   []core.LimitState // where the key stands after the run, when it has limits beyond a number of runs
	service  *Service
	account  string
	fresh    *core.Run  // a durable run as it was admitted
	active   *activeRun // nil when the run does not execute on this server, or no longer
}

// Begin admits a run, lets it execute in the background, and returns once the admission is committed. An error is a *core.Error and means
// that no run was started.
func (s *Service) Begin(ctx context.Context, t *Ticket, p Payload) (*Begun, error) {
	p.ticket = t
	defer t.place.End()
	if len(p.Input) == 0 {
		p.Input = json.RawMessage("{}")
	}
	if t.closed != nil {
		return s.repeated(ctx, t, p, t.closed)
	}
	if err := t.pinned.checkInput(p.Input); err != nil {
		return s.repeated(ctx, t, p, err)
	}
	overrides, err := checkOverrides(&t.pinned.def, p.Overrides)
	if err != nil {
		return s.repeated(ctx, t, p, err)
	}
	if p.queued(&t.pinned.def) {
		if len(p.Variables) > 0 {
			return nil, core.Errorf(core.CodeInvalidRequest, "variables are never stored, so a run that is queued cannot have any; wait for the run, or send them as input")
		}
		return s.beginDurable(ctx, t, p, overrides)
	}
	caller := holder(t.Principal.Account, t.Principal.Subject)
	if err := s.enter(caller); err != nil {
		return nil, err
	}
	run := s.newRun(ctx, t, p, overrides)
	active := &activeRun{account: run.Account, place: t.place, done: make(chan struct{})}
	s.mu.Lock()
	s.active[run.ID] = active // before the admission: a repeated request may find the run at once
	s.mu.Unlock()

	admitted, err := s.admit(ctx, run, p, core.Admission{})
	if err == nil && admitted.RunID == run.ID {
		s.replaced(run.Account, admitted.Cancelled)
		t.place.execute()
		go s.execute(context.WithoutCancel(ctx), &t.pinned.def, run, active)
		return &Begun{RunID: run.ID, Limits: admitted.Limits, service: s, account: run.Account, active: active}, nil
	}
	s.mu.Lock()
	delete(s.active, run.ID)
	earlier := s.active[admitted.RunID]
	s.mu.Unlock()
	s.exit(caller)
	if err != nil {
		return nil, s.RefuseKnown(ctx, t.Principal, t.origin, err)
	}
	return &Begun{
		RunID: admitted.RunID, Replayed: admitted.Replayed, Deduped: admitted.Deduped, Durable: earlier == nil, service: s, account: run.Account, active: earlier,
	}, nil
}

// repeated answers a request that the workflow, as it is now, refuses: with the run that the same request has started before, if there is one. A refusal says
// that nothing was started, and whoever publishes another version or switches the workflow off in between must not make that untrue.
func (s *Service) repeated(ctx context.Context, t *Ticket, p Payload, refusal error) (*Begun, error) {
	overrides, err := encodeOverrides(p.Overrides)
	if err != nil {
		return nil, err
	}
	run := s.newRun(ctx, t, p, overrides)
	if id := idempotency(run, &p); id != nil {
		earlier, err := s.Store.Earlier(ctx, run.Account, id, run.CreatedAt)
		if err != nil {
			return nil, err
		}
		if earlier != "" {
			active := s.activeRun(run.Account, earlier)
			return &Begun{RunID: earlier, Replayed: true, Durable: active == nil, service: s, account: run.Account, active: active}, nil
		}
	}
	if core.CodeOf(refusal) != core.CodeInvalidInput {
		refusal = s.RefuseKnown(ctx, t.Principal, t.origin, refusal)
	}
	return nil, refusal
}

// Wait returns when the run has ended and its result is committed. When ctx ends first, it returns the run as it is then, if it is one that
// others may go on waiting for: a durable one, or one of another server. See Start for its error.
func (b *Begun) Wait(ctx context.Context) (Result, error) {
	if b.active == nil {
		run, err := b.service.waitFor(ctx, b.account, b.RunID)
		return Result{Run: run, Replayed: b.Replayed}, err
	}
	select {
	case <-b.active.done:
		return Result{Run: b.active.run, Replayed: b.Replayed}, b.active.err
	case <-ctx.Done():
		return Result{}, core.Wrap(core.CodeInternal, context.Cause(ctx), "the caller went away")
	}
}

// Now returns the run as it is, or as it was admitted a moment ago.
func (b *Begun) Now(ctx context.Context) (*core.Run, error) {
	if b.fresh != nil {
		return b.fresh, nil
	}
	run, err := b.service.Store.Run(ctx, b.account, b.RunID)
	if err == nil && run.Durable && !run.Status.Terminal() {
		b.service.fillSteps(ctx, run)
	}
	return run, err
}

func (s *Service) newRun(ctx context.Context, t *Ticket, p Payload, overrides json.RawMessage) *core.Run {
	now := s.Now().UTC().Truncate(time.Microsecond)
	run := &core.Run{
		ID:      s.NewID(core.PrefixRun),
		Account: t.Principal.Account,
		Status:  core.RunRunning,
		Workflow: core.WorkflowRef{
			ID: t.Workflow.ID, Slug: t.Workflow.Slug, Version: t.Version, Digest: t.pinned.digest,
		},
		Trigger: core.TriggerInfo{
			Type: "api", Route: t.origin.Route, Principal: t.Principal.Subject, Backend: t.Principal.Backend, SourceIP: t.origin.SourceIP(),
			Attributes: t.Principal.Attributes,
		},
		Input:      p.Input,
		Overrides:  overrides,
		Metadata:   p.Metadata,
		Variables:  p.Variables,
		CreatedAt:  now,
		StartedAt:  now,
		DeadlineAt: now.Add(t.pinned.def.Trigger.Timeout.Std()),
		Attempt:    1,
		RequestID:  t.origin.RequestID,
		TraceID:    t.origin.TraceID,
		Span:       spanText(ctx),
	}
	if p.Webhook {
		run.Trigger.Type = "webhook"
	}
	if key := t.Principal.Key; key != nil {
		run.Trigger.KeyID = key.ID
		run.Trigger.KeyName = key.Name
		run.Trigger.KeyHint = key.Mask()
	}
	return run
}

// admit has the store admit run. a holds what is admitted beside it.
func (s *Service) admit(ctx context.Context, run *core.Run, p Payload, a core.Admission) (core.Admitted, error) {
	caller := trace.SpanFromContext(ctx)
	ctx, span := s.Tracer.Start(ctx, "admit")
	defer span.End()
	a.Run, a.KeyID, a.Dedupe = *run, run.Trigger.KeyID, p.Dedupe
	a.Audit = core.AuditEvent{
		ID: s.NewID(core.PrefixEvent), Account: run.Account, Time: run.CreatedAt, Actor: run.Trigger.Principal, KeyID: run.Trigger.KeyID,
		SourceIP: run.Trigger.SourceIP, Action: core.ActionRunAccept, Object: run.ID, Outcome: core.OutcomeOK,
		RequestID: run.RequestID, TraceID: run.TraceID, Count: 1,
	}
	if a.Dedupe != nil && p.ticket != nil {
		a.Visible = func(principal string) bool { return mayReadOf(p.ticket.Principal, principal) }
	}
	if a.Dedupe != nil || a.WhenFull == core.WhenFullReplace {
		audit := a.Audit // what the function holds is kept, and should not be all of the admission
		a.Cancel = func(id string) core.AuditEvent {
			e := audit
			e.ID, e.Action, e.Object, e.Reason = s.NewID(core.PrefixEvent), core.ActionRunCancel, id, "replaced by "+run.ID
			return e
		}
	}
	if p.CallbackURL != "" {
		a.Callbacks = []core.Callback{{ID: s.NewID(core.PrefixCallback), Account: run.Account, Run: run.ID, URL: p.CallbackURL, CreatedAt: run.CreatedAt}}
	}
	a.Idempotency = idempotency(run, &p)
	admitted, err := s.charge(ctx, p.ticket, a)
	if err != nil {
		span.SetStatus(codes.Error, string(core.CodeOf(err)))
		return admitted, err
	}
	span.SetAttributes(attribute.String("keyfire.run.id", admitted.RunID), attribute.Bool("keyfire.replayed", admitted.Replayed))
	caller.SetAttributes(attribute.String("keyfire.run.id", admitted.RunID))
	return admitted, nil
}

// idempotency is what a repetition of the request is known by, nil when it cannot be.
func idempotency(run *core.Run, p *Payload) *core.Idempotency {
	id := &core.Idempotency{Principal: run.Trigger.Principal, Workflow: run.Workflow.ID, ExpiresAt: run.CreatedAt.Add(idempotencyKept)}
	switch {
	case p.MessageID != "":
		id.Key, id.Fingerprint = messageKey+p.MessageID, messageKey
	case p.IdempotencyKey != "":
		id.Key, id.Fingerprint = p.IdempotencyKey, fingerprint(run, p)
	default:
		return nil
	}
	return id
}

// fingerprint tells two requests with one Idempotency-Key apart by everything that decides what the run does. A request that
// follows the newest version keeps its fingerprint when a version is published in between, hence only a version that it asks for is in it.
func fingerprint(run *core.Run, p *Payload) string {
	h := sha256.New()
	write := func(b []byte) {
		// Each part is preceded by its length, so that no two lists of parts read the same.
		h.Write([]byte(strconv.Itoa(len(b)) + ":"))
		h.Write(b)
	}
	write([]byte(run.Workflow.ID))
	write(canonicalJSON(run.Input))
	write(run.Overrides)
	for _, k := range slices.Sorted(maps.Keys(run.Metadata)) {
		write([]byte(k))
		write([]byte(run.Metadata[k]))
	}
	// What few requests have comes under its own name, behind an empty part: no name of metadata is empty, so it cannot pass for more of that.
	ended := false
	also := func(parts ...string) {
		if !ended {
			write(nil)
			ended = true
		}
		for _, part := range parts {
			write([]byte(part))
		}
	}
	if p.CallbackURL != "" {
		also("callback", p.CallbackURL)
	}
	if !p.RunAfter.IsZero() {
		also("run_after", p.RunAfter.UTC().Format(time.RFC3339Nano))
	}
	if d := p.Dedupe; d != nil {
		also("dedupe", d.Key, d.Policy)
	}
	for _, k := range slices.Sorted(maps.Keys(p.Variables)) {
		also("variable", k, p.Variables[k])
	}
	if p.ticket != nil && p.ticket.asked {
		also("version", strconv.Itoa(run.Workflow.Version))
	}
	if p.repeats != "" {
		also("repeats", p.repeats)
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil))
}

// canonicalJSON makes bodies that differ only in white space or member order equal. Numbers keep their text.
func canonicalJSON(raw json.RawMessage) []byte {
	v, err := core.DecodeJSON(raw)
	if err != nil {
		return raw
	}
	out, err := json.Marshal(v) // members sorted by name
	if err != nil {
		return raw
	}
	return out
}

// holder names who holds a place.
func holder(account, caller string) string { return account + " " + caller }

// execute runs an admitted run to its end and commits the result. It outlives the request.
func (s *Service) execute(ctx context.Context, def *core.Definition, run *core.Run, active *activeRun) {
	defer s.exit(holder(run.Account, run.Trigger.Principal))
	ctx, cancel := context.WithDeadlineCause(ctx, run.DeadlineAt, core.ErrRunTimedOut)
	defer cancel()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	s.mu.Lock()
	active.stop = stop
	cancelled := active.cancelled
	s.mu.Unlock()
	if cancelled {
		stop(core.ErrRunCancelled)
	}
	// Stopping the server ends the executing runs; the context of a request does not.
	defer context.AfterFunc(s.base, func() { stop(context.Cause(s.base)) })()

	// Nothing of a run whose time is over is executed any more, so its end needs no slot.
	placed := s.running.Try()
	if !placed {
		active.place.Wait(1)
		placed = s.running.Acquire(ctx.Done(), run.Account, run.Trigger.Principal)
		active.place.Wait(-1)
	}
	s.executeGraph(core.WithLoad(ctx, active.place), def, run)
	active.place.executed()
	if placed {
		s.running.Release()
	}
	run.TruncateTimes()
	if run.Status == core.RunCancelled {
		s.toBeCancelled(ctx, run) // for the reason
	}

	recorded, err := s.finish(ctx, run)
	s.mu.Lock()
	delete(s.active, run.ID)
	s.mu.Unlock()
	active.run, active.err = recorded, err
	close(active.done)
	if core.CodeOf(err) == core.CodeStoreUnavailable {
		s.finishLate(ctx, run)
	}
	s.Signals.Changed(run.Account, run.ID)
}

// executeGraph keeps a bug in the executor from taking the server down: the run it hit fails, as our fault.
func (s *Service) executeGraph(ctx context.Context, def *core.Definition, run *core.Run) {
	defer func() {
		if v := recover(); v != nil {
			s.Logger.ErrorContext(ctx, "executor panicked", "run_id", run.ID, "panic", v, "stack", string(debug.Stack()))
			run.Status = core.RunFailed
			run.Output = nil
			run.Error = &core.RunError{Code: core.CodeInternal, Message: "the server failed to execute the run"}
			run.FinishedAt = s.Now().UTC()
		}
	}()
	s.Executor.Execute(ctx, run, def)
}

// finishWithin is how long a caller is kept waiting for a result that cannot be committed, and finishEvery how often, at the least, committing it is
// tried after that.
const (
	finishWithin = 10 * time.Second
	finishEvery  = 5 * time.Second
)

// finish commits the result. A store that is out of order for a moment must not cost a result, so it tries for a while. It returns the run as it is recorded, run itself nearly always.
func (s *Service) finish(ctx context.Context, run *core.Run) (recorded *core.Run, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), finishWithin)
	defer cancel()
	for wait := 50 * time.Millisecond; ; wait *= 2 {
		recorded, settled, err := s.tryFinish(ctx, run)
		if settled {
			return recorded, err
		}
		s.Logger.ErrorContext(ctx, "result of run not committed", "run_id", run.ID, "error", err)
		select {
		case <-ctx.Done():
			e := core.Wrap(core.CodeStoreUnavailable, err, "the run has ended, but its result could not be stored")
			e.RetryAfter = 5 * time.Second
			return run, e
		case <-time.After(wait):
		}
	}
}

// tryFinish tries once to commit the result. settled is false when trying again may help.
func (s *Service) tryFinish(ctx context.Context, run *core.Run) (recorded *core.Run, settled bool, err error) {
	err = s.Store.FinishRun(ctx, run)
	switch core.CodeOf(err) {
	case "":
		s.metrics.ended(ctx, run)
		return run, true, nil
	case core.CodeRunAlreadyFinished:
		// This server was stopped for so long that another one took it for dead and recorded the end of its runs, or the answer to an earlier try was
		// lost. What is recorded is what counts.
		if recorded, err = s.Store.Run(ctx, run.Account, run.ID); err == nil {
			return recorded, true, nil
		}
	case core.CodeNotFound: // its account is gone, and everything with it
		return run, true, err
	}
	return run, false, err
}

// finishLate commits a result that nobody waits for any more, because the store was out of order for too long. Nothing else would ever end the
// run while this server lives, and the run would go on to count among those of its key that execute. It keeps the run's place among the
// pending ones, so what waits here is bounded; stopping the server makes the next try the last.
func (s *Service) finishLate(ctx context.Context, run *core.Run) {
	for last := false; ; {
		select {
		case <-s.base.Done():
			last = true
		case <-time.After(finishEvery):
		}
		attempt, cancel := context.WithTimeout(context.WithoutCancel(ctx), finishEvery)
		_, settled, err := s.tryFinish(attempt, run)
		cancel()
		switch {
		case settled:
			s.Logger.InfoContext(ctx, "result of run committed late", "run_id", run.ID)
			return
		case last:
			s.Logger.ErrorContext(ctx, "result of run not committed", "run_id", run.ID, "error", err)
			return
		}
	}
}

// maxOverrideProblems bounds how many of a request's overrides are told to be wrong.
const maxOverrideProblems = 20

// checkOverrides refuses every override that the workflow's author has not listed, and returns the rest as JSON.
func checkOverrides(def *core.Definition, overrides map[string]map[string]json.RawMessage) (json.RawMessage, error) {
	if len(overrides) == 0 {
		return nil, nil
	}
	var fields []core.Field
	for node, values := range overrides {
		// What is kept with the run must name nodes of the workflow, even where it changes nothing.
		if len(values) == 0 && !slices.ContainsFunc(def.Nodes, func(n core.Node) bool { return n.ID == node }) {
			fields = append(fields, core.Field{Pointer: "#/overrides/" + core.EscapePointer(core.Clip(node)), Detail: "the workflow has no such node"})
		}
		for field := range values {
			if !slices.Contains(def.Trigger.Overrides, node+"."+field) {
				fields = append(fields, core.Field{
					Pointer: "#/overrides/" + core.EscapePointer(core.Clip(node)) + "/" + core.EscapePointer(core.Clip(field)),
					Detail:  "not on the workflow's list of overrides",
				})
			}
		}
	}
	if len(fields) > 0 {
		slices.SortFunc(fields, func(a, b core.Field) int { return cmp.Compare(a.Pointer, b.Pointer) })
		e := core.Errorf(core.CodeOverrideNotAllowed, "%s may not be overridden by callers; the workflow's author lists what may in trigger.overrides", fields[0].Pointer[len("#/overrides/"):])
		e.Fields = fields[:min(len(fields), maxOverrideProblems)]
		return nil, e
	}
	return encodeOverrides(overrides)
}

func encodeOverrides(overrides map[string]map[string]json.RawMessage) (json.RawMessage, error) {
	if len(overrides) == 0 {
		return nil, nil
	}
	return json.Marshal(overrides)
}
