package cli

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/runtime/wasm"
	"github.com/keyfire/keyfire/sdk/client"
)

// Env is what a process is given. Main uses nothing else of it, so that tests can run commands side by side.
type Env struct {
	Args    []string // without the program's name
	Environ []string // "NAME=value"
	Stdin   io.Reader
	Stdout  io.Writer
	Stderr  io.Writer
	Version string // stamped at build time; "" is what the build recorded of itself

	// CompileHere makes the server compile modules in its own process, without the bounds that a process of their own gives. It is for tests
	// under the race detector, which makes the compiler slower than those bounds allow.
	CompileHere bool
}

// app is one execution of the program.
type app struct {
	Env
	json    bool // --json
	started bool // the command line was understood and its command runs
}

// Main runs the command that env.Args name and returns the exit status. It returns when the command is done or soon after ctx is.
func Main(ctx context.Context, env Env) int {
	if len(env.Args) == 1 && env.Args[0] == compileCommandName {
		return wasm.CompileChild(env.Stdin, env.Stdout)
	}
	out := &output{to: env.Stdout}
	a := &app{Env: env}
	a.Stdout = out
	if a.Version == "" {
		a.Version = recordedVersion()
	}
	root := a.root()
	root.SetArgs(a.Args)
	root.SetIn(a.Stdin)
	root.SetOut(a.Stdout)
	root.SetErr(a.Stderr)
	cmd, err := root.ExecuteContextC(ctx)
	status := a.report(cmd, err)
	if lost := out.failure(); lost != nil && status == exitOK {
		a.note("the result could not be written to standard output: %v", lost)
		return exitFailed
	}
	return status
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "keyfire",
		Short: "Run workflows behind API keys",
		Long: `Keyfire puts workflows behind API keys: a caller POSTs to a trigger, Keyfire checks the key, runs the
workflow's nodes as sandboxed WebAssembly, and answers with the result.

Commands other than serve talk to a server: through the socket in its data directory on the same machine,
where no key is needed, or to KEYFIRE_URL with the admin key in KEYFIRE_KEY, or as the user who
has run keyfire login.`,
		Example: `  keyfire serve
  keyfire apply examples/workflows/greet
  keyfire keys create --name ci --workflow greet --max-runs 100 --expires 30d
  keyfire trigger greet -i name=Ada`,
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRunE: func(cmd *cobra.Command, args []string) error {
			a.started = true
			if i := slices.Index(args, ""); i >= 0 && cmd.Name() != cobra.ShellCompRequestCmd && cmd.Name() != cobra.ShellCompNoDescRequestCmd {
				return usagef("argument %d is empty; write: %s", i+1, cmd.UseLine())
			}
			return nil
		},
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	flags := root.PersistentFlags()
	flags.BoolVar(&a.json, "json", false, "print the API's own objects")
	flags.String("config", "", "path of the config file (env KEYFIRE_CONFIG)")
	flags.String("url", "", "a server elsewhere, such as https://keyfire.example.com (env KEYFIRE_URL; the key goes into KEYFIRE_KEY)")
	flags.String("account", "", "the account to log in to, or for a superuser to act for, by name or id (env KEYFIRE_ACCOUNT)")
	for _, s := range settings(a.Environ) {
		if s.key == "data" {
			flags.String(s.flag(), s.value, flagUsage(s))
		}
	}
	root.SetHelpCommand(a.helpCommand())
	return group(root,
		a.serveCommand(), a.configCommand(), a.applyCommand(), a.schemaCommand(), a.keysCommand(), a.authCommand(), a.secretsCommand(), a.nodeCommand(), a.replayCommand(), a.moduleCommand(), a.engineCommand(), a.workflowsCommand(),
		a.triggerCommand(), a.runsCommand(), a.auditCommand(), a.adminCommand(), a.pluginCommand(), a.versionCommand(), a.completionCommand(),
		a.accountsCommand(), a.usersCommand(), a.loginCommand(), a.logoutCommand(), a.whoAmICommand(), a.setupCommand(),
	)
}

// helpCommand prints the help of a command. cobra's own prints that of the program for a command that there is not, and calls it success.
func (a *app) helpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND...]",
		Short: "Help about any command",
		RunE: func(cmd *cobra.Command, args []string) error {
			found, rest, err := cmd.Root().Find(args)
			if err != nil {
				return usageError{err}
			}
			if len(rest) > 0 {
				return usagef("%s has no command %q%s", found.CommandPath(), rest[0], suggest(rest[0], commandNames(found)))
			}
			return found.Help()
		},
	}
}

func commandNames(cmd *cobra.Command) []string {
	var names []string
	for _, c := range cmd.Commands() {
		if !c.Hidden {
			names = append(names, c.Name())
		}
	}
	return names
}

// group makes cmd a command that only holds others. On its own it prints its help, and a word that is none of its commands is an
// error: cobra by itself would print the help for that too and call it success.
func group(cmd *cobra.Command, commands ...*cobra.Command) *cobra.Command {
	cmd.AddCommand(commands...)
	cmd.Args = cobra.ArbitraryArgs
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return cmd.Help()
		}
		return usagef("%s has no command %q%s", cmd.CommandPath(), args[0], suggest(args[0], commandNames(cmd)))
	}
	return cmd
}

// settingFlags gives cmd a flag for every setting but those all commands have.
func (a *app) settingFlags(cmd *cobra.Command) {
	for _, s := range settings(a.Environ) {
		switch {
		case s.list:
			cmd.Flags().Var(&listFlag{text: s.value}, s.flag(), flagUsage(s)+"; may be repeated")
		case s.key != "data":
			cmd.Flags().String(s.flag(), s.value, flagUsage(s))
		}
	}
}

// flagUsage is the first sentence of a setting's documentation; `config print` has the rest.
func flagUsage(s setting) string {
	first, _, _ := strings.Cut(s.usage+" ", ". ")
	return first + " (env " + s.variable() + ")"
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if a.json {
				return a.printJSON(map[string]string{
					"object": "version", "version": a.Version, "go": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH,
				})
			}
			fmt.Fprintf(a.Stdout, "keyfire %s %s %s/%s\n", a.Version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return nil
		},
	}
}

// recordedVersion is the module version for a binary made by "go install ...@version", and says so when it is not a release.
func recordedVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

func (a *app) completionCommand() *cobra.Command {
	return &cobra.Command{
		Use:       "completion bash|zsh|fish|powershell",
		Short:     "Print a completion script for a shell",
		Example:   "  source <(keyfire completion bash)",
		ValidArgs: []string{"bash", "zsh", "fish", "powershell"},
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		RunE: func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(a.Stdout, true)
			case "zsh":
				return root.GenZshCompletion(a.Stdout)
			case "fish":
				return root.GenFishCompletion(a.Stdout, true)
			}
			return root.GenPowerShellCompletionWithDesc(a.Stdout)
		},
	}
}

// printJSON prints v indented, for commands whose result is not an object of the API.
func (a *app) printJSON(v any) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return err
	}
	return a.printBody(b.Bytes())
}

// printGone tells that something is not there any more, of which the API has no object.
func (a *app) printGone(what, object, ref string) error {
	if a.json {
		return a.printJSON(map[string]any{"object": object, "ref": ref, "deleted": true})
	}
	_, err := fmt.Fprintf(a.Stdout, "%s %s\n", what, ref)
	return err
}

// note tells the user something that is not the result.
func (a *app) note(format string, args ...any) {
	fmt.Fprintf(a.Stderr, "keyfire: "+format+"\n", args...)
}

// usageError is a command line or configuration that cannot be carried out.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// report prints the error of cmd and returns the exit status for it.
func (a *app) report(cmd *cobra.Command, err error) int {
	if err == nil {
		return exitOK
	}
	if !a.started { // cobra refused the command line
		err = usageError{misused(cmd, err)}
	}
	var usage usageError
	if errors.As(err, &usage) {
		for line := range strings.Lines(err.Error()) {
			a.note("%s", strings.TrimRight(line, "\n"))
		}
		if !a.started {
			a.note("see %s --help", cmd.CommandPath())
		}
		return exitUsage
	}
	var said *reported
	if errors.As(err, &said) {
		a.note("%v", said.summary)
		return exitCode(err)
	}
	a.printError(err)
	a.hint(cmd, err)
	return exitCode(err)
}

// hint says what to do about an object that was not found because people name it and the API does not, and about a credential that is missing.
func (a *app) hint(cmd *cobra.Command, err error) {
	var answer *client.Error
	if errors.As(err, &answer) && answer.Code == string(core.CodeUnauthenticated) {
		a.note("put a key into %s, or log in with keyfire login", envKey)
	}
	if answer != nil && answer.Code == string(core.CodeWorkflowRequired) {
		a.note("write: %s; keyfire workflows list shows the names", strings.ReplaceAll(cmd.UseLine(), "[WORKFLOW]", "WORKFLOW"))
	}
	if answer != nil && answer.Code == "" && exitCode(err) == exitUnavailable && cmd.Name() == "trigger" {
		a.note("keyfire runs list shows whether the run was started; --async does not wait for it, and with --idempotency-key the same command finds it")
	}
	if exitCode(err) == exitNotFound && cmd.Flags().NArg() > 0 && strings.Contains(cmd.Use, "WORKFLOW") {
		if name, _, versioned := strings.Cut(cmd.Flags().Arg(0), "@"); versioned {
			a.note("keyfire workflows list shows those that there are, and keyfire workflows versions %s the versions", shellQuote(name))
		} else {
			a.note("keyfire workflows list shows those that there are")
		}
	}
	if exitCode(err) == exitNotFound && cmd.Flags().NArg() == 1 {
		for noun, prefix := range map[string]string{"KEY_ID": core.PrefixKey, "RUN_ID": core.PrefixRun} {
			if strings.HasSuffix(cmd.Use, " "+noun) && !strings.HasPrefix(cmd.Flags().Arg(0), prefix) {
				a.note("give its id, which begins with %s; %s list shows it", prefix, cmd.Parent().CommandPath())
			}
		}
	}
}

// reported is an error whose parts were printed already; summary is what is left to say.
type reported struct {
	summary string
	first   error // decides the exit status
}

func (e *reported) Error() string { return e.summary }
func (e *reported) Unwrap() error { return e.first }

// printError prints what went wrong, where in a file, and which ids to ask about. With --json the API's own problem goes to
// standard output, where a script looks for the command's result.
func (a *app) printError(err error) {
	var answer *client.Error
	var local *core.Error
	switch {
	case errors.As(err, &answer):
		if a.json && answer.Code != "" {
			_ = a.printBody(answer.Response.Body) // what cannot be written is noticed at the end
		}
		a.printProblem(answer)
	case errors.As(err, &local) && (local.Err == nil || len(local.Fields) > 0):
		a.printFields(local.Message, fieldErrors(local.Fields))
	default:
		a.note("%v", err)
	}
}

func (a *app) printProblem(e *client.Error) {
	text := e.Detail
	if text == "" {
		text = e.Title
	}
	if e.Run != nil && e.Run.Message != "" {
		text = e.Run.Message
		if step := cmp.Or(e.FailedStep, e.Run.Step); step != "" && !strings.HasPrefix(text, "node "+step+": ") {
			text = "step " + step + ": " + text
		}
	}
	if text = printable(text); e.Code != "" {
		text += " (" + e.Code + ")"
	} else {
		text = fmt.Sprintf("the answer is not one of Keyfire: %d %s; %s", e.Status, text, foreign(e.Status))
	}
	a.printFields(text, e.Errors)
	switch {
	case e.RunID != "":
		a.note("see keyfire runs show %s", e.RunID)
	case e.Status >= 500 && e.RequestID != "":
		a.note("the server's log has more under %s", e.RequestID)
	}
}

// foreign says what an answer means that is not one of Keyfire. Some only a proxy gives that knows the server well.
func foreign(status int) string {
	switch status {
	case http.StatusRequestEntityTooLarge:
		return "a proxy before it takes no more, and its limit can be raised (client_max_body_size in nginx)"
	case http.StatusBadGateway, http.StatusGatewayTimeout:
		return "a proxy before it got none, or not in its time; what was asked for may be done all the same"
	case http.StatusServiceUnavailable:
		return "a proxy before it reaches no server"
	}
	return "is the address right?"
}

// printFields prints a message and the places it is about. Places in a file stand alone, as a compiler's messages do.
func (a *app) printFields(text string, fields []client.FieldError) {
	if len(fields) == 0 || fields[0].Line == 0 {
		a.note("%s", text)
	}
	for _, f := range fields {
		if f.Line == 0 && len(fields) == 1 && strings.Contains(text, f.Detail) {
			continue // said already
		}
		if f.Line == 0 {
			a.note("  %s: %s", f.Place(), printable(f.Detail))
			continue
		}
		a.note("%s:%d:%d: %s", f.File, f.Line, f.Column, printable(f.Detail))
		for line := range strings.Lines(f.Excerpt) {
			fmt.Fprintf(a.Stderr, "    %s\n", printable(strings.TrimRight(line, "\n")))
		}
	}
}

func fieldErrors(fields []core.Field) []client.FieldError {
	out := make([]client.FieldError, len(fields))
	for i, f := range fields {
		out[i] = client.FieldError{Pointer: f.Pointer, Detail: f.Detail, File: f.File, Line: f.Line, Column: f.Column, Excerpt: f.Excerpt}
	}
	return out
}

// printable makes text from elsewhere safe for a terminal: control characters, which could move the cursor or retitle the
// window, are shown as escapes.
func printable(text string) string {
	if !strings.ContainsFunc(text, func(r rune) bool { return unicode.IsControl(r) && r != '\t' }) {
		return text
	}
	var b strings.Builder
	for _, r := range text {
		if unicode.IsControl(r) && r != '\t' {
			fmt.Fprintf(&b, "\\x%02x", r)
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

// printableJSON is printable for JSON, which stays what it is: in a text of JSON, control characters other than those between its values can be written as escapes. Callers choose
// what is in the input of a run, and some terminals obey U+009B as they obey ESC [.
func printableJSON(text string) string {
	control := func(r rune) bool { return r >= 0x7f && unicode.IsControl(r) } // no others are in JSON
	if !strings.ContainsFunc(text, control) {
		return text
	}
	var b strings.Builder
	for _, r := range text {
		if control(r) {
			fmt.Fprintf(&b, "\\u%04x", r)
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}
