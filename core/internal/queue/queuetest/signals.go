package queuetest

import (
	"testing"
	"time"

	"github.com/keyfire/keyfire/core/internal/queue"
)

// RunSignals tests the signals of two servers, which are one and the same where there is only one server.
func RunSignals(t *testing.T, open func(t *testing.T) (here, there queue.Signals)) {
	t.Run("FollowersHearOfTheirRunOnly", func(t *testing.T) {
		t.Parallel()
		here, there := open(t)
		mine, stop := here.Follow("acct_1", "run_1")
		defer stop()
		other, stopOther := here.Follow("acct_2", "run_1")
		defer stopOther()
		there.Changed("acct_1", "run_1")
		there.Changed("acct_1", "run_1")
		hear(t, mine)
		select {
		case <-other:
			t.Error("the follower of another account's run heard of it")
		case <-time.After(50 * time.Millisecond):
		}
		stop()
		there.Changed("acct_1", "run_1") // nobody listens, which is nobody's problem
	})
	t.Run("CancelReachesEveryServer", func(t *testing.T) {
		t.Parallel()
		here, there := open(t)
		heard := make(chan struct{}, 8)
		for _, s := range []queue.Signals{here, there} {
			defer s.OnCancel(func(account, run string) {
				if account == "acct_1" && run == "run_1" {
					heard <- struct{}{}
				}
			})()
		}
		here.Cancel("acct_1", "run_1")
		hear(t, heard)
		hear(t, heard)
	})
	t.Run("PublishedReachesEveryServer", func(t *testing.T) {
		t.Parallel()
		here, there := open(t)
		heard := make(chan struct{}, 8)
		for _, s := range []queue.Signals{here, there} {
			defer s.OnCancel(func(_, name string) { t.Errorf("what was published, %s, is to be cancelled", name) })()
			defer s.OnPublished(func(account, module string) {
				if account == "acct_1" && module == "sha256:1" {
					heard <- struct{}{}
				}
			})()
		}
		there.Published("acct_1", "sha256:1")
		hear(t, heard)
		hear(t, heard)
	})
}

func hear(t *testing.T, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(patience):
		t.Fatal("no signal arrived")
	}
}
