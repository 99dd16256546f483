package store_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/store"
)

// TestRatesQ2 is Q2: over one, two and three servers together, a rate never admits more than its burst and its rate since, however many ask at once and
// although the clocks of the servers are hours apart. With KEYFIRE_CHAOS it takes as long as that says and tries every cell with one, two and three servers,
// otherwise a moment and each cell with one number of them.
func TestRatesQ2(t *testing.T) {
	t.Parallel()
	const atOnce = 8 // cells
	servers := servers(t, 3)
	counts, each, largest := []int{0}, 200*time.Millisecond, int64(90)
	if text := os.Getenv("KEYFIRE_CHAOS"); text != "" {
		d, err := time.ParseDuration(text)
		if err != nil {
			t.Fatal(err)
		}
		counts, each, largest = []int{1, 2, 3}, max(d*atOnce/72, each), 1000
	}
	prepare(t, servers[0], key("key_1", 0))
	cells, n := make(chan rateCell, 72), 0
	for _, limit := range []int64{1, 7, 30, largest} {
		for _, per := range []time.Duration{time.Second, 10 * time.Second} {
			for _, callers := range []int{2, 8, 32} {
				for _, count := range counts {
					c := rateCell{
						id: fmt.Sprintf("key_%d_%s_%d_%d", limit, per, callers, count), limit: core.RateLimit{Name: "r", Limit: limit, Per: core.Duration(per)},
						callers: callers, servers: count,
					}
					if count == 0 {
						c.servers = 1 + n%3
					}
					if per > time.Second {
						c.limit.Burst = (limit + 4) / 5
					}
					if limit > 500 { // more than all cells together get done in a second
						c.limit.Per *= 60
					}
					n++
					cells <- c
				}
			}
		}
	}
	close(cells)
	var wg sync.WaitGroup
	for range atOnce {
		wg.Go(func() {
			for c := range cells {
				if err := c.try(servers, each); err != nil {
					t.Errorf("%s on %d servers: %v", c.id, c.servers, err)
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d cells", n)
}

// rateCell is one row of the matrix.
type rateCell struct {
	id               string
	limit            core.RateLimit
	callers, servers int
}

// try has callers ask for a while, and until some were refused, and counts.
func (c rateCell) try(servers []*store.Store, d time.Duration) error {
	k := key(c.id, 0)
	k.RateLimits, k.Revision = []core.RateLimit{c.limit}, 1
	if err := servers[0].CreateKey(context.Background(), k, accepted(c.id)); err != nil {
		return err
	}
	skews := []time.Duration{0, 3 * time.Hour, -2 * time.Hour}
	var admitted, refused atomic.Int64
	errs := make(chan error, c.callers)
	var wg sync.WaitGroup
	begun := time.Now()
	for i := range c.callers {
		wg.Go(func() {
			at := i % c.servers
			for n := 0; time.Since(begun) < d || refused.Load() == 0; n++ {
				a := admission(fmt.Sprintf("run_%s_%d_%d", c.id, i, n), c.id)
				a.KeyLimited, a.KeyRevision = true, 1
				a.Run.CreatedAt = a.Run.CreatedAt.Add(skews[at])
				_, err := servers[at].Admit(context.Background(), a)
				var e *core.Error
				switch {
				case err == nil:
					admitted.Add(1)
				case errors.As(err, &e) && e.Code == core.CodeRateLimited && e.RetryAfter > 0 && e.RetryAfter <= c.limit.Per.Std():
					refused.Add(1)
					time.Sleep(2 * time.Millisecond) // the pace of a caller that does not want to hear it
				default:
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	took := time.Since(begun)
	close(errs)
	for err := range errs {
		return err
	}
	burst := c.limit.Limit
	if c.limit.Burst > 0 {
		burst = c.limit.Burst
	}
	most := burst + int64(took.Seconds()*float64(c.limit.Limit)/c.limit.Per.Std().Seconds())
	now, err := servers[1].Key(context.Background(), core.DefaultAccount, c.id)
	switch {
	case err != nil:
		return err
	case admitted.Load() > most || admitted.Load() < burst:
		return fmt.Errorf("%d of %d were admitted in %v, at most %d may be and the burst of %d must", admitted.Load(), admitted.Load()+refused.Load(), took, most, burst)
	case now.RunsUsed != admitted.Load():
		return fmt.Errorf("%d were admitted, and the key counts %d", admitted.Load(), now.RunsUsed)
	}
	return nil
}
