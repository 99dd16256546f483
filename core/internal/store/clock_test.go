package store_test

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/store"
	"github.com/keyfire/keyfire/core/internal/store/storetest"
)

// A server whose clock is not that of the database says by how much, for what follows from it looks like anything but that.
func TestClockThatDiffersIsTold(t *testing.T) {
	t.Parallel()
	for off, want := range map[time.Duration]string{150 * time.Second: "ahead=2m30s", -95 * time.Second: "ahead=-1m35s"} {
		told := make(chan string, 100)
		openPostgres(t, store.Config{
			Now: func() time.Time { return time.Now().Add(off) }, Logger: slog.New(slog.NewTextHandler(lineWriter(told), nil)),
		})
		enough := time.After(20 * time.Second)
		for found := false; !found; {
			select {
			case line := <-told:
				found = strings.Contains(line, "the clocks of this server and of PostgreSQL differ") && strings.Contains(line, want)
			case <-enough:
				t.Fatalf("a clock that is off by %v is not told of", off)
			}
		}
	}
}

// D3: the history that all servers have, and the Idempotency-Keys that callers rely on, are not deleted by one whose clock is wrong, as that of a machine may be which was just started.
func TestWrongClockDeletesNothingD3(t *testing.T) {
	t.Parallel()
	address := storetest.Postgres(t)
	s := openPostgres(t, store.Config{URL: address, Shared: true})
	prepare(t, s, key("key_1", 0))
	run := admission("run_"+strings.ToLower(ulid.Make().String()), "key_1")
	run.Idempotency = &core.Idempotency{Principal: "key:key_1", Workflow: "wf_1", Key: "once", Fingerprint: "sha256:1", ExpiresAt: time.Now().Add(24 * time.Hour)}
	admitted, err := s.Admit(t.Context(), run)
	if err != nil {
		t.Fatal(err)
	}
	run.Run.Status, run.Run.FinishedAt = core.RunSucceeded, time.Now()
	if err := s.FinishRun(t.Context(), &run.Run); err != nil {
		t.Fatal(err)
	}
	for off, want := range map[time.Duration]string{365 * 24 * time.Hour: "cannot tell what is old", 2 * time.Second: ""} {
		other := openPostgres(t, store.Config{URL: address, Shared: true, Now: func() time.Time { return time.Now().Add(off) }})
		if _, err := other.Prune(t.Context(), store.Retention{MaxAge: 24 * time.Hour}); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("a clock that is %v ahead: %v", off, err)
		}
		other.Sweep(t.Context())
	}
	again := admission("run_"+strings.ToLower(ulid.Make().String()), "key_1")
	again.Idempotency = run.Idempotency
	if second, err := s.Admit(t.Context(), again); err != nil || !second.Replayed || second.RunID != admitted.RunID {
		t.Errorf("an Idempotency-Key of today starts %+v, %v", second, err)
	}
	if _, err := s.Run(t.Context(), core.DefaultAccount, admitted.RunID); err != nil {
		t.Errorf("a run of today: %v", err)
	}
}

// lineWriter passes on the lines of a log.
type lineWriter chan<- string

func (w lineWriter) Write(line []byte) (int, error) {
	w <- string(line)
	return len(line), nil
}
