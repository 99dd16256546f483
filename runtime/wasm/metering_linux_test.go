package wasm

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"

	"github.com/keyfire/keyfire/core"
)

// BenchmarkMetering is the price of what the rewriter adds (fuel, the price of bulk operations, depth, and memory of the host's choosing), for the node of
// the gallery in each language: plain and metered calls of the same module take turns, what counts is the processor time of this
// process, and the ratio of the medians is reported as x. The promise is 1.35.
func BenchmarkMetering(b *testing.B) {
	document, _ := galleryDocument()
	input, err := json.Marshal(map[string]string{"document": document})
	if err != nil {
		b.Fatal(err)
	}
	for _, node := range galleryNodes() {
		b.Run(node.name, func(b *testing.B) {
			var script []byte
			binary := node.binary(b)
			if node.door == DoorJavaScript {
				script = binary
				var err error
				if binary, err = os.ReadFile(scriptEngine(b)); err != nil {
					b.Fatal(err)
				}
			}
			m, err := parse(binary)
			if err != nil {
				b.Fatal(err)
			}
			rw, err := rewrite(m)
			if err != nil {
				b.Fatal(err)
			}
			ctx := context.Background()
			rt := wazero.NewRuntimeWithConfig(ctx, engineConfig())
			defer rt.Close(ctx)
			if err := instantiateHost(ctx, rt); err != nil {
				b.Fatal(err)
			}
			plain, err := rt.CompileModule(ctx, binary)
			if err != nil {
				b.Fatal(err)
			}
			metered, err := rt.CompileModule(ctx, rw.binary)
			if err != nil {
				b.Fatal(err)
			}
			call := &Call{Input: input, Export: node.call}
			alone := newCrowd()
			defer alone.close()
			alone.count.Add(1)
			once := func(meter bool) time.Duration {
				mem, err := experiments{}.newLinearMemory(DefaultMemoryLimit)
				if err != nil {
					b.Fatal(err)
				}
				g := &guest{
					Context: ctx, now: time.Now, random: systemRandom{}, stdin: input, output: MaxOutput, door: node.door, script: script,
					log: logBuffer{now: time.Now}, memory: mem, start: time.Now(), limit: time.Now().Add(time.Hour), hostState: hostState{call: call, calls: MaxHostCalls}, deep: maxStack, pace: pace{crowd: alone},
				}
				defer g.pace.pause()
				var mod api.Module
				if meter {
					in, err := (&Runtime{wazero: rt}).instantiate(g, &program{rewritten: rw, compiled: metered}, false)
					if err != nil {
						b.Fatal(err)
					}
					mod = in.mod
				} else {
					if mod, err = rt.InstantiateModule(mem.allocating(g), plain, wazero.NewModuleConfig().WithName("").WithStartFunctions()); err != nil {
						b.Fatal(err)
					}
					g.inst = &instance{mod: mod}
				}
				defer mod.Close(ctx)
				// Its start-up is no part of the price of a call where it can be told apart.
				if node.door == DoorJavaScript {
					if err := startScript(g, script); err != nil {
						b.Fatal(err)
					}
				}
				began := processorTime(b)
				if node.door == DoorJavaScript {
					err = runScript(g)
				} else {
					err = enter(g, mod, hooks{})
				}
				took := processorTime(b) - began
				if g.code != 0 || len(g.stdout) == 0 && len(g.extism.buf) == 0 {
					b.Fatalf("exit %d, %v, log %v", g.code, err, g.log.lines)
				}
				return took
			}
			var with, without []time.Duration
			for b.Loop() {
				without = append(without, once(false))
				with = append(with, once(true))
			}
			median := func(list []time.Duration) float64 {
				slices.Sort(list)
				return float64(list[len(list)/2].Nanoseconds())
			}
			b.ReportMetric(median(without), "plain-ns")
			b.ReportMetric(median(with), "metered-ns")
			b.ReportMetric(median(with)/median(without), "x")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkHostCall is the price of one host function, called in a loop of a few instructions, by a reactor and by a command. The price of a command is
// higher while the engine may go back to its first read: the context of the call then lies within one of the engine's.
func BenchmarkHostCall(b *testing.B) {
	const times = MaxHostCalls / 2
	loop := concat(
		i32c(times), []byte{opLocalSet, 0, opLoop, typeEmpty}, i32c(0), i32c(0), i32c(0), []byte{opCall, 0, 0x1a}, // input_read of nothing
		[]byte{opLocalGet, 0}, i32c(1), []byte{0x6b, opLocalTee, 0, opBrIf, 0, opEnd}, // one less, and again
	)
	for _, bb := range []struct {
		name, export string
		typ, body    []byte
	}{
		{"reactor", exportRun, []byte{0x60, 1, typeI32, 1, typeI32}, fn(nil, concat(loop, i32c(0))...)}, // the count is its parameter
		{"command", "_start", []byte{0x60, 0, 0}, fn([][]byte{{1, typeI32}}, loop...)},
	} {
		b.Run(bb.name, func(b *testing.B) {
			module := newModule().
				section(secType, vec(bb.typ, []byte{0x60, 3, typeI32, typeI32, typeI32, 1, typeI32})...).
				section(secImport, vec(concat(name(keyfireModule), name("input_read"), []byte{kindFunc, 1}))...).
				section(secFunction, 1, 0).
				section(secMemory, 1, 0, 1).
				section(secExport, vec(concat(name(bb.export), []byte{kindFunc, 1}))...).
				section(secCode, vec(bb.body)...).b
			rt := setup(b)
			call := Call{Account: core.DefaultAccount, Module: rt.publish(b, module), Limits: core.Limits{HostCalls: MaxHostCalls}}
			began := processorTime(b)
			for b.Loop() {
				_, err := rt.Invoke(b.Context(), call)
				var e *Error
				if !errors.As(err, &e) || e.Class != core.ClassInvalidOutput { // it writes none
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64((processorTime(b)-began).Nanoseconds())/float64(b.N)/times, "ns/call")
		})
	}
}
