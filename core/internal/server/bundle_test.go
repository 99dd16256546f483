package server

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"io"
	"log/slog"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/textproto"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.uber.org/goleak"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/auth/jwtauth"
	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/admin"
	"github.com/keyfire/keyfire/core/internal/store"
	"github.com/keyfire/keyfire/core/internal/trigger"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// executor stands in for the engine: by default a run succeeds with its input as its output.
type executor struct {
	mu sync.Mutex
	by map[string]func(ctx context.Context, run *core.Run) // by slug
}

func (e *executor) Execute(ctx context.Context, run *core.Run, def *core.Definition) {
	run.Status = core.RunSucceeded
	run.Output = run.Input
	for i := range def.Nodes {
		n := &def.Nodes[i]
		run.Steps = append(run.Steps, core.Step{
			ID: n.ID, Module: n.Module, Status: core.StepSucceeded, Input: run.Input, Output: run.Input, StartedAt: run.StartedAt, FinishedAt: run.StartedAt.Add(91 * time.Millisecond),
			Attempts: []core.Attempt{
				{Number: 1, StartedAt: run.StartedAt, DurationUS: 40, PeakMemory: 65536, Error: &core.StepError{Class: core.ClassUnavailable, Message: "later"}},
				{Number: 2, StartedAt: run.StartedAt, DurationUS: 50, PeakMemory: 1966080, Log: []core.LogLine{
					{Time: run.StartedAt, Level: "info", Message: "hello"}, {Time: run.StartedAt.Add(time.Millisecond), Level: "error", Message: "oh"},
				}},
			},
		})
	}
	e.mu.Lock()
	f := e.by[run.Workflow.Slug]
	e.mu.Unlock()
	if f != nil {
		f(ctx, run)
	}
	if run.FinishedAt.IsZero() {
		run.FinishedAt = time.Now().UTC()
	}
}

func (e *executor) ExecuteDurable(ctx context.Context, run *core.Run, def *core.Definition, _ core.Journal) error {
	run.Steps = nil
	e.Execute(ctx, run, def)
	return nil
}

func (e *executor) set(slug string, f func(ctx context.Context, run *core.Run)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.by[slug] = f
}

// bundle is a whole server on a fresh store, everything real but the engine.
type bundle struct {
	t        testing.TB
	store    *store.Store
	trigger  *trigger.Service
	admin    *admin.Service
	server   *Server
	handler  http.Handler
	executor *executor
	compile  func(ctx context.Context) error // nil compiles at once
	spans    *tracetest.SpanRecorder
	logs     *syncBuffer
	ids      core.NewID
	pepper   *auth.Pepper
	boss     admin.Actor
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func newIDs() core.NewID {
	var mu sync.Mutex
	entropy := ulid.Monotonic(rand.Reader, 0)
	return func(prefix string) string {
		mu.Lock()
		defer mu.Unlock()
		return prefix + strings.ToLower(ulid.MustNew(ulid.Now(), entropy).String())
	}
}

// setup returns a bundle; change, when given, edits the configurations before the services are made.
func setup(t testing.TB, change ...func(*trigger.Config, *Config)) *bundle {
	t.Helper()
	b := &bundle{t: t, executor: &executor{by: map[string]func(context.Context, *core.Run){}}, logs: &syncBuffer{}, ids: newIDs(), spans: tracetest.NewSpanRecorder()}
	logger := slog.New(slog.NewJSONHandler(b.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	tracing := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(b.spans))
	tracer := tracing.Tracer("test")
	var err error
	b.store, err = store.Open(context.Background(), store.Config{Path: filepath.Join(t.TempDir(), "keyfire.db"), Logger: logger, Reserve: -1})
	b.must(err)
	b.pepper, err = auth.NewPepper(map[int][]byte{1: bytes.Repeat([]byte{7}, auth.PepperSize)})
	b.must(err)
	sessions, passwords := b.logins()
	tc := trigger.Config{
		Store: b.store, Chain: auth.NewChain(tracer, sessions, auth.NewKeyring(b.store, b.pepper, time.Now)), Executor: b.executor, Tracer: tracer, NewID: b.ids, Logger: logger,
	}
	sc := Config{Tracer: tracer, NewID: b.ids, Logger: logger, Version: "0.0.0-test", Ready: b.store.Ping}
	for _, f := range change {
		f(&tc, &sc)
	}
	b.trigger, err = trigger.New(tc)
	b.must(err)
	b.trigger.StartWorkers()
	b.admin, err = admin.New(admin.Config{
		Store: b.store, Pepper: b.pepper, NewID: b.ids, Passwords: passwords, Tokens: sessions,
		Check: func(*core.Definition) []core.Field { return nil },
		Compile: func(ctx context.Context, binary []byte) error {
			if b.compile != nil {
				if err := b.compile(ctx); err != nil {
					return err
				}
			}
			if !bytes.HasPrefix(binary, []byte("\x00asm")) {
				return core.Errorf(core.CodeInvalidModule, "is not a WebAssembly module")
			}
			return nil
		},
	})
	b.must(err)
	sc.Trigger, sc.Admin = b.trigger, b.admin
	b.server, err = New(sc)
	b.must(err)
	b.handler = b.server.Handler()
	b.boss = admin.Actor{Principal: auth.Principal{Account: core.DefaultAccount, Subject: "uid:0", Backend: "socket", Scopes: auth.SuperuserScopes()}}
	t.Cleanup(func() {
		b.trigger.Close()
		if err := b.store.Close(); err != nil {
			t.Error(err)
		}
		_ = tracing.Shutdown(context.Background())
	})
	return b
}

// logins makes what people log in with; hashes are as cheap as argon2 allows.
func (b *bundle) logins() (*jwtauth.Sessions, *auth.Passwords) {
	b.t.Helper()
	key, err := jwtauth.NewSigningKey(rand.Reader, time.Now())
	b.must(err)
	sessions, err := jwtauth.NewSessions(jwtauth.SessionConfig{
		Keys: []jwtauth.SigningKey{key}, Save: func([]jwtauth.SigningKey) error { return nil }, Sessions: b.store, Now: time.Now, Random: rand.Reader,
	})
	b.must(err)
	passwords, err := auth.NewPasswords(auth.PasswordConfig{Pepper: b.pepper, Random: rand.Reader, Memory: 64, Passes: 1, AtOnce: 4, Waiting: 1000, Patience: time.Minute})
	b.must(err)
	return sessions, passwords
}

func (b *bundle) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

const wasm = "\x00asm\x01\x00\x00\x00"

// workflowFile is a workflow of one node; extra lines go below trigger.
func workflowFile(slug, extra string) string {
	return "keyfire: v1\nname: " + slug + "\ntrigger:\n  enabled: true\n" + extra + "nodes:\n  - id: only\n    uses: ./only.wasm\n"
}

func (b *bundle) publish(slug, extra string) core.Workflow {
	b.t.Helper()
	p, err := b.admin.PublishWorkflow(context.Background(), b.boss, admin.Publish{
		Slug: slug, Filename: "workflow.yaml", Source: []byte(workflowFile(slug, extra)), Modules: map[string][]byte{"./only.wasm": []byte(wasm)},
	})
	b.must(err)
	return p.Workflow
}

func (b *bundle) key(n admin.NewKey) (*auth.Key, string) {
	b.t.Helper()
	if n.Name == "" {
		n.Name = "test"
	}
	k, secret, err := b.admin.CreateKey(context.Background(), b.boss, n)
	b.must(err)
	return k, secret.Reveal()
}

func (b *bundle) globalKey() string {
	_, text := b.key(admin.NewKey{Scopes: []string{auth.ScopeRunAll}})
	return text
}

func (b *bundle) adminKey() string {
	_, text := b.key(admin.NewKey{Type: auth.AdminKey})
	return text
}

// call is one request. key goes into Authorization; header is name, value, name, value.
func (b *bundle) call(method, target, key, body string, header ...string) *reply {
	b.t.Helper()
	var r io.Reader
	if body != "" {
		r = strings.NewReader(body)
	}
	req := httptest.NewRequest(method, target, r)
	req.RemoteAddr = "203.0.113.7:4711"
	if key != "" {
		req.Header.Set("Authorization", "Bearer "+key)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(header); i += 2 {
		if header[i+1] == "" {
			req.Header.Del(header[i])
			continue
		}
		req.Header.Set(header[i], header[i+1])
	}
	return b.do(req)
}

func (b *bundle) do(req *http.Request) *reply {
	b.t.Helper()
	w := httptest.NewRecorder()
	b.handler.ServeHTTP(w, req)
	r := &reply{t: b.t, code: w.Code, header: w.Header(), body: w.Body.Bytes()}
	b.documented(req, r)
	return r
}

type reply struct {
	t      testing.TB
	code   int
	header http.Header
	body   []byte
}

// want checks the status, and that the answer is JSON with a request id.
func (r *reply) want(status int) *reply {
	r.t.Helper()
	if r.code != status {
		r.t.Fatalf("status %d, want %d; body %s", r.code, status, r.body)
	}
	if r.header.Get("Keyfire-Request-Id") == "" {
		r.t.Error("no Keyfire-Request-Id")
	}
	return r
}

// problem checks that the answer is a whole problem document with this status and code.
func (r *reply) problem(status int, code core.Code) *Problem {
	r.t.Helper()
	r.want(status)
	if ct := r.header.Get("Content-Type"); ct != "application/problem+json" {
		r.t.Errorf("Content-Type %q", ct)
	}
	var p Problem
	d := json.NewDecoder(bytes.NewReader(r.body))
	d.DisallowUnknownFields()
	if err := d.Decode(&p); err != nil {
		r.t.Fatalf("%v in %s", err, r.body)
	}
	if p.Code != string(code) || p.Status != status || p.RequestID != r.header.Get("Keyfire-Request-Id") || p.Title == "" || p.Type == "" || p.Instance == "" {
		r.t.Fatalf("want code %s: %s", code, r.body)
	}
	return &p
}

// object decodes a JSON answer.
func (r *reply) object() map[string]any {
	r.t.Helper()
	if ct := r.header.Get("Content-Type"); ct != "application/json" {
		r.t.Errorf("Content-Type %q", ct)
	}
	var v map[string]any
	if err := json.Unmarshal(r.body, &v); err != nil {
		r.t.Fatalf("%v in %s", err, r.body)
	}
	return v
}

func publication(t testing.TB, parts ...[3]string) (contentType, body string) {
	t.Helper()
	var buf bytes.Buffer
	w := multipart.NewWriter(&buf)
	for _, p := range parts {
		h := textproto.MIMEHeader{"Content-Disposition": {`form-data; name="` + p[0] + `"; filename="` + p[1] + `"`}}
		part, err := w.CreatePart(h)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = part.Write([]byte(p[2]))
	}
	_ = w.Close()
	return w.FormDataContentType(), buf.String()
}
