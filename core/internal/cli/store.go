package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/admin"
	"github.com/keyfire/keyfire/core/internal/store"
)

func storeSetting() setting {
	return setting{
		key: "store",
		usage: "PostgreSQL database that holds everything instead of a file in --data, such as postgres://keyfire@db.example.com/keyfire. " +
			"The password belongs into the password file (PGPASSFILE, ~/.pgpass) and not here. Empty: the file.",
		set: func(c *Config, text string) error {
			c.Store = text
			return checkURL(text, "postgres://keyfire@db.example.com/keyfire", "postgres", "postgresql")
		},
	}
}

func queueSetting() setting {
	return setting{
		key: "queue",
		usage: "NATS server with JetStream that several servers on one --store share their work by, such as nats://mq.example.com:4222; " +
			"more addresses of one NATS cluster after commas. Every server must have it, or one is alone. Empty: in memory.",
		set: func(c *Config, text string) error {
			c.Queue = text
			for part := range strings.SplitSeq(text, ",") {
				if err := checkQueue(strings.TrimSpace(part)); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

func queueCredentialsSetting() setting {
	return setting{
		key: "queue_credentials",
		usage: "File that this server proves itself to NATS with: a .creds file as nsc writes it, or the seed of an nkey. A .creds file is read whenever a connection begins, so it may be renewed. " +
			"Empty: the name and password, or the token, in queue.",
		set: func(c *Config, text string) (err error) {
			if text != "" {
				c.QueueProof, err = filepath.Abs(text)
			}
			return err
		},
	}
}

// checkQueue is checkURL for an address of NATS, which knows no parameters: whoever writes one expects something of it.
func checkQueue(text string) error {
	const example = "nats://mq.example.com:4222"
	if err := checkURL(text, example, "nats", "tls", "ws", "wss"); err != nil || text == "" {
		return err
	}
	if u, err := store.ParseURL(text); err == nil && (u.RawQuery != "" || u.Fragment != "") {
		return fmt.Errorf("want an address such as %s, which has no parameters; credentials are in queue_credentials, and SSL_CERT_FILE names the file of a CA to trust", example)
	}
	return nil
}

// checkURL accepts "" and a URL with one of the schemes. The error never quotes the text, which may hold a password.
func checkURL(text, example string, schemes ...string) error {
	if text == "" {
		return nil
	}
	u, err := store.ParseURL(text)
	if errors.Is(err, store.ErrUnescaped) {
		return fmt.Errorf("want an address such as %s: %w", example, err)
	}
	if err != nil || !slices.Contains(schemes, u.Scheme) {
		return fmt.Errorf("want an address such as %s", example)
	}
	return nil
}

// shown is a setting's text without the password that an address in it may hold.
func (e effective) shown() string {
	if (e.key != "store" && e.key != "queue") || e.text == "" {
		return e.text
	}
	if e.key == "store" {
		return store.Redact(e.text)
	}
	parts := strings.Split(e.text, ",")
	for i, part := range parts {
		part = strings.TrimSpace(part)
		if u, err := url.Parse(part); err == nil && u.User != nil {
			if _, named := u.User.Password(); !named {
				u.User = url.User("xxxxx") // a name without a password is a token, for NATS
				part = u.String()
			}
		}
		parts[i] = store.Redact(part)
	}
	return strings.Join(parts, ",")
}

// checkCluster refuses settings that do not go together.
func (c *Config) checkCluster() error {
	if c.Queue != "" && c.Store == "" {
		return errors.New("queue is set and store is not: servers that share a queue must share a database; set --store postgres://..., or leave --queue out")
	}
	if c.QueueProof != "" && c.Queue == "" {
		return errors.New("queue_credentials is set and queue is not: say --queue nats://..., or leave the credentials out")
	}
	return nil
}

// storeConfig says where the database is. The file's name is given for PostgreSQL too: backups made before a migration lie beside it.
func (c *Config) storeConfig(dir string) store.Config {
	return store.Config{Path: filepath.Join(dir, databaseFile), URL: c.Store, Shared: c.Queue != "", MaxPayload: c.MaxPayload}
}

// renamed returns the newest file that the database of a directory was renamed to with a suffix, "" when there is none, or a database.
func renamed(dir, suffix string) (string, error) {
	if _, err := os.Stat(filepath.Join(dir, databaseFile)); !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	all, err := filepath.Glob(filepath.Join(globEscape(dir), databaseFile+suffix+"????????T??????Z")) // and not what SQLite has beside it
	if err != nil || len(all) == 0 {
		return "", err
	}
	return all[len(all)-1], nil
}

// notMoved refuses to begin an empty database where there was one that was moved, or was about to be: a server that was started as before would know no key.
func notMoved(dir string) error {
	moving, err := renamed(dir, movingSuffix)
	if err != nil {
		return err
	}
	if moving != "" {
		return fmt.Errorf("a move of the database of %s was begun and not seen to end: keyfire admin migrate --to the same address finishes it, however far it came; or, to stay here, rename %s to %s",
			dir, filepath.Base(moving), databaseFile)
	}
	if err := notCut(dir); err != nil {
		return err
	}
	moved, err := renamed(dir, movedSuffix)
	if err != nil {
		return err
	}
	left, err := renamed(dir, leftSuffix)
	if err != nil {
		return err
	}
	when := func(file string) string {
		_, at, _ := strings.Cut(filepath.Base(file), "-")
		return at
	}
	now := "to PostgreSQL: say --store postgres://..."
	switch {
	case moved == "" && left == "":
		return nil
	case moved == "" || left != "" && when(left) > when(moved):
		moved, now = left, "to another directory: say --data with that one"
	}
	return fmt.Errorf("the database of %s was moved %s, or, to go back to what was there before, rename %s to %s", dir, now, filepath.Base(moved), databaseFile)
}

// notCut refuses to begin an empty database where one was being restored, or moved to.
func notCut(dir string) error {
	file := filepath.Join(dir, databaseFile)
	if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	switch _, err := os.Stat(file + store.PartSuffix); {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	}
	return fmt.Errorf("a restore of the database of %s, or a move to it, was begun and not seen to end: the same command does it anew; or, to begin with an empty one, remove %s", dir, databaseFile+store.PartSuffix)
}

func globEscape(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}

// present refuses a data directory without a database.
func present(cfg *Config) error {
	if cfg.Store != "" {
		return nil
	}
	if err := notMoved(cfg.Data); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(cfg.Data, databaseFile)); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("there is no database in %s; name its directory with --data, or a PostgreSQL database with --store", cfg.Data)
	}
	return nil
}

// openStore opens the database and reads the keys that are not in it, which must be those that it was used with.
func (s *system) openStore(ctx context.Context, cfg *Config, dir *dataDir) (*auth.Pepper, *admin.Vault, error) {
	var pepper *auth.Pepper
	var err error
	if cfg.Store == "" {
		if err := notMoved(dir.path); err != nil {
			return nil, nil, err
		}
		// Before the database: a missing pepper is only replaced while there is no database that depends on it.
		if pepper, err = dir.pepper(); err != nil {
			return nil, nil, err
		}
	}
	sc := cfg.storeConfig(dir.path)
	sc.Logger = s.log
	if s.store, err = store.Open(ctx, sc); err != nil {
		return nil, nil, err
	}
	s.closers = append(s.closers, s.store.Close)
	if cfg.Store != "" {
		if err := s.keysOfOthers(ctx, dir, cfg.Queue != ""); err != nil {
			return nil, nil, err
		}
		if pepper, err = dir.pepper(); err != nil {
			return nil, nil, err
		}
	}
	vault, made, err := dir.vault()
	if err != nil {
		return nil, nil, err
	}
	if made {
		if n, err := s.store.CountSecrets(ctx); err != nil {
			return nil, nil, err
		} else if n > 0 {
			s.log.Warn("there was no "+vaultFile+", so a new one was made, with which the secrets in the database cannot be read: stop, put back your copy of it, and start again; or set them again", "secrets", n)
		}
	}
	// Before the database knows of this server's keys: from then on, others want all of them.
	if s.signing, s.signingMade, err = dir.signingKeys(); err != nil {
		return nil, nil, err
	}
	fingerprints := map[string][]byte{}
	if cfg.Store != "" {
		// One server may go on with a new one, and has its secrets set again; two servers could not read each other's.
		fingerprints[vaultFile] = vault.Fingerprint()
	}
	for version, b := range pepper.Fingerprints() {
		fingerprints[fmt.Sprintf("%s version %d", pepperFile, version)] = b
	}
	err = s.store.Agree(ctx, fingerprints)
	var differ *core.Error
	if errors.As(err, &differ) && differ.Code == core.CodeConflict {
		var names []string
		for _, f := range differ.Fields {
			names = append(names, f.Pointer)
		}
		slices.Sort(names)
		return nil, nil, fmt.Errorf("%s in %s is not the one that the database was used with, so keys would be unknown here and secrets unreadable; %s",
			strings.Join(names, " and "), dir.path, whereKeysAre(cfg))
	}
	return pepper, vault, err
}

// keysOfOthers refuses to make key files for a database that depends on those of another server. Servers with a queue in common have the keys of session
// tokens in common too, since any of them may be asked by someone who has logged in at another.
func (s *system) keysOfOthers(ctx context.Context, dir *dataDir, several bool) error {
	agreed, err := s.store.Agreed(ctx)
	if err != nil {
		return err
	}
	var missing []string
	for _, name := range []string{pepperFile, vaultFile, signingFile} {
		depends := name == signingFile && several && len(agreed) > 0 || slices.ContainsFunc(agreed, func(f string) bool { return strings.HasPrefix(f, name) })
		if _, err := os.Stat(dir.file(name)); depends && errors.Is(err, fs.ErrNotExist) {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		lost := ""
		if len(missing) == 1 && missing[0] == signingFile {
			lost = ". Where no server has it any more, one that is started without --queue makes it"
		}
		return fmt.Errorf("not in %s, and needed with this database: %s; copy what is missing there, with mode 0600, from the data directory of a server that runs on it%s",
			dir.path, strings.Join(missing, ", "), lost)
	}
	return nil
}

func whereKeysAre(cfg *Config) string {
	if cfg.Store == "" {
		return "put back the copy of it that goes with the database and that no backup holds"
	}
	return "copy it from the data directory of a server that runs on this database"
}

// watchEvery is how often a server looks for inline runs of servers that died.
const watchEvery = 5 * time.Second

// watchServers records, until the system is closed, what other servers that were killed left behind. They may never come back themselves.
func (s *system) watchServers(ctx context.Context) {
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	var watch sync.WaitGroup
	watch.Go(func() {
		tick := time.NewTicker(watchEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if err := s.recover(ctx); err != nil && ctx.Err() == nil {
				s.log.Warn("what servers that died have left was not looked for; trying again soon", "error", err)
			}
			if err := s.requeue(ctx); err != nil && ctx.Err() == nil {
				s.log.Warn("accepted runs that the queue lacks were not all queued again; trying again soon", "error", err)
			}
		}
	})
	s.closers = append(s.closers, func() error { stop(); watch.Wait(); return nil })
}
