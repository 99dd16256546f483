package cli

import (
	"bufio"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/keyfire/keyfire/sdk/client"
)

// D1: an answer of success, 200 or 202, is written only after the run has been written to the database and synced. The server's system calls are
// the witness. `make chaos` asks a thousand times for each.
func TestD1AnswerAfterSync(t *testing.T) {
	t.Parallel()
	strace, err := exec.LookPath("strace")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("D1 cannot be checked: strace is not installed")
		}
		t.Skip("SKIPPED, D1 IS NOT CHECKED: strace is not installed")
	}
	keyfire, err := exec.LookPath("keyfire")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	data, trace := filepath.Join(dir, "data"), filepath.Join(dir, "strace.out")
	copyData(t, data)
	log := &syncBuffer{}
	// A commit is one write, of up to 128 KiB, and the runs in it are looked for by their ids.
	cmd := exec.Command(strace, "-f", "-y", "-s", "131072", "-o", trace, "-e", "trace=write,pwrite64,fsync,fdatasync",
		keyfire, "serve", "--json", "--data", data, "--listen", "127.0.0.1:0")
	p, err := launchCommand(cmd, data, log)
	if err != nil {
		if strings.Contains(log.String(), "ptrace") && os.Getenv("CI") != "true" {
			t.Skipf("SKIPPED, D1 IS NOT CHECKED: strace may not trace here: %s", log)
		}
		t.Fatalf("%v\n%s", err, log)
	}
	t.Cleanup(func() { _ = p.kill() })
	s := &testServer{process: p, admin: socketClient(t, data), log: log}
	key := s.createKey(t, client.NewKey{Workflow: "echo"})
	alone, together := 20, 40
	if os.Getenv("KEYFIRE_CHAOS") != "" {
		alone, together = 200, 800
	}
	// One after the other, then several at once, which share syncs.
	for _, async := range []bool{false, true} {
		for _, load := range []struct{ n, clients int }{{alone, 1}, {together, 8}} {
			if counts := triggerEach(t, s, key.Secret, client.TriggerRequest{Async: async}, load.n, load.clients, nil); counts["ok"] != load.n {
				t.Fatalf("async %t: %v", async, counts)
			}
		}
	}
	// strace blocks the signals that would end it before its tracee, so they go to the server itself.
	stopTraced(t, p)

	answers, problems := checkSyncOrder(t, trace)
	for _, problem := range problems {
		t.Error(problem)
	}
	for _, status := range []string{"200", "202"} {
		if answers[status] != alone+together {
			t.Errorf("the trace shows %d answers %s with a run, want %d", answers[status], status, alone+together)
		}
	}
	t.Logf("%v answers, each after the sync of its run", answers)
}

// stopTraced ends a server that runs under strace, which writes its trace to the end then.
func stopTraced(t *testing.T, p *process) {
	t.Helper()
	held, err := os.ReadFile(filepath.Join(p.data, lockFile))
	if err != nil {
		t.Fatal(err)
	}
	line, _, _ := strings.Cut(string(held), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-p.done
}

var (
	callStart  = regexp.MustCompile(`^(\d+) +(\w+)\(\d+<([^>]*)>(.*)$`)
	callResume = regexp.MustCompile(`^(\d+) +<\.\.\. (\w+) resumed>`)
	runIDs     = regexp.MustCompile(`run_[0-9a-z]{26}`)
	answerRun  = regexp.MustCompile(`"HTTP/1\.1 (2\d\d) .*Keyfire-Run-Id: (run_[0-9a-z]{26})`)
)

// checkSyncOrder reads a trace. It returns the number of answers of success that carry a run, by their status, and names the runs that were answered
// before a sync had covered their first write. Later writes do not count: other runs rewrite the pages that a run is on.
func checkSyncOrder(t *testing.T, path string) (answers map[string]int, problems []string) {
	t.Helper()
	answers = map[string]int{}
	trace, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer trace.Close()
	type place struct {
		file string
		n    int // this many writes had begun on the file, this one included
	}
	written, synced := map[string]int{}, map[string]int{} // by file: writes begun, and how many of them a finished sync covers
	syncing := map[string]place{}                         // by thread: what the sync it is in will cover
	first := map[string]place{}                           // by run: its first write
	finish := func(thread string) {
		if p, ok := syncing[thread]; ok {
			synced[p.file] = max(synced[p.file], p.n)
			delete(syncing, thread)
		}
	}
	lines := bufio.NewScanner(trace)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		if m := callResume.FindStringSubmatch(line); m != nil {
			if strings.HasSuffix(line, " = 0") {
				finish(m[1])
			}
			continue
		}
		m := callStart.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		thread, call, file, rest := m[1], m[2], m[3], m[4]
		database := strings.Contains(filepath.Base(file), databaseFile)
		switch {
		case database && (call == "pwrite64" || call == "write"):
			written[file]++
			for _, id := range runIDs.FindAllString(rest, -1) {
				if _, ok := first[id]; !ok {
					first[id] = place{file, written[file]}
				}
			}
		case database: // fsync or fdatasync
			syncing[thread] = place{file, written[file]}
			if strings.HasSuffix(rest, " = 0") {
				finish(thread)
			}
		case call == "write":
			run := answerRun.FindStringSubmatch(rest)
			if run == nil {
				continue
			}
			answers[run[1]]++
			if p, ok := first[run[2]]; !ok {
				problems = append(problems, "answered before it was written: "+run[2])
			} else if synced[p.file] < p.n {
				problems = append(problems, "answered before it was synced: "+run[2])
			}
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return answers, problems
}

// The checker of D1 must see what is wrong: these are the orders of a server that answers too early.
func TestSyncOrderChecker(t *testing.T) {
	t.Parallel()
	const (
		id     = "run_01m804j7206jdgzdy3y5v2kkrp"
		write  = `1 pwrite64(7</d/keyfire.db-wal>, "\1` + id + `\2", 4096, 56) = 4096` + "\n"
		sync   = "1 fsync(7</d/keyfire.db-wal>) = 0\n"
		begin  = "1 fsync(7</d/keyfire.db-wal> <unfinished ...>\n"
		end    = "1 <... fsync resumed>) = 0\n"
		failed = "1 fsync(7</d/keyfire.db-wal>) = -1 EIO (Input/output error)\n"
		answer = `2 write(9<socket:[1]>, "HTTP/1.1 200 OK\r\nKeyfire-Run-Id: ` + id + `\r\n", 99) = 99` + "\n"
	)
	for _, c := range []struct {
		name, trace string
		problems    int
	}{
		{"write, sync, answer", write + sync + answer, 0},
		{"a sync in two parts", write + begin + end + answer, 0},
		{"no sync", write + answer, 1},
		{"no write", sync + answer, 1},
		{"the sync before the write", sync + write + answer, 1},
		{"a sync that has not finished", write + begin + answer + end, 1},
		{"a write that began after the sync", begin + write + end + answer, 1},
		{"a sync that failed", write + failed + answer, 1},
	} {
		path := filepath.Join(t.TempDir(), "trace")
		if err := os.WriteFile(path, []byte(c.trace), 0o600); err != nil {
			t.Fatal(err)
		}
		if answers, problems := checkSyncOrder(t, path); answers["200"] != 1 || len(problems) != c.problems {
			t.Errorf("%s: %v answers, %q", c.name, answers, problems)
		}
	}
}

// A data directory that is copied while nothing runs is a whole backup: another server goes on from it.
func TestCopyOfDataDirectory(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	key := s.createKey(t, client.NewKey{Workflow: "echo", MaxRuns: 2})
	run, err := s.client(t, key.Secret).Trigger(t.Context(), "", client.TriggerRequest{Input: json.RawMessage(`{"a":1}`)})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	elsewhere := filepath.Join(t.TempDir(), "data")
	if err := copyDir(elsewhere, s.data); err != nil {
		t.Fatal(err)
	}
	again := startServerOn(t, elsewhere)
	if got, err := again.admin.Run(t.Context(), run.ID); err != nil || string(got.Output) != `{"a":1}` {
		t.Errorf("run %s: %+v, %v", run.ID, got, err)
	}
	if counts := triggerAll(t, again, key.Secret, 3, 1, nil); counts["ok"] != 1 {
		t.Errorf("one run was left: %v", counts)
	}
}
