package auth

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The table of roles in the README is what roles may do, scope by scope: no more, no less, and no scope is left out.
func TestRolesAreAsDocumented(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, ok := strings.Cut(string(readme), "| scope | viewer | operator | owner | superuser |")
	if !ok {
		t.Fatal("the README has no table of roles")
	}
	table, _, _ = strings.Cut(table, "\n\n")
	documented := map[Role][]string{}
	var scopes []string
	for line := range strings.Lines(table) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if len(cells) != 5 || strings.HasPrefix(cells[0], "-") {
			continue
		}
		for _, name := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(cells[0], -1) {
			scopes = append(scopes, name[1])
			for i, r := range Roles() {
				switch mark := strings.TrimSpace(cells[i+1]); mark {
				case "yes":
					documented[r] = append(documented[r], name[1])
				case "":
				default:
					t.Errorf("%s: %q is neither yes nor nothing", name[1], mark)
				}
			}
		}
	}
	sorted := func(s []string) []string { return slices.Sorted(slices.Values(s)) }
	if got := sorted(scopes); !slices.Equal(got, sorted(SuperuserScopes())) {
		t.Errorf("the table has %v\nscopes are  %v", got, sorted(SuperuserScopes()))
	}
	var below []string
	for _, r := range Roles() {
		if got, want := sorted(r.Scopes()), sorted(documented[r]); !slices.Equal(got, want) {
			t.Errorf("%s may %v\ndocumented is %v", r, got, want)
		}
		if !Covers(r.Scopes(), below) {
			t.Errorf("%s may not all that the role before it may", r)
		}
		below = r.Scopes()
	}
	if Role("boss").Valid() || Role("boss").Scopes() != nil || Role("").Valid() {
		t.Error("a role that does not exist may something")
	}
	for _, r := range []Role{Viewer, Operator, Owner} {
		for _, s := range ServerScopes() {
			if Allows(r.Scopes(), s) {
				t.Errorf("%s may %s", r, s)
			}
		}
	}
}
