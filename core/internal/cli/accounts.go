package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keyfire/keyfire/sdk/client"
)

func (a *app) accountsCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "accounts",
		Short: "Create, list, disable and delete accounts; for superusers",
		Long: `Accounts own everything: keys, workflows, runs, secrets, users. None of it is seen from another account. A superuser, which everybody on the server's own machine is who may
use its socket, manages accounts and acts for one with --account.`,
	}, a.accountsCreate(), a.accountsList(), a.accountsShow(), a.accountsUpdate(),
		a.accountsSwitch("disable", "Refuse every key, session and other credential of an account from the next request on",
			func(ctx context.Context, s *remote, ref string, end *endFlags) (*client.Account, error) {
				return s.DisableAccount(ctx, ref, end.reason, end.also()...)
			}),
		a.accountsSwitch("enable", "Let an account be used again", func(ctx context.Context, s *remote, ref string, end *endFlags) (*client.Account, error) {
			return s.EnableAccount(ctx, ref, end.reason)
		}),
		a.accountsDelete(), a.rotateSigningKey())
}

func (a *app) accountsCreate() *cobra.Command {
	var title string
	cmd := &cobra.Command{
		Use:     "create NAME",
		Short:   "Create an account",
		Example: "  keyfire accounts create acme\n  keyfire users create ada --role owner --account acme",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return call(a, cmd, func(ctx context.Context, s *remote) (*client.Account, error) {
				return s.CreateAccount(ctx, args[0], title)
			}, func(acc *client.Account) {
				fmt.Fprintln(a.Stdout, acc.ID)
				a.note("%s is the account %s; act for it with --account %s", acc.ID, acc.Name, acc.Name)
			})
		},
	}
	cmd.Flags().StringVar(&title, "title", "", "the account's name for showing")
	return cmd
}

func (a *app) accountsList() *cobra.Command {
	var page client.Page
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the server's accounts, newest first",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return call(a, cmd, func(ctx context.Context, s *remote) (*client.List[client.Account], error) {
				return s.Accounts(ctx, page)
			}, tableOf(a, []string{"NAME", "STATE", "ID", "CREATED", "TITLE"}, func(acc *client.Account) []string {
				return []string{acc.Name, acc.State, acc.ID, timeText(&acc.CreatedAt), printable(acc.Title)}
			}))
		},
	}
	pageFlags(cmd, &page)
	return cmd
}

func (a *app) showAccount(acc *client.Account) {
	a.fields("name", acc.Name, "id", acc.ID, "title", printable(acc.Title), "state", acc.State, "created", strings.TrimSpace(timeText(&acc.CreatedAt)+" by "+acc.CreatedBy),
		"rate limits", ratesText(acc.RateLimits), "runs at once", atOnceText(acc.MaxConcurrentRuns),
		"disabled", timeText(acc.DisabledAt), "disabled by", acc.DisabledBy, "reason", printable(acc.DisabledReason))
}

func (a *app) accountsShow() *cobra.Command {
	return &cobra.Command{
		Use:   "show ACCOUNT",
		Short: "Show an account, named by name or id",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return call(a, cmd, func(ctx context.Context, s *remote) (*client.Account, error) { return s.Account(ctx, args[0]) }, a.showAccount)
		},
	}
}

func (a *app) accountsUpdate() *cobra.Command {
	var title string
	var rates, none []string
	var atOnce int64
	cmd := &cobra.Command{
		Use:   "update ACCOUNT",
		Short: "Change an account's title and the limits of all its runs together; what is not said stays",
		Long: `Change an account. What no flag names stays. The limits hold for all runs of the account together, whoever starts them, beside the
limits of each key. --rate replaces the limits there are, and --no takes a limit away:
  keyfire accounts update acme --no rate`,
		Example: "  keyfire accounts update acme --rate 100/1s --rate daily=50000/24h --max-concurrent 50",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f := cmd.Flags()
			change := client.AccountChange{}
			if f.Changed("title") {
				change["title"] = title
			}
			if f.Changed("rate") {
				limits, err := parseRates(rates)
				if err != nil {
					return err
				}
				change["rate_limits"] = limits
			}
			if f.Changed("max-concurrent") {
				if atOnce < 1 {
					return usagef("--max-concurrent must be at least 1; --no max-concurrent takes the limit away")
				}
				change["max_concurrent_runs"] = atOnce
			}
			for _, name := range none {
				if name != "rate" && name != "max-concurrent" {
					return usagef("--no %s: want rate or max-concurrent", name)
				}
				member, empty, _ := noLimit(name)
				if _, twice := change[member]; twice {
					return usagef("--no %s takes away what --%s sets; give one of them", name, name)
				}
				change[member] = empty
			}
			if len(change) == 0 {
				return usagef("say what shall change, such as --rate 100/1s")
			}
			return call(a, cmd, func(ctx context.Context, s *remote) (*client.Account, error) {
				return s.UpdateAccount(ctx, args[0], change)
			},
				func(acc *client.Account) { fmt.Fprintf(a.Stdout, "updated %s\n", acc.Name) })
		},
	}
	f := cmd.Flags()
	f.StringVar(&title, "title", "", "the account's name for showing")
	f.StringArrayVar(&rates, "rate", nil, "a rate limit of all runs together, such as 100/1s or daily=50000/24h; may be repeated")
	f.Int64Var(&atOnce, "max-concurrent", 0, "how many runs of the account may be under way at once")
	f.StringArrayVar(&none, "no", nil, "a limit to take away, rate or max-concurrent; may be repeated")
	return cmd
}

func (a *app) accountsSwitch(verb, short string, do func(ctx context.Context, s *remote, ref string, end *endFlags) (*client.Account, error)) *cobra.Command {
	var end endFlags
	cmd := &cobra.Command{
		Use:   verb + " ACCOUNT",
		Short: short,
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return call(a, cmd, func(ctx context.Context, s *remote) (*client.Account, error) {
				return do(ctx, s, args[0], &end)
			}, func(acc *client.Account) {
				fmt.Fprintf(a.Stdout, "%sd %s\n", verb, acc.Name)
				a.noteCancelled(acc.Response)
			})
		},
	}
	end.add(cmd, "the account and the audit log", verb == "disable")
	return cmd
}

func (a *app) accountsDelete() *cobra.Command {
	return &cobra.Command{
		Use:   "delete ACCOUNT",
		Short: "Delete a disabled account with everything it owns, for good; its audit events stay",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.connect(cmd)
			if err != nil {
				return err
			}
			if _, err := s.DeleteAccount(cmd.Context(), args[0]); err != nil {
				return unreachable(err)
			}
			return a.printGone("deleted", "account", args[0])
		},
	}
}

func (a *app) rotateSigningKey() *cobra.Command {
	return &cobra.Command{
		Use:   "rotate-signing-key",
		Short: "Replace the key that signs session tokens; nobody is logged out",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return call(a, cmd, func(ctx context.Context, s *remote) (*client.SigningKey, error) { return s.RotateSigningKey(ctx) }, func(k *client.SigningKey) {
				fmt.Fprintf(a.Stdout, "session tokens are signed with %s\n", k.ID)
			})
		},
	}
}
