package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"slices"
	"strings"

	"github.com/pressly/goose/v3"
)

//go:embed migrations/*.sql
var migrationFiles embed.FS

const schemaTable = "schema_version"

// migrations returns the files of the schema.
func migrations() fs.FS {
	files, err := fs.Sub(migrationFiles, "migrations")
	if err != nil {
		panic(err) // the path above is not valid, which no input can cause
	}
	return files
}

var (
	createTable = regexp.MustCompile(`(?im)^create table (?:if not exists )?([a-z_]+)`)
	renameTable = regexp.MustCompile(`(?im)^alter table ([a-z_]+) rename to`)
)

// ownTables returns the names of the tables that the migrations make. A schema of PostgreSQL may have others, of whoever else uses the database: they are not
// Keyfire's to read, and least of all to remove.
func ownTables() ([]string, error) {
	files := migrations()
	names, err := fs.Glob(files, "*.sql")
	if err != nil {
		return nil, fmt.Errorf("migrations: %w", err)
	}
	var own []string
	for _, name := range names {
		text, err := fs.ReadFile(files, name)
		if err != nil {
			return nil, fmt.Errorf("migrations: %w", err)
		}
		for _, found := range createTable.FindAllSubmatch(text, -1) {
			own = append(own, string(found[1]))
		}
		for _, found := range renameTable.FindAllSubmatch(text, -1) { // to take the place of another one
			own = slices.DeleteFunc(own, func(name string) bool { return name == string(found[1]) })
		}
	}
	return own, nil
}

// migrate brings the schema of db up to date. Each migration is one transaction, so a crash leaves the schema of one version or
// the next. backup is called, with the present schema version, before a database that has one is changed. A schema newer than
// any migration known here is refused: this binary cannot know what its rows mean.
func migrate(ctx context.Context, dialect goose.Dialect, db *sql.DB, files fs.FS, backup func(schema int64) error) error {
	p, current, newest, err := migrator(ctx, dialect, db, files)
	if err != nil {
		return err
	}
	switch {
	case current == newest:
		return nil
	case current > newest:
		return fmt.Errorf("the database has schema version %d and this binary knows versions up to %d: it was written by a newer Keyfire; "+
			"start that one, or put back the backup that was made before its migration", current, newest)
	case current > 0:
		if err := backup(current); err != nil {
			return err
		}
	}
	err = unreferred(ctx, dialect, db, func() error {
		_, err := p.Up(ctx)
		return err
	})
	if err != nil {
		return fmt.Errorf("migrate the schema from version %d to %d: %w", current, newest, err)
	}
	return nil
}

// unreferred does something while SQLite does not look at what refers to what. It alters most about a table by making a new one in its place, and with the old one
// would go what refers to its rows. A transaction cannot tell it so, and db has one connection.
func unreferred(ctx context.Context, dialect goose.Dialect, db *sql.DB, do func() error) error {
	if dialect != goose.DialectSQLite3 {
		return do()
	}
	if _, err := db.ExecContext(ctx, `pragma foreign_keys = 0`); err != nil {
		return err
	}
	err := do()
	_, again := db.ExecContext(context.WithoutCancel(ctx), `pragma foreign_keys = 1`)
	return errors.Join(err, again)
}

// migrator returns what migrates db, the version it has, and the newest one.
func migrator(ctx context.Context, dialect goose.Dialect, db *sql.DB, files fs.FS) (p *goose.Provider, current, newest int64, err error) {
	if p, err = providerOf(dialect, db, files); err != nil {
		return nil, 0, 0, err
	}
	if current, newest, err = p.GetVersions(ctx); err != nil {
		if notAllowed(err) {
			err = fmt.Errorf("%w; the user has to make tables here, so let it own the database", err)
		}
		return nil, 0, 0, fmt.Errorf("read the schema version: %w", err)
	}
	return p, current, newest, nil
}

// needsMigration reports whether migrate would do something, be it to refuse.
func needsMigration(ctx context.Context, dialect goose.Dialect, db *sql.DB, files fs.FS) (bool, error) {
	_, current, newest, err := migrator(ctx, dialect, db, files)
	return current != newest, err
}

// providerOf returns goose with the migrations of files. It is given what they do, and not the files: its own reader takes a buffer of 4 MiB for a
// line, and cuts into statements what both drivers take as a whole.
func providerOf(dialect goose.Dialect, db *sql.DB, files fs.FS) (*goose.Provider, error) {
	names, err := fs.Glob(files, "*.sql")
	if err != nil {
		return nil, fmt.Errorf("migrations: %w", err)
	}
	steps := make([]*goose.Migration, len(names))
	for i, name := range names {
		version, err := goose.NumericComponent(name)
		if err != nil {
			return nil, fmt.Errorf("migration %s: %w", name, err)
		}
		text, err := fs.ReadFile(files, name)
		if err != nil {
			return nil, fmt.Errorf("migration %s: %w", name, err)
		}
		statements := inDialect(dialect, string(text))
		steps[i] = goose.NewGoMigration(version, &goose.GoFunc{RunTx: func(ctx context.Context, tx *sql.Tx) error {
			if dialect == goose.DialectSQLite3 {
				var refer bool
				if err := tx.QueryRowContext(ctx, `pragma foreign_keys`).Scan(&refer); err != nil || refer {
					return errors.Join(err, errors.New("the connection looks at what refers to what"))
				}
				if version == numbersVersion {
					if err := makeNumbers(ctx, tx); err != nil {
						return err
					}
				}
			}
			_, err := tx.ExecContext(ctx, statements)
			return err
		}}, nil)
	}
	p, err := goose.NewProvider(dialect, db, nil, goose.WithTableName(schemaTable), goose.WithGoMigrations(steps...),
		goose.WithDisableGlobalRegistry(true), goose.WithLogger(goose.NopLogger()))
	if err != nil {
		return nil, fmt.Errorf("migrations: %w", err)
	}
	return p, nil
}

// inDialect returns the part of a migration that is for a database: what stands below a line "-- in SQLite:" or "-- in PostgreSQL:", up to the next such line, is for that one alone.
func inDialect(dialect goose.Dialect, text string) string {
	own := "SQLite"
	if dialect == goose.DialectPostgres {
		own, text = "PostgreSQL", inPostgres(text)
	}
	var b strings.Builder
	taken := true
	for line := range strings.Lines(text) {
		if m := dialectLine.FindStringSubmatch(line); m != nil {
			taken = m[1] == own || m[1] == "both"
		}
		if taken {
			b.WriteString(line)
		}
	}
	return b.String()
}

var (
	dialectLine = regexp.MustCompile(`^-- in (SQLite|PostgreSQL|both):`)

	textColumn = regexp.MustCompile(`(?m)^(\s+\w+\s+text|alter table \w+ add column \w+ text)\b`)
	wideColumn = regexp.MustCompile(`(?m)^(\s+\w+\s+)integer\b`)
)

// inPostgres presents a migration, which is written for both databases, in PostgreSQL's words where those differ: text is compared byte by
// byte, as lists and their cursors rely on, and a number that SQLite calls integer has 64 bits.
func inPostgres(text string) string {
	text = textColumn.ReplaceAllString(text, `$1 collate "C"`)
	return wideColumn.ReplaceAllString(text, `${1}bigint`)
}
