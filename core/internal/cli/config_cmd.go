package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

func (a *app) configCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Check or print the server's configuration",
		Long: `Settings come from flags, then KEYFIRE_* variables, then the file of --config or KEYFIRE_CONFIG (YAML),
then defaults. A key that is not known is an error wherever it stands.`,
	}
	check := &cobra.Command{
		Use:   "check",
		Short: "Say what is wrong with the configuration, without starting anything",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, _, err := loadConfig(a.Environ, cmd.Flags()); err != nil {
				return usageError{err}
			}
			if a.json {
				return a.printJSON(map[string]any{"object": "config_check", "valid": true})
			}
			a.note("the configuration is valid")
			return nil
		},
	}
	show := &cobra.Command{
		Use:   "print",
		Short: "Print every setting with its meaning, value and where the value comes from",
		Long: `Print every setting with its meaning, its value in force and where that comes from. The output is itself a
config file.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, all, err := loadConfig(a.Environ, cmd.Flags())
			if err != nil {
				return usageError{err}
			}
			if a.json {
				return a.printJSON(map[string]any{"object": "list", "data": settingObjects(all)})
			}
			printConfig(a, all)
			printBackends(a, cfg.Auth)
			return nil
		},
	}
	for _, c := range []*cobra.Command{check, show} {
		a.settingFlags(c)
	}
	return group(cmd, check, show)
}

// settingObject is a setting as `config print --json` shows it.
type settingObject struct {
	Key     string `json:"key"`
	Value   string `json:"value"`
	Source  string `json:"source"`
	Default string `json:"default"`
	Flag    string `json:"flag"`
	Env     string `json:"env"`
	Usage   string `json:"usage"`
}

func settingObjects(all []effective) []settingObject {
	objects := make([]settingObject, len(all))
	for i, e := range all {
		objects[i] = settingObject{e.key, e.shown(), e.source, e.value, "--" + e.flag(), e.variable(), e.usage}
	}
	return objects
}

// printConfig writes the settings as a config file that explains itself.
func printConfig(a *app, all []effective) {
	group := ""
	for _, e := range all {
		indent, name := "", e.key
		if g, rest, ok := strings.Cut(e.key, "."); ok {
			if g != group {
				fmt.Fprintf(a.Stdout, "%s:\n", g)
			}
			group, indent, name = g, "  ", rest
		} else {
			group = ""
		}
		for _, line := range wrap(e.usage, 96) {
			fmt.Fprintf(a.Stdout, "%s# %s\n", indent, line)
		}
		fmt.Fprintf(a.Stdout, "%s# default %q, flag --%s, env %s; this value: %s\n", indent, e.value, e.flag(), e.variable(), e.source)
		fmt.Fprintf(a.Stdout, "%s%s: %s\n\n", indent, name, yamlValue(e))
	}
}

// printBackends says which auth backends there are. Their configuration can hold secrets, so it is not printed.
func printBackends(a *app, all []backend) {
	var labels []string
	for _, b := range all {
		labels = append(labels, b.label())
	}
	for _, line := range wrap("Auth backends, in the order they are asked: a list under the key `auth` of the config file, described in plugins/README.md. "+
		"It is not printed, for it can hold secrets.", 96) {
		fmt.Fprintf(a.Stdout, "# %s\n", line)
	}
	fmt.Fprintf(a.Stdout, "# in force: %s\n", strings.Join(labels, ", "))
}

// yamlValue writes a setting's text so that YAML reads the same text back.
func yamlValue(e effective) string {
	if !e.list {
		return fmt.Sprintf("%q", e.shown())
	}
	var items []string
	for part := range strings.SplitSeq(e.text, ",") {
		if part = strings.TrimSpace(part); part != "" {
			items = append(items, fmt.Sprintf("%q", part))
		}
	}
	return "[" + strings.Join(items, ", ") + "]"
}

// wrap breaks text into lines of at most width characters, at spaces.
func wrap(text string, width int) []string {
	var lines []string
	line := ""
	for word := range strings.FieldsSeq(text) {
		if line != "" && len(line)+1+len(word) > width {
			lines = append(lines, line)
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}
