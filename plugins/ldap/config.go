package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"slices"
	"strings"

	"github.com/go-ldap/ldap/v3"

	"github.com/keyfire/keyfire/plugins/internal/upstream"
	"github.com/keyfire/keyfire/sdk/authplugin"
)

// config is the plugin's configuration.
type config struct {
	URL      string `json:"url"`       // ldaps://, ldap:// with start_tls, or ldapi://
	StartTLS bool   `json:"start_tls"` // encrypt a connection to ldap://
	CAFile   string `json:"ca_file"`   // of the directory's certificate; empty: the system's

	// UserDN makes the user's name in the directory of what was sent, such as "uid={username},ou=people,dc=example,dc=com". Search
	// looks it up instead.
	UserDN string  `json:"user_dn"`
	Search *search `json:"search"`

	// Groups says how to find the groups of a user; without it nobody has any.
	Groups *groups `json:"groups"`
	// Scopes maps the name of a group to the scopes its members get, and "*" to those that every user gets.
	Scopes map[string][]string `json:"scopes"`
	// RequireGroup refuses users who are in none of the groups of Scopes.
	RequireGroup bool   `json:"require_group"`
	Account      string `json:"account"`
	// DenyTTL is for how many seconds a wrong password may be refused without asking again, 0 to 60, 5 when left out: directories
	// lock users after some failures.
	DenyTTL int `json:"deny_ttl_seconds"`
}

// search finds a user with an identity of the plugin's own.
type search struct {
	BindDN           string `json:"bind_dn"`
	BindPassword     string `json:"bind_password"`
	BindPasswordFile string `json:"bind_password_file"`
	Base             string `json:"base"`
	Filter           string `json:"filter"` // such as "(&(objectClass=person)(uid={username}))"
}

// groups finds the groups of a user, as that user.
type groups struct {
	Base      string `json:"base"`
	Filter    string `json:"filter"`    // such as "(member={dn})"
	Attribute string `json:"attribute"` // that names a group, "cn" when empty
}

func parse(raw []byte) (config, error) {
	c := config{DenyTTL: 5}
	if err := authplugin.DecodeConfig(raw, &c); err != nil {
		return c, err
	}
	var problems []error
	check := func(ok bool, text string) {
		if !ok {
			problems = append(problems, errors.New(text))
		}
	}
	u, err := url.Parse(c.URL)
	check(err == nil && u.User == nil && (u.Scheme == "ldaps" || u.Scheme == "ldapi" || u.Scheme == "ldap" && (c.StartTLS || upstream.Loopback(u.Hostname()))),
		"url: must be ldaps://, ldapi://, or ldap:// with start_tls; a password is not sent over the network in clear")
	check(!c.StartTLS || u != nil && u.Scheme == "ldap", "start_tls: is for ldap:// only")
	check((c.UserDN == "") != (c.Search == nil), "set one of user_dn and search")
	if c.UserDN != "" {
		_, err := ldap.ParseDN(fill(c.UserDN, "username", "x"))
		check(strings.Contains(c.UserDN, "{username}") && err == nil, "user_dn: must be a distinguished name with {username} in it")
	}
	if s := c.Search; s != nil {
		_, err := ldap.CompileFilter(fill(s.Filter, "username", "x"))
		check(strings.Contains(s.Filter, "{username}") && err == nil, "search.filter: must be a filter with {username} in it")
		check(s.Base != "", "search.base: must not be empty")
		check(s.BindPassword == "" || s.BindPasswordFile == "", "search: set at most one of bind_password and bind_password_file")
		check((s.BindDN == "") == (s.BindPassword == "" && s.BindPasswordFile == ""), "search: bind_dn needs a password, and a password a bind_dn")
	}
	if g := c.Groups; g != nil {
		if g.Attribute == "" {
			g.Attribute = "cn"
		}
		_, err := ldap.CompileFilter(fill(fill(g.Filter, "dn", "x"), "username", "x"))
		check((strings.Contains(g.Filter, "{dn}") || strings.Contains(g.Filter, "{username}")) && err == nil, "groups.filter: must be a filter with {dn} or {username} in it")
		check(g.Base != "", "groups.base: must not be empty")
	}
	check(!c.RequireGroup || c.Groups != nil, "require_group: say how to find groups")
	check(c.DenyTTL >= 0 && c.DenyTTL <= 60, "deny_ttl_seconds: 0 to 60")
	return c, errors.Join(problems...)
}

// mapped returns the names of the groups that give scopes.
func (c *config) mapped() []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(c.Scopes)), func(name string) bool { return name == "*" })
}

// fill replaces {name} in a template by a value that has been escaped for where it goes.
func fill(template, name, escaped string) string {
	return strings.ReplaceAll(template, "{"+name+"}", escaped)
}

// readFiles replaces names of files by what is in them.
func (c *config) readFiles() (*tls.Config, error) {
	if s := c.Search; s != nil && s.BindPasswordFile != "" {
		password, err := os.ReadFile(s.BindPasswordFile)
		if err != nil {
			return nil, fmt.Errorf("search.bind_password_file: %w", err)
		}
		s.BindPassword = strings.TrimRight(string(password), "\r\n")
	}
	t, err := upstream.TLS(c.CAFile)
	if err != nil {
		return nil, err
	}
	if u, err := url.Parse(c.URL); err == nil {
		t.ServerName = u.Hostname()
	}
	return t, nil
}
