package plugins

import (
	"os"
	"testing"
	"time"
)

// chaos returns a condition that holds n times, or for as long as KEYFIRE_CHAOS says, whichever is over first; done tells how often it did. `make chaos` sets
// it. Without it the test is skipped: a shorter form of it is among the others.
func chaos(t *testing.T, n int) (more func() bool, done func() int) {
	t.Helper()
	text := os.Getenv("KEYFIRE_CHAOS")
	if text == "" {
		t.Skip("run it with make chaos")
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	end, rounds := time.Now().Add(d), 0
	more = func() bool {
		if rounds == n || rounds > 0 && time.Now().After(end) {
			return false
		}
		rounds++
		return true
	}
	return more, func() int { return rounds }
}

// TestChaosSwapC1 exchanges the executable during 10,000 starts.
func TestChaosSwapC1(t *testing.T) {
	t.Parallel()
	more, done := chaos(t, 10_000)
	swapDuringStart(t, more)
	t.Logf("%d starts", done())
}

// TestChaosHostKilledL1 kills 20 servers with three plugins each.
func TestChaosHostKilledL1(t *testing.T) {
	t.Parallel()
	more, done := chaos(t, 20)
	killHosts(t, more)
	t.Logf("%d servers killed, no plugin left after two seconds and no file after the next start", done())
}

// TestChaosOneBitFlippedC1 flips bits all over a whole plugin.
func TestChaosOneBitFlippedC1(t *testing.T) {
	t.Parallel()
	_, _ = chaos(t, 1)
	flipBits(t, 1<<40)
}
