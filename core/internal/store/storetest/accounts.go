package storetest

import (
	"context"
	"testing"

	"github.com/keyfire/keyfire/core"
)

// exerciseAccounts checks promise A3: whatever one account has, another one is answered as if it did not exist.
func exerciseAccounts(t *testing.T, open func(t *testing.T) *fixture) {
	f := open(t)
	const other = "acct_two"
	p := f.publication("greet")
	module := p.Version.Definition.Nodes[0].Module
	w, k := f.publish("greet", nil), f.createKey(nil)
	run := f.admit(w, &k, nil)
	done := finished(f.admit(w, &k, nil))
	f.must(f.FinishRun(t.Context(), &done))
	events := len(auditLog(t, f))

	for name, ask := range map[string]func(context.Context, string) error{
		"Key": func(ctx context.Context, acct string) error { _, err := f.Key(ctx, acct, k.ID); return err },
		"RevokeKey": func(ctx context.Context, acct string) error {
			if acct == account {
				return nil
			}
			_, err := f.RevokeKey(ctx, acct, k.ID, "", f.event(core.ActionKeyRevoke, k.ID))
			return err
		},
		"Workflow":  func(ctx context.Context, acct string) error { _, err := f.Workflow(ctx, acct, w.ID); return err },
		"by slug":   func(ctx context.Context, acct string) error { _, err := f.Workflow(ctx, acct, w.Slug); return err },
		"Version":   func(ctx context.Context, acct string) error { _, err := f.Version(ctx, acct, w.ID, 1); return err },
		"Module":    func(ctx context.Context, acct string) error { _, err := f.Module(ctx, acct, module); return err },
		"the bytes": func(ctx context.Context, acct string) error { _, err := f.ModuleBytes(ctx, acct, module); return err },
		"SetWorkflowEnabled": func(ctx context.Context, acct string) error {
			_, err := f.SetWorkflowEnabled(ctx, acct, w.ID, true, f.event(core.ActionWorkflowEnable, w.ID))
			return err
		},
		"Run": func(ctx context.Context, acct string) error { _, err := f.Run(ctx, acct, run.ID); return err },
		"FinishRun": func(ctx context.Context, acct string) error {
			if acct == account {
				return nil
			}
			end := finished(run)
			end.Account = acct
			return f.FinishRun(ctx, &end)
		},
		"Admit": func(ctx context.Context, acct string) error {
			if acct == account {
				return nil
			}
			a := f.admission(w, nil)
			a.Run.Account = acct
			_, err := f.Admit(ctx, a)
			return err
		},
	} {
		if err := ask(t.Context(), account); err != nil {
			t.Errorf("%s by its account: %v", name, err)
		}
		if err := ask(t.Context(), other); core.CodeOf(err) != core.CodeNotFound {
			t.Errorf("%s by another account: %v, want not_found", name, err)
		}
	}

	keys, err := f.Keys(t.Context(), other, core.Page{})
	f.must(err)
	workflows, err := f.Workflows(t.Context(), other, core.Page{})
	f.must(err)
	versions, err := f.Versions(t.Context(), other, w.ID, core.Page{})
	f.must(err)
	runs, err := f.Runs(t.Context(), other, core.RunFilter{Workflow: w.ID, KeyID: k.ID, Metadata: run.Metadata}, core.Page{})
	f.must(err)
	audit, err := f.AuditEvents(t.Context(), other, core.AuditFilter{Object: run.ID}, core.Page{})
	f.must(err)
	if n := len(keys.Items) + len(workflows.Items) + len(versions.Items) + len(runs.Items) + len(audit.Items); n != 0 {
		t.Errorf("lists of another account hold %d of this one's objects", n)
	}
	own, err := f.Runs(t.Context(), account, core.RunFilter{}, core.Page{Limit: 1})
	f.must(err)
	_, err = f.Runs(t.Context(), other, core.RunFilter{}, core.Page{Cursor: own.Next})
	wantCode(t, err, core.CodeInvalidRequest)

	// The same names and the same module may exist in both.
	q := f.publication("greet")
	q.Account, q.Workflow.Account = other, other
	ev := f.event(core.ActionWorkflowPublish, "")
	ev.Account = other
	theirs, created, err := f.PublishWorkflow(t.Context(), q, ev)
	f.must(err)
	if !created || theirs.ID == w.ID {
		t.Errorf("publishing the same slug in another account: created %v, id %s", created, theirs.ID)
	}
	wantRun(t, f, run)
	if n := len(auditLog(t, f)); n != events {
		t.Errorf("another account's requests added %d events to this one's log", n-events)
	}
}
