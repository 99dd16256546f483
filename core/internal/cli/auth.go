package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keyfire/keyfire/sdk/client"
)

func (a *app) authCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "auth",
		Short: "Ask why a request was refused, or whether one would be",
	}, a.authExplain(), a.authCheck())
}

func (a *app) authExplain() *cobra.Command {
	return &cobra.Command{
		Use:     "explain REQUEST_ID",
		Short:   "Show which check a refused request failed",
		Long:    "Show the checks that a request went through, and the one that it failed. Its id is in the answer, as request_id and as the header\nKeyfire-Request-Id.",
		Example: "  keyfire auth explain req_01jd3v6q8k2m4n5p7r9s1t3v5w",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return call(a, cmd, func(ctx context.Context, s *remote) (*client.AuthVerdict, error) { return s.ExplainAuth(ctx, args[0]) }, a.showVerdict)
		},
	}
}

func (a *app) authCheck() *cobra.Command {
	var q client.AuthCheck
	var fromEnv string
	cmd := &cobra.Command{
		Use:   "check [--key-env NAME]",
		Short: "Judge a key and a workflow without starting or charging anything",
		Long: `Judge a key and a workflow as a trigger would. The key is read from the environment variable that --key-env names, because a command
line can be seen by others; without it, it is the credential that this command itself uses.`,
		Example: "  CALLER=kft_... keyfire auth check --key-env CALLER --workflow greet --from 203.0.113.7",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if fromEnv != "" {
				key := strings.TrimSpace(lookup(a.Environ, fromEnv))
				if q.Key = &key; key == "" {
					return usagef("--key-env %s: there is no such variable in the environment, or it is empty", fromEnv)
				}
			}
			return call(a, cmd, func(ctx context.Context, s *remote) (*client.AuthResult, error) { return s.CheckAuth(ctx, q) }, func(r *client.AuthResult) {
				fmt.Fprintln(a.Stdout, r.Code)
				if r.Verdict != nil {
					a.showVerdict(r.Verdict)
				}
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&fromEnv, "key-env", "", "environment variable that holds the key to ask about")
	f.StringVar(&q.Workflow, "workflow", "", "the workflow, by name or id (default: the one that the key is made for)")
	f.StringVar(&q.Place, "place", "", "where the key would be sent: bearer, x-api-key, x-bifrost-key or query")
	f.StringVar(&q.SourceIP, "from", "", "address that the request would come from")
	f.StringVar(&q.Origin, "origin", "", "origin of the web page that would send it")
	return cmd
}

// showVerdict prints a verdict check by check.
func (a *app) showVerdict(v *client.AuthVerdict) {
	a.fields("request", v.RequestID, "at", timeText(&v.Time), "from", v.SourceIP, "by", printable(v.UserAgent), "principal", v.Principal, "key", v.KeyID,
		"workflow", printable(v.Workflow), "refused", v.Code, "told", printable(v.Message))
	rows := [][]string{{"CHECK", "OUTCOME", "DETAIL"}}
	for _, c := range v.Chain {
		detail := []string{}
		if c.Detail != "" {
			detail = append(detail, printable(c.Detail))
		}
		for _, b := range c.Backends {
			text := b.Backend + ": " + b.Verdict
			if b.Code != "" {
				text += " (" + b.Code + ")"
			}
			detail = append(detail, text)
		}
		for _, l := range c.Limits {
			text := fmt.Sprintf("%s: %d of %d left", l.Name, l.Remaining, l.Limit)
			if l.Per != "" {
				text += " per " + l.Per
			}
			if l.ResetMS > 0 {
				text += fmt.Sprintf(", more in %.1f s", float64(l.ResetMS)/1000)
			}
			detail = append(detail, text)
		}
		rows = append(rows, []string{c.Check, strings.ReplaceAll(c.Outcome, "_", " "), strings.Join(detail, "; ")})
	}
	fmt.Fprintln(a.Stdout)
	a.table(rows)
}
