package main

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyfire/keyfire/examples/nodes/internal/door"
	"github.com/keyfire/keyfire/examples/nodes/internal/github"
)

var rules = config{Branches: []string{"main", "release/*"}, Tags: []string{"v*"}, IgnoreSenders: []string{"dependabot[bot]"}}

func TestFilterEvents(t *testing.T) {
	t.Parallel()
	tests := []struct {
		file string
		want output
	}{
		{"branch-push.json", output{true, "branch main matches main", github.BranchPushed, "main"}},
		{"force-push.json", output{true, "branch release/2.4 matches release/*", github.BranchForced, "release/2.4"}},
		{"branch-delete.json", output{true, "branch release/2.3 matches release/*", github.BranchDeleted, "release/2.3"}},
		{"tag-push.json", output{true, "tag v2.4.0 matches v*", github.TagCreated, "v2.4.0"}},
		{"ignored-branch.json", output{false, "branch docs/quickstart-typos matches none of main, release/*", github.BranchCreated, "docs/quickstart-typos"}},
	}
	for _, tt := range tests {
		event, err := os.ReadFile(filepath.Join("../../../workflows/github-push/events", tt.file))
		if err != nil {
			t.Fatal(err)
		}
		got, err := filter(input{Push: event, Config: rules})
		if err != nil || got != tt.want {
			t.Errorf("%s:\ngot  %+v, %v\nwant %+v", tt.file, got, err, tt.want)
		}
	}
}

func push(ref, login string) json.RawMessage {
	zero := strings.Repeat("0", 40)
	b, err := json.Marshal(map[string]any{
		"ref": ref, "before": zero, "after": zero,
		"repository": map[string]any{"full_name": "o/r"}, "sender": map[string]any{"login": login},
	})
	if err != nil {
		panic(err) // strings always marshal
	}
	return b
}

func TestFilterRules(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, ref, login string
		rules            config
		notify           bool
		reason           string
	}{
		{"star stops at a slash", "refs/heads/release/2.4/fix", "me", rules, false, "branch release/2.4/fix matches none of main, release/*"},
		{"a prefix is not enough", "refs/heads/mainline", "me", rules, false, "branch mainline matches none of main, release/*"},
		{"tag rules are not for branches", "refs/heads/v2", "me", rules, false, "branch v2 matches none of main, release/*"},
		{"branch rules are not for tags", "refs/tags/main", "me", rules, false, "tag main matches none of v*"},
		{"ignored sender", "refs/heads/main", "dependabot[bot]", rules, false, "pushes of dependabot[bot] are ignored"},
		{"notes", "refs/notes/commits", "me", rules, false, "refs/notes/commits is neither a branch nor a tag"},
		{"no rules", "refs/heads/main", "me", config{}, false, "branch main matches none of no patterns"},
	}
	for _, tt := range tests {
		got, err := filter(input{Push: push(tt.ref, tt.login), Config: tt.rules})
		if err != nil || got.Notify != tt.notify || got.Reason != tt.reason {
			t.Errorf("%s: got %+v, %v; want %v, %q", tt.name, got, err, tt.notify, tt.reason)
		}
	}
}

func TestFilterBadPattern(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{"release/[", ""} {
		_, err := filter(input{Push: push("refs/heads/main", "me"), Config: config{Branches: []string{"main", bad}}})
		if err == nil || !strings.Contains(err.Error(), "config.branches") {
			t.Errorf("pattern %q: got %v, want an error that names config.branches", bad, err)
		}
	}
}

func TestFilterOtherEvent(t *testing.T) {
	t.Parallel()
	_, err := filter(input{Push: json.RawMessage(`{"action":"opened"}`), Config: rules})
	var fail *door.Fail
	if !errors.As(err, &fail) || fail.Status != 422 || fail.Code != "not_a_push" {
		t.Errorf("got %v, want 422 not_a_push", err)
	}
}
