package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/runtime/wasm"
)

// Variables reach expressions, and through them nodes, and nothing of the run that is kept or answered.
func TestVariables(t *testing.T) {
	t.Parallel()
	const secret = "sk-QmFzZTY0aXNub3Rl"
	def := &core.Definition{}
	if err := json.Unmarshal([]byte(`{"nodes":[
		{"id":"a","module":"a","if":"${{ trigger.variables.KEY.size() > 8 && 'KEY' in trigger.variables }}","with":{
			"copied":"${{ trigger.variables.KEY }}","text":"Bearer ${{ trigger.variables[\"KEY\"] }}","absent":"${{ trigger.variables.?NONE.orValue('none') }}",
			"region":"${{ trigger.variables.REGION }}","names":"${{ trigger.variables.map(n, n).size() }}","whole":"${{ trigger }}"}},
		{"id":"b","module":"b","with":"${{ nodes.a.output }}"},
		{"id":"c","module":"c","needs":["b"],"with":"${{ trigger.variables.KEY }}"}],
		"output":{"key":"${{ trigger.variables.KEY }}","a":"${{ nodes.a.output }}"}}`), def); err != nil {
		t.Fatal(err)
	}
	if fields := Check(def); len(fields) > 0 {
		t.Fatal(fields)
	}
	def.Trigger.Timeout = core.Duration(time.Minute)
	run := func(c node, variables map[string]string) (*core.Run, string) {
		t.Helper()
		var seen strings.Builder
		keep := func(n node) node {
			return func(ctx context.Context, call wasm.Call) (wasm.Result, error) {
				seen.Write(call.Input)
				return n(ctx, call)
			}
		}
		e, err := New(Config{Invoker: modules{"a": keep(echo), "b": keep(echo), "c": c}})
		if err != nil {
			t.Fatal(err)
		}
		r := &core.Run{ID: "run_1", Account: "acct_1", Input: json.RawMessage(`{}`), Trigger: core.TriggerInfo{Type: "api"}, Variables: variables}
		e.Execute(t.Context(), r, def)
		return r, seen.String()
	}
	leaky := func(failure error) node {
		return func(_ context.Context, call wasm.Call) (wasm.Result, error) {
			var text string
			_ = json.Unmarshal(call.Input, &text)
			return wasm.Result{Output: call.Input, Log: []core.LogLine{{Message: "calling with " + text}}}, failure
		}
	}
	for name, failure := range map[string]error{"succeeds": nil, "fails": &wasm.Error{Class: core.ClassFailed, Message: "refused: " + secret}} {
		r, seen := run(leaky(failure), map[string]string{"KEY": secret, "REGION": "eu"})
		if want := `{"copied":"` + secret + `","text":"Bearer ` + secret + `","absent":"none","region":"eu","names":2,"whole":{"key_name":"","type":"api"}}`; !strings.HasPrefix(seen, want) {
			t.Errorf("%s: the node was given %s, want %s", name, seen, want)
		}
		kept := *r
		kept.Variables = nil
		all, err := json.Marshal(kept)
		if err != nil || strings.Contains(string(all), secret) || strings.Count(string(all), core.Redacted) < 6 {
			t.Errorf("%s: the run holds the variable: %s %v", name, all, err)
		}
		if (r.Status == core.RunSucceeded) != (failure == nil) {
			t.Errorf("%s: %s %+v", name, r.Status, r.Error)
		}
	}
	if r, _ := run(echo, nil); r.Status != core.RunFailed || !strings.Contains(fmt.Sprint(r.Error.Message), "KEY") {
		t.Errorf("a variable that was not sent: %s %+v", r.Status, r.Error)
	}
	for expr, want := range map[string]string{
		`trigger.?variables.KEY`: "trigger.variables is always there", `trigger.variable.KEY`: `did you mean "variables"`, `trigger.variables.KEY + 1`: "+ does not take string and int",
	} {
		bad := &core.Definition{}
		raw, _ := json.Marshal(map[string]any{"nodes": []any{map[string]any{"id": "a", "with": "${{ " + expr + " }}"}}})
		if err := json.Unmarshal(raw, bad); err != nil {
			t.Fatal(err)
		}
		if fields := Check(bad); len(fields) != 1 || !strings.Contains(fields[0].Detail, want) {
			t.Errorf("%s: %v, want %q", expr, fields, want)
		}
	}
}
