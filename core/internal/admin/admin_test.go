package admin

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/oklog/ulid/v2"
	"go.uber.org/goleak"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

type bundle struct {
	*Service
	t     *testing.T
	store *store.Store
	boss  Actor

	mu       sync.Mutex
	compiled int // modules that were compiled
}

func setup(t *testing.T) *bundle {
	t.Helper()
	b := &bundle{t: t}
	db, err := store.Open(context.Background(), store.Config{Path: filepath.Join(t.TempDir(), "k.db"), Logger: slog.New(slog.DiscardHandler), Reserve: -1})
	b.must(err)
	b.store = db
	t.Cleanup(func() { b.must(db.Close()) })
	pepper, err := auth.NewPepper(map[int][]byte{1: bytes.Repeat([]byte{1}, auth.PepperSize), 2: bytes.Repeat([]byte{2}, auth.PepperSize)})
	b.must(err)
	entropy := ulid.Monotonic(rand.Reader, 0)
	var mu sync.Mutex
	b.Service, err = New(Config{
		Store: db, Pepper: pepper, Now: func() time.Time { return noon },
		NewID: func(prefix string) string {
			mu.Lock()
			defer mu.Unlock()
			return prefix + strings.ToLower(ulid.MustNew(ulid.Now(), entropy).String())
		},
		Check: func(def *core.Definition) []core.Field {
			if def.Title == "cyclic" {
				return []core.Field{{Pointer: "#/nodes/0/with", Detail: "needs itself"}}
			}
			return nil
		},
		Compile: func(_ context.Context, binary []byte) error {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.compiled++
			switch {
			case string(binary) == "broken server":
				return errors.New("out of memory")
			case string(binary) == "foreign":
				e := core.Errorf(core.CodeInvalidModule, "it imports a and more")
				e.Fields = []core.Field{{Pointer: "#/uses", Detail: "it imports a"}, {Pointer: "#/uses", Detail: "it imports b"}}
				return e
			case !bytes.HasPrefix(binary, []byte("\x00asm")):
				return core.Errorf(core.CodeInvalidModule, "is not a WebAssembly module")
			}
			return nil
		},
	})
	b.must(err)
	b.boss = Actor{
		Principal: auth.Principal{Account: core.DefaultAccount, Subject: "uid:0", Backend: "socket", Scopes: auth.AdminScopes()},
		Origin:    core.Origin{RequestID: "req_1", TraceID: "4bf92f3577b34da6a3ce929d0e0e4736"},
	}
	return b
}

func (b *bundle) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

// as returns an actor with only these scopes.
func as(account, subject string, scopes ...string) Actor {
	return Actor{Principal: auth.Principal{Account: account, Subject: subject, Backend: "test", Scopes: scopes}}
}

func (b *bundle) audit() []core.AuditEvent {
	b.t.Helper()
	l, err := b.store.AuditEvents(context.Background(), core.DefaultAccount, core.AuditFilter{}, core.Page{Limit: 200})
	b.must(err)
	return l.Items
}

func file(slug, more string) []byte {
	return []byte("keyfire: v1\nname: " + slug + "\n" + more + "trigger:\n  enabled: true\nnodes:\n  - id: only\n    uses: ./only.wasm\n")
}

var modules = map[string][]byte{"./only.wasm": []byte("\x00asm\x01\x00\x00\x00")}

func (b *bundle) publish(slug, more string) (Published, error) {
	return b.PublishWorkflow(b.t.Context(), b.boss, Publish{Slug: slug, Filename: "flow.yaml", Source: file(slug, more), Modules: modules})
}

func TestCreateKey(t *testing.T) {
	t.Parallel()
	b := setup(t)
	p, err := b.publish("greet", "aliases: [old-greet]\n")
	b.must(err)
	for _, c := range []struct {
		name  string
		asked NewKey
		want  auth.Key // what differs from the usual
	}{
		{"usual", NewKey{Name: "ci", Scopes: []string{"run:*"}}, auth.Key{Scopes: []string{"run:*"}, ExpiresAt: noon.Add(90 * 24 * time.Hour)}},
		{"never", NewKey{Name: "ci", Scopes: []string{"run:*"}, Never: true}, auth.Key{Scopes: []string{"run:*"}}},
		{"until", NewKey{Name: "ci", Scopes: []string{"run:*"}, ExpiresAt: noon.Add(time.Second)}, auth.Key{Scopes: []string{"run:*"}, ExpiresAt: noon.Add(time.Second)}},
		{"by slug", NewKey{Name: "ci", Scopes: []string{"run:workflow/greet"}, Never: true}, auth.Key{Scopes: []string{"run:workflow/" + p.Workflow.ID}}},
		{"by alias and id", NewKey{Name: "ci", Scopes: []string{"run:workflow/old-greet", "run:workflow/" + p.Workflow.ID, "runs:read"}, Never: true}, auth.Key{Scopes: []string{"run:workflow/" + p.Workflow.ID, "runs:read"}}},
		{"admin", NewKey{Name: "ops", Type: auth.AdminKey, Never: true}, auth.Key{Type: auth.AdminKey, Scopes: auth.AdminScopes()}},
		{"narrow admin", NewKey{Name: "ops", Type: auth.AdminKey, Scopes: []string{"audit:read"}, Never: true}, auth.Key{Type: auth.AdminKey, Scopes: []string{"audit:read"}}},
		{"query and quota", NewKey{Name: "Ünïcode ☎", Description: "d", Scopes: []string{"run:*"}, MaxRuns: 5, AllowQuery: true, Never: true}, auth.Key{Scopes: []string{"run:*"}, MaxRuns: 5, AllowQuery: true}},
	} {
		k, secret, err := b.CreateKey(t.Context(), b.boss, c.asked)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if c.want.Type == "" {
			c.want.Type = auth.TriggerKey
		}
		text, ok := auth.ParseKey(secret)
		if !ok || text.Type != c.want.Type || text.ID != k.PublicID || k.Type != c.want.Type || !slices.Equal(k.Scopes, c.want.Scopes) || !k.ExpiresAt.Equal(c.want.ExpiresAt) ||
			k.MaxRuns != c.want.MaxRuns || k.AllowQuery != c.want.AllowQuery || k.CreatedBy != "uid:0" || k.Pepper != 2 {
			t.Errorf("%s: %+v", c.name, k)
		}
		// K1: what is stored proves the text and does not hold it.
		stored, err := b.store.Key(t.Context(), core.DefaultAccount, k.ID)
		b.must(err)
		sum, _ := b.Pepper.Hash(stored.Pepper, secret)
		if !bytes.Equal(stored.Hash, sum[:]) || strings.Contains(fmt.Sprintf("%+v", *stored), secret.Reveal()[16:48]) {
			t.Errorf("%s: stored %+v", c.name, stored)
		}
		if e := b.audit()[0]; e.Action != core.ActionKeyCreate || e.Object != k.ID || e.Actor != "uid:0" || e.RequestID != "req_1" || !e.Time.Equal(noon) {
			t.Errorf("%s: audit %+v", c.name, e)
		}
	}
}

func TestCreateKeyRefuses(t *testing.T) {
	t.Parallel()
	b := setup(t)
	_, err := b.publish("greet", "")
	b.must(err)
	weak := as(core.DefaultAccount, "key:weak", auth.ScopeKeysWrite, auth.ScopeRunsRead)
	run := []string{"run:*"}
	for _, c := range []struct {
		name    string
		actor   Actor
		asked   NewKey
		pointer string // "" is insufficient_scope
	}{
		{"may not", as(core.DefaultAccount, "key:x", auth.ScopeRunAll, auth.ScopeKeysRead), NewKey{Name: "x", Scopes: run}, ""},
		{"name of spaces", b.boss, NewKey{Name: " x ", Scopes: run}, "#/name"},
		{"name with a line break", b.boss, NewKey{Name: "a\nb", Scopes: run}, "#/name"},
		{"name with a hidden character", b.boss, NewKey{Name: "a\u202eb", Scopes: run}, "#/name"},
		{"long name", b.boss, NewKey{Name: strings.Repeat("é", 101), Scopes: run}, "#/name"},
		{"bad UTF-8", b.boss, NewKey{Name: "a\xff", Scopes: run}, "#/name"},
		{"long description", b.boss, NewKey{Name: "x", Description: strings.Repeat("x", 1001), Scopes: run}, "#/description"},
		{"type", b.boss, NewKey{Name: "x", Type: "root", Scopes: run}, "#/type"},
		{"past", b.boss, NewKey{Name: "x", Scopes: run, ExpiresAt: noon}, "#/expires_at"},
		{"negative quota", b.boss, NewKey{Name: "x", Scopes: run, MaxRuns: -1}, "#/max_runs"},
		{"no scope", b.boss, NewKey{Name: "x"}, "#/scopes"},
		{"unknown scope", b.boss, NewKey{Name: "x", Scopes: []string{"run:everything"}}, "#/scopes"},
		{"unknown workflow", b.boss, NewKey{Name: "x", Scopes: []string{"run:workflow/none"}}, "#/scopes"},
		{"a version", b.boss, NewKey{Name: "x", Scopes: []string{"run:workflow/greet@1"}}, "#/scopes"},
		{"admin scope on a trigger key", b.boss, NewKey{Name: "x", Scopes: []string{"keys:write"}}, "#/scopes"},
		{"too many", b.boss, NewKey{Name: "x", Scopes: slices.Repeat(run, 101)}, "#/scopes"},
		{"more than the actor may", weak, NewKey{Name: "x", Scopes: run}, "#/scopes"},
		{"a workflow the actor may not run", weak, NewKey{Name: "x", Scopes: []string{"run:workflow/greet"}}, "#/scopes"},
		{"a scope of the server", b.boss, NewKey{Name: "x", Type: auth.AdminKey, Scopes: []string{auth.ScopeAccountsWrite}}, "#/scopes"},
		{"another account's workflow", as("acct_other", "uid:1", auth.AdminScopes()...), NewKey{Name: "x", Scopes: []string{"run:workflow/greet"}}, "#/scopes"},
	} {
		k, secret, err := b.CreateKey(t.Context(), c.actor, c.asked)
		var e *core.Error
		if k != nil || !secret.Empty() || !errors.As(err, &e) {
			t.Errorf("%s: %+v %v", c.name, k, err)
			continue
		}
		if c.pointer == "" {
			if e.Code != core.CodeInsufficientScope {
				t.Errorf("%s: %v", c.name, err)
			}
			continue
		}
		if e.Code != core.CodeInvalidInput || !slices.ContainsFunc(e.Fields, func(f core.Field) bool { return f.Pointer == c.pointer }) || !strings.Contains(e.Message, strings.TrimPrefix(e.Fields[0].Pointer, "#/")) {
			t.Errorf("%s: %+v", c.name, e)
		}
	}
	// All that is wrong is told at once.
	_, _, err = b.CreateKey(t.Context(), b.boss, NewKey{Name: " ", MaxRuns: -1, ExpiresAt: noon.Add(-1)})
	var e *core.Error
	if !errors.As(err, &e) || len(e.Fields) != 4 {
		t.Errorf("%+v", err)
	}
	if keys, err := b.Keys(t.Context(), b.boss, core.Page{}); err != nil || len(keys.Items) != 0 {
		t.Errorf("%d keys were made, %v", len(keys.Items), err)
	}
	b.Random = iotest.ErrReader(errors.New("no entropy"))
	if k, _, err := b.CreateKey(t.Context(), b.boss, NewKey{Name: "x", Scopes: run}); err == nil || k != nil {
		t.Error("a key without entropy")
	}
}

func TestRevokeKey(t *testing.T) {
	t.Parallel()
	b := setup(t)
	k, _, err := b.CreateKey(t.Context(), b.boss, NewKey{Name: "x", Scopes: []string{"run:*"}})
	b.must(err)
	for range 2 { // the second time changes nothing
		gone, err := b.RevokeKey(t.Context(), b.boss, k.ID, "leaked in a log")
		b.must(err)
		if !gone.RevokedAt.Equal(noon) || gone.RevokedBy != "uid:0" || gone.RevokedWhy != "leaked in a log" {
			t.Errorf("%+v", gone)
		}
	}
	rows := 0
	for _, e := range b.audit() {
		if e.Action == core.ActionKeyRevoke && e.Object == k.ID && e.Reason == "leaked in a log" {
			rows++
		}
	}
	if rows != 1 {
		t.Errorf("%d audit rows", rows)
	}
	for name, c := range map[string]struct {
		actor   Actor
		id, why string
		code    core.Code
	}{
		"unknown": {b.boss, "key_none", "", core.CodeNotFound}, "another account's": {as("acct_other", "uid:1", auth.AdminScopes()...), k.ID, "", core.CodeNotFound},
		"may not": {as(core.DefaultAccount, "key:x", auth.ScopeKeysRead), k.ID, "", core.CodeInsufficientScope}, "reason": {b.boss, k.ID, "a\nb", core.CodeInvalidInput},
	} {
		if _, err := b.RevokeKey(t.Context(), c.actor, c.id, c.why); core.CodeOf(err) != c.code {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPublishWorkflow(t *testing.T) {
	t.Parallel()
	b := setup(t)
	first, err := b.publish("greet", "")
	b.must(err)
	if !first.Created || first.Workflow.Version != 1 || !first.Workflow.Enabled {
		t.Errorf("%+v", first)
	}
	rows := len(b.audit())
	again, err := b.publish("greet", "")
	b.must(err)
	if again.Created || again.Workflow.Version != 1 || again.Workflow.ID != first.Workflow.ID || len(b.audit()) != rows {
		t.Errorf("the same content: %+v", again)
	}
	second, err := b.publish("greet", "title: Hello\n")
	b.must(err)
	if !second.Created || second.Workflow.Version != 2 || second.Workflow.ID != first.Workflow.ID {
		t.Errorf("%+v", second)
	}
	if b.compiled != 1 {
		t.Errorf("one module was compiled %d times", b.compiled)
	}
	// What the account has may be named by its digest alone.
	_, v, err := b.Workflow(t.Context(), b.boss, "greet", 1)
	b.must(err)
	digest := v.Definition.Nodes[0].Module
	p, err := b.PublishWorkflow(t.Context(), b.boss, Publish{Slug: "other", Filename: "f", Source: bytes.ReplaceAll(file("other", ""), []byte("./only.wasm"), []byte(digest))})
	b.must(err)
	if !p.Created {
		t.Errorf("%+v", p)
	}
	versions, err := b.Versions(t.Context(), b.boss, "greet", core.Page{})
	if err != nil || len(versions.Items) != 2 || versions.Items[0].Version != 2 {
		t.Errorf("%+v %v", versions, err)
	}
	w, err := b.SetWorkflowEnabled(t.Context(), b.boss, "greet", false)
	if err != nil || w.Enabled {
		t.Errorf("%+v %v", w, err)
	}
	if e := b.audit()[0]; e.Action != core.ActionWorkflowDisable || e.Object != w.ID {
		t.Errorf("%+v", e)
	}
	if _, err := b.SetWorkflowEnabled(t.Context(), b.boss, "none", true); core.CodeOf(err) != core.CodeNotFound {
		t.Error(err)
	}
}

func TestDryRun(t *testing.T) {
	t.Parallel()
	b := setup(t)
	dry := func(actor Actor, more string) Published {
		p, err := b.PublishWorkflow(t.Context(), actor, Publish{Slug: "greet", Filename: "flow.yaml", Source: file("greet", more), Modules: modules, DryRun: true})
		b.must(err)
		return p
	}
	if p := dry(b.boss, ""); p.Outcome != OutcomeCreated || p.Created || p.Workflow.ID != "" || p.Workflow.Version != 1 || p.Differences != nil {
		t.Errorf("a new workflow: %+v", p)
	}
	first, err := b.publish("greet", "")
	b.must(err)
	rows := len(b.audit())
	if p := dry(b.boss, ""); p.Outcome != OutcomeUnchanged || p.Workflow.ID != first.Workflow.ID {
		t.Errorf("the same content: %+v", p)
	}
	p := dry(b.boss, "title: Hello\n")
	want := []core.Difference{{Path: "#/title", After: []byte(`"Hello"`)}}
	if p.Outcome != OutcomeChanged || p.Created || p.Workflow.ID != first.Workflow.ID || p.Workflow.Version != 2 || !cmp.Equal(p.Differences, want) {
		t.Errorf("a change: %+v", p)
	}
	writer := as(core.DefaultAccount, "key:x", auth.ScopeWorkflowsWrite)
	if p := dry(writer, "title: Hello\n"); p.Outcome != OutcomeChanged || p.Differences != nil {
		t.Errorf("somebody who may not read workflows is told %+v", p)
	}
	if w, _, err := b.Workflow(t.Context(), b.boss, "greet", 0); err != nil || w.Version != 1 || len(b.audit()) != rows {
		t.Errorf("%+v %v", w, err)
	}
	if _, err := b.PublishWorkflow(t.Context(), b.boss, Publish{Slug: "greet", Filename: "f", Source: file("greet", "title: cyclic\n"), Modules: modules, DryRun: true}); core.CodeOf(err) != core.CodeInvalidWorkflow {
		t.Error(err)
	}
}

func TestRepublishVersion(t *testing.T) {
	t.Parallel()
	b := setup(t)
	first, err := b.publish("greet", "")
	b.must(err)
	second, err := b.PublishWorkflow(t.Context(), b.boss, Publish{Slug: "greet", Filename: "f", Source: file("greet", "title: Hello\n"), Modules: map[string][]byte{"./only.wasm": []byte("\x00asm\x01\x00\x00\x00\x00")}})
	b.must(err)
	republish := func(ref string, version int, dry bool) Published {
		t.Helper()
		p, err := b.RepublishVersion(t.Context(), b.boss, ref, version, dry)
		b.must(err)
		return p
	}
	if p := republish("greet", 2, false); p.Outcome != OutcomeUnchanged || p.Created || p.Workflow.Version != 2 {
		t.Errorf("the newest version: %+v", p)
	}
	rows := len(b.audit())
	if p := republish("greet", 1, true); p.Outcome != OutcomeChanged || p.Created || p.Workflow.Version != 3 || len(p.Differences) != 2 || len(b.audit()) != rows {
		t.Errorf("a dry run: %+v", p)
	}
	third := republish(first.Workflow.ID, 1, false)
	if !third.Created || third.Workflow.Version != 3 || third.Workflow.Digest != first.Workflow.Digest || third.Workflow.ID != first.Workflow.ID {
		t.Errorf("%+v", third)
	}
	if e := b.audit()[0]; e.Action != core.ActionWorkflowPublish || e.Object != first.Workflow.ID || e.Reason != "as version 1" {
		t.Errorf("%+v", e)
	}
	if p := republish("greet", 2, false); p.Workflow.Version != 4 || p.Workflow.Digest != second.Workflow.Digest {
		t.Errorf("and forth again: %+v", p)
	}

	_, err = b.RenameWorkflow(t.Context(), b.boss, "greet", "hello")
	b.must(err)
	for _, c := range []struct {
		actor   Actor
		ref     string
		version int
		code    core.Code
	}{
		{as(core.DefaultAccount, "key:x", auth.ScopeWorkflowsRead), "hello", 1, core.CodeInsufficientScope},
		{b.boss, "greet", 1, core.CodeNotFound},
		{b.boss, "hello", 9, core.CodeNotFound},
		{b.boss, "hello", 1, core.CodeConflict},
	} {
		if _, err := b.RepublishVersion(t.Context(), c.actor, c.ref, c.version, false); core.CodeOf(err) != c.code {
			t.Errorf("%s@%d: %v, want %s", c.ref, c.version, err, c.code)
		}
	}
}

func TestPublishWorkflowRefuses(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, c := range []struct {
		name, slug, more string
		modules          map[string][]byte
		actor            *Actor
		code             core.Code
		pointer          string
	}{
		{name: "may not", slug: "x", actor: &Actor{Principal: auth.Principal{Account: core.DefaultAccount, Subject: "k", Scopes: []string{auth.ScopeWorkflowsRead}}}, code: core.CodeInsufficientScope},
		{name: "another name", slug: "y", modules: modules, code: core.CodeInvalidWorkflow, pointer: "#/name"},
		{name: "checked", slug: "x", more: "title: cyclic\n", modules: modules, code: core.CodeInvalidWorkflow, pointer: "#/nodes/0/with"},
		{name: "module not sent", slug: "x", code: core.CodeInvalidWorkflow, pointer: "#/nodes/0/uses"},
		{name: "module of another name", slug: "x", modules: map[string][]byte{"only.wasm": modules["./only.wasm"]}, code: core.CodeInvalidWorkflow, pointer: "#/nodes/0/uses"},
		{name: "no module", slug: "x", modules: map[string][]byte{"./only.wasm": []byte("text")}, code: core.CodeInvalidWorkflow, pointer: "#/nodes/0/uses"},
		{name: "our fault", slug: "x", modules: map[string][]byte{"./only.wasm": []byte("broken server")}, code: core.CodeInternal},
	} {
		actor := b.boss
		if c.actor != nil {
			actor = *c.actor
		}
		_, err := b.PublishWorkflow(t.Context(), actor, Publish{Slug: c.slug, Filename: "flow.yaml", Source: file("x", c.more), Modules: c.modules})
		if core.CodeOf(err) != c.code {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		var e *core.Error
		if c.pointer != "" && (!errors.As(err, &e) || !slices.ContainsFunc(e.Fields, func(f core.Field) bool { return f.Pointer == c.pointer && f.Line > 0 && f.File == "flow.yaml" })) {
			t.Errorf("%s: %+v", c.name, err)
		}
	}
	// S1: each import that a module cannot have is named, at the line that uses the module.
	_, err := b.PublishWorkflow(t.Context(), b.boss, Publish{Slug: "x", Filename: "flow.yaml", Source: file("x", ""), Modules: map[string][]byte{"./only.wasm": []byte("foreign")}})
	var e *core.Error
	if !errors.As(err, &e) || len(e.Fields) != 2 || e.Fields[0].Detail != "it imports a" || e.Fields[1].Detail != "it imports b" || e.Fields[1].Line != 7 {
		t.Errorf("a module with two foreign imports: %+v", err)
	}
	if l, err := b.Workflows(t.Context(), b.boss, core.Page{}); err != nil || len(l.Items) != 0 || len(b.audit()) != 0 {
		t.Errorf("something was published: %+v %v", l, err)
	}
}

// Every method asks for its scope, and another account's objects do not exist.
func TestScopesAndAccounts(t *testing.T) {
	t.Parallel()
	b := setup(t)
	p, err := b.publish("greet", "")
	b.must(err)
	k, _, err := b.CreateKey(t.Context(), b.boss, NewKey{Name: "x", Scopes: []string{"run:*"}})
	b.must(err)
	ctx := t.Context()
	for name, c := range map[string]struct {
		scope string
		ask   func(a Actor) error
		empty bool // a list: another account's is empty
	}{
		"Key":      {auth.ScopeKeysRead, func(a Actor) error { _, err := b.Key(ctx, a, k.ID); return err }, false},
		"Keys":     {auth.ScopeKeysRead, func(a Actor) error { return none(b.Keys(ctx, a, core.Page{})) }, true},
		"Workflow": {auth.ScopeWorkflowsRead, func(a Actor) error { _, _, err := b.Workflow(ctx, a, p.Workflow.ID, 0); return err }, false},
		"by slug":  {auth.ScopeWorkflowsRead, func(a Actor) error { _, _, err := b.Workflow(ctx, a, "greet", 1); return err }, false},
		"list":     {auth.ScopeWorkflowsRead, func(a Actor) error { return none(b.Workflows(ctx, a, core.Page{})) }, true},
		"Versions": {auth.ScopeWorkflowsRead, func(a Actor) error { _, err := b.Versions(ctx, a, "greet", core.Page{}); return err }, false},
		"enable":   {auth.ScopeWorkflowsWrite, func(a Actor) error { _, err := b.SetWorkflowEnabled(ctx, a, "greet", true); return err }, false},
		"audit":    {auth.ScopeAuditRead, func(a Actor) error { return none(b.AuditEvents(ctx, a, core.AuditFilter{}, core.Page{})) }, true},
	} {
		all := slices.DeleteFunc(auth.AdminScopes(), func(s string) bool { return s == c.scope })
		if err := c.ask(as(core.DefaultAccount, "k", all...)); core.CodeOf(err) != core.CodeInsufficientScope || !strings.Contains(err.Error(), c.scope) {
			t.Errorf("%s without %s: %v", name, c.scope, err)
		}
		if err := c.ask(as(core.DefaultAccount, "k", c.scope)); err != nil && !errors.Is(err, errSome) {
			t.Errorf("%s with %s: %v", name, c.scope, err)
		}
		err := c.ask(as("acct_other", "k", auth.AdminScopes()...))
		if c.empty && err != nil || !c.empty && core.CodeOf(err) != core.CodeNotFound {
			t.Errorf("%s of another account: %v", name, err)
		}
	}
	names, err := b.ScopeNames(ctx, b.boss, auth.Key{Scopes: []string{"run:workflow/" + p.Workflow.ID, "run:workflow/wf_gone", "run:*"}})
	if err != nil || names[p.Workflow.ID] != "greet" || names["wf_gone"] != "" || len(names) != 2 {
		t.Errorf("%v %v", names, err)
	}
}

var errSome = errors.New("the list is not empty")

// none is errSome for a list that has items.
func none[T any](l core.List[T], err error) error {
	if err == nil && len(l.Items) > 0 {
		return errSome
	}
	return err
}

func TestNewRefusesHalfAConfig(t *testing.T) {
	t.Parallel()
	if _, err := New(Config{}); err == nil {
		t.Error("an empty Config is accepted")
	}
}
