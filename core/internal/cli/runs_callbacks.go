package cli

import (
	"cmp"
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyfire/keyfire/sdk/client"
)

func (a *app) runsCallbacks() *cobra.Command {
	return &cobra.Command{
		Use:   "callbacks RUN_ID",
		Short: "Show who was told how a run ended, and every attempt to do so",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return call(a, cmd, func(ctx context.Context, s *remote) (*client.List[client.Callback], error) {
				return s.Callbacks(ctx, args[0])
			}, func(l *client.List[client.Callback]) {
				for i := range l.Data {
					if i > 0 {
						fmt.Fprintln(a.Stdout)
					}
					a.printCallback(&l.Data[i])
				}
				if len(l.Data) == 0 {
					a.note("%s was made without a callback", args[0])
				}
			})
		},
	}
}

func (a *app) printCallback(c *client.Callback) {
	a.fields("id", c.ID, "url", printable(c.URL), "state", c.State, "next", timeText(c.NextAt))
	rows := [][]string{{"ATTEMPT", "AT", "TOOK", "ANSWER"}}
	for i := range c.Log {
		at := &c.Log[i]
		answer := printable(at.Error)
		if at.Status > 0 {
			answer = strconv.Itoa(at.Status)
		}
		took := time.Duration(at.DurationMS) * time.Millisecond
		rows = append(rows, []string{strconv.Itoa(at.Number), timeText(&at.At), took.String(), cmp.Or(answer, "-")})
	}
	if len(rows) > 1 {
		fmt.Fprintln(a.Stdout)
		a.table(rows)
	}
}

func (a *app) runsRedeliver() *cobra.Command {
	return &cobra.Command{
		Use:   "redeliver RUN_ID [CALLBACK_ID]",
		Short: "Tell once more how a run ended, whatever became of it before",
		Long: `Send the callback of a run that has ended once more, whatever became of it before. Its id may be left out of a run that has one. The receiver gets
the webhook-id that it had.`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return call(a, cmd, func(ctx context.Context, s *remote) (*client.Callback, error) {
				if len(args) == 2 {
					return s.Redeliver(ctx, args[0], args[1])
				}
				l, err := s.Callbacks(ctx, args[0])
				if err != nil {
					return nil, err
				}
				if len(l.Data) != 1 {
					return nil, usagef("%s has %d callbacks; keyfire runs callbacks %s shows them", args[0], len(l.Data), args[0])
				}
				return s.Redeliver(ctx, args[0], l.Data[0].ID)
			}, func(c *client.Callback) {
				fmt.Fprintf(a.Stdout, "%s %s\n", c.ID, c.State)
			})
		},
	}
}
