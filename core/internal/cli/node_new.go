package cli

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keyfire/keyfire/runtime/wasm"
)

// Go files end in .txt here, so that they are no part of this module.
//
//go:embed templates
var templates embed.FS

var nodeName = regexp.MustCompile(`^[a-z][a-z0-9-]{0,62}$`)

func (a *app) nodeNew() *cobra.Command {
	var lang string
	cmd := &cobra.Command{
		Use:   "new NAME",
		Short: "Begin a node: a directory with a source that works, and its test",
		Long: `Make a directory with the source of a small node that works, an input and the output it must give, and a Makefile whose target "test" builds the
node, runs it with keyfire node run and compares. Languages: ` + strings.Join(languages(), ", ") + `.`,
		Example: `  keyfire node new --lang go greet && make -C greet test`,
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			name := filepath.Base(args[0])
			if !nodeName.MatchString(name) {
				such := strings.NewReplacer("_", "-", ".", "-", " ", "-").Replace(strings.ToLower(name))
				if !nodeName.MatchString(such) {
					such = "lead-score"
				}
				return usagef("%q cannot be a node's name, which has lower-case letters, digits and hyphens and begins with a letter, such as %s", name, such)
			}
			if lang == "js" {
				lang = "javascript"
			}
			from, err := fs.Sub(templates, "templates/"+lang)
			if err == nil {
				_, err = fs.Stat(from, ".")
			}
			if err != nil || lang == "" {
				return usagef("--lang is one of %s", strings.Join(languages(), ", "))
			}
			if err := os.Mkdir(args[0], 0o777); err != nil { //nolint:gosec // source code, which other people may read
				if errors.Is(err, fs.ErrExist) {
					return fmt.Errorf("%s exists already; choose another name or remove it", args[0])
				}
				return err
			}
			files, err := fs.ReadDir(from, ".")
			if err != nil {
				return err
			}
			written := make([]string, 0, len(files))
			for _, f := range files {
				b, err := fs.ReadFile(from, f.Name())
				if err != nil {
					return err
				}
				text := strings.NewReplacer("NAME", name, "ENGINE", wasm.ScriptEnginePackage, "VERSION", wasm.ScriptEngineVersion).Replace(string(b))
				path := filepath.Join(args[0], strings.TrimSuffix(f.Name(), ".txt"))
				if err := os.WriteFile(path, []byte(text), 0o666); err != nil { //nolint:gosec // source code, which other people may read
					return err
				}
				written = append(written, path)
			}
			if a.json {
				return a.printJSON(map[string]any{"object": "list", "data": written})
			}
			fmt.Fprintln(a.Stdout, strings.Join(written, "\n"))
			a.note("build and test it with: make -C %s test", shellQuote(args[0]))
			return nil
		},
	}
	cmd.Flags().StringVar(&lang, "lang", "", "the language: "+strings.Join(languages(), ", ")+" (required)")
	return cmd
}

func languages() []string { return []string{"go", "rust", "c", "assemblyscript", "javascript"} }
