package engine

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/runtime/wasm"
)

// plan is a definition made ready to run. It never changes and is shared by the runs of one version.
type plan struct {
	nodes  []planNode // in file order
	output *template  // nil: the outputs of sinks
	reads  []int      // nodes that output names
	sinks  []int      // nodes that no other node needs
}

// planNode is one node of a plan.
type planNode struct {
	core.Node
	condition  *expression // nil: runs always
	with       *template
	config     string // JSON of Node.Config, "" when there is none
	needs      []int
	dependents []int
	reads      []int // nodes that condition and with name
}

// Check compiles every expression of def and completes the needs of its nodes with those that expressions imply, in file order.
// It returns what is wrong, with pointers into the definition, or nil. For a problem inside an expression, Line and Column say where
// inside the text at the pointer it is, both from 1; workflow.File.Locate turns that into a place in the file.
//
// A definition with problems must not be published; its needs are left as they were.
func Check(def *core.Definition) []core.Field {
	p, problems := newPlan(def)
	if len(problems) > 0 {
		return problems
	}
	for i := range p.nodes {
		needs := make([]string, 0, len(p.nodes[i].needs))
		for _, n := range p.nodes[i].needs {
			needs = append(needs, def.Nodes[n].ID)
		}
		def.Nodes[i].Needs = needs
	}
	return nil
}

// newPlan compiles def.
func newPlan(def *core.Definition) (*plan, []core.Field) {
	p := &plan{nodes: make([]planNode, len(def.Nodes))}
	c := compiler{}
	index := make(map[string]int, len(def.Nodes))
	for i, n := range def.Nodes {
		index[n.ID] = i
		c.nodes = append(c.nodes, n.ID)
	}
	for i, n := range def.Nodes {
		n.Engine = def.EngineOf(&n)
		p.nodes[i] = c.node(n, fmt.Sprintf("#/nodes/%d", i), index)
	}
	if len(def.Output) > 0 {
		p.output = c.template(def.Output, "#/output")
		p.reads = indexes(p.output.nodes, index)
	}
	c.cycles(p)
	if len(c.problems) > 0 {
		return nil, c.problems
	}
	for i, n := range p.nodes {
		for _, need := range n.needs {
			p.nodes[need].dependents = append(p.nodes[need].dependents, i)
		}
	}
	for i, n := range p.nodes {
		if len(n.dependents) == 0 {
			p.sinks = append(p.sinks, i)
		}
	}
	return p, nil
}

func (c *compiler) node(n core.Node, pointer string, index map[string]int) planNode {
	pn := planNode{Node: n}
	var named []string
	if n.If != "" {
		if pn.condition = c.condition(n.If, pointer+"/if"); pn.condition != nil {
			named = pn.condition.nodes
		}
	}
	with := n.With
	if len(with) == 0 {
		with = json.RawMessage("{}")
	}
	pn.with = c.template(with, pointer+"/with")
	pn.reads = indexes(append(named, pn.with.nodes...), index)
	for i, id := range n.Needs {
		if _, ok := index[id]; !ok {
			c.report(fmt.Sprintf("%s/needs/%d", pointer, i), "no node is called %q%s", clip(id), hint(id, c.nodes))
		}
	}
	pn.needs = append(indexes(n.Needs, index), pn.reads...)
	slices.Sort(pn.needs)
	pn.needs = slices.Compact(pn.needs)
	if len(n.Config) > 0 {
		pn.config = c.config(n.Config, pointer+"/config")
	}
	for i, rule := range n.Grants.HTTP {
		if _, err := wasm.ParseHTTPRule(rule); err != nil {
			c.report(fmt.Sprintf("%s/grants/http/%d", pointer, i), "%s", err)
		}
	}
	return pn
}

// indexes returns the places of the nodes with these ids, each once and in file order. Ids of no node are left out.
func indexes(ids []string, index map[string]int) []int {
	var places []int
	for _, id := range ids {
		if i, ok := index[id]; ok {
			places = append(places, i)
		}
	}
	slices.Sort(places)
	return slices.Compact(places)
}

// config writes the constants of a node as JSON, with sorted names.
func (c *compiler) config(config map[string]json.RawMessage, pointer string) string {
	for _, name := range slices.Sorted(maps.Keys(config)) {
		tree, err := core.DecodeJSON(config[name])
		if err != nil {
			c.report(pointer+"/"+core.EscapePointer(name), "must be JSON")
		} else if holdsExpression(tree) {
			c.report(pointer+"/"+core.EscapePointer(name), "config holds constants, which a trigger may replace; put expressions into with")
		}
	}
	return configJSON(config)
}

// configJSON returns an object of JSON values with sorted names.
func configJSON(config map[string]json.RawMessage) string {
	w := writer{limit: core.MaxWorkflowFile * 8} // more than any file or request can hold
	w.raw("{")
	for i, name := range slices.Sorted(maps.Keys(config)) {
		if i > 0 {
			w.raw(",")
		}
		w.text(name, true)
		w.raw(":")
		w.raw(string(config[name]))
	}
	w.raw("}")
	return string(w.b)
}

func holdsExpression(v any) bool {
	switch v := v.(type) {
	case string:
		return strings.Contains(v, opening)
	case []any:
		return slices.ContainsFunc(v, holdsExpression)
	case map[string]any:
		for name, item := range v {
			if strings.Contains(name, opening) || holdsExpression(item) {
				return true
			}
		}
	}
	return false
}

// cycles reports each group of nodes that wait for each other, once, by one way around.
func (c *compiler) cycles(p *plan) {
	const (
		unseen = iota
		open
		closed
	)
	state := make([]int, len(p.nodes))
	var path []int
	var visit func(i int)
	visit = func(i int) {
		state[i] = open
		path = append(path, i)
		for _, need := range p.nodes[i].needs {
			switch state[need] {
			case unseen:
				visit(need)
			case open:
				c.cycle(p, path[slices.Index(path, need):])
			}
		}
		path = path[:len(path)-1]
		state[i] = closed
	}
	for i := range p.nodes {
		if state[i] == unseen {
			visit(i)
		}
	}
}

// cycle reports one way around. Each node of it needs the next one.
func (c *compiler) cycle(p *plan, around []int) {
	first := slices.Index(around, slices.Min(around))
	var ids []string
	for i := range around {
		ids = append(ids, p.nodes[around[(first+i)%len(around)]].ID)
	}
	pointer := fmt.Sprintf("#/nodes/%d", around[first])
	if len(ids) == 1 {
		c.report(pointer, "node %s needs itself", ids[0])
		return
	}
	c.report(pointer, "these nodes wait for each other: %s; the first needs the second, and so on", strings.Join(append(ids, ids[0]), " -> "))
}

// hint suggests the nearest of names, or returns "".
func hint(name string, names []string) string {
	near := core.Nearest(name, names)
	if near == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %q?", near)
}
