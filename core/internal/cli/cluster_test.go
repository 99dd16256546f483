package cli

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/queue/queuetest"
	"github.com/keyfire/keyfire/core/internal/store/storetest"
	"github.com/keyfire/keyfire/sdk/client"
)

// cluster is several servers on one PostgreSQL and one NATS.
type cluster struct {
	t       *testing.T
	store   string
	nats    *queuetest.Nats
	args    []string // of every server
	servers []*testServer
}

// startCluster moves the test workflows to PostgreSQL and starts servers there. store is the address of an empty database.
func startCluster(t *testing.T, store string, n int, args ...string) *cluster {
	t.Helper()
	c := &cluster{t: t, store: store, nats: queuetest.NewNats(t)}
	c.args = append([]string{"--store", store, "--queue", c.nats.URL}, args...)
	dir := t.TempDir()
	first := filepath.Join(dir, "data1")
	copyData(t, first)
	moveTo(t, store, first)
	for i := range n {
		data := filepath.Join(dir, fmt.Sprint("data", i+1))
		if i > 0 {
			if err := os.Mkdir(data, 0o700); err != nil {
				t.Fatal(err)
			}
			copyKeys(t, data, first, pepperFile, vaultFile, signingFile)
		}
		c.servers = append(c.servers, startServerOn(t, data, c.args...))
	}
	return c
}

// moveTo moves the database of a data directory to an empty one in PostgreSQL.
func moveTo(t *testing.T, store, data string) {
	t.Helper()
	move := exec.Command("keyfire", "admin", "migrate", "--data", data, "--to", store)
	move.Env = cleanEnv()
	if out, err := move.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func copyKeys(t *testing.T, to, from string, names ...string) {
	t.Helper()
	for _, name := range names {
		key, err := os.ReadFile(filepath.Join(from, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(to, name), key, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// restart starts a server that was killed on its data directory.
func (c *cluster) restart(i int) {
	c.t.Helper()
	c.servers[i] = startServerOn(c.t, c.servers[i].data, c.args...)
}

// TestCluster runs three servers on PostgreSQL and NATS and holds them to what one server promises.
func TestCluster(t *testing.T) {
	t.Parallel()
	c := startCluster(t, storetest.Postgres(t), 3)
	key := c.servers[0].createKey(t, client.NewKey{Workflow: "echo"})
	clients := make([]*client.Client, len(c.servers))
	for i, s := range c.servers {
		clients[i] = s.client(t, key.Secret)
	}

	// A server whose sessions the others would not know does not join.
	stranger := filepath.Join(t.TempDir(), "data")
	if err := os.Mkdir(stranger, 0o700); err != nil {
		t.Fatal(err)
	}
	copyKeys(t, stranger, c.servers[0].data, pepperFile, vaultFile)
	log := &syncBuffer{}
	if p, err := launch(stranger, log, c.args...); err == nil || !strings.Contains(log.String(), signingFile) {
		t.Errorf("a server without %s: %v, %s", signingFile, err, log)
		if p != nil {
			_ = p.kill()
		}
	}

	// A run that one server accepts is executed by some server, waited for on another and read on a third.
	for i := range 6 {
		run, err := clients[i%3].Trigger(t.Context(), "", client.TriggerRequest{Input: map[string]int{"n": i}, Async: true})
		if err != nil {
			t.Fatal(err)
		}
		end := c.wait(clients[(i+1)%3], run.ID)
		if end.Status != "succeeded" || string(end.Output) != fmt.Sprintf(`{"n":%d}`, i) {
			t.Errorf("run %d ended %s with %s", i, end.Status, end.Output)
		}
	}

	// Q1 and Q2 over servers.
	c.exactQuota(t, 30, 120, 0)
	c.exactRate(t, 12, 120)

	// K2 over servers: what starts after the revocation was answered is refused, wherever it goes.
	for i := range 6 {
		k := c.servers[i%3].createKey(t, client.NewKey{Workflow: "echo"})
		other := c.servers[(i+1)%3].client(t, k.Secret)
		if _, err := other.Trigger(t.Context(), "", client.TriggerRequest{}); err != nil {
			t.Fatal(err)
		}
		if _, err := c.servers[(i+2)%3].admin.RevokeKey(t.Context(), k.ID, ""); err != nil {
			t.Fatal(err)
		}
		if _, err := other.Trigger(t.Context(), "", client.TriggerRequest{}); outcome(err) != string(core.CodeKeyRevoked) {
			t.Errorf("after the revocation: %v", err)
		}
	}

	// Who has logged in at one server is known to all, also right after the key that signs was replaced there.
	const password = "a passphrase for the cluster"
	if _, err := c.servers[0].admin.CreateUser(t.Context(), "root", "superuser", password); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if _, err := c.servers[i].admin.RotateSigningKey(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, at := range []int{i, (i + 1) % 3} {
			ses, err := c.servers[at].client(t, "").Login(t.Context(), "", "root", password)
			if err != nil {
				t.Fatal(err)
			}
			for on, s := range c.servers {
				if _, err := s.client(t, ses.AccessToken).WhoAmI(t.Context()); err != nil {
					t.Errorf("after a rotation at server %d, a login at %d is not known at %d: %v", i, at, on, err)
				}
			}
		}
	}

	// A server dies with runs in its hands; the others carry on with them.
	slow := c.servers[0].createKey(t, client.NewKey{Workflow: "work"})
	var runs []string
	for range 6 {
		run, err := c.servers[0].client(t, slow.Secret).Trigger(t.Context(), "", client.TriggerRequest{Input: map[string]any{"do": "work", "ms": 1500}, Async: true})
		if err != nil {
			t.Fatal(err)
		}
		runs = append(runs, run.ID)
	}
	if err := c.servers[0].kill(); err != nil {
		t.Fatal(err)
	}
	for _, id := range runs {
		if end := c.wait(c.servers[1].client(t, slow.Secret), id); end.Status != "succeeded" {
			t.Errorf("a run of the server that was killed ended %s: %+v", end.Status, end.Error)
		}
	}
}

// TestReadyEverywhere: whichever server a caller comes to has a module compiled, one that was published on another server, and those that were there before it
// joined.
func TestReadyEverywhere(t *testing.T) {
	t.Parallel()
	c := startCluster(t, storetest.Postgres(t), 2, "--log-level", "debug")
	node, err := os.ReadFile(filepath.Join(workflowsDir(t), "node.wasm"))
	if err != nil {
		t.Fatal(err)
	}
	there := c.servers[1].log
	said := func(what string, module []byte) func() bool {
		line := fmt.Sprintf("%s module=sha256:%x", what, sha256.Sum256(module))
		return func() bool { return strings.Contains(there.String(), line) }
	}
	waitUntil(t, said(`msg="module compiled"`, node))

	other := append(bytes.Clone(node), "\x00\x06\x05other"...) // another digest, by a custom section
	if _, err := c.servers[0].admin.PublishWorkflow(t.Context(), "other", client.Publication{
		Filename: "other.yaml", Modules: map[string][]byte{"./node.wasm": other},
		Source: []byte("{keyfire: v1, name: other, trigger: {enabled: true}, nodes: [{id: only, uses: ./node.wasm, with: {do: echo, value: 1}}]}"),
	}); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, said(`msg="module warmed"`, other))
}

// TestServeBehindPooler checks that servers behind pgbouncer execute durable runs, die and come back.
func TestServeBehindPooler(t *testing.T) {
	t.Parallel()
	c := startCluster(t, storetest.Pooler(t, storetest.Postgres(t), "pool_mode = session\ndefault_pool_size = 60"), 1)
	key := c.servers[0].createKey(t, client.NewKey{Workflow: "echo"})
	for i := range 2 {
		caller := c.servers[0].client(t, key.Secret)
		run, err := caller.Trigger(t.Context(), "", client.TriggerRequest{Input: map[string]int{"n": i}, Async: true})
		if err != nil {
			t.Fatal(err)
		}
		if end := c.wait(caller, run.ID); end.Status != "succeeded" {
			t.Errorf("run %d ended %s: %+v", i, end.Status, end.Error)
		}
		if err := c.servers[0].kill(); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			c.restart(0)
		}
	}
}

// TestIsSettled checks which runs are looked for in the queue, also those of servers whose clocks differ.
func TestIsSettled(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	at := func(age time.Duration) string {
		return core.PrefixRun + strings.ToLower(ulid.MustNew(ulid.Timestamp(now.Add(-age)), nil).String())
	}
	for run, want := range map[string]bool{
		at(0): false, at(2 * time.Second): false, at(-2 * time.Second): false, at(time.Minute): true, at(-5 * time.Minute): true, "run_without_a_time": true,
	} {
		if got := isSettled(run, now); got != want {
			t.Errorf("%s: %v, want %v", run, got, want)
		}
	}
}

// wait returns a run once it has ended.
func (c *cluster) wait(cl *client.Client, id string) *client.Run {
	c.t.Helper()
	for end := time.Now().Add(startTimeout); ; {
		run, err := cl.Run(c.t.Context(), id)
		if err == nil && run.FinishedAt != nil {
			return run
		}
		if time.Now().After(end) {
			c.t.Fatalf("run %s does not end: %+v, %v", id, run, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// TestChaosCluster kills and stops servers, NATS and PostgreSQL under load, and then counts (D2, D3, Q1): every run that was accepted has succeeded, each of
// its three nodes had one effect on the service that it calls, the output is what that answered, no Idempotency-Key has two runs, the key's counter is the
// number of runs, and no success has changed. `make chaos` runs it for as long as KEYFIRE_CHAOS says.
func TestChaosCluster(t *testing.T) {
	d := chaosTime(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	pg := storetest.NewPostgres(t)
	effects := &sink{effects: map[string]string{}, asked: map[string]string{}}
	service := httptest.NewServer(effects)
	defer service.Close()
	c := startCluster(t, pg.URL, 3, "--egress-allow", "127.0.0.0/8", "--runs-workers", "16")
	applyThreeNodes(t, c.servers[0].data, service.URL)
	key := c.servers[0].createKey(t, client.NewKey{Workflow: "three", MaxRuns: 1_000_000})

	var (
		mu       sync.Mutex
		urls     = []string{c.servers[0].url, c.servers[1].url, c.servers[2].url}
		accepted = map[string]string{}    // Idempotency-Key -> run
		ended    = map[string]time.Time{} // runs that were seen to have succeeded, and when they had
	)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	transport := &http.Transport{MaxIdleConnsPerHost: 8}
	defer transport.CloseIdleConnections()
	load := &http.Client{Transport: transport, Timeout: 15 * time.Second}
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				name := fmt.Sprintf("job-%d-%d", i, n)
				// A caller that hears nothing, or 503, sends the same again, to any server.
				for ctx.Err() == nil {
					mu.Lock()
					url := urls[rand.IntN(len(urls))]
					mu.Unlock()
					id, status := accept(load, url, key.Secret, "three", name)
					if status == http.StatusAccepted || status == http.StatusOK {
						mu.Lock()
						accepted[name] = id
						waiting := len(accepted) - int(effects.ended.Load())
						mu.Unlock()
						for ; waiting > 500 && ctx.Err() == nil; waiting -= 10 {
							time.Sleep(10 * time.Millisecond) // the pace of a client, not to end with a backlog of minutes
						}
						break
					}
					if status != 0 && status != http.StatusServiceUnavailable && status != http.StatusInternalServerError {
						t.Errorf("%s was answered with %d", name, status)
						return
					}
					time.Sleep(20 * time.Millisecond)
				}
			}
		})
	}

	kills, stops, restarts := 0, 0, 0
	for end, round := time.Now().Add(d), 0; round < 4 || time.Now().Before(end); round++ {
		time.Sleep(time.Duration(300+random.IntN(700)) * time.Millisecond) // the moment, not a wait for something
		victim := random.IntN(3)
		if l, err := c.servers[random.IntN(3)].admin.Runs(t.Context(), client.RunQuery{Status: "succeeded", Page: client.Page{Limit: 200}}); err == nil {
			for _, r := range l.Data {
				ended[r.ID] = *r.FinishedAt
			}
		}
		switch round % 8 {
		case 1: // a zombie: it wakes up when its work is somebody else's
			stops++
			p := c.servers[victim].cmd.Process
			if err := p.Signal(syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Duration(2+random.IntN(12)) * time.Second)
			if err := p.Signal(syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
		case 3:
			restarts++
			c.nats.Kill()
			if round%16 == 11 { // a new NATS in its place
				if err := c.nats.Forget(); err != nil {
					t.Fatal(err)
				}
			}
			if err := c.nats.Start(); err != nil {
				t.Fatal(err)
			}
		case 5:
			restarts++
			pg.Kill()
			if err := pg.Start(); err != nil {
				t.Fatal(err)
			}
		default:
			kills++
			if err := c.servers[victim].kill(); err != nil {
				t.Fatal(err)
			}
			c.restart(victim)
			mu.Lock()
			urls[victim] = c.servers[victim].url
			mu.Unlock()
		}
	}
	cancel()
	wg.Wait()

	// Everything ends within a minute of the last trouble.
	admin := c.servers[0].admin
	for end := time.Now().Add(time.Minute); ; time.Sleep(200 * time.Millisecond) {
		open := 0
		for _, status := range []string{"queued", "running", "waiting", "cancelling"} {
			l, err := admin.Runs(t.Context(), client.RunQuery{Status: status, Page: client.Page{Limit: 200}})
			if err != nil {
				t.Fatal(err)
			}
			open += len(l.Data)
		}
		if open == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%d runs have not ended", open)
		}
	}
	seen := map[string]bool{}
	for name, id := range accepted {
		if seen[id] {
			t.Errorf("%s and another key have one run, %s", name, id)
		}
		seen[id] = true
	}
	all, attempts := 0, 0
	for page := (client.Page{Limit: 200}); ; {
		l, err := admin.Runs(t.Context(), client.RunQuery{Key: key.ID, Page: page})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range l.Data {
			all++
			attempts += r.Attempt
			delete(seen, r.ID)
			if at, ok := ended[r.ID]; r.Status != "succeeded" || ok && !at.Equal(*r.FinishedAt) {
				t.Errorf("%s is %s (%+v), finished at %s; it had succeeded at %s", r.ID, r.Status, r.Error, r.FinishedAt, at)
			}
			if all%29 == 1 {
				effects.check(t, admin, r.ID)
			}
		}
		if !l.HasMore {
			break
		}
		page.Cursor = l.NextCursor
	}
	if len(seen) > 0 {
		t.Errorf("%d accepted runs are lost", len(seen))
	}
	if len(effects.effects) != 3*all || len(effects.changed) > 0 {
		t.Errorf("%d effects of %d runs with 3 nodes each; %d calls were repeated with another request", len(effects.effects), all, len(effects.changed))
	}
	now, err := admin.Key(t.Context(), key.ID)
	if err != nil || now.RunsUsed != int64(all) || all < len(accepted) {
		t.Errorf("the key counts %d runs of %d, %d accepted, %v", now.RunsUsed, all, len(accepted), err)
	}
	t.Logf("%d kills, %d servers stopped and continued, %d restarts of NATS and PostgreSQL; %d accepted, %d attempts of %d runs, %d calls for %d effects",
		kills, stops, restarts, len(accepted), attempts, all, effects.calls, len(effects.effects))
}

// accept sends a durable trigger and returns its run and the status, 0 when there was no answer.
func accept(c *http.Client, url, secret, workflow, name string) (id string, status int) {
	req, err := http.NewRequest(http.MethodPost, url+"/v1/workflows/"+workflow+"/runs", strings.NewReader(fmt.Sprintf(`{"input":{"job":%q}}`, name)))
	if err != nil {
		return "", 0
	}
	req.Header.Set("Authorization", "Bearer "+secret)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Prefer", "respond-async")
	req.Header.Set("Idempotency-Key", name)
	resp, err := c.Do(req)
	if err != nil {
		return "", 0
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	if err != nil {
		return "", 0
	}
	return resp.Header.Get("Keyfire-Run-Id"), resp.StatusCode
}

// TestClusterLoad puts a bounded load on one server of a cluster and on all three, and prints what they did. `make cluster` runs it.
func TestClusterLoad(t *testing.T) {
	text := os.Getenv("KEYFIRE_CLUSTER")
	if text == "" {
		t.Skip("run it with make cluster")
	}
	each, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	pg := storetest.NewPostgres(t)
	c := startCluster(t, pg.URL, 3)
	key := c.servers[0].createKey(t, client.NewKey{Workflow: "echo", MaxRuns: 10_000_000})
	transport := &http.Transport{MaxIdleConnsPerHost: 64}
	defer transport.CloseIdleConnections()
	load := &http.Client{Transport: transport, Timeout: 30 * time.Second}

	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "servers\tclients\taccepted\tper second\tp50\tp99\tall done after\tpick-up p50\tp95\tCPU per run\t")
	for _, shape := range []struct{ servers, clients int }{{1, 1}, {1, 32}, {3, 32}} {
		var mu sync.Mutex
		var took []time.Duration
		var last []string
		var wg sync.WaitGroup
		before := c.cpu()
		begun := time.Now()
		for i := range shape.clients {
			wg.Go(func() {
				for n := 0; time.Since(begun) < each && n < 20_000; n++ {
					at := time.Now()
					id, status := accept(load, c.servers[(i+n)%shape.servers].url, key.Secret, "echo", fmt.Sprintf("l-%d-%d-%d-%d", shape.servers, shape.clients, i, n))
					if status != http.StatusAccepted && status != http.StatusOK {
						t.Errorf("answered with %d", status)
						return
					}
					mu.Lock()
					took = append(took, time.Since(at))
					last = append(last, id)
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		sent := time.Since(begun)
		for _, id := range last[max(0, len(last)-50):] {
			c.wait(c.servers[0].client(t, key.Secret), id)
		}
		done := time.Since(begun)
		cpu := c.cpu() - before
		var picked []time.Duration
		for _, id := range last[max(0, len(last)-200):] {
			run, err := c.servers[0].admin.Run(t.Context(), id)
			if err != nil || run.StartedAt == nil {
				t.Fatal(err)
			}
			picked = append(picked, run.StartedAt.Sub(run.CreatedAt))
		}
		slices.Sort(took)
		slices.Sort(picked)
		ms := func(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000) }
		fmt.Fprintf(w, "%d\t%d\t%d\t%.0f\t%s\t%s\t%s\t%s\t%s\t%s\t\n", shape.servers, shape.clients, len(took), float64(len(took))/sent.Seconds(),
			ms(took[len(took)/2]), ms(took[len(took)*99/100]), done.Round(time.Millisecond), ms(picked[len(picked)/2]), ms(picked[len(picked)*95/100]),
			(cpu / time.Duration(len(took))).Round(time.Microsecond))
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	fmt.Print("\nDurable runs of one node that gives back its input, on PostgreSQL and NATS, servers and load on this machine:\n\n", table.String(), "\n")
}

// cpu returns what the servers have used, without PostgreSQL and NATS.
func (c *cluster) cpu() time.Duration {
	var sum time.Duration
	for _, s := range c.servers {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.cmd.Process.Pid))
		if err != nil {
			continue
		}
		_, rest, _ := strings.Cut(string(stat), ") ")
		var utime, stime int64
		if f := strings.Fields(rest); len(f) > 12 {
			_, _ = fmt.Sscan(f[11]+" "+f[12], &utime, &stime)
		}
		sum += time.Duration(utime+stime) * 10 * time.Millisecond
	}
	return sum
}
