package auth

import (
	"slices"
	"testing"
)

func TestReach(t *testing.T) {
	t.Parallel()
	r := ReachOf([]string{"run:workflow/wf_1", "run:workflow/billing/*", "runs:read", "run:workflow/", "walk:*"})
	if r.All || !slices.Equal(r.Workflows, []string{"wf_1"}) || r.None() || r.Single() != "" {
		t.Errorf("%+v", r)
	}
	for name, want := range map[string]bool{"billing/invoice": true, "billing/eu/refund": true, "billing": false, "billing/": false, "billing-old/x": false, "x/billing/y": false} {
		if r.Below(name) != want {
			t.Errorf("%s: %v", name, !want)
		}
	}
	for _, all := range []string{"run:*", "run:workflow/*"} {
		if !ReachOf([]string{all}).All {
			t.Error(all)
		}
	}
	if !ReachOf([]string{"runs:read", "keys:write"}).None() || ReachOf([]string{"run:workflow/a"}).Single() != "a" {
		t.Error("what is not about running reaches nothing")
	}
}

func TestCovers(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		own, other []string
		want       bool
	}{
		{[]string{"run:*"}, []string{"run:workflow/x", "run:workflow/a/*", "run:*"}, true},
		{[]string{"run:workflow/a/*"}, []string{"run:workflow/a/b/*"}, true},
		{[]string{"run:workflow/a/*"}, []string{"run:workflow/b/*"}, false},
		{[]string{"run:workflow/a/*"}, []string{"run:workflow/wf_1"}, false},
		{[]string{"run:workflow/x"}, []string{"run:*"}, false},
		{[]string{"keys:write"}, []string{"keys:write", "secrets:read"}, false},
		{nil, nil, true},
	} {
		if Covers(c.own, c.other) != c.want {
			t.Errorf("%v over %v: %v", c.own, c.other, !c.want)
		}
	}
	if got := ExpandScope("keys:*"); !slices.Equal(got, []string{"keys:read", "keys:write"}) {
		t.Error(got)
	}
	for _, s := range []string{"run:*", "nothing:*", "runs:read"} {
		if got := ExpandScope(s); !slices.Equal(got, []string{s}) {
			t.Error(got)
		}
	}
}
