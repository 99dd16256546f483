package cli

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/auth/jwtauth"
	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/admin"
	"github.com/keyfire/keyfire/core/internal/telemetry"
	"github.com/keyfire/keyfire/plugins"
)

// authenticators makes the links of the chain, in the order of the configuration, and starts the plugins among them.
func (s *system) authenticators(ctx context.Context, cfg *Config, dir *dataDir, tel *telemetry.Telemetry, keys *auth.Keyring) ([]auth.Authenticator, error) {
	if configured := pluginsOf(cfg.Auth); len(configured) > 0 {
		host, err := plugins.New(ctx, plugins.Config{
			Plugins: configured, RuntimeDir: runtimeDir(dir, configured), Logger: s.log, Tracer: tel.Tracer(tracerName), Meter: tel.Meter(tracerName),
			OnEvent: s.auditPlugin, Now: time.Now, Random: rand.Reader,
		})
		if err != nil {
			return nil, err
		}
		s.plugins = host
		s.closers = append(s.closers, func() error { host.Close(); return nil })
	}
	var links []auth.Authenticator
	for _, b := range cfg.Auth {
		link := auth.Authenticator(keys)
		var err error
		switch {
		case b.JWT != nil:
			link, err = jwtauth.New(*b.JWT)
		case b.Plugin != nil:
			link, err = s.plugins.Authenticator(b.Plugin.Name)
		}
		if err != nil {
			return nil, err
		}
		links = append(links, link)
	}
	return links, nil
}

// runtimeDir returns where the sockets of plugins are: in the data directory, unless nobody else may pass through that and a plugin has a user
// of its own, or its path is too long for a socket. Then it is a directory of the system's temporary ones that is always the same for a data
// directory, so that what a killed server leaves is found.
func runtimeDir(dir *dataDir, configured []plugins.Plugin) string {
	inside := dir.file(pluginDir)
	shared := len(inside) > plugins.MaxRuntimeDir
	for _, p := range configured {
		shared = shared || p.User != nil
	}
	if !shared {
		return inside
	}
	sum := sha256.Sum256([]byte(dir.path))
	return filepath.Join(plugins.ShortTempDir(), fmt.Sprintf("keyfire-%d-%x", os.Geteuid(), sum[:6]))
}

// auditPlugin records what happened to a plugin.
func (s *system) auditPlugin(ev plugins.Event) {
	e := s.event(core.ActionPluginPrefix+string(ev.Kind), ev.Plugin, ev.Time.UTC())
	e.Reason = strings.ToValidUTF8(ev.Reason[:min(len(ev.Reason), 500)], "") // PostgreSQL refuses half a character
	if ev.Kind == plugins.EventRefuse {
		e.Outcome = core.OutcomeRefused
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := s.store.Audit(ctx, e); err != nil {
		s.log.Error("plugin event not audited", "plugin", ev.Plugin, "event", ev.Kind, "error", err)
	}
}

// pluginHost shows the plugins to the control plane. read reads the configuration again.
type pluginHost struct {
	host *plugins.Host
	read func() ([]backend, error)
}

var _ admin.PluginHost = pluginHost{}

func (h pluginHost) Plugins() []admin.Plugin {
	var all []admin.Plugin
	for _, p := range h.host.Status() {
		all = append(all, admin.Plugin{
			Name: p.Name, State: string(p.State), Required: p.Required, Path: p.Path, SHA256: p.SHA256, Version: p.Version, PID: p.PID, Since: p.Since,
			Restarts: p.Restarts, Failures: p.Failures, Degraded: p.Degraded, InFlight: p.InFlight, LastError: p.LastError, LastCallError: p.LastCallError,
		})
	}
	return all
}

func (h pluginHost) Logs(name string) ([]admin.PluginLine, error) {
	lines, err := h.host.Logs(name)
	if err != nil {
		return nil, err
	}
	all := make([]admin.PluginLine, len(lines))
	for i, l := range lines {
		all[i] = admin.PluginLine(l)
	}
	return all, nil
}

// Reload answers with the reason in public: whoever may reload a plugin has to know why that did not work.
func (h pluginHost) Reload(ctx context.Context, name string) error {
	all, err := h.read()
	if err != nil {
		return core.Errorf(core.CodeConflict, "the configuration cannot be read: %v", err)
	}
	for _, p := range pluginsOf(all) {
		if p.Name != name {
			continue
		}
		err := h.host.Reload(ctx, p)
		var said *core.Error
		if err == nil || errors.As(err, &said) {
			return err
		}
		return core.Errorf(core.CodeConflict, "%v; the process that ran before still does", err)
	}
	return core.Errorf(core.CodeConflict, "the configuration no longer names the plugin; restart the server to take it out")
}

// issuerClient returns the client for an issuer with a certificate of its own or one that wants a token, as a Kubernetes API server does; nil
// is the usual one.
func issuerClient(caFile, tokenFile string) (*http.Client, error) {
	if caFile == "" && tokenFile == "" {
		return nil, nil
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12}, IdleConnTimeout: 90 * time.Second, Proxy: http.ProxyFromEnvironment}
	if caFile != "" {
		pem, err := os.ReadFile(caFile)
		if err != nil {
			return nil, fmt.Errorf("ca_file: %w", err)
		}
		transport.TLSClientConfig.RootCAs = x509.NewCertPool()
		if !transport.TLSClientConfig.RootCAs.AppendCertsFromPEM(pem) {
			return nil, errors.New("ca_file: holds no certificate in PEM")
		}
	}
	if tokenFile == "" {
		return &http.Client{Transport: transport}, nil
	}
	if _, err := os.Stat(tokenFile); err != nil {
		return nil, fmt.Errorf("token_file: %w", err)
	}
	return &http.Client{Transport: &withToken{base: transport, file: tokenFile}}, nil
}

// withToken sends a token that is read anew each time, since whoever put it there renews it.
type withToken struct {
	base http.RoundTripper
	file string
}

// RoundTrip implements http.RoundTripper.
func (t *withToken) RoundTrip(r *http.Request) (*http.Response, error) {
	token, err := os.ReadFile(t.file)
	if err != nil {
		return nil, fmt.Errorf("token_file: %w", err)
	}
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	return t.base.RoundTrip(r)
}
