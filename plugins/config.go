package plugins

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/textproto"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.opentelemetry.io/otel/metric"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"

	"github.com/keyfire/keyfire/auth"
)

// Config is everything a Host needs.
type Config struct {
	// Plugins are the plugins to run. Names are unique.
	Plugins []Plugin
	// RuntimeDir is a directory for the sockets of running plugins: absolute, at most MaxRuntimeDir bytes long because the path of a socket is
	// bounded by the system, and used by one Host at a time. It is created if need be, and what an earlier Host left in it is removed.
	RuntimeDir string
	// Logger receives what plugins write and what happens to them.
	Logger *slog.Logger
	// Tracer and Meter record calls of plugins. Nil records nothing.
	Tracer trace.Tracer
	Meter  metric.Meter
	// OnEvent, when set, is called for each change of a plugin's state, in order for each plugin and from several goroutines for
	// several plugins. It should write the audit event and must not call back into the Host.
	OnEvent func(Event)
	// Now is the clock for expiry, backoff and status.
	Now func() time.Time
	// Random spreads restarts, so that plugins that died together do not come back together.
	Random io.Reader
}

// Plugin is the configuration of one plugin.
type Plugin struct {
	// Name names the plugin in subjects, spans, audit events and commands: a lower-case letter, then up to 31 letters, digits and hyphens.
	Name string
	// Path is the executable: absolute and clean, no symbolic link, and neither it nor its directory writable by group or others.
	Path string
	// SHA256 is the digest the executable must have, 64 hex digits.
	SHA256 string
	// Version, when set, is the version the plugin must report.
	Version string
	// Required makes a server that cannot start this plugin not start at all. A plugin that is not required is retried.
	Required bool
	// Config is the plugin's own configuration, one JSON object; empty is {}.
	Config json.RawMessage
	// Env is the whole environment of the process, as NAME=value, but for what the handshake needs.
	Env []string
	// User, when set, is who the process runs as. The server must be root to do that.
	User *User
	// Timeout bounds one call, 500 ms when zero, at most 5 s.
	Timeout time.Duration
	// StartTimeout bounds start, handshake and Configure together, 10 s when zero.
	StartTimeout time.Duration
	// Concurrency is how many calls may be under way at once, 64 when zero. More are refused at once.
	Concurrency int
	// Headers are the request headers the plugin is shown, besides those in Route.
	Headers []string
	// Body lets the plugin see the raw request body, for signature schemes.
	Body bool
	// Route is which credentials the plugin is asked about, and Grant what it may answer.
	Route auth.Route
	Grant auth.Grant
}

// User is the identity of a process. It gets no supplementary groups.
type User struct{ UID, GID uint32 }

// Defaults and bounds of a plugin's configuration.
const (
	DefaultTimeout      = 500 * time.Millisecond
	MaxTimeout          = 5 * time.Second
	DefaultStartTimeout = 10 * time.Second
	DefaultConcurrency  = 64
	MaxRuntimeDir       = 64 // bytes of the path
)

var (
	namePattern   = regexp.MustCompile(`^[a-z][a-z0-9-]{0,31}$`)
	digestPattern = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

// withDefaults returns a copy with every zero value replaced, so that no later code asks again.
func (p Plugin) withDefaults() Plugin {
	if p.Timeout == 0 {
		p.Timeout = DefaultTimeout
	}
	if p.StartTimeout == 0 {
		p.StartTimeout = DefaultStartTimeout
	}
	if p.Concurrency == 0 {
		p.Concurrency = DefaultConcurrency
	}
	if len(p.Config) == 0 {
		p.Config = json.RawMessage("{}")
	}
	p.SHA256 = strings.ToLower(p.SHA256)
	headers := make([]string, 0, len(p.Headers)+len(p.Route.Headers))
	for _, h := range slices.Concat(p.Headers, p.Route.Headers) {
		headers = append(headers, textproto.CanonicalMIMEHeaderKey(h))
	}
	slices.Sort(headers)
	p.Headers = slices.Compact(headers)
	return p
}

// ownNames are what the server's own subjects begin with, and its own backends are called. A plugin of such a name could say that somebody is user:usr_..., and would have their
// runs and their place in the audit log.
var ownNames = []string{"key", "apikey", "jwt", "webhook", "public", "none", "nobody", "unknown", "system", "schedule", "uid", "socket", "user", "session"}

// CheckName returns what is wrong with the name of a plugin, nil if it can be one.
func CheckName(name string) error {
	switch {
	case !namePattern.MatchString(name):
		return fmt.Errorf("name %q: use a lower-case letter, then up to 31 letters, digits and hyphens", name)
	case slices.Contains(ownNames, name):
		return fmt.Errorf("name %q is taken by the server", name)
	}
	return nil
}

// Validate returns everything that is wrong with the configuration, without looking at the file system.
func (p Plugin) Validate() error {
	p = p.withDefaults()
	var problems []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			problems = append(problems, fmt.Errorf(format, args...))
		}
	}
	problems = append(problems, CheckName(p.Name))
	check(filepath.IsAbs(p.Path) && filepath.Clean(p.Path) == p.Path, "path %q must be absolute and without . or ..", p.Path)
	check(digestPattern.MatchString(p.SHA256), "sha256 must be the 64 hex digits that sha256sum prints for the executable")
	check(p.Timeout > 0 && p.Timeout <= MaxTimeout, "timeout %s: at most %s", p.Timeout, MaxTimeout)
	check(p.StartTimeout > 0 && p.StartTimeout <= time.Minute, "start_timeout %s: at most 1m", p.StartTimeout)
	check(p.Concurrency > 0 && p.Concurrency <= 4096, "concurrency %d: 1 to 4096", p.Concurrency)
	var object map[string]json.RawMessage
	check(json.Unmarshal(p.Config, &object) == nil && object != nil, "config must be one JSON object")
	for _, e := range p.Env {
		name, _, ok := strings.Cut(e, "=")
		check(ok && name != "", "env: write NAME=value")
		check(!strings.HasPrefix(name, "PLUGIN_") && !strings.HasPrefix(name, "KEYFIRE_") && !strings.HasPrefix(name, "LD_"), "env: %s is not the configuration's to set", name)
	}
	for _, h := range p.Headers {
		check(!slices.Contains([]string{"Authorization", "Proxy-Authorization", "Cookie", "X-Api-Key", "X-Bifrost-Key"}, h),
			"headers: %s may hold another credential and is shown to no plugin", h)
	}
	problems = append(problems, p.Route.Validate(), p.Grant.Validate())
	if err := errors.Join(problems...); err != nil {
		return fmt.Errorf("plugin %s: %w", p.Name, err)
	}
	return nil
}

func (c *Config) validate() error {
	var problems []error
	if c.Logger == nil || c.Now == nil || c.Random == nil {
		problems = append(problems, errors.New("plugins: a logger, a clock and a source of randomness are needed"))
	}
	if !filepath.IsAbs(c.RuntimeDir) || len(c.RuntimeDir) > MaxRuntimeDir {
		problems = append(problems, fmt.Errorf("plugins: runtime directory %q must be absolute and at most %d bytes long, for sockets have short paths", c.RuntimeDir, MaxRuntimeDir))
	}
	seen := make(map[string]bool, len(c.Plugins))
	for _, p := range c.Plugins {
		if seen[p.Name] {
			problems = append(problems, fmt.Errorf("plugin %s: the name is used twice", p.Name))
		}
		seen[p.Name] = true
		problems = append(problems, p.Validate())
	}
	if c.Tracer == nil {
		c.Tracer = tracenoop.NewTracerProvider().Tracer("")
	}
	if c.Meter == nil {
		c.Meter = metricnoop.NewMeterProvider().Meter("")
	}
	return errors.Join(problems...)
}
