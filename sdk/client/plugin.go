package client

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// Plugin is an auth plugin of the server.
type Plugin struct {
	Name      string     `json:"name"`
	State     string     `json:"state"` // "starting", "ready", "degraded", "down", "refused", "stopped"
	Required  bool       `json:"required"`
	Path      string     `json:"path"`
	SHA256    string     `json:"sha256"`
	Version   string     `json:"version"` // "" while no process runs
	PID       int        `json:"pid"`     // 0 while no process runs
	Since     *time.Time `json:"since"`
	Restarts  int64      `json:"restarts"`
	Failures  int        `json:"failures"`  // processes that ended or could not be started in the last minute
	Degraded  bool       `json:"degraded"`  // it keeps failing or does not decide
	InFlight  int        `json:"in_flight"` // calls under way
	LastError string     `json:"last_error"`

	LastCallError string `json:"last_call_error"` // when and why a call last brought no verdict

	Response Response `json:"-"`
}

// Raw returns the plugin as the server sent it, with members that this version of the package does not know.
func (p *Plugin) Raw() []byte { return p.Response.Body }

// PluginLogLine is one line an auth plugin wrote to standard error.
type PluginLogLine struct {
	Time time.Time `json:"time"`
	PID  int       `json:"pid"`
	Text string    `json:"text"`
}

// Plugins lists the server's auth plugins, in the order of its configuration.
func (c *Client) Plugins(ctx context.Context) (*List[Plugin], error) {
	return list[Plugin](ctx, c, url.Values{}, "v1", "plugins")
}

// Plugin returns one auth plugin.
func (c *Client) Plugin(ctx context.Context, name string) (*Plugin, error) {
	return c.onePlugin(ctx, request{method: http.MethodGet, path: []string{"v1", "plugins", name}})
}

// PluginLogs returns the newest lines an auth plugin wrote, oldest first.
func (c *Client) PluginLogs(ctx context.Context, name string) (*List[PluginLogLine], error) {
	return list[PluginLogLine](ctx, c, url.Values{}, "v1", "plugins", name, "logs")
}

// ReloadPlugin has the server read the plugin's configuration again and replace its process. If the new process cannot be started, the
// old one stays and the error says why.
func (c *Client) ReloadPlugin(ctx context.Context, name string) (*Plugin, error) {
	return c.onePlugin(ctx, request{method: http.MethodPost, path: []string{"v1", "plugins", name, "reload"}})
}

func (c *Client) onePlugin(ctx context.Context, r request) (*Plugin, error) {
	return one(ctx, c, r, func(v *Plugin, res Response) { v.Response = res })
}
