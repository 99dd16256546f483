package server

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/admin"
)

// Plugin is an auth plugin as the API shows it.
type Plugin struct {
	Object    string     `json:"object" enum:"plugin" doc:"What this is."`
	Name      string     `json:"name"`
	State     string     `json:"state" enum:"starting,ready,degraded,down,refused,stopped" doc:"It answers while ready or degraded."`
	Required  bool       `json:"required" doc:"Whether the server does not start without it."`
	Path      string     `json:"path"`
	SHA256    string     `json:"sha256" doc:"The digest its executable must have."`
	Version   string     `json:"version,omitempty" doc:"As the running process reports it."`
	PID       int        `json:"pid,omitempty"`
	Since     *time.Time `json:"since" doc:"When the process became ready, or the last one ended."`
	Restarts  int64      `json:"restarts" doc:"Processes started after one ended by itself or had to be ended."`
	Failures  int        `json:"failures" doc:"Processes that ended or could not be started in the last minute."`
	Degraded  bool       `json:"degraded" doc:"Whether it keeps failing (five processes within a minute) or does not decide (five calls in a row), also while no process runs."`
	InFlight  int        `json:"in_flight" doc:"Calls under way."`
	LastError string     `json:"last_error,omitempty" doc:"Why its last process ended or could not be started."`

	LastCallError string `json:"last_call_error,omitempty" doc:"When and why a call last brought no verdict, such as an answer beyond what the plugin is granted."`
}

// PluginLogLine is one line an auth plugin wrote.
type PluginLogLine struct {
	Time time.Time `json:"time"`
	PID  int       `json:"pid"`
	Text string    `json:"text" doc:"What does not print is escaped."`
}

func (s *Server) routePlugins() {
	tags := []string{"Auth plugins"}
	register(s, huma.Operation{
		OperationID: "list-plugins", Method: http.MethodGet, Path: "/v1/plugins", Tags: tags,
		Summary: "List auth plugins", Description: "In the order of the configuration. Needs the scope plugins:read.",
	}, nil, s.listPlugins)
	register(s, huma.Operation{
		OperationID: "get-plugin", Method: http.MethodGet, Path: "/v1/plugins/{plugin}", Tags: tags,
		Summary: "Show an auth plugin", Description: "Needs the scope plugins:read.",
	}, nil, s.getPlugin)
	register(s, huma.Operation{
		OperationID: "list-plugin-logs", Method: http.MethodGet, Path: "/v1/plugins/{plugin}/logs", Tags: tags,
		Summary: "Read what an auth plugin wrote", Description: "The newest lines, at most 200, oldest first. Needs the scope plugins:read.",
	}, nil, s.listPluginLogs)
	register(s, huma.Operation{
		OperationID: "reload-plugin", Method: http.MethodPost, Path: "/v1/plugins/{plugin}/reload", Tags: tags, DefaultStatus: http.StatusOK,
		Summary: "Reload an auth plugin",
		Description: "Reads the config file again. The new process is ready before the old one gets no more calls. If it cannot be started, the old one " +
			"stays and the answer says why. Needs the scope plugins:write.",
	}, nil, s.reloadPlugin)
}

// PluginParams names a plugin.
type PluginParams struct {
	Plugin string `path:"plugin" doc:"Name of the plugin." maxLength:"64"`
}

func (s *Server) listPlugins(ctx context.Context, req *request, _ *struct{}) (*listAnswer[Plugin], error) {
	all, err := s.Admin.AuthPlugins(ctx, req.actor())
	if err != nil {
		return nil, err
	}
	return listOf(req, core.List[admin.Plugin]{Items: all}, pluginBody), nil
}

func (s *Server) getPlugin(ctx context.Context, req *request, in *PluginParams) (*answer[Plugin], error) {
	return show(pluginBody)(s.Admin.AuthPlugin(ctx, req.actor(), in.Plugin))
}

func (s *Server) listPluginLogs(ctx context.Context, req *request, in *PluginParams) (*listAnswer[PluginLogLine], error) {
	lines, err := s.Admin.AuthPluginLogs(ctx, req.actor(), in.Plugin)
	if err != nil {
		return nil, err
	}
	return listOf(req, core.List[admin.PluginLine]{Items: lines}, func(l *admin.PluginLine) PluginLogLine {
		return PluginLogLine{Time: l.Time.UTC(), PID: l.PID, Text: redact(l.Text)}
	}), nil
}

func (s *Server) reloadPlugin(ctx context.Context, req *request, in *PluginParams) (*answer[Plugin], error) {
	return show(pluginBody)(s.Admin.ReloadAuthPlugin(ctx, req.actor(), in.Plugin))
}

func pluginBody(p *admin.Plugin) Plugin {
	return Plugin{
		Object: "plugin", Name: p.Name, State: p.State, Required: p.Required, Path: p.Path, SHA256: p.SHA256, Version: p.Version, PID: p.PID,
		Since: timeOrNull(p.Since), Restarts: p.Restarts, Failures: p.Failures, Degraded: p.Degraded, InFlight: p.InFlight, LastError: p.LastError, LastCallError: p.LastCallError,
	}
}
