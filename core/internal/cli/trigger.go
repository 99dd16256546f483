package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/sdk/client"
)

func (a *app) triggerCommand() *cobra.Command {
	var inputs []string
	var request client.TriggerRequest
	var durable durableFlags
	cmd := &cobra.Command{
		Use:   "trigger [WORKFLOW]",
		Short: "Run a workflow and print its output",
		Long: `Run a workflow, wait for its end and print its output. Without a name it is the one workflow that the key in
KEYFIRE_KEY is made for.

-i builds the input:
  -i name=Ada          the member "name", as text
  -i count:=3          the member "count", as JSON
  -i csv=@orders.csv   the member "csv", as the text of a file
  -i items:=@x.json    the member "items", as the JSON of a file
  -i @input.json       the whole input, or members to start from, from a JSON file; @- is standard input
  -i '{"name": "Ada"}' the same as a JSON object

--async returns as soon as the run is accepted, --wait after that time at most. The run is durable then: it goes through the
queue and survives the server. What is printed is its id while it has not ended. A workflow can make that its default (mode: async).
With --run-after or --callback a run is durable too; one for later is not waited for.

The exit status tells a run that failed (10), timed out (11) or was stopped (12) from a trigger that was refused.`,
		Example: `  keyfire trigger greet -i name=Ada
  keyfire trigger csv-report -i csv=@orders.csv
  echo '{"name":"Ada"}' | keyfire trigger greet -i @-`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				extra := args[1]
				if strings.Contains(extra, "=") {
					return usagef("argument %q is one too many; what belongs to the input follows -i: keyfire trigger %s -i %s", extra, shellQuote(args[0]), shellQuote(extra))
				}
				return usagef("argument %q is one too many; write: %s", extra, cmd.UseLine())
			}
			input, err := a.buildInput(inputs)
			if err != nil {
				return usageError{err}
			}
			if input != nil {
				request.Input = input
			}
			if err := durable.add(cmd.Flags(), &request, time.Now()); err != nil {
				return err
			}
			s, err := a.connect(cmd)
			if err != nil {
				return err
			}
			name := ""
			if len(args) == 1 {
				name = args[0]
			}
			run, err := s.Trigger(cmd.Context(), name, request)
			if err != nil {
				return unreachable(err)
			}
			if a.json {
				return a.printBody(run.Raw())
			}
			if run.FinishedAt == nil {
				fmt.Fprintln(a.Stdout, run.ID)
				a.note("%s is %s; follow it with: keyfire runs watch %s", run.ID, run.Status, run.ID)
				return nil
			}
			fmt.Fprintln(a.Stdout, indent(run.Output))
			a.note("%s %s after %s", run.ID, run.Status, orDash(millis(run.DurationMS)))
			return nil
		},
	}
	f := cmd.Flags()
	f.StringArrayVarP(&inputs, "input", "i", nil, "part of the input; see above; may be repeated")
	f.StringToStringVar(&request.Metadata, "metadata", nil, "kept with the run, NAME=VALUE; may be repeated")
	f.BoolVar(&request.Async, "async", false, "do not wait: print the id of the run as soon as it is accepted")
	f.DurationVar(&request.Wait, "wait", 0, "wait no longer than this for the end of the run, such as 10s")
	f.StringVar(&request.IdempotencyKey, "idempotency-key", "", "find the run of an earlier trigger with the same key instead of starting another")
	f.StringVar(&durable.runAfter, "run-after", "", "run it later: in 2h or 7d, or at 2027-01-31T18:00:00Z")
	f.StringVar(&durable.dedupe.Key, "dedupe", "", "what the run is for, of which only one run at a time may not have ended, such as invoice-981")
	f.StringVar(&durable.dedupe.Policy, "dedupe-policy", "", "what becomes of it while there is such a run: use_existing (default), reject or terminate_existing")
	f.StringVar(&durable.callback, "callback", "", "URL that is told how the run ended")
	return cmd
}

// durableFlags are the flags of what a request asks for beyond the connection.
type durableFlags struct {
	runAfter, callback string
	dedupe             client.Dedupe
}

// add adds what was asked for to a request. What the server would judge by the workflow is left to it.
func (d *durableFlags) add(f *pflag.FlagSet, r *client.TriggerRequest, now time.Time) error {
	switch {
	case f.Changed("wait") && r.Async:
		return usagef("--async and --wait: give one of them")
	case f.Changed("wait") && r.Wait <= 0:
		return usagef("--wait %s: want more than 0s; --async does not wait", r.Wait)
	case d.dedupe.Key == "" && d.dedupe.Policy != "":
		return usagef("--dedupe-policy: say with --dedupe what the run is for")
	}
	if f.Changed("run-after") {
		at, err := time.Parse(time.RFC3339, d.runAfter)
		if in, ierr := core.ParseSpan(d.runAfter); ierr == nil && in > 0 {
			at, err = now.Add(in).UTC(), nil
		}
		if err != nil {
			return usagef("--run-after %s: want a time from now such as 2h, or one such as 2027-01-31T18:00:00Z", d.runAfter)
		}
		r.RunAfter = &at
	}
	if f.Changed("dedupe") {
		r.Dedupe = &d.dedupe
	}
	if f.Changed("callback") {
		r.Callback = &client.CallbackTo{URL: d.callback}
	}
	return nil
}

// wholeObject reports whether a value of -i is a JSON object. No member's name can be meant by one, though there may be a = in it.
func wholeObject(part string) bool {
	return strings.HasPrefix(part, "{") && utf8.ValidString(part) && json.Valid([]byte(part))
}

// buildInput makes the input from the values of -i; nil when there are none. A whole input that nothing is added to is passed on as
// it is, so that the server judges the file itself.
func (a *app) buildInput(parts []string) (json.RawMessage, error) {
	if len(parts) == 0 {
		return nil, nil
	}
	if path, ok := strings.CutPrefix(parts[0], "@"); ok && len(parts) == 1 {
		return a.readJSON(path)
	}
	if len(parts) == 1 && wholeObject(parts[0]) {
		return json.RawMessage(parts[0]), nil
	}
	members, given := map[string]json.RawMessage{}, map[string]bool{}
	for _, part := range parts {
		path, file := strings.CutPrefix(part, "@")
		if file || wholeObject(part) {
			raw := json.RawMessage(part)
			if file {
				var err error
				if raw, err = a.readJSON(path); err != nil {
					return nil, err
				}
			}
			if err := json.Unmarshal(raw, &members); err != nil || members == nil {
				return nil, fmt.Errorf("-i %s: want a JSON object when there are other members", part)
			}
			continue
		}
		name, value, ok := strings.Cut(part, "=")
		if !ok || name == "" {
			return nil, fmt.Errorf("-i %s: want name=text, name:=json, name=@file or @file.json, or a JSON object", part)
		}
		path, file = strings.CutPrefix(value, "@")
		bare, isJSON := strings.CutSuffix(name, ":")
		var raw json.RawMessage
		var err error
		switch {
		case isJSON && file:
			raw, err = a.readJSON(path)
		case isJSON:
			raw, err = checkJSON(value, []byte(value))
		case file:
			var text []byte
			if text, err = a.readFile(path); err == nil {
				raw, err = textJSON(string(text))
			}
		default:
			raw, err = textJSON(value)
		}
		if err != nil {
			return nil, fmt.Errorf("-i %s: %w", name, err)
		}
		if given[bare] {
			return nil, fmt.Errorf("-i %s: this member is given twice; give it once", bare)
		}
		members[bare], given[bare] = raw, true
	}
	return json.Marshal(members)
}

// textJSON makes a JSON string of a text. JSON is UTF-8, and what is not would become other characters without a word.
func textJSON(text string) (json.RawMessage, error) {
	if !utf8.ValidString(text) {
		return nil, errors.New("the text is not UTF-8; convert it first, or send bytes as base64")
	}
	return json.Marshal(text)
}

func (a *app) readFile(path string) ([]byte, error) {
	if path == "-" {
		return io.ReadAll(a.Stdin)
	}
	return os.ReadFile(path)
}

// readModule reads a module or a script; what comes from standard input has no name that tells.
func (a *app) readModule(path string) ([]byte, error) {
	b, err := a.readFile(path)
	if err == nil && path != "-" {
		err = checkModuleFile(path, b)
	}
	return b, err
}

func (a *app) readJSON(path string) (json.RawMessage, error) {
	raw, err := a.readFile(path)
	if err != nil {
		return nil, err
	}
	return checkJSON(path, raw)
}

func checkJSON(what string, raw []byte) (json.RawMessage, error) {
	var v json.RawMessage
	err := json.Unmarshal(raw, &v)
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		return nil, fmt.Errorf("%s is not JSON: at byte %d: %w", what, syntax.Offset, err)
	}
	return v, err
}
