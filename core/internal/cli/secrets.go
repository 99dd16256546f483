package cli

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keyfire/keyfire/sdk/client"
)

func (a *app) secretsCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "secrets",
		Short: "Set, list and delete the secrets that nodes are granted",
	}, a.secretsSet(), a.secretsList(), a.secretsDelete("delete NAME", false), a.secretsDelete("rm NAME", true))
}

// maxSecretInput is what is read of standard input: one byte more than any value may have, and a line break.
const maxSecretInput = 16<<10 + 3

func (a *app) secretsSet() *cobra.Command {
	return &cobra.Command{
		Use:   "set NAME",
		Short: "Set a secret to what standard input holds",
		Long: `Set a secret to what standard input holds, without the line break at its end. The value is never an argument, where other users of the
machine and the shell's history would see it. A node reads it when its workflow says grants: {secrets: [NAME]}.`,
		Example: `  keyfire secrets set CRM_TOKEN < token.txt
  pass show crm/token | keyfire secrets set CRM_TOKEN`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if isTerminal(a.Stderr) {
				a.note("reading the value from standard input; end it with Ctrl-D")
			}
			raw, err := io.ReadAll(io.LimitReader(a.Stdin, maxSecretInput))
			if err != nil {
				return fmt.Errorf("read the value: %w", err)
			}
			value := strings.TrimSuffix(strings.TrimSuffix(string(raw), "\n"), "\r")
			if value == "" {
				return usagef("standard input is empty; write for example: keyfire secrets set %s < file", args[0])
			}
			return call(a, cmd, func(ctx context.Context, s *remote) (*client.Secret, error) {
				return s.SetSecret(ctx, args[0], value)
			}, func(s *client.Secret) {
				fmt.Fprintf(a.Stdout, "set %s\n", s.Name)
			})
		},
	}
}

func (a *app) secretsList() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List secrets by name, without their values",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return call(a, cmd, func(ctx context.Context, s *remote) (*client.List[client.Secret], error) {
				return s.Secrets(ctx)
			}, func(l *client.List[client.Secret]) {
				rows := [][]string{{"NAME", "SET", "BY", "CREATED"}}
				for _, s := range l.Data {
					rows = append(rows, []string{s.Name, timeText(&s.UpdatedAt), s.UpdatedBy, timeText(&s.CreatedAt)})
				}
				a.table(rows)
			})
		},
	}
}

// secretsDelete is the command delete, as for everything else that can go, and, for scripts that have it, rm, which is not shown any more.
func (a *app) secretsDelete(use string, old bool) *cobra.Command {
	return &cobra.Command{
		Use:    use,
		Short:  "Delete a secret; nodes that are granted it cannot read it any more",
		Args:   cobra.ExactArgs(1),
		Hidden: old,
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.connect(cmd)
			if err != nil {
				return err
			}
			if _, err := s.DeleteSecret(cmd.Context(), args[0]); err != nil {
				return unreachable(err)
			}
			return a.printGone("deleted", "secret", args[0])
		},
	}
}
