package core

import (
	"strings"
	"testing"
)

func TestNearest(t *testing.T) {
	t.Parallel()
	fields := []string{"trigger", "title", "nodes", "name", "output", "input", "if", "id"}
	for name, want := range map[string]string{
		"triger": "trigger", "Trigger": "trigger", "TRIGER": "trigger", "titel": "title", "node": "nodes", "nam": "name", "outputs": "output",
		"inptu": "input", "inpt": "input", "ix": "id", "i": "id", "": "", "x": "", "timeout": "", "trigger": "trigger", "tttttttttttt": "",
		strings.Repeat("n", 65): "", "имя": "",
	} {
		if got := Nearest(name, fields); got != want {
			t.Errorf("Nearest(%q) = %q, want %q", name, got, want)
		}
	}
	if got := Nearest("b", []string{"cb", "bb", "ab"}); got != "ab" {
		t.Errorf("of three that are as near, got %q", got)
	}
	if got := Nearest("a", nil); got != "" {
		t.Errorf("of none, got %q", got)
	}
}

func TestDistance(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"abc", "abc", 0}, {"", "abc", 3}, {"listen", "lisetn", 1}, {"kitten", "sitting", 3}, {"ab", "ba", 1}, {"abcd", "badc", 2}} {
		for _, pair := range [][2]string{{tc.a, tc.b}, {tc.b, tc.a}} {
			if got := distance(pair[0], pair[1]); got != tc.want {
				t.Errorf("distance(%q, %q) = %d, want %d", pair[0], pair[1], got, tc.want)
			}
		}
	}
}
