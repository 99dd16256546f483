package auth

import (
	"slices"
	"strings"
)

// A scope is "action:resource", where the resource may have a path: "run:workflow/<id>", "run:workflow/billing/*", "runs:read". What no scope
// allows is denied. "keys:*" is short for all actions on keys when a key is made.

// Reach is which workflows a set of scopes may run.
type Reach struct {
	All       bool     // every workflow that admits account-wide keys
	Workflows []string // by id; by name too in scopes that people write elsewhere than in keys
	Prefixes  []string // every workflow whose name starts so, such as "billing/", that admits account-wide keys
}

// ReachOf returns which workflows scopes may run.
func ReachOf(scopes []string) Reach {
	var r Reach
	for _, s := range scopes {
		ref, ok := strings.CutPrefix(s, ScopeRunWorkflow)
		switch {
		case s == ScopeRunAll:
			r.All = true
		case !ok || ref == "":
		case ref == "*":
			r.All = true
		case strings.HasSuffix(ref, "/*"):
			r.Prefixes = append(r.Prefixes, strings.TrimSuffix(ref, "*"))
		default:
			r.Workflows = append(r.Workflows, ref)
		}
	}
	return r
}

// None reports whether the scopes may run nothing.
func (r Reach) None() bool { return !r.All && len(r.Workflows) == 0 && len(r.Prefixes) == 0 }

// Single returns the one workflow that the scopes are for, "" when there is not exactly one.
func (r Reach) Single() string {
	if r.All || len(r.Prefixes) > 0 || len(r.Workflows) != 1 {
		return ""
	}
	return r.Workflows[0]
}

// Below reports whether a workflow of this name is within one of the prefixes.
func (r Reach) Below(name string) bool {
	return slices.ContainsFunc(r.Prefixes, func(p string) bool { return strings.HasPrefix(name, p) && len(name) > len(p) })
}

// WorkflowScopes returns the ids of the workflows that scopes name one by one.
func WorkflowScopes(scopes []string) []string { return ReachOf(scopes).Workflows }

// ExpandScope returns the scopes that a scope stands for when a key is made: "keys:*" is "keys:read" and "keys:write". A scope without a star at its end,
// and any scope to run workflows, stands for itself.
func ExpandScope(scope string) []string {
	area, ok := strings.CutSuffix(scope, ":*")
	if !ok || area == "run" {
		return []string{scope}
	}
	var all []string
	for _, s := range AdminScopes() {
		if strings.HasPrefix(s, area+":") {
			all = append(all, s)
		}
	}
	if len(all) == 0 {
		return []string{scope}
	}
	return all
}

// Covers reports whether whoever holds own may give, or take over, what the scopes in other allow.
func Covers(own, other []string) bool {
	reach := ReachOf(own)
	return !slices.ContainsFunc(other, func(scope string) bool {
		if Allows(own, scope) {
			return false
		}
		ref, run := strings.CutPrefix(scope, ScopeRunWorkflow)
		switch {
		case !run:
			return true
		case reach.All:
			return false
		}
		return !strings.HasSuffix(ref, "/*") || !reach.Below(ref)
	})
}
