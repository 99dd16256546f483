// Package trigger is the data plane: the only way a run starts. It authenticates a request, finds the workflow and decides
// whether this principal may run it, checks the input, has the store admit the run in one transaction, executes it on this server and commits the
// result before anyone hears of it.
//
// A trigger takes two calls, because the body must not be read before its sender is known:
//
//	ticket, err := service.Open(ctx, trigger.Attempt{...})      // who, and which workflow
//	result, err := service.Start(ctx, ticket, trigger.Payload{...}) // with what
//
// Nothing before the admission costs quota, and an error from either call means that no run exists.
package trigger

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"go.opentelemetry.io/otel/trace"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
)

// Store is what the data plane needs of the store. Every method addresses its object by account.
type Store interface {
	Workflow(ctx context.Context, account, ref string) (core.Workflow, error)
	WorkflowAccount(ctx context.Context, id string) (string, error)
	Version(ctx context.Context, account, workflowID string, version int) (core.Version, error)
	Admit(ctx context.Context, a core.Admission) (core.Admitted, error)
	FinishRun(ctx context.Context, run *core.Run) error
	Run(ctx context.Context, account, id string) (*core.Run, error)
	Runs(ctx context.Context, account string, f core.RunFilter, p core.Page) (core.List[core.Run], error)
	TouchKeys(ctx context.Context, used map[string]time.Time) error
	Audit(ctx context.Context, events ...core.AuditEvent) error
	// AccountOpen returns nil for an account that may act, CodeAccountDisabled for one that is switched off, CodeNotFound for one that does not exist.
	AccountOpen(ctx context.Context, id string) error
}

// Executor runs the graph of an admitted run to its end and fills in the run's status, output, error, steps and end. It returns
// soon after ctx is done; context.Cause tells it why: core.ErrRunTimedOut, ErrRunCancelled or
// ErrRunInterrupted.
type Executor interface {
	Execute(ctx context.Context, run *core.Run, def *core.Definition)
}

// Config configures a Service. Store, Chain, Executor, Tracer and NewID are required.
type Config struct {
	Store    Store
	Chain    *auth.Chain
	Executor Executor
	Tracer   trace.Tracer
	Logger   *slog.Logger     // nil is slog.Default()
	Now      func() time.Time // nil is time.Now
	NewID    core.NewID

	// MaxPending bounds the runs that are being admitted, waiting or executing on this server. One more is refused with
	// CodeOverloaded before anything is written. 0 is 4096.
	MaxPending int
	// MaxRunning bounds the runs that execute at once; the others wait for their turn, within their deadline. 0 is 256.
	MaxRunning int
	// MaxBadCredentials is how many failed credentials one source may send in a minute before the answer becomes
	// CodeRateLimited. Good credentials from that source are never affected. 0 is 100, negative is no limit.
	MaxBadCredentials int
}

// Service is the data plane of one server. It is safe for concurrent use. Close it after the last request.
type Service struct {
	Config
	refusals *refusals
	used     *lastUsed
	pinned   *lru.Cache[pin, *pinned] // definitions with their compiled schemas; versions are immutable
	running  chan struct{}

	mu       sync.Mutex
	draining bool
	pending  int
	idle     chan struct{}           // closed when draining and nothing is pending
	active   map[string]*activeRun   // by run id
	stop     context.CancelCauseFunc // ends the executing runs
	base     context.Context         //nolint:containedctx // the lifetime of the service, not of a request
	closing  sync.Once
	loop     sync.WaitGroup
	quit     chan struct{}
}

// activeRun lets a repeated request wait for the run of the first one.
type activeRun struct {
	done chan struct{}
	run  *core.Run // set before done is closed
	err  error     // set before done is closed, when the result could not be committed
}

// New returns a Service and starts its housekeeping.
func New(cfg Config) (*Service, error) {
	if cfg.Store == nil || cfg.Chain == nil || cfg.Executor == nil || cfg.Tracer == nil || cfg.NewID == nil {
		return nil, errors.New("trigger: Store, Chain, Executor, Tracer and NewID are required")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.MaxPending <= 0 {
		cfg.MaxPending = 4096
	}
	if cfg.MaxRunning <= 0 {
		cfg.MaxRunning = 256
	}
	if cfg.MaxBadCredentials == 0 {
		cfg.MaxBadCredentials = 100
	}
	cache, err := lru.New[pin, *pinned](maxPinned)
	if err != nil {
		return nil, err
	}
	s := &Service{
		Config:  cfg,
		pinned:  cache,
		running: make(chan struct{}, cfg.MaxRunning),
		idle:    make(chan struct{}),
		active:  make(map[string]*activeRun),
		quit:    make(chan struct{}),
	}
	s.base, s.stop = context.WithCancelCause(context.Background())
	s.refusals = newRefusals(s)
	s.used = newLastUsed()
	s.loop.Go(s.housekeeping)
	return s, nil
}

// housekeeping writes what is collected off the hot path: last-used times and summaries of refusals.
func (s *Service) housekeeping() {
	tick := time.NewTicker(30 * time.Second)
	defer tick.Stop()
	for {
		select {
		case e := <-s.refusals.queue:
			s.refusals.write(e)
		case <-tick.C:
			s.flush()
		case <-s.quit:
			s.flush()
			return
		}
	}
}

func (s *Service) flush() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	s.refusals.flush(ctx)
	if used := s.used.take(); len(used) > 0 {
		if err := s.Store.TouchKeys(ctx, used); err != nil {
			s.Logger.Warn("last use of keys not recorded", "keys", len(used), "error", err)
		}
	}
}

// Drain stops admitting runs and waits until those admitted have ended. When ctx ends first, the rest is stopped and recorded
// as interrupted, and Drain still waits for that to be written. It may be called more than once.
func (s *Service) Drain(ctx context.Context) {
	s.mu.Lock()
	if !s.draining {
		s.draining = true
		if s.pending == 0 {
			close(s.idle)
		}
	}
	s.mu.Unlock()
	select {
	case <-s.idle:
		return
	case <-ctx.Done():
	}
	s.stop(core.ErrRunInterrupted)
	<-s.idle
}

// Draining reports whether Drain was called.
func (s *Service) Draining() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.draining
}

// Close drains without grace and writes what housekeeping holds. It may be called more than once.
func (s *Service) Close() {
	s.closing.Do(func() {
		ended, cancel := context.WithCancel(context.Background())
		cancel()
		s.Drain(ended)
		close(s.quit)
		s.loop.Wait()
		s.stop(core.ErrRunInterrupted)
	})
}

// enter takes one of the places for pending runs.
func (s *Service) enter() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.draining:
		e := core.Errorf(core.CodeDraining, "this server is stopping; send the request again")
		e.RetryAfter = time.Second
		return e
	case s.pending >= s.MaxPending:
		e := core.Errorf(core.CodeOverloaded, "too many runs are waiting; nothing was started")
		e.RetryAfter = time.Second
		return e
	}
	s.pending++
	return nil
}

func (s *Service) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pending--; s.pending == 0 && s.draining {
		close(s.idle)
	}
}
