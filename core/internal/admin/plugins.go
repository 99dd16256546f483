package admin

import (
	"context"
	"time"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
)

// PluginHost is what the control plane needs of the processes that auth plugins are.
type PluginHost interface {
	Plugins() []Plugin // in the order of the configuration
	// Logs returns the newest lines a plugin wrote, oldest first; CodeNotFound for a plugin that is not configured.
	Logs(name string) ([]PluginLine, error)
	// Reload reads the plugin's configuration again and replaces its process; if that fails the old process stays.
	Reload(ctx context.Context, name string) error
}

// Plugin is the state of an auth plugin. Version is "" and PID 0 while no process runs.
type Plugin struct {
	Name      string
	State     string // starting, ready, degraded, down, refused, stopped
	Required  bool
	Path      string
	SHA256    string
	Version   string
	PID       int
	Since     time.Time // when the process became ready, or the last one ended
	Restarts  int64
	Failures  int  // processes that ended or could not be started in the last minute
	Degraded  bool // it keeps failing, or calls bring no verdict
	InFlight  int  // calls under way
	LastError string
	// LastCallError is when and why a call last brought no verdict; "" if all have brought one.
	LastCallError string
}

// PluginLine is one line of a plugin's output; what does not print is escaped.
type PluginLine struct {
	Time time.Time
	PID  int
	Text string
}

// requirePlugins checks the scope. Plugins belong to the server, so no other account than the one that operates it may see them.
func (s *Service) requirePlugins(a Actor, scope string) error {
	if a.Principal.Account != core.DefaultAccount {
		return core.Errorf(core.CodeInsufficientScope, "auth plugins belong to the server; this credential is of another account")
	}
	return a.Require(scope)
}

// AuthPlugins lists the server's auth plugins.
func (s *Service) AuthPlugins(_ context.Context, a Actor) ([]Plugin, error) {
	if err := s.requirePlugins(a, auth.ScopePluginsRead); err != nil {
		return nil, err
	}
	if s.Plugins == nil {
		return nil, nil
	}
	return s.Plugins.Plugins(), nil
}

// AuthPlugin returns one plugin.
func (s *Service) AuthPlugin(_ context.Context, a Actor, name string) (Plugin, error) {
	if err := s.requirePlugins(a, auth.ScopePluginsRead); err != nil {
		return Plugin{}, err
	}
	return s.plugin(name)
}

func (s *Service) plugin(name string) (Plugin, error) {
	if s.Plugins != nil {
		for _, p := range s.Plugins.Plugins() {
			if p.Name == name {
				return p, nil
			}
		}
	}
	return Plugin{}, core.Errorf(core.CodeNotFound, "there is no such auth plugin")
}

// AuthPluginLogs returns the newest lines a plugin wrote, oldest first.
func (s *Service) AuthPluginLogs(_ context.Context, a Actor, name string) ([]PluginLine, error) {
	if err := s.requirePlugins(a, auth.ScopePluginsRead); err != nil {
		return nil, err
	}
	if _, err := s.plugin(name); err != nil {
		return nil, err
	}
	return s.Plugins.Logs(name)
}

// ReloadAuthPlugin replaces a plugin by what the configuration says now. The order is in the audit log before anything happens; what came
// of it is logged by the plugin's own events.
func (s *Service) ReloadAuthPlugin(ctx context.Context, a Actor, name string) (Plugin, error) {
	if err := s.requirePlugins(a, auth.ScopePluginsWrite); err != nil {
		return Plugin{}, err
	}
	if _, err := s.plugin(name); err != nil {
		return Plugin{}, err
	}
	if err := s.Store.Audit(ctx, s.event(a, core.ActionPluginReload, name)); err != nil {
		return Plugin{}, core.Wrap(core.CodeAuditUnavailable, err, "the reload cannot be recorded, so nothing was changed")
	}
	if err := s.Plugins.Reload(ctx, name); err != nil {
		return Plugin{}, err
	}
	return s.plugin(name)
}
