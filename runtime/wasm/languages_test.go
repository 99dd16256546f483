package wasm

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyfire/keyfire/core"
)

// ready publishes a node of the gallery and waits for its image.
func (n galleryNode) ready(t testing.TB, b bundle) (Call, Readiness) {
	t.Helper()
	d := b.publish(t, n.binary(t))
	r, err := b.Warm(t.Context(), core.DefaultAccount, d)
	if err != nil {
		t.Fatal(err)
	}
	return Call{Account: core.DefaultAccount, Module: d, Export: n.call, Limits: core.Limits{Timeout: core.Duration(time.Minute)}}, r
}

// runtimeFor is a runtime that can run the node.
func (n galleryNode) runtimeFor(t testing.TB, change ...func(*Config)) bundle {
	t.Helper()
	if n.build == nil {
		change = append(change, withScripts(t))
	}
	return setup(t, change...)
}

// TestDifferential gives random inputs, good and bad ones, to both engines: in every language and way of resetting, output and failure are equal.
func TestDifferential(t *testing.T) {
	t.Parallel()
	inputs := 8
	if thorough() {
		inputs = 1_000
	}
	for _, n := range galleryNodes() {
		t.Run(n.name, func(t *testing.T) {
			t.Parallel()
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			r := rand.New(rand.NewPCG(seed, 0))
			var bundles []bundle
			var calls []Call
			modes := resetModes
			if !thorough() {
				modes = []ResetMode{resetModes[r.IntN(len(resetModes))]}
			}
			for _, mode := range modes {
				b := n.runtimeFor(t, verified(t), func(c *Config) { c.Reset = mode })
				call, ready := n.ready(t, b)
				if ready.Start == StartPlain {
					t.Skipf("it starts plain, so there is nothing to compare: %s", ready.Why)
				}
				bundles, calls = append(bundles, b), append(calls, call)
			}
			for i := range inputs {
				b, call := bundles[i%len(bundles)], calls[i%len(calls)]
				document, _ := randomDocument(r, r.IntN(6_000))
				input, err := json.Marshal(map[string]string{"document": document})
				if err != nil {
					t.Fatal(err)
				}
				switch r.IntN(8) {
				case 0:
					input = input[:len(input)*2/3]
				case 1:
					input = []byte(`{"document": 7}`)
				}
				call.Input = input
				got := describe(b.Invoke(t.Context(), call))
				call.Engine = EnginePlain
				if want := describe(b.Invoke(t.Context(), call)); got != want {
					t.Fatalf("input %d, %.80q:\nsnapshot %.300s\nplain    %.300s", i, input, got, want)
				}
			}
		})
	}
}

// describe is what can be seen of an invocation, without the addresses in a trace.
func describe(res Result, err error) string {
	var e *Error
	if errors.As(err, &e) {
		return fmt.Sprintf("%s, %s, exit %d", e.Class, e.Message, e.ExitCode)
	}
	return fmt.Sprintf("%s, %v", res.Output, err)
}

// TestRandomPerLanguage: what a language draws at random differs between two invocations that begin from one image. Go's math/rand and map order are
// in TestSnapshotRandom, JavaScript's Math.random in the tests of its door. C has no generator that seeds itself, and AssemblyScript's Math.random imports
// a function that no module can have here.
func TestRandomPerLanguage(t *testing.T) {
	t.Parallel()
	rust := `use std::collections::HashMap;
use std::io::Read;
fn main() {
    let mut s = String::new();
    std::io::stdin().read_to_string(&mut s).unwrap();
    let m: HashMap<i32, i32> = (0..20).map(|i| (i, i)).collect();
    println!("{:?}", m.keys().collect::<Vec<_>>());
}
`
	goReactor := `package main

import (
	"fmt"
	"math/rand"
	v2 "math/rand/v2"
	"unsafe"
)

var table = map[int]bool{1: true, 2: true, 3: true, 4: true, 5: true, 6: true, 7: true, 8: true}

func main() {}

//go:wasmimport keyfire_v1 output_write
func outputWrite(p unsafe.Pointer, n uint32) int32

//go:wasmexport run
func run(int32) int32 {
	order := []int{}
	for k := range table {
		order = append(order, k)
	}
	out := []byte(fmt.Sprintf("[%d,%d,\"%v\"]", rand.Int63(), v2.Uint64()>>1, order))
	outputWrite(unsafe.Pointer(&out[0]), uint32(len(out)))
	return 0
}
`
	for _, tt := range []struct {
		name, file, source string
		build              []string
		start              Start
		differ             int // of 20
	}{
		{"rust", "node.rs", rust, []string{"/usr/bin/rustc", "--edition", "2021", "--target", "wasm32-wasi", "-C", "linker=wasm-ld-14", "-O", "-o", "OUT", "node.rs"}, StartShared, 19},
		{"go reactor", "main.go", goReactor, []string{"go", "build", "-buildmode=c-shared", "-o", "OUT", "main.go"}, StartReseeded, 20},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			if err := os.WriteFile(dir+"/"+tt.file, []byte(tt.source), 0o600); err != nil {
				t.Fatal(err)
			}
			buildGallery(t, dir, dir+"/out.wasm", tt.build)
			binary, err := os.ReadFile(dir + "/out.wasm")
			if err != nil {
				t.Fatal(err)
			}
			b := setup(t, verified(t))
			d := b.publish(t, binary)
			b.warm(t, d, tt.start)
			seen := make(map[string]bool)
			for range 20 {
				res, err := b.call(t, d, "{}", core.Limits{})
				if err != nil || res.Start != tt.start {
					t.Fatalf("%s by %s, %v", res.Output, res.Start, err)
				}
				seen[string(res.Output)] = true
			}
			if len(seen) < tt.differ {
				t.Errorf("%d of 20 differ: %v", len(seen), seen)
			}
		})
	}
}

// TestChaosSoak loads the runtime with many modules for a while, and looks whether it grows: memory, descriptors, mappings, goroutines.
func TestChaosSoak(t *testing.T) {
	if raceEnabled {
		t.Skip("the detector's own memory grows")
	}
	d := 2 * time.Second
	modules := 12
	if text := os.Getenv("KEYFIRE_CHAOS"); text != "" {
		var err error
		if d, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
		modules = 50
	}
	// Room for about half of them, so that some are always evicted and loaded again.
	b := setup(t, func(c *Config) { c.VerifyEvery, c.Logger, c.ModuleBudget = 50, failing(t), 32<<20 })
	var digests []string
	for i := range modules {
		// Each module differs by a custom section, and thereby in its digest.
		binary := [][]byte{probeCommand(), probeReactor(), hooked(nil), randomFirst()}[i%4]
		digests = append(digests, b.publish(t, append(binary, sectionOf(secCustom, concat(name(fmt.Sprint("module ", i)), make([]byte, 50_000)))...)))
	}
	digests = append(digests, b.publish(t, guestModule(t)))
	var calls atomic.Int64
	load := func(d time.Duration) {
		end := time.Now().Add(d)
		var wg sync.WaitGroup
		for worker := range 8 {
			wg.Go(func() {
				r := rand.New(rand.NewPCG(rand.Uint64(), uint64(worker)))
				for time.Now().Before(end) {
					n := r.IntN(len(digests))
					in := []string{"n", "g", "t", "o"}[r.IntN(4)]
					if n == len(digests)-1 {
						in = []string{`{"op":"echo","text":"x"}`, `{"op":"work","size":1000}`, `{"op":"panic"}`}[r.IntN(3)]
					}
					_, err := b.Invoke(t.Context(), Call{Account: fmt.Sprint("acct_", r.IntN(3)), Module: digests[n], Input: []byte(in), Limits: core.Limits{Memory: 8 << 20}})
					var e *Error
					if err != nil && !errors.As(err, &e) {
						t.Error(err)
						return
					}
					calls.Add(1)
				}
			})
		}
		wg.Wait()
	}
	measure := func() processSize {
		s := measureProcess(t)
		s.goroutines -= b.Stats().IdleShells // a command that waits for its next use has one
		return s
	}
	load(d / 4)
	before := measure()
	load(d * 3 / 4)
	after := measure()
	t.Logf("%d calls; before %+v, after %+v, %+v", calls.Load(), before, after, b.Stats())
	// A short run has not seen all of its own peaks at its beginning.
	slack := int64(1)
	if d < 30*time.Second {
		slack = 3
	}
	if after.resident > before.resident+slack*(32<<20) || after.files > before.files+int(slack)*20 || after.maps > before.maps+int(slack)*150 || after.goroutines > before.goroutines+10 {
		t.Errorf("it grows: before %+v, after %+v", before, after)
	}
}

type processSize struct {
	resident                int64
	files, maps, goroutines int
}

func measureProcess(t *testing.T) (s processSize) {
	t.Helper()
	// What goes on in the background after the last call ends by itself.
	for quiet := 0; quiet < 20; quiet++ {
		if n := runtime.NumGoroutine(); n != s.goroutines {
			s.goroutines, quiet = n, 0
		}
		time.Sleep(10 * time.Millisecond)
	}
	runtime.GC()
	s.resident = resident(t)
	if list, err := os.ReadDir("/proc/self/fd"); err == nil {
		s.files = len(list)
	}
	if b, err := os.ReadFile("/proc/self/maps"); err == nil {
		s.maps = strings.Count(string(b), "\n")
	}
	return s
}

func sectionOf(id byte, content []byte) []byte { return append([]byte{id}, sized(content)...) }
