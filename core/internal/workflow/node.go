package workflow

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/keyfire/keyfire/core"
)

// Limits that a node may set for its invocations. The largest memory and output are also the server's default: a file only lowers them.
const (
	MinMemory    = 1 << 20   // bytes
	MaxMemory    = 64 << 20  // bytes
	MaxOutput    = 1 << 20   // bytes
	MaxHostCalls = 1_000_000 // the default is 10,000
	MaxHTTPRules = 50        // of one node
	MaxSecrets   = 20        // of one node

	maxAttempts = 20
)

func (d *decoder) nodes(v *value, pointer string) []core.Node {
	items := d.list(v, pointer, core.MaxNodes)
	if v.kind == list && len(items) == 0 {
		d.report(pointer, v.at, "a workflow has at least one node")
	}
	nodes := make([]core.Node, 0, len(items))
	lines := make(map[string]int, len(items))
	for i, item := range items {
		p := fmt.Sprintf("%s/%d", pointer, i)
		n := d.node(item, p)
		if first, taken := lines[n.ID]; taken && n.ID != "" {
			d.report(p+"/id", item.member("id").value.at, fmt.Sprintf("the node in line %d is called %s already", first, n.ID))
		} else {
			lines[n.ID] = item.at.line
		}
		nodes = append(nodes, n)
	}
	return nodes
}

func (d *decoder) node(v *value, pointer string) core.Node {
	n := core.Node{Needs: []string{}}
	d.object(v, pointer, fields{
		what:     "a node",
		required: []string{"id", "uses"},
		later:    []string{"for_each", "max_parallel", "on_error", "join"},
		read: map[string]reader{
			"id": func(v *value, p string) {
				if n.ID = d.text(v, p); v.kind == text && !core.ValidNodeID(n.ID) {
					d.report(p, v.at, "an id begins with a lower-case letter and has lower-case letters, digits, - and _, at most 63")
				}
			},
			"uses":         func(v *value, p string) { n.Uses = d.uses(v, p) },
			"call":         func(v *value, p string) { n.Call = d.call(v, p) },
			"needs":        func(v *value, p string) { n.Needs = d.needs(v, p) },
			"if":           func(v *value, p string) { n.If = d.condition(v, p) },
			"with":         func(v *value, p string) { n.With = d.template(v, p) },
			"config":       func(v *value, p string) { n.Config = d.config(v, p) },
			"grants":       func(v *value, p string) { n.Grants = d.grants(v, p) },
			"limits":       func(v *value, p string) { n.Limits = d.limits(v, p) },
			"retry":        func(v *value, p string) { n.Retry = d.retry(v, p) },
			"engine":       func(v *value, p string) { n.Engine = d.engine(v, p) },
			"record":       func(v *value, p string) { n.Record = d.record(v, p) },
			"at_most_once": func(v *value, p string) { n.AtMostOnce = d.boolean(v, p) },
		},
	})
	if n.AtMostOnce && n.Retry != nil {
		d.report(pointer+"/at_most_once", v.member("at_most_once").at, "at_most_once and retry contradict each other; keep one")
	}
	if with := v.member("with"); n.Config != nil && with != nil {
		// The node reads its config as the member "config" of its input, so there must be room for it.
		switch taken := with.value.member("config"); {
		case with.value.kind != object:
			d.report(pointer+"/with", with.value.at, "must be an object, because the node's config becomes its member \"config\"")
		case taken != nil:
			d.report(pointer+"/with/config", taken.at, "the node's config takes this name; use another one, or leave out the node's config")
		}
	}
	return n
}

// engine reads how invocations begin.
func (d *decoder) engine(v *value, pointer string) string {
	s := d.text(v, pointer)
	if v.kind == text && s != core.EngineSnapshot && s != core.EnginePlain {
		d.report(pointer, v.at, `engine is "snapshot", or "plain" to start the module for each invocation`)
	}
	return s
}

// record reads of which attempts a tape is kept.
func (d *decoder) record(v *value, pointer string) string {
	s := d.text(v, pointer)
	if v.kind == text && s != core.RecordFailures && s != core.RecordAll {
		d.report(pointer, v.at, `record is "failures" to keep a tape of each attempt that does not succeed, or "all"; leave it out to keep none`)
	}
	return s
}

// uses reads where a node's module comes from.
func (d *decoder) uses(v *value, pointer string) string {
	s := d.text(v, pointer)
	switch {
	case v.kind != text, core.ValidDigest(s):
	case strings.HasPrefix(s, "workflow:"), strings.HasPrefix(s, "oci://"):
		scheme, _, _ := strings.Cut(s, ":")
		d.report(pointer, v.at, fmt.Sprintf("%s: in uses is not supported yet", scheme))
	case strings.HasPrefix(s, "sha256:"):
		d.report(pointer, v.at, "a digest is sha256: followed by 64 lower-case hexadecimal digits")
	case !strings.HasPrefix(s, "./") && !strings.HasPrefix(s, "../"), path.Clean(s) != strings.TrimPrefix(s, "./"), strings.ContainsAny(s, "\\\n\x00"), len(s) > 512:
		d.report(pointer, v.at, "names a module by its file, as ./nodes/name.wasm relative to this file, or by its digest, as sha256:<digest>")
	}
	return s
}

// call reads the name of the function to call in an Extism plugin. Whether there is one is for the module to tell.
func (d *decoder) call(v *value, pointer string) string {
	s := d.bounded(v, pointer, 200)
	if v.kind == text && (s == "" || strings.ContainsFunc(s, func(c rune) bool { return !unicode.IsPrint(c) })) {
		d.report(pointer, v.at, "names an exported function of the module")
	}
	return s
}

func (d *decoder) needs(v *value, pointer string) []string {
	needs := []string{}
	for i, item := range d.list(v, pointer, core.MaxNodes) {
		p := fmt.Sprintf("%s/%d", pointer, i)
		id := d.text(item, p)
		if slices.Contains(needs, id) {
			d.report(p, item.at, "listed twice; keep one")
			continue
		}
		needs = append(needs, id)
	}
	return needs
}

func (d *decoder) condition(v *value, pointer string) string {
	if v.kind != text {
		d.report(pointer, v.at, fmt.Sprintf("must be an expression, such as ${{ input.amount > 0 }}, not %s", v.kind))
		return ""
	}
	if v.text == "" {
		d.report(pointer, v.at, "must be an expression, such as ${{ input.amount > 0 }}; leave the field out to run always")
	}
	return v.text
}

func (d *decoder) config(v *value, pointer string) map[string]json.RawMessage {
	if v.kind != object {
		d.report(pointer, v.at, fmt.Sprintf("must be an object, not %s", v.kind))
		return nil
	}
	config := make(map[string]json.RawMessage, len(v.members))
	for _, m := range v.members {
		config[m.name] = m.value.json()
	}
	return config
}

func (d *decoder) limits(v *value, pointer string) core.Limits {
	var l core.Limits
	d.object(v, pointer, fields{what: "limits", read: map[string]reader{
		"timeout": func(v *value, p string) { l.Timeout = d.duration(v, p) },
		"memory":  func(v *value, p string) { l.Memory = d.size(v, p, MinMemory, MaxMemory) },
		"output":  func(v *value, p string) { l.Output = d.size(v, p, 1, MaxOutput) },
		"host_calls": func(v *value, p string) {
			n, err := strconv.Atoi(v.text)
			if v.kind != number || err != nil || n < 1 || n > MaxHostCalls {
				d.report(p, v.at, fmt.Sprintf("must be a whole number between 1 and %d", MaxHostCalls))
			}
			l.HostCalls = int64(n)
		},
	}})
	return l
}

// grants reads what the node may do. How an HTTP rule is written is the runtime's to judge, when the definition is checked.
func (d *decoder) grants(v *value, pointer string) core.Grants {
	var g core.Grants
	d.object(v, pointer, fields{what: "grants", read: map[string]reader{
		"http": func(v *value, p string) {
			for i, item := range d.list(v, p, MaxHTTPRules) {
				at := fmt.Sprintf("%s/%d", p, i)
				rule := d.text(item, at)
				if item.kind == text && slices.Contains(g.HTTP, rule) {
					d.report(at, item.at, "listed twice; keep one")
				}
				g.HTTP = append(g.HTTP, rule)
			}
		},
		"secrets": func(v *value, p string) {
			for i, item := range d.list(v, p, MaxSecrets) {
				at := fmt.Sprintf("%s/%d", p, i)
				name := d.text(item, at)
				switch {
				case item.kind != text:
				case !core.ValidSecretName(name):
					d.report(at, item.at, "names a secret: an upper-case letter, then upper-case letters, digits and underscores, at most 64")
				case slices.Contains(g.Secrets, name):
					d.report(at, item.at, "listed twice; keep one")
				}
				g.Secrets = append(g.Secrets, name)
			}
		},
		"kv": func(v *value, p string) {
			if g.KV = d.text(v, p); v.kind == text && g.KV != core.KVRead && g.KV != core.KVWrite {
				d.report(p, v.at, `kv is "read", or "write" which includes reading`)
			}
		},
	}})
	return g
}

var sizePattern = regexp.MustCompile(`^([0-9]{1,12}) ?(B|kB|KB|MB|GB|KiB|MiB|GiB)$`)

var sizeUnits = map[string]int64{
	"B": 1, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30,
}

// size reads a number of bytes between least and most. It needs a unit for the same reason as a duration.
func (d *decoder) size(v *value, pointer string, least, most int64) int64 {
	if v.kind != text {
		d.report(pointer, v.at, fmt.Sprintf(`must be a size with its unit, such as "512KiB" or "64MiB", not %s`, v.kind))
		return 0
	}
	m := sizePattern.FindStringSubmatch(v.text)
	if m == nil {
		d.report(pointer, v.at, `not a size; write for example "512KiB" or "64MiB"`)
		return 0
	}
	n, _ := strconv.ParseInt(m[1], 10, 64) // at most 12 digits, which times 1 GiB fits 63 bits
	n *= sizeUnits[m[2]]
	if n < least || n > most {
		d.report(pointer, v.at, fmt.Sprintf("must be between %s and %s", sizeText(least), sizeText(most)))
	}
	return n
}

func sizeText(n int64) string {
	if n%(1<<20) == 0 {
		return fmt.Sprintf("%dMiB", n>>20)
	}
	return fmt.Sprintf("%dB", n)
}

func (d *decoder) retry(v *value, pointer string) *core.Retry {
	r := &core.Retry{
		MaxAttempts: 3,
		Initial:     core.Duration(200e6),
		Max:         core.Duration(5e9),
		Backoff:     "exponential",
		Jitter:      true,
		On:          []core.ErrorClass{core.ClassTimeout, core.ClassUnavailable},
	}
	d.object(v, pointer, fields{what: "retry", read: map[string]reader{
		"max_attempts": func(v *value, p string) {
			n, err := strconv.Atoi(v.text)
			if v.kind != number || err != nil || n < 1 || n > maxAttempts {
				d.report(p, v.at, fmt.Sprintf("must be a whole number between 1 and %d; it counts the first attempt too", maxAttempts))
			}
			r.MaxAttempts = n
		},
		"initial": func(v *value, p string) { r.Initial = d.duration(v, p) },
		"max":     func(v *value, p string) { r.Max = d.duration(v, p) },
		"backoff": func(v *value, p string) {
			if r.Backoff = d.text(v, p); v.kind == text && r.Backoff != "constant" && r.Backoff != "exponential" {
				d.report(p, v.at, `must be "constant" or "exponential"`)
			}
		},
		"jitter": func(v *value, p string) { r.Jitter = d.boolean(v, p) },
		"on":     func(v *value, p string) { r.On = d.classes(v, p) },
	}})
	if v.member("max") == nil {
		r.Max = max(r.Max, r.Initial)
	} else if r.Max < r.Initial && r.Max > 0 {
		d.report(pointer+"/max", v.member("max").value.at, fmt.Sprintf("must be at least initial, which is %s", r.Initial))
	}
	return r
}

func (d *decoder) classes(v *value, pointer string) []core.ErrorClass {
	known := make([]string, 0, len(core.ErrorClasses()))
	for _, c := range core.ErrorClasses() {
		known = append(known, string(c))
	}
	classes := []core.ErrorClass{}
	for i, item := range d.list(v, pointer, len(known)) {
		p := fmt.Sprintf("%s/%d", pointer, i)
		class := core.ErrorClass(d.text(item, p))
		switch {
		case item.kind != text:
		case !slices.Contains(known, string(class)):
			d.report(p, item.at, "must be one of "+strings.Join(known, ", "))
		case slices.Contains(classes, class):
			d.report(p, item.at, "listed twice; keep one")
		}
		classes = append(classes, class)
	}
	if v.kind == list && len(v.items) == 0 {
		d.report(pointer, v.at, "names no failure, so nothing would be retried; leave retry out instead")
	}
	return classes
}

func nodeIDs(nodes []core.Node) []string {
	ids := make([]string, 0, len(nodes))
	for _, n := range nodes {
		ids = append(ids, n.ID)
	}
	return ids
}

// OriginForm says what ValidOrigin takes.
const OriginForm = "must be what browsers send: scheme and host in lower case, such as https://app.example.com, without a path, a wildcard or the scheme's own port"

// ValidOrigin reports whether s is the origin of a web page exactly as a browser sends it, as it is compared byte by byte: scheme and host in lower case, such as
// https://app.example.com, and a port that is not the scheme's own.
func ValidOrigin(s string) bool {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Scheme+"://"+u.Host != s {
		return false
	}
	host, port := u.Hostname(), u.Port()
	if port == "" && strings.HasSuffix(u.Host, ":") || port == map[string]string{"http": "80", "https": "443"}[u.Scheme] {
		return false
	}
	if n, err := strconv.ParseUint(port, 10, 16); port != "" && (err != nil || n == 0 || strconv.FormatUint(n, 10) != port) {
		return false
	}
	if strings.HasPrefix(u.Host, "[") {
		a, err := netip.ParseAddr(host)
		return err == nil && a.Zone() == "" && a.String() == host
	}
	return host != "" && strings.Trim(host, "abcdefghijklmnopqrstuvwxyz0123456789-._") == ""
}
