package storetest

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
)

// exerciseModel does random things to the store and to a model of it that is plain maps, and compares them. Every sequence has an
// account of its own, so that one store serves all. A failure prints the shortest sequence found and how to replay it.
func exerciseModel(t *testing.T, open func(t *testing.T) *fixture) {
	f := open(t)
	accounts := 0
	rapid.Check(t, func(rt *rapid.T) {
		accounts++
		m := &model{
			f: f, rt: rt, account: fmt.Sprintf("acct_%d", accounts), now: epoch,
			keys: map[string]*auth.Key{}, workflows: map[string]*core.Workflow{}, runs: map[string]*core.Run{}, idempotent: map[string]idempotent{},
		}
		// Runs that an earlier sequence left must not be counted in this one.
		m.interruptAll()
		m.publish()
		m.createKey()
		rt.Repeat(map[string]func(*rapid.T){
			"create key":  func(*rapid.T) { m.createKey() },
			"revoke key":  func(*rapid.T) { m.revokeKey() },
			"publish":     func(*rapid.T) { m.publish() },
			"switch":      func(*rapid.T) { m.switchWorkflow() },
			"admit":       func(*rapid.T) { m.admit(false) },
			"admit again": func(*rapid.T) { m.admit(true) },
			"finish":      func(*rapid.T) { m.finish() },
			"interrupt":   func(*rapid.T) { m.interrupt() },
			"wait": func(rt *rapid.T) {
				m.now = m.now.Add(time.Duration(rapid.IntRange(1, 3600).Draw(rt, "seconds")) * time.Second)
			},
			"": func(*rapid.T) { m.compare() },
		})
	})
}

type model struct {
	f       *fixture
	rt      *rapid.T
	account string
	now     time.Time

	keys       map[string]*auth.Key
	workflows  map[string]*core.Workflow
	runs       map[string]*core.Run
	idempotent map[string]idempotent
	events     []string // actions, in order
}

type idempotent struct {
	run, fingerprint string
	expires          time.Time
}

func (m *model) event(action, object string) core.AuditEvent {
	ev := m.f.event(action, object)
	ev.Account, ev.Time = m.account, m.now
	return ev
}

// check compares the outcome of an operation, and notes its event if it was to succeed.
func (m *model) check(what string, err error, want core.Code, action string) {
	if got := core.CodeOf(err); got != want {
		m.rt.Fatalf("%s: error = %v (code %q), want code %q", what, err, got, want)
	}
	if want == "" && action != "" {
		m.events = append(m.events, action)
	}
}

func pick[T any](m *model, from map[string]*T, what string) *T {
	ids := slices.Sorted(maps.Keys(from))
	if len(ids) == 0 {
		m.rt.Skip("no " + what)
	}
	return from[rapid.SampledFrom(ids).Draw(m.rt, what)]
}

func (m *model) createKey() {
	k := m.f.key()
	k.Account, k.CreatedAt, k.UpdatedAt = m.account, m.now, m.now
	k.MaxRuns = rapid.Int64Range(0, 3).Draw(m.rt, "max runs")
	k.ExpiresAt = time.Time{}
	if rapid.Bool().Draw(m.rt, "expires") {
		k.ExpiresAt = m.now.Add(time.Hour)
	}
	m.check("create key", m.f.CreateKey(context.Background(), k, m.event(core.ActionKeyCreate, k.ID)), "", core.ActionKeyCreate)
	m.keys[k.ID] = &k
}

func (m *model) revokeKey() {
	k := pick(m, m.keys, "key")
	ev := m.event(core.ActionKeyRevoke, k.ID)
	_, err := m.f.RevokeKey(context.Background(), m.account, k.ID, "why", ev)
	if !k.RevokedAt.IsZero() {
		m.check("revoke key again", err, "", "")
		return
	}
	m.check("revoke key", err, "", core.ActionKeyRevoke)
	k.RevokedAt, k.RevokedBy, k.RevokedWhy, k.UpdatedAt = m.now, ev.Actor, "why", m.now
	k.Revision++
}

func (m *model) publish() {
	slug := rapid.SampledFrom([]string{"a", "b"}).Draw(m.rt, "slug")
	content := rapid.IntRange(1, 3).Draw(m.rt, "content")
	p := m.f.publication(slug)
	p.Account, p.Workflow.Account, p.Version.CreatedAt = m.account, m.account, m.now
	p.Version.Digest = digest([]byte{byte(content)})
	w, created, err := m.f.PublishWorkflow(context.Background(), p, m.event(core.ActionWorkflowPublish, ""))
	known := m.workflows[slug]
	if known != nil && known.Digest == p.Version.Digest {
		m.check("publish the same", err, "", "")
		if created {
			m.rt.Fatal("publishing the same created a version")
		}
		return
	}
	m.check("publish", err, "", core.ActionWorkflowPublish)
	if known == nil {
		known = &core.Workflow{ID: p.Workflow.ID, Account: m.account, Slug: slug, CreatedAt: m.now}
		m.workflows[slug] = known
	}
	known.Title, known.Enabled, known.Version, known.Digest, known.UpdatedAt = p.Workflow.Title, true, known.Version+1, p.Version.Digest, m.now
	if diff := cmp.Diff(*known, w); diff != "" {
		m.rt.Fatalf("published workflow differs (-want +got):\n%s", diff)
	}
}

func (m *model) switchWorkflow() {
	w := pick(m, m.workflows, "workflow")
	enabled := rapid.Bool().Draw(m.rt, "enabled")
	action := map[bool]string{true: core.ActionWorkflowEnable, false: core.ActionWorkflowDisable}[enabled]
	_, err := m.f.SetWorkflowEnabled(context.Background(), m.account, w.Slug, enabled, m.event(action, w.ID))
	if w.Enabled == enabled {
		action = ""
	} else {
		w.Enabled, w.UpdatedAt = enabled, m.now
	}
	m.check("switch", err, "", action)
}

// admit is the rule of admission once more, told in order.
func (m *model) admit(withIdempotency bool) {
	k, w := pick(m, m.keys, "key"), pick(m, m.workflows, "workflow")
	a := m.f.admission(*w, k)
	a.Audit = m.event(core.ActionRunAccept, a.Run.ID)
	a.Run.CreatedAt, a.Run.StartedAt, a.Run.DeadlineAt = m.now, m.now, m.now.Add(time.Minute)
	scope := ""
	if withIdempotency {
		a.Idempotency = &core.Idempotency{
			Principal: a.Run.Trigger.Principal, Workflow: w.ID, ExpiresAt: m.now.Add(90 * time.Minute),
			Key:         rapid.SampledFrom([]string{"x", "y"}).Draw(m.rt, "idempotency key"),
			Fingerprint: rapid.SampledFrom([]string{"1", "2"}).Draw(m.rt, "fingerprint"),
		}
		scope = a.Idempotency.Principal + w.ID + a.Idempotency.Key
	}
	got, err := m.f.Admit(context.Background(), a)

	earlier, replay := m.idempotent[scope]
	replay = replay && withIdempotency && m.now.Before(earlier.expires)
	switch {
	case k.State(m.now) == auth.KeyRevoked:
		m.check("admit with a revoked key", err, core.CodeKeyRevoked, "")
	case k.State(m.now) == auth.KeyExpired:
		m.check("admit with an expired key", err, core.CodeKeyExpired, "")
	case replay && earlier.fingerprint != a.Idempotency.Fingerprint:
		m.check("admit another request", err, core.CodeIdempotencyKeyReused, "")
	case replay:
		m.check("replay", err, "", "")
		if want := (core.Admitted{RunID: earlier.run, Replayed: true}); !reflect.DeepEqual(got, want) {
			m.rt.Fatalf("replay = %+v, want %+v", got, want)
		}
	case !w.Enabled:
		m.check("admit to a disabled workflow", err, core.CodeWorkflowDisabled, "")
	case k.MaxRuns > 0 && k.RunsUsed >= k.MaxRuns:
		m.check("admit without a run left", err, core.CodeQuotaExhausted, "")
	default:
		m.check("admit", err, "", core.ActionRunAccept)
		if want := (core.Admitted{RunID: a.Run.ID}); !reflect.DeepEqual(got, want) {
			m.rt.Fatalf("admit = %+v, want %+v", got, want)
		}
		k.RunsUsed++
		k.LastUsedAt = m.now
		m.runs[a.Run.ID] = &a.Run
		if withIdempotency {
			m.idempotent[scope] = idempotent{a.Run.ID, a.Idempotency.Fingerprint, a.Idempotency.ExpiresAt}
		}
	}
}

func (m *model) finish() {
	run := pick(m, m.runs, "run")
	end := finished(*run)
	end.FinishedAt = m.now
	end.Attempt = rapid.IntRange(1, 2).Draw(m.rt, "attempt")
	err := m.f.FinishRun(context.Background(), &end)
	switch {
	case run.Status.Terminal():
		m.check("finish twice", err, core.CodeRunAlreadyFinished, "")
	case end.Attempt != run.Attempt:
		m.check("finish by another attempt", err, core.CodeConflict, "")
	default:
		m.check("finish", err, "", "")
		*run = end
	}
}

func (m *model) interrupt() {
	want := 0
	for _, id := range slices.Sorted(maps.Keys(m.runs)) {
		if run := m.runs[id]; run.Status == core.RunRunning {
			run.Status, run.FinishedAt = core.RunInterrupted, m.now
			m.events = append(m.events, core.ActionRunInterrupt)
			want++
		}
	}
	if got := m.interruptAll(); got != want {
		m.rt.Fatalf("interrupted %d runs, want %d", got, want)
	}
}

func (m *model) interruptAll() int {
	n, err := m.f.InterruptRuns(context.Background(), m.now, func(id, account string) core.AuditEvent {
		ev := m.event(core.ActionRunInterrupt, id)
		ev.Account = account
		return ev
	})
	m.check("interrupt", err, "", "")
	return n
}

// compare reads everything back.
func (m *model) compare() {
	var got struct {
		Keys      map[string]auth.Key
		Workflows map[string]core.Workflow
		Runs      map[string]core.RunStatus
		Used      map[string]int64 // runs by key
		Events    []string
	}
	want := got
	got.Keys, got.Workflows, got.Runs, got.Used = map[string]auth.Key{}, map[string]core.Workflow{}, map[string]core.RunStatus{}, map[string]int64{}
	want.Keys, want.Workflows, want.Runs, want.Used = map[string]auth.Key{}, map[string]core.Workflow{}, map[string]core.RunStatus{}, map[string]int64{}
	for id, k := range m.keys {
		want.Keys[id] = *k
		if k.RunsUsed > 0 {
			want.Used[id] = k.RunsUsed
		}
	}
	for slug, w := range m.workflows {
		want.Workflows[slug] = *w
	}
	for id, r := range m.runs {
		want.Runs[id] = r.Status
	}
	want.Events = m.events

	ctx, page := context.Background(), core.Page{Limit: core.MaxPage}
	keys, err := m.f.Keys(ctx, m.account, page)
	m.check("list keys", err, "", "")
	for _, k := range keys.Items {
		got.Keys[k.ID] = k
	}
	workflows, err := m.f.Workflows(ctx, m.account, page)
	m.check("list workflows", err, "", "")
	for _, w := range workflows.Items {
		got.Workflows[w.Slug] = w
	}
	runs, err := m.f.Runs(ctx, m.account, core.RunFilter{}, page)
	m.check("list runs", err, "", "")
	for _, r := range runs.Items {
		got.Runs[r.ID] = r.Status
		got.Used[r.Trigger.KeyID]++
	}
	events, err := m.f.AuditEvents(ctx, m.account, core.AuditFilter{}, page)
	m.check("list events", err, "", "")
	for _, ev := range slices.Backward(events.Items) {
		got.Events = append(got.Events, ev.Action)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		m.rt.Fatalf("the store differs from the model (-want +got):\n%s", diff)
	}
}
