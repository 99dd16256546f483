package trigger

import (
	"container/list"
	"context"
	"hash/maphash"
	"log/slog"
	"net/netip"
	"runtime"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
)

// line is what a request passes through from the moment its header is read until its run executes, is queued, or is refused: while it is authenticated, its workflow is looked up and
// its run is admitted. It has a few places, and all others wait before it. So what was let in soon gets through, whatever comes after it, and thousands that wait are parked instead of
// taking turns on the processors.
//
// Those that wait take turns by caller. Of one caller's the oldest goes first, as long as there is room for them all. More are a burst, which is worked off in a moment, or
// more than the server can do, whose queue would only grow until nobody in it is answered in time. Then the newest goes first, so that some are answered as if there was no
// queue; and when that has lasted a while, whoever was not let in soon is not let in at all, but refused a moment later.
type line struct {
	places int // for requests that are let in
	room   int // for those that wait, however long
	max    int // of those that wait
	logger *slog.Logger

	seed   maphash.Seed
	proven *lru.Cache[uint64, string] // whose the credentials are that were good of late, by digest

	mu       sync.Mutex
	inside   list.List         // of *Place, the oldest in front
	crowds   map[string]*crowd // those that wait, by caller
	turns    list.List         // of the crowds, the next one in front
	order    list.List         // of *Place: those that wait, the oldest in front
	flood    flood
	refused  int           // since nobody waited
	expiry   *time.Timer   // gives the next place that was held too long to who waits, and refuses who has waited too long
	refusing chan struct{} // holds one for each request that is about to be refused
}

// Bounds of the line.
const (
	// placesPerProcessor is what keeps a processor busy and shares commits.
	placesPerProcessor = 64
	// roomPerPlace makes room for hundreds of callers, each of whom waits for an answer before asking again: their queue does not grow, and takes less than a second.
	roomPerPlace = 4
	// longestPlace is how long a place is held. Who needs longer does not wait for a processor: an auth backend hangs, a disk is slow, or nodes that wait for others
	// execute wherever a run could. That is nothing to keep others out for, and has bounds of its own.
	longestPlace = 250 * time.Millisecond
	// refusingAtOnce is how many requests are refused at a time.
	refusingAtOnce = 4
	maxProven      = 4096
)

// crowd are the requests of one caller that wait.
type crowd struct {
	caller   string
	requests list.List // of *Place, the oldest in front
	turn     *list.Element
}

// Place is a request's place in the line. A nil Place is none. It is safe for concurrent use.
type Place struct {
	line   *line
	caller string
	since  time.Time // it waits, or is inside

	// Guarded by line.mu.
	inside  *list.Element // in line.inside, nil when it is not there
	waits   *list.Element // in its crowd, nil when it is not there
	order   *list.Element // in line.order
	refused bool
	decided chan struct{} // closed when it does not wait any more
}

func newLine(places, most int, logger *slog.Logger) (*line, error) {
	proven, err := lru.New[uint64, string](maxProven)
	if err != nil {
		return nil, err
	}
	l := &line{
		places: places, room: min(roomPerPlace*places, most), max: most, logger: logger, seed: maphash.MakeSeed(), proven: proven, crowds: make(map[string]*crowd),
		refusing: make(chan struct{}, refusingAtOnce),
	}
	l.expiry = time.AfterFunc(longestPlace, l.expire)
	return l, nil
}

func defaultPlaces() int { return placesPerProcessor * runtime.GOMAXPROCS(0) }

// Enter waits for a place in the line for a request that may start a run, before anything is looked up for it. While there is more to do than the server can, some are refused with
// CodeOverloaded. An error is also that ctx has ended. Begin gives the place back, and so does Leave.
func (s *Service) Enter(ctx context.Context, c auth.Credential, source netip.Addr) (*Place, error) {
	return s.line.enter(ctx, s.line.caller(c, source))
}

// caller tells those apart who share the line. Nobody has said who they are yet, so it is their address, and a principal only by a credential that has been good before: whoever
// makes up credentials gets no more places for that, and whoever knows the id of another one's key takes none of theirs.
func (l *line) caller(c auth.Credential, source netip.Addr) string {
	if c.Place != auth.PlaceHeader && !c.None() {
		if who, ok := l.proven.Get(l.digest(c)); ok {
			return who
		}
	}
	return core.Network(source).String()
}

// prove notes that a credential is good, and whose it is. It is trusted for nothing but a share of the places.
func (l *line) prove(c auth.Credential, p *auth.Principal) {
	if c.Place != auth.PlaceHeader && !c.None() {
		l.proven.Add(l.digest(c), holder(p.Account, p.Subject))
	}
}

func (l *line) digest(c auth.Credential) uint64 { return maphash.String(l.seed, c.Secret.Reveal()) }

func (l *line) enter(ctx context.Context, caller string) (*Place, error) {
	p := &Place{line: l, caller: caller}
	l.mu.Lock()
	if l.order.Len() == 0 && l.inside.Len() < l.places {
		l.letIn(p)
		l.mu.Unlock()
		return p, nil
	}
	l.park(p)
	l.fill()
	l.thin(ctx)
	l.mu.Unlock()
	select {
	case <-p.decided:
	case <-ctx.Done():
		l.mu.Lock()
		gone := p.waits != nil
		if gone {
			l.unpark(p)
		}
		l.mu.Unlock()
		if gone {
			return nil, core.Wrap(core.CodeInternal, context.Cause(ctx), "the caller went away")
		}
		<-p.decided
	}
	if !p.refused {
		return p, nil
	}
	// To refuse one costs little, but hundreds that are ready to be refused would each take as long as a step of a run that was let in, and a run has many. And whoever is woken
	// would run before everybody who is ready to.
	l.refusing <- struct{}{}
	runtime.Gosched()
	<-l.refusing
	e := core.Errorf(core.CodeOverloaded, "the server has more to do than it can; nothing was started")
	e.RetryAfter = time.Second
	return nil, e
}

// letIn gives p a place, whether or not there is one.
func (l *line) letIn(p *Place) {
	p.since = time.Now()
	p.inside = l.inside.PushBack(p)
}

// park has p wait.
func (l *line) park(p *Place) {
	c := l.crowds[p.caller]
	if c == nil {
		c = &crowd{caller: p.caller}
		c.turn = l.turns.PushBack(c)
		l.crowds[p.caller] = c
	}
	p.since, p.decided = time.Now(), make(chan struct{})
	p.waits, p.order = c.requests.PushBack(p), l.order.PushBack(p)
	l.flood.look(p.since, l.order.Len() > l.room)
	if l.order.Len() == 1 {
		l.expireLater()
	}
}

// unpark ends the wait of p.
func (l *line) unpark(p *Place) {
	c := l.crowds[p.caller]
	c.requests.Remove(p.waits)
	l.order.Remove(p.order)
	p.waits = nil
	if c.requests.Len() == 0 {
		l.turns.Remove(c.turn)
		delete(l.crowds, p.caller)
	} else {
		l.turns.MoveToBack(c.turn)
	}
	l.flood.look(time.Now(), l.order.Len() > l.room)
	if l.order.Len() == 0 && l.refused > 0 {
		l.logger.Info("no request waits any more", slog.Int("refused", l.refused))
		l.refused = 0
	}
}

// thin refuses the oldest request of whoever has the most while too many wait, and in a flood everybody's that are too old.
func (l *line) thin(ctx context.Context) {
	for l.order.Len() > l.max {
		var largest *crowd
		for e := l.turns.Front(); e != nil; e = e.Next() {
			if c := e.Value.(*crowd); largest == nil || c.requests.Len() > largest.requests.Len() {
				largest = c
			}
		}
		l.refuse(ctx, largest.requests.Front().Value.(*Place))
	}
	for l.flood.lasts && l.order.Len() > 0 {
		oldest := l.order.Front().Value.(*Place)
		if time.Since(oldest.since) < refusalAfter {
			break
		}
		l.refuse(ctx, oldest)
	}
}

func (l *line) refuse(ctx context.Context, p *Place) {
	l.unpark(p)
	p.refused = true
	close(p.decided)
	if l.refused++; l.refused == 1 {
		l.logger.WarnContext(ctx, "more to do than can be done; requests are refused", slog.Int("waiting", l.order.Len()))
	}
}

// fill gives free places to who waits.
func (l *line) fill() {
	for l.inside.Len() < l.places {
		p := l.next()
		if p == nil {
			return
		}
		l.unpark(p)
		l.letIn(p)
		close(p.decided)
	}
}

// next returns who is let in next, nil if nobody is.
func (l *line) next() *Place {
	now := time.Now()
	isTimely := func(e *list.Element) bool { return !l.flood.lasts || now.Sub(e.Value.(*Place).since) < timely }
	if l.order.Len() == 0 || !isTimely(l.order.Back()) {
		return nil
	}
	for {
		c := l.turns.Front().Value.(*crowd)
		switch newest := c.requests.Back(); {
		case !isTimely(newest):
			l.turns.MoveToBack(c.turn) // that ends: somebody's newest is timely
		case l.flood.lasts || l.order.Len() >= l.room:
			return newest.Value.(*Place)
		default:
			return c.requests.Front().Value.(*Place)
		}
	}
}

// expire takes back the places that were held too long, as far as somebody waits for them, and refuses who has waited too long.
func (l *line) expire() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.order.Len() > 0 {
		oldest := l.inside.Front()
		if oldest == nil || time.Since(oldest.Value.(*Place).since) < longestPlace {
			break
		}
		oldest.Value.(*Place).leave()
	}
	l.thin(context.Background())
	l.expireLater()
}

// expireLater has expire look again when the next place can be taken back. Whoever waits while there are places, as some do in a flood, will be refused.
func (l *line) expireLater() {
	if l.order.Len() == 0 {
		return
	}
	wait := longestPlace
	if oldest := l.inside.Front(); oldest != nil {
		wait -= time.Since(oldest.Value.(*Place).since)
	}
	l.expiry.Reset(max(0, wait))
}

// close ends what the line does by itself.
func (l *line) close() { l.expiry.Stop() }

// Leave gives the place back, if it is still held.
func (p *Place) Leave() {
	if p == nil {
		return
	}
	p.line.mu.Lock()
	defer p.line.mu.Unlock()
	p.leave()
}

func (p *Place) leave() {
	if p.inside == nil {
		return
	}
	p.line.inside.Remove(p.inside)
	p.inside = nil
	p.line.fill()
}

// Return takes the place again after Leave, whether or not there is one: what was let in is not refused later.
func (p *Place) Return() {
	if p == nil {
		return
	}
	p.line.mu.Lock()
	defer p.line.mu.Unlock()
	if p.inside == nil {
		p.line.letIn(p)
	}
}
