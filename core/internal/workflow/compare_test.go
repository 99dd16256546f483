package workflow

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keyfire/keyfire/core"
)

func TestCompare(t *testing.T) {
	t.Parallel()
	const digest = "sha256:1111111111111111111111111111111111111111111111111111111111111111"
	const (
		head = `
keyfire: v1
name: orders
trigger: { enabled: true, timeout: 20s }
input: { type: object, properties: { "a/b": { type: string } } }
nodes:
`
		fetch = `
  - id: fetch
    uses: ` + digest + `
    grants: { http: [ GET https://api.example.com ] }
`
		tell = `
  - id: tell
    uses: ` + digest + `
    needs: [ fetch ]
    with: { text: "${{ input['a/b'] > 1 }}" }
`
		whole = head + fetch + tell
	)
	for _, c := range []struct {
		name, after string
		want        []core.Difference
	}{
		{"nothing", whole, nil},
		{"everything but what is said is the same", `
keyfire: v1
name: orders
title: Orders
trigger: { enabled: true, timeout: 30s }
input: { type: object, properties: { "a/b": { type: integer } } }
nodes:
  - id: fetch
    uses: ` + digest + `
    grants: { http: [ GET https://api.example.com, POST https://api.example.net ] }
  - id: tell
    uses: ` + digest + `
    needs: [ fetch ]
`, []core.Difference{
			{Path: "#/input/properties/a~1b/type", Before: []byte(`"string"`), After: []byte(`"integer"`)},
			{Path: "#/nodes/fetch/grants/http", Before: []byte(`["GET https://api.example.com"]`), After: []byte(`["GET https://api.example.com","POST https://api.example.net"]`)},
			{Path: "#/nodes/tell/with", Before: []byte(`{"text":"${{ input['a/b'] > 1 }}"}`)},
			{Path: "#/title", After: []byte(`"Orders"`)},
			{Path: "#/trigger/timeout", Before: []byte(`"20s"`), After: []byte(`"30s"`)},
		}},
		{"a node less, and the others in their order", head + fetch, []core.Difference{{Path: "#/nodes/tell", Before: []byte(`{"id":"tell","limits":{},"module":"` + digest + `","needs":["fetch"],"uses":"` + digest + `","with":{"text":"${{ input['a/b'] > 1 }}"}}`)}}},
		{"another order", head + tell + fetch, []core.Difference{{Path: "#/nodes", Before: []byte(`["fetch","tell"]`), After: []byte(`["tell","fetch"]`)}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			got, err := Compare(decoded(t, whole), decoded(t, c.after))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func decoded(t *testing.T, text string) *core.Definition {
	t.Helper()
	f, err := Decode([]byte(text), "workflow.yaml")
	if err == nil {
		err = f.Resolve(nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	return &f.Definition
}
