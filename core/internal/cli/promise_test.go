package cli

import (
	"encoding/json"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/sdk/client"
)

// outcome sorts the answer of a trigger: "ok", a problem's code, or "broken" when no answer came.
func outcome(err error) string {
	var answer *client.Error
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &answer):
		return answer.Code
	}
	return "broken"
}

// countRuns counts the rows of the runs that a key started, page by page.
func countRuns(t *testing.T, c *client.Client, key string) int64 {
	t.Helper()
	n := int64(0)
	for page := (client.Page{Limit: 200}); ; {
		l, err := c.Runs(t.Context(), client.RunQuery{Key: key, Page: page})
		if err != nil {
			t.Fatal(err)
		}
		n += int64(len(l.Data))
		if !l.HasMore {
			return n
		}
		page.Cursor = l.NextCursor
	}
}

// triggerAll sends n triggers over as many connections at once as clients says and counts how they ended. Each trigger that has been
// answered is told to answered, which may be nil.
func triggerAll(t *testing.T, s *testServer, secret string, n, clients int, answered func(outcome string)) map[string]int {
	t.Helper()
	return triggerEach(t, s, secret, client.TriggerRequest{}, n, clients, answered)
}

// triggerEach is triggerAll with a request.
func triggerEach(t *testing.T, s *testServer, secret string, req client.TriggerRequest, n, clients int, answered func(outcome string)) map[string]int {
	t.Helper()
	c := s.client(t, secret)
	var mu sync.Mutex
	counts := map[string]int{}
	var left atomic.Int64
	left.Store(int64(n))
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				_, err := c.Trigger(t.Context(), "echo", req)
				o := outcome(err)
				mu.Lock()
				counts[o]++
				mu.Unlock()
				if answered != nil {
					answered(o)
				}
			}
		})
	}
	wg.Wait()
	return counts
}

// Q1: a quota admits exactly as many runs as it says, however many ask at once.
func TestQ1ExactQuota(t *testing.T) {
	t.Parallel()
	const quota, attempts = 100, 1000
	s := startServer(t)
	key := s.createKey(t, client.NewKey{Workflow: "echo", MaxRuns: quota})
	counts := triggerAll(t, s, key.Secret, attempts, 64, nil)
	if counts["ok"] != quota || counts[string(core.CodeQuotaExhausted)] != attempts-quota {
		t.Errorf("%d triggers on a quota of %d ended %v", attempts, quota, counts)
	}
	assertQuota(t, s.admin, key.ID, quota, quota)
}

// Q1, D1, D2: kill -9 in the middle changes nothing about it. Every accepted run is still there, and the counter is the number of rows.
func TestQ1ExactQuotaAcrossKill(t *testing.T) {
	t.Parallel()
	const quota = 100
	s := startServer(t)
	key := s.createKey(t, client.NewKey{Workflow: "echo", MaxRuns: quota})
	var accepted atomic.Int64
	halfway, died := make(chan struct{}), make(chan error, 1)
	go func() {
		<-halfway
		died <- s.kill()
	}()
	counts := triggerAll(t, s, key.Secret, 400, 32, func(o string) {
		if o == "ok" && accepted.Add(1) == quota/2 {
			close(halfway)
		}
	})
	if err := <-died; err != nil {
		t.Fatal(err)
	}
	if counts["broken"] == 0 {
		t.Fatalf("the server was not killed in the middle: %v", counts)
	}

	again := startServerOn(t, s.data)
	got, err := again.admin.Key(t.Context(), key.ID)
	if err != nil {
		t.Fatal(err)
	}
	if rows := countRuns(t, again.admin, key.ID); rows != got.RunsUsed || rows < accepted.Load() || rows > quota {
		t.Fatalf("after the kill: %d rows, counter %d, %d answered with success, quota %d", rows, got.RunsUsed, accepted.Load(), quota)
	}
	more := triggerAll(t, again, key.Secret, 2*quota, 32, nil)
	if want := quota - int(got.RunsUsed); more["ok"] != want || more["ok"]+more[string(core.CodeQuotaExhausted)] != 2*quota {
		t.Errorf("%d runs were left, and the triggers ended %v", want, more)
	}
	assertQuota(t, again.admin, key.ID, quota, quota)
}

func assertQuota(t *testing.T, admin *client.Client, key string, used, rows int64) {
	t.Helper()
	k, err := admin.Key(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	if got := countRuns(t, admin, key); k.RunsUsed != used || got != rows {
		t.Errorf("the key counts %d runs and there are %d, want %d and %d", k.RunsUsed, got, used, rows)
	}
}

// K2, C7: once a revoke has been answered, no request that starts later is accepted. Clocks are this process's own, so that "later" is exact.
func TestK2RevokeUnderLoad(t *testing.T) {
	t.Parallel()
	const clients, rounds = 16, 5
	s := startServer(t)
	for round := range rounds {
		key := s.createKey(t, client.NewKey{Workflow: "echo"})
		c := s.client(t, key.Secret)
		var revoked atomic.Bool // set after the answer to the revoke was read
		var before, refused, wrong atomic.Int64
		warm, done := make(chan struct{}), make(chan struct{})
		var wg sync.WaitGroup
		for range clients {
			wg.Go(func() {
				for {
					select {
					case <-done:
						return
					default:
					}
					late := revoked.Load()
					_, err := c.Trigger(t.Context(), "echo", client.TriggerRequest{})
					switch o := outcome(err); {
					case late && o == string(core.CodeKeyRevoked):
						if refused.Add(1) == 10*clients {
							close(done)
						}
					case late:
						wrong.Add(1)
						t.Errorf("round %d: a request that started after the revoke was answered ended %q", round, o)
						return
					case o == "ok":
						if before.Add(1) == 2*clients {
							close(warm)
						}
					case o != string(core.CodeKeyRevoked):
						t.Errorf("round %d: a trigger ended %q", round, o)
						return
					}
				}
			})
		}
		select {
		case <-warm:
		case <-time.After(startTimeout):
			t.Error("the clients do not get going")
		}
		if _, err := s.admin.RevokeKey(t.Context(), key.ID, ""); err != nil {
			t.Error(err)
		}
		revoked.Store(true)
		wg.Wait()
		t.Logf("round %d: %d accepted before, %d refused after, %d accepted after", round, before.Load(), refused.Load(), wrong.Load())
	}
}

// S2: a busy loop is stopped by its deadline, the caller hears of it at once, and the next trigger of the same workflow succeeds.
func TestBusyLoopEnds(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	key := s.createKey(t, client.NewKey{Workflow: "loop"})
	c := s.client(t, key.Secret)
	trigger := func(do string) (*client.Run, error) {
		return c.Trigger(t.Context(), "loop", client.TriggerRequest{Input: json.RawMessage(`{"do":"` + do + `"}`)})
	}
	// The first invocation after a start loads the compiled module, which the deadline covers too.
	for deadline := time.Now().Add(startTimeout); ; {
		if _, err := trigger("echo"); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	// The best of some: the machine may be busy with something else, but a loop that is not stopped never ends in time.
	best := startTimeout
	for range 10 {
		_, err := trigger("loop")
		var answer *client.Error
		if !errors.As(err, &answer) || answer.Code != string(core.CodeRunTimedOut) {
			t.Fatalf("the loop ended with %v", err)
		}
		run, err := s.admin.Run(t.Context(), answer.RunID)
		if err != nil {
			t.Fatal(err)
		}
		took := run.FinishedAt.Sub(run.CreatedAt)
		if run.Status != "timed_out" || took < 100*time.Millisecond {
			t.Errorf("the run is %s after %v, want timed_out", run.Status, took)
		}
		if best = min(best, took); best <= 350*time.Millisecond {
			break
		}
	}
	t.Logf("a deadline of 100 ms ended the loop after %v", best)
	if best > 350*time.Millisecond {
		t.Errorf("the run ended after %v, want 350ms at most", best)
	}
	// On a machine that is busy with other things, 100 ms may be too short for the next one too; but not again and again.
	for deadline := time.Now().Add(startTimeout); ; {
		_, err := trigger("echo")
		if err == nil {
			break
		}
		if outcome(err) != string(core.CodeRunTimedOut) || time.Now().After(deadline) {
			t.Fatalf("the trigger after the loop: %v", err)
		}
	}
}

// L1: SIGTERM lets a running trigger finish and answer, turns new ones away, and ends with status 0.
func TestStopFinishesRunningTriggers(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	key := s.createKey(t, client.NewKey{Workflow: "work"})
	c := s.client(t, key.Secret)
	answers := make(chan error, 1)
	go func() {
		_, err := c.Trigger(t.Context(), "work", client.TriggerRequest{Input: json.RawMessage(`{"do":"work","ms":1500}`)})
		answers <- err
	}()
	awaitRunning(t, s)
	if err := s.stop(); err != nil {
		t.Errorf("stop under a running trigger: %v", err)
	}
	if err := <-answers; err != nil {
		t.Errorf("the running trigger was answered with %v", err)
	}
	again := startServerOn(t, s.data)
	l, err := again.admin.Runs(t.Context(), client.RunQuery{})
	if err != nil || len(l.Data) != 1 || l.Data[0].Status != "succeeded" {
		t.Errorf("after the restart: %+v, %v", l, err)
	}
}

// A run whose server died is recorded as interrupted, never executed again, and keeps its place in the quota.
func TestKillInterruptsRuns(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	key := s.createKey(t, client.NewKey{Workflow: "work", MaxRuns: 1})
	c := s.client(t, key.Secret)
	answers := make(chan error, 1)
	go func() {
		_, err := c.Trigger(t.Context(), "work", client.TriggerRequest{Input: json.RawMessage(`{"do":"work","ms":15000}`)})
		answers <- err
	}()
	id := awaitRunning(t, s)
	if err := s.kill(); err != nil {
		t.Fatal(err)
	}
	if o := outcome(<-answers); o != "broken" {
		t.Errorf("the trigger on a killed server ended %q", o)
	}
	again := startServerOn(t, s.data)
	run, err := again.admin.Run(t.Context(), id)
	if err != nil || run.Status != "interrupted" || run.Attempt != 1 {
		t.Errorf("after the restart: %+v, %v", run, err)
	}
	assertQuota(t, again.admin, key.ID, 1, 1)
	events, err := again.admin.AuditEvents(t.Context(), client.AuditQuery{Target: id})
	if err != nil || len(events.Data) != 2 || events.Data[0].Action != core.ActionRunInterrupt || events.Data[1].Action != core.ActionRunAccept {
		t.Errorf("audit of the run: %+v, %v", events, err)
	}
}

// awaitRunning waits until a run is being executed and returns its id.
func awaitRunning(t *testing.T, s *testServer) string {
	t.Helper()
	for deadline := time.Now().Add(startTimeout); time.Now().Before(deadline); {
		l, err := s.admin.Runs(t.Context(), client.RunQuery{Status: "running"})
		if err != nil {
			t.Fatal(err)
		}
		if len(l.Data) > 0 {
			return l.Data[0].ID
		}
	}
	t.Fatal("no run starts")
	return ""
}
