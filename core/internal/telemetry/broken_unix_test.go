//go:build unix

package telemetry

import (
	"os"
	"os/exec"
	"testing"
)

// TestLogWithoutReader: a process whose log is its standard error goes on when whoever read that has gone, which by default is the end of a process.
func TestLogWithoutReader(t *testing.T) {
	const inside = "KEYFIRE_TEST_LOG_WITHOUT_READER"
	if os.Getenv(inside) != "" {
		tel, err := New(t.Context(), Config{Service: "test", Logs: os.Stderr})
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			tel.Logger().Info("nobody hears this")
		}
		if err := tel.Shutdown(t.Context()); err != nil {
			t.Fatal(err)
		}
		if tel.losses.lines.failed.Load() == 0 {
			t.Error("no line was lost")
		}
		return
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestLogWithoutReader$")
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stderr = w
	if out, err := cmd.Output(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
