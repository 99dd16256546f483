package store

import (
	"fmt"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keyfire/keyfire/core"
)

// TestSweep lets the clock run and watches expired idempotency keys go, and only those.
func TestSweep(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := openInternal(t, Config{})
		if _, _, err := s.PublishWorkflow(t.Context(), core.Publication{
			Account: "acct", Workflow: core.Workflow{ID: "wf_1", Slug: "greet", Enabled: true}, Version: core.Version{Digest: "sha256:1"},
		}, event(core.ActionWorkflowPublish)); err != nil {
			t.Fatal(err)
		}
		now := time.Now()
		const expiring = 2*sweepBatch + 7
		var admitted sync.WaitGroup
		for i := range expiring + 3 {
			admitted.Go(func() {
				expires := now.Add(time.Hour)
				if i >= expiring {
					expires = now.Add(2 * time.Hour)
				}
				_, err := s.Admit(t.Context(), core.Admission{
					Run:   core.Run{ID: fmt.Sprintf("run_%d", i), Account: "acct", Status: core.RunRunning, Workflow: core.WorkflowRef{ID: "wf_1"}, CreatedAt: now},
					Audit: event(core.ActionRunAccept),
					Idempotency: &core.Idempotency{
						Principal: "uid:1", Workflow: "wf_1", Key: strconv.Itoa(i), Fingerprint: "sha256:1", ExpiresAt: expires,
					},
				})
				if err != nil {
					t.Error(err)
				}
			})
		}
		admitted.Wait()
		left := func() (n int) {
			if err := s.points.QueryRow(`select count(*) from idempotency`).Scan(&n); err != nil {
				t.Fatal(err)
			}
			return n
		}
		for _, step := range []struct {
			pass time.Duration
			want int
		}{{59 * time.Minute, expiring + 3}, {2 * time.Minute, 3}, {time.Hour, 0}} {
			time.Sleep(step.pass)
			synctest.Wait()
			if n := left(); n != step.want {
				t.Errorf("%d keys after %v, want %d", n, time.Since(now), step.want)
			}
		}
	})
}
