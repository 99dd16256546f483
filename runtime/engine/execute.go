package engine

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/runtime/wasm"
)

// errSiblingFailed is why the other nodes of a run are stopped when one has failed.
var errSiblingFailed = errors.New("another node of the run failed")

// Execute runs def, the pinned version of run, to its end and fills in run: Status, Output, Error, Steps, FinishedAt, and StartedAt and
// DeadlineAt where they are zero. It changes nothing else, reads run.Input, Overrides, Trigger and Workflow, and does not return
// before everything it started has ended. def is not changed and may be shared.
//
// The run ends at run.DeadlineAt, and when ctx ends. The status is then what the code of ctx's cause stands for, if that is a
// *core.Error: core.CodeRunCancelled, CodeRunInterrupted or CodeRunTimedOut; a deadline of ctx itself is a timeout, and any other cause a
// cancellation. Execute honours the spans of ctx.
func (e *Engine) Execute(ctx context.Context, run *core.Run, def *core.Definition) {
	_ = e.execute(ctx, run, def, nil) // only a journal can fail
}

func (e *Engine) execute(ctx context.Context, run *core.Run, def *core.Definition, journal core.Journal) error {
	if run.StartedAt.IsZero() {
		run.StartedAt = e.config.Now()
	}
	if run.DeadlineAt.IsZero() {
		run.DeadlineAt = run.StartedAt.Add(def.Trigger.Timeout.Std())
	}
	ctx, span := e.config.Tracer.Start(ctx, "run", trace.WithAttributes(
		attribute.String("keyfire.run.id", run.ID),
		attribute.String("keyfire.workflow.id", run.Workflow.ID),
		attribute.String("keyfire.workflow.slug", run.Workflow.Slug),
		attribute.Int("keyfire.workflow.version", run.Workflow.Version),
	))
	defer span.End()
	run.Status = core.RunRunning
	e.observeRun(run, EventRunStarted)

	p, problems := e.plan(run.Workflow.Digest, def)
	if len(problems) > 0 {
		e.config.Logger.ErrorContext(ctx, "published workflow does not compile", "run_id", run.ID, "workflow_id", run.Workflow.ID,
			"version", run.Workflow.Version, "pointer", problems[0].Pointer, "problem", problems[0].Detail)
		run.Status = core.RunFailed
		run.Error = &core.RunError{Code: core.CodeRunFailed, Message: "this version of the workflow cannot be run by this version of the server; publish it again"}
	} else {
		x := newExecution(e, run, p, journal)
		x.run(ctx)
		if x.lost != nil {
			span.SetStatus(codes.Error, "lost")
			return x.lost
		}
	}
	if !run.Status.Terminal() {
		span.SetAttributes(attribute.String("keyfire.run.status", string(run.Status)))
		return nil
	}

	run.FinishedAt = e.config.Now()
	span.SetAttributes(attribute.String("keyfire.run.status", string(run.Status)))
	if run.Error != nil {
		span.SetStatus(codes.Error, string(run.Error.Code))
	}
	e.observeRun(run, EventRunFinished)
	return nil
}

func (e *Engine) observeRun(run *core.Run, t EventType) {
	e.config.Observe(Event{Type: t, Account: run.Account, RunID: run.ID, Time: e.config.Now(), Run: run.Status})
}

// execution is one run under way. Its fields belong to the goroutine that called Execute; the goroutines of nodes read values of
// nodes that ended before they were started.
type execution struct {
	*Engine
	*plan
	of        *core.Run
	overrides map[string]map[string]json.RawMessage
	scope     scope // nodes is empty: each node gets its own
	values    []*lazy
	waiting   []int // per node: needs that have not ended
	ready     []int // nodes that may start, in file order
	running   int
	ended     chan outcome
	failure   outcome // of the node that failed first

	redactor *core.Redactor    // takes the run's variables out of what is recorded of it
	held     atomic.Int64      // bytes of the outputs of its nodes
	logged   atomic.Int64      // bytes of their logs
	decoded  atomic.Int64      // values of the outputs that may still be decoded
	private  map[string]string // those variables, as tapes name them
	taped    atomic.Int64      // bytes of tapes that are kept

	journal core.Journal // of a durable run; nil otherwise
	waits   []int        // nodes that wait for their next attempt
	lost    error        // why this attempt of a durable run is over
}

// outcome is how a node ended.
type outcome struct {
	node   int
	step   core.Step
	status core.RunStatus // of the run, when the node failed
	err    *core.RunError // why the run fails, when the node failed
	late   bool           // the run had been stopped when the node failed
	lost   error          // the journal failed
	cut    bool           // the server's stop ended an attempt that may not be repeated
}

func newExecution(e *Engine, run *core.Run, p *plan, journal core.Journal) *execution {
	x := &execution{
		Engine: e, plan: p, of: run,
		scope: scope{
			input:   newLazy(run.Input),
			trigger: map[string]any{"type": run.Trigger.Type, "key_name": run.Trigger.KeyName},
			run:     map[string]any{"id": run.ID},

			variables: make(map[string]any, len(run.Variables)),
		},
		redactor: core.NewRedactor(run.Variables), private: make(map[string]string, len(run.Variables)),
		values:  make([]*lazy, len(p.nodes)),
		waiting: make([]int, len(p.nodes)),
		ended:   make(chan outcome, min(e.config.MaxParallel, len(p.nodes))),
		journal: journal,
	}
	x.decoded.Store(maxDecoded)
	for name, value := range run.Variables {
		x.scope.variables[name], x.private["variables."+name] = value, value
	}
	recorded := run.Steps
	run.Steps = make([]core.Step, len(p.nodes))
	for i, n := range p.nodes {
		run.Steps[i] = core.Step{ID: n.ID, Status: core.StepPending, Module: n.Module}
		x.waiting[i] = len(n.needs)
		if len(n.needs) == 0 {
			x.ready = append(x.ready, i)
		}
	}
	if journal != nil {
		x.resume(recorded)
	}
	return x
}

// run starts nodes as they become ready until none is left or the run has to end.
func (x *execution) run(parent context.Context) {
	if len(x.of.Overrides) > 0 {
		if err := json.Unmarshal(x.of.Overrides, &x.overrides); err != nil {
			x.end(core.RunFailed, &core.RunError{Code: core.CodeRunFailed, Message: "the overrides of the run cannot be read"})
			return
		}
	}
	ctx, stopTimer := context.WithTimeoutCause(parent, x.of.DeadlineAt.Sub(x.config.Now()), core.ErrRunTimedOut)
	defer stopTimer()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	for {
		x.due()
		for len(x.ready) > 0 && x.running < x.config.MaxParallel && ctx.Err() == nil && !x.halted() {
			r := x.next()
			if r == nil {
				continue
			}
			if x.running == 0 && len(x.ready) == 0 && len(x.waits) == 0 {
				x.settle(r.safely(ctx), cancel) // nothing else could happen meanwhile
				continue
			}
			x.running++
			go func() { x.ended <- r.safely(ctx) }()
		}
		if x.running == 0 {
			break
		}
		if o, ok := x.await(); ok {
			x.running--
			x.settle(o, cancel)
		}
	}
	switch {
	case x.lost != nil:
	case x.failure.err != nil:
		x.end(x.failure.status, x.failure.err)
	case ctx.Err() != nil:
		x.stop(ctx)
	case len(x.ready) > 0: // halted
		x.of.Status = core.RunQueued
	case len(x.waits) > 0:
		x.suspend()
	default:
		x.finish(ctx)
	}
}

// next takes the first ready node. It returns nil for one that is skipped because of what it needs.
func (x *execution) next() *runner {
	i := x.ready[0]
	x.ready = x.ready[1:]
	n := &x.nodes[i]
	if len(n.needs) > 0 && !slices.ContainsFunc(n.needs, func(need int) bool { return x.of.Steps[need].Status != core.StepSkipped }) {
		x.of.Steps[i].Status = core.StepSkipped
		x.of.Steps[i].FinishedAt = x.config.Now()
		x.observeStep(EventStepFinished, &x.of.Steps[i], 0)
		x.release(i)
		return nil
	}
	r := &runner{execution: x, index: i, node: n, scope: x.scope, step: x.of.Steps[i]}
	r.scope.nodes = x.view(n.reads)
	return r
}

// settle records how a node ended. The first failure stops the others; a failure after the run was stopped changes nothing.
func (x *execution) settle(o outcome, cancel context.CancelCauseFunc) {
	x.of.Steps[o.node] = o.step
	switch {
	case o.lost != nil:
		if x.lost == nil {
			x.lost = o.lost
			cancel(o.lost)
		}
	case o.step.Status == core.StepRetrying:
		x.waits = append(x.waits, o.node)
	case o.err != nil && x.failure.err == nil && (!o.late || o.cut):
		x.failure = o
		cancel(errSiblingFailed)
	case o.step.Status == core.StepSucceeded:
		x.values[o.node] = x.value(o.step.Output)
		x.release(o.node)
	case o.step.Status == core.StepSkipped:
		x.release(o.node)
	}
}

// value is the output of a node as expressions see it.
func (x *execution) value(output json.RawMessage) *lazy {
	l := newLazy(output)
	l.room = &x.decoded
	return l
}

// release tells the nodes that need i that it has ended.
func (x *execution) release(i int) {
	for _, d := range x.nodes[i].dependents {
		if x.waiting[d]--; x.waiting[d] == 0 && unended(x.of.Steps[d].Status) {
			at, _ := slices.BinarySearch(x.ready, d)
			x.ready = slices.Insert(x.ready, at, d)
		}
	}
}

// view returns what expressions see of some nodes. All of them have ended.
func (x *execution) view(nodes []int) map[string]any {
	if len(nodes) == 0 {
		return nil
	}
	view := make(map[string]any, len(nodes))
	for _, i := range nodes {
		fields := map[string]any{"status": string(x.of.Steps[i].Status), "output": nil, "error": nil}
		if x.values[i] != nil {
			fields["output"] = x.values[i]
		}
		view[x.nodes[i].ID] = fields
	}
	return view
}

// finish computes the output of a run whose nodes all ended well.
func (x *execution) finish(ctx context.Context) {
	w := writer{limit: wasm.MaxOutput}
	var err error
	if x.output != nil {
		s := x.scope
		s.nodes = x.view(x.reads)
		err = x.output.append(ctx, &s, &w)
	} else {
		err = x.sinkOutputs(&w)
	}
	switch {
	case err == nil:
		x.of.Status, x.of.Output, x.of.Error = core.RunSucceeded, x.redactor.JSON(w.b), nil
	case ctx.Err() != nil:
		x.stop(ctx)
	case errors.Is(err, errTooLarge):
		x.end(core.RunFailed, &core.RunError{Code: core.CodeRunFailed, Class: core.ClassLimit, Message: fmt.Sprintf("the output of the run has more than %d bytes", w.limit)})
	case errors.Is(err, errManyValues):
		x.end(core.RunFailed, &core.RunError{Code: core.CodeRunFailed, Class: core.ClassLimit, Message: "the output of the run: " + err.Error()})
	default:
		x.end(core.RunFailed, &core.RunError{Code: core.CodeRunFailed, Class: core.ClassFailed, Message: "the output of the run: " + err.Error()})
	}
}

// sinkOutputs writes the output of a run without an output template.
func (x *execution) sinkOutputs(w *writer) error {
	if len(x.sinks) == 1 {
		w.native(x.outputOf(x.sinks[0]))
		w.room()
		return w.err
	}
	outputs := map[string]any{}
	for _, i := range x.sinks {
		if x.of.Steps[i].Status == core.StepSucceeded {
			outputs[x.nodes[i].ID] = x.outputOf(i)
		}
	}
	w.native(outputs)
	w.room()
	return w.err
}

func (x *execution) outputOf(i int) any {
	if x.values[i] == nil {
		return nil
	}
	return x.values[i]
}

// stop ends a run that was stopped from outside or by its deadline.
func (x *execution) stop(ctx context.Context) {
	code, reason := stopped(ctx)
	err := &core.RunError{Code: code, Message: reason}
	switch code {
	case core.CodeRunInterrupted:
		if x.journal != nil {
			x.of.Status = core.RunQueued // it goes on elsewhere
			return
		}
		x.end(core.RunInterrupted, err)
	case core.CodeRunTimedOut:
		err.Class, err.Retryable = core.ClassTimeout, true
		err.Message = fmt.Sprintf("the run did not finish within %s", x.of.DeadlineAt.Sub(x.of.StartedAt))
		i := slices.IndexFunc(x.of.Steps, func(s core.Step) bool { return s.Status == core.StepTimedOut })
		if i >= 0 {
			err.Step = x.of.Steps[i].ID
			err.Message += "; node " + err.Step + " was running"
		}
		x.end(core.RunTimedOut, err)
	default:
		x.end(core.RunCancelled, err)
	}
}

// end records why a run did not succeed. Nodes that never started are cancelled.
func (x *execution) end(status core.RunStatus, err *core.RunError) {
	err.Message = x.redactor.Text(err.Message)
	x.of.Status, x.of.Error, x.of.Output = status, err, nil
	for i := range x.of.Steps {
		if s := &x.of.Steps[i]; s.Status == core.StepPending || s.Status == core.StepRetrying {
			s.Status, s.RetryAt = core.StepCancelled, time.Time{}
			if !s.StartedAt.IsZero() {
				s.FinishedAt = x.config.Now()
			}
			x.observeStep(EventStepFinished, s, 0)
		}
	}
}

func (x *execution) observeStep(t EventType, s *core.Step, attempt int) {
	x.config.Observe(Event{
		Type: t, Account: x.of.Account, RunID: x.of.ID, Time: cmp.Or(s.FinishedAt, x.config.Now()), Step: s.ID, Status: s.Status, Attempt: attempt,
	})
	if x.journal != nil {
		x.record(t, s)
	}
}
