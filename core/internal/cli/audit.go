package cli

import (
	"context"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/keyfire/keyfire/sdk/client"
)

func (a *app) auditCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "audit",
		Short: "Read the audit log, and check that nobody has changed it",
	}, a.auditList(), a.auditVerify())
}

func (a *app) auditList() *cobra.Command {
	var q client.AuditQuery
	var since age
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List who did what, newest first",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			q.After = since.begin()
			return call(a, cmd, func(ctx context.Context, s *remote) (*client.List[client.AuditEvent], error) {
				return s.AuditEvents(ctx, q)
			}, tableOf(a, []string{"SEQ", "TIME", "ACTOR", "ACTION", "TARGET", "OUTCOME", "FROM"}, func(e *client.AuditEvent) []string {
				return []string{
					strconv.FormatInt(e.Seq, 10), timeText(&e.Time), e.Actor, e.Action, orDash(e.Target), outcomeText(e), orDash(e.SourceIP),
				}
			}))
		},
	}
	f := cmd.Flags()
	f.StringVar(&q.Action, "action", "", "only this action, such as key.create")
	f.StringVar(&q.Actor, "actor", "", "only this actor, such as uid:1000 or key:key_01...")
	f.StringVar(&q.Target, "target", "", "only what concerns the object with this id")
	f.Var(&since, "since", "only events this young, such as 24h or 7d")
	pageFlags(cmd, &q.Page)
	return cmd
}

func outcomeText(e *client.AuditEvent) string {
	text := e.Outcome
	if e.Reason != "" {
		text += " (" + printable(e.Reason) + ")"
	}
	if e.Count > 1 {
		text += " x" + strconv.FormatInt(e.Count, 10)
	}
	return text
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
