package cli

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyfire/keyfire/plugins"
	"github.com/keyfire/keyfire/sdk/client"
)

// pluginFaults are the ways in which testdata/faulty of package plugins fails, all that A1 names and all that a lying plugin can answer.
var pluginFaults = []string{
	"kill", "stop", "slow", "panic", "crash", "exit 0", "start garbage", "start wrong version", "start exit 0", "start panic", "start no certificate", "big reply",
	"half reply", "flood", "both", "neither", "no subject", "control characters", "foreign account", "foreign scope", "expired", "many scopes",
}

// stormCall is what one kind of request of the storm does, and how often it came out wrong.
type stormCall struct {
	name, credential string
	every            time.Duration
	right            func(status int) bool

	wrong atomic.Int64
	first atomic.Pointer[string] // the first wrong answer

	mu        sync.Mutex
	latencies map[bool][]time.Duration // by whether a fault was under way
}

// storm is open load on a server: each kind of call at its own pace, whether or not earlier ones have been answered.
type storm struct {
	url     string
	client  *http.Client
	faulty  atomic.Bool
	pending sync.WaitGroup
}

// trigger starts the echo workflow and returns the status.
func (s *storm) trigger(ctx context.Context, credential string) (int, string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url+"/v1/workflows/echo/runs", strings.NewReader(`{"input":{"n":1}}`))
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("Authorization", "Bearer "+credential)
	req.Header.Set("Content-Type", "application/json")
	res, err := s.client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return res.StatusCode, string(body), err
}

func (s *storm) keepCalling(ctx context.Context, c *stormCall) {
	c.latencies = make(map[bool][]time.Duration)
	tick := time.NewTicker(c.every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		s.pending.Go(func() {
			faulty, began := s.faulty.Load(), time.Now()
			status, body, err := s.trigger(context.WithoutCancel(ctx), c.credential)
			took := time.Since(began)
			if !c.right(status) {
				c.wrong.Add(1)
				text := fmt.Sprintf("%d %s %v", status, body, err)
				c.first.CompareAndSwap(nil, &text)
			}
			c.mu.Lock()
			defer c.mu.Unlock()
			c.latencies[faulty] = append(c.latencies[faulty], took)
		})
	}
}

func (c *stormCall) p99(faulty bool) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := slices.Clone(c.latencies[faulty])
	if len(all) == 0 {
		return 0
	}
	slices.Sort(all)
	return all[len(all)*99/100]
}

// TestChaosPlugins has a plugin fail a thousand times in every way there is, on a server under 200 requests a second (A1): no wrong answer of success, no
// error of built-in keys, recovery within five seconds, and nothing left. Times with faults take turns with times without, so that the latency of keys is
// compared on the same machine at the same time. KEYFIRE_CHAOS bounds how long it takes; `make chaos CHAOSTIME=40m` lets it finish.
func TestChaosPlugins(t *testing.T) {
	limit := chaosTime(t)
	s, debug := startFaulty(t)
	key := s.createKey(t, client.NewKey{Workflow: "echo"})
	// One connection per request under way, as from as many callers; they are closed before connections are counted.
	transport := &http.Transport{MaxIdleConns: 256, MaxIdleConnsPerHost: 256}
	st := &storm{url: s.url, client: &http.Client{Transport: transport, Timeout: time.Minute}}
	defer transport.CloseIdleConnections()
	is := func(good ...int) func(int) bool {
		return func(status int) bool { return slices.Contains(good, status) }
	}
	native := &stormCall{name: "built-in key", credential: key.Secret, every: 10 * time.Millisecond, right: is(200)}
	well := &stormCall{name: "other plugin", credential: "well_ok", every: 20 * time.Millisecond, right: is(200)}
	ill := &stormCall{name: "faulty plugin", credential: "ill_ok", every: 40 * time.Millisecond, right: is(200, 503)}
	forged := &stormCall{name: "forged", credential: "ill_nobody", every: 40 * time.Millisecond, right: is(401, 503)}

	before := measure(t, s, debug, transport)
	ctx, stop := context.WithCancel(t.Context())
	var loops sync.WaitGroup
	for _, c := range []*stormCall{native, well, ill, forged} {
		loops.Go(func() { st.keepCalling(ctx, c) })
	}
	const promised, phase = 1000, 5 * time.Second
	began := time.Now()
	faults, wrong, slowest := 0, 0, time.Duration(0)
	for faults < promised && (faults == 0 || time.Since(began) < limit) {
		time.Sleep(phase / 2) // a time without faults, to compare with
		st.faulty.Store(true)
		for end := time.Now().Add(phase); faults < promised && time.Now().Before(end); faults++ {
			fault := pluginFaults[faults%len(pluginFaults)]
			status, body, err := st.trigger(ctx, "ill_"+fault)
			if (status >= 200 && status < 300 || err != nil) && fault != "flood" { // a flood is no lie
				wrong++
				t.Errorf("%s: %d %s %v", fault, status, body, err)
			}
			failed := time.Now()
			for {
				if status, _, _ := st.trigger(ctx, "ill_ok"); status == 200 {
					break
				}
				if time.Since(failed) > time.Minute {
					t.Fatalf("no recovery from %s", fault)
				}
				time.Sleep(10 * time.Millisecond) // what a caller who is told to come back does, impatiently
			}
			if took := time.Since(failed); took > slowest {
				slowest = took
				t.Logf("recovery from %s took %s", fault, took.Round(time.Millisecond))
			}
		}
		st.faulty.Store(false)
	}
	stop()
	loops.Wait()
	st.pending.Wait()
	ratio := float64(native.p99(true)) / float64(native.p99(false))
	t.Logf("%d faults in %s; %d wrong answers; slowest recovery %s; native p99 %s with faults, %s without, ratio %.2f", faults, time.Since(began).Round(time.Second), wrong,
		slowest.Round(time.Millisecond), native.p99(true), native.p99(false), ratio)
	for _, c := range []*stormCall{native, well, ill, forged} {
		n := len(c.latencies[true]) + len(c.latencies[false])
		t.Logf("%s: %d requests, %d wrong", c.name, n, c.wrong.Load())
		if c.wrong.Load() != 0 {
			if c == well { // its own deadline of 500 ms is the machine's to keep; one call in a thousand may miss it
				if c.wrong.Load()*1000 <= int64(n) {
					continue
				}
			}
			t.Errorf("%s: %d of %d requests came out wrong, the first with %s", c.name, c.wrong.Load(), n, *c.first.Load())
		}
	}
	if slowest > 5*time.Second {
		t.Errorf("the slowest recovery took %s, 5s are promised", slowest)
	}
	if faults >= promised && ratio > 1.2 {
		t.Errorf("p99 of built-in keys is %.2f times what it is without faults, 1.2 is promised", ratio)
	}
	var after footprint
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		if after = measure(t, s, debug, transport); after.near(before) {
			break
		}
		if time.Now().After(deadline) {
			t.Errorf("the server had %+v before, and has %+v after", before, after)
			break
		}
	}
	t.Logf("before %+v, after %+v", before, after)
}

// footprint is what a server holds.
type footprint struct{ goroutines, files, children int }

func (f footprint) near(g footprint) bool {
	return f.goroutines <= g.goroutines+10 && f.files <= g.files+10 && f.children == g.children
}

var goroutineTotal = regexp.MustCompile(`goroutine profile: total (\d+)`)

func measure(t *testing.T, s *testServer, debug string, transport *http.Transport) footprint {
	t.Helper()
	transport.CloseIdleConnections()
	res, err := http.Get(debug + "/debug/pprof/goroutine?debug=1")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	m := goroutineTotal.FindSubmatch(body)
	if err != nil || m == nil {
		t.Fatalf("%v in %.200s", err, body)
	}
	var f footprint
	f.goroutines, _ = strconv.Atoi(string(m[1]))
	pid := strconv.Itoa(s.cmd.Process.Pid)
	files, err := os.ReadDir("/proc/" + pid + "/fd")
	if err != nil {
		t.Skipf("SKIPPED: no /proc: %v", err)
	}
	f.files = len(files)
	threads, err := filepath.Glob("/proc/" + pid + "/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range threads {
		children, _ := os.ReadFile(file) // the thread may be gone
		f.children += len(strings.Fields(string(children)))
	}
	return f
}

// startFaulty starts a server with two plugins that do what their credentials say, "ill" and "well", and returns the address of its profiler.
func startFaulty(t *testing.T) (s *testServer, debug string) {
	t.Helper()
	dir := t.TempDir()
	plugin := filepath.Join(dir, "faulty")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", plugin, "../../../plugins/testdata/faulty")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-trimpath")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	digest, err := plugins.Digest(plugin)
	if err != nil {
		t.Fatal(err)
	}
	var config strings.Builder
	config.WriteString("auth:\n  - key: {}\n")
	for _, name := range []string{"ill", "well"} {
		fmt.Fprintf(&config, `  - plugin:
      {name: %s, path: %q, sha256: %s, required: true, prefixes: [%[1]s_], accounts: [acct_default], scopes: ["run:workflow/echo"], start_timeout: 2s,
       env: ["FAULT_DIR=%[4]s"], config: {account: acct_default, scopes: ["run:workflow/echo"]}}
`, name, plugin, digest, dir)
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	debug = free.Addr().String()
	free.Close()
	s = startServer(t, "--config", writeFile(t, "keyfire.yaml", config.String()), "--debug-listen", debug, "--log-level", "error", "--limits-bad-credentials", "1000000")
	return s, "http://" + debug
}
