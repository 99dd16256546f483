package workflow

import (
	"fmt"
	"regexp"
	"regexp/syntax"
	"strconv"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// Costs are counted in units of about 25 ns: what comparing with one value of an enum takes.
const (
	visitCost    = 20         // applying a schema to a value, whatever it asks
	patternCost  = 8          // matching a name of ordinary length with a pattern
	maxPlaceCost = 100_000    // of checking one place of an input
	maxTotalCost = 40_000_000 // of checking an input, about a second
	// inputDepth is how deep an input may be nested (promise I1).
	inputDepth = 64
	// maxPatternWork bounds instructions of a pattern times characters of a text. An instruction and character take up to 30 ns.
	maxPatternWork = 10_000_000
)

// placeCost returns the most that checking one place of an input can cost, or says why that has no acceptable bound.
//
// A schema whose alternatives each descend into the same field, and there into themselves, checks the values at depth d about n^d
// times. The library neither remembers results nor honours a deadline, so a caller could stall the server with a small, deeply
// nested input. The cost is therefore computed in advance, for the worst input of every depth.
func placeCost(root *jsonschema.Schema) (cost int, refusal string) {
	g := graph{closures: map[*jsonschema.Schema]*closure{}}
	start := g.closure(root)
	for _, c := range g.order {
		cost = max(cost, c.own)
	}
	for range inputDepth {
		if g.refusal != "" {
			return 0, g.refusal
		}
		if cost = max(cost, start.deepest); cost > maxPlaceCost {
			return 0, "could take too long: a nested input can make one place be checked many thousand times; let fewer alternatives refer back to the schema under the same field name"
		}
		deeper := make([]int, len(g.order))
		same := true
		for i, c := range g.order {
			deeper[i] = max(most(c.fields), most(c.items))
			same = same && deeper[i] == c.deepest
		}
		if same {
			break
		}
		for i, c := range g.order {
			c.deepest = deeper[i]
		}
	}
	return cost, g.refusal
}

// closure is a schema together with everything it applies to the same value.
type closure struct {
	own     int     // cost of that
	deepest int     // the most that one place costs at the depth that was reached
	fields  []child // what it applies to the fields of an object
	items   []child // what it applies to the items of a list
}

// child is a schema applied to a part of the value: to the one called name, or, when others is set, to every part that is not listed.
type child struct {
	name   string
	others bool
	listed map[string]bool
	to     *closure
}

// most returns the most that one part costs by children.
func most(children []child) int {
	unnamed := 0
	named := map[string]int{}
	var others []child
	for _, c := range children {
		if c.others {
			others = append(others, c)
			unnamed = min(unnamed+c.to.deepest, maxPlaceCost+1)
		} else {
			named[c.name] = min(named[c.name]+c.to.deepest, maxPlaceCost+1)
		}
	}
	best := unnamed
	for name, n := range named {
		for _, c := range others {
			if n > maxPlaceCost {
				return n
			}
			if !c.listed[name] {
				n += c.to.deepest
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
	c.deepest = c.own
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
	c.own += visitCost + len(s.Required)
	if s.Enum != nil {
		c.own += len(s.Enum.Values)
	}
	if c.own > maxPlaceCost {
		g.refusal = "could take too long: it applies thousands of schemas, or compares with many thousand values, at one place"
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
		c.fields = append(c.fields, child{others: true, to: &closure{deepest: patternCost}})
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

// pattern is a regular expression that refuses work it could not do soon: the library of Go takes time by the product of pattern and text,
// which is half a minute for a pattern of 20 characters and a text of 1 MiB.
type pattern struct {
	*regexp.Regexp
	instructions int
}

// textTooLong is what a pattern panics with, as jsonschema gives it no other way to stop a validation.
type textTooLong struct{ most int }

func newPattern(s string) (jsonschema.Regexp, error) {
	re, err := regexp.Compile(s)
	if err != nil {
		return nil, err
	}
	parsed, err := syntax.Parse(s, syntax.Perl)
	if err != nil {
		return nil, err
	}
	program, err := syntax.Compile(parsed.Simplify())
	if err != nil {
		return nil, err
	}
	return pattern{re, len(program.Inst)}, nil
}

// MatchString reports whether s matches. It panics with textTooLong when s is too long to find out.
func (p pattern) MatchString(s string) bool {
	if most := maxPatternWork / p.instructions; len(s) > most {
		panic(textTooLong{most})
	}
	return p.Regexp.MatchString(s)
}

// detail says what would be right.
func (t textTooLong) detail() string {
	return fmt.Sprintf("holds a text that is too long for a pattern of the schema; %d bytes can be checked", t.most)
}
