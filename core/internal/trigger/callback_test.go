package trigger

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
)

// O2: what one destination may hold is a part of what is free, so five slow ones leave more than half, and none gets more for having more that waits.
func TestCallbackShares(t *testing.T) {
	t.Parallel()
	d := newDeliverer(&Service{})
	dueTo := func(host string) []core.Callback {
		var due []core.Callback
		for i := range callbackSenders {
			due = append(due, core.Callback{URL: fmt.Sprintf("https://%s/%d", host, i)})
		}
		return due
	}
	take := func(due []core.Callback) int {
		picked := d.pick(due)
		for _, c := range picked {
			d.count(c.URL, 1)
		}
		if more := d.pick(due); len(more) > 0 {
			t.Fatalf("%d more are picked at once", len(more))
		}
		return len(picked)
	}
	for i, want := range []int{8, 7, 6, 5, 4} {
		host := fmt.Sprintf("slow%d.example", i)
		if n := take(dueTo(host)); n != want {
			t.Errorf("%s holds %d senders, want %d", host, n, want)
		}
		_, busy := d.state()
		if len(busy) != i+1 {
			t.Errorf("%d slow ones, but %v are passed over", i+1, busy) // or the store would show them for ever
		}
	}
	slow, others := 5, 0
	for take(dueTo(fmt.Sprintf("slow%d.example", slow))) > 0 {
		slow++
	}
	if slow < 20 {
		t.Errorf("%d slow ones hold all senders", slow)
	}
	for url, n := range d.sending {
		for range n {
			d.count(url, -1)
		}
		others++
	}
	if free, busy := d.state(); free != callbackSenders || len(busy) > 0 || len(d.sending) > 0 || others != slow {
		t.Errorf("%d free, %v busy, %v", free, busy, d.sending)
	}
}

// What a receiver has taken is not sent again by the next server, because this one stopped before it had written that down.
func TestCallbackTakenWhileStopping(t *testing.T) {
	t.Parallel()
	began := make(chan struct{})
	b := setup(t, func(c *Config) {
		c.Callbacks = CallbackConfig{
			Check: func(string) error { return nil },
			Secrets: func(context.Context, string) ([]string, error) {
				return []string{"whsec_" + strings.Repeat("AAAA", 8)}, nil
			},
			Data: func(*core.Run) any { return nil },
			Post: func(ctx context.Context, _ string, _ [][2]string, _ []byte) (int, error) {
				close(began)
				<-ctx.Done() // the server stops
				return 204, nil
			},
		}
	})
	b.publish("w", nil)
	_, c := b.key(0, auth.ScopeRunAll)
	b.engine.durable = func(_ context.Context, run *core.Run, _ core.Journal) error {
		run.Status, run.FinishedAt = core.RunSucceeded, time.Now().UTC()
		return nil
	}
	b.StartWorkers()
	id := b.durable(c, "w", Payload{CallbackURL: "https://receiver.example/"})
	<-began
	b.Close()
	sent, err := b.store.Callbacks(context.Background(), core.DefaultAccount, id)
	b.must(err)
	if len(sent) != 1 || sent[0].State != core.CallbackDelivered || sent[0].Attempts != 1 {
		t.Errorf("%+v", sent)
	}
}
