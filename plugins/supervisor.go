package plugins

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/keyfire/keyfire/auth"
)

// How a supervisor behaves. These are promises (A1), so they are not configurable.
const (
	backoffMin       = 100 * time.Millisecond
	backoffMax       = 30 * time.Second
	backoffProved    = time.Second // instead, for a process that had given a verdict: it can work, so its users wait less
	degradedFailures = 5
	degradedWindow   = time.Minute
	pingEvery        = time.Second
	pingTimeout      = time.Second
	pingsMissed      = 2 // in a row, before the process is ended
)

// maxCallError bounds the error of a call that is kept, in bytes.
const maxCallError = 500

// supervisor keeps one plugin running. Its loop is the only goroutine that starts and ends processes; calls only read current.
type supervisor struct {
	name     string
	launcher *launcher
	logger   *slog.Logger
	now      func() time.Time
	random   io.Reader
	onEvent  func(Event)
	tracer   trace.Tracer
	metrics  *metrics
	output   *output
	breaker  *breaker

	current  atomic.Pointer[instance] // nil while there is none
	bound    atomic.Pointer[auth.Authenticator]
	inFlight atomic.Int64
	retryAt  atomic.Pointer[time.Time] // of the next start, by the timers' clock; nil is now
	commands chan reload
	done     chan struct{} // closed when the loop has ended

	// Owned by the loop.
	binary *binary
	delay  time.Duration

	mu       sync.Mutex
	spec     Plugin
	state    State // without degradation, which is a matter of failures and the breaker
	since    time.Time
	restarts int64
	lastErr  string
	lastCall string
	failures []time.Time // of the last minute
	degraded bool        // as last announced
}

// reload is an operator's order to replace a plugin.
type reload struct {
	ctx    context.Context //nolint:containedctx // of the caller, which waits on result
	spec   Plugin
	result chan error
}

// bind makes route and grant of spec those that calls are held to.
func (s *supervisor) bind(spec Plugin) error {
	a, err := auth.Bind(&backend{s}, auth.Binding{Route: spec.Route, Grant: spec.Grant, Now: s.now})
	if err != nil {
		return err
	}
	s.bound.Store(&a)
	return nil
}

// load pins the executable and starts the first process. It reports the failure and leaves the supervisor ready for run in any case.
func (s *supervisor) load(ctx context.Context) error {
	spec := s.specNow()
	b, err := pin(spec.Path, spec.SHA256, s.launcher.dir)
	if err != nil {
		s.fail(spec, err)
		return fmt.Errorf("plugin %s: %w", s.name, err)
	}
	s.binary = b
	inst, err := s.start(ctx, spec, b)
	if err != nil {
		s.fail(spec, err)
		return fmt.Errorf("plugin %s: %w", s.name, err)
	}
	s.ready(inst, EventLoad)
	return nil
}

// start returns a process that is ready for calls.
func (s *supervisor) start(ctx context.Context, spec Plugin, b *binary) (*instance, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, spec.StartTimeout, fmt.Errorf("not ready after %s", spec.StartTimeout))
	defer cancel()
	inst, err := s.launcher.launch(ctx, spec, b, s.output)
	if err != nil {
		return nil, err
	}
	if err := inst.configure(ctx); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		how := inst.kill()
		return nil, fmt.Errorf("%w%s", shorten(err), how)
	}
	return inst, nil
}

// run supervises until ctx ends, and then stops the process.
func (s *supervisor) run(ctx context.Context) {
	defer close(s.done)
	for {
		var again bool
		if inst := s.current.Load(); inst != nil {
			again = s.watch(ctx, inst)
		} else {
			again = s.revive(ctx)
		}
		if !again {
			s.shut()
			return
		}
	}
}

// watch returns when inst is no longer the current process. It reports false when ctx has ended.
func (s *supervisor) watch(ctx context.Context, inst *instance) bool {
	ticker := time.NewTicker(pingEvery)
	defer ticker.Stop()
	missed := 0
	for {
		select {
		case <-ctx.Done():
			return false
		case <-inst.process.exited:
			s.crashed(inst, errors.New("process ended: "+inst.process.how()))
			return true
		case r := <-s.commands:
			if r.result <- s.reload(r); s.current.Load() != inst {
				return true
			}
		case <-ticker.C:
			s.announce()
			if s.pinged(ctx, inst) {
				missed = 0
			} else if missed++; missed >= pingsMissed && ctx.Err() == nil {
				s.crashed(inst, fmt.Errorf("process did not answer %d health checks", missed))
				return true
			}
		}
	}
}

func (s *supervisor) pinged(ctx context.Context, inst *instance) bool {
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	return inst.ping(ctx) == nil
}

// crashed takes inst out of service. Whatever was under way in it fails now.
func (s *supervisor) crashed(inst *instance, cause error) {
	s.current.Store(nil)
	up := s.now().Sub(inst.started)
	_ = inst.kill()
	// A process that ran for a good while earns a quick restart; one that keeps dying young waits longer each time.
	switch {
	case up > max(2*s.delay, 500*time.Millisecond):
		s.delay = 0
	case inst.proved.Load():
		s.delay = min(s.delay, backoffProved/2) // wait doubles it
	}
	s.record(StateDown, cause)
	s.event(EventCrash, inst.spec, inst.version, inst.process.pid(), cause.Error())
	s.announce()
	s.wait()
}

// revive waits until it is time and starts another process. Without an executable that may run it waits for a reload.
func (s *supervisor) revive(ctx context.Context) bool {
	var due <-chan time.Time
	if s.stateNow() != StateRefused {
		timer := time.NewTimer(s.untilStart())
		defer timer.Stop()
		due = timer.C
	}
	ticker := time.NewTicker(pingEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case r := <-s.commands:
			if r.result <- s.reload(r); s.current.Load() != nil {
				return true
			}
		case <-ticker.C:
			s.announce()
		case <-due:
			s.retry(ctx)
			return ctx.Err() == nil
		}
	}
}

func (s *supervisor) retry(ctx context.Context) {
	spec := s.specNow()
	err := s.pinAgain(spec)
	var inst *instance
	if err == nil {
		inst, err = s.start(ctx, spec, s.binary)
	}
	switch {
	case ctx.Err() != nil && inst == nil:
		return
	case err != nil:
		s.fail(spec, err)
		return
	}
	s.mu.Lock()
	kind := EventRestart
	if s.since.IsZero() {
		kind = EventLoad
	}
	s.restarts++
	s.mu.Unlock()
	s.metrics.restarted(s.name)
	s.ready(inst, kind)
}

// pinAgain reads the executable if that could not be done before.
func (s *supervisor) pinAgain(spec Plugin) error {
	if s.binary != nil {
		return nil
	}
	b, err := pin(spec.Path, spec.SHA256, s.launcher.dir)
	if err != nil {
		return err
	}
	s.binary = b
	return nil
}

// reload replaces the plugin by r.spec: the new process is ready before the old one gets no more calls, and the old one ends when its
// calls are done. If the new one cannot be started, nothing changes.
func (s *supervisor) reload(r reload) error {
	inst, b, err := s.replacement(r)
	if err != nil {
		kind := EventFail
		if errors.Is(err, ErrRefused) {
			kind = EventRefuse
		}
		s.event(kind, r.spec, "", 0, err.Error())
		return fmt.Errorf("reload plugin %s: %w", s.name, err)
	}
	oldBinary, old := s.binary, s.current.Load()
	s.binary = b
	s.mu.Lock()
	s.spec, s.failures = r.spec, nil
	s.mu.Unlock()
	s.delay = 0
	s.ready(inst, EventReload)
	if old != nil {
		old.drain()
		old.stop()
	}
	oldBinary.close()
	return nil
}

// replacement returns a process for r that is ready, with what it executes, and holds calls to its configuration from now on.
func (s *supervisor) replacement(r reload) (*instance, *binary, error) {
	b, err := pin(r.spec.Path, r.spec.SHA256, s.launcher.dir)
	if err != nil {
		return nil, nil, err
	}
	inst, err := s.start(r.ctx, r.spec, b)
	if err != nil {
		b.close()
		return nil, nil, err
	}
	if err := s.bind(r.spec); err != nil {
		_ = inst.kill()
		b.close()
		return nil, nil, err
	}
	return inst, b, nil
}

// ready puts inst into service.
func (s *supervisor) ready(inst *instance, kind EventKind) {
	s.breaker.verdict()
	s.current.Store(inst)
	s.mu.Lock()
	s.state, s.since = StateReady, s.now()
	s.mu.Unlock()
	s.event(kind, inst.spec, inst.version, inst.process.pid(), "")
	s.announce()
}

// fail records a process that could not be started.
func (s *supervisor) fail(spec Plugin, err error) {
	if errors.Is(err, ErrRefused) {
		s.record(StateRefused, err)
		s.event(EventRefuse, spec, "", 0, err.Error())
		return
	}
	s.record(StateDown, err)
	s.event(EventFail, spec, "", 0, err.Error())
	s.announce()
	s.wait()
}

// wait sets when the next process is started: after backoffMin, and twice as long each time, spread over the upper half of it.
func (s *supervisor) wait() {
	s.delay = min(max(2*s.delay, backoffMin), backoffMax)
	delay := s.delay
	var b [1]byte
	if _, err := io.ReadFull(s.random, b[:]); err == nil && delay > backoffMin {
		delay = delay/2 + delay/2*time.Duration(b[0])/255
	}
	at := time.Now().Add(delay) // with the reading that no setting of the clock changes, which s.now may lack
	s.retryAt.Store(&at)
}

// untilStart is how long it is until the next process is started.
func (s *supervisor) untilStart() time.Duration {
	if at := s.retryAt.Load(); at != nil {
		return time.Until(*at)
	}
	return 0
}

// shut ends the current process after its calls.
func (s *supervisor) shut() {
	inst := s.current.Swap(nil)
	if inst != nil {
		inst.drain()
		inst.stop()
	}
	s.binary.close()
	s.mu.Lock()
	s.state, s.since = StateStopped, s.now()
	s.mu.Unlock()
	if inst != nil {
		s.event(EventStop, inst.spec, inst.version, inst.process.pid(), "")
	}
}

// record notes a failure.
func (s *supervisor) record(state State, cause error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	if s.state == StateReady {
		s.since = now
	}
	s.state, s.lastErr = state, cause.Error()
	if s.failures = append(s.failures, now); len(s.failures) > 1000 {
		s.failures = s.failures[1:]
	}
}

// recent drops failures older than a minute and returns how many are left. s.mu is held.
func (s *supervisor) recent() int {
	cut := s.now().Add(-degradedWindow)
	for len(s.failures) > 0 && s.failures[0].Before(cut) {
		s.failures = s.failures[1:]
	}
	return len(s.failures)
}

// announce says once when the plugin becomes degraded, and once when it no longer is.
func (s *supervisor) announce() {
	s.mu.Lock()
	degraded := s.recent() >= degradedFailures
	changed := degraded != s.degraded
	s.degraded = degraded
	spec, reason := s.spec, s.lastErr
	s.mu.Unlock()
	switch {
	case changed && degraded:
		s.event(EventDegrade, spec, "", 0, reason)
	case changed:
		s.event(EventRecover, spec, "", 0, "")
	}
}

func (s *supervisor) event(kind EventKind, spec Plugin, version string, pid int, reason string) {
	level := slog.LevelInfo
	switch kind {
	case EventCrash, EventFail, EventDegrade, EventRefuse:
		level = slog.LevelError
	}
	s.logger.Log(context.Background(), level, "plugin "+string(kind), "pid", pid, "version", version, "sha256", spec.SHA256, "reason", reason)
	if s.onEvent != nil {
		s.onEvent(Event{Time: s.now(), Plugin: s.name, Kind: kind, SHA256: spec.SHA256, Version: version, PID: pid, Reason: reason})
	}
}

func (s *supervisor) specNow() Plugin {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.spec
}

func (s *supervisor) stateNow() State {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state
}

// callFailed keeps why a call brought no verdict, for the operator who looks for it.
func (s *supervisor) callFailed(err error) {
	text := err.Error()
	text = text[:min(len(text), maxCallError)]
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lastCall = s.now().UTC().Format(time.RFC3339) + " " + strings.ToValidUTF8(text, "")
}

func (s *supervisor) status() Status {
	inst := s.current.Load()
	undecided := s.breaker.undecided()
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Status{
		Name: s.name, State: s.state, Required: s.spec.Required, Path: s.spec.Path, SHA256: s.spec.SHA256, Since: s.since,
		Restarts: s.restarts, Failures: s.recent(), InFlight: int(s.inFlight.Load()), LastError: s.lastErr, LastCallError: s.lastCall,
	}
	st.Degraded = st.Failures >= degradedFailures || undecided
	if inst != nil {
		st.Version, st.PID = inst.version, inst.process.pid()
		if st.Degraded {
			st.State = StateDegraded
		}
	}
	return st
}
