package workflow

import (
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what should take a fraction of a second, on a machine that does other things. What the tests guard
// against takes many minutes.
const patience = time.Minute
