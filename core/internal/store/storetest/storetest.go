// Package storetest is the suite that every database under a Store must pass. It knows the store only by its exported methods, so that what it
// asserts is what callers may rely on.
package storetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/store"
)

// Exercise runs the suite. open returns an empty store that is closed when its test ends.
func Exercise(t *testing.T, open func(t *testing.T) *store.Store) {
	for _, subject := range []struct {
		name string
		run  func(*testing.T, func(t *testing.T) *fixture)
	}{
		{"Keys", exerciseKeys},
		{"KeyLimits", exerciseKeyLimits},
		{"AccountLimits", exerciseAccountLimits},
		{"Workflows", exerciseWorkflows},
		{"WorkflowChanges", exerciseWorkflowChanges},
		{"Admission", exerciseAdmission},
		{"Idempotency", exerciseIdempotency},
		{"Runs", exerciseRuns},
		{"Durable", exerciseDurable},
		{"Prune", exercisePrune},
		{"Audit", exerciseAudit},
		{"Secrets", exerciseSecrets},
		{"KV", exerciseKV},
		{"Accounts", exerciseAccounts},
		{"People", exercisePeople},
		{"Model", exerciseModel},
	} {
		t.Run(subject.name, func(t *testing.T) {
			t.Parallel()
			subject.run(t, func(t *testing.T) *fixture { return &fixture{Store: open(t), t: t} })
		})
	}
}

// fixture is an empty store with short ways to fill it. Its methods fail the test when the store refuses.
type fixture struct {
	*store.Store
	t  *testing.T
	id atomic.Int64
}

// epoch is the time that test data is made at. It has microseconds, as stored times do.
var epoch = time.Date(2026, 3, 1, 12, 0, 0, 123456000, time.UTC)

const account = "acct_one"

// newID returns an id as real ones are, made at epoch: ids of one kind ascend.
func (f *fixture) newID(prefix string) string { return f.newIDAt(prefix, epoch) }

func (f *fixture) newIDAt(prefix string, at time.Time) string {
	const digits = "0123456789abcdefghjkmnpqrstvwxyz" // of a ULID: 48 bits of milliseconds, then here a number
	text := make([]byte, 10, 26)
	for i, ms := len(text)-1, at.UnixMilli(); i >= 0; i, ms = i-1, ms>>5 {
		text[i] = digits[ms&31]
	}
	return prefix + string(fmt.Appendf(text, "%016d", f.id.Add(1)))
}

func (f *fixture) event(action, object string) core.AuditEvent {
	return core.AuditEvent{
		ID: f.newID(core.PrefixEvent), Account: account, Time: epoch, Actor: "uid:1000", SourceIP: "203.0.113.7", Action: action,
		Object: object, Outcome: core.OutcomeOK, RequestID: "req_1", TraceID: "4bf92f3577b34da6a3ce929d0e0e4736", Count: 1,
	}
}

// key returns an active key that is not stored yet.
func (f *fixture) key() auth.Key {
	n := f.id.Add(1)
	return auth.Key{
		ID: fmt.Sprintf("key_%026d", n), Account: account, Type: auth.TriggerKey, PublicID: fmt.Sprintf("%012d", n),
		Hash: []byte{0, 1, 2, 0xff, byte(n)}, Pepper: 3, Last4: "9f3a", Name: "CI", Description: `builds, "quoted"`,
		Scopes: []string{auth.ScopeRunAll, auth.ScopeRunsRead}, AllowQuery: true,
		CreatedAt: epoch, CreatedBy: "uid:1000", UpdatedAt: epoch, ExpiresAt: epoch.Add(90 * 24 * time.Hour), Revision: 1,
	}
}

// createKey stores a key after alter has changed it.
func (f *fixture) createKey(alter func(*auth.Key)) auth.Key {
	f.t.Helper()
	k := f.key()
	if alter != nil {
		alter(&k)
	}
	f.must(f.CreateKey(f.t.Context(), k, f.event(core.ActionKeyCreate, k.ID)))
	return k
}

// publication returns a workflow of one node with a module, not stored yet.
func (f *fixture) publication(slug string) core.Publication {
	body := []byte("\x00asm" + slug)
	module := digest(body)
	def := core.Definition{
		Keyfire: "v1", Name: slug, Title: "Title of " + slug, Aliases: []string{"old-" + slug},
		Trigger: core.TriggerSpec{
			Enabled: true, Public: true, GlobalKeys: true, Timeout: core.Duration(30 * time.Second),
			AllowedOrigins: []string{"https://example.com"}, Overrides: []string{"greet.style"},
			Mode: core.ModeAsync, Concurrency: &core.Concurrency{Limit: 3, WhenFull: core.WhenFullQueue},
			Schedule: []core.Schedule{{Cron: "@daily", Timezone: "Europe/Paris", Input: json.RawMessage(`{"a":"<&>"}`), Missed: core.MissedSkip}},
			Webhook:  &core.WebhookSpec{Verify: core.VerifyStandardWebhooks, Secret: "CRM_WEBHOOK_SECRET"},
		},
		Engine: core.EnginePlain,
		Output: json.RawMessage(`"${nodes.greet.output}"`),
		Input:  json.RawMessage(`{"type":"object","title":"<a&b>"}`),
		Nodes: []core.Node{{
			ID: "greet", Module: module, Uses: "./greet.wasm", Needs: []string{}, With: json.RawMessage(`{"n":12345678901234567890.10}`),
			Retry: &core.Retry{MaxAttempts: 3, Initial: core.Duration(time.Second), On: []core.ErrorClass{core.ClassTimeout}},
		}},
	}
	return core.Publication{
		Account:  account,
		Workflow: core.Workflow{ID: f.newID(core.PrefixWorkflow), Account: account, Slug: slug, Title: def.Title, Enabled: true},
		Version: core.Version{
			Digest: digest([]byte("definition of " + slug)), Definition: def, Source: "keyfire: v1\nname: " + slug + " # <é>\n",
			CreatedAt: epoch, CreatedBy: "uid:1000",
		},
		Modules: map[string][]byte{module: body},
	}
}

// publish stores a publication after alter has changed it.
func (f *fixture) publish(slug string, alter func(*core.Publication)) core.Workflow {
	f.t.Helper()
	p := f.publication(slug)
	if alter != nil {
		alter(&p)
	}
	w, created, err := f.PublishWorkflow(f.t.Context(), p, f.event(core.ActionWorkflowPublish, p.Workflow.ID))
	f.must(err)
	if !created {
		f.t.Fatalf("publish %s: created = false", slug)
	}
	return w
}

// admitAt admits a run of w at a time and returns what the store says. k may be nil.
func (f *fixture) admitAt(w core.Workflow, k *auth.Key, at time.Time) (core.Admitted, core.Run, error) {
	a := f.admission(w, k)
	a.Run.CreatedAt, a.Run.StartedAt = at, at
	got, err := f.Admit(f.t.Context(), a)
	return got, a.Run, err
}

// admission returns a run of w with the key, not admitted yet. k may be nil.
func (f *fixture) admission(w core.Workflow, k *auth.Key) core.Admission {
	id := f.newID(core.PrefixRun)
	a := core.Admission{
		Run: core.Run{
			ID: id, Account: w.Account, Status: core.RunRunning,
			Workflow:  core.WorkflowRef{ID: w.ID, Slug: w.Slug, Version: w.Version, Digest: w.Digest},
			Trigger:   core.TriggerInfo{Type: "api", Route: "native", Principal: "socket:1000", Backend: "socket", SourceIP: "203.0.113.7", Attributes: map[string]string{"ref": "refs/heads/main"}},
			Input:     json.RawMessage(`{"name":"Ada","n":12345678901234567890.10,"html":"<a&b>"}`),
			Overrides: json.RawMessage(`{"greet":{"style":"formal"}}`),
			Metadata:  map[string]string{"crm_id": "42", "source": "nightly"},
			CreatedAt: epoch, StartedAt: epoch, DeadlineAt: epoch.Add(30 * time.Second), Attempt: 1,
			TraceID: "4bf92f3577b34da6a3ce929d0e0e4736", RequestID: "req_1",
		},
		Audit: f.event(core.ActionRunAccept, id),
	}
	a.Audit.Account = w.Account
	if k != nil {
		a.KeyID, a.KeyRevision, a.KeyLimited = k.ID, k.Revision, k.Limited()
		a.Audit.KeyID = k.ID
		a.Run.Trigger.Principal, a.Run.Trigger.KeyID, a.Run.Trigger.KeyHint, a.Run.Trigger.Backend = "key:"+k.ID, k.ID, k.Mask(), "apikey"
		a.Run.Trigger.KeyName = k.Name
	}
	return a
}

// admit admits a run of w with the key and returns it.
func (f *fixture) admit(w core.Workflow, k *auth.Key, alter func(*core.Admission)) core.Run {
	f.t.Helper()
	a := f.admission(w, k)
	if alter != nil {
		alter(&a)
	}
	got, err := f.Admit(f.t.Context(), a)
	f.must(err)
	if got.Replayed || got.RunID != a.Run.ID {
		f.t.Fatalf("Admit = %+v, want a new run %s", got, a.Run.ID)
	}
	return a.Run
}

// finished returns run as it is after succeeding with one step.
func finished(run core.Run) core.Run {
	run.Status = core.RunSucceeded
	run.Output = json.RawMessage(`{"greeting":"Hello, <Ada>","n":1e400}`)
	run.FinishedAt = epoch.Add(7 * time.Millisecond)
	run.Steps = []core.Step{step("greet")}
	return run
}

func step(id string) core.Step {
	return core.Step{
		ID: id, Status: core.StepSucceeded, Module: digest([]byte(id)),
		Attempts: []core.Attempt{
			{Number: 1, StartedAt: epoch, DurationUS: 900, PeakMemory: 1 << 20, Error: &core.StepError{Class: core.ClassExit, Message: "exit code 3", ExitCode: 3}},
			{
				Number: 2, StartedAt: epoch.Add(time.Millisecond), DurationUS: 1200, PeakMemory: 1 << 20, Fuel: 17, HostUS: 3, LogDropped: 9,
				Tape: core.TapeKept, Recording: []byte("\x00\xfftape of " + id),
				Error: &core.StepError{Class: core.ClassFailed, Message: "no such customer", ExitCode: 1, Status: 404, Code: "no_customer"},
				Log:   []core.LogLine{{Time: epoch, Level: "info", Message: "hello <&> \x1b[31m"}},
			},
		},
		Input: json.RawMessage(`{"html":"<a&b>"}`), Output: json.RawMessage(`{"ok":true}`),
		Error:     &core.StepError{Class: core.ClassFailed, Message: "no such customer", ExitCode: 1, Status: 404, Code: "no_customer"},
		StartedAt: epoch, FinishedAt: epoch.Add(3 * time.Millisecond),
	}
}

func digest(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }

func (f *fixture) must(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

// bySecret looks for a secret and returns what is found for its id, and the key when that has the id.
func (f *fixture) bySecret(id string) (found auth.FoundSecret, key *auth.Key) {
	f.t.Helper()
	asked := 0
	key, err := f.KeyBySecret(f.t.Context(), id, func(s *auth.FoundSecret) bool {
		asked++
		found = *s
		return s.PublicID == id && s.KeyID != ""
	})
	f.must(err)
	if asked != 1 {
		f.t.Errorf("%q: asked for a proof %d times", id, asked)
	}
	return found, key
}

// wantCode fails unless err is a *core.Error with the code.
func wantCode(t *testing.T, err error, code core.Code) {
	t.Helper()
	if got := core.CodeOf(err); got != code {
		t.Fatalf("error = %v (code %q), want code %q", err, got, code)
	}
}

// wholeDocuments compares documents at once; byte by byte, a megabyte takes a second.
var wholeDocuments = cmp.Comparer(func(a, b json.RawMessage) bool { return bytes.Equal(a, b) && (a == nil) == (b == nil) })

// besideTapes compares all of an attempt but its tape, which is read by itself: see wantTape.
var besideTapes = cmp.FilterPath(func(p cmp.Path) bool { return p.Last().String() == ".Recording" }, cmp.Ignore())

func wantEqual[T any](t *testing.T, what string, got, want T) {
	t.Helper()
	if diff := cmp.Diff(want, got, wholeDocuments, besideTapes, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Fatalf("%s differs (-want +got):\n%s", what, diff)
	}
}

// pages reads a whole list, page by page, and checks that every page but the last is full.
func pages[T any](t *testing.T, limit int, page func(context.Context, core.Page) (core.List[T], error)) []T {
	t.Helper()
	var all []T
	p := core.Page{Limit: limit}
	for {
		l, err := page(t.Context(), p)
		if err != nil {
			t.Fatalf("page after %d items: %v", len(all), err)
		}
		all = append(all, l.Items...)
		if l.Next == "" {
			if len(l.Items) > limit {
				t.Fatalf("last page has %d items, limit is %d", len(l.Items), limit)
			}
			return all
		}
		if len(l.Items) != limit {
			t.Fatalf("page with a next one has %d items, want %d", len(l.Items), limit)
		}
		p.Cursor = l.Next
	}
}

// wantFilled fails when v, a struct that a test compares with what is read back, has a field that is zero: such a comparison would
// not notice that the field is not stored. It is what makes a new field of the domain fail here until it has a column.
func wantFilled(t *testing.T, v any, except ...string) {
	t.Helper()
	value := reflect.ValueOf(v)
	for i := range value.NumField() {
		field := value.Type().Field(i)
		if value.Field(i).IsZero() && !slices.Contains(except, field.Name) {
			t.Errorf("%s.%s is zero in the test data, so nothing shows whether it is stored", value.Type(), field.Name)
		}
		if value.Field(i).Kind() == reflect.Struct && field.Type != reflect.TypeFor[time.Time]() {
			wantFilled(t, value.Field(i).Interface(), except...)
		}
	}
}

// badPages are pages that every list must refuse.
func badPages(own string) map[string]core.Page {
	return map[string]core.Page{
		"limit below 1":     {Limit: -1},
		"limit above 200":   {Limit: 201},
		"cursor made up":    {Cursor: "AAAA"},
		"cursor not base64": {Cursor: "not a cursor!"},
		"cursor altered":    {Cursor: own[:len(own)-1] + string('A'+(own[len(own)-1]+1)%26)},
		"cursor with more":  {Cursor: own + "AAAA"},
		"cursor too long":   {Cursor: strings.Repeat("A", 4096)},
	}
}
