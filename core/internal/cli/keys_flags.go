package cli

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/keyfire/keyfire/sdk/client"
)

// keyFlags are the flags of a key that are not one of its fields as they stand.
type keyFlags struct {
	workflows []string
	admin     bool
	expires   string
	refill    string
	rates     []string
	metadata  map[string]string
}

// add adds the flags of a new key.
func (k *keyFlags) add(f *pflag.FlagSet, n *client.NewKey) {
	k.addLimits(f, n)
	f.StringVar(&n.Name, "name", "", "what people call the key (required)")
	f.StringArrayVar(&k.workflows, "workflow", nil, "a workflow the key may run, by name or id, or all below a name as 'billing/*'; may be repeated")
	f.BoolVar(&n.Global, "global", false, "may run every workflow that admits account-wide keys")
	f.BoolVar(&k.admin, "admin", false, "an admin key, for the control plane")
	f.StringArrayVar(&n.Scopes, "scope", nil, "a scope such as runs:read; may be repeated; with --admin it narrows the key")
}

// addLimits adds the flags of what can be said of any key.
func (k *keyFlags) addLimits(f *pflag.FlagSet, n *client.NewKey) {
	f.StringVar(&n.Description, "description", "", "what the key is for")
	f.Int64Var(&n.MaxRuns, "max-runs", 0, "how many runs the key may start (default: no limit)")
	f.StringVar(&k.refill, "refill", "", "when runs of --max-runs come back: day, week, month, month:15 (its day), or month:15:100 (how many)")
	f.StringArrayVar(&k.rates, "rate", nil, "a rate limit such as 10/1s, 500/1h or nightly=100/24h; may be repeated")
	f.Int64Var(&n.MaxConcurrentRuns, "max-concurrent", 0, "how many runs of the key may execute at once (default: no limit)")
	f.StringArrayVar(&n.AllowedIPs, "allow-ip", nil, "a network or address the key may be used from; may be repeated (default: anywhere)")
	f.StringArrayVar(&n.AllowedOrigins, "allow-origin", nil, "the origin of web pages that may use the key, such as https://app.example.com; may be repeated")
	f.StringToStringVar(&k.metadata, "metadata", nil, "notes on the key, as name=value")
	f.StringVar(&k.expires, "expires", "", "when the key stops working: 30d, 12h, 2027-01-31, 2027-01-31T18:00:00Z or never (default 90d)")
	f.BoolVar(&n.AllowQuery, "allow-query", false, "also accept the key in a URL's query, for senders that can do nothing else")
}

// complete fills in what the flags of a new key say.
func (k *keyFlags) complete(f *pflag.FlagSet, n *client.NewKey, now time.Time) error {
	if strings.TrimSpace(n.Name) == "" {
		return usagef("--name is required: it is how you will tell this key from others when you revoke one")
	}
	ways := 0
	for _, chosen := range []bool{len(k.workflows) > 0, n.Global, k.admin, len(n.Scopes) > 0 && !k.admin} {
		if chosen {
			ways++
		}
	}
	if ways != 1 {
		return usagef("say what the key may do with exactly one of --workflow NAME, --global, --admin, --scope SCOPE")
	}
	if len(k.workflows) == 1 && !strings.HasSuffix(k.workflows[0], "/*") {
		n.Workflow = k.workflows[0]
	} else {
		for _, w := range k.workflows {
			n.Scopes = append(n.Scopes, "run:workflow/"+w)
		}
	}
	if k.admin {
		n.Type = "admin"
	}
	return k.completeLimits(f, n, now)
}

func (k *keyFlags) completeLimits(f *pflag.FlagSet, n *client.NewKey, now time.Time) (err error) {
	if f.Changed("max-runs") && n.MaxRuns < 1 {
		return usagef("--max-runs must be at least 1; leave it out for no limit")
	}
	if f.Changed("max-concurrent") && n.MaxConcurrentRuns < 1 {
		return usagef("--max-concurrent must be at least 1; leave it out for no limit")
	}
	// An empty value is a variable of a script that was not set, and not the wish for a key without an end.
	for _, flag := range []string{"expires", "refill"} {
		if f.Changed(flag) && f.Lookup(flag).Value.String() == "" {
			return usagef("--%s has no value; give one, or leave it out", flag)
		}
	}
	if n.Refill, err = parseRefill(k.refill); err != nil {
		return usageError{err}
	}
	if n.RateLimits, err = parseRates(k.rates); err != nil {
		return err
	}
	n.Metadata = k.metadata
	if err := parseExpiry(n, k.expires, now); err != nil {
		return usageError{err}
	}
	return nil
}

// parseRefill reads "month", "month:15" or "month:15:100".
func parseRefill(text string) (*client.Refill, error) {
	if text == "" {
		return nil, nil
	}
	wrong := fmt.Errorf("--refill %s: want day, week, month, month:15 or month:15:100", text)
	parts := strings.Split(text, ":")
	r := &client.Refill{Every: parts[0]}
	if len(parts) > 3 || !slices.Contains([]string{"day", "week", "month"}, r.Every) {
		return nil, wrong
	}
	var err error
	if len(parts) > 1 && parts[1] != "" {
		if r.Day, err = strconv.Atoi(parts[1]); err != nil {
			return nil, wrong
		}
	}
	if len(parts) > 2 {
		if r.Amount, err = strconv.ParseInt(parts[2], 10, 64); err != nil || r.Amount < 1 {
			return nil, wrong
		}
	}
	return r, nil
}

func parseRates(texts []string) (limits []client.RateLimit, err error) {
	for _, text := range texts {
		l, err := parseRate(text, len(texts) > 1)
		if err != nil {
			return nil, usageError{err}
		}
		limits = append(limits, l)
	}
	return limits, nil
}

// parseRate reads "10/1s" or "name=10/1s". Several need names; one without is called by its time.
func parseRate(text string, several bool) (client.RateLimit, error) {
	l := client.RateLimit{}
	rest := text
	if name, after, named := strings.Cut(text, "="); named {
		l.Name, rest = name, after
	}
	count, per, ok := strings.Cut(rest, "/")
	n, err := strconv.ParseInt(count, 10, 64)
	if !ok || err != nil || n < 1 || per == "" {
		return l, fmt.Errorf("--rate %s: want runs per time, such as 10/1s or nightly=100/24h", text)
	}
	l.Limit, l.Per = n, per
	if l.Name == "" && several {
		l.Name = "per-" + per
	}
	return l, nil
}

func refillText(r *client.Refill) string {
	if r == nil {
		return ""
	}
	text := fmt.Sprintf("%d every %s", r.Amount, r.Every)
	if r.Day > 0 {
		text += fmt.Sprintf(" on day %d", r.Day)
	}
	if r.NextAt != nil {
		text += ", next at " + timeText(r.NextAt)
	}
	return text
}

func ratesText(limits []client.RateLimit) string {
	texts := make([]string, 0, len(limits))
	for _, l := range limits {
		text := fmt.Sprintf("%s=%d/%s", l.Name, l.Limit, l.Per)
		if l.Burst > 0 {
			text += fmt.Sprintf(" (%d at once)", l.Burst)
		}
		texts = append(texts, text)
	}
	return strings.Join(texts, " ")
}

func atOnceText(n *int64) string {
	if n == nil {
		return ""
	}
	return strconv.FormatInt(*n, 10)
}

func metadataText(m map[string]string) string {
	texts := make([]string, 0, len(m))
	for _, name := range slices.Sorted(maps.Keys(m)) {
		texts = append(texts, printable(name+"="+m[name]))
	}
	return strings.Join(texts, " ")
}
