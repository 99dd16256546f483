package queue

import (
	"container/heap"
	"context"
	"sync"
	"time"
	"unique"

	"github.com/keyfire/keyfire/core"
)

// DefaultMax is how many runs wait at most in an InProcess queue unless its Config says otherwise.
const DefaultMax = 100_000

// Config configures an InProcess queue. Zero fields are their defaults.
type Config struct {
	// Max bounds the runs that wait, those for a later time included. What Add brings is not refused and counts. 0 is DefaultMax.
	Max int
	Now func() time.Time // nil is time.Now
}

// InProcess is the queue of one server, in its memory. It polls nothing: a run is handed to a worker that waits as it is put.
type InProcess struct {
	max int
	now func() time.Time

	mu      sync.Mutex
	closed  bool
	ready   core.Turns[*entry]             // due, and to be given out in turns
	next    core.Turns[*entry]             // in one line: due, and before all others: their workflow had no room when their turn came
	parked  map[string]*core.Turns[*entry] // by workflow: due, while their workflow is at its limit
	later   dueHeap                        // not due yet
	known   map[jobID]*entry               // everything that waits
	dropped int                            // entries of these that were dropped
	running map[string]int                 // by workflow with a limit: deliveries under way
	waiting map[waiter]struct{}            // calls of Take
	timer   *time.Timer                    // for the first of later; nil when there is none
	timerAt time.Time

	// What is reserved or waits: in all, by account, and by lane.
	total   int
	byOwner map[owner]int
}

type jobID struct{ account, run string }

// owner is an account, when lane is "", or one of its lanes.
type owner struct{ account, lane string }

type waiter chan struct{}

// entry is a job in the queue. Dropped entries are passed over when their turn comes.
type entry struct {
	job     core.Job
	names   [3]unique.Handle[string] // of its account, workflow and lane: many runs wait for few of these, so each text is kept once, as long as somebody has its handle
	later   bool                     // it is in the heap of those that are not due
	at      int                      // its place there
	dropped bool
}

var _ Queue = (*InProcess)(nil)

// NewInProcess returns an empty queue.
func NewInProcess(c Config) *InProcess {
	if c.Max <= 0 {
		c.Max = DefaultMax
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return &InProcess{
		max: c.Max, now: c.Now, parked: map[string]*core.Turns[*entry]{}, known: map[jobID]*entry{}, running: map[string]int{},
		waiting: map[waiter]struct{}{}, byOwner: map[owner]int{},
	}
}

// Shares of what is free. An owner may hold as many places as are free times its share, so the first one to flood the queue leaves half
// of it to the others, the second one a third of that half, and so on; a caller that has nothing waiting finds a place until the very end. An
// account, which has many callers, may go further than one of them.
const (
	laneShare    = 1
	accountShare = 4
)

// Reserve implements Queue.
func (q *InProcess) Reserve(job core.Job) (Place, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return nil, &core.Error{Code: core.CodeDraining, Message: "this server is stopping; send the request again", RetryAfter: time.Second}
	}
	free := q.max - q.total
	if free <= 0 || q.byOwner[owner{job.Account, job.Lane}] >= laneShare*free || q.byOwner[owner{job.Account, ""}] >= accountShare*free {
		return nil, &core.Error{Code: core.CodeOverloaded, Message: "too many runs are waiting; nothing was started", RetryAfter: time.Second}
	}
	q.count(job, 1)
	return &place{q, job}, nil
}

type place struct {
	q   *InProcess
	job core.Job
}

// Put implements Place.
func (p *place) Put(context.Context) error {
	p.q.mu.Lock()
	defer p.q.mu.Unlock()
	p.q.add(p.job)
	return nil
}

// Release implements Place.
func (p *place) Release() {
	p.q.mu.Lock()
	defer p.q.mu.Unlock()
	p.q.count(p.job, -1)
}

// Add implements Queue. It does not fail.
func (q *InProcess) Add(_ context.Context, job core.Job) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.known[jobID{job.Account, job.Run}] != nil {
		return nil
	}
	q.count(job, 1)
	q.add(job)
	return nil
}

func (q *InProcess) count(job core.Job, n int) {
	q.total += n
	for _, o := range []owner{{job.Account, job.Lane}, {job.Account, ""}} {
		if q.byOwner[o] += n; q.byOwner[o] == 0 {
			delete(q.byOwner, o)
		}
	}
}

// add queues a job that is counted.
func (q *InProcess) add(job core.Job) {
	e := &entry{job: job}
	for i, name := range []*string{&e.job.Account, &e.job.Workflow, &e.job.Lane} {
		e.names[i] = unique.Make(*name)
		*name = e.names[i].Value()
	}
	q.known[jobID{job.Account, job.Run}] = e
	if job.Due.After(q.now()) {
		e.later = true
		heap.Push(&q.later, e)
		q.arm()
		return
	}
	q.ready.Push(job.Account, job.Lane, e)
	q.wake()
}

// wake lets one call of Take look again.
func (q *InProcess) wake() {
	for w := range q.waiting {
		delete(q.waiting, w)
		close(w)
		return
	}
}

// arm sets the timer for the first job that is not due yet.
func (q *InProcess) arm() {
	if len(q.later) == 0 {
		return
	}
	first := q.later[0].job.Due
	if q.timer != nil && !first.Before(q.timerAt) {
		return
	}
	if q.timer != nil {
		q.timer.Stop()
	}
	q.timerAt = first
	// Not for as long as that, for timers do not see that the clock is set, nor that the machine slept.
	q.timer = time.AfterFunc(min(max(first.Sub(q.now()), 0), clockCheck), q.due)
}

// clockCheck is how late a run can be after the clock jumped.
const clockCheck = 5 * time.Second

// due moves what has become due.
func (q *InProcess) due() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.timer = nil
	if q.closed {
		return
	}
	now := q.now()
	for len(q.later) > 0 && !q.later[0].job.Due.After(now) {
		e, _ := heap.Pop(&q.later).(*entry)
		e.later = false
		q.ready.Push(e.job.Account, e.job.Lane, e)
		q.wake()
	}
	q.arm()
}

// Take implements Queue.
func (q *InProcess) Take(ctx context.Context) (Delivery, error) {
	for {
		q.mu.Lock()
		if q.closed {
			q.mu.Unlock()
			return nil, ErrClosed
		}
		if ctx.Err() != nil {
			q.mu.Unlock()
			return nil, context.Cause(ctx)
		}
		if e := q.pop(); e != nil {
			delete(q.known, jobID{e.job.Account, e.job.Run})
			q.count(e.job, -1)
			if e.job.Limit > 0 {
				q.running[e.job.Workflow]++
			}
			q.mu.Unlock()
			return &delivery{q: q, job: e.job}, nil
		}
		w := make(waiter)
		q.waiting[w] = struct{}{}
		q.mu.Unlock()
		select {
		case <-w:
		case <-ctx.Done():
			q.mu.Lock()
			if _, unwoken := q.waiting[w]; unwoken {
				delete(q.waiting, w)
			} else {
				q.wake() // this call was woken for a job that it leaves to another one
			}
			q.mu.Unlock()
			return nil, context.Cause(ctx)
		}
	}
}

// pop returns the next entry whose workflow has room, and parks the others that it meets.
func (q *InProcess) pop() *entry {
	for {
		e, ok := q.next.Pop()
		if !ok {
			if e, ok = q.ready.Pop(); !ok {
				return nil
			}
		}
		switch {
		case e.dropped:
			q.dropped--
			if e.job.Limit > 0 && q.running[e.job.Workflow] < e.job.Limit {
				q.unpark(e.job.Workflow) // it may have had the room of one that is parked
			}
		case e.job.Limit > 0 && q.running[e.job.Workflow] >= e.job.Limit:
			if q.parked[e.job.Workflow] == nil {
				q.parked[e.job.Workflow] = &core.Turns[*entry]{}
			}
			q.parked[e.job.Workflow].Push(e.job.Account, e.job.Lane, e)
		default:
			return e
		}
	}
}

// settle ends a delivery. Its workflow has room for another run then.
func (q *InProcess) settle(job core.Job) {
	if job.Limit == 0 {
		return
	}
	if q.running[job.Workflow]--; q.running[job.Workflow] == 0 {
		delete(q.running, job.Workflow)
	}
	q.unpark(job.Workflow)
}

// unpark lets the next run of a workflow go before all others.
func (q *InProcess) unpark(workflow string) {
	waiting := q.parked[workflow]
	for waiting != nil && waiting.Len() > 0 {
		e, _ := waiting.Pop()
		if waiting.Len() == 0 {
			delete(q.parked, workflow)
		}
		if e.dropped {
			q.dropped--
			continue
		}
		q.next.Push("", "", e)
		q.wake()
		return
	}
}

// Drop implements Queue.
func (q *InProcess) Drop(job core.Job) {
	q.mu.Lock()
	defer q.mu.Unlock()
	id := jobID{job.Account, job.Run}
	e := q.known[id]
	if e == nil {
		return
	}
	delete(q.known, id)
	q.count(e.job, -1)
	if e.later {
		heap.Remove(&q.later, e.at)
		return
	}
	e.dropped = true
	if q.dropped++; q.dropped > len(q.known)+keptDropped {
		q.forgetDropped()
	}
}

// keptDropped is how many dropped entries may lie in the queue beside as many as wait. Their turn may be hours away, while all workers have long runs.
const keptDropped = 1024

// forgetDropped takes what was dropped out of the lines, and leaves the rest in the order in which it comes. No more than there are workers have a turn before all others.
func (q *InProcess) forgetDropped() {
	left := func(line *core.Turns[*entry]) (kept core.Turns[*entry]) {
		for e, ok := line.Pop(); ok; e, ok = line.Pop() {
			if e.dropped {
				q.dropped--
			} else {
				kept.Push(e.job.Account, e.job.Lane, e)
			}
		}
		return kept
	}
	q.ready = left(&q.ready)
	for workflow, parked := range q.parked {
		if *parked = left(parked); parked.Len() == 0 {
			delete(q.parked, workflow)
		}
	}
}

// Depth implements Queue.
func (q *InProcess) Depth() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.known)
}

// Close implements Queue. What waits is forgotten; the store knows it.
func (q *InProcess) Close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	if q.timer != nil {
		q.timer.Stop()
		q.timer = nil
	}
	for w := range q.waiting {
		delete(q.waiting, w)
		close(w)
	}
}

type delivery struct {
	q   *InProcess
	job core.Job
}

func (d *delivery) Job() core.Job { return d.job }

// Lost implements Delivery: nobody else takes runs from this memory.
func (d *delivery) Lost() <-chan struct{} { return nil }

func (d *delivery) Done() {
	d.q.mu.Lock()
	defer d.q.mu.Unlock()
	d.q.settle(d.job)
}

func (d *delivery) Again(at time.Time)  { d.again(at, false) }
func (d *delivery) Broken(at time.Time) { d.again(at, true) }

func (d *delivery) again(at time.Time, recovered bool) {
	d.q.mu.Lock()
	defer d.q.mu.Unlock()
	job := d.job
	job.Due, job.Recovered = at, recovered
	if d.q.known[jobID{job.Account, job.Run}] == nil {
		d.q.count(job, 1)
		d.q.add(job)
	}
	d.q.settle(d.job)
}

// dueHeap orders entries by the time they are due.
type dueHeap []*entry

func (h dueHeap) Len() int { return len(h) }

func (h dueHeap) Less(i, j int) bool { return h[i].job.Due.Before(h[j].job.Due) }

func (h dueHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].at, h[j].at = i, j
}

func (h *dueHeap) Push(x any) {
	e, _ := x.(*entry)
	e.at = len(*h)
	*h = append(*h, e)
}

func (h *dueHeap) Pop() any {
	old := *h
	e := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return e
}
