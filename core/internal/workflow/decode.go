package workflow

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/keyfire/keyfire/core"
)

// decoder turns the tree of a file into a definition and reports what does not fit.
type decoder struct{ *source }

// reader takes the value of one field. The pointer is the value's.
type reader func(v *value, pointer string)

// fields is what an object may hold.
type fields struct {
	what     string            // for messages: "a workflow"
	read     map[string]reader // by name
	required []string
	later    []string // documented, not supported yet
}

// object reads v field by field and refuses what is not known.
func (d *decoder) object(v *value, pointer string, f fields) {
	if v.kind != object {
		d.report(pointer, v.at, fmt.Sprintf("%s must be an object, not %s", f.what, v.kind))
		return
	}
	for _, m := range v.members {
		at := pointer + "/" + core.EscapePointer(m.name)
		read, known := f.read[m.name]
		switch {
		case known:
			read(m.value, at)
		case slices.Contains(f.later, m.name):
			d.report(at, m.at, m.name+" is not supported yet")
		default:
			d.report(at, m.at, f.unknown(m.name))
		}
	}
	for _, name := range f.required {
		if v.member(name) == nil {
			d.report(pointer+"/"+name, v.at, name+" is required")
		}
	}
}

func (f fields) unknown(name string) string {
	names := append([]string(nil), f.later...)
	for n := range f.read {
		names = append(names, n)
	}
	slices.Sort(names)
	if near := core.Nearest(name, names); near != "" {
		return fmt.Sprintf("%s has no field %q; did you mean %q?", f.what, shorten(name), near)
	}
	return fmt.Sprintf("%s has no field %q; it has %s", f.what, shorten(name), strings.Join(names, ", "))
}

func (d *decoder) workflow(root *value) core.Definition {
	def := core.Definition{Trigger: core.TriggerSpec{GlobalKeys: true, Timeout: core.Duration(core.DefaultRunLimit)}}
	var overrides []*value
	d.object(root, "#", fields{
		what:     "a workflow",
		required: []string{"keyfire", "name", "nodes"},
		later:    []string{"respond"},
		read: map[string]reader{
			"keyfire": func(v *value, p string) {
				if def.Keyfire = d.text(v, p); v.kind == text && def.Keyfire != "v1" {
					d.report(p, v.at, "the format this server reads is v1")
				}
			},
			"name": func(v *value, p string) {
				if def.Name = d.text(v, p); v.kind == text && !core.ValidSlug(def.Name) {
					d.report(p, v.at, "a name has lower-case letters, digits and inner hyphens, at most 64, in up to 4 parts separated by /")
				}
			},
			"title":   func(v *value, p string) { def.Title = d.bounded(v, p, 200) },
			"aliases": func(v *value, p string) { def.Aliases = d.aliases(v, p) },
			"trigger": func(v *value, p string) { overrides = d.trigger(v, p, &def.Trigger) },
			"input":   func(v *value, p string) { def.Input = d.schema(v, p) },
			"engine":  func(v *value, p string) { def.Engine = d.engine(v, p) },
			"nodes":   func(v *value, p string) { def.Nodes = d.nodes(v, p) },
			"output":  func(v *value, p string) { def.Output = d.template(v, p) },
		},
	})
	d.overrides(overrides, &def)
	d.scheduleInputs(root, &def)
	return def
}

// trigger returns the entries of overrides, which can only be judged once the nodes are known.
func (d *decoder) trigger(v *value, pointer string, spec *core.TriggerSpec) (overrides []*value) {
	d.object(v, pointer, fields{
		what: "trigger",
		read: map[string]reader{
			"enabled":     func(v *value, p string) { spec.Enabled = d.boolean(v, p) },
			"public":      func(v *value, p string) { spec.Public = d.boolean(v, p) },
			"global_keys": func(v *value, p string) { spec.GlobalKeys = d.boolean(v, p) },
			"timeout":     func(v *value, p string) { spec.Timeout = d.duration(v, p) },
			"mode": func(v *value, p string) {
				switch mode := d.text(v, p); {
				case v.kind != text || mode == "sync": // what is not text was reported
				case mode == core.ModeAsync:
					spec.Mode = core.ModeAsync
				default:
					d.report(p, v.at, `mode is "sync", in which the caller waits for the result, or "async", in which the run is queued`)
				}
			},
			"concurrency":     func(v *value, p string) { spec.Concurrency = d.concurrency(v, p) },
			"schedule":        func(v *value, p string) { spec.Schedule = d.schedules(v, p) },
			"allowed_origins": func(v *value, p string) { spec.AllowedOrigins = d.origins(v, p) },
			"webhook":         func(v *value, p string) { spec.Webhook = d.webhook(v, p) },
			"overrides": func(v *value, p string) {
				overrides = d.list(v, p, 100)
				for i, item := range overrides {
					spec.Overrides = append(spec.Overrides, d.text(item, fmt.Sprintf("%s/%d", p, i)))
				}
			},
		},
	})
	return overrides
}

const (
	maxConcurrency = 10_000
	maxSchedules   = 20
)

func (d *decoder) concurrency(v *value, pointer string) *core.Concurrency {
	c := &core.Concurrency{WhenFull: core.WhenFullQueue}
	d.object(v, pointer, fields{what: "concurrency", required: []string{"limit"}, read: map[string]reader{
		"limit": func(v *value, p string) {
			n, err := strconv.Atoi(v.text)
			if v.kind != number || err != nil || n < 1 || n > maxConcurrency {
				d.report(p, v.at, fmt.Sprintf("must be a whole number between 1 and %d", maxConcurrency))
			}
			c.Limit = n
		},
		"when_full": func(v *value, p string) {
			c.WhenFull = d.text(v, p)
			if v.kind == text && c.WhenFull != core.WhenFullQueue && c.WhenFull != core.WhenFullReject && c.WhenFull != core.WhenFullReplace {
				d.report(p, v.at, `when_full is "queue", which makes a run wait, "reject", which refuses it, or "replace", which cancels the oldest one for it`)
			}
		},
	}})
	return c
}

func (d *decoder) schedules(v *value, pointer string) []core.Schedule {
	var all []core.Schedule
	for i, item := range d.list(v, pointer, maxSchedules) {
		p := fmt.Sprintf("%s/%d", pointer, i)
		var s core.Schedule
		d.object(item, p, fields{what: "a schedule", required: []string{"cron"}, read: map[string]reader{
			"cron": func(v *value, p string) { s.Cron = d.bounded(v, p, 200) },
			"timezone": func(v *value, p string) {
				if s.Timezone = d.bounded(v, p, 64); v.kind == text && s.Timezone == "" {
					d.report(p, v.at, "name a time zone of the tz database, such as Europe/Paris; leave the field out for UTC")
				}
			},
			"input": func(v *value, p string) {
				s.Input = d.template(v, p)
				d.constant(v, p)
			},
			"missed": func(v *value, p string) {
				switch s.Missed = d.text(v, p); {
				case v.kind != text, s.Missed == core.MissedSkip:
				case s.Missed == "latest":
					s.Missed = ""
				default:
					d.report(p, v.at, `missed is "latest", which runs the latest of the times missed while no server ran, or "skip"`)
				}
			},
		}})
		if cron := item.member("cron"); cron != nil && cron.value.kind == text {
			if _, err := ParseSchedule(&s); err != nil {
				field, at := "cron", cron.value.at
				if zone := item.member("timezone"); zone != nil && strings.Contains(err.Error(), "tz database") {
					field, at = "timezone", zone.value.at
				}
				d.report(p+"/"+field, at, err.Error())
			}
		}
		all = append(all, s)
	}
	return all
}

// constant refuses an expression in what no request fills in: it would reach the nodes as the text that it is.
func (d *decoder) constant(v *value, pointer string) {
	if v.kind == text && strings.Contains(v.text, "${{") {
		d.report(pointer, v.at, "the input of a schedule is constant, since nobody sends one; put expressions into the nodes")
	}
	for i, item := range v.items {
		d.constant(item, fmt.Sprintf("%s/%d", pointer, i))
	}
	for _, m := range v.members {
		d.constant(m.value, pointer+"/"+core.EscapePointer(m.name))
	}
}

// scheduleInputs checks that what schedules send fits the schema of the input.
func (d *decoder) scheduleInputs(v *value, def *core.Definition) {
	if len(def.Input) == 0 || len(def.Trigger.Schedule) == 0 {
		return
	}
	schema, err := CompileSchema(def.Input)
	if err != nil {
		return // reported where it was read
	}
	for i := range def.Trigger.Schedule {
		input := def.Trigger.Schedule[i].Input
		if len(input) == 0 {
			input = json.RawMessage("{}")
		}
		pointer := fmt.Sprintf("#/trigger/schedule/%d/input", i)
		for _, f := range schema.Validate(input) {
			at, _ := v.find(pointer + strings.TrimPrefix(f.Pointer, "#/input"))
			d.report(pointer+strings.TrimPrefix(f.Pointer, "#/input"), at.at, "does not fit the workflow's input schema: "+f.Detail)
		}
	}
}

// overrides checks that each entry names a config field of a node: a misspelt one would be a permission nobody can use.
func (d *decoder) overrides(entries []*value, def *core.Definition) {
	for i, v := range entries {
		p := fmt.Sprintf("#/trigger/overrides/%d", i)
		if v.kind != text {
			continue // reported where it was read
		}
		id, field, ok := strings.Cut(v.text, ".")
		if !ok || field == "" {
			d.report(p, v.at, "an override is written node.field")
			continue
		}
		n, ok := def.Node(id)
		if !ok {
			d.report(p, v.at, fmt.Sprintf("no node is called %q%s", shorten(id), hint(id, nodeIDs(def.Nodes))))
			continue
		}
		if _, ok := n.Config[field]; !ok {
			names := make([]string, 0, len(n.Config))
			for name := range n.Config {
				names = append(names, name)
			}
			d.report(p, v.at, fmt.Sprintf("node %s has no config field %q%s; a caller may only override what config declares", id, shorten(field), hint(field, names)))
		}
		if slices.Index(def.Trigger.Overrides, v.text) < i {
			d.report(p, v.at, "listed twice; keep one")
		}
	}
}

func (d *decoder) aliases(v *value, pointer string) []string {
	var aliases []string
	for i, item := range d.list(v, pointer, 20) {
		p := fmt.Sprintf("%s/%d", pointer, i)
		alias := d.text(item, p)
		if item.kind == text && !validAlias(alias) {
			d.report(p, item.at, "an alias has 1 to 128 letters, digits, hyphens, dots and underscores")
		}
		if slices.Contains(aliases, alias) {
			d.report(p, item.at, "listed twice; keep one")
		}
		aliases = append(aliases, alias)
	}
	return aliases
}

// validAlias admits the ids of other products, which stand in one segment of a path.
func validAlias(s string) bool {
	if s == "" || len(s) > 128 || s == "." || s == ".." {
		return false
	}
	return strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._") == "" && !strings.ContainsAny(s, "/ ")
}

func (d *decoder) origins(v *value, pointer string) []string {
	var origins []string
	for i, item := range d.list(v, pointer, 50) {
		p := fmt.Sprintf("%s/%d", pointer, i)
		origin := d.text(item, p)
		if item.kind == text && !ValidOrigin(origin) {
			d.report(p, item.at, OriginForm)
		}
		origins = append(origins, origin)
	}
	return origins
}

// text reads a text.
func (d *decoder) text(v *value, pointer string) string {
	if v.kind != text {
		d.report(pointer, v.at, fmt.Sprintf("must be text, not %s", v.kind))
		return ""
	}
	return v.text
}

// bounded reads a text of at most limit characters on one line.
func (d *decoder) bounded(v *value, pointer string, limit int) string {
	s := d.text(v, pointer)
	if n := len([]rune(s)); n > limit || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		d.report(pointer, v.at, fmt.Sprintf("must be one line of at most %d characters", limit))
	}
	return s
}

func (d *decoder) boolean(v *value, pointer string) bool {
	if v.kind != boolean {
		d.report(pointer, v.at, fmt.Sprintf("must be true or false, not %s", v.kind))
	}
	return v.text == "true"
}

// list reads a list of at most limit values.
func (d *decoder) list(v *value, pointer string, limit int) []*value {
	switch {
	case v.kind != list:
		d.report(pointer, v.at, fmt.Sprintf("must be a list, not %s", v.kind))
		return nil
	case len(v.items) > limit:
		d.report(pointer, v.at, fmt.Sprintf("has %d entries; at most %d are allowed", len(v.items), limit))
		return v.items[:limit]
	}
	return v.items
}

// duration reads a time that something in a run may take.
func (d *decoder) duration(v *value, pointer string) core.Duration {
	if v.kind != text {
		d.report(pointer, v.at, fmt.Sprintf(`must be a time with its unit, such as "250ms", "30s" or "1m30s", not %s`, v.kind))
		return 0
	}
	t, err := time.ParseDuration(v.text)
	switch {
	case err != nil:
		d.report(pointer, v.at, `not a time; write for example "250ms", "30s" or "1m30s"`)
	case t < time.Millisecond || t > core.MaxRunTimeout:
		d.report(pointer, v.at, fmt.Sprintf("must be between 1ms and %s", core.MaxRunTimeout))
	}
	return core.Duration(t)
}

// template reads a value whose expressions are the engine's to judge.
func (d *decoder) template(v *value, pointer string) json.RawMessage {
	if v.kind == null && v.text == absent {
		d.report(pointer, v.at, "has no value; write one, such as {} or null, or leave the field out")
	}
	return v.json()
}

// schema reads the JSON Schema of the input and checks that it is one.
func (d *decoder) schema(v *value, pointer string) json.RawMessage {
	raw := v.json()
	if _, err := CompileSchema(raw); err != nil {
		for _, f := range schemaProblems(err) {
			found, _ := v.find(strings.TrimPrefix(f.Pointer, pointer))
			d.report(f.Pointer, found.at, f.Detail)
		}
	}
	return raw
}

// hint suggests the nearest of names, or returns "".
func hint(name string, names []string) string {
	if near := core.Nearest(name, names); near != "" {
		return fmt.Sprintf("; did you mean %q?", near)
	}
	return ""
}
