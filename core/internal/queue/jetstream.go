package queue

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/keyfire/keyfire/core"
)

// JetStreamConfig configures a JetStream queue. URL and Name are required.
type JetStreamConfig struct {
	URL string // of one or several NATS servers of a cluster, after commas
	// Credentials is a file with what the server proves itself with: a JWT and its seed as nsc writes them (.creds), or the seed of an nkey alone. A JWT
	// is read whenever a connection begins, so that it may be renewed meanwhile. "" is none, or what the URL holds.
	Credentials string
	// Name keeps the runs of one database apart from those of others on the same NATS: letters and digits. All servers on the database
	// give the same.
	Name string
	// Max bounds the runs that wait, approximately; 0 is DefaultMax. Callers that share a line, of which there are eight, have half of that at most, and so have all runs
	// that wait for a time.
	Max    int
	Logger *slog.Logger // nil is slog.Default()
}

// JetStream is the queue of several servers, in NATS JetStream, and their [Signals]. Runs wait in a work-queue stream, from which each is
// delivered to one worker at a time; one whose worker is not heard of for ten seconds is delivered to another. Callers are spread over a number
// of lines that servers take from in turns, so that one caller with many runs does not make all others wait.
//
// What waits for a time lies in a line of its own, and returns to it until it is due. A workflow with a limit has a line of its own too, which
// JetStream keeps from having more than that many runs with workers, on all servers together.
type JetStream struct {
	*natsSignals
	cfg    JetStreamConfig
	conn   *natsLink
	js     jetstream.JetStream
	stream jetstream.Stream
	prefix string // of the subjects

	ctx    context.Context //nolint:containedctx // ends what runs in the background; not that of a caller
	stop   context.CancelFunc
	work   sync.WaitGroup
	depth  atomic.Int64 // as last heard
	put    atomic.Int64 // since then
	places atomic.Int64 // reserved, and neither put nor released
	crowd  atomic.Pointer[crowd]
	closed atomic.Bool

	errors  core.Rarely // that NATS has told of
	silence natsSilence // of a JetStream that is asked to take runs

	counting sync.Mutex // one at a time counts, or both would take off put what was put before

	back chan struct{} // the connection is back, to a NATS that may have lost everything

	mu      sync.Mutex
	changed sync.Cond // demand or what is offered changed
	lines   map[string]*line
	turns   []*line // in the order in which the next ones are taken from
	takers  []*taker
	held    map[*natsDelivery]struct{}
	limits  map[string]int     // by line: as this server has seen it, and nobody has told of another since
	heard   int                // how often that was taken back
	refetch context.CancelFunc // ends requests that a server which is gone was asked
	fetches context.Context    //nolint:containedctx // of the requests under way
}

var (
	_ Queue   = (*JetStream)(nil)
	_ Signals = (*JetStream)(nil)
)

const (
	natsLines   = 8 // that callers are spread over
	natsAckWait = 10 * time.Second
	natsBeat    = 3 * time.Second // how often a worker is heard of
	natsLost    = 8 * time.Second // without having been heard for as long, a worker gives up
	natsFetch   = 5 * time.Second // how long a request for runs stands
	natsOffer   = 50 * time.Millisecond
	natsCall    = 5 * time.Second
	natsPut     = 2 * time.Second // as natsCall, while a caller waits
	natsSilent  = time.Second     // for which JetStream is not asked to take a run once it has not answered
	natsDepth   = time.Second
	natsScan    = 10 * time.Second
	natsUnique  = 30 * time.Second // for which a second message for the same run is dropped
	natsAtOnce  = 16
	laterLine   = "later"
	limitLine   = "limit"          // begins the name of a workflow's own
	limitIdle   = 10 * time.Minute // after which an empty one is removed
)

// line is one consumer of the stream with what this server was given from it and has not begun.
type line struct {
	name     string
	consumer jetstream.Consumer
	offers   []*natsDelivery
	gone     bool // it was removed
}

// NewJetStream connects to NATS and takes part in the queue of that name, making it if need be. Shut it down after the last delivery.
func NewJetStream(ctx context.Context, cfg JetStreamConfig) (*JetStream, error) {
	if cfg.Max <= 0 {
		cfg.Max = DefaultMax
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	q := &JetStream{
		cfg: cfg, prefix: "keyfire." + cfg.Name + ".", lines: map[string]*line{}, held: map[*natsDelivery]struct{}{}, limits: map[string]int{},
		back: make(chan struct{}, 1), conn: &natsLink{},
	}
	q.changed.L = &q.mu
	q.ctx, q.stop = context.WithCancel(context.WithoutCancel(ctx))
	q.fetches, q.refetch = context.WithCancel(q.ctx)
	if err := q.connect(ctx); err != nil {
		q.Close() // that the connection ends is no news then
		q.stop()
		if q.natsSignals != nil {
			q.hush()
		}
		if q.conn.Conn != nil {
			q.conn.Close()
		}
		q.work.Wait()
		return nil, fmt.Errorf("queue: %w", err)
	}
	q.work.Go(q.beat)
	q.work.Go(q.watch)
	return q, nil
}

func (q *JetStream) connect(ctx context.Context) (err error) {
	proof, err := credentials(q.cfg.Credentials)
	if err != nil {
		return err
	}
	q.conn.Conn, err = nats.Connect(q.cfg.URL, proof,
		nats.Name("keyfire"), nats.NoEcho(),
		// Whoever is refused for a while, because somebody changes passwords, is not refused for ever.
		nats.MaxReconnects(-1), nats.IgnoreAuthErrorAbort(), nats.ReconnectWait(200*time.Millisecond), nats.ReconnectJitter(100*time.Millisecond, 100*time.Millisecond),
		nats.Timeout(natsCall), nats.PingInterval(2*time.Second), nats.MaxPingsOutstanding(2),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			q.conn.away.Store(true)
			if !q.closed.Load() {
				q.cfg.Logger.Warn("the connection to NATS is lost; runs are accepted, and wait until it is back", slog.Any("error", err))
			}
		}),
		nats.ReconnectHandler(func(*nats.Conn) {
			q.conn.away.Store(false)
			q.cfg.Logger.Info("the connection to NATS is back")
			q.doubtLimits("")
			q.again()
			select {
			case q.back <- struct{}{}:
			default:
			}
		}),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			if n := q.errors.Happened(time.Now()); n > 0 { // one that bars this server does it four times a second
				if barred(err) {
					err = unreachable(redact(q.cfg.URL), err)
				}
				q.cfg.Logger.Warn("NATS reports an error", slog.Int64("times", n), slog.Any("error", err))
			}
		}),
	)
	if err != nil {
		return unreachable(redact(q.cfg.URL), err)
	}
	if q.js, err = jetstream.New(q.conn.Conn); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 4*natsCall)
	defer cancel()
	if q.stream, err = q.makeStream(ctx); err != nil {
		return err
	}
	if err := q.makeLines(ctx); err != nil {
		return err
	}
	q.natsSignals, err = newNatsSignals(q.conn, q.prefix, func(name string) {
		q.doubtLimits(name)
		if err := q.join(q.ctx, name); err != nil && q.ctx.Err() == nil {
			q.cfg.Logger.Warn("a workflow's line was not joined; trying again soon", slog.Any("error", err))
		}
	})
	if err != nil {
		return err
	}
	return q.scan(ctx, limitIdle)
}

// makeLines makes the lines without a limit, unless they are there, and takes part in them. Those with one are made for the runs that wait in them.
func (q *JetStream) makeLines(ctx context.Context) error {
	names := []string{laterLine}
	for n := range natsLines {
		names = append(names, fmt.Sprintf("line%d", n))
	}
	for _, name := range names {
		if err := q.open(ctx, name, -1); err != nil {
			return err
		}
	}
	return nil
}

// restore makes what a NATS that has lost its data does not have any more. What waited there is looked for by whoever knows the store.
func (q *JetStream) restore(ctx context.Context) error {
	if _, err := q.makeStream(ctx); err != nil {
		return err
	}
	return q.makeLines(ctx)
}

// open makes the consumer of a line, with at most that many runs with workers, and takes part in it.
func (q *JetStream) open(ctx context.Context, name string, most int) error {
	c, err := q.stream.CreateOrUpdateConsumer(ctx, jetstream.ConsumerConfig{
		Durable: name, FilterSubject: q.prefix + "run." + name + ".*", AckPolicy: jetstream.AckExplicitPolicy, AckWait: natsAckWait, MaxAckPending: most,
		MaxDeliver: -1, MaxWaiting: 4096, DeliverPolicy: jetstream.DeliverAllPolicy,
	})
	if err != nil {
		return fmt.Errorf("line %s: %w", name, err)
	}
	q.takePart(name, c)
	return nil
}

// join takes part in a line that another server has made.
func (q *JetStream) join(ctx context.Context, name string) error {
	q.mu.Lock()
	known := q.lines[name] != nil
	q.mu.Unlock()
	if known {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, natsCall)
	defer cancel()
	c, err := q.stream.Consumer(ctx, name)
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		return nil // it was removed meanwhile
	}
	if err == nil {
		q.takePart(name, c)
	}
	return err
}

func (q *JetStream) takePart(name string, c jetstream.Consumer) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.lines[name] != nil || q.closed.Load() {
		return
	}
	l := &line{name: name, consumer: c}
	q.lines[name] = l
	if name == laterLine {
		q.work.Go(func() { q.returnDue(l) })
		return
	}
	q.turns = append(q.turns, l)
	q.work.Go(func() { q.fetch(l) })
}

// lineOf returns the line a job that is due belongs to.
func (q *JetStream) lineOf(job *core.Job) string {
	if job.Limit > 0 {
		sum := sha256.Sum256([]byte(job.Account + "\x00" + job.Workflow))
		return limitLine + hex.EncodeToString(sum[:10])
	}
	sum := sha256.Sum256([]byte(job.Account + "\x00" + job.Lane))
	return fmt.Sprintf("line%d", int(sum[0])%natsLines)
}

// lineNow returns the line a job belongs to at the moment.
func (q *JetStream) lineNow(job *core.Job) string {
	if job.Due.After(time.Now()) {
		return laterLine
	}
	return q.lineOf(job)
}

// crowd is how many runs wait in each line of a queue that is half full: a line may hold as many as are free, so that one caller leaves half of the queue to the others. What a caller has waiting
// nobody counts here, and those who share a line with one who floods it share the bound; in a queue that is less full, none has reached it.
type crowd map[string]*atomic.Int64

// room takes one of the free places for a line, if it may have one.
func (c *crowd) room(line string, free int64) bool {
	waiting := (*c)[line]
	if waiting == nil { // it is new
		return true
	}
	if waiting.Load() >= free {
		return false
	}
	waiting.Add(1)
	return true
}

// Reserve implements Queue. What waits is known about a second late.
func (q *JetStream) Reserve(job core.Job) (Place, error) {
	if q.closed.Load() {
		return nil, &core.Error{Code: core.CodeDraining, Message: "this server is stopping; send the request again", RetryAfter: time.Second}
	}
	free := int64(q.cfg.Max) + 1 - q.depth.Load() - q.put.Load() - q.places.Add(1)
	crowd := q.crowd.Load()
	if free <= 0 || crowd != nil && !crowd.room(q.lineNow(&job), free) {
		q.places.Add(-1)
		return nil, &core.Error{Code: core.CodeOverloaded, Message: "too many runs are waiting; nothing was started", RetryAfter: time.Second}
	}
	return &natsPlace{q, job}, nil
}

type natsPlace struct {
	q   *JetStream
	job core.Job
}

// Put does not make a caller wait for a NATS that is away: the run is accepted, and is looked for and added later.
func (p *natsPlace) Put(ctx context.Context) error {
	p.q.put.Add(1) // before the place is given up, or neither would count for a moment
	p.q.places.Add(-1)
	if !p.q.conn.there() {
		return fmt.Errorf("queue run %s: %w", p.job.Run, nats.ErrConnectionClosed)
	}
	if !p.q.silence.ask(time.Now()) {
		return fmt.Errorf("queue run %s: %w", p.job.Run, errSilent)
	}
	ctx, cancel := context.WithTimeout(ctx, natsPut)
	defer cancel()
	err := p.q.once(ctx, &p.job)
	p.q.silence.heard(time.Now(), err)
	return err
}

func (p *natsPlace) Release() { p.q.places.Add(-1) }

// Add implements Queue. Servers that add the same run queue it once.
func (q *JetStream) Add(ctx context.Context, job core.Job) error { return q.once(ctx, &job) }

// once queues a job unless the run has a message already, which JetStream itself looks at: servers that miss the same run add it at the same time, also while the one that accepted it is about
// to, and whoever were given the second message would take the run away from whoever executes it.
func (q *JetStream) once(ctx context.Context, job *core.Job) error {
	err := q.publish(ctx, job, job.Run+"/once/"+nuid.Next(), jetstream.WithExpectLastSequencePerSubject(0))
	var said *jetstream.APIError
	if errors.As(err, &said) && (said.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence || said.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant) {
		return nil
	}
	return err
}

// publish queues a job. unique is what a second message for the same purpose is known by.
func (q *JetStream) publish(ctx context.Context, job *core.Job, unique string, more ...jetstream.PublishOpt) error {
	ctx, cancel := context.WithTimeout(ctx, natsCall)
	defer cancel()
	name := q.lineNow(job)
	if name != laterLine && job.Limit > 0 {
		if err := q.limit(ctx, name, job.Limit); err != nil {
			return fmt.Errorf("queue run %s: %w", job.Run, err)
		}
	}
	body, err := json.Marshal(job)
	if err != nil {
		return fmt.Errorf("queue run %s: %w", job.Run, err)
	}
	m := nats.NewMsg(q.prefix + "run." + name + "." + token(job.Run))
	m.Data = body
	if _, err := q.js.PublishMsg(ctx, m, append(more, jetstream.WithMsgID(job.Account+"/"+unique))...); err != nil {
		return fmt.Errorf("queue run %s: %w", job.Run, err)
	}
	return nil
}

// Drop implements Queue. What was dropped is delivered, and found to have ended.
func (q *JetStream) Drop(core.Job) {}

// Depth implements Queue.
func (q *JetStream) Depth() int {
	ctx, cancel := context.WithTimeout(q.ctx, time.Second)
	defer cancel()
	q.count(ctx)
	return int(q.depth.Load())
}

// count asks how many runs there are that no worker has.
func (q *JetStream) count(ctx context.Context) {
	if !q.conn.there() {
		return // the last number is the best there is
	}
	q.counting.Lock()
	defer q.counting.Unlock()
	before := q.put.Load()
	info, err := q.stream.Info(ctx)
	if err != nil {
		return
	}
	q.mu.Lock()
	mine := len(q.held)
	q.mu.Unlock()
	depth := max(0, int64(info.State.Msgs)-int64(mine)) // a number of messages
	q.depth.Store(depth)
	q.put.Add(-before)
	if depth < int64(q.cfg.Max)/2 {
		q.crowd.Store(nil)
		return
	}
	crowd, lines := crowd{}, q.stream.ListConsumers(ctx)
	for c := range lines.Info() {
		n := &atomic.Int64{}
		n.Store(int64(c.NumPending))
		if c.Name == laterLine { // which takes what is not due and puts it off
			n.Add(int64(c.NumAckPending))
		}
		crowd[c.Name] = n
	}
	if lines.Err() == nil {
		q.crowd.Store(&crowd)
	}
}

// Missing returns those of the jobs whose run is nowhere in the queue, neither waiting nor with a worker. Read the jobs from the store
// first and leave out runs that are being admitted: what is missing then was lost between the store and the queue, or by the queue, and Add
// brings it back. A run that waits in a line that was removed in the same moment is brought back by Missing itself.
func (q *JetStream) Missing(ctx context.Context, jobs []core.Job) ([]core.Job, error) {
	if len(jobs) == 0 {
		return nil, nil
	}
	info, err := q.stream.Info(ctx, jetstream.WithSubjectFilter(q.prefix+"run.>"))
	if err != nil {
		return nil, fmt.Errorf("list what is queued: %w", err)
	}
	there := make(map[string]bool, len(info.State.Subjects))
	for subject := range info.State.Subjects {
		there[subject[strings.LastIndexByte(subject, '.')+1:]] = true
	}
	var missing []core.Job
	for _, job := range jobs {
		if !there[token(job.Run)] {
			missing = append(missing, job)
		} else if err := q.keepLine(ctx, &job); err != nil {
			return nil, err
		}
	}
	return missing, nil
}

// watch keeps the number of what waits up to date, and finds lines that nobody has told of.
func (q *JetStream) watch() {
	count, scan := time.NewTicker(natsDepth), time.NewTicker(natsScan)
	defer count.Stop()
	defer scan.Stop()
	doubt := false // whether NATS still has what the queue consists of
	for {
		ctx, cancel := context.WithTimeout(q.ctx, natsCall)
		select {
		case <-q.ctx.Done():
			cancel()
			return
		case <-q.back:
			doubt = true
		case <-count.C:
			q.count(ctx)
		case <-scan.C:
			if err := q.scan(ctx, limitIdle); err != nil && q.ctx.Err() == nil {
				q.cfg.Logger.Debug("lines of the queue were not looked for", slog.Any("error", err))
				doubt = true
			}
		}
		if doubt && q.conn.there() {
			if err := q.restore(ctx); err == nil {
				doubt = false
			} else if q.ctx.Err() == nil {
				q.cfg.Logger.Warn("NATS does not have the queue; trying again", slog.Any("error", err))
			}
		}
		cancel()
	}
}

// Close implements Queue. The signals and the deliveries under way go on until Shutdown.
func (q *JetStream) Close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed.Swap(true) {
		return
	}
	for _, l := range q.turns {
		for _, d := range l.offers {
			d.withdraw.Stop()
			delete(q.held, d)
			_ = d.msg.Nak() // without it the run is delivered again a little later
		}
		l.offers = nil
	}
	for _, t := range q.takers {
		t.given <- nil
	}
	q.takers = nil
	q.refetch()
	q.changed.Broadcast()
}

// Shutdown closes the queue, if it is not, and the connection, after what was said on it has arrived.
func (q *JetStream) Shutdown() error {
	q.Close()
	q.stop()
	q.work.Wait()
	q.hush()
	err := q.conn.FlushTimeout(natsCall)
	q.conn.Close()
	if errors.Is(err, nats.ErrConnectionClosed) || errors.Is(err, nats.ErrTimeout) {
		return nil // NATS is away; what it did not hear it finds out
	}
	return err
}

// Ready returns why the queue cannot be used at the moment, nil when it can.
func (q *JetStream) Ready() error {
	if !q.conn.there() {
		return errors.New("NATS does not answer")
	}
	return nil
}

// token makes text a part of a subject.
func token(text string) string {
	if text != "" && !strings.ContainsFunc(text, func(r rune) bool {
		return r != '_' && r != '-' && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9')
	}) {
		return text
	}
	return "x" + hex.EncodeToString([]byte(text))
}
