package store

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/keyfire/keyfire/core"
)

// lane is the line a change waits in. The lanes exist so that a flood of triggers cannot keep an operator from revoking the key
// that floods, nor a finished run from being recorded.
type lane int

const (
	intake  lane = iota // new work: admissions, audited refusals. Refused when the lane is full
	control             // what operators change. Goes before intake; refused when the lane is full
	results             // ends of runs. Goes before intake; never refused, as there are no more of them than admitted runs
	lanes
)

// change is one operation on its way through the writer.
type change struct {
	name string // what it does, for errors
	lane lane
	// account and caller are whose turn it takes in its lane, so that one key's flood makes another wait for a change and not for all of them. "" is the server itself.
	account, caller string
	size            int64 // bytes it holds in memory, roughly
	// essential changes make things safer, such as revoking a key. They may use the disk space set aside for them.
	essential bool
	// apply makes the change. It returns a *core.Error to refuse, having written nothing, and any other error when the database
	// failed. It may run more than once, each time in a transaction that has not seen it, so it must not depend on what it left
	// in memory the last time.
	apply func(*tx) error
	// first is the statement that apply always begins with, if it can be told without looking at the database. Those of changes that wait together are sent
	// together where each would be a round trip; see ahead.go.
	first *statement

	state atomic.Int32
	done  chan error // takes exactly one answer, unless the change was abandoned
}

// The states of a change in the queue. It leaves stateWaiting once, by whoever is first: the writer or a caller who gave up.
const (
	stateWaiting int32 = iota
	stateClaimed
	stateAbandoned
)

func (c *change) claim() bool   { return c.state.CompareAndSwap(stateWaiting, stateClaimed) }
func (c *change) abandon() bool { return c.state.CompareAndSwap(stateWaiting, stateAbandoned) }

// queue holds changes until the writer takes them.
type queue struct {
	maxLen   int
	maxBytes int64

	mu     sync.Mutex
	filled sync.Cond
	lanes  [lanes]core.Turns[*change]
	bytes  int64
	closed bool
}

func newQueue(maxLen int, maxBytes int64) *queue {
	q := &queue{maxLen: maxLen, maxBytes: maxBytes}
	q.filled.L = &q.mu
	return q
}

// put adds c to its lane, or refuses it before anything is tried. A change larger than the whole bound is let in when nothing
// else waits, and one that holds no memory to speak of, such as a revocation, whatever waits in the other lanes.
func (q *queue) put(c *change) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return core.Errorf(core.CodeStoreUnavailable, "the server is stopping")
	}
	if c.lane != results && (q.lanes[c.lane].Len() >= q.maxLen || c.size > 0 && q.bytes > 0 && q.bytes+c.size > q.maxBytes) {
		return &core.Error{Code: core.CodeOverloaded, Message: "too many requests are waiting; try again", RetryAfter: time.Second}
	}
	q.lanes[c.lane].Push(c.account, c.caller, c)
	q.bytes += c.size
	q.filled.Signal()
	return nil
}

// take waits for changes and moves the next batch of them to dst, at most n and, from the second on, at most maxBytes.
// It returns an empty batch once the queue is closed and empty. Control comes first, then results, then intake, each in turns
// of callers; a quarter of the batch is kept for intake, so that the other lanes cannot starve it.
func (q *queue) take(dst []*change, n int, maxBytes int64) []*change {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.lanes[intake].Len()+q.lanes[control].Len()+q.lanes[results].Len() == 0 {
		if q.closed {
			return dst
		}
		q.filled.Wait()
	}
	room := n - min(n/4, q.lanes[intake].Len())
	dst, room, maxBytes = q.move(dst, control, room, maxBytes)
	dst, room, maxBytes = q.move(dst, results, room, maxBytes)
	dst, _, _ = q.move(dst, intake, room+n/4, maxBytes)
	return dst
}

// move takes from one lane and returns what room is left.
func (q *queue) move(dst []*change, l lane, room int, bytes int64) ([]*change, int, int64) {
	for room > 0 {
		c, ok := q.lanes[l].Peek()
		if !ok || len(dst) > 0 && c.size > bytes {
			break
		}
		q.lanes[l].Pop()
		dst = append(dst, c)
		bytes -= c.size
		q.bytes -= c.size
		room--
	}
	return dst, room, bytes
}

// close refuses everything put from now on. What waits is still taken.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.filled.Broadcast()
}
