package server

import (
	"bytes"
	"context"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/admin"
)

// noWorkflow are an id, a slug and an alias that nothing has, as long as those of flowNamed.
var noWorkflow = []string{"wf_" + noID, "none", "anyone-none"}

// flowNamed publishes a workflow with an alias and returns its names: id, slug, alias.
func (f *foreign) flowNamed(slug, extra string) []string {
	f.t.Helper()
	f.publishWith(slug, extra, "aliases: [anyone-"+slug+"]\n")
	w, err := f.store.Workflow(context.Background(), core.DefaultAccount, slug)
	f.must(err)
	return []string{w.ID, slug, "anyone-" + slug}
}

// routesByName are the ways to start a run of a workflow that a request names.
var routesByName = []struct{ name, path, body string }{
	{"native", "/v1/workflows/{ref}/runs", `{}`},
	{"native version", "/v1/workflows/{ref}@1/runs", `{}`},
	{"webhook", "/v1/hooks/{ref}", `{}`},
	{"miiflow", "/api/v1/agent_run", `{"agent_id":"{ref}","input":{}}`},
	{"langflow process", "/api/v1/process/{ref}", `{"inputs":{}}`},
	{"langflow run", "/api/v1/run/{ref}", `{"inputs":{}}`},
	{"langflow webhook", "/api/v1/webhook/{ref}", `{"a":1}`},
	{"bifrost", "/api/endpoints/{ref}", `{}`},
}

// answer sends a request that names a workflow and returns all of the answer but what is different every time.
func (f *foreign) answer(path, body, ref, key string) string {
	f.t.Helper()
	r := f.call("POST", strings.ReplaceAll(path, "{ref}", url.PathEscape(ref)), key, strings.ReplaceAll(body, "{ref}", ref))
	request := r.header.Get("Keyfire-Request-Id")
	r.header.Del("Keyfire-Request-Id")
	r.header.Del("Content-Length") // of what the sender named itself
	var all bytes.Buffer
	fmt.Fprintf(&all, "%d\n", r.code)
	_ = r.header.Write(&all)
	all.Write(r.body)
	text := all.String()
	if _, id, ok := strings.Cut(text, `"trace_id":"`); ok {
		text = strings.ReplaceAll(text, id[:32], "TRACE")
	}
	return strings.ReplaceAll(strings.ReplaceAll(text, request, "REQUEST"), ref, "REF")
}

// Who asks for a workflow that was deleted or renamed, by any name it had, on any route and with any credential, gets byte for byte the answer that it gets for
// one that never was; and a key that is made for one workflow gets that for every other one too. Another workflow of the name is another workflow.
func TestGoneWorkflows(t *testing.T) {
	t.Parallel()
	f := setupForeign(t)
	deleted, renamed, stays := f.flowNamed("gone", ""), f.flowNamed("oldn", ""), f.flowNamed("stay", "")
	k, orphan := f.key(admin.NewKey{Scopes: []string{auth.ScopeRunWorkflow + "gone"}})
	_, moved := f.key(admin.NewKey{Scopes: []string{auth.ScopeRunWorkflow + "oldn"}})
	credentials := map[string]string{"global": f.global, "orphan": orphan, "renamed": moved, "bound": f.bound, "administrator": f.adminKey(), "none": ""}
	boss := credentials["administrator"]
	for _, r := range routesByName {
		for _, key := range []string{f.global, orphan} {
			if got := f.answer(r.path, r.body, deleted[1], key); got[0] != '2' {
				t.Fatalf("%s before: %s", r.name, got)
			}
		}
	}
	f.call("PATCH", "/v1/workflows/oldn", boss, `{"name":"newn"}`).want(200)
	f.call("DELETE", "/v1/workflows/gone?reason=old", boss, "").want(204)

	same := func(when string, refs ...string) {
		t.Helper()
		for _, r := range routesByName {
			for who, key := range credentials {
				for i, ref := range refs {
					if ref == "" {
						continue
					}
					if got, want := f.answer(r.path, r.body, ref, key), f.answer(r.path, r.body, noWorkflow[i], key); got != want {
						t.Errorf("%s, %s, %s asks for %s: told from what never was:\n--- got\n%s\n--- want\n%s", when, r.name, who, ref, got, want)
					}
				}
			}
		}
	}
	same("deleted", deleted...)
	same("renamed", "", renamed[1])
	for _, path := range []string{"/v1/workflows/{ref}", "/v1/workflows/{ref}/versions", "/v1/workflows/{ref}/snippets", "/v1/workflows/{ref}/versions/1"} {
		for i, ref := range deleted {
			got := f.call("GET", strings.ReplaceAll(path, "{ref}", ref), boss, "").problem(404, core.CodeNotFound)
			want := f.call("GET", strings.ReplaceAll(path, "{ref}", noWorkflow[i]), boss, "").problem(404, core.CodeNotFound)
			if got.Detail != want.Detail {
				t.Errorf("%s: %q, and for what never was %q", path, got.Detail, want.Detail)
			}
		}
	}
	// A rename orphans nothing: the id, the alias and the key's own workflow lead there.
	for _, r := range routesByName {
		for _, ref := range []string{renamed[0], "newn", renamed[2]} {
			if got := f.answer(r.path, r.body, ref, moved); got[0] != '2' {
				t.Errorf("%s of %s after the rename: %s", r.name, ref, got)
			}
		}
	}
	f.call("POST", "/v1/trigger", moved, `{}`).want(200)
	f.call("POST", "/api/trigger", "", `{"inputs":{}}`, "X-API-Key", moved).want(200)

	// B8: the key is orphaned. It is listed, last where Bifrost lists it, and runs nothing.
	f.call("POST", "/v1/trigger", orphan, `{}`).problem(403, core.CodeInsufficientScope)
	f.call("POST", "/api/trigger", "", `{"inputs":{}}`, "X-API-Key", orphan).want(403)
	if shown := f.call("GET", "/v1/keys/"+k.ID, boss, "").want(200).object(); shown["state"] != "orphaned" || fmt.Sprint(shown["workflows"]) != "[]" {
		t.Errorf("%v", shown)
	}
	f.key(admin.NewKey{Scopes: []string{auth.ScopeRunAll}}) // made later, listed before
	list := f.call("GET", "/api/workflow-keys", boss, "").want(200)
	if last := bytes.LastIndex(list.body, []byte(`{"id":"`)); !bytes.Contains(list.body[last:], []byte(k.ID)) || !bytes.Contains(list.body[last:], []byte(`"is_orphaned":true`)) {
		t.Errorf("the orphaned key is not the last one: %s", list.body)
	}

	// Deleted and created anew: those who were made for the first one do not reach the second.
	again := f.flowNamed("gone", "")
	if again[0] == deleted[0] {
		t.Fatal("the id is used again")
	}
	for _, r := range routesByName {
		want := f.answer(r.path, r.body, noWorkflow[1], orphan)
		for _, ref := range append(again, stays...) {
			if got := f.answer(r.path, r.body, ref, orphan); got != want {
				t.Errorf("%s: the key of the deleted workflow asks for %s:\n--- got\n%s\n--- want\n%s", r.name, ref, got, want)
			}
		}
		if got := f.answer(r.path, r.body, "gone", f.global); got[0] != '2' {
			t.Errorf("%s: the new workflow with a key for all: %s", r.name, got)
		}
	}
	same("created anew", deleted[0])
	f.call("POST", "/v1/trigger", orphan, `{}`).problem(403, core.CodeInsufficientScope)
	if f.call("GET", "/v1/keys/"+k.ID, boss, "").want(200).object()["state"] != "orphaned" {
		t.Error("the key is not orphaned any more")
	}
	_, fresh := f.key(admin.NewKey{Scopes: []string{auth.ScopeRunWorkflow + "gone"}})
	f.call("POST", "/v1/trigger", fresh, `{}`).want(200)

	// The history of the deleted one is read by its id, and who deleted it is known.
	runs := f.call("GET", "/v1/runs?limit=200&workflow="+deleted[0], boss, "").want(200).object()["data"].([]any)
	if len(runs) != 2*len(routesByName) {
		t.Errorf("%d runs of the deleted workflow, want %d", len(runs), 2*len(routesByName))
	}
	f.call("GET", "/v1/runs/"+runs[0].(map[string]any)["id"].(string), boss, "").want(200)
	for action, reason := range map[string]string{core.ActionWorkflowDelete: "old", core.ActionWorkflowRename: "oldn -> newn"} {
		if events := f.call("GET", "/v1/audit?action="+action, boss, "").want(200).object()["data"].([]any); len(events) != 1 || events[0].(map[string]any)["reason"] != reason {
			t.Errorf("%s: %v", action, events)
		}
	}
}

func TestRenameAnswers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.publish("one", "")
	b.publish("two", "")
	boss := b.adminKey()
	for body, code := range map[string]core.Code{
		`{"name":"Two Words"}`: core.CodeInvalidInput, `{"name":""}`: core.CodeInvalidInput, `{}`: core.CodeInvalidInput, `{"name":7}`: core.CodeInvalidInput,
		`{"name":"wf_1"}`: core.CodeInvalidInput, `{"slug":"x"}`: core.CodeUnknownField, `[]`: core.CodeInvalidRequest, `{"name":"two"}`: core.CodeConflict,
	} {
		r := b.call("PATCH", "/v1/workflows/one", boss, body)
		if r.problem(r.code, code); r.code >= 500 {
			t.Errorf("%s: status %d", body, r.code)
		}
	}
	_, weak, err := b.admin.CreateKey(context.Background(), b.boss, admin.NewKey{Name: "reader", Type: auth.AdminKey, Scopes: []string{auth.ScopeWorkflowsRead, auth.ScopeRunAll}})
	b.must(err)
	b.call("PATCH", "/v1/workflows/one", weak.Reveal(), `{"name":"three"}`).problem(403, core.CodeInsufficientScope)
	b.call("DELETE", "/v1/workflows/one", weak.Reveal(), "").problem(403, core.CodeInsufficientScope)
	for _, unclear := range []string{"=perhaps", "", "=", "=1", "=True", "=true&cancel_runs=true"} {
		if p := b.call("DELETE", "/v1/workflows/one?cancel_runs"+unclear, boss, "").problem(400, core.CodeInvalidRequest); !strings.Contains(p.Detail, "must be") && !strings.Contains(p.Detail, "boolean") {
			t.Errorf("%q: %s", unclear, p.Detail)
		}
	}
	b.call("DELETE", "/v1/workflows/one?reason=%01", boss, "").problem(422, core.CodeInvalidInput)
	b.call("DELETE", "/v1/workflows/one?cancel=true", boss, "").problem(400, core.CodeInvalidRequest)
	b.call("PATCH", "/v1/workflows/none", boss, `{"name":"three"}`).problem(404, core.CodeNotFound)
	b.call("DELETE", "/v1/workflows/none", boss, "").problem(404, core.CodeNotFound)
	if got := b.call("PATCH", "/v1/workflows/one", boss, `{"name":"billing/one"}`).want(200).object(); got["name"] != "billing/one" || got["version"] != 1.0 {
		t.Errorf("%v", got)
	}
	b.call("PATCH", "/v1/workflows/billing/one", boss, `{"name":"billing/two"}`).want(200)
	b.call("DELETE", "/v1/workflows/billing/two", boss, "").want(204)
	b.call("DELETE", "/v1/workflows/billing/two", boss, "").problem(404, core.CodeNotFound)
}

// K2: what is ended with cancel_runs takes its runs along: those that execute, and those that wait. Without it they finish.
func TestCancelRunsK2(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name          string
		method, path  string // {key}, {workflow} and {account} are those of the runs
		query, body   string // what is sent, with cancel_runs and without
		plain, reason string
		of            []string // whose runs end: key or workflow
	}{
		{"revoke a key", "DELETE", "/v1/keys/{key}", "?cancel_runs=true&reason=left", "", "", "key revoked: left", []string{"one a", "one b"}},
		{"disable a key", "POST", "/v1/keys/{key}/disable", "", `{"cancel_runs":true}`, `{}`, "key disabled", []string{"one a", "one b"}},
		{"delete a workflow", "DELETE", "/v1/workflows/a", "?cancel_runs=true", "", "", "workflow deleted", []string{"one a", "two a"}},
		{"disable an account", "POST", "/v1/accounts/acme/disable", "", `{"cancel_runs":true,"reason":"not paid"}`, `{}`, "account disabled: not paid", []string{"one a", "one b", "two a"}},
	} {
		for _, cancels := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s %v", c.name, cancels), func(t *testing.T) {
				t.Parallel()
				b := setup(t)
				acme, err := b.admin.CreateAccount(context.Background(), b.boss, "acme", "")
				b.must(err)
				super := b.boss
				b.boss.Principal.Account = acme.ID
				release, started := make(chan struct{}), make(chan struct{}, 10)
				for _, slug := range []string{"a", "b"} {
					b.publish(slug, "")
					b.executor.set(slug, func(ctx context.Context, run *core.Run) {
						started <- struct{}{}
						select {
						case <-release:
						case <-ctx.Done():
							run.Status, run.Output, run.Error = core.RunCancelled, nil, &core.RunError{Code: core.CodeRunCancelled}
						}
					})
				}
				one, secretOne := b.key(admin.NewKey{Scopes: []string{auth.ScopeRunAll}})
				_, secretTwo := b.key(admin.NewKey{Scopes: []string{auth.ScopeRunAll}})
				keys := map[string]string{"one": secretOne, "two": secretTwo}
				ids := map[string]string{}
				for _, run := range []string{"one a", "one b", "two a"} {
					key, workflow, _ := strings.Cut(run, " ")
					async := b.call("POST", "/v1/workflows/"+workflow+"/runs", keys[key], `{}`, "Prefer", "respond-async").want(202)
					<-started
					later := b.call("POST", "/v1/workflows/"+workflow+"/runs", keys[key], `{"run_after":"`+time.Now().AddDate(1, 0, 0).Format(time.RFC3339)+`"}`).want(202)
					ids[run], ids[run+" later"] = async.header.Get("Keyfire-Run-Id"), later.header.Get("Keyfire-Run-Id")
				}
				boss := b.adminKey()
				if strings.Contains(c.path, "/accounts/") {
					_, secret, err := b.admin.CreateKey(context.Background(), super, admin.NewKey{Type: auth.AdminKey, Name: "super", Scopes: []string{auth.ScopeAccountsWrite}})
					b.must(err)
					boss = secret.Reveal()
				}
				query, body := c.query, c.body
				if !cancels {
					query, body = "", c.plain
				}
				r := b.call(c.method, strings.ReplaceAll(c.path, "{key}", one.ID)+query, boss, body)
				if r.code/100 != 2 {
					t.Fatalf("%d %s", r.code, r.body)
				}
				want := map[string]core.RunStatus{}
				for run := range ids {
					if want[run] = core.RunSucceeded; strings.HasSuffix(run, "later") {
						want[run] = core.RunScheduled
					}
				}
				n := ""
				if cancels {
					n = fmt.Sprint(2 * len(c.of))
					for _, run := range c.of {
						want[run], want[run+" later"] = core.RunCancelled, core.RunCancelled
					}
				}
				if got := r.header.Get("Keyfire-Cancelled-Runs"); got != n {
					t.Errorf("Keyfire-Cancelled-Runs: %q, want %q", got, n)
				}
				for run, status := range want { // those that are to end by being cancelled do so before the others may go on
					if status == core.RunCancelled {
						b.ends(acme.ID, ids[run], status, c.reason)
					}
				}
				close(release)
				for run, status := range want {
					if status == core.RunSucceeded {
						b.ends(acme.ID, ids[run], status, "")
					}
					if status == core.RunScheduled {
						if got, err := b.store.Run(context.Background(), acme.ID, ids[run]); err != nil || got.Status != status {
							t.Errorf("%s: %v %v", run, got, err)
						}
					}
				}
				events, err := b.store.AuditEvents(context.Background(), acme.ID, core.AuditFilter{Action: core.ActionRunCancel}, core.Page{})
				b.must(err)
				if fmt.Sprint(len(events.Items)) != n && (n != "" || len(events.Items) > 0) {
					t.Errorf("%d audit events of cancelled runs, want %s", len(events.Items), n)
				}
				for _, e := range events.Items {
					if e.Reason != c.reason {
						t.Errorf("%+v", e)
					}
				}
				if again := b.call(c.method, strings.ReplaceAll(c.path, "{key}", one.ID)+query, boss, body); cancels && again.code/100 == 2 && again.header.Get("Keyfire-Cancelled-Runs") != "0" {
					t.Errorf("a second time: %v", again.header)
				}
			})
		}
	}
}

// ends waits for the end of a run.
func (b *bundle) ends(account, id string, status core.RunStatus, reason string) {
	b.t.Helper()
	for begin := time.Now(); ; time.Sleep(2 * time.Millisecond) {
		run, err := b.store.Run(context.Background(), account, id)
		b.must(err)
		if !run.Status.Terminal() && time.Since(begin) < 20*time.Second {
			continue
		}
		if run.Status != status || reason != "" && (run.Error == nil || !strings.HasSuffix(run.Error.Message, reason)) {
			b.t.Errorf("run %s is %s with %+v, want %s because of %q", id, run.Status, run.Error, status, reason)
		}
		return
	}
}
