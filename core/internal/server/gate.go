package server

import (
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/keyfire/keyfire/core"
)

// gate bounds open connections: in all, by not accepting more, and those of one address, by closing the surplus at once. Loopback and trusted proxies
// have no bound of their own, since many callers stand behind them.
type gate struct {
	places  chan struct{}
	perAddr int
	exempt  []netip.Prefix
	done    chan struct{}
	closing sync.Once
	mu      sync.Mutex
	byAddr  map[netip.Prefix]int // bounded by places
}

func newGate(total, perAddr int, exempt []netip.Prefix) *gate {
	return &gate{places: make(chan struct{}, total), perAddr: perAddr, exempt: exempt, done: make(chan struct{}), byAddr: make(map[netip.Prefix]int)}
}

// close makes waiting and later Accepts fail.
func (g *gate) close() { g.closing.Do(func() { close(g.done) }) }

// enter counts a connection and reports whether its address may have another one.
func (g *gate) enter(source netip.Prefix) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.byAddr[source] >= g.perAddr {
		return false
	}
	g.byAddr[source]++
	return true
}

func (g *gate) leave(source netip.Prefix) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.byAddr[source]--; g.byAddr[source] <= 0 {
		delete(g.byAddr, source)
	}
}

// source returns what counts as one address, the zero Prefix for those that are not counted.
func (g *gate) source(a net.Addr) netip.Prefix {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	addr := tcp.AddrPort().Addr().Unmap().WithZone("")
	if addr.IsLoopback() {
		return netip.Prefix{}
	}
	if slices.ContainsFunc(g.exempt, func(p netip.Prefix) bool { return p.Contains(addr) }) {
		return netip.Prefix{}
	}
	return core.Network(addr)
}

// gatedListener accepts through a gate.
type gatedListener struct {
	net.Listener
	gate   *gate
	refuse func(from net.Addr, status int, detail string) []byte // of its connections
	soon   time.Duration                                         // of its connections
}

// Accept waits for a place, then for a connection whose address has not too many.
func (l *gatedListener) Accept() (net.Conn, error) {
	select {
	case l.gate.places <- struct{}{}:
	case <-l.gate.done:
		return nil, net.ErrClosed
	}
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			<-l.gate.places
			return nil, err
		}
		source := l.gate.source(c.RemoteAddr())
		if source.IsValid() && !l.gate.enter(source) {
			_ = c.Close() // nothing was sent on it yet
			continue
		}
		return &gatedConn{Conn: c, gate: l.gate, source: source, refuse: l.refuse, soon: l.soon}, nil
	}
}
