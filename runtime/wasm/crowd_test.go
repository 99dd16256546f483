package wasm

import (
	"io"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/keyfire/keyfire/core"
)

// TestGuestsTakeTurnsS2: of many guests that compute without end, each gets its turns, all are stopped at their deadlines, whether or not it is their turn, and all turns are given back.
func TestGuestsTakeTurnsS2(t *testing.T) {
	t.Parallel()
	b := setup(t)
	digest := b.publish(t, hostile()["loop"])
	n := runtime.GOMAXPROCS(0)
	var all sync.WaitGroup
	for range 4 * n {
		all.Go(func() {
			res, err := b.call(t, digest, "", core.Limits{Timeout: core.Duration(time.Second)})
			wantError(t, err, core.ClassTimeout)
			if res.Fuel < 2*slice {
				t.Errorf("a guest had the processor for %d of fuel in %s", res.Fuel, res.Wall)
			}
		})
	}
	all.Wait()
	if free, waiting := b.crowd.turns.State(); free != n || waiting != 0 {
		t.Errorf("%d turns are free in the end, of %d, and %d guests wait", free, n, waiting)
	}
}

// TestTurnIsGivenBackOutside: a guest that waits for something else needs no turn, and one that does not get one before its deadline ends.
func TestTurnIsGivenBackOutside(t *testing.T) {
	t.Parallel()
	c := newCrowd()
	n, _ := c.turns.State()
	guests := make([]*guest, n+1)
	for i := range guests {
		guests[i] = &guest{Context: t.Context(), limit: time.Now().Add(time.Hour), pace: pace{crowd: c, computed: freely}, hostState: hostState{call: &Call{}}}
	}
	for _, g := range guests[:n] {
		g.takeTurn()
	}
	late := guests[n]
	late.limit = time.Now().Add(time.Millisecond)
	if late.takeTurn(); late.pace.turn {
		t.Error("there is one turn too many")
	}
	if late.Err() == nil {
		t.Error("a guest had no turn, and did not wait for one until its deadline")
	}
	guests[0].wait(func() {
		if free, _ := c.turns.State(); free != 1 {
			t.Errorf("%d turns are free while a guest waits, want 1", free)
		}
	})
	for _, g := range guests {
		g.pace.pause()
		g.pace.pause() // which gives nothing back
		g.endTime()
	}
	if free, _ := c.turns.State(); free != n {
		t.Errorf("%d turns are free in the end, want %d", free, n)
	}
}

// TestNetworkIsLookedAt: guests that compute on all processors do not have whoever waits for the network wait until Go's scheduler looks for that by itself.
func TestNetworkIsLookedAt(t *testing.T) {
	b := setup(t)
	if len(b.crowd.bells) == 0 {
		t.Skip("there are no bells on this system")
	}
	digest := b.publish(t, hostile()["loop"])
	client, server := connected(t)
	go io.Copy(server, server)
	exchanges := func() (n int) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			var all sync.WaitGroup
			for range 2 * runtime.GOMAXPROCS(0) {
				all.Go(func() {
					_, err := b.call(t, digest, "", core.Limits{Timeout: core.Duration(time.Second)})
					wantError(t, err, core.ClassTimeout)
				})
			}
			all.Wait()
		}()
		for one := make([]byte, 1); ; n++ {
			select {
			case <-done:
				return n
			default:
			}
			if _, err := client.Write(one); err != nil {
				t.Fatal(err)
			}
			if _, err := client.Read(one); err != nil {
				t.Fatal(err)
			}
		}
	}
	for range 5 { // a machine that does something else may hide it
		with := exchanges()
		var bells []*doorbell
		for len(b.crowd.bells) > 0 {
			bells = append(bells, <-b.crowd.bells)
		}
		without := exchanges()
		for _, d := range bells {
			b.crowd.bells <- d
		}
		t.Logf("%d exchanges in a second, and %d without bells", with, without)
		if with >= 2*without {
			return
		}
	}
	t.Error("bells are of no use")
}

// connected returns the two ends of a connection.
func connected(t *testing.T) (client, server net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if client, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if server, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		client.Close()
		server.Close()
	})
	return client, server
}
