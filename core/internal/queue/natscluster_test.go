package queue_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/queue/queuetest"
)

// TestNatsCluster checks that a cluster of NATS keeps the queue in three copies, and that runs go on when the server is lost that led it.
func TestNatsCluster(t *testing.T) {
	t.Parallel()
	cluster := queuetest.NewNatsCluster(t)
	var urls []string
	for _, s := range cluster {
		urls = append(urls, s.URL)
	}
	name := newName()
	q := openJetStream(t, strings.Join(urls, ","), name)

	// Whoever looks is told by a server that is not killed.
	led := func() (leader string, copies int) {
		t.Helper()
		conn, err := nats.Connect(strings.Join(urls, ","))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		js, err := jetstream.New(conn)
		if err != nil {
			t.Fatal(err)
		}
		s, err := js.Stream(t.Context(), "KEYFIRE_"+name)
		if err != nil {
			t.Fatal(err)
		}
		info, err := s.Info(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return info.Cluster.Leader, info.Config.Replicas
	}
	leader, copies := led()
	if copies != 3 {
		t.Errorf("%d copies, want 3", copies)
	}
	const runs = 20
	put := func(n int) {
		t.Helper()
		for end := time.Now().Add(time.Minute); ; {
			err := q.Add(t.Context(), core.Job{Account: "acct_1", Run: fmt.Sprintf("run_%d", n), Workflow: "wf_1", Lane: "lane"})
			if err == nil {
				return
			}
			if time.Now().After(end) {
				t.Fatal(err)
			}
		}
	}
	for n := range runs / 2 {
		put(n)
	}
	for i, s := range cluster {
		if leader == fmt.Sprint("n", i) {
			s.Kill()
		}
	}
	for n := runs / 2; n < runs; n++ {
		put(n)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	taken := map[string]bool{}
	for len(taken) < runs {
		d, err := q.Take(ctx)
		if err != nil {
			t.Fatalf("%v, after %d runs of %d", err, len(taken), runs)
		}
		taken[d.Job().Run] = true
		d.Done()
	}
}
