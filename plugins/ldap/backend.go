package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-ldap/ldap/v3"
	"golang.org/x/text/unicode/norm"

	"github.com/keyfire/keyfire/sdk/authplugin"
)

// Bounds of what is sent to a directory and taken from it.
const (
	maxUsername = 128 // characters
	maxPassword = 512 // bytes
	maxGroups   = 200 // of a user, taken at once
)

// backend asks a directory. Every request has a connection of its own: binding changes who a connection is, and what one user bound must
// not serve another.
type backend struct {
	config config
	tls    *tls.Config
}

func newBackend() *backend { return &backend{} }

// Validate implements authplugin.Validator.
func (b *backend) Validate(raw []byte) error {
	_, err := parse(raw)
	return err
}

// Configure implements authplugin.Configurer. It does not connect: a directory that is down at the start is asked again with each request.
func (b *backend) Configure(_ context.Context, raw []byte) error {
	c, err := parse(raw)
	if err != nil {
		return err
	}
	t, err := c.readFiles()
	if err != nil {
		return err
	}
	b.config, b.tls = c, t
	return nil
}

// Authenticate implements authplugin.Authenticator.
func (b *backend) Authenticate(ctx context.Context, r *authplugin.Request) (*authplugin.Principal, error) {
	if r.Scheme != "basic" {
		return nil, authplugin.ErrNotMine
	}
	denied := &authplugin.Denied{Reason: "wrong user name or password", TTL: time.Duration(b.config.DenyTTL) * time.Second}
	username, password, ok := r.Basic()
	// A bind with an empty password is anonymous and succeeds for every name (RFC 4513, 5.1.2).
	if !ok || password == "" || len(password) > maxPassword || !plausible(username) {
		return nil, denied
	}
	conn, err := b.dial(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	// The library knows no context; closing the connection ends whatever waits for it.
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()

	dn, found, err := b.find(conn, username)
	if err != nil {
		return nil, err
	}
	if !found {
		// The bind that a known name would have cost, so that time does not tell which names exist.
		dn = "cn=" + ldap.EscapeDN(username) + "," + b.config.Search.Base
	}
	switch err := conn.Bind(dn, password); {
	case ldap.IsErrorAnyOf(err, ldap.LDAPResultInvalidCredentials, ldap.LDAPResultNoSuchObject, ldap.LDAPResultInvalidDNSyntax, ldap.LDAPResultInappropriateAuthentication):
		return nil, denied
	case err != nil:
		return nil, fmt.Errorf("directory: bind: %w", withoutText(err))
	case !found:
		return nil, denied
	}
	names, err := b.groupsOf(conn, dn, username)
	if err != nil {
		return nil, err
	}
	return b.principal(dn, username, names)
}

// plausible refuses names that are no names before a directory sees them, and other spellings of a name: a directory compares names after it has
// normalised them (RFC 4518) and would take "alice ", or alice in full-width letters, for alice, whom we would then know under several subjects.
func plausible(username string) bool {
	return username != "" && utf8.ValidString(username) && utf8.RuneCountInString(username) <= maxUsername &&
		strings.IndexFunc(username, func(r rune) bool { return !unicode.IsPrint(r) || ignored(r) }) < 0 &&
		norm.NFKC.IsNormalString(username) && strings.Join(strings.Fields(username), " ") == username
}

// ignored reports whether directories leave a character out when they compare names (RFC 4518, 2.2); those that do not print are not asked about.
func ignored(r rune) bool {
	return r == 0x034f || r == 0x1806 || r >= 0x180b && r <= 0x180d || r >= 0xfe00 && r <= 0xfe0f || r == 0xfffc
}

func (b *backend) dial(ctx context.Context) (*ldap.Conn, error) {
	deadline, bounded := ctx.Deadline() // or zero, which is none
	var conn *ldap.Conn
	var err error
	if b.config.StartTLS {
		conn, err = b.startTLS(ctx)
	} else {
		conn, err = ldap.DialURL(b.config.URL, ldap.DialWithDialer(&net.Dialer{Deadline: deadline}), ldap.DialWithTLSConfig(b.tls))
	}
	if err != nil {
		return nil, fmt.Errorf("directory: %w", withoutText(err))
	}
	if bounded {
		conn.SetTimeout(time.Until(deadline))
	}
	return conn, nil
}

// startTLS dials, and encrypts what is not yet encrypted. The library waits for ever for a directory that is silent in the handshake, so this holds the
// connection to end that.
func (b *backend) startTLS(ctx context.Context) (*ldap.Conn, error) {
	u, err := url.Parse(b.config.URL)
	if err != nil {
		return nil, err
	}
	raw, err := new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), ldap.DefaultLdapPort)))
	if err != nil {
		return nil, err
	}
	defer context.AfterFunc(ctx, func() { _ = raw.Close() })()
	conn := ldap.NewConn(raw, false)
	conn.Start()
	if err := conn.StartTLS(b.tls); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("start TLS: %w", withoutText(err))
	}
	return conn, nil
}

// find returns the distinguished name for a user name. found is false when nobody has it.
func (b *backend) find(conn *ldap.Conn, username string) (dn string, found bool, err error) {
	s := b.config.Search
	if s == nil {
		return fill(b.config.UserDN, "username", ldap.EscapeDN(username)), true, nil
	}
	if s.BindDN != "" {
		if err := conn.Bind(s.BindDN, s.BindPassword); err != nil {
			return "", false, fmt.Errorf("directory: bind as the plugin: %w", withoutText(err))
		}
	}
	res, err := conn.Search(ldap.NewSearchRequest(s.Base, ldap.ScopeWholeSubtree, ldap.NeverDerefAliases, 2, 0, false,
		fill(s.Filter, "username", ldap.EscapeFilter(username)), []string{"1.1"}, nil))
	switch {
	case ldap.IsErrorWithCode(err, ldap.LDAPResultSizeLimitExceeded) || err == nil && len(res.Entries) > 1:
		return "", false, errors.New("directory: search.filter finds more than one user for a name; make it narrower")
	case err != nil:
		return "", false, fmt.Errorf("directory: search: %w", withoutText(err))
	case len(res.Entries) == 0:
		return "", false, nil
	}
	return res.Entries[0].DN, true, nil
}

// groupsOf returns the names of the groups a user is in.
func (b *backend) groupsOf(conn *ldap.Conn, dn, username string) ([]string, error) {
	g := b.config.Groups
	if g == nil {
		return nil, nil
	}
	filter := fill(fill(g.Filter, "dn", ldap.EscapeFilter(dn)), "username", ldap.EscapeFilter(username))
	search := func(filter string) (*ldap.SearchResult, error) {
		return conn.Search(ldap.NewSearchRequest(g.Base, ldap.ScopeWholeSubtree, ldap.NeverDerefAliases, maxGroups, 0, false, filter, []string{g.Attribute}, nil))
	}
	res, err := search(filter)
	if ldap.IsErrorWithCode(err, ldap.LDAPResultSizeLimitExceeded) {
		// Somebody who is in everything. Only groups that mean something here count, and not every directory can look for them by the attribute that they are named by, so all
		// were asked for first.
		mapped := b.config.mapped()
		if len(mapped) == 0 {
			return nil, nil
		}
		for i, name := range mapped {
			mapped[i] = "(" + g.Attribute + "=" + ldap.EscapeFilter(name) + ")"
		}
		res, err = search("(&" + filter + "(|" + strings.Join(mapped, "") + "))")
	}
	switch {
	case ldap.IsErrorWithCode(err, ldap.LDAPResultSizeLimitExceeded):
		return nil, fmt.Errorf("directory: search for groups: the user is in more than %d groups of the names in scopes, or the directory gives out fewer; make groups.base or groups.filter narrower", maxGroups)
	case err != nil:
		return nil, fmt.Errorf("directory: search for groups: %w", withoutText(err))
	}
	var names []string
	for _, e := range res.Entries {
		names = append(names, e.GetAttributeValues(g.Attribute)...)
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

func (b *backend) principal(dn, username string, names []string) (*authplugin.Principal, error) {
	p := &authplugin.Principal{Subject: strings.ToLower(username), Account: b.config.Account, Attributes: map[string]string{"dn": dn}}
	p.Scopes = append(p.Scopes, b.config.Scopes["*"]...)
	known := false
	for _, name := range names {
		if scopes, ok := b.config.Scopes[name]; ok && name != "*" {
			known = true
			p.Scopes = append(p.Scopes, scopes...)
		}
	}
	if b.config.RequireGroup && !known {
		return nil, authplugin.Deny("the user is in no group that has access")
	}
	slices.Sort(p.Scopes)
	p.Scopes = slices.Compact(p.Scopes)
	return p, nil
}

// withoutText keeps the result code of a directory's error and drops its diagnostic message, which can quote what was sent.
func withoutText(err error) error {
	var e *ldap.Error
	if errors.As(err, &e) && e.ResultCode != ldap.ErrorNetwork {
		return fmt.Errorf("result %d (%s)", e.ResultCode, ldap.LDAPResultCodeMap[e.ResultCode])
	}
	return err
}
