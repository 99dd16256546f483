package cli

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/sdk/client"
)

// TestChaos kills the server under load again and again, on one data directory, and then counts (Q1, D1, D2, D3): every trigger that
// was answered with success has its run, with the output that was sent; no Idempotency-Key has two; no run is left unfinished; the key's
// counter is the number of runs. `make chaos` runs it for as long as KEYFIRE_CHAOS says.
func TestChaos(t *testing.T) {
	d := chaosTime(t)
	const clients, quota = 8, 1_000_000
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	data := filepath.Join(t.TempDir(), "data")
	copyData(t, data)

	runs := map[string]string{} // Idempotency-Key -> run it was answered with
	var secret, keyID string
	kills, answered, replayed := 0, 0, 0
	for end := time.Now().Add(d); kills == 0 || time.Now().Before(end); kills++ {
		p, err := launch(data, io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		s := &testServer{process: p, admin: socketClient(t, data)}
		if secret == "" {
			key := s.createKey(t, client.NewKey{Workflow: "echo", MaxRuns: quota})
			secret, keyID = key.Secret, key.ID
		}
		c := s.client(t, secret)
		// Every other request is new; the ones between repeat what the server before this one may or may not have answered.
		first := kills * 1000
		var mu sync.Mutex
		var wg sync.WaitGroup
		for i := range clients {
			wg.Go(func() {
				for n := 0; ; n++ {
					name := fmt.Sprint("job-", first+i+n*clients)
					if n%2 == 1 {
						name = fmt.Sprint("job-", max(0, first-1000)+i+(n-1)*clients)
					}
					run, err := c.Trigger(t.Context(), "", client.TriggerRequest{
						Input: map[string]string{"job": name}, IdempotencyKey: name,
					})
					switch o := outcome(err); o {
					case "ok":
						mu.Lock()
						answered++
						if known := runs[name]; known != "" {
							replayed++
							if known != run.ID {
								t.Errorf("%s has two runs, %s and %s", name, known, run.ID)
							}
						}
						runs[name] = run.ID
						mu.Unlock()
						if want := fmt.Sprintf(`{"job":%q}`, name); string(run.Output) != want {
							t.Errorf("%s was answered with %s", name, run.Output)
						}
					case "broken":
						return
					case string(core.CodeRunInterrupted): // the run of an earlier life
					default:
						t.Errorf("%s ended %s: %v", name, o, err)
						return
					}
				}
			})
		}
		time.Sleep(time.Duration(100+random.IntN(500)) * time.Millisecond) // the moment of the kill, not a wait for something
		if err := p.kill(); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
	}

	s := startServerOn(t, data)
	key, err := s.admin.Key(t.Context(), keyID)
	if err != nil {
		t.Fatal(err)
	}
	if rows := countRuns(t, s.admin, keyID); rows != key.RunsUsed || rows < int64(len(runs)) {
		t.Errorf("%d runs, counter %d, %d answered with success", rows, key.RunsUsed, len(runs))
	}
	for name, id := range runs {
		if run, err := s.admin.Run(t.Context(), id); err != nil || run.Status != "succeeded" {
			t.Errorf("%s was answered with success, and its run %s is now %+v, %v", name, id, run, err)
		}
	}
	for _, status := range []string{"queued", "running", "waiting", "cancelling"} {
		if l, err := s.admin.Runs(t.Context(), client.RunQuery{Status: status}); err != nil || len(l.Data) > 0 {
			t.Errorf("runs are still %s: %+v, %v", status, l, err)
		}
	}
	t.Logf("%d kills, %d answers of success for %d runs, %d of them replayed; counter %d", kills, answered, len(runs), replayed, key.RunsUsed)
}

// chaosTime returns for how long a chaos test is to go on, as KEYFIRE_CHAOS says. Without it the test is skipped.
func chaosTime(t *testing.T) time.Duration {
	t.Helper()
	text := os.Getenv("KEYFIRE_CHAOS")
	if text == "" {
		t.Skip("run it with make chaos")
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	return d
}
