package storetest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyfire/keyfire/core"
)

func exerciseWorkflows(t *testing.T, open func(t *testing.T) *fixture) {
	t.Run("what is published is read back whole", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		p := f.publication("billing/invoice-sync")
		p.Workflow.Aliases = []string{"invoices", "old-invoices"}
		ev := f.event(core.ActionWorkflowPublish, "")
		w, created, err := f.PublishWorkflow(t.Context(), p, ev)
		f.must(err)
		want := p.Workflow
		want.Version, want.Digest, want.CreatedAt, want.UpdatedAt = 1, p.Version.Digest, epoch, epoch
		wantEqual(t, "created", created, true)
		wantEqual(t, "published workflow", w, want)
		wantFilled(t, want)
		for _, ref := range []string{w.ID, "billing/invoice-sync", "invoices", "old-invoices"} {
			got, err := f.Workflow(t.Context(), account, ref)
			f.must(err)
			wantEqual(t, "workflow by "+ref, got, want)
		}

		version := p.Version
		version.Workflow, version.Version = w.ID, 1
		for range 2 {
			// The second time it may come from memory.
			got, err := f.Version(t.Context(), account, w.ID, 1)
			f.must(err)
			wantEqual(t, "version", got, version)
		}
		wantFilled(t, version)
		digest := p.Version.Definition.Nodes[0].Module
		m, err := f.Module(t.Context(), account, digest)
		f.must(err)
		wantEqual(t, "module", m, core.Module{Account: account, Digest: digest, Size: int64(len(p.Modules[digest])), CreatedAt: epoch})
		body, err := f.ModuleBytes(t.Context(), account, digest)
		f.must(err)
		wantEqual(t, "module bytes", body, p.Modules[digest])

		ev.Seq, ev.Object = 1, w.ID
		wantEqual(t, "audit log", auditLog(t, f), []core.AuditEvent{ev})
	})

	t.Run("a change is seen by whoever asks after it", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		w := f.publish("greet", nil)
		ctx, stop := context.WithCancel(t.Context())
		var asking sync.WaitGroup
		for range 4 {
			asking.Go(func() {
				for ctx.Err() == nil {
					if _, err := f.Workflow(t.Context(), account, "greet"); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		for i := range 50 {
			enabled := i%2 == 1
			_, err := f.SetWorkflowEnabled(t.Context(), account, w.ID, enabled, f.event(core.ActionWorkflowEnable, w.ID))
			f.must(err)
			for _, ref := range []string{"greet", w.ID} {
				got, err := f.Workflow(t.Context(), account, ref)
				f.must(err)
				if got.Enabled != enabled {
					t.Fatalf("%s was set to enabled = %t, and a look-up after that says %t", ref, enabled, got.Enabled)
				}
			}
		}
		stop()
		asking.Wait()
	})

	t.Run("what does not exist", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		w := f.publish("greet", nil)
		_, err := f.Workflow(t.Context(), account, "nothing")
		wantCode(t, err, core.CodeNotFound)
		_, err = f.Version(t.Context(), account, w.ID, 2)
		wantCode(t, err, core.CodeNotFound)
		_, err = f.Module(t.Context(), account, digest([]byte("nothing")))
		wantCode(t, err, core.CodeNotFound)
		_, err = f.ModuleBytes(t.Context(), account, digest([]byte("nothing")))
		wantCode(t, err, core.CodeNotFound)
		_, err = f.SetWorkflowEnabled(t.Context(), account, "nothing", false, f.event(core.ActionWorkflowDisable, "nothing"))
		wantCode(t, err, core.CodeNotFound)
	})

	t.Run("the same digest is published once", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		w := f.publish("greet", nil)
		p := f.publication("greet")
		p.Version.CreatedAt, p.Version.Source = epoch.Add(time.Hour), "# another comment"
		got, created, err := f.PublishWorkflow(t.Context(), p, f.event(core.ActionWorkflowPublish, ""))
		f.must(err)
		wantEqual(t, "created", created, false)
		wantEqual(t, "workflow", got, w)
		wantAudit(t, f, core.ActionWorkflowPublish)
	})

	t.Run("a dry run finds what publishing finds, and writes nothing", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		dry := func(slug string, change func(p *core.Publication)) (core.Workflow, bool, error) {
			p := f.publication(slug)
			p.DryRun = true
			change(&p)
			return f.PublishWorkflow(t.Context(), p, f.event(core.ActionWorkflowPublish, ""))
		}
		nothing := func(*core.Publication) {}
		got, changed, err := dry("greet", nothing)
		f.must(err)
		wantEqual(t, "changed", changed, true)
		wantEqual(t, "version", got.Version, 1)
		_, err = f.Workflow(t.Context(), account, "greet")
		wantCode(t, err, core.CodeNotFound)
		for digest := range f.publication("greet").Modules {
			_, err := f.Module(t.Context(), account, digest)
			wantCode(t, err, core.CodeNotFound)
		}

		w := f.publish("greet", nil)
		got, changed, err = dry("greet", nothing)
		f.must(err)
		wantEqual(t, "changed", changed, false)
		wantEqual(t, "workflow", got, w)
		got, changed, err = dry("greet", func(p *core.Publication) { p.Version.Digest, p.Workflow.Title = digest([]byte("2")), "Second" })
		f.must(err)
		wantEqual(t, "changed", changed, true)
		wantEqual(t, "version, title and id", []any{got.Version, got.Title, got.ID}, []any{2, "Second", w.ID})
		is, err := f.Workflow(t.Context(), account, "greet")
		f.must(err)
		wantEqual(t, "workflow", is, w)
		_, err = f.Version(t.Context(), account, w.ID, 2)
		wantCode(t, err, core.CodeNotFound)
		wantAudit(t, f, core.ActionWorkflowPublish)

		_, _, err = dry("other", func(p *core.Publication) { p.Workflow.Aliases = []string{"greet"} })
		wantCode(t, err, core.CodeConflict)
		_, _, err = dry("other", func(p *core.Publication) {
			p.Modules, p.Version.Definition.Nodes[0].Module = nil, digest([]byte("of no module"))
		})
		wantCode(t, err, core.CodeInvalidModule)
	})

	t.Run("a new version keeps id and age, and decides about enabled", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		w := f.publish("greet", nil)
		off, err := f.SetWorkflowEnabled(t.Context(), account, "greet", false, f.event(core.ActionWorkflowDisable, w.ID))
		f.must(err)
		wantEqual(t, "enabled", off.Enabled, false)

		same := f.publication("greet")
		got, _, err := f.PublishWorkflow(t.Context(), same, f.event(core.ActionWorkflowPublish, ""))
		f.must(err)
		wantEqual(t, "enabled after publishing nothing new", got.Enabled, false)

		next := f.publish("greet", func(p *core.Publication) {
			p.Version.Digest, p.Workflow.Title, p.Version.CreatedAt = digest([]byte("2")), "Second", epoch.Add(time.Hour)
		})
		want := w
		want.Version, want.Digest, want.Title, want.UpdatedAt = 2, digest([]byte("2")), "Second", epoch.Add(time.Hour)
		wantEqual(t, "workflow", next, want)
		back := f.publish("greet", func(p *core.Publication) { p.Version.Digest = w.Digest })
		wantEqual(t, "number of the third version, equal to the first", back.Version, 3)
	})

	t.Run("enabling what is enabled writes nothing", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		w := f.publish("greet", nil)
		for _, enabled := range []bool{true, false, false, true} {
			ev := f.event(map[bool]string{true: core.ActionWorkflowEnable, false: core.ActionWorkflowDisable}[enabled], w.ID)
			got, err := f.SetWorkflowEnabled(t.Context(), account, w.ID, enabled, ev)
			f.must(err)
			wantEqual(t, "enabled", got.Enabled, enabled)
			got, err = f.Workflow(t.Context(), account, w.ID)
			f.must(err)
			wantEqual(t, "enabled when read", got.Enabled, enabled)
		}
		wantAudit(t, f, core.ActionWorkflowPublish, core.ActionWorkflowDisable, core.ActionWorkflowEnable)
	})

	t.Run("slugs and aliases share one name space", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		a := f.publish("a", func(p *core.Publication) { p.Workflow.Aliases = []string{"shared"} })
		for name, alter := range map[string]func(*core.Publication){
			"slug is an alias":   func(p *core.Publication) { p.Workflow.Slug = "shared" },
			"alias is a slug":    func(p *core.Publication) { p.Workflow.Aliases = []string{"b-alias", "a"} },
			"alias is an alias":  func(p *core.Publication) { p.Workflow.Aliases = []string{"shared"} },
			"alias is an id":     func(p *core.Publication) { p.Workflow.Aliases = []string{a.ID} },
			"slug is another id": func(p *core.Publication) { p.Workflow.Slug = a.ID },
		} {
			p := f.publication("b")
			alter(&p)
			_, _, err := f.PublishWorkflow(t.Context(), p, f.event(core.ActionWorkflowPublish, ""))
			if core.CodeOf(err) != core.CodeConflict || !strings.Contains(err.Error(), `"a"`) {
				t.Errorf("%s: error = %v, want a conflict that names workflow a", name, err)
			}
		}
		_, err := f.Workflow(t.Context(), account, "b")
		wantCode(t, err, core.CodeNotFound)
		_, err = f.Workflow(t.Context(), account, "b-alias")
		wantCode(t, err, core.CodeNotFound)
	})

	t.Run("names that a version gives up are free", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		a := f.publish("a", func(p *core.Publication) { p.Workflow.Aliases = []string{"x", "y"} })
		f.publish("renamed", func(p *core.Publication) {
			p.Workflow.ID, p.Workflow.Aliases, p.Version.Digest = a.ID, []string{"y"}, digest([]byte("2"))
		})
		for ref, want := range map[string]core.Code{a.ID: "", "renamed": "", "y": "", "a": core.CodeNotFound, "x": core.CodeNotFound} {
			w, err := f.Workflow(t.Context(), account, ref)
			wantCode(t, err, want)
			if err == nil {
				wantEqual(t, "workflow by "+ref, w.ID, a.ID)
			}
		}
		b := f.publish("a", func(p *core.Publication) { p.Workflow.Aliases = []string{"x"} })
		got, err := f.Workflow(t.Context(), account, "x")
		f.must(err)
		wantEqual(t, "new owner of the alias", got.ID, b.ID)
	})

	t.Run("modules", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		p := f.publication("greet")
		body := p.Modules[p.Version.Definition.Nodes[0].Module]
		p.Modules = nil
		_, _, err := f.PublishWorkflow(t.Context(), p, f.event(core.ActionWorkflowPublish, ""))
		wantCode(t, err, core.CodeInvalidModule)
		p.Modules = map[string][]byte{p.Version.Definition.Nodes[0].Module: append([]byte("x"), body...)}
		_, _, err = f.PublishWorkflow(t.Context(), p, f.event(core.ActionWorkflowPublish, ""))
		wantCode(t, err, core.CodeInvalidModule)
		wantAudit(t, f)

		f.publish("greet", nil)
		// Held by the account now, so it need not come along, and may.
		f.publish("greet", func(p *core.Publication) { p.Modules, p.Version.Digest = nil, digest([]byte("2")) })
		f.publish("greet", func(p *core.Publication) { p.Version.Digest = digest([]byte("3")) })
	})

	t.Run("large modules", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		large := slices.Repeat([]byte("0123456789abcdef"), core.MaxModule/16)
		f.publish("large", func(p *core.Publication) {
			p.Modules = map[string][]byte{digest(large): large}
			p.Version.Definition.Nodes[0].Module = digest(large)
		})
		body, err := f.ModuleBytes(t.Context(), account, digest(large))
		f.must(err)
		if !slices.Equal(body, large) {
			t.Error("a module of the largest size is not read back as it was published")
		}
	})

	t.Run("list", func(t *testing.T) {
		t.Parallel()
		f := open(t)
		var want, versions []string
		for i := range 5 {
			want = append(want, f.publish(fmt.Sprintf("w%d", i), nil).ID)
		}
		for i := range 4 {
			w := f.publish("w0", func(p *core.Publication) { p.Version.Digest = digest([]byte{byte(i)}) })
			versions = append(versions, w.Digest)
		}
		slices.Reverse(want)
		slices.Reverse(versions)
		exerciseList(t, func(ctx context.Context, p core.Page) (core.List[core.Workflow], error) {
			return f.Workflows(ctx, account, p)
		}, func(w core.Workflow) string { return w.ID }, want)
		list := func(ctx context.Context, p core.Page) (core.List[core.Version], error) {
			return f.Versions(ctx, account, want[4], p)
		}
		versions = append(versions, digest([]byte("definition of w0")))
		exerciseList(t, list, func(v core.Version) string { return v.Digest }, versions)
		first, err := list(t.Context(), core.Page{Limit: 1})
		f.must(err)
		wantEqual(t, "newest version in a list", first.Items[0], core.Version{
			Workflow: want[4], Version: 5, Digest: versions[0], CreatedAt: epoch, CreatedBy: "uid:1000",
		})
		// A cursor belongs to the list that returned it.
		_, err = f.Versions(t.Context(), account, want[0], core.Page{Cursor: first.Next})
		wantCode(t, err, core.CodeInvalidRequest)
		_, err = f.Workflows(t.Context(), account, core.Page{Cursor: first.Next})
		wantCode(t, err, core.CodeInvalidRequest)
	})
}
