package plugins

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyfire/keyfire/auth"
)

// counter returns a condition that holds n times.
func counter(n int) func() bool {
	return func() bool { n--; return n >= 0 }
}

// TestSwapDuringStartC1 exchanges the executable for another one in a tight loop while the plugin is started over and over. The
// impostor answers with version "impostor"; it must never run.
func TestSwapDuringStartC1(t *testing.T) {
	t.Parallel()
	swapDuringStart(t, counter(20))
}

// swapDuringStart does so for as long as more says.
func swapDuringStart(t *testing.T, more func() bool) {
	t.Helper()
	here := pluginHere(t, "p")
	dir := t.TempDir()
	good, bad, path := filepath.Join(dir, "good"), filepath.Join(dir, "bad"), filepath.Join(dir, "plugin")
	copyFile(t, here.Path, good, 0o755)
	marker := filepath.Join(dir, "impostor-ran")
	if err := os.WriteFile(bad, []byte("#!/bin/sh\ntouch "+marker+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	link := func(from string) {
		tmp := path + ".new"
		_ = os.Remove(tmp)
		if err := os.Link(from, tmp); err != nil {
			t.Error(err)
		}
		if err := os.Rename(tmp, path); err != nil {
			t.Error(err)
		}
	}
	link(good)
	stop := make(chan struct{})
	var swaps atomic.Int64
	var swapper sync.WaitGroup
	swapper.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				link(bad)
				link(good)
				swaps.Add(2)
			}
		}
	})
	p := here
	p.Path = path
	started, refused := 0, 0
	for more() {
		if _, err := Check(t.Context(), p); err == nil {
			started++
		} else {
			refused++
		}
	}
	close(stop)
	swapper.Wait()
	t.Logf("%d swaps; %d starts ran the pinned bytes, %d were refused", swaps.Load(), started, refused)
	if started == 0 || refused == 0 || swaps.Load() < int64(started+refused) {
		t.Error("the swaps did not hit the starts; the test shows nothing")
	}
	if _, err := os.Stat(marker); err == nil {
		t.Error("the impostor was executed")
	}
}

// serveHost runs a Host with three plugins in this process, prints their process ids, and waits to be killed.
func serveHost(dir string) {
	path := os.Getenv("PLUGINS_TEST_PLUGIN")
	digest, _ := Digest(path)
	cfg := Config{RuntimeDir: dir, Logger: slog.New(slog.DiscardHandler), Now: time.Now, Random: rand.Reader}
	for _, name := range []string{"a", "b", "c"} {
		cfg.Plugins = append(cfg.Plugins, Plugin{
			Name: name, Path: path, SHA256: digest, Required: true, StartTimeout: time.Minute, Route: auth.Route{Prefixes: []string{"tok_"}}, Grant: auth.Grant{Accounts: []string{"acct_a"}},
		})
	}
	h, err := New(context.Background(), cfg)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	var pids []int
	for _, s := range h.Status() {
		pids = append(pids, s.PID)
	}
	_ = json.NewEncoder(os.Stdout).Encode(pids)
	select {}
}

// TestHostKilledL1 kills servers with -9 and looks for what is left.
func TestHostKilledL1(t *testing.T) {
	t.Parallel()
	killHosts(t, counter(3))
}

// killHosts does so for as long as more says.
func killHosts(t *testing.T, more func() bool) {
	t.Helper()
	path, _ := faultyPlugin(t)
	cfg := testConfig(t, newEvents())
	for more() {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "PLUGINS_TEST_HOST="+cfg.RuntimeDir, "PLUGINS_TEST_PLUGIN="+path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var pids []int
		line, err := bufio.NewReader(out).ReadBytes('\n')
		if err != nil || json.Unmarshal(line, &pids) != nil || len(pids) != 3 {
			t.Fatalf("the host said %q, %v", line, err)
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		eventually(t, 2*time.Second, "all plugins are gone", func() bool { return !alive(pids[0]) && !alive(pids[1]) && !alive(pids[2]) })
	}
	h, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	assertEmpty(t, cfg.RuntimeDir)
}

// A clock that is set back must not keep a plugin down: when it is started again is counted from now on, whatever the time of day becomes.
func TestRestartDoesNotWaitForTheTimeOfDay(t *testing.T) {
	t.Parallel()
	s := &supervisor{random: rand.Reader}
	if d := s.untilStart(); d != 0 {
		t.Errorf("the first start waits for %v", d)
	}
	for range 20 {
		s.wait()
		if d := s.untilStart(); d > backoffMax {
			t.Errorf("%v until the next start", d)
		}
		if at := s.retryAt.Load(); !strings.Contains(at.String(), " m=") {
			t.Errorf("%v is a time of day", at)
		}
	}
}
