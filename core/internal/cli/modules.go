package cli

import (
	"context"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/keyfire/keyfire/core"
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

// warmer gets modules ready before their first run asks for them: those of a workflow that was just published, and at the start those
// of the workflows there are. It is an accelerator: what it does not get to is made ready by the first run.
type warmer struct {
	modules *wasm.Runtime
	store   *store.Store
	log     *slog.Logger
	queue   chan warm
	stop    context.CancelFunc
	done    sync.WaitGroup
}

type warm struct{ account, digest string }

// maxWarm bounds how many modules wait to be warmed, and how many are warmed at the start.
const maxWarm = 256

// startWarmer starts the goroutine that warms. close ends it.
func startWarmer(modules *wasm.Runtime, st *store.Store, log *slog.Logger) *warmer {
	ctx, stop := context.WithCancel(context.Background())
	w := &warmer{modules: modules, store: st, log: log, queue: make(chan warm, maxWarm), stop: stop}
	w.done.Go(func() {
		w.start(ctx)
		settle()
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
	w.stop()
	w.done.Wait()
	return nil
}

// published notes the modules of a version; a full queue drops the rest.
func (w *warmer) published(account string, def *core.Definition) {
	for i := range def.Nodes {
		select {
		case w.queue <- warm{account, def.Nodes[i].Module}:
		default:
			return
		}
	}
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

// start warms modules of the workflows that changed last, of those that were compiled before, as far as they take little.
func (w *warmer) start(ctx context.Context) {
	list, err := w.store.Workflows(ctx, core.DefaultAccount, core.Page{Limit: core.MaxPage})
	if err != nil {
		return // the first runs will do without
	}
	seen := make(map[string]bool)
	room := int64(warmMemory)
	for i := range list.Items {
		wf := &list.Items[i]
		v, err := w.store.Version(ctx, wf.Account, wf.ID, wf.Version)
		if err != nil || ctx.Err() != nil {
			return
		}
		for j := range v.Definition.Nodes {
			digest := v.Definition.Nodes[j].Module
			if seen[digest] || len(seen) == maxWarm {
				continue
			}
			seen[digest] = true
			weight, ok := w.modules.Weight(digest)
			if !ok || weight > room {
				continue
			}
			room -= weight
			w.warm(ctx, warm{wf.Account, digest})
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
