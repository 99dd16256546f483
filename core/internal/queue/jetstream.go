package queue

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
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
	// Name keeps the runs of one database apart from those of others on the same NATS: letters and digits. All servers on the database
	// give the same.
	Name   string
	Max    int          // bounds the runs that wait, approximately; 0 is DefaultMax
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
	conn   *nats.Conn
	js     jetstream.JetStream
	stream jetstream.Stream
	prefix string // of the subjects

	ctx    context.Context //nolint:containedctx // ends what runs in the background; not that of a caller
	stop   context.CancelFunc
	work   sync.WaitGroup
	depth  atomic.Int64 // as last heard
	put    atomic.Int64 // since then
	closed atomic.Bool

	mu      sync.Mutex
	changed sync.Cond // demand or what is offered changed
	lines   map[string]*line
	turns   []*line // in the order in which the next ones are taken from
	takers  []*taker
	held    map[*natsDelivery]struct{}
	limits  map[string]int     // by line: as this server knows it
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
	natsDepth   = time.Second
	natsScan    = 10 * time.Second
	natsUnique  = 30 * time.Second // for which a second message for the same run is dropped
	natsAtOnce  = 16
	laterLine   = "later"
)

// line is one consumer of the stream with what this server was given from it and has not begun.
type line struct {
	name     string
	consumer jetstream.Consumer
	offers   []*natsDelivery
}

// taker is a call of Take that waits.
type taker struct{ given chan *natsDelivery }

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
	}
	q.changed.L = &q.mu
	q.ctx, q.stop = context.WithCancel(context.WithoutCancel(ctx))
	q.fetches, q.refetch = context.WithCancel(q.ctx)
	if err := q.connect(ctx); err != nil {
		q.stop()
		if q.conn != nil {
			q.conn.Close()
		}
		return nil, fmt.Errorf("queue: %w", err)
	}
	q.work.Go(q.beat)
	q.work.Go(q.watch)
	return q, nil
}

func (q *JetStream) connect(ctx context.Context) (err error) {
	q.conn, err = nats.Connect(q.cfg.URL,
		nats.Name("keyfire"), nats.NoEcho(), nats.MaxReconnects(-1), nats.ReconnectWait(200*time.Millisecond), nats.ReconnectJitter(100*time.Millisecond, 100*time.Millisecond),
		nats.Timeout(natsCall), nats.PingInterval(2*time.Second), nats.MaxPingsOutstanding(2),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if !q.closed.Load() {
				q.cfg.Logger.Warn("the connection to NATS is lost; runs are accepted, and wait until it is back", slog.Any("error", err))
			}
		}),
		nats.ReconnectHandler(func(*nats.Conn) {
			q.cfg.Logger.Info("the connection to NATS is back")
			q.again()
		}),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			q.cfg.Logger.Warn("NATS reports an error", slog.Any("error", err))
		}),
	)
	if err != nil {
		return fmt.Errorf("NATS does not answer: %w", err)
	}
	if q.js, err = jetstream.New(q.conn); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 4*natsCall)
	defer cancel()
	q.stream, err = q.js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{
		Name: "KEYFIRE_" + q.cfg.Name, Description: "runs that wait for a worker", Subjects: []string{q.prefix + "run.>"},
		Retention: jetstream.WorkQueuePolicy, Storage: jetstream.FileStorage, Duplicates: natsUnique, MaxConsumers: -1, MaxMsgs: -1, MaxBytes: -1,
	})
	if err != nil {
		return fmt.Errorf("JetStream of this NATS cannot keep runs (is the server started with -js, and may this user make streams?): %w", err)
	}
	for n := range natsLines {
		if err := q.open(ctx, fmt.Sprintf("line%d", n), -1); err != nil {
			return err
		}
	}
	if err := q.open(ctx, laterLine, -1); err != nil {
		return err
	}
	if err := q.scan(ctx); err != nil {
		return err
	}
	q.natsSignals, err = newNatsSignals(q.conn, q.prefix, func(name string) {
		if err := q.join(q.ctx, name); err != nil && q.ctx.Err() == nil {
			q.cfg.Logger.Warn("a workflow's line was not joined; trying again soon", slog.Any("error", err))
		}
	})
	return err
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
	if err != nil {
		return err
	}
	q.takePart(name, c)
	return nil
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

// scan takes part in the lines of workflows with limits.
func (q *JetStream) scan(ctx context.Context) error {
	names := q.stream.ConsumerNames(ctx)
	for name := range names.Name() {
		if err := q.join(ctx, name); err != nil {
			return err
		}
	}
	return names.Err()
}

// lineOf returns the line a job that is due belongs to.
func (q *JetStream) lineOf(job *core.Job) string {
	if job.Limit > 0 {
		sum := sha256.Sum256([]byte(job.Account + "\x00" + job.Workflow))
		return "limit" + hex.EncodeToString(sum[:10])
	}
	sum := sha256.Sum256([]byte(job.Account + "\x00" + job.Lane))
	return fmt.Sprintf("line%d", int(sum[0])%natsLines)
}

// Reserve implements Queue. What waits is known about a second late.
func (q *JetStream) Reserve(job core.Job) (Place, error) {
	if q.closed.Load() {
		return nil, &core.Error{Code: core.CodeDraining, Message: "this server is stopping; send the request again", RetryAfter: time.Second}
	}
	if q.depth.Load()+q.put.Add(1) > int64(q.cfg.Max) {
		q.put.Add(-1)
		return nil, &core.Error{Code: core.CodeOverloaded, Message: "too many runs are waiting; nothing was started", RetryAfter: time.Second}
	}
	return &natsPlace{q, job}, nil
}

type natsPlace struct {
	q   *JetStream
	job core.Job
}

func (p *natsPlace) Put(ctx context.Context) error { return p.q.publish(ctx, &p.job, p.job.Run) }
func (p *natsPlace) Release()                      { p.q.put.Add(-1) }

// Add implements Queue. Servers that add the same run in the same moments queue it once.
func (q *JetStream) Add(ctx context.Context, job core.Job) error {
	return q.publish(ctx, &job, job.Run+"/add/"+strconv.FormatInt(time.Now().Unix()/int64(natsScan.Seconds()), 10))
}

// publish queues a job. unique is what a second message for the same purpose is known by.
func (q *JetStream) publish(ctx context.Context, job *core.Job, unique string) error {
	ctx, cancel := context.WithTimeout(ctx, natsCall)
	defer cancel()
	name := laterLine
	if !job.Due.After(time.Now()) {
		name = q.lineOf(job)
		if job.Limit > 0 {
			if err := q.limit(ctx, name, job.Limit); err != nil {
				return fmt.Errorf("queue run %s: %w", job.Run, err)
			}
		}
	}
	body, err := json.Marshal(job)
	if err != nil {
		return fmt.Errorf("queue run %s: %w", job.Run, err)
	}
	m := nats.NewMsg(q.prefix + "run." + name + "." + token(job.Run))
	m.Data = body
	if _, err := q.js.PublishMsg(ctx, m, jetstream.WithMsgID(job.Account+"/"+unique)); err != nil {
		return fmt.Errorf("queue run %s: %w", job.Run, err)
	}
	return nil
}

// limit sees to it that a workflow's line exists, on every server, with the limit of its newest run.
func (q *JetStream) limit(ctx context.Context, name string, most int) error {
	q.mu.Lock()
	known := q.limits[name]
	q.mu.Unlock()
	if known == most {
		return nil
	}
	if err := q.open(ctx, name, most); err != nil {
		return err
	}
	q.mu.Lock()
	q.limits[name] = most
	q.mu.Unlock()
	return q.announce(name)
}

// Take implements Queue.
func (q *JetStream) Take(ctx context.Context) (Delivery, error) {
	q.mu.Lock()
	if q.closed.Load() {
		q.mu.Unlock()
		return nil, ErrClosed
	}
	if ctx.Err() != nil {
		q.mu.Unlock()
		return nil, context.Cause(ctx)
	}
	if d := q.next(); d != nil {
		q.mu.Unlock()
		return d, nil
	}
	t := &taker{given: make(chan *natsDelivery, 1)}
	q.takers = append(q.takers, t)
	q.changed.Broadcast()
	q.mu.Unlock()
	select {
	case d := <-t.given:
		if d == nil {
			return nil, ErrClosed
		}
		return d, nil
	case <-ctx.Done():
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for i, other := range q.takers {
		if other == t {
			q.takers = append(q.takers[:i], q.takers[i+1:]...)
			return nil, context.Cause(ctx)
		}
	}
	if d := <-t.given; d != nil { // it came at the last moment, and is for somebody else
		q.offer(d)
	}
	return nil, context.Cause(ctx)
}

// next takes what is offered, from line to line in turns.
func (q *JetStream) next() *natsDelivery {
	for i, l := range q.turns {
		if len(l.offers) > 0 {
			d := l.offers[0]
			l.offers = l.offers[1:]
			q.turns = append(append(append([]*line{}, q.turns[:i]...), q.turns[i+1:]...), l)
			d.withdraw.Stop()
			return d
		}
	}
	return nil
}

// offer gives a delivery to whoever waits, or keeps it for a moment for whoever comes, and gives it back to the other servers then.
func (q *JetStream) offer(d *natsDelivery) {
	if q.closed.Load() {
		delete(q.held, d)
		_ = d.msg.Nak() // without it the run is delivered again a little later
		return
	}
	if len(q.takers) > 0 {
		t := q.takers[0]
		q.takers = q.takers[1:]
		t.given <- d
		return
	}
	d.line.offers = append(d.line.offers, d)
	d.withdraw = time.AfterFunc(natsOffer, func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		for i, o := range d.line.offers {
			if o == d {
				d.line.offers = append(d.line.offers[:i:i], d.line.offers[i+1:]...)
				delete(q.held, d)
				_ = d.msg.Nak() // as above
				return
			}
		}
	})
}

// fetch asks for runs of one line while somebody waits for them.
func (q *JetStream) fetch(l *line) {
	for {
		q.mu.Lock()
		for len(q.takers) == 0 && !q.closed.Load() {
			q.changed.Wait()
		}
		if q.closed.Load() {
			q.mu.Unlock()
			return
		}
		n, under := min(len(q.takers), natsAtOnce), q.fetches
		q.mu.Unlock()
		err := q.receive(under, l, n, func(m jetstream.Msg) {
			d := &natsDelivery{q: q, line: l, msg: m, lost: make(chan struct{}), beat: time.Now()}
			if err := json.Unmarshal(m.Data(), &d.job); err != nil {
				q.cfg.Logger.Error("a message in the queue is none of ours, and is removed", slog.String("subject", m.Subject()))
				_ = m.Term()
				return
			}
			if meta, err := m.Metadata(); err == nil && meta.NumDelivered > 1 {
				d.job.Recovered = true // a worker may have had it and died
			}
			q.mu.Lock()
			defer q.mu.Unlock()
			q.held[d] = struct{}{}
			q.offer(d)
		})
		q.pause(under, err)
	}
}

// receive asks for up to n runs of a line and passes them on as they come.
func (q *JetStream) receive(ctx context.Context, l *line, n int, each func(jetstream.Msg)) error {
	ctx, cancel := context.WithTimeout(ctx, natsFetch)
	defer cancel()
	batch, err := l.consumer.Fetch(n, jetstream.FetchContext(ctx))
	if err != nil {
		return err
	}
	for m := range batch.Messages() {
		each(m)
	}
	return batch.Error()
}

// pause waits a moment after an error that is none of the usual ends of a request.
func (q *JetStream) pause(ctx context.Context, err error) {
	if err == nil || errors.Is(err, nats.ErrTimeout) || errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
		return
	}
	select {
	case <-ctx.Done():
	case <-time.After(200 * time.Millisecond):
	}
}

// returnDue takes what waits for a time, and puts what is due into its own line.
func (q *JetStream) returnDue(l *line) {
	for !q.closed.Load() {
		q.mu.Lock()
		under := q.fetches
		q.mu.Unlock()
		err := q.receive(under, l, natsAtOnce, func(m jetstream.Msg) {
			var job core.Job
			if json.Unmarshal(m.Data(), &job) != nil {
				_ = m.Term()
				return
			}
			if wait := time.Until(job.Due); wait > 0 {
				_ = m.NakWithDelay(min(wait, time.Hour)) // it comes again in any case
				return
			}
			if err := q.publish(q.ctx, &job, job.Run+"/due/"+nuid.Next()); err != nil {
				q.cfg.Logger.Warn("a run that is due stays where it is for now", slog.String("run_id", job.Run), slog.Any("error", err))
				_ = m.NakWithDelay(time.Second)
				return
			}
			_ = m.Ack()
		})
		q.pause(under, err)
	}
}

// again has everything asked anew of a server that knows nothing of the requests.
func (q *JetStream) again() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.refetch()
	q.fetches, q.refetch = context.WithCancel(q.ctx)
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
	before := q.put.Load()
	info, err := q.stream.Info(ctx)
	if err != nil {
		return // the last number is the best there is
	}
	q.mu.Lock()
	mine := len(q.held)
	q.mu.Unlock()
	q.depth.Store(max(0, int64(info.State.Msgs)-int64(mine))) // a number of messages
	q.put.Add(-before)
}

// Missing returns those of the jobs whose run is nowhere in the queue, neither waiting nor with a worker. Read the jobs from the store
// first and leave out runs that are being admitted: what is missing then was lost between the store and the queue, or by the queue, and Add
// brings it back.
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
		}
	}
	return missing, nil
}

// watch keeps the number of what waits up to date, and finds lines that nobody has told of.
func (q *JetStream) watch() {
	count, scan := time.NewTicker(natsDepth), time.NewTicker(natsScan)
	defer count.Stop()
	defer scan.Stop()
	for {
		ctx, cancel := context.WithTimeout(q.ctx, natsCall)
		select {
		case <-q.ctx.Done():
			cancel()
			return
		case <-count.C:
			q.count(ctx)
		case <-scan.C:
			if err := q.scan(ctx); err != nil && q.ctx.Err() == nil {
				q.cfg.Logger.Debug("lines of the queue were not looked for", slog.Any("error", err))
			}
		}
		cancel()
	}
}

// beat tells JetStream that the workers of this server live, and the workers when it could not.
func (q *JetStream) beat() {
	tick := time.NewTicker(natsBeat)
	defer tick.Stop()
	for {
		select {
		case <-q.ctx.Done():
			return
		case <-tick.C:
		}
		connected := q.conn.IsConnected()
		q.mu.Lock()
		for d := range q.held {
			if d.expired() {
				delete(q.held, d)
				close(d.lost)
			} else if connected && d.msg.InProgress() == nil {
				d.beat = time.Now()
			}
		}
		q.mu.Unlock()
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
	err := q.conn.FlushTimeout(natsCall)
	q.conn.Close()
	if errors.Is(err, nats.ErrConnectionClosed) || errors.Is(err, nats.ErrTimeout) {
		return nil // NATS is away; what it did not hear it finds out
	}
	return err
}

// Ready returns why the queue cannot be used at the moment, nil when it can.
func (q *JetStream) Ready() error {
	if !q.conn.IsConnected() {
		return errors.New("NATS does not answer")
	}
	return nil
}

// natsDelivery is a run that was given to this server.
type natsDelivery struct {
	q        *JetStream
	line     *line
	msg      jetstream.Msg
	job      core.Job
	lost     chan struct{}
	beat     time.Time   // when JetStream last heard of it
	withdraw *time.Timer // while it is offered
}

// expired reports whether another worker may have the run by now. It is so after this process was stopped for a while, too.
func (d *natsDelivery) expired() bool { return time.Since(d.beat) > natsLost }

func (d *natsDelivery) Job() core.Job         { return d.job }
func (d *natsDelivery) Lost() <-chan struct{} { return d.lost }

// letGo ends the delivery and reports whether it was still ours to settle.
func (d *natsDelivery) letGo() bool {
	d.q.mu.Lock()
	defer d.q.mu.Unlock()
	_, held := d.q.held[d]
	delete(d.q.held, d)
	return held && !d.expired()
}

// Done implements Delivery. When NATS does not hear it, the run is delivered again and found to have ended.
func (d *natsDelivery) Done() {
	if d.letGo() {
		d.ack()
	}
}

// ack waits until the run has left the queue, so that it is not counted any more; but not for a NATS that is away.
func (d *natsDelivery) ack() {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(d.q.ctx), time.Second)
	defer cancel()
	if !d.q.conn.IsConnected() || d.msg.DoubleAck(ctx) != nil {
		_ = d.msg.Ack()
	}
}

// Again implements Delivery.
func (d *natsDelivery) Again(at time.Time) {
	if !d.letGo() {
		return // whoever has it now settles it
	}
	job := d.job
	job.Due = at
	if err := d.q.publish(context.WithoutCancel(d.q.ctx), &job, job.Run+"/again/"+nuid.Next()); err != nil {
		_ = d.msg.Nak() // it stays where it is, and comes again
		return
	}
	d.ack()
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
