//go:build unix

package telemetry

import (
	"bufio"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"
)

// T1: a log that nobody reads loses lines, and stops nobody. When it is read again, the lines are whole.
func TestT1LogThatNobodyReads(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	tel, err := New(t.Context(), Config{Logs: w, LogFormat: "json"})
	if err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("x", 3*chunk)
	logged := make(chan struct{})
	go func() {
		defer close(logged)
		for n := range 2_000 {
			tel.Logger().Info("line", "n", n, "long", long)
		}
	}()
	select {
	case <-logged:
	case <-time.After(30 * time.Second):
		t.Fatal("whoever logs waits for a reader")
	}
	if lost := tel.losses.lines.failed.Load(); lost < 1_000 || lost >= 2_000 {
		t.Errorf("%d of 2000 lines are counted as lost", lost)
	}

	lines := make(chan string)
	go func() {
		defer close(lines)
		in := bufio.NewScanner(r)
		for in.Scan() {
			lines <- in.Text()
		}
	}()
	first := <-lines
	for {
		tel.Logger().Info("again")
		seen := <-lines
		if strings.Contains(seen, `"msg":"again"`) {
			break
		}
	}
	if err := tel.Shutdown(t.Context()); err != nil { // tells of the loss
		t.Error(err)
	}
	w.Close()
	broken, told := 0, false
	for line := range lines {
		if !json.Valid([]byte(line)) {
			broken++
		}
		told = told || strings.Contains(line, `"signal":"log_lines"`)
	}
	if !json.Valid([]byte(first)) || broken > 1 || !told {
		t.Errorf("first line %.40q, %d broken ones, loss told: %v", first, broken, told)
	}
}
