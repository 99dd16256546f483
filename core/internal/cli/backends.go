package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/textproto"
	"slices"
	"strings"
	"time"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/auth/jwtauth"
	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/plugins"
)

// authKey is the one key of the config file that is a list. It has neither flag nor variable: who may do what is not decided on a
// command line.
const authKey = "auth"

// backend is one entry of the auth list. Exactly one member is set.
type backend struct {
	Key    bool
	JWT    *jwtauth.Config
	Plugin *plugins.Plugin
}

// label names the backend for people.
func (b backend) label() string {
	switch {
	case b.JWT != nil:
		return "jwt " + b.JWT.Name
	case b.Plugin != nil:
		return "plugin " + b.Plugin.Name
	}
	return "key"
}

// defaultBackends are those of a server without the list.
func defaultBackends() []backend { return []backend{{Key: true}} }

// jwtEntry and its parts are what the file says; durations and presets are translated.
type jwtEntry struct {
	Name    string        `json:"name"`
	Leeway  core.Duration `json:"leeway"`
	Issuers []issuerEntry `json:"issuers"`
}

type issuerEntry struct {
	Name       string          `json:"name"`
	URL        string          `json:"url"`
	JWKS       string          `json:"jwks"`
	CAFile     string          `json:"ca_file"`
	TokenFile  string          `json:"token_file"`
	Audiences  []string        `json:"audiences"`
	Algorithms []string        `json:"algorithms"`
	Attributes json.RawMessage `json:"attributes"` // the name of a preset, or expressions by name
	Rules      []ruleEntry     `json:"rules"`
}

type ruleEntry struct {
	If      string   `json:"if"`
	Account string   `json:"account"`
	Scopes  []string `json:"scopes"`
}

type pluginEntry struct {
	Name         string          `json:"name"`
	Path         string          `json:"path"`
	SHA256       string          `json:"sha256"`
	Version      string          `json:"version"`
	Required     bool            `json:"required"`
	Prefixes     []string        `json:"prefixes"`
	Schemes      []string        `json:"schemes"`
	Headers      []string        `json:"headers"`
	AnyBearer    bool            `json:"any_bearer"`
	Accounts     []string        `json:"accounts"`
	Scopes       []string        `json:"scopes"`
	ShowHeaders  []string        `json:"show_headers"`
	Body         bool            `json:"body"`
	Config       json.RawMessage `json:"config"`
	Env          []string        `json:"env"`
	User         *userEntry      `json:"user"`
	Timeout      core.Duration   `json:"timeout"`
	StartTimeout core.Duration   `json:"start_timeout"`
	Concurrency  int             `json:"concurrency"`
}

type userEntry struct {
	UID *uint32 `json:"uid"`
	GID *uint32 `json:"gid"`
}

// parseBackends reads the auth list as the YAML parser decoded it. The error names every entry that is wrong.
func parseBackends(list any) ([]backend, error) {
	entries, ok := list.([]any)
	if !ok || len(entries) == 0 {
		return nil, errors.New("auth: must be a list of backends; leave it out for keys alone")
	}
	var all []backend
	var problems []error
	names := make(map[string]bool)
	for i, e := range entries {
		b, err := parseBackend(e)
		if err == nil && names[b.label()] {
			err = fmt.Errorf("%s: is there twice", b.label())
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("auth[%d]: %w", i, err))
			continue
		}
		names[b.label()] = true
		all = append(all, b)
	}
	return all, errors.Join(problems...)
}

func parseBackend(entry any) (backend, error) {
	members, ok := entry.(map[string]any)
	if !ok || len(members) != 1 {
		return backend{}, errors.New("must hold exactly one of key, jwt and plugin")
	}
	for kind, content := range members {
		raw, err := json.Marshal(content)
		if err != nil {
			return backend{}, fmt.Errorf("%s: %w", kind, err)
		}
		switch kind {
		case "key":
			var none struct{}
			if err := decodeEntry(raw, &none); err != nil {
				return backend{}, fmt.Errorf("key: %w; write key: {}", err)
			}
			return backend{Key: true}, nil
		case "jwt":
			cfg, err := parseJWT(raw)
			if err != nil {
				return backend{}, fmt.Errorf("jwt: %w", err)
			}
			return backend{JWT: cfg}, nil
		case "plugin":
			p, err := parsePlugin(raw)
			if err != nil {
				return backend{}, err
			}
			return backend{Plugin: p}, nil
		}
		return backend{}, fmt.Errorf("%q is no kind of backend; use key, jwt or plugin%s", kind, suggest(kind, []string{"key", "jwt", "plugin"}))
	}
	return backend{}, nil // not reached: there is one member
}

// decodeEntry refuses members that v does not have.
func decodeEntry(raw []byte, v any) error {
	if string(raw) == "null" {
		return errors.New("has no value")
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	err := d.Decode(v)
	var wrong *json.UnmarshalTypeError
	var said *core.Error
	switch {
	case errors.As(err, &said):
		return errors.New(said.Message)
	case errors.As(err, &wrong):
		return fmt.Errorf("%s: want %s, not %s", wrong.Field, wrong.Type, wrong.Value)
	case err != nil:
		return errors.New(strings.TrimPrefix(err.Error(), "json: "))
	}
	return nil
}

func parseJWT(raw []byte) (*jwtauth.Config, error) {
	var e jwtEntry
	if err := decodeEntry(raw, &e); err != nil {
		return nil, err
	}
	cfg := &jwtauth.Config{Name: e.Name, Leeway: e.Leeway.Std(), Now: time.Now}
	if cfg.Name == "" {
		cfg.Name = "jwt"
	}
	for _, i := range e.Issuers {
		attributes, err := parseAttributes(i.Attributes)
		if err != nil {
			return nil, fmt.Errorf("issuer %s: %w", i.Name, err)
		}
		client, err := issuerClient(i.CAFile, i.TokenFile)
		if err != nil {
			return nil, fmt.Errorf("issuer %s: %w", i.Name, err)
		}
		issuer := jwtauth.Issuer{
			Name: i.Name, URL: i.URL, JWKS: i.JWKS, Client: client, Audiences: i.Audiences, Algorithms: i.Algorithms, Attributes: attributes,
		}
		for _, r := range i.Rules {
			issuer.Rules = append(issuer.Rules, jwtauth.Rule(r))
		}
		cfg.Issuers = append(cfg.Issuers, issuer)
	}
	if _, err := jwtauth.New(*cfg); err != nil { // it connects to nothing, so it is the check
		return nil, err
	}
	return cfg, nil
}

func parseAttributes(raw json.RawMessage) (map[string]string, error) {
	if len(raw) == 0 {
		return nil, nil
	}
	var preset string
	if json.Unmarshal(raw, &preset) == nil {
		switch preset {
		case "github":
			return jwtauth.GitHub(), nil
		case "gitlab":
			return jwtauth.GitLab(), nil
		case "kubernetes":
			return jwtauth.Kubernetes(), nil
		}
		return nil, fmt.Errorf("attributes: %q is not github, gitlab or kubernetes", preset)
	}
	var expressions map[string]string
	if err := json.Unmarshal(raw, &expressions); err != nil {
		return nil, errors.New("attributes: want github, gitlab, kubernetes, or expressions by name")
	}
	return expressions, nil
}

func parsePlugin(raw []byte) (*plugins.Plugin, error) {
	var e pluginEntry
	if err := decodeEntry(raw, &e); err != nil {
		return nil, fmt.Errorf("plugin: %w", err)
	}
	p := &plugins.Plugin{
		Name: e.Name, Path: e.Path, SHA256: e.SHA256, Version: e.Version, Required: e.Required, Config: e.Config, Env: e.Env,
		Timeout: e.Timeout.Std(), StartTimeout: e.StartTimeout.Std(), Concurrency: e.Concurrency, Headers: e.ShowHeaders, Body: e.Body,
		Route: auth.Route{Prefixes: e.Prefixes, Schemes: e.Schemes, Headers: e.Headers, AnyBearer: e.AnyBearer},
		Grant: auth.Grant{Accounts: e.Accounts, Scopes: e.Scopes},
	}
	if e.User != nil {
		if e.User.UID == nil || e.User.GID == nil {
			return nil, fmt.Errorf("plugin %s: user: give uid and gid", e.Name)
		}
		p.User = &plugins.User{UID: *e.User.UID, GID: *e.User.GID}
	}
	if err := p.Validate(); err != nil {
		// Whoever writes the entry has to get the digest from somewhere.
		if digest, derr := plugins.Digest(e.Path); e.SHA256 == "" && derr == nil {
			err = fmt.Errorf("%w; of %s as it is now, it is sha256: %s", err, e.Path, digest)
		}
		return nil, err
	}
	return p, nil
}

// pluginsOf returns the plugins among the backends, in order.
func pluginsOf(all []backend) []plugins.Plugin {
	var found []plugins.Plugin
	for _, b := range all {
		if b.Plugin != nil {
			found = append(found, *b.Plugin)
		}
	}
	return found
}

// asked is what of a request must be kept for the backends.
type asked struct {
	schemes, headers, shown []string
	body                    bool
}

func askedBy(all []backend) asked {
	var a asked
	for _, p := range pluginsOf(all) {
		a.schemes = append(a.schemes, p.Route.Schemes...)
		for _, h := range p.Route.Headers {
			a.headers = append(a.headers, textproto.CanonicalMIMEHeaderKey(h))
		}
		a.shown = append(a.shown, p.Headers...)
		a.body = a.body || p.Body
	}
	for _, list := range []*[]string{&a.schemes, &a.headers, &a.shown} {
		slices.Sort(*list)
		*list = slices.Compact(*list)
	}
	return a
}
