package engine

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/runtime/wasm"
)

// Invoker runs one node once. *wasm.Runtime is one.
//
// A failure of the node is a *wasm.Error. Any other error is the server's, except that a call whose ctx ended first may return any
// error that wraps the cause of ctx. The Result says what the call cost as far as it got, with an error too. Implementations are safe
// for concurrent use, stop soon after ctx ends and honour the limits of the call.
type Invoker interface {
	Invoke(ctx context.Context, call wasm.Call) (wasm.Result, error)
}

var _ Invoker = (*wasm.Runtime)(nil)

// Config is what New needs.
type Config struct {
	// Invoker runs the nodes. Required.
	Invoker Invoker
	// Tracer records a span "run" with a span "node <id>" for every node that ran; nil records nothing. Spans hold ids and states, no values.
	Tracer trace.Tracer
	// Logger hears of failures that are the server's and not the node's; nil discards them.
	Logger *slog.Logger
	// Now is the time that runs and steps are stamped with; nil is time.Now. Deadlines and waits run by the system's clock.
	Now func() time.Time
	// Random returns a number in [0, 1) that spreads the waits of retries; nil is math/rand/v2.Float64. It must be safe for concurrent use.
	Random func() float64
	// Observe is told of every change of a run, from several goroutines at once; nil is told nothing. The run waits for it to return.
	Observe func(Event)
	// MaxParallel is how many nodes of one run may execute at once; 0 is 16.
	MaxParallel int
	// MaxPlans is how many compiled versions are kept; 0 is 256. One more costs compiling the least recently used one again.
	MaxPlans int
}

// Engine runs workflows. It is safe for concurrent use and has nothing to close: it starts no goroutine that outlives Execute.
type Engine struct {
	config Config
	tapes  *tapeRoom

	mu    sync.Mutex
	plans map[string]*cached // by digest of the version
	clock int64              // counts uses of plans
}

// cached is a plan that is compiled by whoever needs it first.
type cached struct {
	once     sync.Once
	plan     *plan
	problems []core.Field
	used     int64
}

// New returns an Engine.
func New(c Config) (*Engine, error) {
	if c.Invoker == nil {
		return nil, errors.New("engine: Config.Invoker is nil")
	}
	if c.MaxParallel < 0 || c.MaxPlans < 0 {
		return nil, errors.New("engine: Config.MaxParallel and Config.MaxPlans must not be negative")
	}
	if c.Tracer == nil {
		c.Tracer = noop.NewTracerProvider().Tracer("")
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Random == nil {
		c.Random = rand.Float64
	}
	if c.Observe == nil {
		c.Observe = func(Event) {}
	}
	if c.MaxParallel == 0 {
		c.MaxParallel = 16
	}
	if c.MaxPlans == 0 {
		c.MaxPlans = 256
	}
	if _, err := environment(); err != nil {
		return nil, err
	}
	return &Engine{config: c, tapes: newTapeRoom(maxTapesHeld), plans: map[string]*cached{}}, nil
}

// plan returns the compiled form of def. A digest of "" is not kept.
func (e *Engine) plan(digest string, def *core.Definition) (*plan, []core.Field) {
	if digest == "" {
		return newPlan(def)
	}
	e.mu.Lock()
	c := e.plans[digest]
	if c == nil {
		if len(e.plans) >= e.config.MaxPlans {
			e.evict()
		}
		c = &cached{}
		e.plans[digest] = c
	}
	e.clock++
	c.used = e.clock
	e.mu.Unlock()
	c.once.Do(func() { c.plan, c.problems = newPlan(def) })
	return c.plan, c.problems
}

// evict forgets the plan that was not used for longest.
func (e *Engine) evict() {
	oldest := ""
	for digest, c := range e.plans {
		if oldest == "" || c.used < e.plans[oldest].used {
			oldest = digest
		}
	}
	delete(e.plans, oldest)
}

// EventType says what an Event is about.
type EventType string

// The events of a run, in the order they can occur.
const (
	EventRunStarted   EventType = "run.started"
	EventStepStarted  EventType = "step.started"
	EventStepRetrying EventType = "step.retrying" // an attempt failed and another one will follow
	EventStepFinished EventType = "step.finished"
	EventRunFinished  EventType = "run.finished"
)

// Event is one change of a run. It holds states and no values.
type Event struct {
	Type    EventType
	Account string
	RunID   string
	Time    time.Time
	Run     core.RunStatus  // of a run event
	Step    string          // node id; "" for a run event
	Status  core.StepStatus // of a step event
	Attempt int             // of step.retrying: the attempt that failed, from 1
}
