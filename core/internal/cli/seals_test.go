package cli

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/store"
	"github.com/keyfire/keyfire/plugins"
)

// sealedLog keeps events with these reasons in a data directory and seals what is new, as a server does between its start and its stop. It returns what the server logs.
func sealedLog(t *testing.T, path string, reasons ...string) string {
	t.Helper()
	return sealedLogDuring(t, path, func() {}, reasons...)
}

// sealedLogDuring is sealedLog with something that happens before the server stops.
func sealedLogDuring(t *testing.T, path string, during func(), reasons ...string) string {
	t.Helper()
	dir, err := openDataDir(path)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	var log bytes.Buffer
	s := &system{log: slog.New(slog.NewTextHandler(&log, nil)), newID: newIDs()}
	if s.pepper, err = dir.pepper(); err != nil {
		t.Fatal(err)
	}
	if s.store, err = store.Open(t.Context(), store.Config{Path: dir.file(databaseFile), Reserve: -1}); err != nil {
		t.Fatal(err)
	}
	s.closers = append(s.closers, s.store.Close)
	err = s.sealAudit(t.Context(), dir)
	for i, reason := range reasons {
		e := core.NewEvent(fmt.Sprint("evt_", i), time.Unix(int64(i), 0), core.Origin{}, core.ActionKeyRevoke, "key_1")
		e.Reason = reason
		err = errors.Join(err, s.store.Audit(t.Context(), e))
	}
	during()
	if err = errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
	return log.String()
}

// U2: what a server has sealed is found as it was, whatever came after; a log that is another one is found out by audit verify, and by the server, which does not seal it.
func TestAuditIsSealedU2(t *testing.T) {
	t.Parallel()
	dir, other := filepath.Join(t.TempDir(), "data"), filepath.Join(t.TempDir(), "data")
	verify := func(path, head string) (string, error) {
		rep, err := verifyAudit(context.Background(), &dataDir{path: path}, store.Config{Path: filepath.Join(path, databaseFile)}, "", head)
		return fmt.Sprintf("%s %d %d", rep.Head, rep.Sealed, rep.Unsealed), err
	}
	if log := sealedLog(t, dir, "a", "b", "c"); log != "" {
		t.Errorf("logged: %s", log)
	}
	was, err := verify(dir, "")
	head, counts, _ := strings.Cut(was, " ")
	if err != nil || counts != "3 0" {
		t.Fatalf("the log is %s, %v", was, err)
	}
	if log := sealedLog(t, dir, "d"); log != "" {
		t.Errorf("logged: %s", log)
	}
	if is, err := verify(dir, head); err != nil || !strings.HasSuffix(is, " 4 0") {
		t.Fatalf("the log is %s, %v", is, err)
	}

	// Whoever changes events and removes the seals is noticed, while the server works and after.
	if log := sealedLog(t, dir); log != "" {
		t.Errorf("logged: %s", log)
	}
	kept, err := os.ReadFile(filepath.Join(dir, sealFile))
	if err != nil {
		t.Fatal(err)
	}
	removeSeals := func() {
		if err := os.Remove(filepath.Join(dir, sealFile)); err != nil {
			t.Error(err)
		}
	}
	if log := sealedLogDuring(t, dir, removeSeals); !strings.Contains(log, "was removed or replaced while the server works") {
		t.Errorf("seals removed from a server that works: %q", log)
	}
	if log := sealedLog(t, dir); !strings.Contains(log, "there is no audit.seals of what the audit log holds already") {
		t.Errorf("seals that are missing at the start: %q", log)
	}
	if err := os.WriteFile(filepath.Join(dir, sealFile), kept, 0o600); err != nil {
		t.Fatal(err)
	}

	// Another log with the same pepper and the seals of the first one.
	if err := os.MkdirAll(other, 0o700); err != nil {
		t.Fatal(err)
	}
	take := func(name string) {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err == nil {
			err = os.WriteFile(filepath.Join(other, name), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	take(pepperFile)
	sealedLog(t, other, "a", "x", "c", "e", "f")
	take(sealFile)
	if _, err := verify(other, ""); err == nil || !strings.Contains(err.Error(), "event 2 is not the one that was sealed") {
		t.Errorf("another log: %v", err)
	}
	var said bytes.Buffer
	a := &app{Env: Env{Stderr: &said}}
	err = a.sealsAfterRestore(t.Context(), other, store.Config{Path: filepath.Join(other, databaseFile)})
	if err != nil || !strings.Contains(said.String(), "what was restored is not what was sealed: event 2") {
		t.Errorf("a restore of another log: %v, and it says %q", err, said.String())
	}
	if log := sealedLog(t, other, "g"); !strings.Contains(log, "do not belong together") {
		t.Errorf("the server says nothing of it: %q", log)
	}
	before, err := os.ReadFile(filepath.Join(dir, sealFile))
	if err != nil {
		t.Fatal(err)
	}
	if after, err := os.ReadFile(filepath.Join(other, sealFile)); err != nil || !bytes.Equal(before, after) {
		t.Errorf("another log was sealed on, %v", err)
	}
	if err := os.Remove(filepath.Join(other, sealFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := verify(other, ""); err == nil || !strings.Contains(err.Error(), "is missing") {
		t.Errorf("without seals: %v", err)
	}
	if err := os.Remove(filepath.Join(other, pepperFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := verify(other, ""); err == nil {
		t.Error("without a pepper")
	}
	if _, err := os.Stat(filepath.Join(other, pepperFile)); err == nil {
		t.Error("a check has made a pepper")
	}
}

// U2: somebody writes to the file with a program of their own, which knows nothing of the checksums of its pages: the file is damaged then, and the event is named all the same.
func TestAuditTamperedByAnotherProgramU2(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	reasons := make([]string, 300) // of several pages
	for i := range reasons {
		reasons[i] = strings.Repeat("why ", 20)
	}
	sealedLog(t, dir, reasons...)
	file := filepath.Join(dir, databaseFile)
	for _, change := range []struct {
		sql string
		seq int
	}{
		{"update audit set actor = 'user:usr_other' where seq = 271", 271},
		{"delete from audit where seq = 120", 120},
	} {
		db, err := sql.Open("sqlite", "file:"+file)
		if err != nil {
			t.Fatal(err)
		}
		_, err = db.Exec(change.sql)
		if err = errors.Join(err, db.Close()); err != nil {
			t.Fatal(err)
		}
		before, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		_, err = verifyAudit(t.Context(), &dataDir{path: dir}, store.Config{Path: file}, "", "")
		if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("event %d is ", change.seq)) {
			t.Errorf("%s: %v", change.sql, err)
		}
		if after, err := os.ReadFile(file); err != nil || !bytes.Equal(before, after) {
			t.Errorf("%s: the check has changed the file, %v", change.sql, err)
		}
	}
	if left, err := filepath.Glob(filepath.Join(dir, "audit-verify-*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// What is kept of a plugin's event is text, wherever it is cut: a database may refuse half a character, and the event with it.
func TestPluginEventIsText(t *testing.T) {
	t.Parallel()
	s := &system{log: slog.New(slog.DiscardHandler), newID: newIDs()}
	var err error
	if s.store, err = store.Open(t.Context(), store.Config{Path: filepath.Join(t.TempDir(), databaseFile), Reserve: -1}); err != nil {
		t.Fatal(err)
	}
	s.closers = append(s.closers, s.store.Close)
	s.auditPlugin(plugins.Event{Time: time.Now(), Plugin: "hmac", Kind: plugins.EventCrash, Reason: "x" + strings.Repeat("ä", 400)})
	l, err := s.store.AuditEvents(t.Context(), core.DefaultAccount, core.AuditFilter{}, core.Page{Limit: 10})
	if err := errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
	if len(l.Items) != 1 || !utf8.ValidString(l.Items[0].Reason) || len(l.Items[0].Reason) != 499 {
		t.Errorf("%+v", l.Items)
	}
}

// The first server on a database has nothing to say about seals that cannot be there yet; one more event, and somebody may have removed them.
func TestNothingIsSealedYet(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		actions []string
		warned  bool
	}{
		{nil, false},
		{[]string{core.ActionServerStart}, false},
		{[]string{core.ActionServerStart, core.ActionServerStop}, true},
		{[]string{core.ActionSessionShare, core.ActionServerStart}, false},
		{[]string{core.ActionSessionShare, core.ActionServerStart, core.ActionServerStop}, true},
	} {
		var log bytes.Buffer
		s := &system{log: slog.New(slog.NewTextHandler(&log, nil)), newID: newIDs()}
		var err error
		if s.store, err = store.Open(t.Context(), store.Config{Path: filepath.Join(t.TempDir(), databaseFile), Reserve: -1}); err != nil {
			t.Fatal(err)
		}
		for _, action := range c.actions {
			err = errors.Join(err, s.audit(t.Context(), action))
		}
		if err = errors.Join(err, s.sealsBegin(t.Context()), s.store.Close()); err != nil || (log.Len() > 0) != c.warned {
			t.Errorf("%q: %v, logged %q", c.actions, err, &log)
		}
	}
}
