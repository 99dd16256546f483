package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyfire/keyfire/plugins"
	"github.com/keyfire/keyfire/sdk/authplugin/scaffold"
	"github.com/keyfire/keyfire/sdk/client"
)

func (a *app) pluginCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "plugin",
		Short: "Write, check and operate auth plugins",
		Long: `Auth plugins are programs that decide who a credential belongs to. A server runs those in the list "auth" of its
config file; plugins/README.md describes it.`,
	}, a.pluginList(), a.pluginShow(), a.pluginLogs(), a.pluginReload(), a.pluginCheck(), a.pluginNew())
}

func (a *app) pluginList() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the server's auth plugins",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return call(a, cmd, func(ctx context.Context, s *remote) (*client.List[client.Plugin], error) {
				return s.Plugins(ctx)
			}, func(l *client.List[client.Plugin]) {
				rows := [][]string{{"NAME", "STATE", "VERSION", "PID", "SINCE", "RESTARTS", "LAST ERROR"}}
				for _, p := range l.Data {
					rows = append(rows, []string{p.Name, p.State, p.Version, pidText(p.PID), timeText(p.Since), strconv.FormatInt(p.Restarts, 10), firstLine(p.LastError)})
				}
				a.table(rows)
			})
		},
	}
}

// firstLine fits an error into a table.
func firstLine(text string) string {
	const most = 60
	line := []rune(printable(text))
	if len(line) > most {
		return string(line[:most]) + "..."
	}
	return string(line)
}

func pidText(pid int) string {
	if pid == 0 {
		return ""
	}
	return strconv.Itoa(pid)
}

func (a *app) pluginShow() *cobra.Command {
	return &cobra.Command{
		Use:   "show NAME",
		Short: "Show one auth plugin",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return call(a, cmd, func(ctx context.Context, s *remote) (*client.Plugin, error) {
				return s.Plugin(ctx, args[0])
			}, a.showPlugin)
		},
	}
}

func (a *app) showPlugin(p *client.Plugin) {
	a.fields("name", p.Name, "state", p.State, "required", yes(p.Required), "path", p.Path, "sha256", p.SHA256, "version", p.Version, "pid", pidText(p.PID),
		"since", timeText(p.Since), "restarts", strconv.FormatInt(p.Restarts, 10), "failures", strconv.Itoa(p.Failures)+" in the last minute",
		"degraded", yes(p.Degraded),
		"in flight", strconv.Itoa(p.InFlight), "last error", printable(p.LastError), "last undecided call", printable(p.LastCallError))
}

func (a *app) pluginLogs() *cobra.Command {
	return &cobra.Command{
		Use:   "logs NAME",
		Short: "Print the newest lines an auth plugin wrote",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return call(a, cmd, func(ctx context.Context, s *remote) (*client.List[client.PluginLogLine], error) {
				return s.PluginLogs(ctx, args[0])
			}, func(l *client.List[client.PluginLogLine]) {
				for _, line := range l.Data {
					fmt.Fprintf(a.Stdout, "%s %d %s\n", line.Time.UTC().Format(time.RFC3339), line.PID, printable(line.Text))
				}
			})
		},
	}
}

func (a *app) pluginReload() *cobra.Command {
	return &cobra.Command{
		Use:   "reload NAME",
		Short: "Have the server read its config file again and replace an auth plugin",
		Long: `Have the server read its config file again and replace an auth plugin: a new executable, a new configuration, or the
same again. The new process is ready before the old one gets no more calls. If it cannot be started, the old one stays
and this command says why.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return call(a, cmd, func(ctx context.Context, s *remote) (*client.Plugin, error) {
				return s.ReloadPlugin(ctx, args[0])
			}, a.showPlugin)
		},
	}
}

func (a *app) pluginCheck() *cobra.Command {
	return &cobra.Command{
		Use:   "check [CONFIG] [NAME...]",
		Short: "Try out the auth plugins of a config file, without a server",
		Long: `Try out the auth plugins of a config file, all or those named: verify each executable, start it, have it judge its
configuration without acting on it, and stop it. The digest of an executable that has none or another one in the file is
printed. CONFIG has a dot or a slash in it; without it, --config or KEYFIRE_CONFIG says which file.`,
		Example: "  keyfire plugin check keyfire.yaml",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 && strings.ContainsAny(args[0], "./") { // which no name has
				if err := cmd.Flags().Set("config", args[0]); err != nil {
					return usageError{err}
				}
				args = args[1:]
			}
			cfg, _, err := loadConfig(a.Environ, cmd.Flags())
			if err != nil {
				return usageError{err}
			}
			configured := pluginsOf(cfg.Auth)
			for _, name := range args {
				if !slices.ContainsFunc(configured, func(p plugins.Plugin) bool { return p.Name == name }) {
					return usagef("the configuration names no auth plugin %q", name)
				}
			}
			if len(configured) == 0 {
				return usagef("the configuration names no auth plugin; give a file with --config or KEYFIRE_CONFIG")
			}
			return a.checkPlugins(cmd.Context(), configured, args)
		},
	}
}

// checked is the result of a check as --json prints it.
type checked struct {
	Object  string   `json:"object"`
	Name    string   `json:"name"`
	OK      bool     `json:"ok"`
	Version string   `json:"version,omitempty"`
	SHA256  string   `json:"sha256,omitempty"`
	StartMS int64    `json:"start_ms,omitempty"`
	Error   string   `json:"error,omitempty"`
	Output  []string `json:"output,omitempty"`
}

func (a *app) checkPlugins(ctx context.Context, configured []plugins.Plugin, names []string) error {
	rows := [][]string{{"NAME", "RESULT", "VERSION", "START", "SHA256"}}
	var all []checked
	var first error
	bad := 0
	for _, p := range configured {
		if len(names) > 0 && !slices.Contains(names, p.Name) {
			continue
		}
		report, err := plugins.Check(ctx, p)
		c := checked{Object: "plugin_check", Name: p.Name, OK: err == nil, Version: report.Version, SHA256: report.SHA256, StartMS: report.Start.Milliseconds()}
		for _, line := range report.Output {
			c.Output = append(c.Output, line.Text)
		}
		result := "ok"
		if err != nil {
			result, c.Error = "bad", err.Error()
			bad++
			first = errors.Join(first, err)
			a.note("%v", err)
			for _, line := range c.Output {
				a.note("%s wrote: %s", p.Name, printable(line))
			}
		}
		all = append(all, c)
		rows = append(rows, []string{p.Name, result, report.Version, report.Start.Round(time.Millisecond).String(), report.SHA256})
	}
	if a.json {
		if err := a.printJSON(map[string]any{"object": "list", "data": all}); err != nil {
			return err
		}
	} else {
		a.table(rows)
	}
	if bad > 0 {
		return &reported{summary: fmt.Sprintf("%d of %d auth plugins would not work", bad, len(all)), first: first}
	}
	return nil
}

func (a *app) pluginNew() *cobra.Command {
	var o scaffold.Options
	var dir string
	cmd := &cobra.Command{
		Use:   "new NAME",
		Short: "Write the files a new auth plugin starts from",
		Long: `Write a Go module with an auth plugin that works, and a test that runs it as a server does. sdk/authplugin/README.md
explains the rest.`,
		Example: "  keyfire plugin new legacy && cd legacy && go mod tidy && go test ./...",
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			o.Name = args[0]
			if err := plugins.CheckName(o.Name); err != nil {
				return usageError{err}
			}
			if dir == "" {
				dir = o.Name
			}
			released := strings.HasPrefix(a.Version, "v")
			o.Version = a.Version
			if !released {
				o.Version = "v0.0.0" // go mod tidy asks for one that exists, unless it is replaced
			}
			if o.Replace != "" {
				abs, err := filepath.Abs(o.Replace)
				if err != nil {
					return usageError{err}
				}
				if _, err := os.Stat(filepath.Join(abs, "sdk", "authplugin", "doc.go")); err != nil {
					return usagef("--replace %s: this is no folder with the source of Keyfire", o.Replace)
				}
				o.Replace = abs
			}
			written, err := scaffold.Write(dir, o)
			if err != nil {
				return usageError{err}
			}
			if a.json {
				return a.printJSON(map[string]any{"object": "list", "data": written})
			}
			for _, path := range written {
				fmt.Fprintln(a.Stdout, path)
			}
			if !released && o.Replace == "" {
				a.note("this is not a released keyfire; name one that is: go get github.com/keyfire/keyfire@latest")
			}
			a.note("next: cd %s && go mod tidy && go test ./...", shellQuote(dir))
			return nil
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "where to write (default: a folder called as the plugin)")
	cmd.Flags().StringVar(&o.Module, "module", "", "path of the Go module (default: keyfire-auth-NAME)")
	cmd.Flags().StringVar(&o.Replace, "replace", "", "a folder with the source of Keyfire to build against instead of a released version")
	return cmd
}
