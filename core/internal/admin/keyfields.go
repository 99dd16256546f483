package admin

import (
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/keyfire/keyfire/auth"
	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/core/internal/workflow"
)

// Bounds of a key's limits.
const (
	maxKeyNetworks = 100
	maxKeyOrigins  = 50
	maxKeyMetadata = 50  // members
	maxMetaName    = 64  // characters
	maxMetaValue   = 500 // characters
	maxRuns        = 1 << 50
)

// KeyLimits are the fields of a key that narrow how and how much it may be used. The zero value narrows nothing.
type KeyLimits struct {
	Refill         *core.Refill      // of the quota; Amount 0 is all of it
	RateLimits     []core.RateLimit  // up to core.MaxRateLimits; the only one may leave out its name
	MaxConcurrent  int64             // runs at once, up to core.MaxConcurrentRuns; 0 is no limit
	AllowedIPs     []string          // networks in CIDR notation, or single addresses
	AllowedOrigins []string          // origins of web pages
	Metadata       map[string]string // for the owner; the server makes nothing of it
}

// keyCheck collects what is wrong with the fields of a key, or with the limits of an account, so that all of it is told at once.
type keyCheck struct {
	now     time.Time
	account bool // it is an account
	fields  []core.Field
}

func (c *keyCheck) wrong(name, detail string) {
	c.fields = append(c.fields, core.Field{Pointer: "#/" + name, Detail: detail})
}

// err returns what was found, nil if there was nothing.
func (c *keyCheck) err() error {
	if len(c.fields) == 0 {
		return nil
	}
	what := "the key cannot be made as asked"
	if c.account {
		what = "the account cannot be changed as asked"
	}
	e := core.Errorf(core.CodeInvalidInput, "%s: %s %s", what, strings.TrimPrefix(c.fields[0].Pointer, "#/"), c.fields[0].Detail)
	e.Fields = c.fields
	return e
}

func (c *keyCheck) name(s string) {
	if !printable(s, 1, maxKeyName) {
		c.wrong("name", "must have 1 to 100 printable characters, so that people can tell keys apart")
	}
}

func (c *keyCheck) description(s string) {
	if !printable(s, 0, maxKeyText) {
		c.wrong("description", "must have at most 1000 printable characters")
	}
}

func (c *keyCheck) maxRuns(n int64) {
	if n < 0 || n > maxRuns {
		c.wrong("max_runs", fmt.Sprintf("must be from 1 to %d; leave it out for no limit", int64(maxRuns)))
	}
}

func (c *keyCheck) expiry(at time.Time) {
	if !at.IsZero() && !at.After(c.now) {
		c.wrong("expires_at", "must be in the future; null makes a key that never expires")
	}
}

// limits checks all of l and gives it to the key.
func (c *keyCheck) limits(k *auth.Key, l *KeyLimits) {
	c.refill(k, l.Refill)
	k.RateLimits = c.rates(l.RateLimits)
	k.MaxConcurrent = c.concurrent(l.MaxConcurrent)
	k.AllowedIPs = c.networks(l.AllowedIPs)
	k.AllowedOrigins = c.origins(l.AllowedOrigins)
	k.Metadata = c.metadata(l.Metadata)
}

// refill gives the key a refill of the quota that it has by now.
func (c *keyCheck) refill(k *auth.Key, r *core.Refill) {
	if r == nil {
		k.Refill, k.RefillAt = nil, time.Time{}
		return
	}
	own := *r
	if own.Amount == 0 {
		own.Amount = k.MaxRuns
	}
	longest := map[core.RefillEvery]int{core.RefillDaily: 0, core.RefillWeekly: 7, core.RefillMonthly: 31}
	most, known := longest[own.Every]
	switch {
	case k.MaxRuns <= 0:
		c.wrong("refill", "needs max_runs, which it refills")
	case !known:
		c.wrong("refill/every", `must be "day", "week" or "month"`)
	case own.Amount < 1 || own.Amount > k.MaxRuns:
		c.wrong("refill/amount", "must be from 1 to max_runs")
	case own.Day < 0 || own.Day > most:
		c.wrong("refill/day", "must be a day of the month from 1 to 31, or of the week from 1, Monday, to 7; a daily refill has none")
	default:
		k.Refill, k.RefillAt = &own, own.Next(c.now)
	}
}

var limitName = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,31}$`)

func (c *keyCheck) rates(limits []core.RateLimit) []core.RateLimit {
	if len(limits) > core.MaxRateLimits {
		c.wrong("rate_limits", fmt.Sprintf("must have at most %d entries", core.MaxRateLimits))
		return nil
	}
	own := slices.Clone(limits)
	names := map[string]bool{"quota": true, "concurrency": true} // of the other limits, in headers
	for i := range own {
		l, at := &own[i], fmt.Sprintf("rate_limits/%d/", i)
		if l.Name == "" && len(own) == 1 {
			l.Name = "default"
		}
		switch {
		case !limitName.MatchString(l.Name):
			c.wrong(at+"name", "must have 1 to 32 lower-case letters, digits, _ or -")
		case names[l.Name]:
			c.wrong(at+"name", `must be another name: it is used already, or it is "quota" or "concurrency"`)
		}
		names[l.Name] = true
		if l.Limit < 1 || l.Limit > core.MaxRate {
			c.wrong(at+"limit", fmt.Sprintf("must be from 1 to %d", core.MaxRate))
		}
		if l.Per.Std() < core.MinRatePeriod || l.Per.Std() > core.MaxRatePeriod {
			c.wrong(at+"per", `must be from "1s" to "31d"`)
		}
		if l.Burst < 0 || l.Burst > l.Limit {
			c.wrong(at+"burst", "must be from 1 to limit; leave it out for limit")
		}
	}
	if len(own) == 0 {
		return nil
	}
	return own
}

func (c *keyCheck) concurrent(n int64) int64 {
	if n < 0 || n > core.MaxConcurrentRuns {
		c.wrong("max_concurrent_runs", fmt.Sprintf("must be from 1 to %d; leave it out for no limit", core.MaxConcurrentRuns))
	}
	return n
}

func (c *keyCheck) networks(texts []string) []netip.Prefix {
	if len(texts) > maxKeyNetworks {
		c.wrong("allowed_ips", "must have at most 100 entries")
		return nil
	}
	var own []netip.Prefix
	for i, text := range texts {
		p, err := parseNetwork(text)
		if err != nil {
			c.wrong(fmt.Sprintf("allowed_ips/%d", i), "must be a network such as 203.0.113.0/24 or 2001:db8::/32, or an address")
			continue
		}
		if !slices.Contains(own, p) {
			own = append(own, p)
		}
	}
	return own
}

// parseNetwork reads a network or a single address. IPv4 in IPv6 notation is IPv4, as it is where addresses are compared.
func parseNetwork(text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	if err != nil {
		a, err := netip.ParseAddr(text)
		if err != nil || a.Zone() != "" {
			return netip.Prefix{}, fmt.Errorf("%q is not a network", text)
		}
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	if p.Addr().Is4In6() {
		if p.Bits() < 96 {
			return netip.Prefix{}, fmt.Errorf("%q holds more than IPv4", text)
		}
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked(), nil
}

func (c *keyCheck) origins(origins []string) []string {
	if len(origins) > maxKeyOrigins {
		c.wrong("allowed_origins", "must have at most 50 entries")
		return nil
	}
	var own []string
	for i, origin := range origins {
		if len(origin) > 255 || !workflow.ValidOrigin(origin) {
			c.wrong(fmt.Sprintf("allowed_origins/%d", i), workflow.OriginForm)
			continue
		}
		if !slices.Contains(own, origin) {
			own = append(own, origin)
		}
	}
	return own
}

func (c *keyCheck) metadata(m map[string]string) map[string]string {
	if len(m) > maxKeyMetadata {
		c.wrong("metadata", "must have at most 50 members")
		return nil
	}
	for name, value := range m {
		if n := utf8.RuneCountInString(name); n < 1 || n > maxMetaName || utf8.RuneCountInString(value) > maxMetaValue || !utf8.ValidString(name+value) ||
			strings.ContainsRune(name+value, 0) {
			c.wrong("metadata", "must have names of 1 to 64 characters and values of up to 500")
			break
		}
	}
	if len(m) == 0 {
		return nil
	}
	return maps.Clone(m)
}

// checkReason refuses a reason that the audit log would not show as it is.
func checkReason(why string) error {
	if printable(why, 0, maxReason) {
		return nil
	}
	return invalid("#/reason", "must have at most 1000 printable characters")
}
