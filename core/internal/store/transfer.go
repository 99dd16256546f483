package store

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/pressly/goose/v3"
)

// place is a database that is dumped or filled as a whole, apart from any store on it. cfg is one of a store; only Path, URL and Now count.
type place struct {
	cfg     Config
	db      *sql.DB
	catalog catalog
	opts    *sql.TxOptions
	dialect goose.Dialect
	alone   io.Closer // keeps servers away, nil when they may work on
}

func (p *place) close() error {
	var errs []error
	if p.alone != nil {
		errs = append(errs, p.alone.Close())
	}
	return errors.Join(append(errs, p.db.Close())...)
}

// How a database is opened as a whole.
type use int

const (
	useSnapshot use = iota // read, while servers work with it
	useCopy                // the same, of a standby too
	useAlone               // read, with no server on it
	useFill                // written, with no server on it
)

// openPlace opens a database. That no server has an SQLite file is for the caller to see to, who knows its directory.
func openPlace(ctx context.Context, cfg Config, how use) (*place, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	if cfg.URL != "" {
		pg, err := newPostgres(&cfg)
		if err != nil {
			return nil, err
		}
		pg.reads = how == useSnapshot || how == useCopy
		pg.standby = how == useCopy && !pg.several
		p := pg.place(pg.pool(2))
		if err = pg.check(ctx, p.db); err == nil && !pg.reads {
			p.alone, err = pg.alone(ctx)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", cfg.name(), errors.Join(err, p.close()))
		}
		return p, nil
	}
	// Not read-only: such a connection would leave its log behind.
	options := url.Values{"mode": {"rw"}}
	if how == useFill {
		options = writeOptions
		if err := makeDatabase(cfg.Path); err != nil {
			return nil, err
		}
	} else if _, err := os.Stat(cfg.Path); err != nil {
		return nil, err
	}
	db, err := dial(ctx, cfg.Path, 1, options)
	if err != nil {
		return nil, err
	}
	return &place{cfg: cfg, db: db, catalog: sqliteCatalog, dialect: goose.DialectSQLite3}, nil
}

// Backup writes the database that cfg names to a new file, as it is at one moment, while servers go on working with it: a copy of
// the file for SQLite, a compressed dump for PostgreSQL. The file has its name only once it is whole and synced, and never replaces another.
func Backup(ctx context.Context, cfg Config, to string, progress Progress) error {
	p, err := openPlace(ctx, cfg, useCopy)
	if err != nil {
		return fmt.Errorf("back up: %w", err)
	}
	defer p.close() //nolint:errcheck // what was read or written is checked before
	if err := p.backup(ctx, to, progress); err != nil {
		return fmt.Errorf("back up to %s: %w", to, err)
	}
	return nil
}

func (p *place) backup(ctx context.Context, to string, progress Progress) error {
	return newFile(to, func(f *os.File) error {
		if p.dialect == goose.DialectSQLite3 {
			if err := verify(ctx, p.db, p.cfg.Path); err != nil {
				return fmt.Errorf("the database is damaged, and a copy of it would be no backup: %w", err)
			}
			_, err := p.db.ExecContext(ctx, `vacuum into $1`, f.Name())
			return err
		}
		z := gzip.NewWriter(f)
		if err := p.dump(ctx, z, progress); err != nil {
			return err
		}
		return z.Close()
	})
}

func (p *place) dump(ctx context.Context, w io.Writer, progress Progress) error {
	from, err := newSource(ctx, p.db, p.opts, p.catalog)
	if err != nil {
		return err
	}
	defer from.close()
	d := newDumpWriter(w)
	_, err = from.copyTo(ctx, d.header, d, p.cfg.Now(), progress)
	return err
}

// PartSuffix is what the name of a file ends with in addition while it is being filled: by Restore, Move, Backup or Export. One that is there without a process which fills it was left by one that
// was killed, and is replaced by the next.
const PartSuffix = ".part"

// newFile makes a file of the owner's only, which fill writes. It has its name only once it is whole and synced.
func newFile(to string, fill func(*os.File) error) error {
	if _, err := os.Lstat(to); err == nil {
		return errors.New("there is a file of that name already, and it is left as it is; choose another name")
	}
	part := to + PartSuffix
	f, err := partFile(part)
	if err != nil {
		return err
	}
	err = fill(f)
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = nameFile(part, to)
	}
	// Closed last: the lock keeps others from taking the file for one that was left.
	err = errors.Join(err, removePart(part), f.Close())
	if err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(to))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// partFile makes the file that is filled, in place of what a process that was killed has left: SQLite would take the log of that for one of the new file. It refuses when
// another process is filling one.
func partFile(part string) (*os.File, error) {
	switch old, err := os.OpenFile(part, os.O_RDWR|syscall.O_NOFOLLOW, 0); {
	case err == nil:
		if syscall.Flock(int(old.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
			return nil, errors.Join(fmt.Errorf("another process is writing %s", part), old.Close())
		}
		if err := errors.Join(removePart(part), old.Close()); err != nil {
			return nil, err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	if err := removeLogs(part); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(part, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
		return nil, errors.Join(fmt.Errorf("another process is writing %s", part), f.Close())
	}
	return f, nil
}

// nameFile gives a file its name, and unlike a rename never replaces another one. Where the file system has no links, as on many a stick and share that backups are
// written to, an empty file takes the name first.
func nameFile(part, to string) error {
	err := os.Link(part, to)
	if !errors.Is(err, syscall.EPERM) && !errors.Is(err, syscall.ENOTSUP) && !errors.Is(err, syscall.ENOSYS) {
		return err
	}
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Close(), os.Rename(part, to))
}

// removePart removes the file that was filled, unless it has its name only, and what SQLite left beside it.
func removePart(part string) error {
	if err := os.Remove(part); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return removeLogs(part)
}

// Export writes the database that cfg names as a dump, as it is at one moment, while servers go on working with it.
func Export(ctx context.Context, cfg Config, w io.Writer, progress Progress) error {
	p, err := openPlace(ctx, cfg, useCopy)
	if err == nil {
		defer p.close() //nolint:errcheck // what was read or written is checked before
		err = p.dump(ctx, w, progress)
	}
	if err != nil {
		return fmt.Errorf("export: %w", err)
	}
	return nil
}

// ExportFile is Export to a new file. The file has its name only once it is whole and synced, and never replaces another.
func ExportFile(ctx context.Context, cfg Config, to string, progress Progress) error {
	p, err := openPlace(ctx, cfg, useCopy)
	if err != nil {
		return fmt.Errorf("export: %w", err)
	}
	defer p.close() //nolint:errcheck // what was read or written is checked before
	if err := newFile(to, func(f *os.File) error { return p.dump(ctx, f, progress) }); err != nil {
		return fmt.Errorf("export to %s: %w", to, err)
	}
	return nil
}

// Restore fills the database that cfg names, which must be empty, from a backup of either kind or an export, and brings its
// schema up to date. It takes all of it or nothing. A backup that is damaged, or whose schema is newer than this binary's, is refused.
func Restore(ctx context.Context, cfg Config, from string, progress Progress) error {
	if err := cfg.check(); err != nil {
		return err
	}
	f, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	defer f.Close()
	if err := restore(ctx, cfg, f, progress); err != nil {
		return fmt.Errorf("restore %s: %w", from, err)
	}
	return nil
}

func restore(ctx context.Context, cfg Config, f *os.File, progress Progress) error {
	in := bufio.NewReader(f)
	switch magic, _ := in.Peek(16); {
	case bytes.Equal(magic, []byte("SQLite format 3\x00")):
		if cfg.URL == "" {
			return restoreFile(ctx, cfg, f)
		}
		// A copy, because SQLite would write its log beside the backup.
		dir, err := os.MkdirTemp("", "keyfire-restore")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		copied := Config{Path: filepath.Join(dir, "keyfire.db"), Now: cfg.Now, Logger: cfg.Logger}
		if err := restoreFile(ctx, copied, f); err != nil {
			return err
		}
		_, _, err = Move(ctx, copied, cfg, false, progress)
		return err
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(in)
		if err != nil {
			return err
		}
		return restoreDump(ctx, cfg, z, progress)
	default:
		return restoreDump(ctx, cfg, in, progress)
	}
}

// freeFile refuses a place where there is a database, or what one has left: SQLite would take an old log for that of the new file.
func freeFile(path string) error {
	for _, end := range []string{"", "-wal", "-shm", "-journal"} {
		if _, err := os.Lstat(path + end); err == nil {
			return fmt.Errorf("%s exists already, and it is left as it is: move it away first", path+end)
		}
	}
	return nil
}

// restoreFile puts a copy of an SQLite database in its place.
func restoreFile(ctx context.Context, cfg Config, f *os.File) error {
	if err := freeFile(cfg.Path); err != nil {
		return err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	return newFile(cfg.Path, func(to *os.File) error {
		if _, err := io.Copy(to, f); err != nil {
			return err
		}
		// Read only, as one file: nothing is left beside it.
		db, err := dial(ctx, to.Name(), 1, url.Values{"mode": {"ro"}, "immutable": {"1"}})
		if faultOf(err) == faultDamage {
			return fmt.Errorf("the backup is damaged: %w", err)
		}
		if err != nil {
			return err
		}
		err = verify(ctx, db, to.Name())
		if err == nil {
			_, err = refuseNewer(ctx, goose.DialectSQLite3, db)
		}
		if faultOf(err) == faultDamage {
			err = fmt.Errorf("the backup is damaged: %w", err)
		}
		return errors.Join(err, db.Close())
	})
}

// refuseNewer returns the version of a database's schema and refuses one that this binary does not know.
func refuseNewer(ctx context.Context, dialect goose.Dialect, db *sql.DB) (int64, error) {
	var current int64
	if err := db.QueryRowContext(ctx, sqlSchemaVersion).Scan(&current); err != nil {
		return 0, fmt.Errorf("this is not a database of Keyfire: %w", err)
	}
	p, err := providerOf(dialect, db, migrations())
	if err != nil {
		return 0, err
	}
	sources := p.ListSources()
	return current, knownSchema(current, sources[len(sources)-1].Version)
}

func knownSchema(version, newest int64) error {
	if version > newest {
		return fmt.Errorf("it has schema version %d and this binary knows versions up to %d: it was written by a newer Keyfire; use that one", version, newest)
	}
	return nil
}

func restoreDump(ctx context.Context, cfg Config, r io.Reader, progress Progress) error {
	d, err := newDumpReader(r)
	if err != nil {
		return err
	}
	return fill(ctx, cfg, d.h.Schema, func(s sink) error {
		_, err := d.copyTo(ctx, s, progress)
		return err
	})
}

// Move copies the database that from names into the empty one that to names, of whatever kind each is, and returns how many rows that
// were. It takes all of it or nothing. No server may run on either: what is accepted meanwhile would not be in the copy.
//
// Before anything is copied, a PostgreSQL database is marked as one that is being moved, and afterwards as moved; either is refused from then on. The caller does the same with the
// name of a file, and says with again that it finds one of a move that was not seen to end. Such a move, of either kind, is finished: before is true when the copy was complete already.
func Move(ctx context.Context, from, to Config, again bool, progress Progress) (rows int64, before bool, err error) {
	p, err := openPlace(ctx, from, useAlone)
	if err == nil {
		defer p.close() //nolint:errcheck // what was read or written is checked before
		rows, before, err = p.move(ctx, to, again, progress)
	}
	if err != nil {
		return 0, false, fmt.Errorf("migrate: %w", err)
	}
	return rows, before, nil
}

func (p *place) move(ctx context.Context, to Config, again bool, progress Progress) (rows int64, before bool, err error) {
	marked := p.cfg.URL != ""
	if marked {
		begun, err := movedTo(ctx, p.db, sqlMovingTo)
		if err != nil {
			return 0, false, err
		}
		again = begun != ""
	}
	if again {
		if before, err = p.copied(ctx, to); err != nil {
			return 0, false, fmt.Errorf("look for what an earlier move has left in %s: %w", to.name(), err)
		}
	}
	if !before {
		if rows, err = p.copyInto(ctx, to, progress); err != nil {
			if errors.Is(err, errCommit) {
				if there, cerr := p.copied(context.WithoutCancel(ctx), to); there || cerr != nil {
					return 0, false, fmt.Errorf("%w: %w", ErrMoveInDoubt, err)
				}
			}
			if marked && !again {
				_, uerr := p.db.ExecContext(context.WithoutCancel(ctx), sqlMovingToD)
				err = errors.Join(err, uerr)
			}
			return 0, false, err
		}
	}
	if marked {
		err = p.leave(context.WithoutCancel(ctx), to.name())
	}
	return rows, before, err
}

func (p *place) copyInto(ctx context.Context, to Config, progress Progress) (rows int64, err error) {
	s, err := newSource(ctx, p.db, p.opts, p.catalog)
	if err != nil {
		return 0, err
	}
	defer s.close()
	if p.cfg.URL != "" {
		// If this is killed from here on, no server goes on with it while the rows may be somewhere else. What is copied was read before.
		if _, err := p.db.ExecContext(ctx, sqlMovingToW, []byte(to.name())); err != nil {
			return 0, err
		}
	}
	err = fill(ctx, to, s.schema, func(into sink) (err error) {
		rows, err = s.copyTo(ctx, func(dumpHeader) error { return nil }, into, time.Time{}, progress)
		return err
	})
	return rows, err
}

// ErrMoveInDoubt is the error of a move whose commit was not answered: everything may be in the other database, or nothing. Moving again finds out.
var ErrMoveInDoubt = errors.New("it is not known whether everything arrived; run the same command again")

var errCommit = errors.New("commit")

const sqlLastEvent = `select seq, id from audit order by seq desc limit 1`

// copied reports whether a database holds what a move of this one has put there: its audit log begins with all of this one's, which takes nothing but a copy. It may have been
// used since, and this one was not.
func (p *place) copied(ctx context.Context, to Config) (bool, error) {
	var seq int64
	var id, theirs string
	switch err := p.db.QueryRowContext(ctx, sqlLastEvent).Scan(&seq, &id); {
	case errors.Is(err, sql.ErrNoRows):
		return false, nil // there is nothing to lose
	case err != nil:
		return false, err
	}
	other, err := openPlace(ctx, to, useSnapshot)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer other.close() //nolint:errcheck // only read
	// A database that was not filled may have no schema, or a part of one.
	if tables, err := describeAll(ctx, other); err != nil || !slices.Contains(tables, "audit") {
		return false, err
	}
	err = other.db.QueryRowContext(ctx, `select id from audit where seq = $1`, seq).Scan(&theirs)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return theirs == id, err
}

// describeAll returns the names of a database's tables.
func describeAll(ctx context.Context, p *place) ([]string, error) {
	tx, err := p.db.BeginTx(ctx, nil)
	if err != nil {
		return nil, err
	}
	defer tx.Rollback() //nolint:errcheck // only read
	tables, err := describe(ctx, tx, p.catalog)
	names := make([]string, len(tables))
	for i, t := range tables {
		names[i] = t.name
	}
	return names, err
}

const (
	settingMovedTo = "moved_to" // in a database that was left, where everything was moved
	sqlMovedTo     = `select value from settings where name = '` + settingMovedTo + `'`
	sqlMovedToW    = `insert into settings (name, value) values ('` + settingMovedTo + `', $1) on conflict (name) do update set value = excluded.value`

	settingMovingTo = "moving_to" // in a database that is being moved
	sqlMovingTo     = `select value from settings where name = '` + settingMovingTo + `'`
	sqlMovingToW    = `insert into settings (name, value) values ('` + settingMovingTo + `', $1) on conflict (name) do update set value = excluded.value`
	sqlMovingToD    = `delete from settings where name = '` + settingMovingTo + `'`

	sqlMarksD = `delete from settings where name in ('` + settingMovedTo + `', '` + settingMovingTo + `')`
)

// movedTo returns where a mark says that the data of a database was, or is being, moved to; "" without that mark.
func movedTo(ctx context.Context, db *sql.DB, mark string) (to string, err error) {
	if err = db.QueryRowContext(ctx, mark).Scan(&to); errors.Is(err, sql.ErrNoRows) {
		err = nil
	}
	return to, err
}

// leave marks a database whose data was moved, so that no server goes on with what is left in it. The caller of Move renames a file for the same.
func (p *place) leave(ctx context.Context, to string) error {
	_, err := p.db.ExecContext(ctx, sqlMovedToW, []byte(to))
	if err == nil {
		_, err = p.db.ExecContext(ctx, sqlMovingToD)
	}
	if err != nil {
		return fmt.Errorf("everything is in %s; %s could not be marked as left, see to it that no server uses it: %w", to, p.cfg.name(), err)
	}
	return nil
}

// refuseLeft returns an error when the data of this database was moved to another, or is being moved.
func (s *Store) refuseLeft(ctx context.Context) error {
	to, err := movedTo(ctx, s.points, sqlMovedTo)
	if err != nil {
		return err
	}
	if to != "" {
		return fmt.Errorf("everything was moved to %s: use that, or, to go back to what was here before, delete from settings where name = '%s'", to, settingMovedTo)
	}
	if to, err = movedTo(ctx, s.points, sqlMovingTo); err != nil || to == "" || s.cfg.Leaving {
		return err
	}
	return fmt.Errorf("a move to %s was begun and not seen to end: keyfire admin migrate --to the same address finishes it; or, to stay here, delete from settings where name = '%s'", to, settingMovingTo)
}

// fill makes the schema of the given version in an empty database, has it filled in one transaction, and brings the schema up to date.
func fill(ctx context.Context, cfg Config, schema int64, with func(sink) error) error {
	if cfg.URL == "" {
		if err := freeFile(cfg.Path); err != nil {
			return err
		}
		return newFile(cfg.Path, func(f *os.File) error {
			cfg.Path = f.Name()
			return fillPlace(ctx, cfg, schema, with)
		})
	}
	return fillPlace(ctx, cfg, schema, with)
}

// removeLogs removes what a database that was not closed in order has left beside it.
func removeLogs(path string) error {
	for _, end := range []string{"-wal", "-shm", "-journal", ".reserve"} {
		if err := os.Remove(path + end); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func fillPlace(ctx context.Context, cfg Config, schema int64, with func(sink) error) (err error) {
	p, err := openPlace(ctx, cfg, useFill)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	provider, current, newest, err := migrator(ctx, p.dialect, p.db, migrations())
	if err != nil {
		return err
	}
	if err := knownSchema(schema, newest); err != nil {
		return err
	}
	if current != 0 {
		if unused, err := p.unused(ctx); err != nil {
			return err
		} else if !unused {
			return fmt.Errorf("%s holds data of Keyfire already, and it is left as it is: name an empty database", cfg.name())
		}
		if err := p.clear(ctx); err != nil {
			return err
		}
		if provider, _, newest, err = migrator(ctx, p.dialect, p.db, migrations()); err != nil {
			return err
		}
	}
	err = unreferred(ctx, p.dialect, p.db, func() error {
		_, err := provider.UpTo(ctx, schema)
		return err
	})
	if err != nil {
		return fmt.Errorf("make the schema: %w", err)
	}
	if err = p.load(ctx, with); err != nil {
		// A file is thrown away as a whole; a database is left as it was found.
		return errors.Join(err, p.clear(context.WithoutCancel(ctx)))
	}
	err = unreferred(ctx, p.dialect, p.db, func() error {
		_, err := provider.Up(ctx)
		return err
	})
	if err != nil {
		return fmt.Errorf("migrate the schema from version %d to %d: %w", schema, newest, err)
	}
	return nil
}

// unused reports whether a database has Keyfire's schema and nothing in it, as after a fill that was killed: the first thing that a server does leaves an event in the audit
// log, from which nothing is ever deleted.
func (p *place) unused(ctx context.Context) (unused bool, err error) {
	err = p.db.QueryRowContext(ctx, `select not exists (select 1 from audit)`).Scan(&unused)
	return unused, err
}

// load has the tables filled in one transaction.
func (p *place) load(ctx context.Context, with func(sink) error) error {
	own, err := ownTables()
	if err != nil {
		return err
	}
	tx, err := p.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if err = with(&sqlSink{tx: tx, own: own}); err == nil {
		_, err = tx.ExecContext(ctx, sqlMarksD) // the marks are of the database that it was in
	}
	if err != nil {
		_ = tx.Rollback() // what that fails with is not news
		if ctx.Err() != nil && !errors.Is(err, ctx.Err()) {
			return ended(ctx) // which ends the transaction too, and what is done with it then fails with that
		}
		return err
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("%w: %w", errCommit, err)
	}
	return nil
}

// clear removes the tables that the migrations have made.
func (p *place) clear(ctx context.Context) error {
	tx, err := p.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	tables, err := describe(ctx, tx, p.catalog)
	names := slices.Clone(passing)
	for _, t := range tables {
		names = append(names, t.name)
	}
	for _, name := range slices.Backward(names) {
		if err == nil {
			_, err = tx.ExecContext(ctx, "drop table if exists "+name)
		}
	}
	if err != nil {
		_ = tx.Rollback() // what that fails with is not news
		return err
	}
	return tx.Commit()
}
