package wasm

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
)

// BenchmarkDemand prints, for the same node in every language, what an invocation costs here, beside the engine alone and beside Extism's own SDK,
// and how far that is from the goals. All subjects of a language take turns in one run, so that whatever else the machine does hits all of them.
// It prints once, however long -benchtime is; with -benchtime 1x it only sees that everything works.
func BenchmarkDemand(b *testing.B) {
	rounds, slice := 7, 60*time.Millisecond
	if flag.Lookup("test.benchtime").Value.String() == "1x" {
		rounds, slice = 1, time.Millisecond
	}
	document, _ := randomDocument(rand.New(rand.NewPCG(3, 4)), 100)
	input, err := json.Marshal(map[string]string{"document": document})
	if err != nil {
		b.Fatal(err)
	}
	nodes := append(galleryNodes(), galleryNode{
		"extism go", "../../../runtime/wasm/testdata/extismbench/plugin", []string{"go", "build", "-trimpath", "-ldflags", "-s -w", "-buildmode=c-shared", "-o", "OUT", "."}, "run_test", DoorExtism,
	})
	for _, node := range nodes {
		if rounds == 1 && node.dir != "c" {
			continue // the others are built by BenchmarkMetering, and compiling them again takes long
		}
		b.Run(node.name, func(b *testing.B) {
			d := newComparison(b, node, input)
			for range b.N {
				d.rounds(b, rounds, slice)
			}
			d.print(b)
			b.ReportMetric(0, "ns/op")
		})
	}
}

// subject is one way to run a node. It returns what counts of one run.
type subject struct {
	name  string
	run   func() (time.Duration, error)
	times []time.Duration
}

// comparison is what is compared of one node.
type comparison struct {
	node     galleryNode
	ours     bundle
	call     Call
	ready    Readiness
	subjects []*subject

	idle, image  int64
	dirty        int
	bytes, count float64 // of the heap, for one invocation
	cpu, cpuTwo  time.Duration
	cpuPlain     time.Duration
}

func (d *comparison) add(name string, run func() (time.Duration, error)) {
	d.subjects = append(d.subjects, &subject{name: name, run: run})
}

func (d *comparison) of(name string) Timing {
	for _, s := range d.subjects {
		if s.name == name {
			return timing(slices.Clone(s.times))
		}
	}
	return Timing{}
}

// The subjects.
const (
	wazeroFresh  = "wazero, fresh"
	oursFresh    = "ours, fresh"
	oursReused   = "ours, reused" // the call alone, in an instance that was put back before
	oursReset    = "reset"
	dirtyCopy    = "copy of the dirty bytes"
	wazeroCall   = "wazero, call alone"
	closingCall  = "wazero with WithCloseOnContextDone and a deadline, call alone"
	meteredCall  = "metered, call alone"
	extismFresh  = "extism, fresh"
	extismReused = "extism, reused"
	timedFresh   = "extism with Timeout, fresh"
	timedReused  = "extism with Timeout, reused"
)

func newComparison(b *testing.B, node galleryNode, input []byte) *comparison {
	binary := node.binary(b)
	d := &comparison{node: node}
	d.ours = node.runtimeFor(b, func(c *Config) { c.VerifyEvery = -1 })
	d.call, d.ready = node.ready(b, d.ours)
	d.call.Input = input
	raw := func(meter, closing bool) *rawNode { return newRawNode(b, node, binary, &d.call, meter, closing) }
	plain := raw(false, false)
	stock := *plain
	stock.memory = experiments{memory: true} // as the engine does it by itself
	d.add(wazeroFresh, func() (time.Duration, error) { all, _, err := stock.once(); return all, err })
	d.add(oursFresh, func() (time.Duration, error) {
		began := time.Now()
		_, err := d.ours.Invoke(b.Context(), d.call)
		return time.Since(began), err
	})
	d.addShell(b)
	for name, n := range map[string]*rawNode{wazeroCall: plain, meteredCall: raw(true, false), closingCall: raw(false, true)} {
		d.add(name, func() (time.Duration, error) { _, call, err := n.once(); return call, err })
	}
	if node.door == DoorExtism {
		d.addExtism(b, input)
	}
	return d
}

// addShell adds what is seen of one instance only.
func (d *comparison) addShell(b *testing.B) {
	r := d.ours.Runtime
	p, release, err := r.modules.acquire(b.Context(), d.call.Account, d.call.Module)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(release)
	img := r.imageOf(p)
	if img == nil {
		b.Logf("%s starts plain: %s", d.node.name, d.ready.Why)
		return
	}
	b.Cleanup(img.release)
	s, err := r.make(p, img)
	if err != nil || s == nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.close() })
	d.image = int64(len(img.memory))
	var resets, copies []time.Duration
	timeout, memory, output := r.limits(d.call.Limits)
	d.add(oursReused, func() (time.Duration, error) {
		began := time.Now()
		setup := guest{
			Context: b.Context(), now: r.config.Now, random: r.config.Random, stdin: d.call.Input, output: output, log: logBuffer{now: r.config.Now},
			start: r.config.Now(), limit: began.Add(timeout), door: p.info.Door, script: p.script, hostState: r.hostState(&d.call),
		}
		err := s.serve(&setup, memory)
		_, err = s.g.conclude(err, timeout)
		s.g.endTime()
		took := time.Since(began)
		if len(resets) < 3 { // to look leaves the processor's caches full of memory that a reset would not touch
			d.dirty = img.differs(s.g.memory.buf[:s.g.memory.size])
		}
		began = time.Now()
		ok := s.reset()
		resets = append(resets, time.Since(began))
		d.idle = s.weight()
		room := make([]byte, 4096*d.dirty)
		began = time.Now()
		copy(room, img.memory)
		copies = append(copies, time.Since(began))
		if !ok && err == nil {
			s.close()
			s, err = r.make(p, img)
		}
		return took, err
	})
	for name, of := range map[string]*[]time.Duration{oursReset: &resets, dirtyCopy: &copies} {
		d.add(name, func() (time.Duration, error) {
			n := len(*of)
			if n == 0 {
				return 0, errors.New("nothing was measured")
			}
			last := (*of)[n-1]
			*of = (*of)[:n-1]
			return last, nil
		})
	}
}

// addExtism adds Extism's own SDK, in a process of its own.
func (d *comparison) addExtism(b *testing.B, input []byte) {
	bin, err := extismBench()
	if err != nil {
		b.Logf("SKIPPED: Extism's SDK cannot be built here: %v", err)
		return
	}
	file := filepath.Join(sharedDir, "gallery "+d.node.name+".wasm")
	cmd := exec.Command(bin, file, d.node.call, string(input))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			b.Error(err)
		}
	})
	lines := bufio.NewReaderSize(out, 1<<20)
	for name, order := range map[string]string{extismFresh: "fresh", extismReused: "reused", timedFresh: "fresh timed", timedReused: "reused timed"} {
		var left []string
		d.add(name, func() (time.Duration, error) {
			if len(left) == 0 {
				words := strings.Fields(order)
				if _, err := fmt.Fprintln(in, strings.Join(slices.Insert(words, 1, "20ms"), " ")); err != nil {
					return 0, err
				}
				line, err := lines.ReadString('\n')
				if err != nil {
					return 0, err
				}
				left = strings.Fields(line)
			}
			ns, err := strconv.ParseInt(left[0], 10, 64)
			left = left[1:]
			return time.Duration(ns), err
		})
	}
}

// extismBench builds testdata/extismbench, once.
var extismBench = sync.OnceValues(func() (string, error) {
	out := filepath.Join(sharedDir, "extismbench")
	cmd := exec.Command("go", "build", "-o", out, ".")
	cmd.Dir = filepath.FromSlash("testdata/extismbench")
	cmd.Env = append(os.Environ(), "GOFLAGS=-trimpath")
	if b, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w\n%s", err, b)
	}
	return out, nil
})

// rounds lets all subjects take turns.
func (d *comparison) rounds(b *testing.B, rounds int, slice time.Duration) {
	for _, s := range d.subjects { // warm
		for range 20 {
			if _, err := s.run(); err != nil && (s.name != oursReset && s.name != dirtyCopy) {
				b.Fatalf("%s: %v", s.name, err)
			}
		}
	}
	var calls int
	var before, after runtime.MemStats
	for range rounds {
		for _, s := range d.subjects {
			cpu := processorTime(b)
			runtime.ReadMemStats(&before)
			n := 0
			for end := time.Now().Add(slice); n == 0 || time.Now().Before(end); n++ {
				took, err := s.run()
				if err != nil {
					if s.name == oursReset || s.name == dirtyCopy {
						break // all of them were taken
					}
					b.Fatalf("%s: %v", s.name, err)
				}
				s.times = append(s.times, took)
			}
			runtime.ReadMemStats(&after)
			switch s.name {
			case oursFresh:
				calls += n
				d.bytes += float64(after.TotalAlloc - before.TotalAlloc)
				d.count += float64(after.Mallocs - before.Mallocs)
				d.cpu += (processorTime(b) - cpu) / time.Duration(n*rounds)
			case wazeroFresh:
				d.cpuPlain += (processorTime(b) - cpu) / time.Duration(n*rounds)
			}
		}
		d.cpuTwo += d.together(b, slice) / time.Duration(rounds)
	}
	d.bytes, d.count = d.bytes/float64(calls), d.count/float64(calls)
}

// together is the processor time of an invocation while two goroutines call at once.
func (d *comparison) together(b *testing.B, slice time.Duration) time.Duration {
	cpu := processorTime(b)
	var n atomic.Int64
	var wg sync.WaitGroup
	end := time.Now().Add(slice)
	for range 2 {
		wg.Go(func() {
			for n.Load() < 2 || time.Now().Before(end) {
				if _, err := d.ours.Invoke(b.Context(), d.call); err != nil {
					b.Error(err)
					return
				}
				n.Add(1)
			}
		})
	}
	wg.Wait()
	return (processorTime(b) - cpu) / time.Duration(n.Load())
}

// print prints the tables of one node.
func (d *comparison) print(b *testing.B) {
	fmt.Printf("\n%s, class %s\n", d.node.name, d.ready.Start.Class())
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "\truns\tmedian µs\tp99 µs\t")
	us := func(t time.Duration) float64 { return float64(t.Nanoseconds()) / 1e3 }
	for _, name := range []string{wazeroFresh, oursFresh, oursReused, oursReset, dirtyCopy, wazeroCall, closingCall, meteredCall, extismFresh, extismReused, timedFresh, timedReused} {
		if t := d.of(name); t.Calls > 0 {
			fmt.Fprintf(w, "%s\t%d\t%.1f\t%.1f\t\n", name, t.Calls, us(t.Median), us(t.P99))
		}
	}
	_ = w.Flush()
	w = tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "demand\ttarget\tmeasured\t")
	isGo, command := d.ready.Start == StartReseeded, d.node.door == DoorCommand
	at := func(value float64) string { return strconv.FormatFloat(value, 'f', 2, 64) }
	row := func(name, target, measured string, met bool) {
		said := ""
		if !met {
			said = "not met"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", name, target, measured, said)
	}
	pick := func(yes bool, a, b float64) float64 {
		if yes {
			return a
		}
		return b
	}
	least := func(name string, value, target float64) { row(name, ">= "+at(target), at(value), value >= target) }
	most := func(name string, value, target float64) { row(name, "<= "+at(target), at(value), value <= target) }
	over := func(x, y time.Duration) float64 { return float64(x) / float64(max(y, 1)) }

	fresh := d.of(oursFresh)
	if reused := d.of(oursReused); reused.Calls > 0 {
		most("fresh : reused", over(fresh.Median, reused.Median), pick(isGo, 1.3, 1.4))
		most("fresh : reused, p99", over(fresh.P99, reused.P99), 2)
		reset, moved := d.of(oursReset).Median, d.of(dirtyCopy).Median
		most("reset, µs; 2 + 5 x copy of the dirty bytes", us(reset), 2+5*us(moved))
		most("idle instance, KiB", float64(d.idle>>10), pick(isGo, 512, 64))
	}
	switch plain := over(d.of(wazeroFresh).Median, fresh.Median); {
	case isGo && command:
		least("wazero fresh : fresh", plain, 6)
	case isGo:
		least("wazero fresh : fresh", plain, pick(d.node.door == DoorReactor, 15, 8)) // an Extism plugin is not warmed
	default:
		least("wazero fresh : fresh", plain, pick(d.node.dir == "rust", 4, 1))
	}
	least("the same, processor time", over(d.cpuPlain, d.cpu), 1.5)
	if x := d.of(extismFresh).Median; x > 0 {
		least("extism fresh : fresh", over(x, fresh.Median), pick(isGo, 8, 6))
		least("extism reused : fresh", over(d.of(extismReused).Median, fresh.Median), 0.9)
		least("extism with Timeout, fresh : fresh", over(d.of(timedFresh).Median, fresh.Median), pick(isGo, 20, 10))
		least("extism with Timeout, reused : fresh", over(d.of(timedReused).Median, fresh.Median), 4)
	}
	most("metered : not, call alone", over(d.of(meteredCall).Median, d.of(wazeroCall).Median), 1.35)
	row("with WithCloseOnContextDone : without, call alone", "", at(over(d.of(closingCall).Median, d.of(wazeroCall).Median)), true)
	if d.node.door == DoorReactor {
		most("heap of a call, KB", d.bytes/1e3, 1)
		most("allocations of a call", math.Round(d.count), 5) // what the runtime allocates meanwhile is counted too
	}
	most("processor time, 2 goroutines : 1", over(d.cpuTwo, d.cpu), 1.1)
	row("dirty pages, image KiB", "", fmt.Sprintf("%d, %d", d.dirty, d.image>>10), true)
	_ = w.Flush()
	b.ReportMetric(us(fresh.Median), "fresh-µs")
}

// rawNode runs a node on the engine alone, without our engine's images, as a module is or rewritten.
type rawNode struct {
	node     galleryNode
	runtime  wazero.Runtime
	program  *program // nil for the module as it is
	compiled wazero.CompiledModule
	memory   experiments
	call     *Call
	script   []byte
}

func newRawNode(b *testing.B, node galleryNode, binary []byte, call *Call, meter, closing bool) *rawNode {
	n := &rawNode{node: node, call: call}
	if node.door == DoorJavaScript {
		n.script = binary
		var err error
		if binary, err = os.ReadFile(scriptEngine(b)); err != nil {
			b.Fatal(err)
		}
	}
	ctx := context.Background()
	n.runtime = wazero.NewRuntimeWithConfig(ctx, engineConfig().WithCloseOnContextDone(closing))
	b.Cleanup(func() { _ = n.runtime.Close(ctx) })
	if err := instantiateHost(ctx, n.runtime); err != nil {
		b.Fatal(err)
	}
	var rw *rewritten
	if meter {
		m, err := parse(binary)
		if err != nil {
			b.Fatal(err)
		}
		if rw, err = rewrite(m); err != nil {
			b.Fatal(err)
		}
		binary = rw.binary
	}
	var err error
	if n.compiled, err = n.runtime.CompileModule(ctx, binary); err != nil {
		b.Fatal(err)
	}
	if meter {
		n.program = &program{rewritten: rw, compiled: n.compiled}
	}
	return n
}

// once makes an instance, starts it, calls it and closes it, and returns what all of that took, and what the call did.
func (n *rawNode) once() (all, call time.Duration, err error) {
	ctx := context.Background()
	began := time.Now()
	mem, err := n.memory.newLinearMemory(DefaultMemoryLimit)
	if err != nil {
		return 0, 0, err
	}
	g := &guest{
		Context: ctx, now: time.Now, random: systemRandom{}, stdin: n.call.Input, output: MaxOutput, door: n.node.door, script: n.script,
		log: logBuffer{now: time.Now}, memory: mem, start: began, limit: began.Add(time.Hour), hostState: hostState{call: n.call, calls: MaxHostCalls},
	}
	defer g.endTime()
	var mod api.Module
	if n.program != nil {
		in, err := (&Runtime{wazero: n.runtime}).instantiate(g, n.program, false)
		if err != nil {
			return 0, 0, err
		}
		mod = in.mod
	} else {
		if mod, err = n.runtime.InstantiateModule(mem.allocating(g), n.compiled, wazero.NewModuleConfig().WithName("").WithStartFunctions()); err != nil {
			return 0, 0, err
		}
		g.inst = &instance{mod: mod}
		mem.follow(mod.Memory())
	}
	defer mod.Close(ctx)
	called := time.Now()
	switch n.node.door {
	case DoorJavaScript:
		if err = startScript(g, n.script); err == nil {
			called = time.Now()
			err = runScript(g)
		}
	case DoorExtism:
		if err = startExtism(g, mod); err == nil {
			f := mod.ExportedFunction(n.call.Export)
			called = time.Now()
			err = callExtism(g, f)
		}
	case DoorReactor:
		if f := mod.ExportedFunction(exportInitialize); f != nil {
			_, err = f.Call(g)
		}
		if err == nil {
			f := mod.ExportedFunction(exportRun)
			called = time.Now()
			err = callRun(g, f)
		}
	default:
		err = enter(g, mod, hooks{})
	}
	call = time.Since(called)
	if g.exited && g.code == 0 {
		err = nil
	}
	if err == nil && len(g.stdout) == 0 && len(g.extism.buf) == 0 {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return 0, 0, fmt.Errorf("exit %d, %w", g.code, err)
	}
	_ = mod.Close(ctx)
	return time.Since(began), call, nil
}
