package trigger

import (
	"cmp"
	"context"
	"errors"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/queue"
)

// StartWorkers lets this server execute durable runs. Drain ends it.
func (s *Service) StartWorkers() {
	for range s.MaxWorkers {
		s.workers.Go(s.work)
	}
}

// work executes one run after another.
func (s *Service) work() {
	for {
		d, err := s.Queue.Take(s.taking)
		switch {
		case err == nil:
			s.perform(d)
		case errors.Is(err, queue.ErrClosed) || s.taking.Err() != nil:
			return
		default:
			s.Logger.Error("no run could be taken from the queue; trying again", "error", err)
			select {
			case <-s.taking.Done():
				return
			case <-time.After(time.Second):
			}
		}
	}
}

// putOff is how long a run waits that could not be executed because the store did not answer. For how long that was so is nothing that the run's time is to pay for.
const putOff = time.Second

// perform executes a run as far as it goes and settles its delivery.
func (s *Service) perform(d queue.Delivery) {
	job := d.Job()
	ctx, stop := context.WithCancelCause(context.Background())
	defer stop(nil)
	// Before the claim, so that a request to cancel is either seen by the claim or reaches stop.
	id := workID{job.Account, job.Run}
	s.mu.Lock()
	if s.working[id] != nil {
		// Delivered twice, to this server. One of them is enough.
		s.mu.Unlock()
		d.Done()
		return
	}
	s.working[id] = stop
	s.mu.Unlock()
	// Before the delivery is settled: whoever takes the run the moment it is given back must not find it here, and take its turn for one too many.
	leave := func() {
		s.mu.Lock()
		delete(s.working, id)
		s.mu.Unlock()
	}
	defer context.AfterFunc(s.base, func() { stop(context.Cause(s.base)) })()

	claim, err := s.Store.ClaimRun(ctx, job.Account, job.Run, s.Now().UTC(), job.Recovered)
	switch core.CodeOf(err) {
	case "":
	case core.CodeRunAlreadyFinished, core.CodeNotFound, core.CodeConflict:
		leave()
		d.Done()
		return
	default:
		leave()
		s.Logger.Error("run not claimed; trying again", "run_id", job.Run, "error", err)
		d.Broken(s.Now().Add(putOff))
		return
	}
	if lost := d.Lost(); lost != nil {
		watched := make(chan struct{})
		defer close(watched)
		go func() {
			select {
			case <-lost:
				stop(errLost)
			case <-watched:
			}
		}()
	}
	err = s.carryOn(ctx, claim, stop)
	leave()
	s.settle(d, &claim.Run, err)
}

// carryOn executes a claimed run and commits how far it got. A nil error means that run says what is so now.
func (s *Service) carryOn(ctx context.Context, claim *core.Claim, stop context.CancelCauseFunc) error {
	run := &claim.Run
	j := newJournal(s, run, claim.LastSeq, stop)
	if run.Status == core.RunCancelling {
		stop(core.ErrRunCancelled)
	}
	if claim.LastSeq == 0 {
		j.Record(core.RunEvent{Type: core.EventRunStarted, Time: run.StartedAt.UTC(), RunID: run.ID, Status: string(core.RunRunning), Attempt: run.Attempt})
	}
	s.Signals.Changed(run.Account, run.ID)
	ctx, span := s.Tracer.Start(remoteSpan(ctx, run), "attempt", trace.WithAttributes(
		attribute.String("keyfire.run.id", run.ID), attribute.Int("keyfire.run.attempt", run.Attempt)))
	defer span.End()

	v, err := s.version(ctx, run.Account, run.Workflow.ID, run.Workflow.Version)
	switch {
	case err == nil:
		err = s.executeDurable(ctx, run, &v.def, j)
	case core.CodeOf(err) == core.CodeNotFound:
		run.Status, run.FinishedAt = core.RunFailed, s.Now().UTC()
		run.Error = &core.RunError{Code: core.CodeRunFailed, Message: "the version of the workflow that the run was made for is gone"}
		err = nil
	}
	if err == nil && context.Cause(ctx) == errLost { //nolint:errorlint // it is never wrapped
		err = errLost
	}
	if err != nil {
		j.close()
		return cmp.Or(j.failure(), err)
	}
	run.TruncateTimes()
	if run.Status.Terminal() {
		return s.finishDurable(ctx, run, j)
	}
	err = s.retryStore(ctx, run, "run not put off", func(ctx context.Context) error { return s.Store.SuspendRun(ctx, run, j.close()) })
	if core.CodeOf(err) == core.CodeConflict && s.toBeCancelled(ctx, run) {
		// It was to be cancelled in the same moment, and nobody else executes it.
		run.Status, run.FinishedAt = core.RunCancelled, s.Now().UTC().Truncate(time.Microsecond)
		return s.finishDurable(ctx, run, j)
	}
	return err
}

// spanText keeps of the span in ctx what remoteSpan needs.
func spanText(ctx context.Context) string {
	sc := trace.SpanContextFromContext(ctx)
	if !sc.IsValid() {
		return ""
	}
	return sc.SpanID().String() + "-" + sc.TraceFlags().String()
}

// remoteSpan makes the request that started a run the parent of what is done for the run, however much later and on whichever server.
func remoteSpan(ctx context.Context, run *core.Run) context.Context {
	id, flags, _ := strings.Cut(run.Span, "-")
	traceID, err := trace.TraceIDFromHex(run.TraceID)
	if err != nil {
		return ctx
	}
	spanID, err := trace.SpanIDFromHex(id)
	if err != nil {
		return ctx
	}
	parent := trace.SpanContextConfig{TraceID: traceID, SpanID: spanID, Remote: true}
	if flags == trace.FlagsSampled.String() {
		parent.TraceFlags = trace.FlagsSampled
	}
	return trace.ContextWithRemoteSpanContext(ctx, trace.NewSpanContext(parent))
}

// executeDurable keeps a bug in the executor from taking the server down.
func (s *Service) executeDurable(ctx context.Context, run *core.Run, def *core.Definition, j *journal) (err error) {
	defer func() {
		if v := recover(); v != nil {
			s.Logger.ErrorContext(ctx, "executor panicked", "run_id", run.ID, "panic", v, "stack", string(debug.Stack()))
			run.Status, run.Output, run.FinishedAt, err = core.RunFailed, nil, s.Now().UTC(), nil
			run.Error = &core.RunError{Code: core.CodeInternal, Message: "the server failed to execute the run"}
		}
	}()
	turns := &crew{ctx: ctx, turns: s.computing, account: run.Account, caller: run.Trigger.Principal}
	defer turns.end()
	return s.Executor.ExecuteDurable(core.WithLoad(ctx, turns), run, def, j)
}

// toBeCancelled reports whether a request to cancel the run came in while this worker had it.
func (s *Service) toBeCancelled(ctx context.Context, run *core.Run) bool {
	now, err := s.Store.Run(context.WithoutCancel(ctx), run.Account, run.ID)
	if err != nil || now.Status != core.RunCancelling || now.Attempt != run.Attempt {
		return false
	}
	run.Error = now.Error
	return true
}

// finishDurable commits the end of a run with its last events.
func (s *Service) finishDurable(ctx context.Context, run *core.Run, j *journal) error {
	if run.Status == core.RunCancelled {
		s.toBeCancelled(ctx, run) // for the reason
	}
	events := append(j.close(), j.number(core.RunFinished(run)))
	err := s.retryStore(ctx, run, "result of run not committed", func(ctx context.Context) error { return s.Store.FinishRun(ctx, run, events...) })
	if err == nil {
		s.callbacks.kick()
		s.metrics.ended(ctx, run)
	}
	return err
}

// settle tells the queue what became of a delivery, and whoever follows the run that there is something new.
func (s *Service) settle(d queue.Delivery, run *core.Run, err error) {
	switch code := core.CodeOf(err); {
	case code == core.CodeConflict || code == core.CodeRunAlreadyFinished || code == core.CodeNotFound || errors.Is(err, errLost):
		d.Done() // somebody else's now
	case err != nil:
		s.Logger.Error("run put off", "run_id", run.ID, "error", err)
		d.Broken(s.Now().Add(putOff))
	case run.Status.Terminal():
		d.Done()
	case run.Status == core.RunWaiting:
		d.Again(run.DueAt)
	default:
		d.Again(time.Time{})
	}
	s.Signals.Changed(run.Account, run.ID)
}

// storeTries is for how long a worker tries to write what it has to say. After that, another attempt of the run does it again.
const storeTries = 10 * time.Second

// retryStore tries to write something while the store is out of order for a moment. It must go through even when the run was stopped.
func (s *Service) retryStore(ctx context.Context, run *core.Run, trouble string, write func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTries)
	defer cancel()
	for wait := 50 * time.Millisecond; ; wait *= 2 {
		err := write(ctx)
		switch core.CodeOf(err) {
		case "", core.CodeConflict, core.CodeRunAlreadyFinished, core.CodeNotFound:
			return err
		}
		s.Logger.ErrorContext(ctx, trouble, "run_id", run.ID, "error", err)
		select {
		case <-ctx.Done():
			return err
		case <-time.After(wait):
		}
	}
}

// eventDelay is how long an event waits for a step to be committed with, before it is committed alone.
const eventDelay = 50 * time.Millisecond

// journal is the core.Journal of one attempt of a run. Everything it has to commit goes in one stream, so that events are read in the
// order of their numbers; what comes while one commit is under way shares the next.
type journal struct {
	s    *Service
	run  core.Run // account, id and attempt
	stop context.CancelCauseFunc

	mu       sync.Mutex
	seq      int64
	next     *batch
	busy     bool
	idle     sync.Cond // not busy
	flushing *time.Timer
	closed   bool
	failed   error // why something could not be committed
}

// batch is what one commit writes.
type batch struct {
	positions []int
	steps     []core.Step
	events    []core.RunEvent
	done      chan struct{}
	err       error // set before done is closed
}

func newJournal(s *Service, run *core.Run, seq int64, stop context.CancelCauseFunc) *journal {
	j := &journal{s: s, run: core.Run{Account: run.Account, ID: run.ID, Attempt: run.Attempt}, stop: stop, seq: seq, next: newBatch()}
	j.idle.L = &j.mu
	return j
}

func newBatch() *batch { return &batch{done: make(chan struct{})} }

// Paused implements core.Journal.
func (j *journal) Paused() bool { return j.s.Draining() }

// number gives an event its number.
func (j *journal) number(e core.RunEvent) core.RunEvent {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.seq++
	e.Seq, e.RunAttempt = j.seq, j.run.Attempt
	return e
}

// Record implements core.Journal.
func (j *journal) Record(e core.RunEvent) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.seq++
	e.Seq, e.RunAttempt = j.seq, j.run.Attempt
	j.next.events = append(j.next.events, e)
	if j.flushing == nil && !j.closed {
		j.flushing = time.AfterFunc(eventDelay, j.flush)
	}
}

// flush commits the events that have waited long enough.
func (j *journal) flush() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.flushing = nil
	if !j.closed && len(j.next.events) > 0 {
		j.write()
	}
}

// Commit implements core.Journal. A step of an attempt that is over is refused.
func (j *journal) Commit(_ context.Context, position int, step core.Step) error {
	j.mu.Lock()
	if j.closed {
		j.mu.Unlock()
		return errLost
	}
	b := j.next
	b.positions = append(b.positions, position)
	b.steps = append(b.steps, step)
	j.write()
	j.mu.Unlock()
	<-b.done
	return b.err
}

// write has what waits committed, in the background. mu is held.
func (j *journal) write() {
	if j.busy {
		return // whoever writes takes it next
	}
	j.busy = true
	go func() {
		j.mu.Lock()
		defer j.mu.Unlock()
		for !j.closed && len(j.next.events)+len(j.next.steps) > 0 {
			b := j.next
			j.next = newBatch()
			if j.flushing != nil {
				j.flushing.Stop()
				j.flushing = nil
			}
			j.mu.Unlock()
			b.err = j.commit(b)
			close(b.done)
			j.mu.Lock()
		}
		j.busy = false
		j.idle.Broadcast()
	}()
}

func (j *journal) commit(b *batch) error {
	err := j.s.retryStore(context.Background(), &j.run, "step of run not committed", func(ctx context.Context) error {
		cancel, err := j.s.Store.CommitSteps(ctx, j.run.Account, j.run.ID, j.run.Attempt, b.positions, b.steps, b.events)
		if cancel {
			j.stop(core.ErrRunCancelled)
		}
		return err
	})
	if err != nil {
		j.mu.Lock()
		j.failed = cmp.Or(j.failed, err)
		j.mu.Unlock()
		j.stop(errLost) // nothing that this attempt does from now on would count
		return err
	}
	j.s.Signals.Changed(j.run.Account, j.run.ID)
	return nil
}

// failure returns why something could not be committed, if so.
func (j *journal) failure() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.failed
}

// close waits for the commit under way and returns the events that were not committed. Nothing is committed any more then.
func (j *journal) close() []core.RunEvent {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.closed = true
	if j.flushing != nil {
		j.flushing.Stop()
		j.flushing = nil
	}
	for j.busy {
		j.idle.Wait()
	}
	if len(j.next.steps) > 0 { // of nodes that nobody waits for any more
		j.next.err, j.next.steps = errLost, nil
		close(j.next.done)
	}
	return j.next.events
}
