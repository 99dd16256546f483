package cli

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyfire/keyfire/sdk/client"
)

func (a *app) keysUpdate() *cobra.Command {
	var n client.NewKey
	var ask keyFlags
	var none []string
	cmd := &cobra.Command{
		Use:   "update KEY_ID",
		Short: "Change a key; what is not said stays",
		Long: `Change a key. What no flag names stays. A list such as --allow-ip replaces the one the key has, and --no takes a limit away:
  keyfire keys update KEY_ID --no max-runs --no rate`,
		Example: "  keyfire keys update key_01... --max-runs 1000 --expires 90d",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f := cmd.Flags()
			if err := ask.completeLimits(f, &n, time.Now()); err != nil {
				return err
			}
			change := client.KeyChange{}
			set := func(flag, member string, v any) {
				if f.Changed(flag) {
					change[member] = v
				}
			}
			for _, w := range ask.workflows {
				n.Scopes = append(n.Scopes, "run:workflow/"+w)
			}
			set("name", "name", n.Name)
			set("description", "description", n.Description)
			set("workflow", "scopes", n.Scopes)
			set("scope", "scopes", n.Scopes)
			set("max-runs", "max_runs", n.MaxRuns)
			set("refill", "refill", n.Refill)
			set("rate", "rate_limits", n.RateLimits)
			set("max-concurrent", "max_concurrent_runs", n.MaxConcurrentRuns)
			set("allow-ip", "allowed_ips", n.AllowedIPs)
			set("allow-origin", "allowed_origins", n.AllowedOrigins)
			set("allow-query", "allow_query", n.AllowQuery)
			set("metadata", "metadata", n.Metadata)
			set("expires", "expires_at", n.ExpiresAt)
			if n.NeverExpire {
				change["expires_at"] = nil
			}
			for _, name := range none {
				member, empty, ok := noLimit(name)
				if !ok {
					return usagef("--no %s: want max-runs, refill, rate, max-concurrent, allow-ip, allow-origin, metadata or expires", name)
				}
				if _, twice := change[member]; twice {
					return usagef("--no %s takes away what --%s sets; give one of them", name, name)
				}
				change[member] = empty
			}
			if len(change) == 0 {
				return usagef("say what shall change, such as --max-runs 1000")
			}
			return call(a, cmd, func(ctx context.Context, s *remote) (*client.Key, error) { return s.UpdateKey(ctx, args[0], change) },
				func(k *client.Key) { fmt.Fprintf(a.Stdout, "updated %s\n", k.ID) })
		},
	}
	f := cmd.Flags()
	ask.addLimits(f, &n)
	f.Lookup("expires").Usage = "when the key stops working: 30d, 12h, 2027-01-31, 2027-01-31T18:00:00Z or never"
	f.StringVar(&n.Name, "name", "", "what people call the key")
	f.StringArrayVar(&ask.workflows, "workflow", nil, "a workflow the key may run instead of those it may now; may be repeated")
	f.StringArrayVar(&n.Scopes, "scope", nil, "a scope the key holds instead of those it holds now; may be repeated")
	f.StringArrayVar(&none, "no", nil, "a limit to take away, by the name of its flag; may be repeated")
	return cmd
}

// noLimit returns the member that a flag stands for, and what it is without a limit.
func noLimit(flag string) (member string, empty any, ok bool) {
	switch flag {
	case "max-runs":
		return "max_runs", nil, true
	case "refill":
		return "refill", nil, true
	case "rate":
		return "rate_limits", []any{}, true
	case "max-concurrent":
		return "max_concurrent_runs", nil, true
	case "allow-ip":
		return "allowed_ips", []any{}, true
	case "allow-origin":
		return "allowed_origins", []any{}, true
	case "metadata":
		return "metadata", map[string]any{}, true
	case "expires":
		return "expires_at", nil, true
	}
	return "", nil, false
}

func (a *app) keysDisable() *cobra.Command {
	return a.keySwitch("disable", "Switch a key off until it is enabled again; the next request with it is refused", "disabled",
		func(ctx context.Context, s *remote, id string, end *endFlags) (*client.Key, error) {
			return s.DisableKey(ctx, id, end.reason, end.also()...)
		})
}

func (a *app) keysEnable() *cobra.Command {
	return a.keySwitch("enable", "Switch a key on again", "enabled",
		func(ctx context.Context, s *remote, id string, end *endFlags) (*client.Key, error) {
			return s.EnableKey(ctx, id, end.reason)
		})
}

func (a *app) keySwitch(verb, short, done string, do func(ctx context.Context, s *remote, id string, end *endFlags) (*client.Key, error)) *cobra.Command {
	var end endFlags
	cmd := &cobra.Command{
		Use: verb + " KEY_ID", Short: short, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return call(a, cmd, func(ctx context.Context, s *remote) (*client.Key, error) { return do(ctx, s, args[0], &end) },
				func(k *client.Key) {
					fmt.Fprintf(a.Stdout, "%s %s\n", done, k.ID)
					a.noteCancelled(k.Response)
				})
		},
	}
	end.add(cmd, "the key and the audit log", verb == "disable")
	return cmd
}

func (a *app) keysRotate() *cobra.Command {
	var overlap string
	cmd := &cobra.Command{
		Use:   "rotate KEY_ID",
		Short: "Give a key a new secret and print it, once",
		Long: `Give a key a new secret and print it on standard output, and nothing else there. The key stays what it is, with its limits, its
expiry and its counters. The old secret works for the overlap, so that callers can move; keyfire keys usage shows whether
anybody still uses it. --overlap 0s ends every older secret at once.`,
		Example: "  KEY=$(keyfire keys rotate key_01... --overlap 7d)",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if overlap == "" {
				return usagef("--overlap has no value; leave it out for 24h, or give one from 0s to 30d")
			}
			return call(a, cmd, func(ctx context.Context, s *remote) (*client.Key, error) { return s.RotateKey(ctx, args[0], overlap) },
				func(k *client.Key) {
					fmt.Fprintln(a.Stdout, k.Secret)
					until := "works for another " + overlap
					if overlap == "0s" {
						until = "does not work any more"
					}
					a.note("%s has a new secret, shown this once; the old one %s", k.ID, until)
				})
		},
	}
	cmd.Flags().StringVar(&overlap, "overlap", "24h", "how long the old secret still works, from 0s to 30d")
	return cmd
}

func (a *app) keysImport() *cobra.Command {
	var n client.NewKey
	var ask keyFlags
	var digest, last4 string
	cmd := &cobra.Command{
		Use:   "import --name NAME (--workflow NAME... | --global) [--sha256 HEX]",
		Short: "Take over a key of another product, whose callers keep their secret",
		Long: `Take over a key that another product has given out. Give the SHA-256 of its text with --sha256, which is what products keep that
do not keep the text; or the text itself on standard input, of which only the SHA-256 is sent. Callers go on with the key they have.`,
		Example: `  keyfire keys import --name crm --workflow invoice --sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
  keyfire keys import --name crm --workflow invoice < old-key.txt`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := ask.complete(cmd.Flags(), &n, time.Now()); err != nil {
				return err
			}
			if digest == "" {
				var err error
				if digest, last4, err = a.digestOfSecret(); err != nil {
					return err
				}
			}
			return call(a, cmd, func(ctx context.Context, s *remote) (*client.Key, error) { return s.ImportKey(ctx, n, digest, last4) },
				func(k *client.Key) { fmt.Fprintf(a.Stdout, "imported %s\n", k.ID) })
		},
	}
	ask.add(cmd.Flags(), &n)
	cmd.Flags().StringVar(&digest, "sha256", "", "SHA-256 of the secret's text, in hexadecimal (default: of standard input)")
	cmd.Flags().StringVar(&last4, "last4", "", "the last four characters of the secret, for showing")
	return cmd
}

// digestOfSecret reads a secret from standard input, up to the end of its line.
func (a *app) digestOfSecret() (digest, last4 string, err error) {
	const longest = 8 << 10
	raw, err := io.ReadAll(io.LimitReader(a.Stdin, longest+1))
	if err != nil {
		return "", "", err
	}
	text := strings.TrimRight(string(raw), "\r\n")
	switch {
	case len(raw) > longest:
		return "", "", errors.New("standard input is no secret: it is longer than 8 KiB")
	case text == "":
		return "", "", usagef("give --sha256, or the secret on standard input")
	}
	sum := sha256.Sum256([]byte(text))
	if len(text) >= 16 { // of a short one the end would give away too much
		last4 = text[len(text)-4:]
	}
	return hex.EncodeToString(sum[:]), last4, nil
}

func (a *app) keysUsage() *cobra.Command {
	var days int
	cmd := &cobra.Command{
		Use:   "usage KEY_ID",
		Short: "Show what a key is used for: who would notice if it were revoked",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return call(a, cmd, func(ctx context.Context, s *remote) (*client.KeyUsage, error) { return s.KeyUsage(ctx, args[0], days) }, a.showUsage)
		},
	}
	cmd.Flags().IntVar(&days, "days", 30, "how many days, today included")
	return cmd
}

func (a *app) showUsage(u *client.KeyUsage) {
	fmt.Fprintf(a.Stdout, "%d runs from %s to %s\n\n", u.Runs, u.From, u.To)
	rows := [][]string{{"SECRET", "WORKS UNTIL", "LAST USED", "FROM", "BY"}}
	for i, s := range u.Secrets {
		until := "with the key"
		if s.ExpiresAt != nil {
			until = timeText(s.ExpiresAt)
		}
		if i == 0 {
			until += " (newest)"
		}
		rows = append(rows, []string{s.Masked, until, orNever(s.LastUsedAt), s.LastSource, printable(s.LastAgent)})
	}
	a.table(rows)
	for _, list := range []struct {
		title  string
		counts []client.UsageCount
	}{{"WORKFLOW", u.Workflows}, {"SOURCE", u.Sources}, {"USER AGENT", u.Agents}} {
		if len(list.counts) == 0 {
			continue
		}
		rows := [][]string{{list.title, "RUNS"}}
		for _, c := range list.counts {
			name := c.Name
			if name == "" {
				name = c.Value
			}
			if name == "" {
				name = "(others)"
			}
			rows = append(rows, []string{printable(name), fmt.Sprint(c.Runs)})
		}
		fmt.Fprintln(a.Stdout)
		a.table(rows)
	}
	if len(u.Days) == 0 {
		return
	}
	fmt.Fprintln(a.Stdout)
	days := [][]string{{"DAY", "RUNS"}}
	for _, d := range u.Days {
		days = append(days, []string{d.Date, fmt.Sprint(d.Runs)})
	}
	a.table(days)
}
