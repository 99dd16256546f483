package plugins

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyfire/keyfire/core"
)

// TestFaultsA1 has a plugin fail in every way there is, while its neighbour is asked all the time. A fault may cost answers of the
// plugin that has it, for at most five seconds, and nothing else.
func TestFaultsA1(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		fault    string
		restarts bool
		answer   core.Code // of the call that has the fault
	}{
		{"kill", true, core.CodeAuthUnavailable},
		{"crash", true, core.CodeAuthUnavailable},
		{"exit 0", true, core.CodeAuthUnavailable},
		{"stop", true, core.CodeAuthUnavailable},
		{"half reply", true, ""}, // either the answer or the end of the process comes first
		{"slow", false, core.CodeAuthUnavailable},
		{"deaf", false, core.CodeAuthUnavailable},
		{"panic", false, core.CodeAuthUnavailable},
		{"big reply", false, core.CodeAuthUnavailable},
		{"flood", false, ""}, // in time or not, depending on the machine
	} {
		t.Run(tc.fault, func(t *testing.T) {
			t.Parallel()
			ill := pluginHere(t, "ill")
			ill.Timeout = DefaultTimeout
			h := startHost(t, ill, pluginHere(t, "well"))
			before := h.status(t, "well").PID
			began := time.Now()
			_, err := h.ask(t, "ill", tc.fault)
			if took := time.Since(began); took > DefaultTimeout+time.Second {
				t.Errorf("the call took %s", took)
			}
			if got := core.CodeOf(err); tc.answer != "" && got != tc.answer {
				t.Errorf("answer %v, want %s", err, tc.answer)
			}
			if tc.restarts {
				h.events.await(t, "ill", EventCrash, 1)
				h.events.await(t, "ill", EventRestart, 1)
			}
			eventually(t, 5*time.Second, "the plugin answers again", func() bool {
				if _, err := h.ask(t, "well", "ok"); err != nil {
					t.Fatalf("the neighbour failed: %v", err)
				}
				_, err := h.ask(t, "ill", "ok")
				return err == nil
			})
			if s := h.status(t, "well"); s.PID != before || s.Failures != 0 {
				t.Errorf("the neighbour is affected: %+v", s)
			}
		})
	}
}

// TestFaultStorm is the same under load, once through all faults: good and bad credentials beside them, several callers, and a count of what is left. The
// promised thousand faults, with a whole server around, are TestChaosPlugins of package cli.
func TestFaultStorm(t *testing.T) {
	faults := []string{"kill", "crash", "exit 0", "stop", "half reply", "slow", "panic", "big reply", "both", "neither", "foreign account", "foreign scope", "expired", "no subject"}
	n := len(faults)
	ill := pluginHere(t, "ill")
	ill.Timeout = DefaultTimeout
	h := startHost(t, ill, pluginHere(t, "well"))
	for range 20 { // connections and lazily started goroutines are there from now on
		_, _ = h.ask(t, "ill", "ok")
		_, _ = h.ask(t, "well", "ok")
	}
	goroutines, files := runtime.NumGoroutine(), openFiles(t)

	var wrong, refused, neighbour atomic.Int64
	stop := make(chan struct{})
	var callers sync.WaitGroup
	for range 2 {
		callers.Go(func() {
			tick := time.NewTicker(10 * time.Millisecond) // with the faults, some 200 calls a second
			defer tick.Stop()
			for {
				select {
				case <-stop:
					return
				case <-tick.C:
				}
				if p, err := h.ask(t, "ill", "nobody"); err == nil {
					wrong.Add(1)
					t.Errorf("an unknown credential became %+v", p)
				} else if core.CodeOf(err) == core.CodeAuthUnavailable {
					refused.Add(1)
				}
				if _, err := h.ask(t, "well", "ok"); err != nil {
					if neighbour.Add(1) == 1 {
						t.Errorf("the neighbour: %v", err)
					}
				}
			}
		})
	}
	for i := range n {
		fault := faults[i%len(faults)]
		switch p, err := h.ask(t, "ill", fault); {
		case err == nil:
			wrong.Add(1)
			t.Errorf("%s became %+v", fault, p)
		case core.CodeOf(err) != core.CodeAuthUnavailable && fault != "half reply":
			t.Errorf("%s: %v", fault, err)
		}
		eventually(t, 5*time.Second, "recovery from "+fault, func() bool {
			_, err := h.ask(t, "ill", "ok")
			return err == nil
		})
	}
	close(stop)
	callers.Wait()
	t.Logf("%d faults, %d refusals for want of a verdict, %d restarts", n, refused.Load(), h.status(t, "ill").Restarts)
	if wrong.Load() != 0 || neighbour.Load() != 0 {
		t.Errorf("%d wrong admissions, %d errors of the neighbour, want none", wrong.Load(), neighbour.Load())
	}
	eventually(t, 5*time.Second, fmt.Sprintf("goroutines and descriptors back near %d and %d", goroutines, files), func() bool {
		return runtime.NumGoroutine() <= goroutines+10 && openFiles(t) <= files+10
	})
}

// A1: a credential that a plugin cannot decide about costs its own request. It does not hold off those of others, however often it comes.
func TestUndecidableCredentialHoldsNobodyOffA1(t *testing.T) {
	t.Parallel()
	p := pluginHere(t, "p")
	h := startHost(t, p)
	for _, fault := range []string{"error", "both", "neither", "no subject", "control characters", "panic"} {
		for range breakerFailures {
			if p, err := h.ask(t, "p", fault); core.CodeOf(err) != core.CodeAuthUnavailable {
				t.Fatalf("%s: %+v, %v", fault, p, err)
			}
		}
		if s := h.status(t, "p"); s.State != StateDegraded {
			t.Errorf("state %s after %d times %s, want degraded", s.State, breakerFailures, fault)
		}
		if _, err := h.ask(t, "p", "ok"); err != nil {
			t.Errorf("a good credential after %d times %s: %v", breakerFailures, fault, err)
		}
		if s := h.status(t, "p"); s.State != StateReady {
			t.Errorf("state %s after a verdict, want ready", s.State)
		}
	}
}

func TestBreakerHoldsCallsOff(t *testing.T) {
	t.Parallel()
	p := pluginHere(t, "p")
	p.Timeout = 50 * time.Millisecond
	var passed atomic.Int64 // by the clock of the breaker, which a busy machine does not make late
	begin, ev := time.Now(), newEvents()
	cfg := testConfig(t, ev, p)
	cfg.Now = func() time.Time { return begin.Add(time.Duration(passed.Load())) }
	host, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(host.Close)
	h := &testHost{Host: host, events: ev, dir: cfg.RuntimeDir}
	for range breakerFailures {
		_, _ = h.ask(t, "p", "slow")
	}
	for _, later := range []time.Duration{0, breakerMin - time.Nanosecond} {
		passed.Store(int64(later))
		if _, err := h.ask(t, "p", "ok"); core.CodeOf(err) != core.CodeAuthUnavailable || !errors.Is(err, errOpen) {
			t.Errorf("%s after %d calls without a verdict: %v, want a refusal without asking", later, breakerFailures, err)
		}
	}
	if s := h.status(t, "p"); s.State != StateDegraded {
		t.Errorf("state %s, want degraded", s.State)
	}
	passed.Store(int64(breakerMin))
	eventually(t, 20*time.Second, "closed again", func() bool {
		_, err := h.ask(t, "p", "ok")
		passed.Add(int64(breakerMax)) // if the machine was too slow for this one
		return err == nil
	})
	if s := h.status(t, "p"); s.State != StateReady {
		t.Errorf("state %s, want ready", s.State)
	}
}

func TestConcurrencyIsBounded(t *testing.T) {
	t.Parallel()
	p := pluginHere(t, "p")
	p.Concurrency, p.Timeout = 2, 2*time.Second
	h := startHost(t, p)
	var slow sync.WaitGroup
	for range 2 {
		slow.Go(func() { _, _ = h.ask(t, "p", "slow") })
	}
	eventually(t, time.Second, "two calls under way", func() bool { return h.status(t, "p").InFlight == 2 })
	if _, err := h.ask(t, "p", "ok"); core.CodeOf(err) != core.CodeAuthUnavailable {
		t.Errorf("third call: %v", err)
	}
	slow.Wait()
	if _, err := h.ask(t, "p", "ok"); err != nil {
		t.Error(err)
	}
}

func TestOutputIsBoundedAndEscaped(t *testing.T) {
	t.Parallel()
	h := startHost(t, pluginHere(t, "p"))
	if _, err := h.ask(t, "p", "escape"); err != nil {
		t.Fatal(err)
	}
	var lines []LogLine
	eventually(t, 5*time.Second, "output", func() bool { lines, _ = h.Logs("p"); return len(lines) > 0 })
	if want := `\x1b[31mred\a and \xff`; lines[0].Text != want || lines[0].PID != h.status(t, "p").PID {
		t.Errorf("line %+v, want %q", lines[0], want)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, _ = h.ask(t, "p", "flood")
	eventually(t, 30*time.Second, "the flood is over", func() bool { _, err := h.ask(t, "p", "ok"); return err == nil })
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 32<<20 {
		t.Errorf("the heap grew by %d bytes", grown)
	}
	if lines, _ = h.Logs("p"); len(lines) > keptLine {
		t.Errorf("%d lines are kept", len(lines))
	}
}

// TestRestartRunsPinnedBytes removes the executable from disk: what runs after a crash is what was verified at the load.
func TestRestartRunsPinnedBytes(t *testing.T) {
	t.Parallel()
	p := pluginHere(t, "p")
	path := filepath.Join(t.TempDir(), "plugin")
	copyFile(t, p.Path, path, 0o755)
	p.Path = path
	h := startHost(t, p)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	_, _ = h.ask(t, "p", "kill")
	h.events.await(t, "p", EventRestart, 1)
	if _, err := h.ask(t, "p", "ok"); err != nil {
		t.Error(err)
	}
}

func TestOwnUser(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root can start processes as somebody else")
	}
	p := pluginHere(t, "p")
	p.User = &User{UID: 65534, GID: 65534}
	h := startHost(t, p)
	if err := os.Chmod(h.dir, 0o711); err != nil { // os.MkdirTemp made it 0700
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "an answer", func() bool { _, err := h.ask(t, "p", "ok"); return err == nil })
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", h.status(t, "p").PID))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Uid:\t65534\t65534\t65534\t65534\n", "Gid:\t65534\t65534\t65534\t65534\n", "Groups:\t \n"} {
		if !strings.Contains(string(status), want) {
			t.Errorf("status lacks %q:\n%s", want, status)
		}
	}
}
