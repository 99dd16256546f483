package engine

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestCheckRefuses lists what a definition may not say, with what its author is told and where.
func TestCheckRefuses(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, def string
		want      []string
	}{
		{
			"a need that does not exist", `{"nodes":[{"id":"fetch"},{"id":"b","needs":["fetsh","nothing-like-it"]}]}`,
			[]string{`#/nodes/1/needs/0: no node is called "fetsh"; did you mean "fetch"?`, `#/nodes/1/needs/1: no node is called "nothing-like-it"`},
		},
		{
			"a reference that does not exist", `{"nodes":[{"id":"fetch"},{"id":"b","with":{"x":"abc ${{ 1 + nodes.fetsh.output }}"}}]}`,
			[]string{`#/nodes/1/with/x 1:13: no node is called "fetsh"; did you mean "fetch"?`},
		},
		{
			"a field a node does not have", `{"nodes":[{"id":"fetch"},{"id":"b","with":"${{ nodes.fetch.name }}"}]}`,
			[]string{`#/nodes/1/with 1:5: a node has output, status and error: write nodes.fetch.output; did you mean output.name?`},
		},
		{
			"a node with a hyphen, as if it had none", `{"nodes":[{"id":"top-ten"},{"id":"b","with":"${{ nodes.top-ten.output }}"}]}`,
			[]string{`#/nodes/1/with 1:5: no node is called "top"; did you mean nodes["top-ten"]? A hyphen is a minus elsewhere`},
		},
		{
			"a node as a whole", `{"nodes":[{"id":"a-b"},{"id":"b","with":"${{ nodes['a-b'] }}"}]}`,
			[]string{`#/nodes/1/with 1:5: a node has output, status and error: write nodes["a-b"].output`},
		},
		{
			"all nodes", `{"nodes":[{"id":"a"},{"id":"b","with":"${{ nodes.map(n, n) }}"}]}`,
			[]string{`#/nodes/1/with 1:5: name the node, as nodes.<id> or nodes["<id>"]: what a node needs must be known before the run`},
		},
		{
			"a computed node", `{"nodes":[{"id":"a"},{"id":"b","with":"${{ nodes[input.which].output }}"}]}`,
			[]string{`#/nodes/1/with 1:5: name the node, as nodes.<id> or nodes["<id>"]: what a node needs must be known before the run`},
		},
		{
			"nodes by another name", `{"nodes":[{"id":"a"},{"id":"b","with":"${{ [nodes].map(all, all.a.output) }}"}]}`,
			[]string{`#/nodes/1/with 1:6: name the node, as nodes.<id> or nodes["<id>"]: what a node needs must be known before the run`},
		},
		{
			"another meaning of nodes", `{"nodes":[{"id":"a"},{"id":"b","with":"${{ [1].map(nodes, nodes.a) }}"}]}`,
			[]string{`#/nodes/1/with 1:12: nodes already has a meaning here; choose another name for the variable`},
		},
		{
			"itself", `{"nodes":[{"id":"a","if":"${{ nodes.a.output }}"}]}`,
			[]string{`#/nodes/0: node a needs itself`},
		},
		{
			"a cycle", `{"nodes":[{"id":"x"},{"id":"c","needs":["a"]},{"id":"a","needs":["b","x"]},{"id":"b","with":{"deep":[{"v":"${{ nodes.c.output }}"}]}}]}`,
			[]string{`#/nodes/1: these nodes wait for each other: c -> a -> b -> c; the first needs the second, and so on`},
		},
		{
			"two cycles", `{"nodes":[{"id":"a","needs":["b"]},{"id":"b","needs":["a"]},{"id":"c","needs":["d"]},{"id":"d","needs":["c"]}]}`,
			[]string{`#/nodes/0: these nodes wait for each other: a -> b -> a; the first needs the second, and so on`, `#/nodes/2: these nodes wait for each other: c -> d -> c; the first needs the second, and so on`},
		},
		{
			"misspelt names", `{"nodes":[{"id":"a","with":["${{ inputs.x }}","${{ trigger.keyname }}","${{ run.idd + secrets.x }}"]}],"output":"${{ env.HOME }}"}`,
			[]string{
				`#/nodes/0/with/0 1:5: unknown name "inputs"; did you mean "input"?; expressions know input, nodes, run, trigger`,
				`#/nodes/0/with/1 1:5: trigger has no field "keyname"; did you mean "key_name"?; it has key_name, type, variables`,
				`#/nodes/0/with/2 1:5: run has no field "idd"; did you mean "id"?; it has id`,
				`#/output 1:5: unknown name "env"; expressions know input, nodes, run, trigger`,
			},
		},
		{
			"no end", `{"nodes":[{"id":"a","with":{"x":"é ${{ input.x }"}}]}`,
			[]string{`#/nodes/0/with/x 1:3: this expression has no end; write }} after it`},
		},
		{
			"nothing inside", `{"nodes":[{"id":"a","with":{"x":"a${{  }}"}}]}`,
			[]string{`#/nodes/0/with/x 1:5: an expression is missing between ${{ and }}`},
		},
		{
			"no CEL", `{"nodes":[{"id":"a","with":{"x":"line\nand ${{ input.x +\n * 2 }}"}}]}`,
			[]string{`#/nodes/0/with/x 3:2: the expression is not right at '*': something there is missing or too much`},
		},
		{
			"unfinished CEL", `{"nodes":[{"id":"a","with":["${{ (1 + }}","${{ input. }}","${{ foo( }}","${{ 1 2 }}","${{ $x }}","${{ 'a }}","${{ [1,2 }}"]}]}`,
			[]string{
				`#/nodes/0/with/0 1:10: the expression ends before it is complete`,
				`#/nodes/0/with/1 1:12: the expression is not right at '.': something there is missing or too much`,
				`#/nodes/0/with/2 1:10: the expression ends before it is complete`,
				`#/nodes/0/with/3 1:7: the expression is not right at '2': something there is missing or too much`,
				`#/nodes/0/with/4 1:5: the expression is not right at '$': something there is missing or too much`,
				`#/nodes/0/with/5 1:1: this expression has no end; write }} after it`,
				`#/nodes/0/with/6 1:10: the expression ends before it is complete`,
			},
		},
		{
			"wrong types", `{"nodes":[{"id":"a","with":{"x":"${{ 'a' * 2 }}"}}]}`,
			[]string{`#/nodes/0/with/x 1:9: * does not take string and int`},
		},
		{
			"wrong types, in words", `{"nodes":[{"id":"a","with":["${{ input.x ? 1 : 'x' }}","${{ 1 == 1.0 }}","${{ now() }}","${{ input.x == 123456789012345678901 }}"]}]}`,
			[]string{
				`#/nodes/0/with/0 1:13: ? : takes true or false, and two alternatives of one type; they are dyn, int, string, and dyn(...) around one of them gives it any type`,
				`#/nodes/0/with/1 1:7: == does not take int and double; what is written as two types is never equal`,
				`#/nodes/0/with/2 1:8: expressions have no function "now"`,
				`#/nodes/0/with/3 1:16: a whole number that does not fit 64 bits`,
			},
		},
		{
			"names of what comes later", `{"nodes":[{"id":"a","with":["${{ item.x }}","${{ index }}","${{ error.message }}","${{ trigger.headers.x }}","${{ trigger.event }}","${{ [1].map(item, item) }}"]}]}`,
			[]string{
				`#/nodes/0/with/0 1:5: item belongs to for_each, which is not supported yet`,
				`#/nodes/0/with/1 1:5: index belongs to for_each, which is not supported yet`,
				`#/nodes/0/with/2 1:5: error belongs to on_error, which is not supported yet`,
				`#/nodes/0/with/3 1:5: trigger.headers is not supported yet`,
				`#/nodes/0/with/4 1:5: trigger.event is not supported yet`,
			},
		},
		{
			"an if that is text", `{"nodes":[{"id":"a","if":"input.x"},{"id":"b","if":"yes ${{ input.x }}"},{"id":"c","if":"${{ 'true' }}"},{"id":"d","if":"${{ input.x }}${{ input.y }}"}]}`,
			[]string{
				`#/nodes/0/if: must be one expression, as ${{ input.amount > 0 }}`,
				`#/nodes/1/if: must be one expression, as ${{ input.amount > 0 }}`,
				`#/nodes/2/if: must be true or false`,
				`#/nodes/3/if: must be one expression, as ${{ input.amount > 0 }}`,
			},
		},
		{
			"expressions in names and config", `{"nodes":[{"id":"a","with":{"${{ input.x }}":1},"config":{"a":{"b":["${{ input.x }}"]},"ok":"$ {{"}}]}`,
			[]string{
				`#/nodes/0/with/${{ input.x }}: expressions are for values; a name is text`,
				`#/nodes/0/config/a: config holds constants, which a trigger may replace; put expressions into with`,
			},
		},
		{
			"deep loops", `{"nodes":[{"id":"a","with":"${{ [1].map(a,[1].map(b,[1].map(c,[1].map(d,[1].map(e,1))))) }}"}]}`,
			[]string{`#/nodes/0/with 1:52: comprehension exceeds nesting limit`},
		},
		{
			"a bad pattern", `{"nodes":[{"id":"a","if":"${{ input.x.matches('(') }}"}]}`,
			[]string{"#/nodes/0/if 1:21: not a regular expression of the RE2 syntax"},
		},
		{
			"a long expression", `{"nodes":[{"id":"a","with":"${{ '` + strings.Repeat("x", maxExpression) + `' }}"}]}`,
			[]string{"#/nodes/0/with 1:4: expression code point size exceeds limit: size: 8196, limit 8192"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			def := define(t, tt.def)
			before := define(t, tt.def)
			var got []string
			for _, f := range Check(def) {
				s := f.Pointer
				if f.Line > 0 {
					s += fmt.Sprintf(" %d:%d", f.Line, f.Column)
				}
				got = append(got, s+": "+f.Detail)
			}
			for i := range got {
				if i < len(tt.want) && strings.HasSuffix(tt.want[i], ":") && strings.HasPrefix(got[i], tt.want[i]) {
					got[i] = tt.want[i] // the rest is CEL's own text
				} else if i < len(tt.want) && len(got[i]) > len(tt.want[i]) && strings.Contains(tt.want[i], "argument") {
					got[i] = got[i][:len(tt.want[i])]
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			if diff := cmp.Diff(before, def); diff != "" {
				t.Errorf("a refused definition was changed:\n%s", diff)
			}
		})
	}
}

// TestCheckCompletesNeeds proves that every way to name a node is seen, also inside macros and optional access.
func TestCheckCompletesNeeds(t *testing.T) {
	t.Parallel()
	def := checked(t, `{"nodes":[
		{"id":"last","needs":["c"],"if":"${{ nodes['a-b'].output.ok }}","with":{"t":"x ${{ [1].map(i, nodes.d.?output.orValue(i)) }} y","u":["${{ has(nodes.e.output.x) ? nodes.`+"`f-g`"+`.status : '' }}"]}},
		{"id":"a-b"},{"id":"c"},{"id":"d"},{"id":"e"},{"id":"f-g"},{"id":"g"},{"id":"alone","with":"nodes.a is only text"}
	]}`)
	if diff := cmp.Diff([]string{"a-b", "c", "d", "e", "f-g"}, def.Nodes[0].Needs); diff != "" {
		t.Errorf("needs: -want +got:\n%s", diff)
	}
	if diff := cmp.Diff([]string{}, def.Nodes[7].Needs); diff != "" {
		t.Errorf("needs of a node without references: -want +got:\n%s", diff)
	}
	again := *def
	if problems := Check(&again); len(problems) > 0 {
		t.Errorf("checking twice: %v", problems)
	}
}
