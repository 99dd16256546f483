package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/keyfire/keyfire/core/internal/store/storetest"
	"github.com/keyfire/keyfire/sdk/client"
)

// TestChaosStart meets servers that have just started, on one, two and eight processors, with everything at once: what is prepared, compiled, connected and
// cached at its first use is so under load then. Every request must be answered; a server that is stuck is asked for its goroutines. Servers are killed
// in the middle of it and started again, first one on SQLite, then three on PostgreSQL and NATS. `make chaos` runs it for as long as KEYFIRE_CHAOS says.
func TestChaosStart(t *testing.T) {
	d := chaosTime(t)
	t.Run("SQLite", func(t *testing.T) {
		data := filepath.Join(t.TempDir(), "data")
		copyData(t, data)
		l := newStartLoad(t, data)
		l.rounds(d/2, func(procs string) []*testServer { return []*testServer{l.launch(data, procs)} })
	})
	t.Run("Cluster", func(t *testing.T) {
		c := startCluster(t, storetest.NewPostgres(t).URL, 3)
		l := newStartLoad(t, c.servers[0].data)
		var data []string
		for _, s := range c.servers {
			data = append(data, s.data)
			if err := s.stop(); err != nil {
				t.Fatal(err)
			}
		}
		l.rounds(d/2, func(procs string) []*testServer {
			servers := make([]*testServer, len(data))
			var wg sync.WaitGroup
			for i := range data {
				wg.Go(func() { servers[i] = l.launch(data[i], procs, c.args...) })
			}
			wg.Wait()
			return servers
		})
	})
}

// answerWithin is how long a request may take on however busy a machine.
const answerWithin = 30 * time.Second

// startLoad is the load of TestChaosStart.
type startLoad struct {
	t       *testing.T
	module  []byte
	secret  string // of a key that may trigger everything, once there is one
	answers sync.Map
	n       atomic.Int64     // operations begun
	runs    [64]atomic.Value // of some that were started not long ago, their ids
}

func newStartLoad(t *testing.T, data string) *startLoad {
	t.Helper()
	module, err := os.ReadFile(filepath.Join(workflowsDir(t), "node.wasm"))
	if err != nil {
		t.Fatal(err)
	}
	return &startLoad{t: t, module: module}
}

// launch starts a server on so many processors. nil when it does not start, which fails the test.
func (l *startLoad) launch(data, procs string, args ...string) *testServer {
	log := &syncBuffer{}
	cmd := exec.Command("keyfire", append([]string{"serve", "--json", "--data", data, "--listen", "127.0.0.1:0"}, args...)...)
	cmd.Env = cleanEnv("GOMAXPROCS=" + procs)
	p, err := launchCommand(cmd, data, log)
	if err != nil {
		l.t.Errorf("on %s processors: %v\n%s", procs, err, log)
		return nil
	}
	return &testServer{process: p, admin: socketClient(l.t, data), log: log}
}

// rounds starts servers, loads them for a second or so, and kills or stops them, at least once for each number of processors.
func (l *startLoad) rounds(d time.Duration, start func(procs string) []*testServer) {
	t := l.t
	processors := []string{"1", "2", "8"}
	rounds := 0
	for end := time.Now().Add(d); rounds < len(processors) || time.Now().Before(end) && !t.Failed(); rounds++ {
		servers := start(processors[rounds%len(processors)])
		for _, s := range servers {
			if s == nil {
				t.FailNow()
			}
		}
		if l.secret == "" {
			l.secret = servers[0].createKey(t, client.NewKey{Scopes: []string{"run:*", "runs:read"}}).Secret
		}
		const clients = 64
		ctx, cancel := context.WithCancel(t.Context())
		transport := &http.Transport{MaxIdleConnsPerHost: clients}
		var wg sync.WaitGroup
		for i := range clients {
			wg.Go(func() {
				c := &startClient{startLoad: l, ctx: ctx, random: rand.New(rand.NewPCG(uint64(rounds), uint64(i))), http: &http.Client{Transport: transport}, server: servers[i%len(servers)]}
				for ctx.Err() == nil && c.operation() {
				}
			})
		}
		time.Sleep(time.Second) // the load, not a wait for something
		if rounds%2 == 0 {
			// All that were begun are answered before the server is stopped well.
			cancel()
			wg.Wait()
			for _, s := range servers {
				if err := s.signal(syscall.SIGTERM); err != nil || s.err != nil {
					t.Errorf("stop: %v, %v\n%s", err, s.err, tail(s.log.String(), 8<<10))
				}
			}
		} else {
			for _, s := range servers {
				if err := s.kill(); err != nil {
					t.Error(err)
				}
			}
			cancel()
			wg.Wait()
		}
		transport.CloseIdleConnections()
	}
	var seen []string
	l.answers.Range(func(k, v any) bool {
		seen = append(seen, fmt.Sprintf("%s x %d", k, v.(*atomic.Int64).Load()))
		return true
	})
	sort.Strings(seen)
	t.Logf("%d rounds, %d requests: %s", rounds, l.n.Load(), strings.Join(seen, ", "))
}

// startClient is one client of the load.
type startClient struct {
	*startLoad
	ctx    context.Context
	random *rand.Rand
	http   *http.Client
	server *testServer
}

// operation does one of everything there is. It reports whether the client goes on.
func (c *startClient) operation() bool {
	n := c.n.Add(1)
	run := "run_01arz3ndektsv4rrffq69g5fav"
	if id := c.runs[c.random.IntN(len(c.runs))].Load(); id != nil {
		run = id.(string)
	}
	switch c.random.IntN(16) {
	case 0, 1:
		return c.ask("sync", "POST", "/v1/workflows/echo/runs", `{"input":{"n":1}}`)
	case 2, 3:
		return c.ask("async", "POST", "/v1/workflows/work/runs", `{"input":{"do":"work","ms":2}}`, "Prefer", "respond-async")
	case 4:
		return c.ask("wait", "POST", "/v1/workflows/echo/runs", `{"input":{"n":2}}`, "Prefer", "wait=2")
	case 5:
		return c.ask("idempotent", "POST", "/v1/workflows/echo/runs", `{"input":{"n":3}}`, "Idempotency-Key", fmt.Sprint("k", n/8))
	case 6:
		return c.ask("idempotent async", "POST", "/v1/workflows/echo/runs", `{"input":{"n":4}}`, "Idempotency-Key", fmt.Sprint("a", n/8), "Prefer", "respond-async")
	case 7:
		return c.ask("dedupe", "POST", "/v1/workflows/work/runs", `{"input":{"do":"work","ms":2},"dedupe":{"key":"one","policy":"terminate_existing"}}`, "Prefer", "respond-async")
	case 8:
		return c.ask("run", "GET", "/v1/runs/"+run, "")
	case 9:
		if c.random.IntN(2) > 0 {
			return c.lists()
		}
		return c.ask("list", "GET", []string{"/v1/runs", "/v1/runs?status=running&limit=3"}[c.random.IntN(2)], "")
	case 10:
		return c.ask("events", "GET", "/v1/runs/"+run+"/events", "")
	case 11:
		return c.ask("stream", "POST", "/v1/workflows/echo/runs", `{"input":{"n":5}}`, "Accept", "text/event-stream")
	case 12:
		return c.ask("cancel", "POST", "/v1/runs/"+run+"/cancel", `{}`)
	case 13:
		return c.ask("ready", "GET", "/readyz", "")
	case 14:
		return c.keys()
	}
	if c.random.IntN(8) > 0 {
		return c.ask("long poll", "GET", "/v1/runs/"+run, "", "Prefer", "wait=1")
	}
	return c.publish(n)
}

// ask sends a request with the key and reads the whole answer.
func (c *startClient) ask(what, method, path, body string, header ...string) bool {
	ctx, cancel := context.WithTimeout(context.Background(), answerWithin)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, c.server.url+path, strings.NewReader(body))
	if err != nil {
		c.t.Error(err)
		return false
	}
	req.Header.Set("Authorization", "Bearer "+c.secret)
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := c.http.Do(req)
	var answer []byte
	if err == nil {
		answer, err = io.ReadAll(resp.Body)
		_ = resp.Body.Close()
	}
	if err != nil {
		return c.failed(what+" "+path, err)
	}
	if id := resp.Header.Get("Keyfire-Run-Id"); id != "" && method == "POST" {
		c.runs[c.random.IntN(len(c.runs))].Store(id)
	}
	var problem struct{ Code string }
	_ = json.Unmarshal(answer, &problem) // of what is no problem there is no code
	c.count(what, fmt.Sprint(resp.StatusCode, problem.Code))
	if resp.StatusCode >= 500 && resp.StatusCode != http.StatusServiceUnavailable && !strings.HasPrefix(problem.Code, "run_") {
		c.t.Errorf("%s %s was answered with %d %s", method, path, resp.StatusCode, answer)
	}
	return true
}

// keys makes a key and changes it in every way there is, over the socket.
func (c *startClient) keys() bool {
	ctx, cancel := context.WithTimeout(context.Background(), answerWithin)
	defer cancel()
	admin := c.server.admin
	k, err := admin.CreateKey(ctx, client.NewKey{Name: "start", Workflow: "echo", MaxRuns: 5})
	if err == nil {
		_, err = admin.RotateKey(ctx, k.ID, "1h")
	}
	if err == nil {
		_, err = admin.KeyUsage(ctx, k.ID, 1)
	}
	if err == nil {
		_, err = admin.DisableKey(ctx, k.ID, "load")
	}
	if err == nil {
		_, err = admin.RevokeKey(ctx, k.ID, "load")
	}
	return c.told("keys", err)
}

// lists reads what operators look at, over the socket.
func (c *startClient) lists() bool {
	ctx, cancel := context.WithTimeout(context.Background(), answerWithin)
	defer cancel()
	admin := c.server.admin
	_, err := admin.Keys(ctx, client.Page{})
	if err == nil {
		_, err = admin.Workflows(ctx, client.Page{Limit: 2})
	}
	if err == nil {
		_, err = admin.AuditEvents(ctx, client.AuditQuery{})
	}
	return c.told("lists", err)
}

// publish publishes a workflow that changes every time, with its module.
func (c *startClient) publish(n int64) bool {
	ctx, cancel := context.WithTimeout(context.Background(), answerWithin)
	defer cancel()
	_, err := c.server.admin.PublishWorkflow(ctx, "cold", client.Publication{
		Filename: "cold.json", Modules: map[string][]byte{"./node.wasm": c.module},
		Source: fmt.Appendf(nil, `{"keyfire": "v1", "name": "cold", "title": "%d", "trigger": {"enabled": true}, "nodes": [{"id": "echo", "uses": "./node.wasm", "with": {"do": "echo"}}]}`, n),
	})
	return c.told("publish", err)
}

// told judges the outcome of a call of the client.
func (c *startClient) told(what string, err error) bool {
	o := outcome(err)
	if o == "broken" {
		return c.failed(what, err)
	}
	c.count(what, o)
	if o == "internal" {
		c.t.Errorf("%s: %v", what, err)
	}
	return true
}

func (c *startClient) count(what, answer string) {
	n, _ := c.answers.LoadOrStore(what+" "+answer, new(atomic.Int64))
	n.(*atomic.Int64).Add(1)
}

// failed judges a request without an answer: a server that was killed owes none.
func (c *startClient) failed(what string, err error) bool {
	if c.server.killed.Load() {
		return false
	}
	_ = c.server.cmd.Process.Signal(syscall.SIGQUIT) // the goroutines go to its log
	select {
	case <-c.server.done:
	case <-time.After(5 * time.Second):
	}
	name := filepath.Join(os.TempDir(), "keyfire-stuck.log")
	if os.WriteFile(name, []byte(c.server.log.String()), 0o600) != nil {
		name = "(not written)"
	}
	goroutines := c.server.log.String()
	if at := bytes.Index([]byte(goroutines), []byte("SIGQUIT")); at >= 0 {
		goroutines = goroutines[at:]
	}
	c.t.Errorf("%s was not answered: %v; the log is in %s\n%s", what, err, name, tail(goroutines, 32<<10))
	return false
}
