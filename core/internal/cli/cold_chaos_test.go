package cli

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/keyfire/keyfire/sdk/client"
)

// TestChaosCold is the cold start: a server with many workflows over many modules, all of them Go programs that were compiled before, is started anew.
// The goals are those of 1,000 workflows over 200 modules: it listens within 300 ms, the first run of any module takes less than 60 ms,
// and the process stays below 60 MiB while it has nothing to do and below 256 MiB when everything ran once. KEYFIRE_CHAOS_MODULES says how many
// modules there are; the figures are printed, and fail the test when they are off by what no busy machine explains.
// KEYFIRE_COLD_DATA names a directory to keep the data in, which take minutes to make.
func TestChaosCold(t *testing.T) {
	chaosTime(t)
	modules := numberFrom(t, "KEYFIRE_CHAOS_MODULES", 3)
	workflows := 5 * modules
	dir := os.Getenv("KEYFIRE_COLD_DATA")
	if dir == "" {
		dir = t.TempDir()
	}
	bin := filepath.Join(t.TempDir(), "keyfire")
	if out, err := exec.Command("go", "build", "-o", bin, "../../cmd/keyfire").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	data := filepath.Join(dir, "data")
	start := func() *testServer {
		log := &syncBuffer{}
		cmd := exec.Command(bin, "serve", "--json", "--data", data, "--listen", "127.0.0.1:0", "--log-level", "debug")
		p, err := launchCommand(cmd, data, log)
		if err != nil {
			t.Fatalf("%v\n%s", err, log)
		}
		return &testServer{process: p, admin: socketClient(t, data), log: log}
	}
	secretFile := filepath.Join(dir, fmt.Sprintf("key-%d-%d", modules, workflows))
	secret, err := os.ReadFile(secretFile)
	if err != nil {
		s := start()
		secret = []byte(publishCold(t, s, modules, workflows))
		if err := s.stop(); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(secretFile, secret, 0o600); err != nil {
			t.Fatal(err)
		}
	}

	began := time.Now()
	s := start()
	listening, work := time.Since(began), cpuTicks(t, s.cmd.Process.Pid)
	defer func() {
		if err := s.stop(); err != nil {
			t.Error(err)
		}
	}()
	c := s.client(t, string(secret))
	run := func(i int) time.Duration {
		began := time.Now()
		res, err := c.Trigger(t.Context(), coldName(i), client.TriggerRequest{Input: json.RawMessage(`{"name":"Ada"}`)})
		if err != nil || string(res.Output) != `{"greeting":"Hello, Ada"}` {
			t.Fatalf("workflow %d: %+v, %v\n%s", i, res, err, tail(s.log.String(), 4<<10))
		}
		return time.Since(began)
	}
	// What is done in the background after the start ends some time.
	var idle int64
	for quiet := 0; quiet < 10; quiet++ {
		before := cpuTicks(t, s.cmd.Process.Pid)
		time.Sleep(100 * time.Millisecond)
		if cpuTicks(t, s.cmd.Process.Pid)-before > 1 {
			quiet = 0
		}
	}
	idle = statusBytes(t, s.cmd.Process.Pid, "VmRSS:")
	warmed := strings.Count(s.log.String(), "module warmed")
	// From the module warmed last to the first: the ones that are loaded do not count as first runs, and are few.
	var first []time.Duration
	before := cpuTicks(t, s.cmd.Process.Pid)
	for i := range modules {
		first = append(first, run(i))
	}
	firstWork := (cpuTicks(t, s.cmd.Process.Pid) - before) / modules
	for i := modules; i < workflows; i++ {
		run(i)
	}
	rss, peak := statusBytes(t, s.cmd.Process.Pid, "VmRSS:"), statusBytes(t, s.cmd.Process.Pid, "VmHWM:")
	var again []time.Duration
	for range 50 {
		again = append(again, run(workflows-1))
	}
	slices.Sort(first)
	slices.Sort(again)
	t.Logf("%d workflows over %d modules: listening after %v; %d warmed, idle at %d MiB; first runs %v (median), %v (p99), %v (max), %d0 ms of processor time; a later run %v (median); %d MiB when all ran, %d MiB at most",
		workflows, modules, listening.Round(time.Millisecond), warmed, idle>>20, first[len(first)/2].Round(100*time.Microsecond), first[len(first)*99/100].Round(100*time.Microsecond),
		first[len(first)-1].Round(100*time.Microsecond), firstWork, again[len(again)/2].Round(10*time.Microsecond), rss>>20, peak>>20)
	// Other processes on the machine take their share of times, but not of a process's own processor time (in hundredths of a second) and memory.
	if work > 300 || firstWork > 60 {
		t.Errorf("it does ten times as much as it should: %d0 ms of processor time until it listens, %d0 ms for a first run", work, firstWork)
	}
	if idle > 60<<20 || peak > 256<<20 {
		t.Errorf("it holds %d bytes while idle and up to %d later", idle, peak)
	}
}

func coldName(i int) string { return fmt.Sprintf("cold-%04d", i) }

// publishCold publishes workflows over modules that differ in a custom section, and returns a key for all of them.
func publishCold(t *testing.T, s *testServer, modules, workflows int) (secret string) {
	t.Helper()
	out := filepath.Join(t.TempDir(), "greet.wasm")
	cmd := exec.Command("go", "build", "-buildmode=c-shared", "-trimpath", "-ldflags", "-s -w", "-o", out, "./greet/greet")
	cmd.Dir = "../../../examples/nodes"
	cmd.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "GOFLAGS=-trimpath")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
	binaryOf, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	for i := range workflows {
		note := fmt.Appendf(nil, "\x04copy%03d", i%modules)
		module := append(append(bytes.Clone(binaryOf), 0), binary.AppendUvarint(nil, uint64(len(note)))...)
		p := client.Publication{
			Filename: "cold.json", Modules: map[string][]byte{"./greet.wasm": append(module, note...)},
			Source: fmt.Appendf(nil, `{"keyfire": "v1", "name": %q, "trigger": {"enabled": true}, "nodes": [{"id": "greet", "uses": "./greet.wasm", "with": {"name": "${{ input.name }}"}}]}`, coldName(i)),
		}
		_, err := s.admin.PublishWorkflow(t.Context(), coldName(i), p)
		for try := 0; try < 10 && err != nil && strings.Contains(err.Error(), "too busy"); try++ { // with other things than this
			_, err = s.admin.PublishWorkflow(t.Context(), coldName(i), p)
		}
		if err != nil {
			t.Fatalf("publish %d: %v\n%s", i, err, tail(s.log.String(), 4<<10))
		}
	}
	key, err := s.admin.CreateKey(t.Context(), client.NewKey{Name: "cold", Scopes: []string{"run:*"}})
	if err != nil {
		t.Fatal(err)
	}
	return key.Secret
}

// statusBytes reads a size of a process from /proc.
func statusBytes(t *testing.T, pid int, field string) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Skip("SKIPPED: there is no /proc to read the size of a process from")
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, field); ok {
			n, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(v), " kB"), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n << 10
		}
	}
	t.Fatalf("no %s in /proc/%d/status", field, pid)
	return 0
}

// cpuTicks reads how many hundredths of a second a process has computed.
func cpuTicks(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Skip("SKIPPED: there is no /proc")
	}
	// After the name, which is in parentheses, utime and stime are the 12th and 13th field.
	words := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	user, err1 := strconv.Atoi(words[11])
	system, err2 := strconv.Atoi(words[12])
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	return user + system
}
