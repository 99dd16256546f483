package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/runtime/wasm"
)

// runner runs one node of one run: condition, input, attempts.
type runner struct {
	*execution
	index int
	node  *planNode
	scope scope
	step  core.Step
	span  trace.Span
}

// safely is run for nodes that execute beside others: a bug of ours in one of them, which would otherwise take the whole server down, fails its run only.
func (r *runner) safely(ctx context.Context) (o outcome) {
	defer func() {
		v := recover()
		if v == nil {
			return
		}
		r.config.Logger.ErrorContext(ctx, "node panicked", "run_id", r.of.ID, "node", r.node.ID, "panic", v, "stack", string(debug.Stack()))
		const why = "the server failed to execute the node"
		r.step.Status, r.step.RetryAt, r.step.FinishedAt = core.StepFailed, time.Time{}, r.config.Now()
		r.step.Error = &core.StepError{Class: core.ClassFailed, Message: why}
		o = outcome{node: r.index, step: r.step, status: core.RunFailed, err: &core.RunError{
			Code: core.CodeInternal, Message: fmt.Sprintf("node %s: %s", r.node.ID, why), Step: r.node.ID,
		}}
	}()
	return r.run(ctx)
}

// run runs the node to its end. It does not touch the execution's own state, which other goroutines use.
func (r *runner) run(ctx context.Context) outcome {
	if r.step.StartedAt.IsZero() {
		r.step.StartedAt = r.config.Now()
	}
	ctx, r.span = r.config.Tracer.Start(ctx, "node "+r.node.ID, trace.WithAttributes(
		attribute.String("keyfire.node.id", r.node.ID),
		attribute.String("keyfire.node.module", r.node.Module),
	))
	defer r.span.End()
	o := r.conclude(ctx, r.attempts(ctx))
	o.node, o.late = r.index, ctx.Err() != nil
	if r.step.Status != core.StepRetrying {
		r.step.FinishedAt = r.config.Now()
		r.observeStep(EventStepFinished, &r.step, 0)
	}
	if r.journal != nil && o.lost == nil {
		o.lost = r.commit(ctx, &o)
	}
	o.step = r.step
	return o
}

// errSkipped is the end of a node whose condition is false.
var errSkipped = errors.New("skipped")

// attempts evaluates what the node needs and invokes it until it succeeds or may not be tried again. The error is a *wasm.Error for the
// node's own failure, errSkipped, or another one.
func (r *runner) attempts(ctx context.Context) error {
	if run, err := r.condition(ctx); err != nil {
		return err
	} else if !run {
		return errSkipped
	}
	first := len(r.step.Attempts) + 1
	r.step.Status, r.step.RetryAt = core.StepRunning, time.Time{}
	if first == 1 {
		r.observeStep(EventStepStarted, &r.step, 0)
	}
	input, err := r.input(ctx)
	if err != nil {
		return err
	}
	config := r.settings()
	r.step.Input = r.redactor.JSON(withConfig(input, config))
	if r.journal != nil && r.node.AtMostOnce {
		if err := r.journal.Commit(ctx, r.index, r.step); err != nil {
			return &journalError{err}
		}
	}
	for n := first; ; n++ {
		err := r.attempt(ctx, n, input, config)
		wait, again := r.retry(ctx, n, err)
		if !again {
			return err
		}
		if r.journal != nil {
			return errRetrying
		}
		if err := pause(ctx, wait); err != nil {
			return err
		}
	}
}

// pause waits for the next attempt. The error is why ctx ended before.
func pause(ctx context.Context, wait time.Duration) error {
	load := core.LoadOf(ctx)
	load.Wait(1)
	defer load.Wait(-1)
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// condition evaluates the node's if.
func (r *runner) condition(ctx context.Context) (bool, error) {
	if r.node.condition == nil {
		return true, nil
	}
	v, err := r.node.condition.evaluate(ctx, &r.scope)
	if err != nil {
		return false, r.expressionError(ctx, &placed{"#/if", err})
	}
	is, ok := v.Value().(bool)
	if !ok {
		return false, r.expressionError(ctx, &placed{"#/if", fmt.Errorf("must be true or false, not of type %s", typeName(v))})
	}
	return is, nil
}

// input evaluates the node's with.
func (r *runner) input(ctx context.Context) ([]byte, error) {
	w := writer{limit: wasm.MaxInput}
	if err := r.node.with.append(ctx, &r.scope, &w); err != nil {
		return nil, r.expressionError(ctx, err)
	}
	return w.b, nil
}

// withConfig is how a node's input is shown: with its config as one more member, which is also how a command reads it. Publishing made
// sure that the input of a node with a config is an object without a member of this name.
func withConfig(input []byte, config string) []byte {
	if config == "" {
		return input
	}
	return wasm.WithConfig(input, json.RawMessage(config))
}

// settings returns the node's config with the run's overrides, as JSON.
func (r *runner) settings() string {
	replaced := r.overrides[r.node.ID]
	if r.node.config == "" || len(replaced) == 0 {
		return r.node.config
	}
	config := maps.Clone(r.node.Config)
	for name, value := range replaced {
		if _, declared := config[name]; declared { // admission refused the others
			config[name] = value
		}
	}
	return configJSON(config)
}

// expressionError makes an error of evaluation the node's failure, unless the run was stopped meanwhile.
func (r *runner) expressionError(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, errTooLarge):
		return &wasm.Error{Class: core.ClassLimit, Message: fmt.Sprintf("the node's input has more than %d bytes", wasm.MaxInput)}
	case errors.Is(err, errManyValues):
		return &wasm.Error{Class: core.ClassLimit, Message: err.Error()}
	}
	return &wasm.Error{Class: core.ClassFailed, Message: r.redactor.Text(err.Error())}
}

// attempt invokes the node once and records what that was.
func (r *runner) attempt(ctx context.Context, number int, input []byte, config string) error {
	a := core.Attempt{Number: number, StartedAt: r.config.Now()}
	limits := r.node.Limits
	if limits.Timeout == 0 {
		limits.Timeout = core.Duration(core.DefaultNodeLimit)
	}
	result, err := r.config.Invoker.Invoke(ctx, wasm.Call{
		Account: r.of.Account, Caller: r.of.Trigger.Principal, Module: r.node.Module, Input: input, Config: json.RawMessage(config), Limits: limits, Export: r.node.Call, Grants: r.node.Grants,
		Workflow: r.of.Workflow.ID, Run: r.of.ID, Step: r.node.ID, Observe: r.observeRequest, Engine: wasm.Engine(r.node.Engine),
		Record: r.node.Record != "", Attempt: number, Private: r.private,
	})
	if err == nil {
		err = CheckOutput(result.Output)
		if err == nil && r.held.Add(int64(len(result.Output))) > maxOutputs {
			err = &wasm.Error{Class: core.ClassLimit, Message: fmt.Sprintf("the outputs of the run's nodes have more than %d bytes together", maxOutputs)}
		}
		if err == nil {
			r.step.Output = r.redactor.JSON(result.Output)
		}
	}
	r.redact(&result, err)
	a.DurationUS = r.config.Now().Sub(a.StartedAt).Microseconds()
	a.PeakMemory, a.Fuel, a.HostUS = result.PeakMemory, result.Fuel, result.Host.Microseconds()
	a.Log, a.LogDropped = r.keepLog(result.Log, result.LogDropped)
	a.Error = r.stepError(ctx, err)
	if err != nil || r.node.Record == core.RecordAll {
		r.keepTape(ctx, &a, &result)
	}
	r.step.Attempts = append(r.step.Attempts, a)
	r.span.SetAttributes(attribute.Int("keyfire.node.attempt", number), attribute.Int64("keyfire.node.peak_memory_bytes", a.PeakMemory))
	return err
}

// keepLog keeps as much of an attempt's log as the run still has room for, and counts the rest as dropped.
func (x *execution) keepLog(lines []core.LogLine, dropped int64) ([]core.LogLine, int64) {
	for i := range lines {
		if x.logged.Add(logSize(&lines[i])) <= maxLogs {
			continue
		}
		for _, l := range lines[i:] {
			dropped += int64(len(l.Message))
		}
		return slices.Clone(lines[:i]), dropped
	}
	return lines, dropped
}

// logSize is what a line takes to be held: a node may write many short ones.
func logSize(l *core.LogLine) int64 { return 64 + int64(len(l.Message)) }

// redact takes the run's variables out of what a node leaves behind beside its output.
func (r *runner) redact(result *wasm.Result, err error) {
	if r.redactor == nil {
		return
	}
	for i := range result.Log {
		result.Log[i].Message = r.redactor.Text(result.Log[i].Message)
	}
	var failure *wasm.Error
	if errors.As(err, &failure) {
		failure.Message = r.redactor.Text(failure.Message)
	}
}

// CheckOutput holds a node's output to the rules for a request's body: a duplicate name or half a surrogate pair would be read in one
// way by an expression and in another by the next node. The error is a *wasm.Error of class invalid_output.
func CheckOutput(output []byte) error {
	var refused *core.Error
	if err := core.CheckJSON(output, core.JSONLimits{}); errors.As(err, &refused) {
		return &wasm.Error{Class: core.ClassInvalidOutput, Message: "the node's output, " + refused.Message}
	}
	return nil
}

// retry reports whether attempt n, which ended with err, is followed by another one, and after what wait. A wait that would outlast the
// run's deadline is not begun: the failure there is says more than the timeout it would become.
func (r *runner) retry(ctx context.Context, n int, err error) (wait time.Duration, again bool) {
	var failure *wasm.Error
	policy := r.node.Retry
	if err == nil || policy == nil || n >= policy.MaxAttempts || !errors.As(err, &failure) || failure.Status != 0 ||
		!slices.Contains(policy.On, failure.Class) || ctx.Err() != nil {
		return 0, false
	}
	wait = backoff(policy, n, r.config.Random)
	if deadline, ok := ctx.Deadline(); ok && wait >= time.Until(deadline) {
		return 0, false
	}
	r.step.Status = core.StepRetrying
	if r.journal != nil {
		r.step.RetryAt = r.config.Now().Add(wait)
	}
	r.observeStep(EventStepRetrying, &r.step, n)
	r.span.AddEvent("retry", trace.WithAttributes(
		attribute.Int("keyfire.node.attempt", n), attribute.String("keyfire.node.error_class", string(failure.Class))))
	r.step.Status = core.StepRunning
	return wait, true
}

// backoff returns the wait after attempt n.
func backoff(policy *core.Retry, n int, random func() float64) time.Duration {
	wait := policy.Initial.Std()
	if policy.Backoff == "exponential" {
		for range n - 1 {
			if wait >= policy.Max.Std() {
				break
			}
			wait *= 2
		}
	}
	wait = min(wait, policy.Max.Std())
	if policy.Jitter {
		wait = wait/2 + time.Duration(random()*float64(wait-wait/2))
	}
	return wait
}

// stepError says why an attempt or a step did not succeed, or returns nil.
func (r *runner) stepError(ctx context.Context, err error) *core.StepError {
	var failure *wasm.Error
	switch {
	case err == nil || errors.Is(err, errSkipped):
		return nil
	case errors.As(err, &failure):
		return &core.StepError{Class: failure.Class, Message: failure.Message, ExitCode: failure.ExitCode, Status: failure.Status, Code: failure.Code}
	case ctx.Err() != nil:
		code, reason := stopped(ctx)
		if code == core.CodeRunTimedOut {
			return &core.StepError{Class: core.ClassTimeout, Message: reason}
		}
		return &core.StepError{Message: reason}
	}
	return &core.StepError{Class: core.ClassFailed, Message: "the server could not run the node; its log says why"}
}

// stopped says why ctx ended: the code of its cause and a public text.
func stopped(ctx context.Context) (core.Code, string) {
	cause := context.Cause(ctx)
	var e *core.Error
	switch {
	case errors.Is(cause, errSiblingFailed):
		return core.CodeRunCancelled, "stopped because " + errSiblingFailed.Error()
	case errors.As(cause, &e) && (e.Code == core.CodeRunTimedOut || e.Code == core.CodeRunCancelled || e.Code == core.CodeRunInterrupted):
		return e.Code, e.Message
	case errors.Is(ctx.Err(), context.DeadlineExceeded), errors.Is(cause, context.DeadlineExceeded):
		return core.CodeRunTimedOut, core.ErrRunTimedOut.Message
	}
	return core.CodeRunCancelled, core.ErrRunCancelled.Message
}

// conclude records how the node ended and what that means for the run.
func (r *runner) conclude(ctx context.Context, err error) outcome {
	var failure *wasm.Error
	var journal *journalError
	switch {
	case errors.Is(err, errRetrying):
		r.step.Status = core.StepRetrying
		return outcome{}
	case errors.As(err, &journal):
		return outcome{lost: journal.err}
	}
	r.step.Error = r.stepError(ctx, err)
	switch {
	case err == nil:
		r.step.Status = core.StepSucceeded
		return outcome{}
	case errors.Is(err, errSkipped):
		r.step.Status = core.StepSkipped
		r.step.StartedAt = time.Time{}
		r.span.AddEvent("skipped")
		return outcome{}
	case errors.As(err, &failure):
		return r.nodeFailed(failure)
	case ctx.Err() != nil:
		r.step.Status = core.StepCancelled
		code, _ := stopped(ctx)
		if code == core.CodeRunTimedOut {
			r.step.Status = core.StepTimedOut
		}
		r.span.SetStatus(codes.Error, string(r.step.Status))
		if r.journal != nil && r.node.AtMostOnce && code == core.CodeRunInterrupted && len(r.step.Attempts) > 0 {
			o := unknown(&r.step)
			o.cut = true
			return o
		}
		return outcome{}
	case r.journal != nil && core.CodeOf(err) == core.CodeStoreUnavailable:
		// The node did not fail: its module could not be read. A run that was accepted does not end for that, it is put off.
		return outcome{lost: err}
	}
	r.step.Status = core.StepFailed
	r.span.SetStatus(codes.Error, "server")
	r.config.Logger.ErrorContext(ctx, "node not run", "run_id", r.of.ID, "node", r.node.ID, "module", r.node.Module, "error", err)
	return outcome{status: core.RunFailed, err: &core.RunError{
		Code: core.CodeRunFailed, Class: core.ClassFailed, Message: fmt.Sprintf("node %s: %s", r.node.ID, r.step.Error.Message), Step: r.node.ID, Retryable: true,
	}}
}

// nodeFailed records the node's own failure.
func (r *runner) nodeFailed(f *wasm.Error) outcome {
	r.span.SetAttributes(attribute.String("keyfire.node.error_class", string(f.Class)))
	r.span.SetStatus(codes.Error, string(f.Class))
	r.step.Status = core.StepFailed
	o := outcome{status: core.RunFailed, err: &core.RunError{
		Code: core.CodeRunFailed, Class: f.Class, Message: fmt.Sprintf("node %s: %s", r.node.ID, f.Message), Step: r.node.ID,
		Retryable: f.Class == core.ClassUnavailable || f.Class == core.ClassTimeout,
	}}
	switch {
	case f.Class == core.ClassTimeout:
		r.step.Status = core.StepTimedOut
		o.status, o.err.Code = core.RunTimedOut, core.CodeRunTimedOut
	case f.Status != 0: // the node speaks to the caller in its own words
		o.err.Status, o.err.UserCode, o.err.Message, o.err.Retryable = f.Status, f.Code, f.Message, false
	}
	if n := len(r.step.Attempts); n > 1 && f.Status == 0 {
		o.err.Message = fmt.Sprintf("%s (%d attempts)", strings.TrimSuffix(o.err.Message, "."), n)
	}
	return o
}
