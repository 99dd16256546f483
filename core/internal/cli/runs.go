package cli

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/sdk/client"
)

func (a *app) runsCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "runs",
		Short: "List, show, follow, cancel and repeat runs, and see who was told of their end",
	}, a.runsList(), a.runsShow(), a.runsLogs(), a.runsWatch(), a.runsCancel(), a.runsReplay(), a.runsCallbacks(), a.runsRedeliver())
}

func (a *app) runsList() *cobra.Command {
	var q client.RunQuery
	var since age
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List runs, newest first",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			q.CreatedAfter = since.begin()
			return call(a, cmd, func(ctx context.Context, s *remote) (*client.List[client.Run], error) {
				return s.Runs(ctx, q)
			}, tableOf(a, []string{"ID", "WORKFLOW", "STATUS", "CREATED", "TOOK", "BY"}, func(r *client.Run) []string {
				return []string{r.ID, versioned(r.Workflow), r.Status, timeText(&r.CreatedAt), millis(r.DurationMS), r.Trigger.Principal}
			}))
		},
	}
	f := cmd.Flags()
	f.StringVar(&q.Workflow, "workflow", "", "only runs of this workflow")
	f.StringVar(&q.Status, "status", "", "only runs in this state, such as failed")
	f.StringVar(&q.Key, "key", "", "only runs started with the key of this id")
	f.StringVar(&q.TraceID, "trace", "", "only runs of this trace id")
	f.StringToStringVar(&q.Metadata, "metadata", nil, "only runs with this metadata, NAME=VALUE; may be repeated")
	f.Var(&since, "since", "only runs this young, such as 2h or 7d")
	pageFlags(cmd, &q.Page)
	return cmd
}

func versioned(w client.RunWorkflow) string { return w.Name + "@" + strconv.Itoa(w.Version) }

func (a *app) runsShow() *cobra.Command {
	var step string
	cmd := &cobra.Command{
		Use:   "show RUN_ID",
		Short: "Show a run with its input, output and steps, or one step with what went in and came out",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if step != "" {
				return call(a, cmd, func(ctx context.Context, s *remote) (*client.StepDetail, error) {
					return s.Step(ctx, args[0], step)
				}, a.printStep)
			}
			return call(a, cmd, func(ctx context.Context, s *remote) (*client.Run, error) {
				return s.Run(ctx, args[0])
			}, a.printRun)
		},
	}
	cmd.Flags().StringVar(&step, "step", "", "id of a node: show its input, its output and each of its attempts")
	return cmd
}

func (a *app) printStep(s *client.StepDetail) {
	a.fields("step", s.ID, "run", s.RunID, "status", s.Status, "module", s.Module, "started", timeText(s.StartedAt), "finished", timeText(s.FinishedAt),
		"took", millis(s.DurationMS), "memory", memoryText(s.PeakMemoryBytes))
	if e := s.Error; e != nil {
		a.fields("error", printable(e.Message), "class", e.Class)
	}
	if len(s.Attempts) > 0 {
		fmt.Fprintln(a.Stdout)
		rows := [][]string{{"ATTEMPT", "STARTED", "TOOK", "ERROR"}}
		for _, t := range s.Attempts {
			took, ended := t.DurationUS/1000, ""
			if t.Error != nil {
				ended = t.Error.Class + ": " + printable(t.Error.Message)
			}
			rows = append(rows, []string{strconv.Itoa(t.Number), t.StartedAt.UTC().Format(logTime), millis(&took), ended})
		}
		a.table(rows)
		fmt.Fprintf(a.Stdout, "\ninput\n%s\n", indent(s.Input))
	}
	if s.Status == string(core.StepSucceeded) {
		fmt.Fprintf(a.Stdout, "\noutput\n%s\n", indent(s.Output))
	}
}

// logTime is how a time is printed where what happened within a second matters.
const logTime = "2006-01-02T15:04:05.000Z"

func (a *app) printRun(r *client.Run) {
	started := r.Trigger.Principal
	if r.Trigger.KeyHint != "" {
		started += " (" + r.Trigger.KeyHint + ")"
	}
	var identity []string
	for _, name := range slices.Sorted(maps.Keys(r.Trigger.Attributes)) {
		identity = append(identity, name+"="+printable(r.Trigger.Attributes[name]))
	}
	a.fields("run", r.ID, "workflow", versioned(r.Workflow), "status", r.Status, "started by", started, "identity", strings.Join(identity, " "), "from", r.Trigger.SourceIP,
		"created", timeText(&r.CreatedAt), "finished", timeText(r.FinishedAt), "took", millis(r.DurationMS), "trace", r.TraceID)
	if e := r.Error; e != nil {
		a.fields("error", printable(e.Message), "class", e.Class, "step", e.Step)
		if e.Step != "" {
			a.note("to see what went into it: keyfire runs show %s --step %s", r.ID, e.Step)
		}
	}
	if len(r.Steps) > 0 {
		fmt.Fprintln(a.Stdout)
		rows := [][]string{{"STEP", "STATUS", "ATTEMPTS", "TOOK", "MEMORY"}}
		for _, s := range r.Steps {
			rows = append(rows, []string{s.ID, s.Status, strconv.Itoa(s.Attempts), millis(s.DurationMS), memoryText(s.PeakMemoryBytes)})
		}
		a.table(rows)
	}
	for _, s := range r.Steps {
		if s.Tape && s.Status != string(core.StepSucceeded) {
			a.note("to execute the failed attempt again, here: keyfire replay %s --step %s", r.ID, s.ID)
		}
	}
	fmt.Fprintf(a.Stdout, "\ninput\n%s\n", indent(r.Input))
	if r.Status == string(core.RunSucceeded) {
		fmt.Fprintf(a.Stdout, "\noutput\n%s\n", indent(r.Output))
	}
}

func memoryText(bytes int64) string {
	if bytes == 0 {
		return ""
	}
	return fmt.Sprintf("%.1fMiB", float64(bytes)/(1<<20))
}

func (a *app) runsLogs() *cobra.Command {
	var q client.LogQuery
	cmd := &cobra.Command{
		Use:   "logs RUN_ID",
		Short: "Print what the nodes of a run wrote to their logs",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return call(a, cmd, func(ctx context.Context, s *remote) (*client.List[client.LogLine], error) {
				return s.RunLogs(ctx, args[0], q)
			}, func(l *client.List[client.LogLine]) {
				for _, line := range l.Data {
					fmt.Fprintf(a.Stdout, "%s %-5s %s: %s\n", line.Time.UTC().Format(logTime), line.Level, line.Step, printable(line.Message))
				}
				a.more(l.HasMore, l.NextCursor)
			})
		},
	}
	cmd.Flags().StringVar(&q.Step, "step", "", "only this node")
	cmd.Flags().StringVar(&q.Level, "level", "", "only this level and more serious ones: debug, info, warn, error")
	pageFlags(cmd, &q.Page)
	return cmd
}
