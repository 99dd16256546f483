package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/store"
)

func (a *app) adminCommand() *cobra.Command {
	cmd := group(&cobra.Command{
		Use:   "admin",
		Short: "Back up, restore, move and export the whole database",
		Long: `Work on the database of a server as a whole: the file in --data, or the PostgreSQL database of --store. backup and export
may run while servers do; restore and migrate want the database for themselves.

The pepper and the key of the secrets (pepper.json and secrets.json in --data) are not in the database and so in none
of these copies. Keep a copy of both apart from the backups: a backup is of no use without them, and of none to a thief.`,
	}, a.adminBackup(), a.adminRestore(), a.adminMigrate(), a.adminExport())
	for _, c := range cmd.Commands() {
		c.RunE = stoppable(c.RunE)
	}
	for _, s := range settings(a.Environ) {
		if s.key == "store" {
			cmd.PersistentFlags().String(s.flag(), s.value, flagUsage(s))
		}
	}
	return cmd
}

// stoppable gives a command a context that ends on SIGINT and SIGTERM, so that it leaves no half of a file behind. A second signal ends it at once.
func stoppable(run func(*cobra.Command, []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		ctx, release := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
		defer release()
		context.AfterFunc(ctx, release)
		cmd.SetContext(ctx)
		err := run(cmd, args)
		if err != nil && ctx.Err() != nil {
			return fmt.Errorf("%s was stopped before it was done: %w", cmd.Name(), err)
		}
		return err
	}
}

// databaseOf returns where the database of the command line is, with the data directory.
func (a *app) databaseOf(cmd *cobra.Command) (*Config, store.Config, error) {
	cfg, _, err := loadConfig(a.Environ, cmd.Flags())
	if err != nil {
		return nil, store.Config{}, usageError{err}
	}
	sc := cfg.storeConfig(cfg.Data)
	sc.Shared, sc.Tool = false, true
	sc.Logger = slog.New(slog.NewTextHandler(a.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	return cfg, sc, nil
}

// presentDatabase is databaseOf for commands that need one that is there.
func (a *app) presentDatabase(cmd *cobra.Command) (*Config, store.Config, error) {
	cfg, sc, err := a.databaseOf(cmd)
	if err == nil {
		err = present(cfg)
	}
	return cfg, sc, err
}

// movedSuffix and a time are what the file of a database ends with that was moved to PostgreSQL, leftSuffix that of one that was moved to another directory,
// movingSuffix that of one whose move has begun.
const (
	movedSuffix  = ".moved-"
	leftSuffix   = ".left-"
	movingSuffix = ".moving-"
)

func (a *app) adminBackup() *cobra.Command {
	return &cobra.Command{
		Use:   "backup FILE",
		Short: "Write a backup that restore takes, while servers work on",
		Long: `Write the database as it is at one moment to a new FILE, while servers work on: a copy of the file for SQLite, a
compressed dump for PostgreSQL. The file is readable by its owner only, and has its name only once it is whole.`,
		Example: "  keyfire admin backup /var/backups/keyfire-monday.bak",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			_, sc, err := a.presentDatabase(cmd)
			if err != nil {
				return err
			}
			bar := a.progress("back up")
			err = store.Backup(cmd.Context(), sc, args[0], bar.show)
			if bar.end(); err != nil {
				return err
			}
			return a.wrote("backup", args[0])
		},
	}
}

func (a *app) adminExport() *cobra.Command {
	return &cobra.Command{
		Use:   "export [FILE]",
		Short: "Write everything as JSON, one row a line, while servers work on",
		Long: `Write the database as it is at one moment, while servers work on, as JSON: a header, each table with its columns and
rows, one a line, and an end with the number of rows and their digest. Without FILE, or with -, it goes to standard output. restore
takes it too, into either database.`,
		Example: "  keyfire admin export | gzip > everything.json.gz",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			_, sc, err := a.presentDatabase(cmd)
			if err != nil {
				return err
			}
			if len(args) == 0 || args[0] == "-" {
				return store.Export(cmd.Context(), sc, a.Stdout, nil)
			}
			bar := a.progress("export")
			err = store.ExportFile(cmd.Context(), sc, args[0], bar.show)
			if bar.end(); err != nil {
				return err
			}
			return a.wrote("export", args[0])
		},
	}
}

// wrote says which file was made.
func (a *app) wrote(what, file string) error {
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(map[string]any{"object": what, "file": file, "bytes": info.Size()})
	}
	_, err = fmt.Fprintf(a.Stdout, "%s: %d bytes\n", file, info.Size())
	a.note("%s and %s are not in it; keep a copy of them elsewhere", pepperFile, vaultFile)
	return err
}

func (a *app) adminRestore() *cobra.Command {
	return &cobra.Command{
		Use:   "restore FILE",
		Short: "Fill an empty database from a backup or an export",
		Long: `Fill the database of --data, or of --store, from a backup or an export. It must be empty: what is there is never
overwritten, move it away first. All of it is restored or nothing, and a damaged file is refused. The schema is brought
up to date. What it restores is compared with audit.seals in --data; when that goes further, as it does after a backup
that is older, the file is renamed, and the server seals the log anew.`,
		Example: "  keyfire admin restore /var/backups/keyfire-monday.bak",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, sc, err := a.databaseOf(cmd)
			if err != nil {
				return err
			}
			return a.alone(cfg, func() error {
				bar := a.progress("restore")
				err := store.Restore(cmd.Context(), sc, args[0], bar.show)
				if bar.end(); err != nil {
					return err
				}
				ctx := context.WithoutCancel(cmd.Context()) // what is left is done in any case
				if err := a.arrived(ctx, sc, core.ActionStoreRestore, filepath.Base(args[0]), ""); err != nil {
					return err
				}
				if err := a.sealsAfterRestore(ctx, cfg.Data, sc); err != nil {
					return err
				}
				if a.json {
					return a.printJSON(map[string]any{"object": "restore", "file": args[0]})
				}
				_, err = fmt.Fprintf(a.Stdout, "restored %s\n", args[0])
				return err
			})
		},
	}
}

func (a *app) adminMigrate() *cobra.Command {
	var to string
	cmd := &cobra.Command{
		Use:   "migrate [--to ADDRESS]",
		Short: "Bring the schema up to date, or move everything to another database",
		Long: `Without --to, bring the schema of the database up to date, as the next start of the server would, after a backup
beside it. No server may run meanwhile.

With --to, move everything to an empty PostgreSQL database (postgres://...) or to the data directory of a server that has
no database yet. All of it is moved or nothing. A file that was moved is renamed, and a PostgreSQL database marked, so
that no server goes on with it by mistake; so it is before anything is copied, and a move that was killed is finished by
the same command. Start the server with the same --data and --store ADDRESS afterwards: the
pepper stays where it is.`,
		Example: "  keyfire admin migrate --to postgres://keyfire@db.example.com/keyfire",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("to") && to == "" { // such as an unset variable of a script
				return usagef("--to names nothing; leave it out to bring the schema up to date")
			}
			cfg, from, err := a.databaseOf(cmd)
			if err != nil {
				return err
			}
			return a.alone(cfg, func() error {
				again, err := a.toMove(cfg, &from, to)
				if err != nil {
					return err
				}
				// It must be sound and of the present schema, and what is in its log must be in the file.
				s, err := store.Open(cmd.Context(), from)
				if err == nil {
					err = s.Close()
				}
				if err != nil {
					return err
				}
				if to == "" && a.json {
					return a.printJSON(map[string]any{"object": "migration", "to": nil, "rows": 0})
				}
				if to == "" {
					_, err := fmt.Fprintln(a.Stdout, "the schema is up to date")
					return err
				}
				return a.move(cmd.Context(), cfg, from, to, again)
			})
		},
	}
	cmd.Flags().StringVar(&to, "to", "", "where to: postgres://... or a data directory without a database")
	return cmd
}

// toMove finds the database that is to be migrated. again is true for the file of a move that was not seen to end.
func (a *app) toMove(cfg *Config, from *store.Config, to string) (again bool, err error) {
	from.Leaving = to != ""
	if cfg.Store != "" || to == "" {
		return false, present(cfg)
	}
	moving, err := renamed(cfg.Data, movingSuffix)
	if err != nil || moving == "" {
		return false, errors.Join(err, present(cfg))
	}
	from.Path, from.Reserve = moving, -1
	return true, nil
}

func (a *app) move(ctx context.Context, cfg *Config, from store.Config, to string, again bool) (err error) {
	target := cfg.storeConfig(to)
	target.Shared, target.Tool, target.Logger = false, true, from.Logger
	target.URL = ""
	if target.Path, err = filepath.Abs(target.Path); err != nil {
		return err
	}
	name := target.Path
	switch {
	case strings.Contains(to, "://"):
		if err := checkURL(to, "postgres://keyfire@db.example.com/keyfire", "postgres", "postgresql"); err != nil {
			return usagef("--to: %w", err)
		}
		target.URL, target.Path = to, cfg.storeConfig(cfg.Data).Path
		name = store.Redact(to)
	case keywordLike(to): // and not quoted: it may hold a password
		return usagef("--to: want an address such as postgres://keyfire@db.example.com/keyfire, and not keywords with values")
	case addressLike(to):
		return usagef("--to: want an address such as postgres://keyfire@db.example.com/keyfire; a directory of such a name is ./%s", to)
	case sameFile(to, cfg.Data) && cfg.Store == "":
		return usagef("--to: the database is in %s", to)
	case !sameFile(to, cfg.Data): // that one is held already
		dir, err := openDataDir(to)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, dir.Close()) }()
	}
	stamp := time.Now().UTC().Format("20060102T150405Z")
	here := cfg.storeConfig(cfg.Data).Path
	if cfg.Store == "" && !again {
		// If this is killed from here on, no server goes on with the file while the rows may be somewhere else.
		from.Path = here + movingSuffix + stamp
		if err := os.Rename(here, from.Path); err != nil {
			return err
		}
	}
	bar := a.progress("migrate")
	rows, before, err := store.Move(ctx, from, target, again, bar.show)
	if bar.end(); err != nil {
		if cfg.Store == "" && !again && !errors.Is(err, store.ErrMoveInDoubt) {
			err = errors.Join(err, os.Rename(from.Path, here))
		}
		return err
	}
	ctx = context.WithoutCancel(ctx) // what is left is done in any case
	if err := a.arrived(ctx, target, core.ActionStoreMigrate, name, ""); err != nil {
		return err
	}
	if cfg.Store == "" {
		old := here + movedSuffix + stamp
		if target.URL == "" {
			old = here + leftSuffix + stamp
		}
		if err := os.Rename(from.Path, old); err != nil {
			return fmt.Errorf("everything is in %s; the old file could not be renamed, see to it that no server uses it: %w", name, err)
		}
		a.note("the old database is kept as %s", old)
	}
	if target.URL == "" && !sameFile(to, cfg.Data) {
		a.note("copy %s, %s and %s into %s before a server starts there", pepperFile, vaultFile, signingFile, to)
	}
	if a.json {
		return a.printJSON(map[string]any{"object": "migration", "to": name, "rows": rows})
	}
	if before {
		_, err = fmt.Fprintf(a.Stdout, "everything was in %s already; the move is finished\n", name)
		return err
	}
	_, err = fmt.Fprintf(a.Stdout, "moved %d rows to %s\n", rows, name)
	return err
}

// addressLike reports whether what is to name a directory begins as an address without its scheme does, with a port or a user: a directory is made where there is
// none, and everything would be moved into it.
func addressLike(to string) bool {
	first, _, _ := strings.Cut(to, "/")
	_, err := os.Stat(to)
	return strings.ContainsAny(first, ":@") && errors.Is(err, fs.ErrNotExist)
}

// keywordLike reports whether what is to name a directory is the other way to write an address of PostgreSQL, such as host=db.example.com password=...
func keywordLike(to string) bool {
	word, _, ok := strings.Cut(strings.TrimSpace(to), "=")
	_, err := os.Stat(to)
	return ok && errors.Is(err, fs.ErrNotExist) &&
		slices.Contains([]string{"host", "hostaddr", "port", "dbname", "user", "password", "passfile", "service", "sslmode", "target_session_attrs"}, strings.TrimSpace(word))
}

// sameFile reports whether both paths lead to one file or directory that exists.
func sameFile(a, b string) bool {
	left, err := os.Stat(a)
	if err != nil {
		return false
	}
	right, err := os.Stat(b)
	return err == nil && os.SameFile(left, right)
}

// alone does something with no server on the file in the data directory. PostgreSQL is asked by the store itself.
func (a *app) alone(cfg *Config, do func() error) (err error) {
	if _, err := os.Stat(cfg.Data); cfg.Store != "" && errors.Is(err, fs.ErrNotExist) {
		return do()
	}
	dir, err := openDataDir(cfg.Data)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	return do()
}

// arrived opens a database that was filled, which proves it, and records in it where its rows came from, or what else was done for them.
func (a *app) arrived(ctx context.Context, sc store.Config, action, object, why string) error {
	s, err := store.Open(ctx, sc)
	if err != nil {
		return err
	}
	e := core.NewEvent(newIDs()(core.PrefixEvent), time.Now(), core.Origin{}, action, object)
	e.Actor, e.Reason = fmt.Sprintf("uid:%d", os.Getuid()), why
	return errors.Join(s.Audit(ctx, e), s.Close())
}

// bar shows progress on a terminal, and nothing elsewhere.
type bar struct {
	to   io.Writer // nil where there is no terminal
	what string

	mu    sync.Mutex
	shown time.Time
}

// barWidth is the length of a bar in characters, barEvery how often it is drawn.
const (
	barWidth = 30
	barEvery = 100 * time.Millisecond
)

func (a *app) progress(what string) *bar {
	b := &bar{what: what}
	if isTerminal(a.Stderr) {
		b.to = a.Stderr
	}
	return b
}

func (b *bar) show(done, total int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.to == nil || total == 0 || done < total && time.Since(b.shown) < barEvery {
		return
	}
	b.shown = time.Now()
	full := int(done * barWidth / total)
	fmt.Fprintf(b.to, "\r%s [%s%s] %3d%% %d of %d rows", b.what, strings.Repeat("#", full), strings.Repeat(".", barWidth-full), done*100/total, done, total)
}

// end leaves the bar and goes to the next line.
func (b *bar) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.to != nil && !b.shown.IsZero() {
		fmt.Fprintln(b.to)
	}
}
