package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/keyfire/keyfire/core"
	"github.com/keyfire/keyfire/runtime/wasm"
)

// TestRandomGraphs runs random graphs whose nodes report when they begin and end: each runs once, after all it needs and with what they
// gave; and a node is skipped exactly when its condition is false or all it needs were skipped.
func TestRandomGraphs(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 12).Draw(t, "nodes")
		order := rapid.Permutation(seq(n)).Draw(t, "file order") // order[i] is the place in the file of node i
		needs := make([][]int, n)                                // always of smaller number, so there is no cycle
		off := make([]bool, n)
		nodes := make([]string, n)
		for i := range n {
			for j := range i {
				if rapid.IntRange(0, 2).Draw(t, fmt.Sprintf("%d needs %d", i, j)) == 0 {
					needs[i] = append(needs[i], j)
				}
			}
			off[i] = rapid.IntRange(0, 4).Draw(t, fmt.Sprintf("%d is off", i)) == 0
			with, explicit := []string{}, []string{}
			for _, j := range needs[i] {
				if rapid.Bool().Draw(t, fmt.Sprintf("%d says so", j)) {
					explicit = append(explicit, fmt.Sprintf(`"n%d"`, j))
				} else {
					with = append(with, fmt.Sprintf(`"${{ nodes.n%d.output }}"`, j))
				}
			}
			nodes[order[i]] = fmt.Sprintf(`{"id":"n%d","if":"${{ %t }}","needs":[%s],"with":[%s]}`, i, !off[i], strings.Join(explicit, ","), strings.Join(with, ","))
		}
		def := &core.Definition{}
		if err := json.Unmarshal([]byte(`{"trigger":{"timeout":"30s"},"nodes":[`+strings.Join(nodes, ",")+`]}`), def); err != nil {
			t.Fatal(err)
		}
		for i := range def.Nodes {
			def.Nodes[i].Module = def.Nodes[i].ID
		}
		if problems := Check(def); len(problems) > 0 {
			t.Fatal(problems)
		}

		var mu sync.Mutex
		var log []string
		record := func(event, id string) {
			mu.Lock()
			defer mu.Unlock()
			log = append(log, event+id)
		}
		e, err := New(Config{
			Invoker: invoker(func(_ context.Context, c wasm.Call) (wasm.Result, error) {
				record("begin ", c.Module)
				defer record("end ", c.Module)
				return wasm.Result{Output: []byte(`"` + c.Module + `"`)}, nil
			}),
			MaxParallel: rapid.IntRange(1, 5).Draw(t, "parallel"),
		})
		if err != nil {
			t.Fatal(err)
		}
		run := &core.Run{ID: "run_1"}
		e.Execute(context.Background(), run, def)
		if run.Status != core.RunSucceeded {
			t.Fatal(describe(run))
		}

		skipped := make([]bool, n)
		for i := range n {
			all := len(needs[i]) > 0
			for _, j := range needs[i] {
				all = all && skipped[j]
			}
			skipped[i] = off[i] || all
			step := run.Steps[order[i]]
			if want := map[bool]core.StepStatus{true: core.StepSkipped, false: core.StepSucceeded}[skipped[i]]; step.ID != fmt.Sprintf("n%d", i) || step.Status != want {
				t.Fatalf("step %d is %s %s, want %s", order[i], step.ID, step.Status, want)
			}
			begins := slices.Index(log, fmt.Sprintf("begin n%d", i))
			if count := strings.Count(strings.Join(log, ";")+";", fmt.Sprintf("begin n%d;", i)); (count == 1) == skipped[i] || count > 1 {
				t.Fatalf("n%d ran %d times, skipped: %t", i, count, skipped[i])
			}
			if skipped[i] {
				continue
			}
			for _, j := range needs[i] {
				if !skipped[j] && slices.Index(log, fmt.Sprintf("end n%d", j)) > begins {
					t.Fatalf("n%d began before n%d ended: %v", i, j, log)
				}
				want := fmt.Sprintf(`"n%d"`, j)
				if skipped[j] {
					want = "null"
				}
				named := strings.Contains(string(def.Nodes[order[i]].With), fmt.Sprintf("nodes.n%d.output", j))
				if named && !strings.Contains(string(step.Input), want) {
					t.Fatalf("n%d read %s, without %s", i, step.Input, want)
				}
			}
		}
	})
}

// invoker makes a function an Invoker.
type invoker func(ctx context.Context, call wasm.Call) (wasm.Result, error)

func (f invoker) Invoke(ctx context.Context, call wasm.Call) (wasm.Result, error) {
	return f(ctx, call)
}

func seq(n int) []int {
	s := make([]int, n)
	for i := range s {
		s[i] = i
	}
	return s
}

// TestCyclesAreFound adds one edge against the order to a random chain and expects the way around to be named.
func TestCyclesAreFound(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(2, 15).Draw(t, "nodes")
		from := rapid.IntRange(0, n-2).Draw(t, "from")
		to := rapid.IntRange(from+1, n-1).Draw(t, "to")
		def := &core.Definition{}
		for i := range n {
			node := core.Node{ID: fmt.Sprintf("n%d", i)}
			if i > 0 {
				node.Needs = append(node.Needs, fmt.Sprintf("n%d", i-1))
			}
			if i == from {
				node.Needs = append(node.Needs, fmt.Sprintf("n%d", to))
			}
			def.Nodes = append(def.Nodes, node)
		}
		problems := Check(def)
		if len(problems) != 1 {
			t.Fatalf("problems: %v", problems)
		}
		_, path, _ := strings.Cut(problems[0].Detail, ": ")
		path, _, _ = strings.Cut(path, ";")
		around := strings.Split(path, " -> ")
		if len(around) != to-from+2 || around[0] != around[len(around)-1] {
			t.Fatalf("path %q", path)
		}
		for i, id := range around[:len(around)-1] {
			node, ok := def.Node(id)
			if !ok || !slices.Contains(node.Needs, around[i+1]) {
				t.Fatalf("%s does not need %s: %q", id, around[i+1], path)
			}
		}
	})
}
