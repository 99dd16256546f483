package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/workflow"
	"github.com/keyfire/keyfire/sdk/client"
)

func (a *app) workflowsCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "workflows",
		Short: "List, show, save, roll back, rename and delete workflows, print code that runs one, open and close their triggers",
	}, a.workflowsList(), a.workflowsShow(), a.workflowsVersions(), a.workflowsRollback(), a.workflowsPull(), a.workflowsSnippet(),
		a.workflowsSwitch("enable", "Open a workflow's trigger until the next version is published", (*client.Client).EnableWorkflow),
		a.workflowsSwitch("disable", "Close a workflow's trigger; runs already accepted finish", (*client.Client).DisableWorkflow),
		a.workflowsRename(), a.workflowsDelete())
}

func (a *app) workflowsList() *cobra.Command {
	var page client.Page
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List workflows",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return call(a, cmd, func(ctx context.Context, s *remote) (*client.List[client.Workflow], error) {
				return s.Workflows(ctx, page)
			}, tableOf(a, []string{"NAME", "VERSION", "TRIGGER", "UPDATED", "ID", "TITLE"}, func(w *client.Workflow) []string {
				return []string{w.Name, strconv.Itoa(w.Version), enabledText(w.Enabled), timeText(&w.UpdatedAt), w.ID, w.Title}
			}))
		},
	}
	pageFlags(cmd, &page)
	return cmd
}

func enabledText(enabled bool) string {
	if enabled {
		return "enabled"
	}
	return "disabled"
}

func (a *app) workflowsShow() *cobra.Command {
	var source bool
	cmd := &cobra.Command{
		Use:     "show WORKFLOW",
		Short:   "Show a workflow, named by name, id or alias, with an optional @version",
		Example: "  keyfire workflows show greet@2 --source > greet.yaml",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return call(a, cmd, func(ctx context.Context, s *remote) (*client.Workflow, error) {
				return s.Workflow(ctx, args[0])
			}, func(w *client.Workflow) {
				if source {
					fmt.Fprint(a.Stdout, w.Source)
					return
				}
				a.fields("name", w.Name, "title", w.Title, "id", w.ID, "aliases", strings.Join(w.Aliases, " "), "trigger", enabledText(w.Enabled),
					"version", strconv.Itoa(w.Version), "digest", w.Digest, "created", timeText(&w.CreatedAt), "updated", timeText(&w.UpdatedAt))
				if !strings.Contains(args[0], "@") { // of the newest version, which is the one that counts
					a.showSchedules(w, time.Now())
				}
			})
		},
	}
	cmd.Flags().BoolVar(&source, "source", false, "print the file as it was published")
	return cmd
}

func (a *app) workflowsRollback() *cobra.Command {
	var dry bool
	cmd := &cobra.Command{
		Use:   "rollback WORKFLOW@VERSION",
		Short: "Publish an earlier version again, file and modules",
		Long: `Publish an earlier version of a workflow again, with its file and its modules, as the newest one. Nothing is lost: versions in between stay, and going
forth again is another rollback. Runs that were accepted before finish with the version that they began with. Change the file that you apply too, or the next apply brings
back what you have rolled back.`,
		Example: "  keyfire workflows rollback greet@2 --dry-run",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, number, _ := strings.Cut(args[0], "@")
			version, err := strconv.Atoi(number)
			if err != nil || version < 1 {
				return usageError{fmt.Errorf("%q does not say which version to go back to, as in %s@1; keyfire workflows versions %s lists them", args[0], ref, ref)}
			}
			return call(a, cmd, func(ctx context.Context, s *remote) (*client.Workflow, error) {
				return s.RepublishVersion(ctx, ref, version, dry)
			}, func(w *client.Workflow) { a.printPublished(w, dry) })
		},
	}
	cmd.Flags().BoolVar(&dry, "dry-run", false, "check everything and say what would change, and publish nothing")
	return cmd
}

// showSchedules says when a workflow runs by itself, so that whoever has written an expression can see what it means.
func (a *app) showSchedules(w *client.Workflow, now time.Time) {
	var def core.Definition
	if json.Unmarshal(w.Definition, &def) != nil { // of a newer server
		return
	}
	for i := range def.Trigger.Schedule {
		s := &def.Trigger.Schedule[i]
		table, err := workflow.ParseSchedule(s)
		zone, zerr := time.LoadLocation(s.Timezone)
		if err != nil || zerr != nil {
			continue
		}
		next := []string{"never, while the trigger is disabled"}
		if w.Enabled {
			next = next[:0]
			for at := table.Next(now); len(next) < 3 && !at.IsZero(); at = table.Next(at) {
				next = append(next, at.In(zone).Format(time.RFC3339))
			}
		}
		fmt.Fprintf(a.Stdout, "\n")
		a.fields("schedule", s.Cron, "timezone", cmp.Or(s.Timezone, "UTC"), "next", strings.Join(next, ", "))
	}
}

func (a *app) workflowsSwitch(verb, short string, do func(*client.Client, context.Context, string) (*client.Workflow, error)) *cobra.Command {
	return &cobra.Command{
		Use:   verb + " WORKFLOW",
		Short: short,
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return call(a, cmd, func(ctx context.Context, s *remote) (*client.Workflow, error) {
				return do(s.Client, ctx, args[0])
			}, func(w *client.Workflow) {
				fmt.Fprintf(a.Stdout, "%s %s\n", enabledText(w.Enabled), w.Name)
			})
		},
	}
}

func (a *app) workflowsRename() *cobra.Command {
	return &cobra.Command{
		Use:   "rename WORKFLOW NAME",
		Short: "Give a workflow another name; its keys and its history stay",
		Long: `Give a workflow another name. Its id stays, and with it its history and the keys that are made for it. Callers that send the old name are answered
as for any name that does not exist. Change the name in the file too: applying it under the old name would make another workflow.`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return call(a, cmd, func(ctx context.Context, s *remote) (*client.Workflow, error) {
				return s.RenameWorkflow(ctx, args[0], args[1])
			},
				func(w *client.Workflow) {
					fmt.Fprintf(a.Stdout, "%s is called %s\n", w.ID, w.Name)
					a.note("change the name in the workflow's file too, before you apply it again")
				})
		},
	}
}

func (a *app) workflowsDelete() *cobra.Command {
	var end endFlags
	cmd := &cobra.Command{
		Use:   "delete WORKFLOW",
		Short: "Delete a workflow; its runs stay in the history, and keys that are only for it are for nothing any more",
		Long: `Delete a workflow. No trigger, schedule or webhook starts a run of it any more, and its names are free. A workflow that is applied under the same
name later is another one, which old keys do not reach: keyfire keys list shows those as orphaned. Runs already accepted finish unless --cancel-runs ends them, and all stay
in the history.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.connect(cmd)
			if err != nil {
				return err
			}
			res, err := s.DeleteWorkflow(cmd.Context(), args[0], end.reason, end.also()...)
			if err != nil {
				return unreachable(err)
			}
			a.noteCancelled(res)
			return a.printGone("deleted", "workflow", args[0])
		},
	}
	end.add(cmd, "the audit log", true)
	return cmd
}

// endFlags are the flags of commands that end, or begin again, what starts runs.
type endFlags struct {
	reason string
	cancel bool
}

func (e *endFlags) add(cmd *cobra.Command, kept string, ends bool) {
	cmd.Flags().StringVar(&e.reason, "reason", "", "why, for "+kept)
	if ends {
		cmd.Flags().BoolVar(&e.cancel, "cancel-runs", false, "also cancel the runs it has started that have not ended")
	}
}

func (e *endFlags) also() []client.Also {
	if e.cancel {
		return []client.Also{client.CancelRuns}
	}
	return nil
}

// noteCancelled says how many runs were cancelled, if that was asked for.
func (a *app) noteCancelled(res client.Response) {
	switch n := res.Header.Get(client.HeaderCancelledRuns); n {
	case "":
	case "1":
		a.note("1 run was cancelled")
	default:
		a.note("%s runs were cancelled", n)
	}
}

func (a *app) schemaCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "schema",
		Short: "Print the JSON Schema of a file format, for editors",
	}, &cobra.Command{
		Use:     "workflow",
		Short:   "Print the JSON Schema of workflow files",
		Example: "  keyfire schema workflow > workflow.schema.json",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return a.printBody(workflow.FileSchema())
		},
	})
}
