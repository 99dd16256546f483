package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/keyfire/keyfire/sdk/client"
)

func (a *app) usersCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "users",
		Short: "Manage the people of an account",
		Long: `Users log in with a password and may do what their role says: a viewer sees; an operator also runs and publishes workflows and manages keys and secrets; an owner also
manages users. A superuser operates the server. Nobody can make, or change, a user who may do more than they may themselves.`,
	}, a.usersCreate(), a.usersList(), a.usersShow(), a.usersSetRole(),
		a.usersSwitch("disable", "End a user's sessions and refuse their logins", (*client.Client).DisableUser),
		a.usersSwitch("enable", "Let a user log in again", (*client.Client).EnableUser),
		a.usersDelete(), a.usersPasswd())
}

func (a *app) usersCreate() *cobra.Command {
	var role string
	cmd := &cobra.Command{
		Use:     "create NAME --role ROLE",
		Short:   "Create a user; the password is asked for, or read from standard input",
		Example: "  keyfire users create ada@example.com --role operator",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if role == "" {
				return usagef("--role is required: viewer, operator, owner or superuser")
			}
			password, err := a.asker().newPassword("Password")
			if err != nil {
				return err
			}
			return call(a, cmd, func(ctx context.Context, s *remote) (*client.User, error) {
				return s.CreateUser(ctx, args[0], role, password)
			}, func(u *client.User) {
				fmt.Fprintln(a.Stdout, u.ID)
				a.note("%s is the user %s, %s", u.ID, u.Name, u.Role)
			})
		},
	}
	cmd.Flags().StringVar(&role, "role", "", "viewer, operator, owner or superuser (required)")
	return cmd
}

func (a *app) usersList() *cobra.Command {
	var page client.Page
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the account's users, newest first",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return call(a, cmd, func(ctx context.Context, s *remote) (*client.List[client.User], error) {
				return s.Users(ctx, page)
			}, tableOf(a, []string{"NAME", "ROLE", "STATE", "LAST LOGIN", "ID"}, func(u *client.User) []string {
				return []string{u.Name, u.Role, u.State, orNever(u.LastLoginAt), u.ID}
			}))
		},
	}
	pageFlags(cmd, &page)
	return cmd
}

func (a *app) showUser(u *client.User) {
	a.fields("name", u.Name, "id", u.ID, "role", u.Role, "state", u.State, "created", timeText(&u.CreatedAt)+" by "+u.CreatedBy, "password set", timeText(&u.PasswordSetAt),
		"last login", orNever(u.LastLoginAt), "disabled", timeText(u.DisabledAt), "disabled by", u.DisabledBy, "reason", printable(u.DisabledReason))
}

func (a *app) usersShow() *cobra.Command {
	return &cobra.Command{
		Use:   "show USER",
		Short: "Show a user, named by name or id",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return call(a, cmd, func(ctx context.Context, s *remote) (*client.User, error) { return s.User(ctx, args[0]) }, a.showUser)
		},
	}
}

func (a *app) usersSetRole() *cobra.Command {
	return &cobra.Command{
		Use:   "set-role USER ROLE",
		Short: "Give a user another role, and end their sessions",
		Args:  cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return call(a, cmd, func(ctx context.Context, s *remote) (*client.User, error) {
				return s.SetUserRole(ctx, args[0], args[1])
			}, func(u *client.User) { fmt.Fprintf(a.Stdout, "%s is %s\n", u.Name, u.Role) })
		},
	}
}

func (a *app) usersSwitch(verb, short string, do func(*client.Client, context.Context, string, string) (*client.User, error)) *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:   verb + " USER",
		Short: short,
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return call(a, cmd, func(ctx context.Context, s *remote) (*client.User, error) {
				return do(s.Client, ctx, args[0], reason)
			}, func(u *client.User) { fmt.Fprintf(a.Stdout, "%sd %s\n", verb, u.Name) })
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the user and the audit log")
	return cmd
}

func (a *app) usersDelete() *cobra.Command {
	return &cobra.Command{
		Use:   "delete USER",
		Short: "Remove a user; keys they made stay",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.connect(cmd)
			if err != nil {
				return err
			}
			if _, err := s.DeleteUser(cmd.Context(), args[0]); err != nil {
				return unreachable(err)
			}
			return a.printGone("deleted", "user", args[0])
		},
	}
}

func (a *app) usersPasswd() *cobra.Command {
	return &cobra.Command{
		Use:   "passwd [USER]",
		Short: "Set a password, your own unless a user is named; their sessions end",
		Long: `Set a password, and end the sessions of its user. Your own takes the present password first. Both are asked for, or read from standard input, one a line: the present
one, if it is your own, then the new one.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.connect(cmd)
			if err != nil {
				return err
			}
			self, err := s.WhoAmI(cmd.Context())
			if err != nil {
				return unreachable(err)
			}
			ref := self.User
			if len(args) > 0 {
				ref = args[0]
			}
			if ref == "" {
				return usagef("whose? you are %s, who has no password", self.Subject)
			}
			ask := a.asker()
			current := ""
			if self.User != "" && (ref == self.User || "user:"+ref == self.Subject) {
				if current, err = ask.secret("Present password"); err != nil {
					return err
				}
			}
			password, err := ask.newPassword("New password")
			if err != nil {
				return err
			}
			u, err := s.SetPassword(cmd.Context(), ref, current, password)
			if err != nil {
				return unreachable(err)
			}
			if a.json {
				return a.printBody(u.Raw())
			}
			fmt.Fprintf(a.Stdout, "set the password of %s; their sessions have ended\n", u.Name)
			return nil
		},
	}
}
