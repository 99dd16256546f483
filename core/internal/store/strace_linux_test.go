package store_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/keyfire/keyfire/core/internal/store"
)

// Kills cannot tell whether what was acknowledged would survive a power failure: the page cache outlives the process. System
// calls can, so these tests watch them, and make them fail.

// traced runs the child under strace on a fresh database and returns what it printed and the trace.
func traced(t *testing.T, straceArgs ...string) (path string, printed, trace []string) {
	t.Helper()
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("NOT TESTED: the order and failure of syncs. There is no strace on this machine")
	}
	dir := t.TempDir()
	path = filepath.Join(dir, "keyfire.db")
	s := open(t, store.Config{Path: path})
	prepare(t, s, key("key_1", 0))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	cmd := child(t, path)
	cmd.Args = append(append([]string{strace, "-f", "-y", "-o", filepath.Join(dir, "trace")}, straceArgs...), cmd.Args...)
	cmd.Path = strace
	out, err := cmd.Output()
	if cmd.ProcessState == nil || !cmd.ProcessState.Exited() {
		t.Fatal(err)
	}
	f, err := os.Open(filepath.Join(dir, "trace"))
	if err != nil {
		t.Skipf("NOT TESTED: the order and failure of syncs. strace does not work here: %v", err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		trace = append(trace, lines.Text())
	}
	return path, strings.Fields(string(out)), trace
}

// admitUntilRefused admits up to 300 runs, one after the other, and prints the id of each that was acknowledged. At the first
// error it dies on the spot.
func admitUntilRefused(path string) error {
	s, err := store.Open(context.Background(), store.Config{Path: path, Reserve: -1})
	if err != nil {
		return err
	}
	for i := range 300 {
		id := fmt.Sprintf("run_%04d", i)
		if _, err := s.Admit(context.Background(), admission(id, "key_1")); err != nil {
			fmt.Fprintln(os.Stderr, i, err)
			os.Exit(1)
		}
		fmt.Println(id)
	}
	return s.Close()
}

var call = regexp.MustCompile(`^(\d+) +(?:<\.\.\. )?(\w+)(?:\(\d+<([^>]*)>| resumed>)`)

// TestSyncOrderD1 checks that no admission is acknowledged between a write to the WAL and the end of the sync that covers it, and that what a sync covers was written in one
// piece.
func TestSyncOrderD1(t *testing.T) {
	inChild(admitUntilRefused)
	t.Parallel()
	_, printed, trace := traced(t, "-e", "trace=pwrite64,fsync,fdatasync,write")
	acks, syncs, writes, dirty := 0, 0, 0, false
	syncing := map[string]bool{} // threads with a sync of the WAL under way
	for _, line := range trace {
		m := call.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		thread, name, file := m[1], m[2], m[3]
		wal, unfinished := strings.HasSuffix(file, "-wal"), strings.Contains(line, "<unfinished")
		switch {
		case name == "pwrite64" && wal:
			dirty = true
			if !strings.Contains(line, "resumed") {
				writes++
			}
		case name == "write" && strings.Contains(line, `"run_`):
			if acks++; dirty {
				t.Fatalf("acknowledged before it was synced: %s", line)
			}
		case (name == "fsync" || name == "fdatasync") && (wal || syncing[thread]):
			if syncing[thread] = unfinished; !unfinished && strings.HasSuffix(line, "= 0") {
				dirty = false
				syncs++
			}
		}
	}
	if acks != 300 || len(printed) != 300 || syncs < 300 {
		t.Fatalf("%d acknowledgements in the trace, %d printed, %d syncs; want 300, 300 and at least as many", acks, len(printed), syncs)
	}
	if writes > syncs {
		t.Errorf("%d writes to the WAL for %d syncs", writes, syncs)
	}
}

// TestSyncErrorD4 lets one sync fail and the process die right after it was told. The frames of the failed commit are in the WAL
// by then, and recovery would take them for committed had the store not written over them first.
func TestSyncErrorD4(t *testing.T) {
	inChild(admitUntilRefused)
	t.Parallel()
	for _, nth := range []int{15, 40, 90} {
		t.Run(fmt.Sprintf("sync %d", nth), func(t *testing.T) {
			t.Parallel()
			// strace counts by thread, so which admission it is varies; that it is one of them is checked.
			inject := fmt.Sprintf("inject=fsync,fdatasync:error=EIO:when=%d", nth)
			path, acked, _ := traced(t, "-e", "trace=fsync,fdatasync", "-e", inject)
			if len(acked) == 300 {
				t.Skip("NOT TESTED: the failure of a sync. No thread came to that many")
			}
			s := open(t, store.Config{Path: path})
			runs, used := runsOf(t, s, "key_1")
			if len(runs) != len(acked) || used != int64(len(acked)) {
				t.Errorf("%d admissions were acknowledged; there are %d runs, and the counter is %d", len(acked), len(runs), used)
			}
			for _, id := range acked {
				if !runs[id] {
					t.Errorf("run %s was acknowledged and is gone", id)
				}
			}
		})
	}
}
