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

// line is what a request passes through from the moment its header is read until its run has executed, is queued, or is refused. It has a few places, and all others wait before it. So
// what was let in soon gets through, whatever comes after it, and thousands that wait are parked instead of taking turns on the processors. How many places there are depends
// on what the runs do: many if each is over in a moment or waits for something else, few if they compute. Who waits for another service or for a time has no place meanwhile.
//
// Those that wait take turns by caller. Of one caller's the oldest goes first, as long as there is room for them all. More are a burst, which is worked off in a moment, or
// more than the server can do, whose queue would only grow until nobody in it is answered in time. Then the newest goes first, so that some are answered as if there was no
// queue; and when that has lasted a while, whoever was not let in soon is not let in at all, but refused a moment later.
type line struct {
	most      int // places there may be
	least     int // places there are at least, which is also how many nodes are enough to keep the processors busy
	running   int // of those that were let in and wait outside
	roomPer   int // place, for those that wait to be let in, however long
	guestsPer int // of the least places
	max       int // of those
	logger    *slog.Logger

	seed   maphash.Seed
	proven *lru.Cache[uint64, string] // whose the credentials are that were good of late, by digest

	mu        sync.Mutex
	places    int            // there are now
	computing int            // nodes that are executed for those that were let in
	guests    int            // of those that are inside: there was no place for them
	kept      int            // of them: their place was kept for who has few
	outside   int            // that were let in, and wait for something that is no processor
	away      map[string]int // of those that are outside, by caller
	inside    list.List      // of *Place, the oldest in front
	held      map[string]int // of those that are inside, by caller

	crowds   map[string]*crowd // those that wait, by caller
	turns    list.List         // of the crowds, the next one in front
	order    list.List         // of *Place: those that wait, the oldest in front
	flood    flood
	refused  int           // since nobody waited
	expiry   *time.Timer   // takes back places that were held too long, and refuses who has waited too long
	refusing chan struct{} // holds one for each request that is about to be refused
}

// Bounds of the line.
const (
	// placesPerProcessor is what keeps a processor busy and shares commits, of runs that hardly compute. More would only wait for each other inside.
	placesPerProcessor = 36
	// leastPerProcessor is what keeps a processor busy of runs that only compute: one that does and one that comes.
	leastPerProcessor = 2
	// placesKept is the part of all places, 1/placesKept, that are for callers who have no more than as many.
	placesKept = 4
	// outsideKept is the part of all that may wait outside, 1/outsideKept, that is for callers who have no more than as many there.
	outsideKept = 8
	// roomPerPlace makes room for hundreds of callers, each of whom waits for an answer before asking again: their queue does not grow, and takes less than a second.
	roomPerPlace = 7
	// longestPlace is how long a place is held by who does not compute. Who needs longer does not wait for a processor: an auth backend hangs, or a disk is slow. That is nothing to keep
	// others out for, and has bounds of its own.
	longestPlace = 250 * time.Millisecond
	// guestsPerPlace is how many are let in beside those who compute for long, per place that keeps the processors busy.
	guestsPerPlace = 6
	// refusingAtOnce is how many requests are refused at a time.
	refusingAtOnce = 4
	maxProven      = 4096
)

// crowd are the requests of one caller that wait.
type crowd struct {
	caller   string
	requests list.List // of *Place, the oldest in front
	turn     *list.Element
	large    bool // a flood is made of it: see line.floods
}

// newLine returns a line with the given number of places at the most and at the least, of whose holders as many may be under way at once as running says.
func newLine(most, least, running, waiting int, logger *slog.Logger) (*line, error) {
	proven, err := lru.New[uint64, string](maxProven)
	if err != nil {
		return nil, err
	}
	l := &line{
		most: most, least: min(least, most), running: running, roomPer: roomPerPlace, guestsPer: guestsPerPlace, max: waiting, logger: logger, places: most,
		seed: maphash.MakeSeed(), proven: proven, held: make(map[string]int), away: make(map[string]int), crowds: make(map[string]*crowd), refusing: make(chan struct{}, refusingAtOnce),
	}
	l.expiry = time.AfterFunc(longestPlace, l.expire)
	return l, nil
}

// Enter waits for a place in the line for a request that may start a run, before anything is looked up for it. While there is more to do than the server can, some are refused with
// CodeOverloaded. An error is also that ctx has ended. Begin gives the place back, or the run that it begins does, and so does End.
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
	if has, kept := l.hasPlace(caller, l.takesGuests()); has && l.order.Len() == 0 {
		l.welcome(p, kept)
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

// hasPlace reports whether there is a place for a caller, and whether it is one of those that are kept for who has few: of these there are as many, also when there are suddenly less
// places than are taken. guests says whether those who have none are let in although all are taken: see takesGuests.
func (l *line) hasPlace(caller string, guests bool) (has, kept bool) {
	few, fewOutside := l.places/placesKept, l.running/outsideKept
	switch {
	case l.outside >= l.running, l.outside >= l.running-fewOutside && l.away[caller] >= fewOutside:
		return false, false
	case l.places-l.inside.Len() > few:
		return true, false
	case l.kept < few && l.held[caller] < few:
		return true, true
	}
	return guests && l.held[caller] == 0, false
}

// full reports that there is no place for anybody but a guest.
func (l *line) full() bool {
	few := l.places / placesKept
	return l.places-l.inside.Len() <= few && l.kept >= few
}

// takesGuests reports whether all places have been taken for long by those who compute. A few callers with nodes of seconds have them all then, and everybody else would wait
// for one of them to end.
func (l *line) takesGuests() bool {
	at := l.inside.Len() - l.places
	if at < 0 || l.guests >= l.guestsPer*l.least {
		return false
	}
	p := l.inside.Front()
	for range at {
		p = p.Next()
	}
	return p != nil && time.Since(p.Value.(*Place).since) >= longestPlace
}

// letIn gives p a place, whether or not there is one.
func (l *line) letIn(p *Place) {
	p.since = time.Now()
	p.inside = l.inside.PushBack(p)
	l.held[p.caller]++
}

// welcome lets p in for the first time, to a place that was kept or another one.
func (l *line) welcome(p *Place, kept bool) {
	switch {
	case kept:
		p.kept = true
		l.kept++
	case l.inside.Len() >= l.places:
		p.guest = true
		l.guests++
	}
	l.letIn(p)
}

// room is for how many that wait there is room, however long.
func (l *line) room() int { return min(l.roomPer*l.places, l.max) }

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
	l.flood.look(p.since, l.order.Len() > l.room())
	if l.order.Len() == 1 {
		l.expiry.Reset(longestPlace / 5)
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
	l.flood.look(time.Now(), l.order.Len() > l.room())
	if l.order.Len() == 0 && l.refused > 0 {
		l.logger.Info("no request waits any more", slog.Int("refused", l.refused))
		l.refused = 0
	}
}

// thin refuses the oldest request of whoever has the most while too many wait, and those of a flood that are too old.
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
	if !l.flood.lasts {
		return
	}
	now := time.Now()
	for e := l.order.Front(); e != nil; {
		p := e.Value.(*Place)
		if now.Sub(p.since) < refusalAfter {
			break
		}
		if e = e.Next(); l.floods(l.crowds[p.caller]) {
			l.refuse(ctx, p)
		}
	}
}

// floods reports whether a crowd is one that the flood is made of: it is larger than its caller's share of the places, or was. It is that until it is gone.
func (l *line) floods(c *crowd) bool {
	c.large = l.flood.lasts && (c.large || c.requests.Len() > l.places/len(l.crowds))
	return c.large
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
	for {
		p, kept := l.next()
		if p == nil {
			return
		}
		l.unpark(p)
		l.welcome(p, kept)
		close(p.decided)
	}
}

// next returns who is let in next, nil if nobody is, and whether to one of the places that are kept.
func (l *line) next() (p *Place, kept bool) {
	guests := l.takesGuests()
	if l.outside >= l.running || l.full() && !guests {
		return nil, false
	}
	now := time.Now()
	for e := l.turns.Front(); e != nil; e = e.Next() {
		c := e.Value.(*crowd)
		has, kept := l.hasPlace(c.caller, guests)
		if !has {
			continue
		}
		newest := c.requests.Back().Value.(*Place)
		switch floods := l.floods(c); {
		case floods && now.Sub(newest.since) >= timely:
		case floods, !l.flood.lasts && l.order.Len() >= l.room():
			return newest, kept
		default:
			return c.requests.Front().Value.(*Place), kept
		}
	}
	return nil, false
}

// expire takes back the places that were held too long, as far as somebody waits for them, and refuses who has waited too long.
func (l *line) expire() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for e := l.inside.Front(); e != nil && l.order.Len() > 0; {
		p := e.Value.(*Place)
		if time.Since(p.since) < longestPlace {
			break
		}
		if e = e.Next(); p.counted == 0 {
			p.leave()
		}
	}
	l.flood.look(time.Now(), l.order.Len() > l.room())
	l.fill()
	l.thin(context.Background())
	if l.order.Len() > 0 {
		l.expiry.Reset(longestPlace / 5)
	}
}

// close ends what the line does by itself.
func (l *line) close() { l.expiry.Stop() }
