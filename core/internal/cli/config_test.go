package cli

import (
	"bytes"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/quick"
	"time"
)

// run executes one command in this process.
func run(t *testing.T, environ []string, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	var out, errs bytes.Buffer
	status = Main(t.Context(), Env{Args: args, Environ: environ, Stdin: strings.NewReader(""), Stdout: &out, Stderr: &errs, Version: "test"})
	return out.String(), errs.String(), status
}

func writeFile(t testing.TB, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestConfigPrecedence(t *testing.T) {
	t.Parallel()
	file := writeFile(t, "keyfire.yaml", "listen: 127.0.0.1:1\nlog: {level: warn, format: json}\ntrusted_proxies: [10.0.0.0/8, '::ffff:192.0.2.7']\n")
	cmd := (&app{Env: Env{Environ: nil}}).root()
	check, _, err := cmd.Find([]string{"config", "check"})
	if err != nil {
		t.Fatal(err)
	}
	if err := check.ParseFlags([]string{"--config", file, "--listen", "127.0.0.1:3", "--data", "/srv/k"}); err != nil {
		t.Fatal(err)
	}
	cfg, all, err := loadConfig([]string{"KEYFIRE_LISTEN=127.0.0.1:2", "KEYFIRE_LOG_LEVEL=error", "KEYFIRE_SHUTDOWN_GRACE=1m", "PATH=/bin"}, check.Flags())
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Listen != "127.0.0.1:3" || cfg.LogLevel.String() != "ERROR" || cfg.LogFormat != "json" || cfg.ShutdownGrace != time.Minute ||
		cfg.Data != "/srv/k" || cfg.Body != 1<<20 || len(cfg.TrustedProxies) != 2 || cfg.TrustedProxies[1].String() != "192.0.2.7/32" {
		t.Errorf("config = %+v", cfg)
	}
	sources := map[string]string{}
	for _, e := range all {
		sources[e.key] = e.source
	}
	for key, want := range map[string]string{
		"listen": "flag --listen", "log.level": "env KEYFIRE_LOG_LEVEL", "log.format": "file " + file, "limits.body": "default",
	} {
		if sources[key] != want {
			t.Errorf("source of %s = %q, want %q", key, sources[key], want)
		}
	}
}

func TestConfigErrors(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name    string
		file    string
		environ []string
		flags   []string
		want    []string // all of these are told
	}{
		{"unknown key in the file", "lisetn: 127.0.0.1:1\n", nil, nil, []string{`unknown key "lisetn"; did you mean listen?`, "keyfire.yaml"}},
		{"unknown nested key", "log: {levle: debug}\n", nil, nil, []string{`unknown key "log.levle"; did you mean log.level?`}}, //nolint:misspell // the mistake that is suggested a correction for
		{"unknown key like nothing", "frobnicate: 1\n", nil, nil, []string{`unknown key "frobnicate"`}},
		{"unknown variable", "", []string{"KEYFIRE_LISTENN=:1"}, nil, []string{"env KEYFIRE_LISTENN: unknown variable; did you mean KEYFIRE_LISTEN?"}},
		{"not YAML", "listen: [\n", nil, nil, []string{"keyfire.yaml", "line 1"}},
		{"key twice", "listen: :1\nlisten: :2\n", nil, nil, []string{"already defined"}},
		{"key twice, in two spellings", "log.level: debug\nlog:\n  level: info\n", nil, nil, []string{"log.level stands there twice"}},
		{"several documents", "listen: :1\n---\nlisten: :2\n", nil, nil, []string{"several documents"}},
		{"value where a group belongs", "runs: 5\n", nil, nil, []string{"runs is a group of keys; want them below it, such as runs.max_concurrent"}},
		{"no file", "", nil, []string{"--config", ""}, []string{"flag --config: names no file"}},
		{"level between two", "", nil, []string{"--log-level", "warn+3"}, []string{"want debug, info, warn or error"}},
		{"group where a value belongs", "listen: {host: a}\n", nil, nil, []string{"listen: is a group of keys"}},
		{"empty value", "listen:\n", nil, nil, []string{"listen: has no value"}},
		{"address", "", []string{"KEYFIRE_LISTEN=8080"}, nil, []string{"env KEYFIRE_LISTEN: listen: want host:port"}},
		{"port", "", nil, []string{"--listen", "127.0.0.1:65536"}, []string{"flag --listen: listen: want host:port"}},
		{"size", "limits: {body: 11MiB}\n", nil, nil, []string{"limits.body: want a size from 1KiB to 10MiB"}},
		{"duration without unit", "shutdown: {grace: 30}\n", nil, nil, []string{"shutdown.grace: want a duration with a unit"}},
		{"too long", "", nil, []string{"--runs-max-wait", "1h"}, []string{"runs.max_wait: want a duration with a unit, from 1s to 5m, such as 30s or 1m30s"}},
		{"too many days", "history: {max_age: 3651d}\n", nil, nil, []string{"history.max_age: want a duration with a unit, from 0s to 87600h, such as 30s or 1m30s, or 30d"}},
		{"half a day", "history: {max_age: 1.5d}\n", nil, nil, []string{"history.max_age: want a duration"}},
		{"days before today", "history: {max_age: -1d}\n", nil, nil, []string{"history.max_age: want a duration"}},
		{"callbacks to a name", "", nil, []string{"--callbacks-allow", "hooks.example.com"}, []string{`"hooks.example.com": want an origin such as https://hooks.example.com`}},
		{"parameters for NATS", "store: postgres://db/keyfire\nqueue: nats://mq:4222,tls://mq2?tls_ca=hidden\n", nil, nil, []string{"queue: want an address such as nats://mq.example.com:4222, which has no parameters"}},
		{"credentials for nothing", "", nil, []string{"--queue-credentials", "user.creds"}, []string{"queue_credentials is set and queue is not"}},
		{"number", "", nil, []string{"--runs-max-concurrent", "0"}, []string{"want a whole number from 1 to 10000"}},
		{"proxy", "", []string{"KEYFIRE_TRUSTED_PROXIES=10.0.0.0/8,proxy"}, nil, []string{`"proxy" is neither an address nor a network`}},
		{"proxy with a zone", "trusted_proxies: ['fe80::1%eth0/64']\n", nil, nil, []string{`"fe80::1%eth0/64" is neither an address nor a network`}},
		{"proxies of more than IPv4", "trusted_proxies: ['::ffff:0.0.0.0/90']\n", nil, nil, []string{"holds more than IPv4"}},
		{"public profiler", "", nil, []string{"--debug-listen", ":6060"}, []string{"debug.listen: must be a loopback address"}},
		{"no home", "", []string{"HOME="}, nil, []string{"data: must name a directory"}},
		{"all at once", "log: {format: xml}\n", []string{"KEYFIRE_LOG_LEVEL=loud"}, []string{"--listen", "x"}, []string{"log.format", "log.level", "listen"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			environ := append([]string{"HOME=/home/k"}, tc.environ...)
			args := append([]string{"config", "check"}, tc.flags...)
			if tc.file != "" {
				args = append(args, "--config", writeFile(t, "keyfire.yaml", tc.file))
			}
			_, stderr, status := run(t, environ, args...)
			if status != exitUsage {
				t.Errorf("exit status %d, want %d", status, exitUsage)
			}
			for _, want := range tc.want {
				if !strings.Contains(stderr, want) {
					t.Errorf("stderr lacks %q:\n%s", want, stderr)
				}
			}
		})
	}
}

// A file may leave groups empty, and begin and end as YAML lets it; a list grows with each of its flags.
func TestConfigForms(t *testing.T) {
	t.Parallel()
	file := writeFile(t, "keyfire.yaml", "\ufeff%YAML 1.1\r\n# of mine\r\n---\r\nruns:\r\n  # workers: 3\r\nlimits: {}\r\nlog.level: warn\r\n...\r\n# the end\r\n")
	out, stderr, status := run(t, []string{"HOME=/home/k"}, "config", "print", "--config", file, "--trusted-proxies", "10.0.0.1,10.0.0.2", "--trusted-proxies", "10.0.0.3")
	if status != exitOK {
		t.Fatalf("exit status %d: %s", status, stderr)
	}
	for _, want := range []string{`trusted_proxies: ["10.0.0.1", "10.0.0.2", "10.0.0.3"]`, `level: "warn"`} {
		if !strings.Contains(out, want) {
			t.Errorf("the configuration lacks %s", want)
		}
	}
}

// What `config print` writes is a config file that means the same.
func TestConfigPrintIsAConfigFile(t *testing.T) {
	t.Parallel()
	environ := []string{"HOME=/home/k"}
	out, _, status := run(t, environ, "config", "print", "--listen", "127.0.0.1:9", "--trusted-proxies", "10.0.0.0/8, ::1", "--limits-body", "2MiB")
	if status != exitOK {
		t.Fatalf("exit status %d", status)
	}
	again, stderr, status := run(t, environ, "config", "print", "--config", writeFile(t, "keyfire.yaml", out))
	if status != exitOK {
		t.Fatalf("the printed file is refused: %s", stderr)
	}
	values := func(text string) (lines []string) {
		for line := range strings.Lines(text) {
			if !strings.HasPrefix(strings.TrimSpace(line), "#") {
				lines = append(lines, line)
			}
		}
		return lines
	}
	if a, b := strings.Join(values(out), ""), strings.Join(values(again), ""); strings.ReplaceAll(a, `", "`, `","`) != strings.ReplaceAll(b, `", "`, `","`) {
		t.Errorf("printed and read back:\n%s\nwant\n%s", b, a)
	}
}

func TestSettingsTable(t *testing.T) {
	t.Parallel()
	names := map[string]string{}
	for _, s := range settings([]string{"HOME=/home/k"}) {
		for _, name := range []string{s.flag(), s.variable()} {
			if other, taken := names[name]; taken {
				t.Errorf("%s and %s are both called %s", s.key, other, name)
			}
			names[name] = s.key
		}
		if s.usage == "" || !strings.HasSuffix(s.usage, ".") {
			t.Errorf("%s: usage %q is not a sentence", s.key, s.usage)
		}
		if err := s.set(new(Config), s.value); err != nil {
			t.Errorf("%s: its default %q is refused: %v", s.key, s.value, err)
		}
	}
}

func TestSizes(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int64{"0": 0, "100": 100, "100B": 100, "1KiB": 1024, "64MiB": 64 << 20, "1TiB": 1 << 40} {
		if got, err := parseSize(text); err != nil || got != want {
			t.Errorf("parseSize(%q) = %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "MiB", "-1", "1.5MiB", "1MB", "1 MiB", "9999999999TiB"} {
		if got, err := parseSize(text); err == nil {
			t.Errorf("parseSize(%q) = %d, want an error", text, got)
		}
	}
	same := func(n uint32) bool {
		got, err := parseSize(formatSize(int64(n)))
		return err == nil && got == int64(n)
	}
	if err := quick.Check(same, nil); err != nil {
		t.Error(err)
	}
}

func TestUsage(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"nonsense"}, {"config", "chekc"}, {"config", "print", "extra"}, {"version", "--bogus"}, {"completion", "tcsh"}} {
		stdout, stderr, status := run(t, nil, args...)
		if status != exitUsage || stdout != "" || !strings.HasPrefix(stderr, "keyfire: ") {
			t.Errorf("keyfire %s: status %d, stdout %q, stderr %q", strings.Join(args, " "), status, stdout, stderr)
		}
	}
	if stdout, _, status := run(t, nil, "version"); status != exitOK || !strings.HasPrefix(stdout, "keyfire test go1.") {
		t.Errorf("version: status %d, %q", status, stdout)
	}
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if stdout, _, status := run(t, nil, "completion", shell); status != exitOK || !strings.Contains(stdout, "keyfire") {
			t.Errorf("completion %s: status %d, %d bytes", shell, status, len(stdout))
		}
	}
}

// A setting takes days as keys do.
func TestDurationInDays(t *testing.T) {
	t.Parallel()
	var d time.Duration
	if err := setDuration(&d, "90d", 0, 87600*time.Hour); err != nil || d != 90*24*time.Hour {
		t.Errorf("90d is %s, %v", d, err)
	}
}

// TestMemoryDefaults: on a small machine, or in a small container, what fills memory takes a part of it by default.
func TestMemoryDefaults(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		room            int64
		budget, modules string
	}{
		{64 << 20, "128MiB", "16MiB"},
		{512 << 20, "128MiB", "64MiB"},
		{1<<30 + 12345, "256MiB", "112MiB"},
		{3 << 30, "768MiB", "112MiB"},
		{24 << 30, "1GiB", "112MiB"},
		{math.MaxInt64, "1GiB", "112MiB"},
	} {
		if budget, modules := shareOf(tc.room, 4, 128<<20, 1<<30), shareOf(tc.room, 8, 16<<20, 112<<20); budget != tc.budget || modules != tc.modules {
			t.Errorf("with %s: %s for nodes and %s for modules, want %s and %s", formatSize(tc.room), budget, modules, tc.budget, tc.modules)
		}
	}
	if room := memoryRoom(); room < 64<<20 {
		t.Errorf("there are %d bytes of memory here", room)
	}
}
