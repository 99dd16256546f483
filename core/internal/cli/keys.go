package cli

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyfire/keyfire/sdk/client"
)

func (a *app) keysCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "keys",
		Short: "Create, change, rotate, import, list and revoke API keys",
	}, a.keysCreate(), a.keysList(), a.keysShow(), a.keysUpdate(), a.keysDisable(), a.keysEnable(), a.keysRotate(), a.keysImport(), a.keysUsage(), a.keysRevoke())
}

func (a *app) keysCreate() *cobra.Command {
	var k client.NewKey
	var ask keyFlags
	cmd := &cobra.Command{
		Use:   "create --name NAME (--workflow NAME... | --global | --admin)",
		Short: "Create a key and print its secret, once",
		Long: `Create a key and print its secret on standard output, and nothing else there, so that
  KEY=$(keyfire keys create --name ci --workflow greet)
works. The secret cannot be shown again. A key expires after 90 days unless --expires says otherwise.`,
		Example: `  keyfire keys create --name ci --workflow greet --max-runs 100 --expires 30d
  keyfire keys create --name partner --workflow 'billing/*' --max-runs 500 --refill month --rate 10/1s --allow-ip 203.0.113.0/24
  keyfire keys create --name ops --admin --expires never`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := ask.complete(cmd.Flags(), &k, time.Now()); err != nil {
				return err
			}
			s, err := a.connect(cmd)
			if err != nil {
				return err
			}
			key, err := s.CreateKey(cmd.Context(), k)
			if err != nil {
				return unreachable(err)
			}
			if a.json {
				return a.printBody(key.Raw())
			}
			fmt.Fprintln(a.Stdout, key.Secret)
			a.explainKey(cmd.Context(), s, key, k.Workflow)
			return nil
		},
	}
	ask.add(cmd.Flags(), &k)
	return cmd
}

// parseExpiry reads a number of days or a duration from now, a date, a time, or "never".
func parseExpiry(k *client.NewKey, text string, now time.Time) error {
	switch text {
	case "":
		return nil
	case "never":
		k.NeverExpire = true
		return nil
	}
	var at time.Time
	if days, ok := strings.CutSuffix(text, "d"); ok {
		if n, err := strconv.Atoi(days); err == nil && n > 0 && n <= 36500 {
			at = now.AddDate(0, 0, n)
		}
	} else if d, err := time.ParseDuration(text); err == nil {
		at = now.Add(d)
	} else if t, err := time.Parse(time.RFC3339, text); err == nil {
		at = t
	} else if t, err := time.Parse(time.DateOnly, text); err == nil {
		at = t.AddDate(0, 0, 1) // the day itself still counts
	}
	if at.IsZero() {
		return fmt.Errorf("--expires %s: want 30d, 12h, 2027-01-31, 2027-01-31T18:00:00Z or never", text)
	}
	if !at.After(now) {
		return fmt.Errorf("--expires %s is in the past", text)
	}
	k.ExpiresAt = at.UTC().Truncate(time.Second)
	return nil
}

// explainKey says on standard error what was made and how to use it.
func (a *app) explainKey(ctx context.Context, s *remote, key *client.Key, workflow string) {
	until := "and never expires"
	if key.ExpiresAt != nil {
		until = "and expires at " + timeText(key.ExpiresAt)
	}
	a.note("%s is the key called %q %s; its secret is shown this once", key.ID, key.Name, until)
	url := s.url
	if url == "" {
		url = "http://127.0.0.1:8080"
	}
	// A secret that is captured must not end up in a log through the other stream.
	secret := "$KEY"
	if isTerminal(a.Stdout) {
		secret = key.Secret
	}
	if key.Type == "admin" {
		a.note("use it elsewhere with: KEYFIRE_URL=%s KEYFIRE_KEY=%s keyfire workflows list", shellQuote(url), secret)
		return
	}
	path := "/v1/trigger"
	switch {
	case workflow != "":
		path = "/v1/workflows/" + strings.ReplaceAll(workflow, "/", "%2F") + "/runs"
	case len(key.Scopes) != 1 || strings.HasSuffix(key.Scopes[0], "*"): // for several workflows, one of which has to be named
		path = "/v1/workflows/NAME/runs"
	}
	if workflow != "" && a.showSnippet(ctx, s, workflow, url, isTerminal(a.Stdout)) {
		return
	}
	a.note("use it with: curl -H \"Authorization: Bearer %s\" -H 'Content-Type: application/json' -d '{\"input\":{}}' %s", secret, url+path)
}

func (a *app) keysList() *cobra.Command {
	var page client.Page
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List keys, newest first, expired and revoked ones included",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return call(a, cmd, func(ctx context.Context, s *remote) (*client.List[client.Key], error) {
				return s.Keys(ctx, page)
			}, tableOf(a, []string{"ID", "NAME", "KEY", "STATE", "RUNS", "EXPIRES", "LAST USED"}, func(k *client.Key) []string {
				return []string{k.ID, k.Name, k.Masked, k.State, runsText(k), orNever(k.ExpiresAt), orNever(k.LastUsedAt)}
			}))
		},
	}
	pageFlags(cmd, &page)
	return cmd
}

func runsText(k *client.Key) string {
	if k.MaxRuns == nil || *k.MaxRuns == 0 {
		return strconv.FormatInt(k.RunsUsed, 10)
	}
	return fmt.Sprintf("%d/%d", k.RunsUsed, *k.MaxRuns)
}

func orNever(t *time.Time) string {
	if s := timeText(t); s != "" {
		return s
	}
	return "never"
}

func (a *app) keysShow() *cobra.Command {
	return &cobra.Command{
		Use:   "show KEY_ID",
		Short: "Show one key, without its secret",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return call(a, cmd, func(ctx context.Context, s *remote) (*client.Key, error) {
				return s.Key(ctx, args[0])
			}, func(k *client.Key) {
				a.fields("id", k.ID, "name", k.Name, "description", k.Description, "key", k.Masked, "type", k.Type, "state", k.State,
					"scopes", strings.Join(k.Scopes, " "), "workflows", strings.Join(k.Workflows, " "), "runs", runsText(k), "refill", refillText(k.Refill),
					"rate limits", ratesText(k.RateLimits), "at once", atOnceText(k.MaxConcurrent), "addresses", strings.Join(k.AllowedIPs, " "),
					"origins", strings.Join(k.Origins, " "), "metadata", metadataText(k.Metadata), "allow query", yes(k.AllowQuery), "imported", yes(k.Imported),
					"created", timeText(&k.CreatedAt)+" by "+k.CreatedBy, "expires", orNever(k.ExpiresAt), "last used", orNever(k.LastUsedAt),
					"disabled", timeText(k.DisabledAt), "disabled by", k.DisabledBy, "disabled why", printable(k.DisabledWhy),
					"revoked", timeText(k.RevokedAt), "revoked by", k.RevokedBy, "reason", printable(k.RevokedReason))
			})
		},
	}
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return ""
}

func (a *app) keysRevoke() *cobra.Command {
	var end endFlags
	cmd := &cobra.Command{
		Use:   "revoke KEY_ID",
		Short: "End a key for good; the next request with it is refused",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.connect(cmd)
			if err != nil {
				return err
			}
			res, err := s.RevokeKey(cmd.Context(), args[0], end.reason, end.also()...)
			if err != nil {
				return unreachable(err)
			}
			a.noteCancelled(res)
			if !a.json {
				fmt.Fprintf(a.Stdout, "revoked %s\n", args[0])
				return nil
			}
			k, err := s.Key(cmd.Context(), args[0])
			if err != nil {
				return unreachable(err)
			}
			return a.printBody(k.Raw())
		},
	}
	end.add(cmd, "the key and the audit log", true)
	return cmd
}
