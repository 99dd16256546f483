package cli

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/runtime/wasm"
)

// setting is one row of the table that Config is read by. Values are text in every source; set parses and checks one.
type setting struct {
	key   string // as in the file, such as "log.level"
	usage string // meaning, unit and bounds, in one or more sentences
	value string // default
	list  bool   // comma-separated text; a list in the file
	set   func(c *Config, text string) error
}

// flag returns the name of the command line flag, without dashes.
func (s setting) flag() string { return strings.NewReplacer(".", "-", "_", "-").Replace(s.key) }

// variable returns the name of the environment variable.
func (s setting) variable() string {
	return envPrefix + strings.ToUpper(strings.NewReplacer(".", "_", "-", "_").Replace(s.key))
}

// settings returns the table. environ decides the default of the data directory alone.
func settings(environ []string) []setting {
	return append(compatSettings(), []setting{
		{
			key:   "data",
			usage: "Directory that holds everything the server must keep: database, pepper, compile cache, control socket. Created with mode 0700. Commands find the server through it.",
			value: defaultData(environ),
			set: func(c *Config, text string) (err error) {
				if text == "" {
					return errors.New("must name a directory; there is no default without HOME or XDG_DATA_HOME")
				}
				c.Data, err = filepath.Abs(text)
				return err
			},
		},
		storeSetting(),
		queueSetting(),
		queueCredentialsSetting(),
		{
			key:   "listen",
			usage: "TCP address of the HTTP API, host:port. Port 0 picks a free one. The default is reachable from this machine only; Keyfire speaks plain HTTP, so put a TLS proxy before it to go further.",
			value: "127.0.0.1:8080",
			set:   func(c *Config, text string) error { return setAddress(&c.Listen, text) },
		},
		{
			key:   "trusted_proxies",
			usage: "Addresses or networks (CIDR) of the proxies whose X-Forwarded-For, X-Forwarded-Proto and traceparent are believed. Empty: nobody's.",
			list:  true,
			set:   func(c *Config, text string) error { return setPrefixes(&c.TrustedProxies, text) },
		},
		{
			key:   "egress.allow",
			usage: "Networks (CIDR) that granted nodes may send HTTP requests to although they are private, local or reserved. Empty: none.",
			list:  true,
			set:   func(c *Config, text string) error { return setPrefixes(&c.EgressAllow, text) },
		},
		{
			key:   "log.level",
			usage: "Least severe level that is logged: debug, info, warn or error.",
			value: "info",
			set: func(c *Config, text string) error {
				// slog itself would also take "warn+3".
				if !slices.Contains([]string{"debug", "info", "warn", "error"}, strings.ToLower(text)) {
					return errors.New("want debug, info, warn or error")
				}
				return c.LogLevel.UnmarshalText([]byte(text))
			},
		},
		{
			key:   "log.format",
			usage: "Form of the log on standard error: text or json.",
			value: "text",
			set: func(c *Config, text string) error {
				if text != "text" && text != "json" {
					return errors.New("want text or json")
				}
				c.LogFormat = text
				return nil
			},
		},
		{
			key:   "shutdown.delay",
			usage: "How long everything is served still after SIGTERM, 0s to 5m, while /readyz says 503: until a load balancer has seen that.",
			value: "0s",
			set:   func(c *Config, text string) error { return setDuration(&c.ShutdownDelay, text, 0, 5*time.Minute) },
		},
		{
			key:   "shutdown.grace",
			usage: "How long running requests may take to finish after SIGTERM and shutdown.delay, 0s to 10m. What still runs then is recorded as interrupted.",
			value: "30s",
			set:   func(c *Config, text string) error { return setDuration(&c.ShutdownGrace, text, 0, 10*time.Minute) },
		},
		{
			key:   "limits.body",
			usage: "Largest request body of a trigger, 1KiB to 10MiB. Publishing a workflow has its own limit.",
			value: "1MiB",
			set:   func(c *Config, text string) error { return setSize(&c.Body, text, 1<<10, 10<<20) },
		},
		{
			key:   "limits.bad_credentials",
			usage: "Bad credentials one source address may send in a minute before it is told 429, 1 to 1000000. Good credentials from that address are never affected.",
			value: "100",
			set:   func(c *Config, text string) error { return setInt(&c.BadCredentials, text, 1, 1_000_000) },
		},
		{
			key:   "runs.max_concurrent",
			usage: "Runs that execute at the same time, 1 to 10000; the others wait within their own deadline.",
			value: "1024",
			set:   func(c *Config, text string) error { return setInt(&c.MaxRunning, text, 1, 10_000) },
		},
		{
			key:   "runs.max_pending",
			usage: "Runs that are admitted, waiting or executing, and as many requests that wait before that, 1 to 100000; one more is refused with 503 and nothing is written.",
			value: "4096",
			set:   func(c *Config, text string) error { return setInt(&c.MaxPending, text, 1, 100_000) },
		},
		{
			key:   "runs.workers",
			usage: "Durable runs that execute at the same time, 1 to 10000; the others wait in the queue. One that waits for a retry or a time is not counted.",
			value: "64",
			set:   func(c *Config, text string) error { return setInt(&c.Workers, text, 1, 10_000) },
		},
		{
			key:   "runs.max_queued",
			usage: "Durable runs that wait, those for a later time included, 10 to 10000000; one more is refused with 503 and nothing is written. One caller can take at most half of what is free.",
			value: "100000",
			set:   func(c *Config, text string) error { return setInt(&c.MaxQueued, text, 10, 10_000_000) },
		},
		{
			key:   "runs.max_wait",
			usage: "Longest time that a caller can wait for a durable run with Prefer: wait=N, 1s to 5m. It is told what was applied.",
			value: "1m",
			set:   func(c *Config, text string) error { return setDuration(&c.MaxWait, text, time.Second, 5*time.Minute) },
		},
		{
			key:   "history.max_age",
			usage: "Runs accepted longer ago are deleted, such as 30d or 720h, up to 3650d; 0s keeps them. A run that an Idempotency-Key finds is kept for its 24 hours. The audit log is not touched.",
			value: "720h",
			set:   func(c *Config, text string) error { return setDuration(&c.Retention.MaxAge, text, 0, 87600*time.Hour) },
		},
		{
			key:   "history.max_runs",
			usage: "Runs of each workflow that are kept, the newest ones, 0 to 1000000000; 0 keeps them all.",
			value: "1000000",
			set:   func(c *Config, text string) error { return setInt(&c.Retention.MaxRuns, text, 0, 1_000_000_000) },
		},
		{
			key:   "history.max_payload",
			usage: "Largest input and output of a step that are kept once its run has ended, 1KiB to 1MiB; of a larger one its size and SHA-256 are kept. A run's own input and output are kept whole.",
			value: "256KiB",
			set:   func(c *Config, text string) error { return setSize(&c.MaxPayload, text, 1<<10, 1<<20) },
		},
		{
			key:   "callbacks.allow",
			usage: "Origins that callbacks may be sent to, such as https://hooks.example.com or https://*.example.com. Empty: none. Private addresses must also be in egress.allow.",
			list:  true,
			set:   func(c *Config, text string) error { return setOrigins(&c.CallbackAllow, text) },
		},
		{
			key:   "wasm.memory_budget",
			usage: "Memory that all executing nodes may hold together, 128MiB to 1TiB; an invocation waits for what it needs, at its start and when it grows. 1GiB is for some 180 Go nodes at once that wait for services. Where there is less than 4GiB, the default is a quarter of it.",
			value: shareOf(memoryRoom(), 4, 128<<20, 1<<30),
			set:   func(c *Config, text string) error { return setSize(&c.MemoryBudget, text, 128<<20, 1<<40) },
		},
		{
			key:   "wasm.module_memory",
			usage: "Memory for compiled modules, 16MiB to 1TiB. What does not fit is loaded again from the cache when it is called, in some tens of milliseconds; a Go module takes about 25 MiB, one of Rust or C about 1. Where there is less than 896MiB, the default is an eighth of it.",
			value: shareOf(memoryRoom(), 8, 16<<20, 112<<20),
			set:   func(c *Config, text string) error { return setSize(&c.ModuleMemory, text, 16<<20, 1<<40) },
		},
		wasmEngine(), wasmIsolation(), wasmReset(), wasmVerify(),
		{
			key:   "modules.trusted_keys",
			usage: "Public keys, as keyfire module keygen prints them, by which modules may be signed. A module that claims such a signature and was changed is refused whoever publishes it.",
			list:  true,
			set: func(c *Config, text string) (err error) {
				var list []string
				for part := range strings.SplitSeq(text, ",") {
					if part = strings.TrimSpace(part); part != "" {
						list = append(list, part)
					}
				}
				c.TrustedKeys, err = wasm.ParseTrustedKeys(list)
				return err
			},
		},
		{
			key:   "modules.require_signature",
			usage: "Accounts, by id (acct_...), that may only publish modules signed by one of modules.trusted_keys; * is every account. Empty: none.",
			list:  true,
			set: func(c *Config, text string) error {
				c.MustSign = nil
				for part := range strings.SplitSeq(text, ",") {
					if part = strings.TrimSpace(part); part == "" {
						continue
					}
					if part != "*" && !strings.HasPrefix(part, "acct_") {
						return fmt.Errorf("%q is no account; want ids such as acct_default, or *", part)
					}
					c.MustSign = append(c.MustSign, part)
				}
				return nil
			},
		},
		{
			key:   "engines.javascript",
			usage: "File of the engine that JavaScript nodes run on. Empty: the one that keyfire engine install put into the data directory.",
			set: func(c *Config, text string) (err error) {
				if text != "" {
					c.ScriptEngine, err = filepath.Abs(text)
				}
				return err
			},
		},
		{
			key:   "console",
			usage: "Pages for people at /settings/workflow-keys: true or false.",
			value: "true",
			set:   func(c *Config, text string) error { return setBool(&c.Console, text) },
		},
		{
			key:   "debug.listen",
			usage: "TCP address of the profiler (pprof), loopback only. Empty: off.",
			set: func(c *Config, text string) error {
				if text == "" {
					return nil
				}
				if err := setAddress(&c.DebugListen, text); err != nil {
					return err
				}
				host, _, _ := net.SplitHostPort(text)
				if ip, err := netip.ParseAddr(host); host != "localhost" && (err != nil || !ip.IsLoopback()) {
					return errors.New("must be a loopback address such as 127.0.0.1:6060: profiles show what the server is working on")
				}
				return nil
			},
		},
	}...)
}

func setAddress(dst *string, text string) error {
	_, port, err := net.SplitHostPort(text)
	if n, perr := strconv.ParseUint(port, 10, 16); err != nil || perr != nil || n > 65535 {
		return errors.New("want host:port, such as 127.0.0.1:8080 or :8080")
	}
	*dst = text
	return nil
}

func setPrefixes(dst *[]netip.Prefix, text string) error {
	for part := range strings.SplitSeq(text, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		prefix, err := netip.ParsePrefix(part)
		if err != nil {
			ip, err := netip.ParseAddr(part)
			if err != nil || ip.Zone() != "" {
				return fmt.Errorf("%q is neither an address nor a network; want for example 10.0.0.0/8", part)
			}
			prefix = netip.PrefixFrom(ip, ip.BitLen())
		}
		if prefix.Addr().Is4In6() { // addresses are compared as IPv4, so this would be nobody's
			if prefix.Bits() < 96 {
				return fmt.Errorf("%q holds more than IPv4; write IPv4 networks as such, for example 10.0.0.0/8", part)
			}
			prefix = netip.PrefixFrom(prefix.Addr().Unmap(), prefix.Bits()-96)
		}
		*dst = append(*dst, prefix.Masked())
	}
	return nil
}

// setOrigins reads origins as rules for POST requests to them.
func setOrigins(dst *[]wasm.HTTPRule, text string) error {
	for part := range strings.SplitSeq(text, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		if !strings.HasPrefix(part, "https://") && !strings.HasPrefix(part, "http://") {
			return fmt.Errorf("%q: want an origin such as https://hooks.example.com", part)
		}
		rule, err := wasm.ParseHTTPRule("POST " + part)
		if err != nil {
			return fmt.Errorf("%q: %w", part, err)
		}
		*dst = append(*dst, rule)
	}
	return nil
}

func setDuration(dst *time.Duration, text string, least, most time.Duration) error {
	d, err := core.ParseSpan(text)
	if err != nil || d < least || d > most {
		example := "30s or 1m30s"
		if most >= 48*time.Hour {
			example += ", or 30d"
		}
		return fmt.Errorf("want a duration with a unit, from %s to %s, such as %s", plain(least), plain(most), example)
	}
	*dst = d
	return nil
}

// plain writes a duration without the units that say nothing.
func plain(d time.Duration) string {
	text := d.String()
	for _, zero := range []string{"m0s", "h0m"} {
		if short, ok := strings.CutSuffix(text, zero); ok {
			text = short + zero[:1]
		}
	}
	return text
}

func setInt(dst *int, text string, least, most int) error {
	n, err := strconv.Atoi(text)
	if err != nil || n < least || n > most {
		return fmt.Errorf("want a whole number from %d to %d", least, most)
	}
	*dst = n
	return nil
}

func setSize(dst *int64, text string, least, most int64) error {
	n, err := parseSize(text)
	if err != nil || n < least || n > most {
		return fmt.Errorf("want a size from %s to %s, such as 1MiB", formatSize(least), formatSize(most))
	}
	*dst = n
	return nil
}

// sizeUnits are the units a size is written in, largest first.
var sizeUnits = []struct {
	name  string
	bytes int64
}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"B", 1}}

// parseSize reads "64MiB", "512KiB", "100B" or a bare number of bytes.
func parseSize(text string) (int64, error) {
	number, factor := text, int64(1)
	for _, u := range sizeUnits {
		if rest, ok := strings.CutSuffix(text, u.name); ok {
			number, factor = rest, u.bytes
			break
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n < 0 || n > (1<<62)/factor {
		return 0, fmt.Errorf("%q is not a size", text)
	}
	return n * factor, nil
}

// formatSize writes n in the largest unit that divides it.
func formatSize(n int64) string {
	for _, u := range sizeUnits {
		if n >= u.bytes && n%u.bytes == 0 {
			return strconv.FormatInt(n/u.bytes, 10) + u.name
		}
	}
	return strconv.FormatInt(n, 10) + "B"
}

// adapter is a product whose clients can be answered.
type adapter struct {
	key, product, endpoint string
	on                     func(*Config) *bool
}

func adapters() []adapter {
	return []adapter{
		{"compat.keyflow", "Keyflow", "POST /api/trigger", func(c *Config) *bool { return &c.Compat.Keyflow }},
		{"compat.miiflow", "miiflow", "POST /api/v1/agent_run", func(c *Config) *bool { return &c.Compat.Miiflow }},
		{"compat.langflow", "Langflow", "POST /api/v1/process, /api/v1/run and /api/v1/webhook, GET /api/v1/task", func(c *Config) *bool { return &c.Compat.Langflow }},
		{"compat.bifrost", "Bifrost", "POST /api/endpoints, GET, POST and DELETE /api/workflow-keys", func(c *Config) *bool { return &c.Compat.Bifrost }},
	}
}

func compatSettings() []setting {
	var all []setting
	for _, a := range adapters() {
		all = append(all, setting{
			key: a.key, usage: "Answer clients of " + a.product + " at " + a.endpoint + ": true or false.", value: "true",
			set: func(c *Config, text string) error { return setBool(a.on(c), text) },
		})
	}
	return all
}

func setBool(dst *bool, text string) error {
	on, err := strconv.ParseBool(text)
	if err != nil {
		return errors.New("want true or false")
	}
	*dst = on
	return nil
}
