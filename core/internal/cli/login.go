package cli

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keyfire/keyfire/sdk/client"
)

// loginURL is the server that a person logs in to: the one named, or the one in the data directory by its TCP address, or the one logged in to before.
func (a *app) loginURL(cmd *cobra.Command) (string, error) {
	base, explicit, err := a.target(cmd)
	if err != nil {
		return "", err
	}
	if base == "" {
		cfg, _, err := loadConfig(a.Environ, cmd.Flags())
		if err != nil {
			return "", usageError{err}
		}
		base = servedURL(cfg.Data)
	}
	if base == "" && !explicit {
		all, err := a.sessions().read()
		if err != nil {
			return "", err
		}
		base = all.Current
	}
	if base == "" {
		return "", usagef("which server? give --url, or set KEYFIRE_URL")
	}
	return trimURL(base), nil
}

func (a *app) loginCommand() *cobra.Command {
	var user string
	var insecure bool
	cmd := &cobra.Command{
		Use:   "login --user NAME",
		Short: "Log in with a password, for the commands that follow",
		Long: `Log in with a password, which is asked for, or read from standard input. The session is kept in keyfire/credentials.json in your config directory, readable
by you only, and renewed as commands use it; the password is not kept. Commands then go to this server unless they are told of another one.`,
		Example: `  keyfire login --url https://keyfire.example.com --account acme --user ada@example.com`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			base, err := a.loginURL(cmd)
			if err != nil {
				return err
			}
			if err := safeForPassword(base, insecure); err != nil {
				return err
			}
			account := a.account(cmd)
			c, err := client.New(client.Config{URL: base, UserAgent: a.agent()})
			if err != nil {
				return usageError{err}
			}
			ask := a.asker()
			if user == "" && ask.terminal == nil {
				return usagef("--user is required")
			}
			if user == "" {
				if user, err = ask.line("User"); err != nil {
					return err
				}
			}
			password, err := ask.secret("Password")
			if err != nil {
				return err
			}
			var session *client.Session
			if err := a.sessions().change(func(all *storedSessions) error {
				if session, err = c.Login(cmd.Context(), account, user, password); err != nil {
					return err
				}
				all.Current = base
				all.Sessions[base] = stored(session, account)
				return nil
			}); err != nil {
				return unreachable(err)
			}
			if a.json { // without the tokens, which are in the file
				return a.printJSON(map[string]any{"object": "session", "id": session.ID, "url": base, "user": session.User.Name, "role": session.User.Role, "refresh_expires_at": session.RefreshExpiresAt})
			}
			fmt.Fprintf(a.Stdout, "logged in to %s as %s (%s)\n", base, session.User.Name, session.User.Role)
			return nil
		},
	}
	cmd.Flags().StringVar(&user, "user", "", "name of the user")
	cmd.Flags().BoolVar(&insecure, "insecure", false, "send the password although the connection is not encrypted")
	return cmd
}

func (a *app) logoutCommand() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "logout",
		Short: "End the session that login began",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			base, err := a.loginURL(cmd)
			if err != nil {
				return err
			}
			store := a.sessions()
			known, err := store.read()
			if err != nil {
				return err
			}
			if _, ok := known.Sessions[base]; !ok {
				return usagef("there is no session with %s", base)
			}
			token, err := a.token(cmd.Context(), base)
			if err == nil {
				var c *client.Client
				if c, err = client.New(client.Config{URL: base, Key: token, UserAgent: a.agent()}); err == nil {
					_, err = c.Logout(cmd.Context(), all)
				}
			}
			var answer *client.Error
			if errors.As(err, &answer) && answer.Status == http.StatusUnauthorized {
				err = nil // it was over already
			}
			if err != nil {
				return fmt.Errorf("the session goes on: %w", unreachable(err))
			}
			if err := store.change(func(all *storedSessions) error {
				delete(all.Sessions, base)
				if all.Current == base {
					all.Current = ""
				}
				return nil
			}); err != nil {
				return err
			}
			return a.printGone("logged out of", "session", base)
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "end all sessions of the user, those on other machines too")
	return cmd
}

func (a *app) whoAmICommand() *cobra.Command {
	return &cobra.Command{
		Use:   "whoami",
		Short: "Say as whom, and for which account, commands act",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return call(a, cmd, func(ctx context.Context, s *remote) (*client.Self, error) {
				return s.WhoAmI(ctx)
			}, func(s *client.Self) {
				a.fields("subject", s.Subject, "user", s.User, "role", s.Role, "account", s.Account.Name+" ("+s.Account.ID+")", "recognised by", s.Backend,
					"scopes", strings.Join(s.Scopes, " "), "expires", timeText(s.ExpiresAt))
			})
		},
	}
}

func (a *app) setupCommand() *cobra.Command {
	var insecure bool
	cmd := &cobra.Command{
		Use:   "setup NAME",
		Short: "Make the first superuser",
		Long: `Make the first superuser of a server. On the server's own machine no token is needed. Elsewhere it takes the one that the server printed on standard error when it
started; the token is read from KEYFIRE_SETUP_TOKEN, or asked for before the password.`,
		Example: `  keyfire setup root
  keyfire setup root --url https://keyfire.example.com`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			base, _, err := a.target(cmd)
			if err != nil {
				return err
			}
			ask := a.asker()
			show := func(u *client.User) { fmt.Fprintf(a.Stdout, "made the superuser %s (%s)\n", u.Name, u.ID) }
			if base == "" {
				password, err := ask.newPassword("Password")
				if err != nil {
					return err
				}
				return call(a, cmd, func(ctx context.Context, s *remote) (*client.User, error) { // over the socket
					return s.CreateUser(ctx, args[0], "superuser", password)
				}, show)
			}
			if err := safeForPassword(base, insecure); err != nil {
				return err
			}
			token := lookup(a.Environ, envSetupToken)
			if token == "" {
				if token, err = ask.secret("Setup token"); err != nil {
					return err
				}
			}
			password, err := ask.newPassword("Password")
			if err != nil {
				return err
			}
			c, err := client.New(client.Config{URL: base, UserAgent: a.agent()})
			if err != nil {
				return usageError{err}
			}
			u, err := c.Setup(cmd.Context(), token, args[0], password)
			if err != nil {
				return unreachable(err)
			}
			if a.json {
				return a.printBody(u.Raw())
			}
			show(u)
			return nil
		},
	}
	cmd.Flags().BoolVar(&insecure, "insecure", false, "send the password although the connection is not encrypted")
	return cmd
}
