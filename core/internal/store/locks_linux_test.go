package store

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// D1: while the database is open, another process finds that it is. One that does not, such as the sqlite3 shell, removes the WAL when it is done, and what is committed
// from then on is in no file.
func TestDatabaseStaysLockedD1(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "keyfire.db")
	file, err := os.Create(path) // closed at the end: closing it gives up what this test is about
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	locked := func() bool {
		const getOFD, shared, sharedLen = 36, 0x40000002, 510 // F_OFD_GETLK, which sees the locks of this process, and where SQLite's are
		lock := syscall.Flock_t{Type: syscall.F_WRLCK, Start: shared, Len: sharedLen}
		if err := syscall.FcntlFlock(file.Fd(), getOFD, &lock); err != nil {
			t.Fatal(err)
		}
		return lock.Type != syscall.F_UNLCK
	}
	if locked() {
		t.Error("a file that nobody uses is locked")
	}
	part := path + ".new"
	if err := makeDatabase(part); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(part)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.Write(content); err != nil {
		t.Fatal(err)
	}
	s, err := Open(t.Context(), Config{Path: path, Reserve: -1})
	if err != nil {
		t.Fatal(err)
	}
	if !locked() {
		t.Error("the database is open, and not locked")
	}
	again, err := s.writer.connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := again.close(); err != nil {
		t.Error(err)
	}
	if !locked() {
		t.Error("the database is not locked after another connection was made")
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if locked() {
		t.Error("the database is closed, and locked")
	}
}
