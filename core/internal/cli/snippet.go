package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

func (a *app) workflowsSnippet() *cobra.Command {
	var name, base string
	cmd := &cobra.Command{
		Use:   "snippet WORKFLOW",
		Short: "Print code that runs a workflow, with its own input names",
		Long: `Print code that runs a workflow, with its own input names: for curl, python, javascript or go, or as the clients of keyflow, miiflow,
langflow or bifrost send it. It reads the key from the environment variable KEYFIRE_KEY.`,
		Example: "  keyfire workflows snippet greet --client python > greet.py",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.connect(cmd)
			if err != nil {
				return err
			}
			if base == "" {
				base = s.url
			}
			snippets, err := s.Snippets(cmd.Context(), args[0], name, base)
			if err != nil {
				return unreachable(err)
			}
			if a.json {
				return a.printBody(snippets.Raw())
			}
			fmt.Fprint(a.Stdout, snippets.Code)
			return nil
		},
	}
	cmd.Flags().StringVar(&name, "client", "curl", "curl, python, javascript, go, keyflow, miiflow, langflow or bifrost")
	cmd.Flags().StringVar(&base, "base", "", "where callers reach the server (default: where it listens)")
	return cmd
}

// showSnippet prints a request for a new key on standard error, ready to be pasted: with the names of the workflow's input, and in several languages for a person. A script that
// takes the key from standard output calls it KEY. It returns false when the names cannot be had.
func (a *app) showSnippet(ctx context.Context, s *remote, workflow, base string, person bool) bool {
	snippets, err := s.Snippets(ctx, workflow, "", base)
	if err != nil {
		return false
	}
	for _, c := range snippets.Data {
		if !person {
			if c.Client == "curl" {
				a.note("use it with:\n%s", strings.ReplaceAll(strings.TrimRight(c.Code, "\n"), "$KEYFIRE_KEY", "$KEY"))
			}
			continue
		}
		if c.Client == "curl" || c.Client == "python" || c.Client == "javascript" {
			a.note("with %s:\n%s", c.Client, c.Code)
		}
	}
	return len(snippets.Data) > 0
}
