package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/sdk/client"
)

// threeNodes calls a service from each of its nodes. ORIGIN stands for that service.
const threeNodes = `keyfire: v1
name: three
trigger: {enabled: true, mode: async, timeout: 5m}
nodes:
  - id: a
    uses: ./typed.wasm
    with: {op: http, url: "ORIGIN/a"}
    grants: {http: ["GET ORIGIN"], secrets: [TOKEN], kv: write}
    limits: {timeout: 1m}
  - id: b
    uses: ./typed.wasm
    with: {op: http, url: "ORIGIN/b"}
    grants: {http: ["GET ORIGIN"], secrets: [TOKEN], kv: write}
    limits: {timeout: 1m}
  - id: c
    uses: ./typed.wasm
    with: {op: http, url: "ORIGIN/c?a=${{ nodes.a.output.body }}&b=${{ nodes.b.output.body }}"}
    grants: {http: ["GET ORIGIN"], secrets: [TOKEN], kv: write}
    limits: {timeout: 1m}
output: {a: "${{ nodes.a.output.body }}", b: "${{ nodes.b.output.body }}", c: "${{ nodes.c.output.body }}"}
`

// sink is the service that nodes call. It has an effect once for each Idempotency-Key, as a payment service would, and answers a repeated call as it
// answered the first.
type sink struct {
	mu      sync.Mutex
	effects map[string]string // Idempotency-Key -> what was answered
	asked   map[string]string // Idempotency-Key -> what was asked for the first time
	calls   int
	changed []string // keys that came with another request later
	ended   atomic.Int64
}

func (s *sink) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	key := r.Header.Get("Idempotency-Key")
	s.mu.Lock()
	s.calls++
	answer, known := s.effects[key]
	if !known {
		answer = "e" + strconv.Itoa(len(s.effects))
		s.effects[key], s.asked[key] = answer, r.RequestURI
		if strings.HasSuffix(key, "/c") {
			s.ended.Add(1)
		}
	} else if s.asked[key] != r.RequestURI {
		s.changed = append(s.changed, key)
	}
	s.mu.Unlock()
	_, _ = io.WriteString(w, answer)
}

// check compares the output of a run with the effects of its nodes.
func (s *sink) check(t *testing.T, admin *client.Client, id string) {
	t.Helper()
	run, err := admin.Run(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	e := s.effects
	if want := fmt.Sprintf(`{"a":%q,"b":%q,"c":%q}`, e[id+"/a"], e[id+"/b"], e[id+"/c"]); string(run.Output) != want || len(run.Steps) != 3 {
		t.Errorf("%s gave %s, and its effects are %s", id, run.Output, want)
	}
}

// applyThreeNodes publishes threeNodes on the server of a data directory, with the address of the service.
func applyThreeNodes(t *testing.T, data, service string) {
	t.Helper()
	dir := t.TempDir()
	buildTypedNode(t, filepath.Join(dir, "typed.wasm"))
	file := filepath.Join(dir, "workflow.yaml")
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(threeNodes, "ORIGIN", service)), 0o600); err != nil {
		t.Fatal(err)
	}
	apply := exec.Command("keyfire", "apply", file)
	apply.Env = cleanEnv("KEYFIRE_DATA=" + data)
	if out, err := apply.CombinedOutput(); err != nil {
		t.Fatalf("apply: %v\n%s", err, out)
	}
}

// D2, in short: the kill loop of TestChaosDurable with a few kills.
func TestD2KillLoop(t *testing.T) {
	t.Parallel()
	killLoop(t, 4, 200)
}

// TestChaosDurable is D2: a durable run that was accepted is executed to its end, whatever dies when, and every effect takes place once.
func TestChaosDurable(t *testing.T) {
	chaosTime(t)
	killLoop(t, numberFrom(t, "KEYFIRE_CHAOS_KILLS", 100), numberFrom(t, "KEYFIRE_CHAOS_RUNS", 50_000))
}

func numberFrom(t *testing.T, name string, otherwise int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// killLoop accepts at least so many runs while it kills the server so often, and counts.
func killLoop(t *testing.T, kills, runs int) {
	const clients, backlog = 8, 2000
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	effects := &sink{effects: map[string]string{}, asked: map[string]string{}}
	service := httptest.NewServer(effects)
	defer service.Close()

	dir := t.TempDir()
	data := filepath.Join(dir, "data")
	args := []string{"--egress-allow", "127.0.0.0/8", "--runs-workers", "16"}
	log := &syncBuffer{}
	p, err := launch(data, log, args...)
	if err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	applyThreeNodes(t, data, service.URL)
	s := &testServer{process: p, admin: socketClient(t, data)}
	key := s.createKey(t, client.NewKey{Workflow: "three"})

	var mu sync.Mutex
	accepted := map[string]bool{}
	succeeded := map[string]time.Time{} // when a run was seen to have succeeded: its end then
	count := func() int { mu.Lock(); defer mu.Unlock(); return len(accepted) }
	for kill := range kills {
		c := s.client(t, key.Secret)
		var wg sync.WaitGroup
		quota := runs*(kill+1)/kills + 1
		for i := range clients {
			wg.Go(func() {
				for n := 0; ; n++ {
					if done := count(); done >= quota || done-int(effects.ended.Load()) > backlog {
						select {
						case <-p.done:
							return
						case <-time.After(5 * time.Millisecond): // not a wait for something: the pace of a client
						}
						continue
					}
					run, err := c.Trigger(t.Context(), "", client.TriggerRequest{Input: map[string]int{"n": n}, IdempotencyKey: fmt.Sprintf("%d-%d-%d", kill, i, n)})
					switch o := outcome(err); o {
					case "ok":
						mu.Lock()
						accepted[run.ID] = true
						mu.Unlock()
					case "broken":
						return
					case string(core.CodeOverloaded):
					default:
						t.Errorf("a trigger ended %s: %v", o, err)
						return
					}
				}
			})
		}
		wg.Go(func() {
			l, err := s.admin.Runs(t.Context(), client.RunQuery{Status: "succeeded", Page: client.Page{Limit: 200}})
			if err != nil {
				return // killed meanwhile
			}
			mu.Lock()
			defer mu.Unlock()
			for _, r := range l.Data {
				succeeded[r.ID] = *r.FinishedAt
			}
		})
		// The moment of the kill, not a wait for something. It waits longer where the share of this round could not be accepted.
		time.Sleep(time.Duration(100+random.IntN(500)) * time.Millisecond)
		for deadline := time.Now().Add(20 * time.Second); count() < quota && time.Now().Before(deadline); {
			time.Sleep(time.Duration(1+random.IntN(20)) * time.Millisecond)
		}
		if err := p.kill(); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		if t.Failed() {
			t.Fatalf("server log:\n%s", tail(log.String(), 8<<10))
		}
		if p, err = launch(data, log, args...); err != nil {
			t.Fatalf("%v\n%s", err, tail(log.String(), 8<<10))
		}
		s.process = p
	}
	defer func() {
		if err := p.stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("server log:\n%s", tail(log.String(), 8<<10))
		}
	}()

	began := time.Now()
	for _, status := range []string{"queued", "running", "waiting", "cancelling", "scheduled"} {
		for {
			l, err := s.admin.Runs(t.Context(), client.RunQuery{Status: status, Page: client.Page{Limit: 1}})
			if err != nil {
				t.Fatal(err)
			}
			if len(l.Data) == 0 {
				break
			}
			if time.Since(began) > time.Minute {
				t.Fatalf("a minute after the last kill, %s is %s", l.Data[0].ID, status)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	ended := time.Since(began)

	all, attempts := 0, 0
	for page := (client.Page{Limit: 200}); ; {
		l, err := s.admin.Runs(t.Context(), client.RunQuery{Key: key.ID, Page: page})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range l.Data {
			all++
			attempts += r.Attempt
			delete(accepted, r.ID)
			if r.Status != "succeeded" {
				t.Errorf("%s ended %s: %+v", r.ID, r.Status, r.Error)
				continue
			}
			if at, ok := succeeded[r.ID]; ok && !at.Equal(*r.FinishedAt) {
				t.Errorf("%s had succeeded at %s and now at %s", r.ID, at, r.FinishedAt)
			}
			for _, node := range []string{"a", "b", "c"} {
				if effects.effects[r.ID+"/"+node] == "" {
					t.Errorf("%s succeeded without the effect of %s", r.ID, node)
				}
			}
			if all%97 == 1 {
				effects.check(t, s.admin, r.ID)
			}
		}
		if !l.HasMore {
			break
		}
		page.Cursor = l.NextCursor
	}
	if len(accepted) > 0 {
		t.Errorf("%d accepted runs are lost", len(accepted))
	}
	if len(effects.effects) != 3*all {
		t.Errorf("%d effects of %d runs with 3 nodes each", len(effects.effects), all)
	}
	if len(effects.changed) > 0 {
		t.Errorf("%d calls were repeated with another request, such as %s", len(effects.changed), effects.changed[0])
	}
	if k, err := s.admin.Key(t.Context(), key.ID); err != nil || k.RunsUsed != int64(all) {
		t.Errorf("the key counts %d runs of %d, %v", k.RunsUsed, all, err)
	}
	t.Logf("%d kills, %d runs, %d attempts of runs, %d calls for %d effects; the last run ended %s after the last kill", kills, all, attempts, effects.calls, len(effects.effects), ended)
}

// D3, in short.
func TestD3DuplicatesAcrossKills(t *testing.T) {
	t.Parallel()
	duplicateLoop(t, 150, 2)
}

// TestChaosIdempotency is D3: however often a request is repeated and whatever dies, its Idempotency-Key has one run, and every other request with
// the key is told so.
func TestChaosIdempotency(t *testing.T) {
	chaosTime(t)
	duplicateLoop(t, numberFrom(t, "KEYFIRE_CHAOS_KEYS", 10_000), 20)
}

// duplicateLoop sends five concurrent requests for each of so many Idempotency-Keys, one of them with another body, while it kills the server so often.
func duplicateLoop(t *testing.T, keys, kills int) {
	const copies = 5
	data := filepath.Join(t.TempDir(), "data")
	copyData(t, data)
	log := &syncBuffer{}
	p, err := launch(data, log)
	if err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	s := &testServer{process: p, admin: socketClient(t, data)}
	key := s.createKey(t, client.NewKey{Workflow: "echo"})

	var mu sync.RWMutex // held for reading while the server of c may be asked
	c := s.client(t, key.Secret)
	type answer struct {
		run   string
		input string
		code  string
	}
	answers := make([][copies]answer, keys)
	var done atomic.Int64
	var wg sync.WaitGroup
	work := make(chan [2]int, copies)
	for range 4 * copies {
		wg.Go(func() {
			for w := range work {
				k, i := w[0], w[1]
				body := fmt.Sprintf(`{"key":%d,"changed":%t}`, k, i == k%copies)
				for {
					mu.RLock()
					run, err := c.Trigger(t.Context(), "", client.TriggerRequest{Input: json.RawMessage(body), IdempotencyKey: fmt.Sprint("key-", k), Async: true})
					mu.RUnlock()
					o := outcome(err)
					if o == "broken" {
						time.Sleep(time.Millisecond) // the pace of a client that tries again
						continue
					}
					answers[k][i] = answer{input: body, code: o}
					if err == nil {
						answers[k][i].run = run.ID
					}
					done.Add(1)
					break
				}
			}
		})
	}
	go func() {
		defer close(work)
		for k := range keys {
			for i := range copies {
				work <- [2]int{k, i}
			}
		}
	}()
	for kill := range kills {
		for done.Load() < int64(keys*copies*(kill+1)/(kills+1)) {
			time.Sleep(time.Millisecond)
		}
		if err := p.kill(); err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		if p, err = launch(data, log); err != nil {
			t.Fatalf("%v\n%s", err, tail(log.String(), 8<<10))
		}
		s.process = p
		c = s.client(t, key.Secret)
		mu.Unlock()
	}
	wg.Wait()
	defer func() {
		if err := p.stop(); err != nil {
			t.Error(err)
		}
	}()

	refused, wrong := 0, 0
	for k := range answers {
		run, input := "", ""
		for _, a := range answers[k] {
			if a.code == "ok" && run == "" {
				run, input = a.run, a.input
			}
		}
		for _, a := range answers[k] {
			switch {
			case a.code == "ok" && a.run == run && a.input == input:
			case a.code == string(core.CodeIdempotencyKeyReused) && a.input != input && run != "":
				refused++
			default:
				wrong++
				t.Errorf("key %d: %+v, and its run is %s with %s", k, a, run, input)
			}
		}
		if wrong > 20 {
			t.FailNow()
		}
	}
	if n := countRuns(t, s.admin, key.ID); n != int64(keys) {
		t.Errorf("%d keys have %d runs", keys, n)
	}
	t.Logf("%d keys, %d requests, %d kills: %d runs, %d refused for another body", keys, keys*copies, kills, keys, refused)
}
