// Command extismbench calls a plugin with Extism's own Go SDK, for a comparison: BenchmarkDemand starts it. It is a module of its own, so that
// nothing of the SDK gets into Keyfire.
//
// Its arguments are a module, a function and an input. For every line of its standard input, "reused 20ms" or "fresh 20ms", with or without "timed" at the
// end, it calls the function for that long and prints the times of the calls in nanoseconds on one line.
package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	extism "github.com/extism/go-sdk"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "extismbench:", err)
		os.Exit(1)
	}
}

func run() error {
	ctx := context.Background()
	binary, err := os.ReadFile(os.Args[1])
	if err != nil {
		return err
	}
	call, input := os.Args[2], []byte(os.Args[3])
	plugins := make(map[bool]*extism.CompiledPlugin)
	reused := make(map[bool]*extism.Plugin)
	for _, timed := range []bool{false, true} {
		m := extism.Manifest{Wasm: []extism.Wasm{extism.WasmData{Data: binary}}}
		if timed {
			m.Timeout = 10_000 // ms
		}
		if plugins[timed], err = extism.NewCompiledPlugin(ctx, m, extism.PluginConfig{EnableWasi: true}, nil); err != nil {
			return err
		}
		if reused[timed], err = plugins[timed].Instance(ctx, extism.PluginInstanceConfig{}); err != nil {
			return err
		}
	}
	once := func(p *extism.Plugin) error {
		code, out, err := p.Call(call, input)
		if err == nil && (code != 0 || len(out) == 0) {
			err = fmt.Errorf("exit %d, output %q", code, out)
		}
		return err
	}
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		words := strings.Fields(in.Text())
		d, err := time.ParseDuration(words[1])
		if err != nil {
			return err
		}
		timed := slices.Contains(words, "timed")
		var times []string
		for end := time.Now().Add(d); len(times) == 0 || time.Now().Before(end); {
			began := time.Now()
			if words[0] == "reused" {
				err = once(reused[timed])
			} else {
				var p *extism.Plugin
				if p, err = plugins[timed].Instance(ctx, extism.PluginInstanceConfig{}); err == nil {
					err = once(p)
					p.Close(ctx)
				}
			}
			if err != nil {
				return err
			}
			times = append(times, fmt.Sprint(time.Since(began).Nanoseconds()))
		}
		fmt.Println(strings.Join(times, " "))
	}
	return nil
}
