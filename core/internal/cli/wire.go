package cli

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/auth/hookauth"
	"github.com/keyfire/keyfire/auth/jwtauth"
	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/admin"
	"github.com/keyfire/keyfire/core/internal/console"
	"github.com/keyfire/keyfire/core/internal/queue"
	"github.com/keyfire/keyfire/core/internal/server"
	"github.com/keyfire/keyfire/core/internal/store"
	"github.com/keyfire/keyfire/core/internal/telemetry"
	"github.com/keyfire/keyfire/core/internal/trigger"
	"github.com/keyfire/keyfire/plugins"
	"github.com/keyfire/keyfire/runtime/engine"
	"github.com/keyfire/keyfire/runtime/wasm"
)

// tracerName names the instrumentation in every span.
const tracerName = "github.com/keyfire/keyfire"

// system is one server, put together but not listening. Close it after the last request.
type system struct {
	store   *store.Store
	pepper  *auth.Pepper
	shared  *queue.JetStream // nil in a server that is alone
	trigger *trigger.Service
	admin   *admin.Service
	server  *server.Server
	log     *slog.Logger
	newID   core.NewID
	plugins *plugins.Host  // nil without plugins
	closers []func() error // in order of making; closed in reverse

	signing     []jwtauth.SigningKey // as the file had them
	signingMade bool                 // there was no file
}

// wire builds a system from the inside out: what is below never knows what is above. dir must be held by this process. On an
// error everything that was opened is closed.
func wire(ctx context.Context, cfg *Config, dir *dataDir, tel *telemetry.Telemetry, compiler []string, version string) (_ *system, err error) {
	s := &system{log: tel.Logger(), newID: newIDs()}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	tracer := tel.Tracer(tracerName)

	pepper, vault, err := s.openStore(ctx, cfg, dir)
	if err != nil {
		return nil, err
	}
	s.pepper = pepper
	modules, err := s.modules(ctx, cfg, dir, tel, compiler, vault)
	if err != nil {
		return nil, err
	}
	executor, err := engine.New(engine.Config{Invoker: modules, Tracer: tracer, Logger: s.log})
	if err != nil {
		return nil, err
	}
	links, err := s.authenticators(ctx, cfg, dir, tel, auth.NewKeyring(s.store, pepper, time.Now))
	if err != nil {
		return nil, err
	}
	sessions, passwords, err := s.logins(ctx, cfg, dir, pepper, vault)
	if err != nil {
		return nil, err
	}
	asked := askedBy(cfg.Auth)
	hooks, err := s.webhooks(vault, slices.Contains(asked.headers, hookauth.HeaderSignature))
	if err != nil {
		return nil, err
	}
	work, signals, err := s.distribute(ctx, cfg)
	if err != nil {
		return nil, err
	}
	s.trigger, err = trigger.New(trigger.Config{
		Store: s.store, Executor: executor, Tracer: tracer, Meter: tel.Meter(tracerName), Logger: s.log, NewID: s.newID,
		Chain:             auth.NewChain(tracer, append([]auth.Authenticator{hooks, sessions}, links...)...),
		MaxPending:        cfg.MaxPending,
		MaxRunning:        cfg.MaxRunning,
		MaxBadCredentials: cfg.BadCredentials,
		MaxWorkers:        cfg.Workers,
		Queue:             work,
		Signals:           signals,
		Callbacks:         callbacks(cfg, vault.Source(s.store)),
	})
	if err != nil {
		return nil, err
	}
	s.closers = append(s.closers, func() error { s.trigger.Close(); return nil })

	ahead := startWarmer(modules, s.store, signals, s.log)
	s.closers = append(s.closers, ahead.close)
	control, err := admin.New(admin.Config{
		Store: s.store, Pepper: pepper, NewID: s.newID, Check: engine.Check,
		Compile: func(ctx context.Context, binary []byte) error {
			_, err := modules.Compile(ctx, binary)
			return err
		},
		Signed:    signedBy(cfg, s.store.ModuleBytes),
		CheckNode: modules.CheckNode, Vault: vault, Published: ahead.published, Ready: ahead.ready, Passwords: passwords, Tokens: sessions,
	})
	if err != nil {
		return nil, err
	}
	if s.plugins != nil {
		control.Plugins = pluginHost{host: s.plugins, read: cfg.readAuth}
	}
	s.admin = control
	pages, err := s.console(cfg)
	if err != nil {
		return nil, err
	}
	s.server, err = server.New(server.Config{
		AuthSchemes: asked.schemes, AuthHeaders: asked.headers, AuthShown: asked.shown, AuthBody: asked.body,
		Trigger: s.trigger, Admin: control, Tracer: tracer, Meter: tel.Meter(tracerName), Logger: s.log, NewID: s.newID, Version: version,
		Ready:          s.store.Ping,
		TrustedProxies: cfg.TrustedProxies,
		MaxBody:        cfg.Body,
		MaxWait:        cfg.MaxWait,
		Compat:         cfg.Compat,
		Console:        pages,
		LeaveTime:      cfg.ShutdownDelay,
		StopTimeout:    max(cfg.ShutdownGrace, 1), // 0 would be the server's own default
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

// modules makes what runs modules.
func (s *system) modules(ctx context.Context, cfg *Config, dir *dataDir, tel *telemetry.Telemetry, compiler []string, vault *admin.Vault) (*wasm.Runtime, error) {
	modules, err := wasm.New(ctx, wasm.Config{
		CacheDir: dir.file(cacheDir), Load: s.store.ModuleBytes, MemoryBudget: cfg.MemoryBudget, ModuleBudget: cfg.ModuleMemory, CompileCommand: compiler, Logger: s.log,
		Egress: wasm.EgressConfig{Allow: cfg.EgressAllow}, Secret: vault.Source(s.store), KV: s.store,
		ScriptEngine: cfg.scriptEngine(),
		Engine:       cfg.Wasm.Engine, Isolation: cfg.Wasm.Isolation, Reset: cfg.Wasm.Reset, VerifyEvery: cfg.Wasm.VerifyEvery, Mismatch: s.mismatch(ctx),
	})
	if err != nil {
		return nil, err
	}
	s.closers = append(s.closers, func() error { return modules.Close(context.WithoutCancel(ctx)) })
	unobserve, err := observeModules(tel.Meter(tracerName), modules.Stats)
	if err != nil {
		return nil, err
	}
	s.closers = append(s.closers, unobserve)
	return modules, nil
}

// webhooks makes what checks the signatures of webhooks. It asks the data plane, which is made with it: nothing is checked before both are. shared says
// that another credential is in the same header.
func (s *system) webhooks(vault *admin.Vault, shared bool) (auth.Authenticator, error) {
	return hookauth.New(hookauth.Config{
		Find: func(ctx context.Context, ref string) (hookauth.Hook, error) {
			w, spec, err := s.trigger.Webhook(ctx, ref)
			if err != nil {
				return hookauth.Hook{}, err
			}
			return hookauth.Hook{Account: w.Account, Workflow: w.ID, Verify: spec.Verify, Secret: spec.Secret}, nil
		},
		Secret: vault.Source(s.store), Shared: shared, Now: time.Now,
	})
}

// logins makes what people log in with.
func (s *system) logins(ctx context.Context, cfg *Config, dir *dataDir, pepper *auth.Pepper, vault *admin.Vault) (*jwtauth.Sessions, *auth.Passwords, error) {
	sc := jwtauth.SessionConfig{Keys: s.signing, Save: dir.saveSigningKeys, Sessions: s.store, Now: time.Now, Random: rand.Reader}
	if cfg.Store != "" {
		sc.Shared = commonKeys{s.store, vault, s.event}
	}
	sessions, err := jwtauth.NewSessions(sc)
	if err != nil {
		return nil, nil, err
	}
	if err := sessions.Join(ctx, s.signingMade); err != nil {
		return nil, nil, err
	}
	passwords, err := auth.NewPasswords(auth.PasswordConfig{Pepper: pepper, Random: rand.Reader})
	return sessions, passwords, err
}

// console makes the pages for people, nil when they are switched off.
func (s *system) console(cfg *Config) (*console.Console, error) {
	if !cfg.Console {
		return nil, nil
	}
	shown := make([]console.Adapter, 0, 4)
	for _, a := range adapters() {
		shown = append(shown, console.Adapter{Product: a.product, Endpoint: a.endpoint, Setting: a.key, On: *a.on(cfg)})
	}
	return console.New(console.Config{Admin: s.admin, Refused: s.trigger.Refuse, Call: server.CallByCurl, Adapters: shown})
}

// Close releases everything in the reverse order of making.
func (s *system) Close() error {
	var errs []error
	for len(s.closers) > 0 {
		last := len(s.closers) - 1
		errs = append(errs, s.closers[last]())
		s.closers = s.closers[:last]
	}
	return errors.Join(errs...)
}

// recover records what a server that was killed left behind: its inline runs, whose outcome nobody can know.
func (s *system) recover(ctx context.Context) error {
	now := time.Now().UTC()
	n, err := s.store.InterruptRuns(ctx, now, func(runID, account string) core.AuditEvent {
		e := s.event(core.ActionRunInterrupt, runID, now)
		e.Account = account
		return e
	})
	if err != nil {
		return fmt.Errorf("record interrupted runs: %w", err)
	}
	if n > 0 {
		s.log.Warn("runs were interrupted when their server stopped; they are not executed again", "runs", n)
	}
	return nil
}

// audit records that the server itself did something.
func (s *system) audit(ctx context.Context, action string) error {
	return s.store.Audit(ctx, s.event(action, "server", time.Now().UTC()))
}

func (s *system) event(action, object string, at time.Time) core.AuditEvent {
	e := core.NewEvent(s.newID(core.PrefixEvent), at, core.Origin{}, action, object)
	e.Actor = "system"
	return e
}

// newIDs returns a source of ids. Ids made within one millisecond still sort by the order of making.
func newIDs() core.NewID {
	var mu sync.Mutex
	random := bufio.NewReader(rand.Reader)
	entropy := ulid.Monotonic(random, 0)
	return func(prefix string) string {
		mu.Lock()
		defer mu.Unlock()
		now := ulid.Timestamp(time.Now())
		id, err := ulid.New(now, entropy)
		if err != nil { // this millisecond's numbers are used up
			id = ulid.MustNew(now, io.Reader(random))
		}
		return prefix + strings.ToLower(id.String())
	}
}
