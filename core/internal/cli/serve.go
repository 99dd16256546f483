package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/console"
	"github.com/keyfire/keyfire/core/internal/telemetry"
)

func (a *app) serveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Start the server",
		Long: `Start the server. It needs no configuration: it listens on this machine only, keeps its state in --data, and no
key exists until one is made. It prints one line when it is ready to take requests.

SIGTERM or SIGINT stops it, and SIGHUP unless it is ignored: it takes no new requests, running ones finish within
--shutdown-grace, and it exits with status 0. A second signal ends it at once.`,
		Example: "  keyfire serve --data /var/lib/keyfire --listen 127.0.0.1:8080",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, _, err := loadConfig(a.Environ, cmd.Flags())
			if err != nil {
				return usageError{err}
			}
			fitMemory(a.Environ)
			return a.serve(cmd.Context(), cfg, telemetry.Config{})
		},
	}
	a.settingFlags(cmd)
	return cmd
}

// serve runs a server until ctx ends or a signal asks it to stop. base is telemetry that a test brings along.
func (a *app) serve(ctx context.Context, cfg *Config, base telemetry.Config) (err error) {
	stops := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // as under nohup; else its terminal is gone
		stops = append(stops, syscall.SIGHUP)
	}
	ctx, release := signal.NotifyContext(ctx, stops...)
	defer release()
	// From the first signal on, the next one has its usual effect.
	context.AfterFunc(ctx, release)

	base.Service, base.Version = "keyfire", a.Version
	base.Logs, base.LogLevel, base.LogFormat = a.Stderr, cfg.LogLevel, cfg.LogFormat
	tel, err := telemetry.New(ctx, base)
	if err != nil {
		return usageError{err}
	}
	defer func() {
		if terr := tel.Shutdown(context.WithoutCancel(ctx)); terr != nil {
			tel.Logger().Warn("telemetry did not end in order", "error", terr)
		}
	}()

	dir, err := openDataDir(cfg.Data)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	compiler, err := a.compileCommand()
	if err != nil {
		return err
	}
	sys, err := wire(ctx, cfg, dir, tel, compiler, a.Version)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sys.Close()) }()
	// Before anything is done or recorded: whoever gives a wrong address has started nothing.
	tcp, err := (&net.ListenConfig{}).Listen(ctx, "tcp", cfg.Listen)
	if err != nil {
		return fmt.Errorf("listen: %w; choose another address with --listen", err)
	}
	defer tcp.Close()
	stopDebug, err := serveDebug(cfg.DebugListen)
	if err != nil {
		return err
	}
	defer stopDebug()
	if err := sys.recover(ctx); err != nil {
		return err
	}
	if cfg.Queue != "" {
		sys.watchServers(ctx)
	}
	if err := sys.goOn("record the start", sys.audit(ctx, core.ActionServerStart)); err != nil {
		return fmt.Errorf("record the start: %w", err)
	}
	if err := sys.sealAudit(ctx, dir); err != nil {
		return err
	}
	if err := sys.goOn("look after the superuser", a.people(ctx, cfg, sys.admin, sys)); err != nil {
		return err
	}
	if err := sys.startRuns(ctx, cfg); err != nil {
		return err
	}
	return a.serveOn(ctx, cfg, dir, sys, tcp)
}

// goOn lets a server work on whose database takes no changes now, as on a full disk: it still reads, revokes keys, and recovers by itself.
func (s *system) goOn(what string, err error) error {
	if core.CodeOf(err) != core.CodeStoreUnavailable {
		return err
	}
	s.log.Error("the database takes no changes now, and this is left out: "+what, "error", err)
	return nil
}

func (a *app) serveOn(ctx context.Context, cfg *Config, dir *dataDir, sys *system, tcp net.Listener) error {
	socket, err := dir.listen()
	if err != nil {
		return err
	}
	defer socket.Close()
	base, every := callersURL(tcp.Addr())
	if err := dir.note(base); err != nil {
		return err
	}

	serving, stop := context.WithCancel(ctx)
	defer stop()
	context.AfterFunc(serving, func() {
		sys.log.Info("stopping", "delay", cfg.ShutdownDelay.String(), "grace", cfg.ShutdownGrace.String())
		sys.tellManager(daemon.SdNotifyStopping)
	})
	served := make(chan error, 1)
	go func() { served <- sys.server.Serve(serving, tcp, socket) }()

	if err := a.announce(cfg, base, every, dir.path); err != nil {
		stop()
		return errors.Join(err, <-served)
	}
	sys.tellManager(daemon.SdNotifyReady)
	if err := <-served; err != nil {
		return fmt.Errorf("serve: %w", err)
	}
	if err := sys.goOn("record the stop", sys.audit(context.WithoutCancel(ctx), core.ActionServerStop)); err != nil {
		return fmt.Errorf("record the stop: %w", err)
	}
	sys.log.Info("stopped")
	return nil
}

// tellManager tells systemd, where that is what has started the server and asks to be told (Type=notify), how far it is: sd_notify(3).
func (s *system) tellManager(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		s.log.Warn("the service manager could not be told", "state", state, "error", err)
	}
}

// callersURL is where callers on this machine reach a server that listens on an address. One that listens on every address of it, 0.0.0.0 or [::], is reached at
// localhost: neither is an address to call.
func callersURL(a net.Addr) (base string, every bool) {
	if tcp, ok := a.(*net.TCPAddr); ok && tcp.IP.IsUnspecified() {
		return "http://" + net.JoinHostPort("localhost", strconv.Itoa(tcp.Port)), true
	}
	return "http://" + a.String(), false
}

// announce prints where the server listens, once it does.
func (a *app) announce(cfg *Config, base string, every bool, data string) error {
	if a.json {
		return json.NewEncoder(a.Stdout).Encode(map[string]any{"object": "server", "url": base, "data": data, "pid": os.Getpid(), "version": a.Version})
	}
	where := base
	if every {
		where += " and on every other address of this machine"
	}
	text := fmt.Sprintf("keyfire %s listening on %s, data in %s\n", a.Version, where, data)
	if cfg.Console {
		text += "keys in a browser: " + base + console.Prefix + "workflow-keys\n"
	}
	_, err := io.WriteString(a.Stdout, text)
	return err
}

// serveDebug serves the profiler on its own address and returns how to stop it. An empty address serves nothing.
func serveDebug(address string) (stop func(), err error) {
	if address == "" {
		return func() {}, nil
	}
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("debug.listen: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	s := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	var serving sync.WaitGroup
	serving.Go(func() { _ = s.Serve(l) }) // ends with ErrServerClosed when stop closes it
	return func() {
		s.Close()
		serving.Wait()
	}, nil
}
