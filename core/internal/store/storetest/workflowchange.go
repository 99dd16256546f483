package storetest

import (
	"slices"
	"testing"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
)

func exerciseWorkflowChanges(t *testing.T, open func(t *testing.T) *fixture) {
	rename := func(f *fixture, ref, slug string) (core.Workflow, error) {
		return f.RenameWorkflow(f.t.Context(), account, ref, slug, f.event(core.ActionWorkflowRename, ref))
	}
	remove := func(f *fixture, ref string) (core.Workflow, error) {
		return f.DeleteWorkflow(f.t.Context(), account, ref, f.event(core.ActionWorkflowDelete, ref))
	}
	unknown := func(f *fixture, refs ...string) {
		f.t.Helper()
		for _, ref := range refs {
			_, err := f.Workflow(f.t.Context(), account, ref)
			wantCode(f.t, err, core.CodeNotFound)
		}
	}

	t.Run("a rename keeps the id, the aliases and the keys", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		w := f.publish("greet", func(p *core.Publication) { p.Workflow.Aliases = []string{"hello", "greet-two"} })
		f.publish("taken", func(p *core.Publication) { p.Workflow.Aliases = []string{"also-taken"} })
		k := f.createKey(func(k *auth.Key) { k.Scopes = []string{auth.ScopeRunWorkflow + w.ID} })
		got, err := rename(f, "hello", "billing/greet")
		f.must(err)
		want := w
		want.Slug = "billing/greet"
		wantEqual(t, "renamed", got, want)
		for _, ref := range []string{w.ID, "billing/greet", "hello", "greet-two"} {
			got, err := f.Workflow(t.Context(), account, ref)
			f.must(err)
			wantEqual(t, ref, got, want)
		}
		unknown(f, "greet")
		f.admit(got, &k, nil)
		for _, slug := range []string{"taken", "also-taken"} {
			_, err := rename(f, w.ID, slug)
			wantCode(t, err, core.CodeConflict)
		}
		_, err = rename(f, "none", "other")
		wantCode(t, err, core.CodeNotFound)
		_, err = f.RenameWorkflow(t.Context(), "acct_two", w.ID, "other", f.event(core.ActionWorkflowRename, w.ID))
		wantCode(t, err, core.CodeNotFound)
		_, err = rename(f, w.ID, "billing/greet") // which it has
		f.must(err)
		_, err = rename(f, w.ID, "hello") // its own alias
		f.must(err)
		_, err = rename(f, "hello", "greet")
		f.must(err)
		if got, err := f.Workflow(t.Context(), account, "hello"); err != nil || got.Slug != "greet" {
			t.Errorf("an alias was lost by a rename to it and back: %+v %v", got, err)
		}
		other := f.publish("billing/greet", nil)
		if other.ID == w.ID {
			t.Error("a name that was given up leads to the workflow that had it")
		}
		wantAudit(t, f, core.ActionWorkflowPublish, core.ActionWorkflowPublish, core.ActionKeyCreate, core.ActionWorkflowRename, core.ActionRunAccept,
			core.ActionWorkflowRename, core.ActionWorkflowRename, core.ActionWorkflowPublish)
	})

	t.Run("a deleted workflow does not exist, and its history does", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		w := f.publish("greet", func(p *core.Publication) {
			p.Workflow.Aliases = []string{"hello"}
			p.Version.Definition.Trigger.Schedule = []core.Schedule{{Cron: "@daily"}}
		})
		k := f.createKey(func(k *auth.Key) { k.Scopes = []string{auth.ScopeRunWorkflow + w.ID} })
		done, open := finished(f.admit(w, &k, nil)), f.admit(w, &k, nil)
		f.must(f.FinishRun(t.Context(), &done))
		_, err := f.DeleteWorkflow(t.Context(), "acct_two", w.ID, f.event(core.ActionWorkflowDelete, w.ID))
		wantCode(t, err, core.CodeNotFound)
		got, err := remove(f, "hello")
		f.must(err)
		wantEqual(t, "deleted", got, w)

		unknown(f, w.ID, "greet", "hello")
		_, err = remove(f, w.ID)
		wantCode(t, err, core.CodeNotFound)
		_, err = rename(f, w.ID, "again")
		wantCode(t, err, core.CodeNotFound)
		_, err = f.SetWorkflowEnabled(t.Context(), account, w.ID, true, f.event(core.ActionWorkflowEnable, w.ID))
		wantCode(t, err, core.CodeNotFound)
		_, err = f.WorkflowAccount(t.Context(), w.ID)
		wantCode(t, err, core.CodeNotFound)
		for _, key := range []*auth.Key{&k, nil} { // one that was judged before
			_, err = f.Admit(t.Context(), f.admission(w, key))
			wantCode(t, err, core.CodeNotFound)
		}
		schedules, err := f.Schedules(t.Context())
		f.must(err)
		list, err := f.Workflows(t.Context(), account, core.Page{})
		f.must(err)
		if len(schedules)+len(list.Items) != 0 {
			t.Errorf("%d schedules and %d workflows are left", len(schedules), len(list.Items))
		}
		runs, err := f.Runs(t.Context(), account, core.RunFilter{Workflow: w.ID}, core.Page{})
		f.must(err)
		if len(runs.Items) != 2 {
			t.Errorf("%d runs in the history, want 2", len(runs.Items))
		}
		if _, err := f.Version(t.Context(), account, w.ID, 1); err != nil {
			t.Errorf("the version of a run that has not ended: %v", err)
		}
		end := finished(open)
		f.must(f.FinishRun(t.Context(), &end)) // accepted before
		wantUsed(t, f, k.ID, 2)

		again := f.publish("greet", func(p *core.Publication) { p.Workflow.Aliases = []string{"hello"} })
		if again.ID == w.ID || again.Version != 1 {
			t.Errorf("the workflow of the same name is %s, version %d", again.ID, again.Version)
		}
		kept, err := f.Key(t.Context(), account, k.ID)
		f.must(err)
		if !slices.Equal(kept.Scopes, []string{auth.ScopeRunWorkflow + w.ID}) {
			t.Errorf("the key holds %v", kept.Scopes)
		}
		wantAudit(t, f, core.ActionWorkflowPublish, core.ActionKeyCreate, core.ActionRunAccept, core.ActionRunAccept, core.ActionWorkflowDelete, core.ActionWorkflowPublish)
	})

	t.Run("K2 runs under way are found by key, by workflow and by account", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		one, two := f.publish("one", nil), f.publish("two", nil)
		k, l := f.createKey(nil), f.createKey(nil)
		a, b, c := f.admit(one, &k, nil), f.admit(two, &k, nil), f.admit(one, &l, nil)
		for range 3 {
			done := finished(f.admit(one, &k, nil))
			f.must(f.FinishRun(t.Context(), &done))
		}
		find := func(acct, key, workflow string, want ...core.Run) {
			t.Helper()
			got, err := f.RunsUnderWay(t.Context(), acct, key, workflow, 100)
			f.must(err)
			slices.Sort(got)
			ids := []string{}
			for i := range want {
				ids = append(ids, want[i].ID)
			}
			slices.Sort(ids)
			if !slices.Equal(got, ids) {
				t.Errorf("key %q, workflow %q: %v, want %v", key, workflow, got, ids)
			}
		}
		find(account, k.ID, "", a, b)
		find(account, l.ID, "", c)
		find(account, "", one.ID, a, c)
		find(account, k.ID, one.ID, a)
		find(account, "", "", a, b, c)
		find("acct_two", k.ID, "")
		find("acct_two", "", one.ID)
		_, err := f.cancel(a.ID)
		f.must(err)
		find(account, k.ID, "", b)
	})
}
