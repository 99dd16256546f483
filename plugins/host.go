package plugins

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
)

// Host runs the plugins of one server. Its methods are safe for concurrent use.
type Host struct {
	cfg      Config
	lock     *os.File
	forker   *forker
	order    []string
	plugins  map[string]*supervisor
	cancel   context.CancelFunc
	closing  chan struct{}
	unwatch  func()
	shutdown sync.Once
}

// New starts all plugins, at once, and returns when each is ready or has failed. If a required plugin failed, no process is left and the
// error names all that failed; any other plugin that failed is retried from then on, and Status tells.
func New(ctx context.Context, cfg Config) (*Host, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	m, err := newMetrics(cfg.Meter)
	if err != nil {
		return nil, fmt.Errorf("plugins: %w", err)
	}
	lock, err := prepareDir(cfg.RuntimeDir)
	if err != nil {
		return nil, fmt.Errorf("plugins: %w", err)
	}
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	h := &Host{cfg: cfg, lock: lock, forker: newForker(), plugins: make(map[string]*supervisor, len(cfg.Plugins)), cancel: cancel, closing: make(chan struct{})}
	abandon := func(err error) (*Host, error) {
		h.forker.close()
		_ = lock.Close()
		cancel()
		return nil, fmt.Errorf("plugins: %w", err)
	}
	l := &launcher{dir: cfg.RuntimeDir, forker: h.forker, now: cfg.Now}
	random := &lockedReader{r: cfg.Random}
	for _, p := range cfg.Plugins {
		p = p.withDefaults()
		logger := cfg.Logger.With("plugin", p.Name)
		h.order = append(h.order, p.Name)
		s := &supervisor{
			name: p.Name, spec: p, state: StateStarting, launcher: l, logger: logger, now: cfg.Now, random: random, onEvent: cfg.OnEvent,
			tracer: cfg.Tracer, metrics: m, output: newOutput(logger, cfg.Now), breaker: &breaker{now: cfg.Now},
			commands: make(chan reload), done: make(chan struct{}),
		}
		if err := s.bind(p); err != nil {
			return abandon(err)
		}
		h.plugins[p.Name] = s
	}
	if h.unwatch, err = m.watch(h.Status); err != nil {
		return abandon(err)
	}
	failed := h.loadAll(ctx)
	for _, s := range h.plugins {
		go s.run(run)
	}
	if failed != nil {
		h.Close()
		return nil, fmt.Errorf("required plugins are missing: %w", failed)
	}
	return h, nil
}

// loadAll starts the first process of each plugin and returns why required ones could not be.
func (h *Host) loadAll(ctx context.Context) error {
	var wg sync.WaitGroup
	errs := make([]error, len(h.order))
	for i, name := range h.order {
		wg.Go(func() {
			s := h.plugins[name]
			if err := s.load(ctx); err != nil && s.specNow().Required {
				errs[i] = err
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// prepareDir makes dir this process's and removes what an earlier one left there.
func prepareDir(dir string) (lock *os.File, err error) {
	if err := os.MkdirAll(dir, 0o711); err != nil { //nolint:gosec // others may pass through it: a plugin with its own uid has its socket in it
		return nil, err
	}
	info, err := os.Lstat(dir)
	switch {
	case err != nil:
		return nil, err
	case !info.IsDir() || info.Mode().Perm()&0o022 != 0 || !ownedByUs(info):
		return nil, fmt.Errorf("%s must be a directory of the server's user that nobody else can write to", dir)
	}
	lock, err = lockDir(dir)
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		_ = lock.Close()
		return nil, err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), socketDirPrefix) {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				_ = lock.Close()
				return nil, fmt.Errorf("remove what an earlier server left: %w", err)
			}
		}
	}
	return lock, nil
}

// Authenticator returns the named plugin as a link of a chain. It is asked only about credentials on its route, and an answer
// outside its grant is an error; see [auth.Bind].
func (h *Host) Authenticator(name string) (auth.Authenticator, error) {
	s, err := h.find(name)
	if err != nil {
		return nil, err
	}
	return &link{&backend{s}}, nil
}

// Status returns the state of every plugin, in the order of the configuration.
func (h *Host) Status() []Status {
	all := make([]Status, 0, len(h.order))
	for _, name := range h.order {
		all = append(all, h.plugins[name].status())
	}
	return all
}

// Logs returns the newest lines the named plugin wrote to standard error, oldest first, at most 200.
func (h *Host) Logs(name string) ([]LogLine, error) {
	s, err := h.find(name)
	if err != nil {
		return nil, err
	}
	return s.output.kept(), nil
}

// Config returns the configuration the named plugin runs with, for a reload of the same one.
func (h *Host) Config(name string) (Plugin, error) {
	s, err := h.find(name)
	if err != nil {
		return Plugin{}, err
	}
	return s.specNow(), nil
}

// Reload replaces a plugin by p, which has its name: a new executable, a new configuration, or the same again. The new process is ready
// before the old one gets no more calls, and calls under way are answered by the process that has them. If the new process cannot be
// started or refuses its configuration, the old one stays in service and the error says why.
func (h *Host) Reload(ctx context.Context, p Plugin) error {
	s, err := h.find(p.Name)
	if err != nil {
		return err
	}
	if err := p.Validate(); err != nil {
		return err
	}
	r := reload{ctx: ctx, spec: p.withDefaults(), result: make(chan error, 1)}
	select {
	case s.commands <- r:
		return <-r.result
	case <-h.closing:
		return core.Errorf(core.CodeDraining, "the server is stopping")
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Close stops all plugins: calls under way are finished, then each process is asked to end, and killed if it does not within two
// seconds. It returns when no process and no goroutine of the Host is left. It may be called more than once.
func (h *Host) Close() {
	h.shutdown.Do(func() {
		h.unwatch()
		close(h.closing)
		h.cancel()
		for _, s := range h.plugins {
			<-s.done
		}
		h.forker.close()
		_ = h.lock.Close()
	})
}

func (h *Host) find(name string) (*supervisor, error) {
	if s, ok := h.plugins[name]; ok {
		return s, nil
	}
	return nil, core.Errorf(core.CodeNotFound, "no plugin is called %q", name)
}
