package cli

import (
	"context"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/queue"
	"github.com/keyfire/keyfire/core/internal/store"
	"github.com/keyfire/keyfire/runtime/wasm"
)

// compileCommandName is how the program is called as the process that a module is compiled in. Compiling is where a hostile module could
// exhaust or crash its host, so it happens where there is nothing to lose.
const compileCommandName = "compile-module"

// compileCommand returns how to start that process, or nil where modules are compiled in this one.
func (a *app) compileCommand() ([]string, error) {
	if a.CompileHere {
		return nil, nil
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return []string{self, compileCommandName}, nil
}

// mismatch records that an instance was not put back to its module's initial state. The runtime has stopped doing it that way.
func (s *system) mismatch(ctx context.Context) func(module string) {
	ctx = context.WithoutCancel(ctx)
	return func(module string) {
		e := s.event(core.ActionModuleMismatch, module, time.Now().UTC())
		e.Reason = "a byte of an earlier invocation was left; instances are reset by copying from now on"
		if err := s.store.Audit(ctx, e); err != nil {
			s.log.Error("a mismatch could not be recorded", "module", module, "error", err)
		}
	}
}

// warmer gets modules ready before their first run asks for them: those of a workflow that was just published, on any server, and at the start those
// of the workflows there are. It is an accelerator: what it does not get to is made ready by the first run.
type warmer struct {
	modules  *wasm.Runtime
	store    *store.Store
	signals  queue.Signals
	log      *slog.Logger
	queue    chan warm
	unlisten func()
	stop     context.CancelFunc
	done     sync.WaitGroup
}

type warm struct{ account, digest string }

// maxWarm bounds how many modules wait to be warmed, and how many are warmed at the start.
const maxWarm = 256

// startWarmer starts the goroutine that warms. close ends it.
func startWarmer(modules *wasm.Runtime, st *store.Store, signals queue.Signals, log *slog.Logger) *warmer {
	ctx, stop := context.WithCancel(context.Background())
	w := &warmer{modules: modules, store: st, signals: signals, log: log, queue: make(chan warm, maxWarm), stop: stop}
	w.unlisten = signals.OnPublished(w.enqueue)
	w.done.Go(func() {
		missing := w.start(ctx)
		settle()
		w.done.Go(func() { w.prepare(ctx, missing) })
		for {
			select {
			case m := <-w.queue:
				w.warm(ctx, m)
			case <-ctx.Done():
				return
			}
		}
	})
	return w
}

func (w *warmer) close() error {
	w.unlisten()
	w.stop()
	w.done.Wait()
	return nil
}

// published tells all servers, this one included, which modules a new version has. Callers come to whichever server is next.
func (w *warmer) published(account string, def *core.Definition) {
	for _, digest := range modulesOf(def) {
		w.signals.Published(account, digest)
	}
}

// enqueue notes a module; a full queue drops it.
func (w *warmer) enqueue(account, digest string) {
	select {
	case w.queue <- warm{account, digest}:
	default:
	}
}

// modulesOf returns the digest of each module of a definition once.
func modulesOf(def *core.Definition) []string {
	var digests []string
	for i := range def.Nodes {
		if d := def.Nodes[i].Module; !slices.Contains(digests, d) {
			digests = append(digests, d)
		}
	}
	return digests
}

// readyTime is how long publishing waits for the modules to be ready. Compiling is over by then, and what is left takes some tens of
// milliseconds, unless the machine is busy, or a module's start-up takes all the time it has, which is 5 s: its author is to hear of that.
const readyTime = 7 * time.Second

// ready makes the modules of a version ready and tells how their invocations start. Nodes whose modules are not ready in time are left out.
func (w *warmer) ready(ctx context.Context, account string, def *core.Definition) []core.NodeStart {
	ctx, cancel := context.WithTimeout(ctx, readyTime)
	defer cancel()
	starts := []core.NodeStart{}
	for i := range def.Nodes {
		n := &def.Nodes[i]
		ready, err := w.modules.Warm(ctx, account, n.Module)
		if err != nil {
			if ctx.Err() == nil {
				w.log.Warn("module not made ready", "module", n.Module, "error", err)
			}
			continue
		}
		if wasm.Engine(def.EngineOf(n)) == wasm.EnginePlain && ready.Start != wasm.StartPlain {
			ready = wasm.Readiness{Start: wasm.StartPlain, Why: "engine: plain"}
		}
		starts = append(starts, core.NodeStart{Node: n.ID, Start: string(ready.Start), Class: ready.Start.Class(), Why: ready.Why})
	}
	return starts
}

// warmMemory is what modules that are warmed at the start may take: a server that nobody calls is to stay small. A module of a few hundred KiB takes
// one or two MiB; a Go module takes some 20, and waits for its first run, which takes some tens of milliseconds longer.
const warmMemory = 16 << 20

// start warms modules of the workflows that changed last, of those that were compiled before, as far as they take little. It returns those that were not.
func (w *warmer) start(ctx context.Context) (missing []warm) {
	list, err := w.store.Workflows(ctx, core.DefaultAccount, core.Page{Limit: core.MaxPage})
	if err != nil {
		return nil // the first runs will do without
	}
	seen := make(map[string]bool)
	room := int64(warmMemory)
	for i := range list.Items {
		wf := &list.Items[i]
		v, err := w.store.Version(ctx, wf.Account, wf.ID, wf.Version)
		if err != nil || ctx.Err() != nil {
			return nil
		}
		for _, digest := range modulesOf(&v.Definition) {
			if seen[digest] || len(seen) == maxWarm {
				continue
			}
			seen[digest] = true
			weight, ok := w.modules.Weight(digest)
			switch {
			case !ok:
				missing = append(missing, warm{wf.Account, digest})
			case weight <= room:
				room -= weight
				w.warm(ctx, warm{wf.Account, digest})
			}
		}
	}
	return missing
}

// prepare compiles modules, one after the other, as on a machine that is new beside others or after an update. Their first runs load them.
func (w *warmer) prepare(ctx context.Context, missing []warm) {
	said := make(map[string]bool) // all scripts lack the same engine
	for _, m := range missing {
		err := w.modules.Prepare(ctx, m.account, m.digest)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			w.log.Debug("module compiled", "module", m.digest)
		case !said[err.Error()]:
			said[err.Error()] = true
			w.log.Warn("module not compiled ahead of its first run", "module", m.digest, "error", err)
		}
	}
}

func (w *warmer) warm(ctx context.Context, m warm) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	ready, err := w.modules.Warm(ctx, m.account, m.digest)
	switch {
	case ctx.Err() != nil:
	case err != nil:
		w.log.Warn("module not warmed", "module", m.digest, "error", err)
	default:
		w.log.Debug("module warmed", "module", m.digest, "start", string(ready.Start), "why", ready.Why)
	}
}
