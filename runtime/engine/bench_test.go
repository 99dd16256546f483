package engine

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/runtime/wasm"
)

// BenchmarkExecute measures what the engine adds to its nodes: everything but the guest.
func BenchmarkExecute(b *testing.B) {
	for _, bb := range []struct{ name, def string }{
		{"one node", `{"nodes":[{"id":"greet","with":{"name":"${{ input.name }}"}}],"output":{"greeting":"${{ nodes.greet.output.name }}"}}`},
		{"one computed", `{"nodes":[{"id":"greet","if":"${{ size(input.name) > 0 }}","with":{"name":"${{ input.name + '!' }}"}}]}`},
		{"diamond of 4", `{"nodes":[{"id":"a","with":"${{ input }}"},{"id":"b","with":{"x":"${{ nodes.a.output }}"}},{"id":"c","with":{"x":"${{ nodes.a.output.name }}"}},
			{"id":"d","with":{"b":"${{ nodes.b.output }}","c":"${{ nodes.c.output }}"}}]}`},
	} {
		b.Run(bb.name, func(b *testing.B) {
			def := checked(b, bb.def)
			m := modules{}
			for _, n := range def.Nodes {
				m[n.Module] = echo
			}
			e, err := New(Config{Invoker: m})
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				run := &core.Run{ID: "run_1", Input: json.RawMessage(`{"name":"Ada"}`), Workflow: core.WorkflowRef{Digest: "sha256:1"}}
				e.Execute(context.Background(), run, def)
				if run.Status != core.RunSucceeded {
					b.Fatal(describe(run))
				}
			}
		})
	}
}

// BenchmarkExpression measures one expression: a path, which is copied, and computed ones.
func BenchmarkExpression(b *testing.B) {
	rows := `{"name":"Ada","n":3,"rows":[` + strings.Repeat(`{"id":12345,"amount":19.90,"tags":["a","b"]},`, 999) + `{"id":1,"amount":2,"tags":[]}]}`
	for _, bb := range []struct{ name, x string }{
		{"path", "input.name"},
		{"whole", "input"},
		{"compare", "input.n > 1"},
		{"sum", "input.rows.size() > 10 && input.rows[5].amount * 2 > 1"},
		{"filter 1000", "input.rows.filter(r, r.amount > 10).size()"},
	} {
		b.Run(bb.name, func(b *testing.B) {
			x, flaws := compile(bb.x, nil)
			if len(flaws) > 0 {
				b.Fatal(flaws)
			}
			s := &scope{input: newLazy(json.RawMessage(rows))}
			b.ReportAllocs()
			for b.Loop() {
				w := writer{limit: wasm.MaxInput}
				if err := x.write(context.Background(), s, &w, false); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkPlan measures what the first run of a version pays.
func BenchmarkPlan(b *testing.B) {
	def := checked(b, `{"nodes":[{"id":"a","with":"${{ input }}"},{"id":"b","if":"${{ nodes.a.output.n > 1 }}","with":{"x":"${{ nodes.a.output }}"}}]}`)
	b.ReportAllocs()
	for b.Loop() {
		if _, problems := newPlan(def); len(problems) > 0 {
			b.Fatal(problems)
		}
	}
}

// BenchmarkMatches measures a pattern in an expression, which is compiled once.
func BenchmarkMatches(b *testing.B) {
	x, flaws := compile(`input.matches('^[a-z]+$')`, nil)
	if len(flaws) > 0 {
		b.Fatal(flaws)
	}
	s := &scope{input: newLazy(json.RawMessage(`"ada"`))}
	b.ReportAllocs()
	for b.Loop() {
		w := writer{limit: wasm.MaxInput}
		if err := x.write(context.Background(), s, &w, false); err != nil {
			b.Fatal(err)
		}
	}
}
