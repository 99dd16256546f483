package admin

import (
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/keyfire/keyfire/core"
)

// LoginLimits bound failed logins. Zero fields are the defaults given.
type LoginLimits struct {
	Window    time.Duration // 0 is 5 minutes
	PerUser   int           // failures of one source with one user in a window; 0 is 10
	PerSource int           // failures of one source with whomever; 0 is 50
}

// maxLoginKeys bounds what the gate remembers of a window. Sources beyond it share one count.
const maxLoginKeys = 8192

// loginGate counts failed logins by where they come from, so that passwords cannot be guessed at will and hashing them costs us little. A user is never locked out
// by somebody else's failures: only the source that failed waits. Counted is when a login begins, and taken back when it turns out well, so that many at
// once cannot get past.
type loginGate struct {
	limits LoginLimits
	now    func() time.Time

	mu     sync.Mutex
	opened time.Time
	counts map[loginKey]int
}

// loginKey counts a source with one user, or with all of them when user is "".
type loginKey struct {
	source  netip.Prefix
	account string
	user    string
}

func newLoginGate(l LoginLimits, now func() time.Time) *loginGate {
	if l.Window == 0 {
		l.Window = 5 * time.Minute
	}
	if l.PerUser == 0 {
		l.PerUser = 10
	}
	if l.PerSource == 0 {
		l.PerSource = 50
	}
	return &loginGate{limits: l, now: now, opened: now(), counts: make(map[loginKey]int)}
}

// begin counts a login that begins, or refuses it. settle says how it went.
func (g *loginGate) begin(from netip.Addr, account, user string) (settle func(well bool), err error) {
	source := core.Network(from)
	bounded := func(s string) string { return strings.Clone(s[:min(len(s), 256)]) } // what a caller sends must not fill the memory, nor stay in it for the sake of a part
	pair, all := loginKey{source, bounded(account), "=" + bounded(user)}, loginKey{source: source}
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.now()
	if now.Sub(g.opened) >= g.limits.Window {
		g.opened = now
		clear(g.counts)
	}
	if len(g.counts) >= maxLoginKeys && g.counts[all] == 0 {
		all = loginKey{user: "others"} // no user is counted under this: those begin with "="
	}
	if len(g.counts) >= maxLoginKeys && g.counts[pair] == 0 {
		pair = all
	}
	if g.counts[all] >= g.limits.PerSource || pair != all && g.counts[pair] >= g.limits.PerUser {
		e := core.Errorf(core.CodeRateLimited, "too many failed logins from this address; wait")
		e.RetryAfter = max(time.Second, g.limits.Window-now.Sub(g.opened))
		return nil, e
	}
	keys := []loginKey{all}
	if pair != all {
		keys = append(keys, pair)
	}
	for _, k := range keys {
		g.counts[k]++
	}
	window := g.opened
	return func(well bool) {
		g.mu.Lock()
		defer g.mu.Unlock()
		if !well || g.opened != window {
			return
		}
		for _, k := range keys {
			g.counts[k]--
		}
	}, nil
}
