package store

import (
	"testing"
	"time"
)

// D2: a server calls others dead only after it has watched them for as long as they may be silent; a time in which it could not write itself, since the database
// was away or it stood still, does not count.
func TestWatchedD2(t *testing.T) {
	t.Parallel()
	p := &postgres{cfg: &Config{Shared: true}}
	start := time.Date(2027, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, step := range []struct {
		at   time.Duration // since the server was started
		want bool
	}{
		{0, false},
		{2 * time.Second, false},
		{7 * time.Second, false},
		{13 * time.Second, false},
		{Silent, true},
		{Silent + watchGap, true},
		{2*Silent + watchGap + time.Second, false}, // the database was away
		{2*Silent + watchGap + 5*time.Second, false},
		{2*Silent + watchGap + 10*time.Second, false},
		{3*Silent + watchGap, false},
		{3*Silent + watchGap + time.Second, true},
	} {
		tx := &pgTx{s: &pgSession{pg: p}, clock: micros(start.Add(step.at))}
		got, err := tx.watched(Silent)
		if err != nil || got != step.want {
			t.Errorf("after %v: watched is %v, %v", step.at, got, err)
		}
		p.heard(tx.clock)
	}
	p.cfg.Shared = false
	if got, err := (&pgTx{s: &pgSession{pg: p}}).watched(Silent); err != nil || !got {
		t.Errorf("a server that is alone waits for others: %v, %v", got, err)
	}
}
