package github

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const events = "../../../workflows/github-push/events"

func TestKind(t *testing.T) {
	t.Parallel()
	tests := []struct {
		file, branch, tag string
		kind              Kind
		commits           int
	}{
		{"branch-push.json", "main", "", BranchPushed, 3},
		{"force-push.json", "release/2.4", "", BranchForced, 2},
		{"branch-delete.json", "release/2.3", "", BranchDeleted, 0},
		{"ignored-branch.json", "docs/quickstart-typos", "", BranchCreated, 1},
		{"tag-push.json", "", "v2.4.0", TagCreated, 0},
	}
	for _, tt := range tests {
		event, err := os.ReadFile(filepath.Join(events, tt.file))
		if err != nil {
			t.Fatal(err)
		}
		p, err := ParsePush(event)
		if err != nil {
			t.Fatalf("%s: %v", tt.file, err)
		}
		branch, isBranch := p.Branch()
		tag, isTag := p.Tag()
		if isBranch && branch != tt.branch || isTag && tag != tt.tag || isBranch == isTag || p.Kind() != tt.kind || len(p.Commits) != tt.commits {
			t.Errorf("%s: branch %q, tag %q, %s, %d commits; want %+v", tt.file, branch, tag, p.Kind(), len(p.Commits), tt)
		}
	}
}

func TestKindOfRef(t *testing.T) {
	t.Parallel()
	tests := []struct {
		push Push
		want Kind
	}{
		{Push{Ref: "refs/tags/v1"}, TagMoved},
		{Push{Ref: "refs/tags/v1", Forced: true}, TagMoved},
		{Push{Ref: "refs/tags/v1", Deleted: true}, TagDeleted},
		{Push{Ref: "refs/notes/commits", Created: true}, OtherRef},
	}
	for _, tt := range tests {
		if got := tt.push.Kind(); got != tt.want {
			t.Errorf("%+v is %s, want %s", tt.push, got, tt.want)
		}
	}
}

func TestParsePushRefuses(t *testing.T) {
	t.Parallel()
	zero := strings.Repeat("0", 40)
	valid := map[string]any{
		"ref": "refs/heads/main", "before": zero, "after": zero,
		"repository": map[string]any{"full_name": "o/r"}, "sender": map[string]any{"login": "me"},
	}
	with := func(key string, value any) json.RawMessage {
		event := map[string]any{}
		for k, v := range valid {
			event[k] = v
		}
		event[key] = value
		b, err := json.Marshal(event)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	if _, err := ParsePush(with("after", zero)); err != nil {
		t.Fatalf("the event the others are made from: %v", err)
	}
	tests := map[string]json.RawMessage{
		"other event":      json.RawMessage(`{"zen":"Design for failure.","hook_id":1}`),
		"not an object":    json.RawMessage(`[]`),
		"no ref":           with("ref", ""),
		"no repository":    with("repository", nil),
		"no sender":        with("sender", nil),
		"before is not":    with("before", "<!here>"),
		"after is short":   with("after", "35e6bc8"),
		"commit id is not": with("commits", []any{map[string]any{"id": "HEAD"}}),
	}
	for name, event := range tests {
		if p, err := ParsePush(event); err == nil {
			t.Errorf("%s: accepted as %+v", name, p)
		}
	}
}
