package workflow

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"regexp/syntax"
	"strconv"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// Costs are counted in units of about 25 ns: what comparing with one value of an enum takes.
const (
	visitCost    = 20         // applying a schema to a value, whatever it asks
	numberCost   = 40         // comparing with one number of an enum, of which both are read again each time
	patternCost  = 8          // matching a name of ordinary length with a pattern
	maxPlaceCost = 100_000    // of checking one place of an input
	maxTotalCost = 40_000_000 // of checking an input, about a second
	// inputDepth is how deep an input may be nested (promise I1).
	inputDepth = 64
	// maxPatternWork bounds instructions of a pattern times characters of a text. An instruction and character take up to 30 ns.
	maxPatternWork = 10_000_000
	// What all patterns together do for one input is free up to maxPatternsWork, and then as long as it takes no longer than maxPatternsTime: an instruction and character of a
	// pattern for addresses takes 0.1 ns, so that a megabyte of them is little work and a large product.
	maxPatternsWork = 100_000_000
	maxPatternsTime = time.Second
	// An instruction takes some 100 bytes while it is compiled, and half of that afterwards. The patterns of a schema are compiled twice, once to check them.
	maxPatternSize  = 50_000  // instructions of one pattern
	maxPatternsSize = 400_000 // of all patterns of a schema, as often as they are compiled
	maxPatternInput = 1_000   // bytes of a pattern that is an input
)

// placeCost returns the most that checking one place of an input can cost, or says why that has no acceptable bound.
//
// A schema whose alternatives each descend into the same field, and there into themselves, checks the values at depth d about n^d
// times. The library neither remembers results nor honours a deadline, so a caller could stall the server with a small, deeply
// nested input. The cost is therefore computed in advance, for the worst input of every depth.
func placeCost(root *jsonschema.Schema) (cost int, refusal string) {
	g := graph{closures: map[*jsonschema.Schema]*closure{}, names: map[*jsonschema.Schema]*closure{}}
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
	names    map[*jsonschema.Schema]*closure // of what applies to the names of fields
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
	case s == nil || g.refusal != "":
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
		for _, v := range s.Enum.Values {
			c.own += comparing(v)
		}
	}
	if s.Const != nil {
		c.own += comparing(*s.Const)
	}
	for _, names := range s.DependentRequired {
		c.own += 1 + len(names)
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
	c.fields = g.ofNames(c.fields, s.PropertyNames)

	listed = make(map[string]bool, len(s.PrefixItems))
	for i, t := range s.PrefixItems {
		listed[strconv.Itoa(i)] = true
		c.items = g.below(c.items, child{name: strconv.Itoa(i)}, t)
	}
	c.items = g.below(c.items, child{others: true, listed: listed}, s.Items2020)
	c.items = g.below(c.items, child{others: true}, s.Contains)
	c.items = g.below(c.items, child{others: true}, s.UnevaluatedItems)
}

// comparing is the cost of comparing with a value of the schema, as far as it is more than what the places of the input beneath count for.
func comparing(v any) int {
	return sum(v, func(v any) int {
		if _, ok := v.(json.Number); ok {
			return numberCost
		}
		return 1
	})
}

// ofNames adds what a schema costs that is applied to the name of every field. Beneath a name there is nothing.
func (g *graph) ofNames(children []child, s *jsonschema.Schema) []child {
	if s == nil {
		return children
	}
	c := g.names[s]
	if c == nil {
		c = &closure{}
		g.names[s] = c // before it is gathered, for the schema may refer to itself
		g.gather(c, s, map[*jsonschema.Schema]bool{})
		c.deepest = c.own
	}
	return append(children, child{others: true, to: c})
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
	limit        *limit // as in patterns
}

// limit is what the patterns of a schema may do for one input.
type limit struct {
	work  int // that is left
	until time.Time
}

// textTooLong is what a pattern panics with, as jsonschema gives it no other way to stop a validation: a text had more than most bytes, or, when that is 0, there were too many.
type textTooLong struct{ most int }

// patterns compiles the patterns of one schema.
type patterns struct {
	size     int    // instructions so far
	heaviest int    // instructions of the largest one
	refused  bool   // they are too large
	sealed   bool   // the schema is compiled
	limit    *limit // of all of them, nil for none
}

// compile compiles a pattern, or, once the schema is compiled, only reads one, which is then an input of format regex. A repetition is written out when a pattern is
// compiled, so a few bytes can ask for megabytes.
func (p *patterns) compile(s string) (jsonschema.Regexp, error) {
	if p.sealed && len(s) > maxPatternInput {
		return nil, fmt.Errorf("a pattern of more than %d bytes", maxPatternInput)
	}
	parsed, err := syntax.Parse(s, syntax.Perl)
	if err != nil || p.sealed {
		return pattern{}, err
	}
	n := instructions(parsed)
	if p.size += n; n > maxPatternSize || p.size > maxPatternsSize {
		p.refused = true
		return nil, errors.New(tooLargePatterns)
	}
	re, err := regexp.Compile(s)
	if err != nil {
		return nil, err
	}
	program, err := syntax.Compile(parsed.Simplify())
	if err != nil {
		return nil, err
	}
	p.heaviest = max(p.heaviest, len(program.Inst))
	return pattern{re, len(program.Inst), p.limit}, nil
}

var tooLargePatterns = fmt.Sprintf("has patterns that are too large: written out without repetitions, one may have some %d parts, and all together a few times as many", maxPatternSize)

// instructions returns, without compiling it, about how many instructions a pattern is compiled to, at least one.
func instructions(re *syntax.Regexp) int {
	n := 1
	for _, sub := range re.Sub {
		n += instructions(sub)
	}
	switch re.Op {
	case syntax.OpLiteral:
		n = max(len(re.Rune), 1)
	case syntax.OpRepeat: // the parser has bounded the product of those within each other
		n *= max(re.Min+1, re.Max)
	}
	return n
}

// MatchString reports whether s matches. It panics with textTooLong when s is too long to find out.
func (p pattern) MatchString(s string) bool {
	if most := maxPatternWork / p.instructions; len(s) > most {
		panic(textTooLong{most})
	}
	if p.limit != nil {
		if p.limit.work -= p.instructions * len(s); p.limit.work < 0 && time.Now().After(p.limit.until) {
			panic(textTooLong{})
		}
	}
	return p.Regexp.MatchString(s)
}

// detail says what would be right.
func (t textTooLong) detail() string {
	if t.most == 0 {
		return "holds more text than can be compared with the patterns of the schema; send less of it at once, or ask the author for simpler patterns"
	}
	return fmt.Sprintf("holds a text that is too long for a pattern of the schema; %d bytes can be checked", t.most)
}
