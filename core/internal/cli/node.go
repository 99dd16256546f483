package cli

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/runtime/engine"
	"github.com/keyfire/keyfire/runtime/wasm"
)

func (a *app) nodeCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "node",
		Short: "Begin, inspect and run nodes on this machine, without a server",
	}, a.nodeNew(), a.nodeInspect(), a.nodeRun())
}

// moduleInfo is what `node inspect --json` prints.
type moduleInfo struct {
	Digest    string   `json:"digest"`
	Size      int64    `json:"size_bytes"`
	Door      string   `json:"door"`
	Grants    []string `json:"grants"`
	Callable  []string `json:"callable"`
	Imports   []string `json:"imports"`
	Exports   []string `json:"exports"`
	MinMemory int64    `json:"min_memory_bytes"`
	MaxMemory int64    `json:"max_memory_bytes"`

	Measurement *measurement `json:"measurement,omitempty"` // with --measure
}

// nodeCall is how a node is called, as flags say it.
type nodeCall struct {
	wasm.Call
	inputs, config, grants []string
	cache                  *string
}

// flags declares the flags; grants is the help of --grant.
func (n *nodeCall) flags(a *app, f *pflag.FlagSet, grants string) {
	f.StringArrayVarP(&n.inputs, "input", "i", nil, "part of the input, as for keyfire trigger; may be repeated")
	f.StringArrayVar(&n.config, "config", nil, "part of the config, written like the input; may be repeated")
	f.StringArrayVar(&n.grants, "grant", nil, grants+"; may be repeated")
	f.StringVar(&n.Export, "call", "", "the function to call in an Extism plugin")
	n.cache = a.cacheFlag(f)
}

// read makes the call of the flags. Its input is {} when none is given.
func (n *nodeCall) read(a *app) (err error) {
	if n.Input, err = a.buildInput(n.inputs); err != nil {
		return usageError{err}
	}
	if n.Input == nil {
		n.Input = []byte("{}")
	}
	if n.Config, err = a.buildInput(n.config); err != nil {
		return usageError{fmt.Errorf("--config: %w", err)}
	}
	if n.Grants, err = parseGrants(n.grants); err != nil {
		return usageError{err}
	}
	return nil
}

func (a *app) nodeInspect() *cobra.Command {
	var measure bool
	var call nodeCall
	cmd := &cobra.Command{
		Use:   "inspect FILE",
		Short: "Show how a module is entered, what it imports and which grants it needs",
		Long: `Show how a module is entered, what it imports and which grants it needs.

With --measure the module is also run, with the input of -i, for a few seconds: the class of its start, and what an invocation costs when
the module is started for each (plain), as a server does it (fresh), and in one instance that keeps its state (reused), for comparison.
It is called some thousand times with what --grant gives it, requests included.`,
		Example: `  keyfire node inspect greet.wasm
  keyfire node inspect greet.wasm --measure -i name=Ada`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			binary, err := a.readModule(args[0])
			if err != nil {
				return err
			}
			i, err := wasm.Inspect(binary)
			if err != nil {
				return err
			}
			var m *wasm.Measurement
			var unmeasured error
			if measure {
				if err := call.read(a); err != nil {
					return err
				}
				quiet := a.afterwhile("measuring; each way to start is tried for a second")
				m, unmeasured = a.measureNode(cmd.Context(), binary, call.Call, local{scriptEngine: a.localEngine(cmd.Flags()), cache: *call.cache})
				quiet()
			}
			if a.json && unmeasured != nil {
				return nodeError(unmeasured)
			}
			if a.json {
				return a.printModule(&i, m)
			}
			a.showModule(&i)
			switch {
			case unmeasured != nil:
				if len(call.inputs) == 0 {
					a.note("it was measured with {} as its input; -i gives it one that it can work with")
				}
				return nodeError(unmeasured)
			case m != nil:
				a.printMeasurement(m)
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.BoolVar(&measure, "measure", false, "run the module and show what an invocation costs")
	call.flags(a, f, "what the node may do, as for keyfire node run")
	return cmd
}

func (a *app) printModule(i *wasm.Info, m *wasm.Measurement) error {
	b, err := json.Marshal(moduleInfo{
		i.Digest, i.Size, string(i.Door), orEmpty(i.Grants), orEmpty(i.Callable), orEmpty(i.Imports), orEmpty(i.Exports), i.MinMemory, i.MaxMemory,
		measurementBody(m),
	})
	if err != nil {
		return err
	}
	return a.printBody(b)
}

func (a *app) showModule(i *wasm.Info) {
	grants := "none"
	if len(i.Grants) > 0 {
		grants = strings.Join(i.Grants, ", ")
	}
	if i.Door == wasm.DoorJavaScript {
		grants = "those it uses; a script is told when it uses them"
	}
	a.fields("digest", i.Digest, "size", strconv.FormatInt(i.Size, 10)+" bytes", "door", string(i.Door), "grants needed", grants,
		"call", strings.Join(i.Callable, ", "), "imports", strings.Join(i.Imports, "\n"), "exports", strings.Join(i.Exports, ", "))
}

func orEmpty(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}

func (a *app) nodeRun() *cobra.Command {
	var call nodeCall
	var allow []string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "run FILE",
		Short: "Run a module or script once and print its output",
		Long: `Run a module or a script once, on this machine, as a server would: the same sandbox, limits and host functions. The output goes to
standard output, the node's log to standard error. No server is needed.

-i and --config build the input and the config, as keyfire trigger does. --grant gives what a workflow would:
  --grant 'http=GET https://api.example.com'    requests to an origin
  --grant secret=CRM_TOKEN                      a secret, whose value is the environment variable of that name
  --grant kv=write                              values, which are empty at the start and gone at the end

The compiled module is kept in the user's cache directory, so that the next run of the same file starts at once. --cache names another
directory, which only its owner may enter, or is off.

The exit status tells a node that failed (10) and one that ran out of time (11).`,
		Example: `  keyfire node run greet.wasm -i name=Ada
  keyfire node run count_vowels.wasm --call count_vowels -i @text.json
  CRM_TOKEN=... keyfire node run sync.js -i @in.json --grant secret=CRM_TOKEN --grant 'http=GET https://api.example.com'`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			binary, err := a.readModule(args[0])
			if err != nil {
				return err
			}
			if err := call.read(a); err != nil {
				return err
			}
			var networks []netip.Prefix
			for _, text := range allow {
				p, err := netip.ParsePrefix(text)
				if err != nil {
					return usagef("--allow %s: want a network such as 127.0.0.0/8", text)
				}
				networks = append(networks, p)
			}
			if timeout <= 0 || timeout > core.MaxRunTimeout {
				return usagef("--timeout %s: a node may take more than 0s and at most %s", timeout, core.Duration(core.MaxRunTimeout))
			}
			call.Limits.Timeout = core.Duration(timeout)
			res, err := a.runNode(cmd.Context(), binary, call.Call, local{networks, a.localEngine(cmd.Flags()), *call.cache})
			for _, l := range res.Log {
				fmt.Fprintf(a.Stderr, "%-5s %s\n", l.Level, l.Message)
			}
			if err != nil {
				return nodeError(err)
			}
			var line bytes.Buffer // without the node's own white space, so that outputs can be compared
			if err := json.Compact(&line, res.Output); err != nil {
				return err
			}
			fmt.Fprintln(a.Stdout, line.String())
			return nil
		},
	}
	f := cmd.Flags()
	call.flags(a, f, "what the node may do; see above")
	f.StringArrayVar(&allow, "allow", nil, "a network (CIDR) that granted requests may reach although it is private; may be repeated")
	f.DurationVar(&timeout, "timeout", core.DefaultNodeLimit, "longest time the node may take")
	return cmd
}

// parseGrants reads the values of --grant.
func parseGrants(list []string) (g core.Grants, err error) {
	for _, text := range list {
		kind, value, _ := strings.Cut(text, "=")
		switch {
		case kind == "http":
			if _, err := wasm.ParseHTTPRule(value); err != nil {
				return g, fmt.Errorf("--grant %s: %w", text, err)
			}
			g.HTTP = append(g.HTTP, value)
		case kind == "secret" && core.ValidSecretName(value):
			g.Secrets = append(g.Secrets, value)
		case kind == "kv" && (value == core.KVRead || value == core.KVWrite):
			g.KV = value
		default:
			return g, fmt.Errorf("--grant %s: want http=METHOD ORIGIN, secret=NAME, kv=read or kv=write", text)
		}
	}
	return g, nil
}

// local is what a module finds on this machine.
type local struct {
	networks     []netip.Prefix // that requests may reach although they are private
	scriptEngine string         // its file
	cache        string         // directory of compiled modules, or nodeCacheOff
}

// runNode runs a module in a runtime of its own, of which nothing is left but the compiled module.
func (a *app) runNode(ctx context.Context, binary []byte, call wasm.Call, local local) (res wasm.Result, err error) {
	call.Engine = wasm.EnginePlain // one invocation is all there is
	err = a.localRuntime(ctx, binary, &call, local, func(rt *wasm.Runtime) error {
		if res, err = rt.Invoke(ctx, call); err != nil {
			return err
		}
		return engine.CheckOutput(res.Output)
	})
	return res, err
}

// localEngine returns where the engine of scripts is. For anything else a configuration that is wrong does not matter.
func (a *app) localEngine(flags *pflag.FlagSet) string {
	if cfg, _, err := loadConfig(a.Environ, flags); cfg != nil && (err == nil || cfg.Data != "") {
		return cfg.scriptEngine()
	}
	return ""
}

// localRuntime makes a runtime with one module, which it names in call, for as long as f takes.
func (a *app) localRuntime(ctx context.Context, binary []byte, call *wasm.Call, local local, f func(*wasm.Runtime) error) (err error) {
	rt, info, done, err := a.compiled(ctx, wasm.Config{
		ScriptEngine: local.scriptEngine, KV: &memoryKV{values: make(map[string][]byte)}, Egress: wasm.EgressConfig{Allow: local.networks},
		Load: func(context.Context, string, string) ([]byte, error) { return binary, nil },
		Secret: func(_ context.Context, _, name string) (string, error) {
			if v := lookup(a.Environ, name); v != "" {
				return v, nil
			}
			return "", core.Errorf(core.CodeNotFound, "the environment has no %s", name)
		},
	}, local.cache, binary)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	call.Account, call.Module, call.Workflow = core.DefaultAccount, info.Digest, "local"
	call.Run, call.Step = "local-"+rand.Text(), "node" // for the Idempotency-Key, which no other call may have
	return f(rt)
}

// nodeError gives a node's failure the exit status that a run's would have.
func nodeError(err error) error {
	var e *wasm.Error
	if !errors.As(err, &e) {
		return err
	}
	code := core.CodeRunFailed
	if e.Class == core.ClassTimeout {
		code = core.CodeRunTimedOut
	}
	if e.Status != 0 {
		return core.Errorf(code, "the node failed the run on purpose (%d %s): %s", e.Status, e.Code, e.Message)
	}
	return core.Errorf(code, "the node failed (%s): %s", e.Class, e.Message)
}

// memoryKV keeps values for one command, within the bounds of a server.
type memoryKV struct {
	mu     sync.Mutex
	values map[string][]byte
	bytes  int // of keys and values
}

// Get implements wasm.KV.
func (k *memoryKV) Get(_ context.Context, _, _, key string) ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	v, ok := k.values[key]
	if !ok {
		return nil, core.Errorf(core.CodeNotFound, "the key has no value")
	}
	return slices.Clone(v), nil
}

// Swap implements wasm.KV.
func (k *memoryKV) Swap(_ context.Context, _, _, key string, value []byte, check bool, old []byte) (bool, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now, had := k.values[key]
	if check && !wasm.SameValue(now, old) {
		return false, nil
	}
	size := k.bytes
	if had {
		size -= len(key) + len(now)
	}
	if value == nil {
		delete(k.values, key)
		k.bytes = size
		return true, nil
	}
	if size += len(key) + len(value); size > wasm.MaxKVBytes && size > k.bytes || !had && len(k.values) == wasm.MaxKVKeys {
		return false, core.Errorf(core.CodeQuotaExhausted, "the workflow keeps as much as it may")
	}
	k.values[key], k.bytes = append([]byte{}, value...), size
	return true, nil
}
