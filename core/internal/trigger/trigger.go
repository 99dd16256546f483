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
	"runtime"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/queue"
)

// Store is what the data plane needs of the store. Every method addresses its object by account.
type Store interface {
	Workflow(ctx context.Context, account, ref string) (core.Workflow, error)
	WorkflowAccount(ctx context.Context, id string) (string, error)
	Version(ctx context.Context, account, workflowID string, version int) (core.Version, error)
	Admit(ctx context.Context, a core.Admission) (core.Admitted, error)
	Earlier(ctx context.Context, account string, id *core.Idempotency, at time.Time) (runID string, err error)
	FinishRun(ctx context.Context, run *core.Run, events ...core.RunEvent) error
	Run(ctx context.Context, account, id string) (*core.Run, error)
	Runs(ctx context.Context, account string, f core.RunFilter, p core.Page) (core.List[core.Run], error)
	Tape(ctx context.Context, account, run, step string, attempt int) ([]byte, error)
	Key(ctx context.Context, account, id string) (*auth.Key, error)
	Limits(ctx context.Context, account, keyID string, at time.Time) ([]core.LimitState, error)
	OriginAllowed(ctx context.Context, origin string, at time.Time) (bool, error)
	TouchKeys(ctx context.Context, used map[string]time.Time) error
	RecordKeyUsage(ctx context.Context, counts []core.KeyUsage, secrets []core.SecretUse) error
	PutRefusal(ctx context.Context, account, requestID string, at time.Time, chain string) error
	Refusal(ctx context.Context, account, requestID string) (string, error)
	Audit(ctx context.Context, events ...core.AuditEvent) error
	// AccountOpen returns nil for an account that may act, CodeAccountDisabled for one that is switched off, CodeNotFound for one that does not exist.
	AccountOpen(ctx context.Context, id string) error
	DurableStore
}

// DurableStore is what durable runs need of the store beside Store.
type DurableStore interface {
	ClaimRun(ctx context.Context, account, id string, at time.Time, fresh bool) (*core.Claim, error)
	CommitSteps(ctx context.Context, account, id string, attempt int, positions []int, steps []core.Step, events []core.RunEvent) (cancel bool, err error)
	SuspendRun(ctx context.Context, run *core.Run, events []core.RunEvent) error
	CancelRun(ctx context.Context, account, id, reason string, at time.Time, ev core.AuditEvent) (core.Cancelled, error)
	OpenRuns(ctx context.Context, after core.Job, limit int) ([]core.Job, error)
	RunsUnderWay(ctx context.Context, account, keyID, workflowID string, limit int) ([]string, error)
	RunEvents(ctx context.Context, account, run string, after int64) ([]core.RunEvent, error)

	TakeCallbacks(ctx context.Context, now, until time.Time, limit int, busy []string, pick func([]core.Callback) []core.Callback) (due []core.Callback, next time.Time, err error)
	RecordCallback(ctx context.Context, c *core.Callback, until time.Time) error
	Callbacks(ctx context.Context, account, run string) ([]core.Callback, error)
	Redeliver(ctx context.Context, account, run, id string, at time.Time, ev core.AuditEvent) (core.Callback, error)

	Schedules(ctx context.Context) ([]core.ScheduleState, error)
	PassTick(ctx context.Context, account string, tick *core.Tick) error
}

// Executor runs the graph of an admitted run to its end and fills in the run's status, output, error, steps and end. It returns
// soon after ctx is done; context.Cause tells it why: core.ErrRunTimedOut, ErrRunCancelled or
// ErrRunInterrupted.
type Executor interface {
	Execute(ctx context.Context, run *core.Run, def *core.Definition)
	// ExecuteDurable goes on with a durable run as far as possible and tells journal how it goes. It returns with the run ended, waiting until
	// run.DueAt, or queued when another worker is to go on; an error is the journal's.
	ExecuteDurable(ctx context.Context, run *core.Run, def *core.Definition, journal core.Journal) error
}

// Config configures a Service. Store, Chain, Executor, Tracer and NewID are required.
type Config struct {
	Store    Store
	Chain    *auth.Chain
	Executor Executor
	Tracer   trace.Tracer
	Meter    metric.Meter     // nil records nothing
	Logger   *slog.Logger     // nil is slog.Default()
	Now      func() time.Time // nil is time.Now
	NewID    core.NewID

	// MaxPending bounds the runs that are being admitted, waiting or executing on this server, and the requests that wait before that. One more is refused with
	// CodeOverloaded before anything is written. 0 is 4096.
	MaxPending int
	// MaxRunning bounds the runs that execute at once; the others wait for their turn, within their deadline. 0 is 1024.
	MaxRunning int
	// MaxBadCredentials is how many failed credentials one source may send in a minute before the answer becomes
	// CodeRateLimited. Good credentials from that source are never affected. 0 is 100, negative is no limit.
	MaxBadCredentials int

	// Queue hands durable runs to workers, and Signals carries word of them. Nil is a queue and signals of this process.
	Queue   queue.Queue
	Signals queue.Signals
	// MaxWorkers is how many durable runs execute here at once; one that waits for a retry or a time is not among them. 0 is 64.
	MaxWorkers int
	// Callbacks says how ends of runs are told to those who asked for it. The zero value takes no callbacks.
	Callbacks CallbackConfig
}

// Service is the data plane of one server. It is safe for concurrent use. Close it after the last request.
type Service struct {
	Config
	refusals  *refusals
	used      *lastUsed
	usage     *usage
	spent     *lru.Cache[string, spent] // rate limits that are used up, by key id
	verdicts  *verdicts
	metrics   *metrics
	pinned    *lru.Cache[pin, *pinned] // definitions with their compiled schemas; versions are immutable
	line      *line
	running   *core.Slots // of runs that execute
	computing *core.Slots // of the nodes of durable runs

	unqueued core.Rarely // accepted runs that were not queued

	mu       sync.Mutex
	draining bool
	pending  int
	held     map[string]int          // places of pending runs by account and caller
	idle     chan struct{}           // closed when draining and nothing is pending
	active   map[string]*activeRun   // by run id
	stop     context.CancelCauseFunc // ends the executing runs
	base     context.Context         //nolint:containedctx // the lifetime of the service, not of a request

	workers    sync.WaitGroup
	working    map[workID]context.CancelCauseFunc // durable runs that execute here
	taking     context.Context                    //nolint:containedctx // ends when no more runs are to be taken from the queue
	stopTaking context.CancelFunc
	halt       chan struct{} // closed when draining begins
	callbacks  *deliverer
	unlisten   func()
	closing    sync.Once
	loop       sync.WaitGroup
	quit       chan struct{}
}

// activeRun lets a repeated request wait for the run of the first one.
type activeRun struct {
	account   string
	place     *Place                  // of the request that started it
	stop      context.CancelCauseFunc // nil until it executes
	cancelled bool                    // before it executes

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
		cfg.MaxRunning = 1024
	}
	if cfg.MaxBadCredentials == 0 {
		cfg.MaxBadCredentials = 100
	}
	if cfg.Queue == nil {
		cfg.Queue = queue.NewInProcess(queue.Config{Now: cfg.Now})
	}
	if cfg.Signals == nil {
		cfg.Signals = &queue.LocalSignals{}
	}
	if cfg.MaxWorkers <= 0 {
		cfg.MaxWorkers = 64
	}
	figures, err := newMetrics(cfg.Meter, cfg.Queue.Depth)
	if err != nil {
		return nil, err
	}
	cache, err := lru.New[pin, *pinned](maxPinned)
	if err != nil {
		return nil, err
	}
	s := &Service{
		Config:  cfg,
		metrics: figures,
		pinned:  cache,
		running: core.NewSlots(cfg.MaxRunning),
		held:    make(map[string]int),
		idle:    make(chan struct{}),
		active:  make(map[string]*activeRun),
		quit:    make(chan struct{}),
		working: make(map[workID]context.CancelCauseFunc),
		halt:    make(chan struct{}),
	}
	processors := runtime.GOMAXPROCS(0)
	s.computing = core.NewSlots(crewPerProcessor * processors)
	if s.line, err = newLine(placesPerProcessor*processors, leastPerProcessor*processors, cfg.MaxRunning, cfg.MaxPending, cfg.Logger); err != nil {
		return nil, err
	}
	s.taking, s.stopTaking = context.WithCancel(context.Background())
	s.unlisten = s.Signals.OnCancel(s.stopRun)
	s.callbacks = newDeliverer(s)
	s.base, s.stop = context.WithCancelCause(context.Background())
	s.refusals = newRefusals(s)
	s.used = newLastUsed()
	s.usage = newUsage()
	if s.spent, err = lru.New[string, spent](maxSpent); err != nil {
		return nil, err
	}
	if s.verdicts, err = newVerdicts(); err != nil {
		return nil, err
	}
	s.loop.Go(s.housekeeping)
	s.loop.Go(s.callbacks.run)
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
		case v := <-s.verdicts.queue:
			s.keepVerdict(v)
		case <-tick.C:
			s.flush()
		case <-s.quit:
			s.flush()
			return
		}
	}
}

// stopped reports whether the service is being closed.
func (s *Service) stopped() bool {
	select {
	case <-s.quit:
		return true
	default:
		return false
	}
}

// flushWithin is how long writing what housekeeping holds may take.
const flushWithin = 5 * time.Second

func (s *Service) flush() {
	ctx, cancel := context.WithTimeout(context.Background(), flushWithin)
	defer cancel()
	s.refusals.flush(ctx)
	s.flushVerdicts()
	if err := s.FlushUsage(ctx); err != nil {
		s.Logger.Warn("use of keys not recorded", "error", err)
	}
	if used := s.used.take(s.Now(), s.stopped()); len(used) > 0 {
		if err := s.Store.TouchKeys(ctx, used); err != nil {
			s.used.back(used)
			s.Logger.Warn("last use of keys not recorded yet; trying again soon", "keys", len(used), "error", err)
		}
	}
}

// Drain stops admitting runs and waits until those that execute here have ended. Durable ones end their present steps only, and are handed back
// to the queue, where the next server finds them. When ctx ends first, the rest is stopped: inline runs are recorded as interrupted, durable ones
// handed back with the step they were in to be attempted again. Drain still waits for that to be written. It may be called more than once.
func (s *Service) Drain(ctx context.Context) {
	s.mu.Lock()
	if !s.draining {
		s.draining = true
		close(s.halt)
		s.stopTaking()
		if s.pending == 0 {
			close(s.idle)
		}
	}
	s.mu.Unlock()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		<-s.idle
		s.workers.Wait()
	}()
	select {
	case <-ended:
		return
	case <-ctx.Done():
	}
	s.stop(core.ErrRunInterrupted)
	<-ended
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
		s.Queue.Close()
		s.line.close()
		s.unlisten()
		s.stop(core.ErrRunInterrupted)
	})
}

func errDraining() error {
	e := core.Errorf(core.CodeDraining, "this server is stopping; send the request again")
	e.RetryAfter = time.Second
	return e
}

// hold keeps the service from being closed until leave.
func (s *Service) hold() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining {
		return errDraining()
	}
	s.pending++
	return nil
}

// callerShare is the part of all places for pending runs, 1/callerShare, that are kept for callers who hold no more than as many.
const callerShare = 8

// enter takes one of the places for pending runs, until exit. The last places are for those who hold few: nobody who has filled the others keeps everybody else out.
func (s *Service) enter(caller string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	kept := s.MaxPending / callerShare
	switch {
	case s.draining:
		return errDraining()
	case s.pending >= s.MaxPending, s.pending >= s.MaxPending-kept && s.held[caller] >= kept:
		e := core.Errorf(core.CodeOverloaded, "too many runs are waiting; nothing was started")
		e.RetryAfter = time.Second
		return e
	}
	s.pending++
	s.held[caller]++
	return nil
}

// exit gives back what enter took.
func (s *Service) exit(caller string) {
	s.mu.Lock()
	less(s.held, caller)
	s.mu.Unlock()
	s.leave()
}

func (s *Service) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pending--; s.pending == 0 && s.draining {
		close(s.idle)
	}
}
