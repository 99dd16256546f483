package storetest

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keyfire/keyfire/core"
)

func exerciseAudit(t *testing.T, open func(t *testing.T) *fixture) {
	t.Run("what is recorded is read back whole, in order", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		refused := f.event(core.ActionAuthRefuse, "wf_1")
		refused.Outcome, refused.Reason, refused.KeyID, refused.Count = core.OutcomeRefused, string(core.CodeKeyExpired), "key_1", 17
		start := f.event(core.ActionServerStart, "")
		start.Count = 0
		f.must(f.Audit(t.Context(), start, refused))
		f.must(f.Audit(t.Context()))
		start.Seq, start.Count, refused.Seq = 1, 1, 2
		got, err := f.AuditEvents(t.Context(), account, core.AuditFilter{}, core.Page{})
		f.must(err)
		wantEqual(t, "audit log", got.Items, []core.AuditEvent{refused, start})
		wantFilled(t, refused)
	})

	t.Run("sequence numbers have no gaps, whatever is refused in between", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		k := f.createKey(nil)
		var wg sync.WaitGroup
		for i := range 40 {
			wg.Go(func() {
				if i%2 == 0 {
					if err := f.Audit(t.Context(), f.event(core.ActionAuthRefuse, "x"), f.event(core.ActionAuthRefuse, "y")); err != nil {
						t.Error(err)
					}
					return
				}
				if err := f.CreateKey(t.Context(), k, f.event(core.ActionKeyCreate, k.ID)); core.CodeOf(err) != core.CodeConflict {
					t.Errorf("second creation of a key: %v, want conflict", err)
				}
			})
		}
		wg.Wait()
		events := auditLog(t, f)
		if len(events) != 41 {
			t.Fatalf("%d events, want 41", len(events))
		}
		for i, ev := range events {
			if ev.Seq != int64(i+1) {
				t.Fatalf("event %d has seq %d", i, ev.Seq)
			}
		}
	})

	t.Run("filters", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		var want []string
		for i := range 12 {
			ev := f.event([]string{core.ActionKeyCreate, core.ActionRunAccept}[i%2], fmt.Sprintf("obj_%d", i%3))
			ev.Actor, ev.Time = []string{"uid:1", "uid:2"}[i/6], epoch.Add(time.Duration(i)*time.Second)
			f.must(f.Audit(t.Context(), ev))
			if i%2 == 1 && i%3 == 0 && i/6 == 1 {
				want = append(want, ev.ID)
			}
		}
		for name, c := range map[string]struct {
			filter core.AuditFilter
			want   int
		}{
			"action":     {core.AuditFilter{Action: core.ActionRunAccept}, 6},
			"actor":      {core.AuditFilter{Actor: "uid:2"}, 6},
			"object":     {core.AuditFilter{Object: "obj_0"}, 4},
			"after":      {core.AuditFilter{After: epoch.Add(9 * time.Second)}, 2},
			"nothing":    {core.AuditFilter{Object: "obj_9"}, 0},
			"everything": {core.AuditFilter{}, 12},
		} {
			got, err := f.AuditEvents(t.Context(), account, c.filter, core.Page{})
			f.must(err)
			if len(got.Items) != c.want {
				t.Errorf("filter by %s: %d events, want %d", name, len(got.Items), c.want)
			}
		}
		got, err := f.AuditEvents(t.Context(), account, core.AuditFilter{Action: core.ActionRunAccept, Object: "obj_0", Actor: "uid:2"}, core.Page{})
		f.must(err)
		if len(got.Items) != 1 || got.Items[0].ID != want[0] {
			t.Errorf("all filters: %+v, want only %s", got.Items, want)
		}
	})

	t.Run("list", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		var want []string
		for range 12 {
			ev := f.event(core.ActionRunAccept, "run_1")
			f.must(f.Audit(t.Context(), ev))
			want = append([]string{ev.ID}, want...)
		}
		list := func(ctx context.Context, p core.Page) (core.List[core.AuditEvent], error) {
			return f.AuditEvents(ctx, account, core.AuditFilter{Object: "run_1"}, p)
		}
		exerciseList(t, list, func(ev core.AuditEvent) string { return ev.ID }, want)
	})
}

// auditLog returns the whole log of the account, oldest first.
func auditLog(t *testing.T, f *fixture) []core.AuditEvent {
	t.Helper()
	events := pages(t, core.MaxPage, func(ctx context.Context, p core.Page) (core.List[core.AuditEvent], error) {
		return f.AuditEvents(ctx, account, core.AuditFilter{}, p)
	})
	for i, j := 0, len(events)-1; i < j; i, j = i+1, j-1 {
		events[i], events[j] = events[j], events[i]
	}
	return events
}

// wantAudit checks the actions in the account's log, oldest first.
func wantAudit(t *testing.T, f *fixture, actions ...string) {
	t.Helper()
	var got []string
	for _, ev := range auditLog(t, f) {
		got = append(got, ev.Action)
	}
	if diff := cmp.Diff(actions, got); diff != "" {
		t.Fatalf("audited actions differ (-want +got):\n%s", diff)
	}
}
