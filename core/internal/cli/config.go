package cli

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/env/v2"
	"github.com/knadh/koanf/providers/file"
	"github.com/knadh/koanf/providers/posflag"
	"github.com/knadh/koanf/v2"
	"github.com/spf13/pflag"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/server/compat"
	"github.com/keyfire/keyfire/core/internal/store"
	"github.com/keyfire/keyfire/runtime/wasm"
)

// Config is everything an operator can set. The table in settings.go documents each field with its unit, bounds and default, and
// flags, variables, the file and `keyfire config print` are all made from that table. No setting is a secret: what is secret
// lives in files of the data directory, never in a place that a process list or a support ticket shows.
type Config struct {
	Data           string
	Store          string // address of PostgreSQL; "" is a file in Data
	Queue          string // address of NATS; "" is in memory
	QueueProof     string // file of credentials for it; "" is none
	Listen         string
	LogLevel       slog.Level
	LogFormat      string
	ShutdownDelay  time.Duration
	ShutdownGrace  time.Duration
	TrustedProxies []netip.Prefix
	Body           int64
	Compat         compat.Products
	Console        bool
	BadCredentials int
	MemoryBudget   int64
	ModuleMemory   int64
	Wasm           wasmConfig
	EgressAllow    []netip.Prefix
	TrustedKeys    wasm.TrustedKeys
	MustSign       []string // accounts; "*" is all
	ScriptEngine   string   // file; empty for the one in the data directory
	MaxRunning     int
	MaxPending     int
	DebugListen    string

	Workers       int
	MaxQueued     int
	MaxWait       time.Duration
	Retention     store.Retention
	MaxPayload    int64
	CallbackAllow []wasm.HTTPRule

	// Auth are the auth backends in order, from the key "auth" of the config file.
	Auth []backend
	// readAuth reads them again.
	readAuth func() ([]backend, error)
}

// Variables that the environment may hold beside the settings.
const (
	envPrefix = "KEYFIRE_"
	envConfig = "KEYFIRE_CONFIG" // path of the config file
	envURL    = "KEYFIRE_URL"    // where commands find the server
	envKey    = "KEYFIRE_KEY"    // the admin key they send

	envNodeCache = "KEYFIRE_NODE_CACHE" // where keyfire node keeps what it compiled

	envAccount    = "KEYFIRE_ACCOUNT"     // the account that commands act for
	envSetupToken = "KEYFIRE_SETUP_TOKEN" // for keyfire setup
)

// effective is one setting with the value in force and where that came from.
type effective struct {
	setting
	text   string // the value as text
	source string // "default", "file <path>", "env KEYFIRE_X" or "flag --x"
}

// loadConfig merges the sources: flags outweigh KEYFIRE_* variables, those the config file, and that the defaults. The error
// holds every problem at once, each with the place it comes from; the settings are returned even then, for `config print`.
func loadConfig(environ []string, flags *pflag.FlagSet) (*Config, []effective, error) {
	table := settings(environ)
	var problems []error
	layers := []layer{}
	cfg := Config{Auth: defaultBackends()}
	cfg.readAuth = func() ([]backend, error) {
		again, _, err := loadConfig(environ, flags)
		if err != nil {
			return nil, err
		}
		return again.Auth, nil
	}

	path := lookup(environ, envConfig)
	if f := flags.Lookup("config"); f != nil && f.Changed && f.Value.Type() == "string" { // keyfire node has a --config that is a node's
		if path = f.Value.String(); path == "" {
			return nil, nil, errors.New("flag --config: names no file")
		}
	}
	if path != "" {
		l, err := fileLayer(path, table)
		if err != nil {
			return nil, nil, err
		}
		if list := l.values.Get(authKey); l.values.Exists(authKey) {
			l.values.Delete(authKey)
			if cfg.Auth, err = parseBackends(list); err != nil {
				problems = append(problems, fmt.Errorf("file %s: %w", path, err))
			}
		}
		layers = append(layers, l)
	}
	fromEnv, errs := envLayer(environ, table)
	problems = append(problems, errs...)
	layers = append(layers, fromEnv, flagLayer(flags, table))

	for _, l := range layers {
		for _, key := range l.values.Keys() {
			if below := keysBelow(table, key); len(below) > 0 {
				problems = append(problems, fmt.Errorf("%s: %s is a group of keys; want them below it, such as %s", l.from(setting{key: key}), key, below[0]))
			} else if !slices.ContainsFunc(table, func(s setting) bool { return s.key == key }) {
				problems = append(problems, fmt.Errorf("%s: unknown key %q%s", l.from(setting{key: key}), key, suggest(key, keysOf(table))))
			}
		}
	}

	all := make([]effective, 0, len(table))
	for _, s := range table {
		e := effective{setting: s, text: s.value, source: "default"}
		for _, l := range layers {
			if !l.values.Exists(s.key) {
				continue
			}
			e.source = l.from(s)
			text, err := asText(l.values.Get(s.key))
			if err != nil {
				problems = append(problems, fmt.Errorf("%s: %s: %w", e.source, s.key, err))
				continue
			}
			e.text = text
		}
		if err := s.set(&cfg, e.text); err != nil {
			problems = append(problems, fmt.Errorf("%s: %s: %w", e.source, s.key, err))
		}
		all = append(all, e)
	}
	if err := cfg.checkCluster(); err != nil {
		problems = append(problems, err)
	}
	return &cfg, all, errors.Join(problems...)
}

// layer is one source of settings.
type layer struct {
	values *koanf.Koanf
	from   func(setting) string // names the place of a setting, for messages
}

func fileLayer(path string, table []setting) (layer, error) {
	k := koanf.New(".")
	if err := k.Load(file.Provider(path), configFile{yaml.Parser(), table}); err != nil {
		return layer{}, fmt.Errorf("config file %s: %w", path, err)
	}
	return layer{k, func(setting) string { return "file " + path }}, nil
}

// envLayer reads the variables of known settings and complains about every other KEYFIRE_ variable: one that is mistyped must not
// leave its setting at the default unnoticed.
func envLayer(environ []string, table []setting) (layer, []error) {
	k := koanf.New(".")
	names := []string{envConfig, envURL, envKey, envNodeCache, envAccount, envSetupToken, envSuperuser, envSuperuserPassword, envSuperuserPasswordFile}
	for _, s := range table {
		names = append(names, s.variable())
	}
	var unknown []error
	provider := env.Provider(".", env.Opt{
		Prefix:      envPrefix,
		EnvironFunc: func() []string { return environ },
		TransformFunc: func(name, value string) (string, any) {
			for _, s := range table {
				if s.variable() == name {
					return s.key, value
				}
			}
			if !slices.Contains(names, name) {
				unknown = append(unknown, fmt.Errorf("env %s: unknown variable%s", name, suggest(name, names)))
			}
			return "", nil
		},
	})
	err := k.Load(provider, nil) // reading a slice cannot fail
	return layer{k, func(s setting) string { return "env " + s.variable() }}, append(unknown, asList(err)...)
}

func flagLayer(flags *pflag.FlagSet, table []setting) layer {
	k := koanf.New(".")
	provider := posflag.ProviderWithFlag(flags, ".", k, func(f *pflag.Flag) (string, any) {
		for _, s := range table {
			if f.Changed && s.flag() == f.Name {
				return s.key, f.Value.String()
			}
		}
		return "", nil
	})
	_ = k.Load(provider, nil) // the provider has no error to report
	return layer{k, func(s setting) string { return "flag --" + s.flag() }}
}

// asText turns a value of a YAML file into the text that a flag or variable would hold.
func asText(v any) (string, error) {
	switch v := v.(type) {
	case string:
		return v, nil
	case nil:
		return "", errors.New(`has no value; write "" for an empty one or leave the key out`)
	case map[string]any:
		return "", errors.New("is a group of keys here; want one value")
	case []any:
		parts := make([]string, len(v))
		for i, e := range v {
			text, err := asText(e)
			if err != nil {
				return "", err
			}
			parts[i] = text
		}
		return strings.Join(parts, ","), nil
	}
	return fmt.Sprint(v), nil
}

func asList(err error) []error {
	if err == nil {
		return nil
	}
	return []error{err}
}

func keysOf(table []setting) []string {
	keys := make([]string, len(table))
	for i, s := range table {
		keys[i] = s.key
	}
	return keys
}

// lookup returns the last value of a variable, as a shell would, or "".
func lookup(environ []string, name string) string {
	for _, kv := range slices.Backward(environ) {
		if k, v, ok := strings.Cut(kv, "="); ok && k == name {
			return v
		}
	}
	return ""
}

// defaultData is where the server keeps its state when nobody says otherwise: a fixed place, so that `keyfire keys create` finds
// the server from any directory. It is "" for a process without a home, which must be told.
func defaultData(environ []string) string {
	if dir := lookup(environ, "XDG_DATA_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "keyfire")
	}
	if home := lookup(environ, "HOME"); home != "" {
		return filepath.Join(home, ".local", "share", "keyfire")
	}
	return ""
}

// suggest returns a hint at the candidate closest to name, or "" when none is close.
func suggest(name string, candidates []string) string {
	near := core.Nearest(name, candidates)
	if near == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %s?", near)
}
