package workflow

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/keyfire/keyfire/core"
)

// Compare returns where two definitions of a workflow differ, sorted by path. Definitions with the same digest do not. That nodes have another order is a difference
// of "#/nodes", whose values are lists of ids.
func Compare(before, after *core.Definition) ([]core.Difference, error) {
	b, err := tree(before)
	if err != nil {
		return nil, err
	}
	a, err := tree(after)
	if err != nil {
		return nil, err
	}
	var c comparison
	// That nodes came and went is said by themselves.
	if b, a := shared(before, after), shared(after, before); !slices.Equal(b, a) {
		c.add("#/nodes", b, a, true, true)
	}
	c.objects("#", b, a)
	slices.SortStableFunc(c.found, func(x, y core.Difference) int { return strings.Compare(x.Path, y.Path) })
	return c.found, c.err
}

// shared returns the ids of a definition's nodes that another one has too.
func shared(def, other *core.Definition) []string {
	ids := []string{}
	for _, n := range def.Nodes {
		if slices.ContainsFunc(other.Nodes, func(o core.Node) bool { return o.ID == n.ID }) {
			ids = append(ids, n.ID)
		}
	}
	return ids
}

// tree is the JSON form of a definition with its nodes by id, since one that moves is no other one.
func tree(def *core.Definition) (map[string]any, error) {
	text, err := json.Marshal(def)
	if err != nil {
		return nil, fmt.Errorf("compare workflow %s: %w", def.Name, err)
	}
	decoded, err := core.DecodeJSON(text)
	if err != nil {
		return nil, fmt.Errorf("compare workflow %s: %w", def.Name, err)
	}
	object, _ := decoded.(map[string]any)
	list, _ := object["nodes"].([]any)
	nodes := make(map[string]any, len(list))
	for i, node := range list {
		nodes[def.Nodes[i].ID] = node
	}
	object["nodes"] = nodes
	return object, nil
}

type comparison struct {
	found []core.Difference
	err   error
}

func (c *comparison) objects(path string, before, after map[string]any) {
	names := maps.Clone(before)
	maps.Copy(names, after)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		b, inBefore := before[name]
		a, inAfter := after[name]
		at := path + "/" + strings.NewReplacer("~", "~0", "/", "~1").Replace(name)
		objectBefore, ok1 := b.(map[string]any)
		objectAfter, ok2 := a.(map[string]any)
		switch {
		case ok1 && ok2:
			c.objects(at, objectBefore, objectAfter)
		case inBefore != inAfter || !reflect.DeepEqual(b, a):
			c.add(at, b, a, inBefore, inAfter)
		}
	}
}

func (c *comparison) add(path string, before, after any, inBefore, inAfter bool) {
	c.found = append(c.found, core.Difference{Path: path, Before: c.text(before, inBefore), After: c.text(after, inAfter)})
}

func (c *comparison) text(value any, there bool) json.RawMessage {
	if !there {
		return nil
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(value); err != nil && c.err == nil {
		c.err = err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}
