package engine_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/runtime/engine"
	"github.com/keyfire/keyfire/runtime/wasm"
)

// double is a node that doubles the number it is given. In a server, a *wasm.Runtime is the Invoker.
type double struct{}

func (double) Invoke(_ context.Context, call wasm.Call) (wasm.Result, error) {
	var in struct{ N int }
	if err := json.Unmarshal(call.Input, &in); err != nil {
		return wasm.Result{}, &wasm.Error{Class: core.ClassFailed, Message: "n must be a number"}
	}
	return wasm.Result{Output: fmt.Appendf(nil, "%d", 2*in.N)}, nil
}

func Example() {
	def := &core.Definition{
		Trigger: core.TriggerSpec{Timeout: core.Duration(core.DefaultRunLimit)},
		Nodes: []core.Node{
			{ID: "twice", With: json.RawMessage(`{"n": "${{ input.n }}"}`)},
			{ID: "again", With: json.RawMessage(`{"n": "${{ nodes.twice.output }}"}`), If: "${{ nodes.twice.output < 100 }}"},
		},
		Output: json.RawMessage(`{"twice": "${{ nodes.twice.output }}", "text": "${{ input.n }} x 4 = ${{ nodes.again.output }}"}`),
	}
	if problems := engine.Check(def); len(problems) > 0 {
		log.Fatal(problems)
	}
	fmt.Println("again needs", def.Nodes[1].Needs)

	e, err := engine.New(engine.Config{Invoker: double{}})
	if err != nil {
		log.Fatal(err)
	}
	run := &core.Run{ID: "run_1", Input: json.RawMessage(`{"n": 21}`)}
	e.Execute(context.Background(), run, def)
	fmt.Println(run.Status, string(run.Output))
	// Output:
	// again needs [twice]
	// succeeded {"twice":42,"text":"21 x 4 = 84"}
}

func ExampleCheck() {
	def := &core.Definition{Nodes: []core.Node{
		{ID: "fetch"},
		{ID: "report", With: json.RawMessage(`{"order": "No. ${{ nodes.fetsh.output.id }}"}`)},
	}}
	for _, p := range engine.Check(def) {
		fmt.Printf("%s, line %d, column %d: %s\n", p.Pointer, p.Line, p.Column, p.Detail)
	}
	// Output:
	// #/nodes/1/with/order, line 1, column 9: no node is called "fetsh"; did you mean "fetch"?
}
