package cli

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keyfire/keyfire/core/internal/workflow"
	"github.com/keyfire/keyfire/sdk/client"
)

func (a *app) workflowsCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "workflows",
		Short: "List and show workflows, print code that runs one, open and close their triggers",
	}, a.workflowsList(), a.workflowsShow(), a.workflowsSnippet(),
		a.workflowsSwitch("enable", "Open a workflow's trigger until the next version is published", (*client.Client).EnableWorkflow),
		a.workflowsSwitch("disable", "Close a workflow's trigger; runs already accepted finish", (*client.Client).DisableWorkflow))
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
			}, func(l *client.List[client.Workflow]) {
				rows := [][]string{{"NAME", "VERSION", "TRIGGER", "UPDATED", "ID", "TITLE"}}
				for _, w := range l.Data {
					rows = append(rows, []string{w.Name, strconv.Itoa(w.Version), enabledText(w.Enabled), timeText(&w.UpdatedAt), w.ID, w.Title})
				}
				a.table(rows)
				a.more(l.HasMore, l.NextCursor)
			})
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
			})
		},
	}
	cmd.Flags().BoolVar(&source, "source", false, "print the file as it was published")
	return cmd
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
