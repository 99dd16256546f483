package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/sdk/client"
)

func (a *app) runsWatch() *cobra.Command {
	var after int64
	cmd := &cobra.Command{
		Use:   "watch RUN_ID",
		Short: "Follow a run to its end",
		Long: `Print what happens in a run, from its beginning, until it has ended. It may have ended already. When the connection breaks,
for example because the server is restarted, it goes on where it was.

The exit status is that of a trigger: 10 for a run that failed, 11 for one that timed out, 12 for one that was stopped.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var last client.RunEvent
			show := func(e client.RunEvent) error {
				carriedOn := last.Seq > 0 && e.RunAttempt > last.RunAttempt
				last, after = e, e.Seq
				if a.json {
					raw, err := json.Marshal(e)
					if err != nil {
						return err
					}
					return a.printBody(raw)
				}
				if carriedOn {
					fmt.Fprintf(a.Stdout, "%s carried on, attempt %d of the run\n", e.Time.UTC().Format(eventTime), e.RunAttempt)
				}
				a.printEvent(&e)
				return nil
			}
			for {
				s, err := a.connect(cmd)
				if err != nil {
					return err
				}
				began := time.Now()
				err = s.Follow(cmd.Context(), args[0], after, show)
				var refused *client.Error
				if errors.As(err, &refused) && refused.Code == string(core.CodeSessionExpired) && time.Since(began) > time.Minute {
					continue // a run may outlive the token of a session, which connect replaces
				}
				if err == nil && last.Type != client.EventRunFinished { // nothing was left to tell
					var r *client.Run
					if r, err = s.Run(cmd.Context(), args[0]); err == nil {
						last.Error = r.Error
					}
				}
				if err != nil {
					return unreachable(err)
				}
				break
			}
			if last.Error != nil {
				return runEnded(args[0], &last)
			}
			return nil
		},
	}
	cmd.Flags().Int64Var(&after, "after", 0, "begin after the event of this number")
	return cmd
}

// runEnded is the error for a run that did not succeed, as a trigger that waits for it would get it.
func runEnded(id string, e *client.RunEvent) error {
	return &client.Error{Code: e.Error.Code, Detail: e.Error.Message, RunID: id, FailedStep: e.Error.Step, Run: e.Error}
}

// eventTime is how the time of an event is shown.
const eventTime = "15:04:05.000"

func (a *app) printEvent(e *client.RunEvent) {
	line := fmt.Sprintf("%s %-13s", e.Time.UTC().Format(eventTime), e.Type)
	if e.Step != "" {
		line += " " + e.Step
	}
	switch e.Type {
	case "step.log":
		line += " " + e.Level + ": " + printable(e.Message)
	case "step.output":
		if e.OmittedBytes > 0 {
			line += fmt.Sprintf(" (%d bytes)", e.OmittedBytes)
		} else {
			line += " " + printable(string(e.Output))
		}
	default:
		line += " " + e.Status
	}
	if e.Error != nil {
		line += ": " + printable(e.Error.Message)
	}
	if e.RetryAt != nil {
		line += ", again at " + e.RetryAt.UTC().Format(eventTime)
	}
	fmt.Fprintln(a.Stdout, line)
}

func (a *app) runsCancel() *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:   "cancel RUN_ID",
		Short: "Stop a run",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return call(a, cmd, func(ctx context.Context, s *remote) (*client.Run, error) {
				return s.CancelRun(ctx, args[0], reason)
			}, func(r *client.Run) {
				fmt.Fprintf(a.Stdout, "%s %s\n", r.ID, r.Status)
			})
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why; it is shown with the run")
	return cmd
}

func (a *app) runsReplay() *cobra.Command {
	var r client.Replay
	var inputs []string
	cmd := &cobra.Command{
		Use:   "replay RUN_ID",
		Short: "Repeat a run, from its start or from a step",
		Long: `Start a new run that repeats one that has ended. Steps before the one it begins at keep their results and are not executed
again. -i replaces the input, as with trigger, when it begins at the start.`,
		Example: "  keyfire runs replay run_01jd3v6k9m8q2w4e6r8t0y1u3i --from failed --version latest",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			input, err := a.buildInput(inputs)
			if err != nil {
				return usageError{err}
			}
			if input != nil {
				r.Input = input
			}
			return call(a, cmd, func(ctx context.Context, s *remote) (*client.Run, error) {
				return s.ReplayRun(ctx, args[0], r)
			}, func(run *client.Run) {
				fmt.Fprintln(a.Stdout, run.ID)
				a.note("%s repeats %s; follow it with: keyfire runs watch %s", run.ID, run.ReplayOf, run.ID)
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&r.From, "from", "", "start, failed, or the id of a step (default start)")
	f.StringVar(&r.Version, "version", "", "version of the workflow: same, latest, or a number (default same)")
	f.StringArrayVarP(&inputs, "input", "i", nil, "part of a new input, as with trigger; may be repeated")
	f.StringVar(&r.IdempotencyKey, "idempotency-key", "", "find the run of an earlier replay with the same key instead of starting another")
	return cmd
}
