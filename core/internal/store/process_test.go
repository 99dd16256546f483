//go:build unix

package store_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/store"
)

// Some tests need a process of their own to kill or to starve. They start this binary again, with the one test and this variable,
// and the test then plays the other part.
const childVar = "KEYFIRE_STORE_TEST_CHILD"

// inChild plays the child's part if this is the child, and does not return then.
func inChild(play func(path string) error) {
	path := os.Getenv(childVar)
	if path == "" {
		return
	}
	if err := play(path); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// child returns a command that plays the child's part of this test, with the database or directory at path.
func child(t *testing.T, path string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	test, _, _ := strings.Cut(t.Name(), "/")
	cmd := exec.CommandContext(t.Context(), self, "-test.run", "^"+test+"$")
	cmd.Env = append(os.Environ(), childVar+"="+path)
	cmd.Stderr = t.Output()
	return cmd
}

// TestKillQ1 kills a process that admits runs as fast as it can, again and again, and checks after each death: every admission
// that was acknowledged is there, the counter is the number of runs, and neither ever passes the limit.
func TestKillQ1(t *testing.T) {
	inChild(admitUntilKilled)
	t.Parallel()
	const limit = 3000
	rounds := 5
	if os.Getenv("KEYFIRE_CHAOS") != "" {
		rounds = 40
	}
	path := filepath.Join(t.TempDir(), "keyfire.db")
	s := open(t, store.Config{Path: path})
	prepare(t, s, key("key_1", limit))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	acked := map[string]bool{}
	for round := range rounds {
		cmd := child(t, path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// A number of acknowledgements is as good a moment as a number of milliseconds, and does not depend on the machine.
		killAfter := 1 + random.IntN(400)
		lines := bufio.NewScanner(out)
		n := 0
		for lines.Scan() {
			acked[lines.Text()] = true
			if n++; n == killAfter {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := cmd.Wait(); err != nil && cmd.ProcessState.Exited() {
			t.Fatalf("round %d: the process failed by itself: %v", round, err)
		}

		s := open(t, store.Config{Path: path})
		runs, used := runsOf(t, s, "key_1")
		if n < killAfter && used < limit {
			t.Fatalf("round %d: the process ended after %d admissions, at %d of %d runs, before it was killed", round, n, used, limit)
		}
		if int64(len(runs)) != used || used > limit {
			t.Fatalf("round %d: counter = %d, runs = %d, limit = %d", round, used, len(runs), limit)
		}
		for id := range acked {
			if !runs[id] {
				t.Fatalf("round %d: run %s was acknowledged and is gone", round, id)
			}
		}
		t.Logf("round %d: killed after %d, %d acknowledged so far, %d runs", round, killAfter, len(acked), len(runs))
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// admitUntilKilled admits runs from 32 goroutines and prints the id of each that was acknowledged, in one write.
func admitUntilKilled(path string) error {
	s, err := store.Open(context.Background(), store.Config{Path: path, Reserve: -1})
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	for g := range 32 {
		wg.Go(func() {
			for i := 0; ; i++ {
				id := fmt.Sprintf("run_%d_%d_%d", os.Getpid(), g, i)
				if _, err := s.Admit(context.Background(), admission(id, "key_1")); err != nil {
					if core.CodeOf(err) != core.CodeQuotaExhausted {
						fmt.Fprintln(os.Stderr, err)
					}
					return
				}
				fmt.Println(id)
			}
		})
	}
	wg.Wait()
	return s.Close()
}

// TestWriteErrorD4 lets writing fail in the middle of a transaction and checks that the store says so, keeps reading, comes back by
// itself when writing works again, and has exactly what it acknowledged.
func TestWriteErrorD4(t *testing.T) {
	inChild(writePastLimit)
	t.Parallel()
	out, err := child(t, filepath.Join(t.TempDir(), "keyfire.db")).Output()
	if err != nil || !strings.Contains(string(out), regained) {
		t.Fatalf("%v\n%s", err, out)
	}
}

// writePastLimit makes writes beyond a file size fail with EFBIG, which SQLite reports as an I/O error.
func writePastLimit(path string) error {
	signal.Ignore(syscall.SIGXFSZ)
	s, err := store.Open(context.Background(), store.Config{Path: path, Reserve: -1})
	if err != nil {
		return err
	}
	defer s.Close()
	limitFiles := func(size uint64) error {
		var l syscall.Rlimit
		if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &l); err != nil {
			return err
		}
		l.Cur = min(size, l.Max)
		return syscall.Setrlimit(syscall.RLIMIT_FSIZE, &l)
	}
	return loseAndRegainSpace(s, func() error { return limitFiles(300 << 10) }, func() error { return limitFiles(1 << 40) }, nil)
}

// loseAndRegainSpace writes until it fails after lose, checks what still works, and that everything does after regain. whileLost
// checks further what works in between.
func loseAndRegainSpace(s *store.Store, lose, regain func() error, whileLost func() error) error {
	ctx := context.Background()
	acked := map[string]bool{}
	note := func(id string) error {
		ev := accepted(id)
		ev.Reason = strings.Repeat("x", 4000)
		err := s.Audit(ctx, ev)
		if err == nil {
			acked[id] = true
		}
		return err
	}
	if err := note("before"); err != nil {
		return err
	}
	if err := lose(); err != nil {
		return err
	}
	var failed error
	for i := 0; failed == nil; i++ {
		if i == 100_000 {
			return errors.New("writing never failed")
		}
		failed = note(fmt.Sprintf("while_%d", i))
	}
	if core.CodeOf(failed) != core.CodeStoreUnavailable {
		return fmt.Errorf("a write that fails: %w, want store_unavailable", failed)
	}
	fmt.Fprintf(os.Stderr, "after %d writes: %v\n", len(acked), failed)
	// What was too little for the event may be enough for a few pings, which are smaller.
	err := s.Ping(ctx)
	for tries := 0; err == nil && tries < 100; tries++ {
		if failed = note(fmt.Sprintf("ping_%d", tries)); failed == nil {
			return errors.New("an event was written although there is no space for one")
		}
		err = s.Ping(ctx)
	}
	if core.CodeOf(err) != core.CodeStoreUnavailable {
		return fmt.Errorf("Ping while nothing can be written: %w, want store_unavailable", err)
	}
	if _, err := s.AuditEvents(ctx, core.DefaultAccount, core.AuditFilter{}, core.Page{}); err != nil {
		return fmt.Errorf("reading while nothing can be written: %w", err)
	}
	if whileLost != nil {
		if err := whileLost(); err != nil {
			return err
		}
	}
	if err := regain(); err != nil {
		return err
	}
	// The store tries to come back once a second at most.
	for s.Ping(ctx) != nil {
		time.Sleep(50 * time.Millisecond)
	}
	if err := note("after"); err != nil {
		return fmt.Errorf("writing again: %w", err)
	}
	if err := wantEvents(s, acked); err != nil {
		return err
	}
	fmt.Println(regained)
	return nil
}

// regained is what a child prints after it has checked everything.
const regained = "space was lost and regained"

// wantEvents checks that the audit log has exactly the noted events that were acknowledged, and no gaps.
func wantEvents(s *store.Store, acked map[string]bool) error {
	var p core.Page
	last := int64(0)
	for p.Limit = core.MaxPage; ; {
		l, err := s.AuditEvents(context.Background(), core.DefaultAccount, core.AuditFilter{}, p)
		if err != nil {
			return err
		}
		for _, ev := range l.Items {
			if last != 0 && ev.Seq != last-1 {
				return fmt.Errorf("event %d is followed by %d", ev.Seq, last)
			}
			last = ev.Seq
			if ev.Action != core.ActionRunAccept {
				continue
			}
			if !acked[ev.Object] {
				return fmt.Errorf("event %q was refused and is there", ev.Object)
			}
			delete(acked, ev.Object)
		}
		if p.Cursor = l.Next; p.Cursor == "" {
			break
		}
	}
	if len(acked) > 0 {
		return fmt.Errorf("%d events were acknowledged and are gone", len(acked))
	}
	return nil
}
