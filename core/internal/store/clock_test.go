package store_test

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/keyfire/keyfire/core/internal/store"
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

// lineWriter passes on the lines of a log.
type lineWriter chan<- string

func (w lineWriter) Write(line []byte) (int, error) {
	w <- string(line)
	return len(line), nil
}
