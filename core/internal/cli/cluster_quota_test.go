package cli

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/store/storetest"
	"github.com/keyfire/keyfire/sdk/client"
)

// TestChaosQuota is Q1 over several servers: of very many attempts, inline and durable ones, as many are admitted as the key may start, and its
// counter is the number of its runs; the second time although servers are killed meanwhile.
func TestChaosQuota(t *testing.T) {
	chaosTime(t)
	c := startCluster(t, storetest.NewPostgres(t).URL, 3)
	attempts := min(numberFrom(t, "KEYFIRE_CHAOS_RUNS", 40_000), 40_000)
	c.exactQuota(t, attempts/40, attempts, 0)
	c.exactQuota(t, attempts/40, attempts, numberFrom(t, "KEYFIRE_CHAOS_KILLS", 20)/5)
}

// exactQuota asks so many times for a run of a key that may start limit, on every server, while it kills servers so often.
func (c *cluster) exactQuota(t *testing.T, limit, attempts, kills int) {
	t.Helper()
	key := c.servers[0].createKey(t, client.NewKey{Workflow: "echo", MaxRuns: int64(limit)})
	var mu sync.RWMutex // held for reading while a client is taken
	clients := make([]*client.Client, len(c.servers))
	for i, s := range c.servers {
		clients[i] = s.client(t, key.Secret)
	}
	var left, admitted, refused, broken atomic.Int64
	left.Store(int64(attempts))
	var wg sync.WaitGroup
	for i := range 48 {
		wg.Go(func() {
			for n := i; left.Add(-1) >= 0; n++ {
				mu.RLock()
				cl := clients[n%len(clients)]
				mu.RUnlock()
				_, err := cl.Trigger(context.Background(), "", client.TriggerRequest{Async: n%2 == 0})
				switch o := outcome(err); {
				case o == "ok":
					admitted.Add(1)
				case o == string(core.CodeQuotaExhausted):
					refused.Add(1)
				case kills > 0 && (o == "broken" || o == string(core.CodeStoreUnavailable)):
					broken.Add(1)
					time.Sleep(5 * time.Millisecond) // the pace of a client that tries again
				default:
					t.Errorf("an attempt ended %s: %v", o, err)
					return
				}
			}
		})
	}
	// The first kills fall into the time in which runs are admitted.
	for kill := range kills {
		for more := admitted.Load() + int64(limit/(kills+1)); admitted.Load() < more && left.Load() > 0 && kill < kills-1; {
			time.Sleep(time.Millisecond)
		}
		victim := rand.IntN(len(c.servers))
		if err := c.servers[victim].kill(); err != nil {
			t.Fatal(err)
		}
		c.restart(victim)
		mu.Lock()
		clients[victim] = c.servers[victim].client(t, key.Secret)
		mu.Unlock()
	}
	wg.Wait()
	// A run that was admitted and whose answer was lost counts, as it must.
	if n := admitted.Load(); n > int64(limit) || kills == 0 && (n != int64(limit) || refused.Load() != int64(attempts-limit)) {
		t.Errorf("%d of %d attempts on a key with %d runs were admitted, %d refused", n, attempts, limit, refused.Load())
	}
	assertQuota(t, c.servers[0].admin, key.ID, int64(limit), int64(limit))
	t.Logf("%d attempts on %d runs over %d servers, %d kills: %d admitted, %d refused, %d without an answer", attempts, limit, len(c.servers), kills, admitted.Load(), refused.Load(), broken.Load())
}

// exactRate asks more often than a rate allows in the time that it takes, on every server.
func (c *cluster) exactRate(t *testing.T, burst, attempts int) {
	t.Helper()
	key := c.servers[0].createKey(t, client.NewKey{Workflow: "echo", RateLimits: []client.RateLimit{{Name: "slow", Limit: int64(burst), Per: "24h"}}})
	var admitted, refused atomic.Int64
	var wg sync.WaitGroup
	for _, s := range c.servers {
		cl := s.client(t, key.Secret)
		for range 4 {
			wg.Go(func() {
				for range attempts / len(c.servers) / 4 {
					switch _, err := cl.Trigger(context.Background(), "", client.TriggerRequest{}); outcome(err) {
					case "ok":
						admitted.Add(1)
					case string(core.CodeRateLimited):
						refused.Add(1)
					default:
						t.Error(err)
					}
				}
			})
		}
	}
	wg.Wait()
	if admitted.Load() != int64(burst) || refused.Load() != int64(attempts-burst) {
		t.Errorf("%d runs were admitted and %d refused of %d at a rate of %d a day", admitted.Load(), refused.Load(), attempts, burst)
	}
}
