package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/runtime/engine"
	"github.com/keyfire/keyfire/runtime/wasm"
)

// replayed is what `replay --json` prints.
type replayed struct {
	Object     string          `json:"object"`
	Run        string          `json:"run_id"`
	Step       string          `json:"step"`
	Attempt    int             `json:"attempt"`
	Module     string          `json:"module"`   // that was executed now
	Recorded   string          `json:"recorded"` // module that was executed then
	Identical  bool            `json:"identical"`
	Difference string          `json:"difference,omitempty"`
	Then       string          `json:"then"`
	Now        string          `json:"now"`
	Output     json.RawMessage `json:"output,omitempty"`
	Fuel       int64           `json:"fuel"`
	Log        []core.LogLine  `json:"log"`
	Secrets    []string        `json:"other_secrets,omitempty"`
}

// moduleBeside is where -o puts the module of a tape.
func moduleBeside(tape string) string { return tape + ".module" }

func (a *app) replayCommand() *cobra.Command {
	var from source
	var out string
	var cache *string
	cmd := &cobra.Command{
		Use:   "replay [RUN_ID]",
		Short: "Execute an attempt of a node again, here and bit for bit, from its tape",
		Long: `Execute an attempt of a node again, on this machine, bit for bit. A node with record: failures (or record: all) in its workflow leaves a tape of
each attempt that does not succeed: its input, the random bytes, the readings of the clock and the answers of all calls. The replay is given these, and reaches
nothing else: no network, no kept values, no server. To have a whole run executed anew, with effects, is keyfire runs replay.

The tape and the module are fetched from the server. -o saves them instead, and --tape replays what was saved, where there is no server.
--module executes another module, such as one that was mended: it is given the recorded answers, and ended if it makes a call that the tape does not have.

Secrets are not on a tape. Each that the attempt knew is the environment variable of its name, as for keyfire node run; with another value than the
one that was used, the replay may differ.

The exit status is 0 if every byte is the same, 1 if something is not. With another module it is that of the node now: 0, 10 if it
fails, 11 if it runs out of time, and 6 if a call was not on the tape.`,
		Example: `  keyfire replay run_01jd3v6k9m8q2w4e6r8t0y1u3i --step charge
  keyfire replay run_01jd3v6k9m8q2w4e6r8t0y1u3i --step charge -o charge.tape
  CRM_TOKEN=... keyfire replay --tape charge.tape --module nodes/charge.wasm`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				from.run = args[0]
			}
			switch {
			case (from.run == "") == (from.tape == ""):
				return usagef("replay a run's step, by the run's id, or a file, with --tape")
			case from.tape != "" && (from.step != "" || from.attempt != 0 || out != ""):
				return usagef("--step, --attempt and -o go with a run's id: a file holds the tape of one attempt")
			case out != "" && from.module != "":
				return usagef("-o saves what the server has, and --module replays something else; give one of them")
			}
			file, binary, err := a.taped(cmd, &from)
			if err != nil {
				return err
			}
			if out != "" {
				return a.saveTape(out, file, binary)
			}
			tape, err := wasm.DecodeTape(file)
			if err != nil {
				return err
			}
			return a.replay(cmd.Context(), tape, binary, local{scriptEngine: a.localEngine(cmd.Flags()), cache: *cache}, from.module != "")
		},
	}
	f := cmd.Flags()
	f.StringVar(&from.step, "step", "", "id of the node (default: the one that failed the run)")
	f.IntVar(&from.attempt, "attempt", 0, "which attempt of the step (default: the last one with a tape)")
	f.StringVar(&from.tape, "tape", "", "file of a tape that was saved, with its module beside it")
	f.StringVar(&from.module, "module", "", "file of the module or script to execute, in place of the recorded one")
	f.StringVarP(&out, "output", "o", "", "save the tape in this file, and the module beside it, and replay nothing")
	cache = a.cacheFlag(f)
	return cmd
}

// source is where a tape comes from, and what is executed.
type source struct {
	run, step    string
	attempt      int
	tape, module string
}

// taped returns a tape's file and the bytes of the module to execute.
func (a *app) taped(cmd *cobra.Command, from *source) (file, binary []byte, err error) {
	if from.module != "" {
		if binary, err = a.readModule(from.module); err != nil {
			return nil, nil, err
		}
	}
	if from.tape != "" {
		if file, err = a.readFile(from.tape); err != nil || binary != nil {
			return file, binary, err
		}
		if binary, err = os.ReadFile(moduleBeside(from.tape)); errors.Is(err, os.ErrNotExist) {
			return nil, nil, fmt.Errorf("the module is not beside the tape, as %s; --module names its file", moduleBeside(from.tape))
		}
		return file, binary, err
	}
	s, err := a.connect(cmd)
	if err != nil {
		return nil, nil, err
	}
	ctx := cmd.Context()
	if from.step == "" {
		run, err := s.Run(ctx, from.run)
		if err != nil {
			return nil, nil, unreachable(err)
		}
		if run.Error == nil || run.Error.Step == "" {
			return nil, nil, usagef("no step failed run %s; --step names the one to replay", from.run)
		}
		from.step = run.Error.Step
	}
	if file, err = s.Tape(ctx, from.run, from.step, from.attempt); err != nil || binary != nil {
		return file, binary, unreachable(err)
	}
	tape, err := wasm.DecodeTape(file)
	if err != nil {
		return nil, nil, err
	}
	binary, err = s.Module(ctx, tape.Module)
	return file, binary, unreachable(err)
}

func (a *app) saveTape(name string, tape, module []byte) error {
	for _, f := range []struct {
		name    string
		content []byte
	}{{name, tape}, {moduleBeside(name), module}} {
		if err := replaceFile(f.name, 0o600, f.content); err != nil {
			return err
		}
	}
	if a.json {
		return a.printJSON(map[string]any{"object": "tape", "file": name, "module": moduleBeside(name)})
	}
	fmt.Fprintln(a.Stdout, name)
	a.note("its module is beside it, as %s; replay it anywhere with: keyfire replay --tape %s", moduleBeside(name), shellQuote(name))
	return nil
}

// replay executes what is on a tape, and says how it went. other is whether a module was chosen by hand.
func (a *app) replay(ctx context.Context, tape *wasm.Tape, binary []byte, here local, other bool) (err error) {
	re := wasm.Replay{Tape: tape, Secret: func(name string) (string, bool) {
		v := lookup(a.Environ, variableOf(name))
		return v, v != ""
	}}
	var missing []string
	for _, name := range tape.NeedsSecrets() {
		if _, ok := re.Secret(name); !ok {
			missing = append(missing, printable(variableOf(name)))
		}
	}
	if len(missing) > 0 {
		return usagef("the attempt knew secrets, whose values are not on the tape; set these environment variables to them: %s", strings.Join(missing, ", "))
	}
	rt, info, done, err := a.compiled(ctx, wasm.Config{
		ScriptEngine: here.scriptEngine, MemoryLimit: max(tape.Limits.Memory, wasm.DefaultMemoryLimit),
		Load: func(context.Context, string, string) ([]byte, error) { return binary, nil },
	}, here.cache, binary)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	if !other && info.Digest != tape.Module {
		return fmt.Errorf("the module has digest %s, and the tape is of %s; to replay another module, name it with --module", info.Digest, tape.Module)
	}
	re.Module = info.Digest
	got, err := rt.Replay(ctx, re)
	if err != nil {
		return err
	}
	then, now := tape.Ended(), "a call that is not on the tape"
	if !got.Ended {
		now = endedNow(&got)
	}
	if got.Err == nil {
		// What the runtime takes for an output may not be one for the run. It was not then, if it is the same.
		if got.Err = engine.CheckOutput(got.Result.Output); got.Err != nil {
			now = got.Err.Error()
			if got.Difference == "" {
				then = now
			}
		}
	}
	if err := a.printReplay(tape, info.Digest, then, now, &got); err != nil {
		return err
	}
	switch same := info.Digest == tape.Module; {
	case got.Ended:
		return core.Errorf(core.CodeReplayIncompatible, "%s", printable(got.Difference))
	case !same && got.Err != nil:
		return nodeError(got.Err)
	case same && got.Difference != "":
		return fmt.Errorf("not identical: %s", printable(got.Difference))
	}
	return nil
}

// variableOf is the environment variable that holds a secret of a tape. The variables that callers of other products send along are of that name too.
func variableOf(secret string) string { return strings.TrimPrefix(secret, "variables.") }

// endedNow says in words how a replay ended.
func endedNow(got *wasm.Replayed) string {
	switch {
	case got.Result.Tape != nil:
		return got.Result.Tape.Ended()
	case got.Err != nil:
		return got.Err.Error()
	}
	return ""
}

func (a *app) printReplay(tape *wasm.Tape, module, then, now string, got *wasm.Replayed) error {
	same := module == tape.Module
	var output bytes.Buffer // without the node's own white space
	if len(got.Result.Output) > 0 && json.Compact(&output, got.Result.Output) != nil {
		return errors.New("the output is not JSON")
	}
	if a.json {
		return a.printJSON(replayed{
			Object: "replay", Run: tape.Run, Step: tape.Step, Attempt: tape.Attempt, Module: module, Recorded: tape.Module,
			Identical: same && got.Difference == "", Difference: got.Difference, Then: then, Now: now, Output: output.Bytes(),
			Fuel: got.Result.Fuel, Log: append([]core.LogLine{}, got.Result.Log...), Secrets: got.Other,
		})
	}
	for _, l := range got.Result.Log {
		fmt.Fprintf(a.Stderr, "%-5s %s\n", l.Level, l.Message)
	}
	verdict := "identical"
	switch {
	case !same:
		verdict = "with another module"
	case got.Difference != "":
		verdict = "not identical"
	}
	a.fields("replayed", verdict, "run", printable(tape.Run), "step", printable(tape.Step)+", attempt "+strconv.Itoa(tape.Attempt), "module", module, "recorded with", otherThan(tape.Module, module),
		"then", printable(then), "now", printable(now), "output", output.String(), "difference", printable(got.Difference), "fuel", strconv.FormatInt(got.Result.Fuel, 10))
	for _, name := range got.Other {
		a.note("%s is another value than the one that was used, so the replay may differ where the node looks at it", printable(variableOf(name)))
	}
	if got.Machine != "" {
		a.note("the tape was made by %s and this is %s; fuel, and the bits of numbers that are none, may differ", printable(tape.Machine), got.Machine)
	}
	if same && tape.Stopped() {
		a.note("it was stopped from outside, as when its time was up; the replay stops at the same instruction, whenever this machine gets there")
	}
	return nil
}

// otherThan is a unless it is b.
func otherThan(a, b string) string {
	if a == b {
		return ""
	}
	return a
}
