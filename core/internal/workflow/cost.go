package workflow

import (
	"fmt"
	"strconv"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

const (
	// maxVisits is how often a schema may make one place of the input be checked.
	maxVisits = 1000
	// inputDepth is how deep an input may be nested (promise I1).
	inputDepth = 64
)

// tooCostly says why validating against the schema could take unbounded time, or returns "".
//
// A schema whose alternatives each descend into the same field, and there into themselves, checks the values at depth d about n^d
// times. The library neither remembers results nor honours a deadline, so a caller could stall the server with a small, deeply
// nested input. The number of visits to one place is computed here in advance, for the worst input of every depth.
func tooCostly(root *jsonschema.Schema) string {
	g := graph{closures: map[*jsonschema.Schema]*closure{}}
	start := g.closure(root)
	for range inputDepth {
		if g.refusal != "" {
			return g.refusal
		}
		if start.visits > maxVisits {
			return fmt.Sprintf("could take too long: a nested input can make one place be checked more than %d times; let fewer alternatives refer back to the schema under the same field name", maxVisits)
		}
		deeper := make([]int, len(g.order))
		same := true
		for i, c := range g.order {
			deeper[i] = max(most(c.fields), most(c.items))
			same = same && deeper[i] == c.visits
		}
		if same {
			break
		}
		for i, c := range g.order {
			c.visits = deeper[i]
		}
	}
	return ""
}

// closure is a schema together with everything it applies to the same value.
type closure struct {
	size   int     // how many schemas that is
	visits int     // the most that one place gets at the depth that was reached
	fields []child // what it applies to the fields of an object
	items  []child // what it applies to the items of a list
}

// child is a schema applied to a part of the value: to the one called name, or, when others is set, to every part that is not listed.
type child struct {
	name   string
	others bool
	listed map[string]bool
	to     *closure
}

// most returns the most visits that one part gets from children.
func most(children []child) int {
	unnamed := 0
	named := map[string]int{}
	var others []child
	for _, c := range children {
		if c.others {
			others = append(others, c)
			unnamed = min(unnamed+c.to.visits, maxVisits+1)
		} else {
			named[c.name] = min(named[c.name]+c.to.visits, maxVisits+1)
		}
	}
	best := unnamed
	for name, n := range named {
		for _, c := range others {
			if n > maxVisits {
				return n
			}
			if !c.listed[name] {
				n += c.to.visits
			}
		}
		best = max(best, n)
	}
	return best
}

// graph collects the closures of a schema.
type graph struct {
	closures map[*jsonschema.Schema]*closure
	order    []*closure
	refusal  string
}

func (g *graph) closure(s *jsonschema.Schema) *closure {
	if c, ok := g.closures[s]; ok {
		return c
	}
	c := &closure{}
	g.closures[s] = c
	g.order = append(g.order, c)
	g.gather(c, s, map[*jsonschema.Schema]bool{})
	c.visits = c.size
	return c
}

// gather adds s, and what s applies to the same value, to c.
func (g *graph) gather(c *closure, s *jsonschema.Schema, path map[*jsonschema.Schema]bool) {
	switch {
	case s == nil || s.Bool != nil || g.refusal != "":
		return
	case path[s]:
		g.refusal = "a schema refers to itself for the same value, without end"
		return
	case s.DynamicRef != nil || s.RecursiveRef != nil:
		g.refusal = "$dynamicRef is not supported; use $ref"
		return
	}
	if c.size++; c.size > maxVisits {
		g.refusal = fmt.Sprintf("applies more than %d schemas to one value", maxVisits)
		return
	}
	path[s] = true
	defer delete(path, s)
	for _, same := range [][]*jsonschema.Schema{s.AllOf, s.AnyOf, s.OneOf, {s.Ref, s.Not, s.If, s.Then, s.Else}} {
		for _, t := range same {
			g.gather(c, t, path)
		}
	}
	for _, t := range s.DependentSchemas {
		g.gather(c, t, path)
	}

	listed := make(map[string]bool, len(s.Properties))
	for name, t := range s.Properties {
		listed[name] = true
		c.fields = g.below(c.fields, child{name: name}, t)
	}
	for _, t := range s.PatternProperties {
		c.fields = g.below(c.fields, child{others: true}, t)
	}
	if t, ok := s.AdditionalProperties.(*jsonschema.Schema); ok {
		c.fields = g.below(c.fields, child{others: true, listed: listed}, t)
	}
	c.fields = g.below(c.fields, child{others: true}, s.UnevaluatedProperties)

	listed = make(map[string]bool, len(s.PrefixItems))
	for i, t := range s.PrefixItems {
		listed[strconv.Itoa(i)] = true
		c.items = g.below(c.items, child{name: strconv.Itoa(i)}, t)
	}
	c.items = g.below(c.items, child{others: true, listed: listed}, s.Items2020)
	c.items = g.below(c.items, child{others: true}, s.Contains)
	c.items = g.below(c.items, child{others: true}, s.UnevaluatedItems)
}

func (g *graph) below(children []child, c child, s *jsonschema.Schema) []child {
	if s == nil || s.Bool != nil || g.refusal != "" {
		return children
	}
	c.to = g.closure(s)
	return append(children, c)
}
