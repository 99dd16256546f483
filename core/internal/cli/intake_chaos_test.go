package cli

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyfire/keyfire/sdk/client"
)

// TestChaosIntake is promise S1 on a whole server: while modules are published that are made to exhaust a compiler, and mutations of real ones, the
// server stays the same process, small, answers each upload within 25 s, and triggers beside it take at most twice as long as without (p99).
func TestChaosIntake(t *testing.T) {
	uploads, alone, heavy := 60, time.Second, 2
	slack := time.Second // beside everything else that CI runs, which falls on one of the phases only
	if chaosTime(t) >= time.Minute {
		uploads, alone, heavy = 2_000, 5*time.Second, 40
		slack = 20 * time.Millisecond
	}
	seeds := realModules(t)
	s := startServer(t)
	key := s.createKey(t, client.NewKey{Workflow: "echo"})
	c := s.client(t, key.Secret)
	// load triggers until stop says so, and returns how long each took.
	load := func(stop func() bool) []time.Duration {
		var mu sync.Mutex
		var all []time.Duration
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for !stop() {
					began := time.Now()
					run, err := c.Trigger(t.Context(), "echo", client.TriggerRequest{Input: json.RawMessage(`{"name":"Ada"}`)})
					if err != nil || run.Status != "succeeded" {
						t.Errorf("a trigger beside hostile uploads: %+v, %v", run, err)
						return
					}
					took := time.Since(began)
					mu.Lock()
					all = append(all, took)
					mu.Unlock()
					time.Sleep(5 * time.Millisecond) // clients that have something else to do
				}
			})
		}
		wg.Wait()
		slices.Sort(all)
		return all
	}
	during := func(d time.Duration) func() bool {
		end := time.Now().Add(d)
		return func() bool { return time.Now().After(end) }
	}
	load(during(alone)) // warm
	before := load(during(alone))

	var done atomic.Bool
	var beside []time.Duration
	var loading sync.WaitGroup
	loading.Go(func() { beside = load(done.Load) })
	seed := uint64(time.Now().UnixNano())
	random := rand.New(rand.NewPCG(seed, 0))
	all := append(hostileModules(), expensiveModule(heavy))
	program, err := os.ReadFile(filepath.Join(workflowsDir(t), "node.wasm"))
	if err != nil {
		t.Fatal(err)
	}
	for len(all) < uploads {
		if len(all)%20 == 0 { // a Go program, whose compilation takes a second
			all = append(all, mutated(random, program))
			continue
		}
		all = append(all, mutated(random, seeds[random.IntN(len(seeds))]))
	}
	refused, published, longest := 0, 0, time.Duration(0)
	for i, module := range all {
		began := time.Now()
		_, err := s.admin.PublishWorkflow(t.Context(), "hostile", client.Publication{
			Filename: "hostile.json", Modules: map[string][]byte{"./node.wasm": module},
			Source: []byte(`{"keyfire": "v1", "name": "hostile", "nodes": [{"id": "node", "uses": "./node.wasm", "with": {}}]}`),
		})
		longest = max(longest, time.Since(began))
		var problem *client.Error
		switch {
		case err == nil:
			published++
		case errors.As(err, &problem) && problem.Status < 500:
			refused++
		case problem != nil && problem.Code == "overloaded":
			t.Logf("upload %d: the machine is too busy: %v", i, err)
		default:
			t.Errorf("upload %d of %d bytes (seed %d): %v", i, len(module), seed, err)
		}
	}
	done.Store(true)
	loading.Wait()
	after := load(during(alone))
	p := func(list []time.Duration, part int) time.Duration { return list[len(list)*part/100] }
	peak := statusBytes(t, s.cmd.Process.Pid, "VmHWM:")
	t.Logf("%d uploads: %d refused, %d published, the longest answer after %v; %d MiB at most; triggers (median, p99): %v, %v before; %v, %v beside %d; %v, %v after",
		len(all), refused, published, longest.Round(time.Millisecond), peak>>20, p(before, 50), p(before, 99), p(beside, 50), p(beside, 99), len(beside), p(after, 50), p(after, 99))
	select {
	case <-s.done:
		t.Errorf("the server ended: %v", s.err)
	default: // the same process still
	}
	if longest > 26*time.Second {
		t.Errorf("an upload was answered after %v", longest)
	}
	if peak > 300<<20 {
		t.Errorf("the server held %d bytes", peak)
	}
	if most := 2*max(p(before, 99), p(after, 99)) + slack; p(beside, 99) > most {
		t.Errorf("p99 of triggers beside hostile uploads is %v, at most %v is promised", p(beside, 99), most)
	}
}

func wasmModule(sections ...[]byte) []byte {
	return append([]byte("\x00asm\x01\x00\x00\x00"), bytes.Join(sections, nil)...)
}

func wasmSection(id byte, content ...[]byte) []byte {
	b := bytes.Join(content, nil)
	return append(binary.AppendUvarint([]byte{id}, uint64(len(b))), b...)
}

// hostileModules are made to exhaust what compiles them.
func hostileModules() (all [][]byte) {
	section, module := wasmSection, wasmModule
	most := binary.AppendUvarint(nil, 1<<32-1)
	for id := byte(1); id <= 11; id++ { // a count of 2^32-1 of anything
		all = append(all, module(section(id, most)))
	}
	function := func(body []byte) []byte {
		body = append(binary.AppendUvarint(nil, uint64(len(body))), body...)
		return module(section(1, []byte{1, 0x60, 0, 0}), section(3, []byte{1, 0}), section(5, []byte{1, 0, 1}), section(7, []byte("\x01\x06_start\x00\x00")), section(10, []byte{1}, body))
	}
	all = append(all,
		function(append(append([]byte{1}, most...), 0x7f, 0x0b)),                                                                                          // 2^32-1 locals
		function(append(append([]byte{0}, bytes.Repeat([]byte{0x02, 0x40}, 30_000)...), bytes.Repeat([]byte{0x0b}, 30_001)...)),                           // nested blocks
		function(append(append([]byte{1, 0xd0, 0x0f, 0x7f}, bytes.Repeat([]byte{0x41, 0, 0x04, 0x40, 0x0b}, 5_000)...), 0x0b)),                            // 2,000 locals, 5,000 ifs
		function(append(append([]byte{0}, bytes.Repeat([]byte{0x41, 0, 0x1a}, 2_000_000)...), 0x0b)),                                                      // one function of 6 MB
		module(section(4, []byte{1, 0x70, 0}, binary.AppendUvarint(nil, 1<<27-1)), section(5, []byte{1, 0, 1})),                                           // a huge table
		function(append(append([]byte{0, 0x02, 0x40, 0x41, 0, 0x0e}, append(binary.AppendUvarint(nil, 1<<20), make([]byte, 1<<20+1)...)...), 0x0b, 0x0b)), // a huge br_table
	)
	return all
}

// expensiveModule has functions that keep the parser's bounds and take a compiler half a second each.
func expensiveModule(functions int) []byte {
	body := append([]byte{1, 0x84, 0x07, 0x7f}, bytes.Repeat([]byte{0x20, 0, 0x04, 0x40, 0x41, 1, 0x21, 1, 0x0b}, 4_000)...) // 900 locals, 4,000 times if
	body = append(body, 0x0b)
	body = append(binary.AppendUvarint(nil, uint64(len(body))), body...)
	code := append(binary.AppendUvarint(nil, uint64(functions)), bytes.Repeat(body, functions)...)
	types := append(binary.AppendUvarint(nil, uint64(functions)), make([]byte, functions)...)
	b := []byte("\x00asm\x01\x00\x00\x00\x01\x04\x01\x60\x00\x00")
	b = append(append(append(b, 3), binary.AppendUvarint(nil, uint64(len(types)))...), types...)
	b = append(b, "\x05\x03\x01\x00\x01\x07\x0a\x01\x06_start\x00\x00"...)
	return append(append(append(b, 10), binary.AppendUvarint(nil, uint64(len(code)))...), code...)
}

// realModules are modules that come with the engine's source.
func realModules(t *testing.T) (all [][]byte) {
	t.Helper()
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/tetratelabs/wazero").Output()
	if err != nil {
		t.Skipf("SKIPPED: the engine's source is not in the module cache: %v", err)
	}
	for _, pattern := range []string{"examples/*/testdata/*.wasm", "imports/wasi_snapshot_preview1/testdata/*/*.wasm"} {
		files, err := filepath.Glob(filepath.Join(strings.TrimSpace(string(dir)), pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if b, err := os.ReadFile(f); err == nil {
				all = append(all, b)
			}
		}
	}
	if len(all) == 0 {
		t.Skip("SKIPPED: the engine's module comes without examples")
	}
	return all
}

// mutated changes a few bytes of a module, or cuts it, or repeats a part.
func mutated(r *rand.Rand, b []byte) []byte {
	b = bytes.Clone(b)
	for range 1 + r.IntN(8) {
		at := r.IntN(len(b))
		switch r.IntN(4) {
		case 0:
			b = b[:max(at, 8)]
		case 1:
			b = slices.Insert(b, at, b[at:min(at+r.IntN(64), len(b))]...)
		default:
			b[at] = byte(r.Uint32())
		}
	}
	return b
}
