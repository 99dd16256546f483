package trigger

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"go.opentelemetry.io/otel/trace/noop"
	"go.uber.org/goleak"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// engine runs what a test gives it; by default a run succeeds with its input as output.
type engine struct {
	run     func(ctx context.Context, run *core.Run)
	durable func(ctx context.Context, run *core.Run, j core.Journal) error
}

func (e *engine) Execute(ctx context.Context, run *core.Run, _ *core.Definition) {
	run.Status, run.Output, run.FinishedAt = core.RunSucceeded, run.Input, time.Now().UTC()
	if e.run != nil {
		e.run(ctx, run)
	}
}

func (e *engine) ExecuteDurable(ctx context.Context, run *core.Run, def *core.Definition, j core.Journal) error {
	if e.durable != nil {
		return e.durable(ctx, run, j)
	}
	e.Execute(ctx, run, def)
	return nil
}

type bundle struct {
	*Service
	t      testing.TB
	store  *store.Store
	engine *engine
	pepper *auth.Pepper
	ids    core.NewID
	origin core.Origin
}

func setup(t testing.TB, change ...func(*Config)) *bundle {
	t.Helper()
	return setupOn(t, store.Config{Path: filepath.Join(t.TempDir(), "k.db")}, change...)
}

// setupOn is setup on a database of the test's choice.
func setupOn(t testing.TB, database store.Config, change ...func(*Config)) *bundle {
	t.Helper()
	var mu sync.Mutex
	entropy := ulid.Monotonic(rand.Reader, 0)
	b := &bundle{t: t, engine: &engine{}, origin: core.Origin{RequestID: "req_1", Source: netip.MustParseAddr("203.0.113.7"), Route: "native"}}
	b.ids = func(prefix string) string {
		mu.Lock()
		defer mu.Unlock()
		return prefix + strings.ToLower(ulid.MustNew(ulid.Now(), entropy).String())
	}
	quiet := slog.New(slog.DiscardHandler)
	var err error
	database.Logger, database.Reserve = quiet, -1
	b.store, err = store.Open(context.Background(), database)
	b.must(err)
	b.pepper, err = auth.NewPepper(map[int][]byte{1: bytes.Repeat([]byte{1}, auth.PepperSize)})
	b.must(err)
	tracer := noop.NewTracerProvider().Tracer("")
	cfg := Config{
		Store: b.store, Chain: auth.NewChain(tracer, auth.NewKeyring(b.store, b.pepper, time.Now)), Executor: b.engine, Tracer: tracer, Logger: quiet, NewID: b.ids,
	}
	for _, f := range change {
		f(&cfg)
	}
	b.Service, err = New(cfg)
	b.must(err)
	t.Cleanup(func() {
		b.Close()
		b.must(b.store.Close())
	})
	return b
}

func (b *bundle) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *bundle) event(action, object string) core.AuditEvent {
	return core.AuditEvent{ID: b.ids(core.PrefixEvent), Account: core.DefaultAccount, Time: time.Now().UTC(), Actor: "uid:0", Action: action, Object: object, Outcome: core.OutcomeOK, Count: 1}
}

// publish stores a workflow that change has had its way with.
func (b *bundle) publish(slug string, change func(*core.Definition)) core.Workflow {
	b.t.Helper()
	def := core.Definition{Keyfire: "v1", Name: slug, Trigger: core.TriggerSpec{Enabled: true, GlobalKeys: true, Timeout: core.Duration(30 * time.Second)}, Nodes: []core.Node{}}
	if change != nil {
		change(&def)
	}
	raw, err := json.Marshal(def)
	b.must(err)
	digest := "sha256:" + fmt.Sprintf("%064x", len(raw)) + ""
	now := time.Now().UTC()
	w, _, err := b.store.PublishWorkflow(context.Background(), core.Publication{
		Account:  core.DefaultAccount,
		Workflow: core.Workflow{ID: b.ids(core.PrefixWorkflow), Account: core.DefaultAccount, Slug: slug, Enabled: def.Trigger.Enabled, CreatedAt: now, UpdatedAt: now},
		Version:  core.Version{Digest: digest, Definition: def, Source: string(raw), CreatedAt: now, CreatedBy: "uid:0"},
	}, b.event(core.ActionWorkflowPublish, slug))
	b.must(err)
	return w
}

func (b *bundle) key(maxRuns int64, scopes ...string) (auth.Key, auth.Credential) {
	b.t.Helper()
	text, err := auth.GenerateKey(auth.TriggerKey, rand.Reader)
	b.must(err)
	hash, _ := b.pepper.Hash(1, text.Secret())
	k := auth.Key{
		ID: b.ids(core.PrefixKey), Account: core.DefaultAccount, Type: auth.TriggerKey, PublicID: text.ID, Hash: hash[:], Pepper: 1, Last4: text.Last4, Name: "k", Scopes: scopes,
		MaxRuns: maxRuns, CreatedAt: time.Now().UTC(), CreatedBy: "uid:0",
	}
	b.must(b.store.CreateKey(context.Background(), k, b.event(core.ActionKeyCreate, k.ID)))
	return k, auth.Credential{Place: auth.PlaceBearer, Secret: text.Secret(), Source: b.origin.Source}
}

func (b *bundle) start(c auth.Credential, ref string, p Payload) (Result, error) {
	ticket, err := b.Open(context.Background(), Attempt{Credential: c, Origin: b.origin, Workflow: ref})
	if err != nil {
		return Result{}, err
	}
	return b.Start(context.Background(), ticket, p)
}

func (b *bundle) audit(action string) []core.AuditEvent {
	b.t.Helper()
	l, err := b.store.AuditEvents(context.Background(), core.DefaultAccount, core.AuditFilter{Action: action}, core.Page{Limit: 200})
	b.must(err)
	return l.Items
}

func wantCode(t *testing.T, err error, code core.Code) {
	t.Helper()
	if core.CodeOf(err) != code {
		t.Errorf("got %v, want %s", err, code)
	}
}

// Q1: a key with N runs starts exactly N, however many ask at once, and its counter is the number of its runs.
func TestQuotaIsExactQ1(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.publish("open", nil)
	k, c := b.key(20, auth.ScopeRunAll)
	var started, refused atomic.Int64
	var wg sync.WaitGroup
	for range 200 {
		wg.Go(func() {
			switch _, err := b.start(c, "open", Payload{}); core.CodeOf(err) {
			case "":
				started.Add(1)
			case core.CodeQuotaExhausted:
				refused.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	stored, err := b.store.Key(t.Context(), k.Account, k.ID)
	b.must(err)
	runs, err := b.store.Runs(t.Context(), k.Account, core.RunFilter{KeyID: k.ID}, core.Page{Limit: 200})
	b.must(err)
	if started.Load() != 20 || refused.Load() != 180 || stored.RunsUsed != 20 || len(runs.Items) != 20 {
		t.Errorf("%d started, %d refused, %d counted, %d rows", started.Load(), refused.Load(), stored.RunsUsed, len(runs.Items))
	}
}

// Q2: a clock that is set back does not shut a key out until it is where it was.
func TestRateLimitWithClockSetBackQ2(t *testing.T) {
	t.Parallel()
	var ahead atomic.Int64
	ahead.Store(int64(24 * time.Hour))
	b := setup(t, func(c *Config) { c.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) } })
	b.publish("w", nil)
	k, c := b.key(0, auth.ScopeRunAll)
	_, err := b.store.UpdateKey(context.Background(), core.DefaultAccount, k.ID, false, func(k *auth.Key) (*auth.KeySecret, time.Time, error) {
		k.RateLimits = []core.RateLimit{{Name: "r", Limit: 2, Per: core.Duration(time.Minute)}}
		return nil, time.Time{}, nil
	}, b.event(core.ActionKeyUpdate, k.ID))
	b.must(err)
	admitted := func() (n int) {
		for {
			switch _, err := b.start(c, "w", Payload{}); core.CodeOf(err) {
			case "":
				n++
			case core.CodeRateLimited:
				return n
			default:
				b.must(err)
			}
		}
	}
	if n := admitted(); n != 2 {
		t.Fatalf("%d runs of a limit of 2", n)
	}
	ahead.Store(0)
	if n := admitted(); n != 1 {
		t.Errorf("%d runs once the clock is set back, want the one that sets the limit by it", n)
	}
}

// D3: as many duplicates as there may be start one run, and all get its result, also those that come while it runs.
func TestDuplicatesJoinD3(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.publish("open", nil)
	_, c := b.key(0, auth.ScopeRunAll)
	executing, finish := make(chan struct{}), make(chan struct{})
	var executions atomic.Int64
	b.engine.run = func(context.Context, *core.Run) {
		if executions.Add(1) == 1 {
			close(executing)
		}
		<-finish
	}
	results := make(chan Result, 50)
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			r, err := b.start(c, "open", Payload{Input: json.RawMessage(`{"n":1}`), IdempotencyKey: "once"})
			if err != nil {
				t.Error(err)
				return
			}
			results <- r
		})
	}
	<-executing
	close(finish)
	wg.Wait()
	close(results)
	ids, fresh := map[string]bool{}, 0
	for r := range results {
		ids[r.Run.ID] = true
		if r.Run.Status != core.RunSucceeded || string(r.Run.Output) != `{"n":1}` {
			t.Errorf("%+v", r.Run)
		}
		if !r.Replayed {
			fresh++
		}
	}
	if len(ids) != 1 || fresh != 1 || executions.Load() != 1 {
		t.Errorf("%d runs, %d fresh, %d executions", len(ids), fresh, executions.Load())
	}
	_, err := b.start(c, "open", Payload{Input: json.RawMessage(`{"n":2}`), IdempotencyKey: "once"})
	wantCode(t, err, core.CodeIdempotencyKeyReused)
	// Another caller has keys of its own.
	_, d := b.key(0, auth.ScopeRunAll)
	if r, err := b.start(d, "open", Payload{Input: json.RawMessage(`{"n":2}`), IdempotencyKey: "once"}); err != nil || r.Replayed {
		t.Errorf("%+v %v", r, err)
	}
}

func TestOverrides(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.publish("open", func(d *core.Definition) { d.Trigger.Overrides = []string{"charge.currency"} })
	k, c := b.key(0, auth.ScopeRunAll)
	one := func(node, field string) map[string]map[string]json.RawMessage {
		return map[string]map[string]json.RawMessage{node: {field: json.RawMessage(`"EUR"`)}}
	}
	r, err := b.start(c, "open", Payload{Overrides: one("charge", "currency")})
	b.must(err)
	if string(r.Run.Overrides) != `{"charge":{"currency":"EUR"}}` {
		t.Errorf("%s", r.Run.Overrides)
	}
	_, err = b.start(c, "open", Payload{Overrides: one("charge", "a/b~c")})
	wantCode(t, err, core.CodeOverrideNotAllowed)
	var e *core.Error
	if !errors.As(err, &e) || e.Fields[0].Pointer != "#/overrides/charge/a~1b~0c" {
		t.Errorf("%+v", err)
	}
	if rows := b.audit(core.ActionAuthRefuse); len(rows) != 1 || rows[0].KeyID != k.ID || rows[0].Actor != "key:"+k.ID || rows[0].Reason != string(core.CodeOverrideNotAllowed) {
		t.Errorf("%+v", rows)
	}
}

// An old version that a caller pins must not reopen what the author has closed since.
func TestNewestVersionDecidesAccess(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.publish("open", nil)
	w := b.publish("open", func(d *core.Definition) { d.Trigger.GlobalKeys = false })
	_, all := b.key(0, auth.ScopeRunAll)
	_, own := b.key(0, auth.ScopeRunWorkflow+w.ID)
	_, err := b.start(all, "open@1", Payload{})
	wantCode(t, err, core.CodeInsufficientScope)
	r, err := b.start(own, "open@1", Payload{})
	b.must(err)
	if r.Run.Workflow.Version != 1 {
		t.Errorf("%+v", r.Run.Workflow)
	}
	if r, err = b.start(own, "", Payload{}); err != nil || r.Run.Workflow.Version != 2 {
		t.Errorf("%+v %v", r.Run, err)
	}
}

func TestPublicWorkflows(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.publish("public", func(d *core.Definition) { d.Trigger.Public = true })
	b.publish("closed", func(d *core.Definition) { d.Trigger.Public, d.Trigger.Enabled = true, false })
	b.publish("private", nil)
	r, err := b.start(auth.Credential{}, "public", Payload{})
	b.must(err)
	if r.Run.Trigger.Principal != Public {
		t.Errorf("%+v", r.Run.Trigger)
	}
	for _, ref := range []string{"private", "closed", "none", "public@2@3", ""} {
		_, err := b.start(auth.Credential{}, ref, Payload{})
		wantCode(t, err, core.CodeUnauthenticated)
	}
	// A bad credential is not taken for none.
	_, err = b.start(auth.Credential{Place: auth.PlaceBearer, Secret: auth.NewSecret("kft_x")}, "public", Payload{})
	wantCode(t, err, core.CodeInvalidKey)
	// What the public has started is nobody's to read.
	_, err = b.Run(t.Context(), auth.Principal{Account: core.DefaultAccount, Subject: Public, Backend: "none"}, r.Run.ID)
	wantCode(t, err, core.CodeNotFound)
}

// The caller going away ends the waiting and not the run.
func TestCallerGoesAway(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.publish("open", nil)
	_, c := b.key(0, auth.ScopeRunAll)
	ended := make(chan error, 1)
	begin := make(chan struct{})
	b.engine.run = func(ctx context.Context, _ *core.Run) {
		<-begin
		ended <- ctx.Err()
	}
	ctx, leave := context.WithCancel(context.Background())
	ticket, err := b.Open(ctx, Attempt{Credential: c, Origin: b.origin, Workflow: "open"})
	b.must(err)
	begun, err := b.Begin(ctx, ticket, Payload{})
	b.must(err)
	leave()
	if _, err := begun.Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	close(begin)
	if err := <-ended; err != nil {
		t.Errorf("the run was stopped: %v", err)
	}
	r, err := begun.Wait(context.Background())
	b.must(err)
	if r.Run.Status != core.RunSucceeded {
		t.Errorf("%+v", r.Run)
	}
}

func TestPendingRunsAreBounded(t *testing.T) {
	t.Parallel()
	b := setup(t, func(c *Config) { c.MaxPending, c.MaxRunning = 2, 1 })
	b.publish("open", nil)
	k, c := b.key(0, auth.ScopeRunAll)
	release := make(chan struct{})
	b.engine.run = func(context.Context, *core.Run) { <-release }
	var begun []*Begun
	open := func() (*Begun, error) {
		ticket, err := b.Open(t.Context(), Attempt{Credential: c, Origin: b.origin, Workflow: "open"})
		b.must(err)
		return b.Begin(t.Context(), ticket, Payload{})
	}
	for range 2 {
		run, err := open()
		b.must(err)
		begun = append(begun, run)
	}
	_, err := open()
	wantCode(t, err, core.CodeOverloaded)
	var e *core.Error
	if errors.As(err, &e); e.RetryAfter <= 0 {
		t.Error("an overloaded server says when to come back")
	}
	close(release)
	for _, run := range begun {
		_, err := run.Wait(t.Context())
		b.must(err)
	}
	if stored, err := b.store.Key(t.Context(), k.Account, k.ID); err != nil || stored.RunsUsed != 2 {
		t.Errorf("a refused run was charged: %+v %v", stored, err)
	}
}

// L1: stopping refuses new runs, gives the running ones their time, and records what is left as interrupted.
func TestDrain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.publish("open", nil)
	_, c := b.key(0, auth.ScopeRunAll)
	running := make(chan struct{})
	b.engine.run = func(ctx context.Context, run *core.Run) {
		close(running)
		<-ctx.Done()
		run.Status, run.Output = core.RunInterrupted, nil
		run.Error = &core.RunError{Code: core.CodeRunInterrupted, Message: context.Cause(ctx).Error()}
	}
	ticket, err := b.Open(t.Context(), Attempt{Credential: c, Origin: b.origin, Workflow: "open"})
	b.must(err)
	begun, err := b.Begin(t.Context(), ticket, Payload{})
	b.must(err)
	<-running
	over, cancel := context.WithCancel(context.Background())
	cancel()
	b.Drain(over) // no grace at all
	if !b.Draining() {
		t.Error("not draining")
	}
	r, err := begun.Wait(t.Context())
	b.must(err)
	stored, err := b.store.Run(t.Context(), r.Run.Account, r.Run.ID)
	b.must(err)
	if stored.Status != core.RunInterrupted || stored.Error == nil {
		t.Errorf("%+v", stored)
	}
	_, err = b.start(c, "open", Payload{})
	wantCode(t, err, core.CodeDraining)
	b.Drain(over) // a second time does no harm
}

func TestPanickingExecutorFailsItsRunOnly(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.publish("open", nil)
	_, c := b.key(0, auth.ScopeRunAll)
	b.engine.run = func(_ context.Context, run *core.Run) {
		if string(run.Input) == `"panic"` {
			panic("a bug of ours")
		}
	}
	r, err := b.start(c, "open", Payload{Input: json.RawMessage(`"panic"`)})
	b.must(err)
	if r.Run.Status != core.RunFailed || strings.Contains(r.Run.Error.Message, "bug") {
		t.Errorf("%+v", r.Run.Error)
	}
	if r, err := b.start(c, "open", Payload{}); err != nil || r.Run.Status != core.RunSucceeded {
		t.Errorf("%+v %v", r.Run, err)
	}
}

// U1: a flood of unproved credentials writes one row for each source, and one that counts the rest; a known key's refusals have rows of their own.
func TestRefusalsAreAudited(t *testing.T) {
	t.Parallel()
	var clock atomic.Int64
	clock.Store(time.Now().UnixNano())
	b := setup(t, func(c *Config) {
		c.Now = func() time.Time { return time.Unix(0, clock.Load()) }
		c.MaxBadCredentials = 5
	})
	w := b.publish("open", nil)
	k, c := b.key(0, auth.ScopeRunWorkflow+w.ID)
	bad := auth.Credential{Place: auth.PlaceBearer, Secret: auth.NewSecret("nonsense")}
	limited := 0
	for range 50 {
		_, err := b.start(bad, "open", Payload{})
		switch core.CodeOf(err) {
		case core.CodeInvalidKey:
		case core.CodeRateLimited:
			limited++
			var e *core.Error
			if errors.As(err, &e); e.RetryAfter < time.Second || e.RetryAfter > time.Minute {
				t.Errorf("Retry-After %s", e.RetryAfter)
			}
		default:
			t.Fatal(err)
		}
	}
	if limited != 45 {
		t.Errorf("%d of 50 were limited", limited)
	}
	for range 3 {
		_, err := b.start(c, "elsewhere", Payload{})
		wantCode(t, err, core.CodeInsufficientScope)
	}
	// A principal of another backend is named, too.
	p := auth.Principal{Account: core.DefaultAccount, Subject: "ldap:alice", Backend: "ldap", Scopes: []string{auth.ScopeRunsRead}}
	_, err := b.Open(t.Context(), Attempt{Principal: &p, Origin: b.origin, Workflow: "open"})
	wantCode(t, err, core.CodeInsufficientScope)
	clock.Add(int64(2 * time.Minute))
	b.flush()
	byActor := map[string]int64{}
	rows := b.audit(core.ActionAuthRefuse)
	for _, r := range rows {
		byActor[r.Actor] += r.Count
		if r.Outcome != core.OutcomeRefused || r.SourceIP != "203.0.113.7" || r.Reason == "" {
			t.Errorf("%+v", r)
		}
	}
	if len(rows) > 6 || byActor["unknown"] != 50 || byActor["key:"+k.ID] != 3 || byActor["ldap:alice"] != 1 {
		t.Errorf("%d rows: %v", len(rows), byActor)
	}
	// The window is over, and with it the limit.
	_, err = b.start(bad, "open", Payload{})
	wantCode(t, err, core.CodeInvalidKey)
}

func TestReadingRuns(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.publish("open", nil)
	k, c := b.key(0, auth.ScopeRunAll)
	r, err := b.start(c, "open", Payload{Metadata: map[string]string{"crm": "1"}})
	b.must(err)
	mine := auth.Principal{Account: core.DefaultAccount, Subject: "key:" + k.ID, Scopes: k.Scopes}
	if got, err := b.Run(t.Context(), mine, r.Run.ID); err != nil || got.ID != r.Run.ID {
		t.Errorf("%v %v", got, err)
	}
	other := auth.Principal{Account: core.DefaultAccount, Subject: "key:other", Scopes: []string{auth.ScopeRunAll}}
	_, theirs := b.Run(t.Context(), other, r.Run.ID)
	_, none := b.Run(t.Context(), other, "run_none")
	if core.CodeOf(theirs) != core.CodeNotFound || theirs.Error() != none.Error() {
		t.Errorf("%v and %v", theirs, none)
	}
	_, err = b.Runs(t.Context(), mine, core.RunFilter{}, core.Page{})
	wantCode(t, err, core.CodeInsufficientScope)
	reader := auth.Principal{Account: core.DefaultAccount, Subject: "key:reader", Scopes: []string{auth.ScopeRunsRead}}
	for _, c := range []struct {
		f    core.RunFilter
		want int
	}{
		{core.RunFilter{}, 1}, {core.RunFilter{Workflow: "open"}, 1}, {core.RunFilter{Workflow: "none"}, 0}, {core.RunFilter{Metadata: map[string]string{"crm": "1"}}, 1}, {core.RunFilter{Metadata: map[string]string{"crm": "2"}}, 0}, {core.RunFilter{KeyID: k.ID, Status: core.RunSucceeded}, 1},
	} {
		l, err := b.Runs(t.Context(), reader, c.f, core.Page{})
		if err != nil || len(l.Items) != c.want {
			t.Errorf("%+v: %d runs, %v", c.f, len(l.Items), err)
		}
	}
}

// flaky is a store that cannot keep results for a while.
type flaky struct {
	Store
	failures atomic.Int64
}

func (f *flaky) FinishRun(ctx context.Context, run *core.Run, events ...core.RunEvent) error {
	if f.failures.Add(-1) >= 0 {
		return errors.New("disk full")
	}
	return f.Store.FinishRun(ctx, run, events...)
}

func TestResultSurvivesAMomentWithoutStore(t *testing.T) {
	t.Parallel()
	f := &flaky{}
	b := setup(t, func(c *Config) { f.Store, c.Store = c.Store, f })
	b.publish("open", nil)
	_, c := b.key(0, auth.ScopeRunAll)
	f.failures.Store(2)
	r, err := b.start(c, "open", Payload{})
	b.must(err)
	stored, err := b.store.Run(t.Context(), r.Run.Account, r.Run.ID)
	b.must(err)
	if stored.Status != core.RunSucceeded {
		t.Errorf("%+v", stored)
	}
}

// D2: the result of a run is committed however long the store was out of order: the caller is told after a while that it is not known, and the run ends as it did.
func TestResultSurvivesLongWithoutStoreD2(t *testing.T) {
	t.Parallel()
	f := &flaky{}
	b := setup(t, func(c *Config) { f.Store, c.Store = c.Store, f })
	b.publish("open", nil)
	_, c := b.key(0, auth.ScopeRunAll)
	f.failures.Store(1 << 30)
	r, err := b.start(c, "open", Payload{IdempotencyKey: "once"})
	if wantCode(t, err, core.CodeStoreUnavailable); r.Run == nil {
		t.Fatal("the caller is not told which run it was")
	}
	f.failures.Store(0)
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	ticket, err := b.Open(ctx, Attempt{Credential: c, Origin: b.origin, Workflow: "open"})
	b.must(err)
	again, err := b.Begin(ctx, ticket, Payload{IdempotencyKey: "once"})
	b.must(err)
	later, err := again.Wait(ctx)
	b.must(err)
	if later.Run.ID != r.Run.ID || later.Run.Status != core.RunSucceeded {
		t.Errorf("run %s is %s, want %s succeeded", later.Run.ID, later.Run.Status, r.Run.ID)
	}
}

// L1: a server that stops with a result in hand tries once more to commit it, and stops.
func TestStopWithoutStoreL1(t *testing.T) {
	t.Parallel()
	f := &flaky{}
	b := setup(t, func(c *Config) { f.Store, c.Store = c.Store, f })
	b.publish("open", nil)
	_, c := b.key(0, auth.ScopeRunAll)
	f.failures.Store(1 << 30)
	r, err := b.start(c, "open", Payload{})
	wantCode(t, err, core.CodeStoreUnavailable)
	f.failures.Store(0)
	b.Close()
	stored, err := b.store.Run(t.Context(), r.Run.Account, r.Run.ID)
	b.must(err)
	if stored.Status != core.RunSucceeded {
		t.Errorf("%+v", stored)
	}
}

func TestSplitRef(t *testing.T) {
	t.Parallel()
	for ref, want := range map[string]string{"greet": "greet 0", "a/b@7": "a/b 7", "wf_1@1": "wf_1 1", "x@": "!", "x@0": "!", "x@-1": "!", "x@1@2": "!", "x@v1": "!", "@1": " 1"} {
		name, version, err := splitRef(ref)
		got := fmt.Sprint(name, " ", version)
		if err != nil {
			got = "!"
		}
		if got != want {
			t.Errorf("%q: %q, want %q", ref, got, want)
		}
	}
	if !slices.Contains(core.Codes(), errNotFound().Code) {
		t.Error("unknown code")
	}
}
